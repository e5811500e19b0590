//! From an Experiment's text to its mirror [`Raw`]: the numbers within their bounds, no line ends in paths, and for what has the wrong
//! type a sentence that names the field.

use std::path::Path;

use serde_path_to_error::Segment;
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::raw::Raw;
use super::{Error, bounds};
use crate::shown;

/// Texts that may have several lines.
const CAPTIONS: [&str; 5] = [
    "trigger",
    "default_caption",
    "prompts",
    "negative_prompt",
    // What a recipe has around them.
    "template",
];

const PATH_HINT: &str =
    "in double quotes `\\` begins an escape: write a path with `/`, or in 'single quotes'";

/// Reads an Experiment's text; `file` names it in messages.
pub(super) fn parse(file: &Path, text: &str) -> Result<Raw, Error> {
    let malformed = |line: usize, why: String| Error::Malformed {
        file: file.into(),
        line,
        why,
    };
    let table = DeTable::parse(text).map_err(|e| {
        let line = line_of(text, e.span().map_or(0, |span| span.start));
        malformed(line, syntax(text, line, e.message()))
    })?;
    check_table(table.get_ref(), &mut Vec::new()).map_err(|((field, why), at)| Error::Value {
        file: file.into(),
        line: Some(line_of(text, at)),
        field,
        why,
    })?;
    let found = table.clone();
    serde_path_to_error::deserialize(toml::Deserializer::from(table)).map_err(|e| {
        let inner = e.inner();
        let line = line_of(text, inner.span().map_or(0, |span| span.start));
        malformed(line, wrong_type(found.get_ref(), e.path(), inner.message()))
    })
}

/// The line of a place in a text, from 1.
fn line_of(text: &str, at: usize) -> usize {
    let before = &text.as_bytes()[..at.min(text.len())];
    before.iter().filter(|&&b| b == b'\n').count() + 1
}

/// What is wrong with text that is not TOML.
fn syntax(text: &str, line: usize, message: &str) -> String {
    let message = shown::text(&message.trim().replace('\n', ", ")).to_string();
    let source = text.lines().nth(line - 1).unwrap_or_default();
    let is_escape = ["escape", "unicode"]
        .iter()
        .any(|word| message.contains(word));
    match is_escape && source.contains('\\') {
        true => format!("a `\\` here begins no known escape; {PATH_HINT}"),
        false => message,
    }
}

type FieldProblem = (String, String);

/// The first number out of its bounds and the first path with a control character, and where in the text it is; `at` is where the table
/// is.
fn check_table(table: &DeTable<'_>, at: &mut Vec<String>) -> Result<(), (FieldProblem, usize)> {
    table.iter().try_for_each(|(key, value)| {
        at.push(key.get_ref().to_string());
        check_value(value, at)?;
        at.pop();
        Ok(())
    })
}

fn check_value(
    value: &Spanned<DeValue<'_>>,
    at: &mut Vec<String>,
) -> Result<(), (FieldProblem, usize)> {
    let checked = match value.get_ref() {
        DeValue::Table(table) => return check_table(table, at),
        DeValue::Array(list) => {
            return list.iter().enumerate().try_for_each(|(n, value)| {
                at.push(format!("[{n}]"));
                check_value(value, at)?;
                at.pop();
                Ok(())
            });
        }
        DeValue::Integer(number) => {
            let is_right = |range: bounds::Range| whole(number).is_some_and(|n| range.has_whole(n));
            check_number(at, is_right, &written(number))
        }
        DeValue::Float(number) => {
            let value = number.as_str().parse().unwrap_or(f64::NAN);
            check_number(at, |range| range.has(value), number.as_str())
        }
        DeValue::String(text) => check_text(at, text),
        DeValue::Boolean(_) | DeValue::Datetime(_) => Ok(()),
    };
    checked.map_err(|problem| (problem, value.span().start))
}

fn whole(number: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(number.as_str(), number.radix()).ok()
}

/// A whole number as a person would write it; it may be longer than any type.
fn written(number: &DeInteger<'_>) -> String {
    whole(number).map_or_else(|| number.as_str().to_owned(), |n| n.to_string())
}

fn check_number(
    at: &[String],
    is_right: impl Fn(bounds::Range) -> bool,
    found: &str,
) -> Result<(), FieldProblem> {
    let in_file: Vec<&str> = at
        .iter()
        .map(String::as_str)
        .filter(|key| !key.starts_with('['))
        .collect();
    match bounds::range(&in_file.join(".")) {
        Some(range) if !is_right(range) => Err((
            dotted(at),
            format!("expected {range}, found {}", shown::text(found)),
        )),
        _ => Ok(()),
    }
}

fn check_text(at: &[String], text: &str) -> Result<(), FieldProblem> {
    // A deviation may be written as one quoted key.
    let last = |key: &String| {
        key.rsplit('.')
            .next()
            .is_some_and(|k| CAPTIONS.contains(&k))
    };
    let may_have_lines = at.iter().any(last);
    let Some(control) = text
        .chars()
        .find(|c| c.is_control())
        .filter(|_| !may_have_lines)
    else {
        return Ok(());
    };
    let name = match control {
        '\n' | '\r' => "a line end".to_owned(),
        '\t' => "a tab".to_owned(),
        other => format!("the control character {}", other.escape_debug()),
    };
    let why = format!("there is {name} in `{}`; {PATH_HINT}", shown::text(text));
    Err((dotted(at), why))
}

/// `dataset[0].path`.
fn dotted(at: &[String]) -> String {
    let mut name = String::new();
    for key in at {
        if !name.is_empty() && !key.starts_with('[') {
            name.push('.');
        }
        name.push_str(key);
    }
    shown::text(&name).to_string()
}

/// What is wrong with TOML that is no Experiment, by serde's message and where it happened.
fn wrong_type(root: &DeTable<'_>, path: &serde_path_to_error::Path, message: &str) -> String {
    let at: Vec<String> = path.iter().map(segment).collect();
    let field = dotted(&at);
    let message = message.trim().replace('\n', " ");
    if let Some(name) = message.strip_prefix("missing field ") {
        let inside = match field.as_str() {
            "" => String::new(),
            field => format!(" in `{field}`"),
        };
        return format!("{name} is missing{inside}");
    }
    let of_type = ["invalid type: ", "invalid value: "];
    if of_type.iter().any(|kind| message.starts_with(kind))
        && let Some((_, expected)) = message.rsplit_once(", expected ")
        && let Some(found) = find(root, path)
    {
        return type_problem(&field, expected, found);
    }
    // Of lists, and of types of our own, which say what they expect.
    let found = find(root, path).map(described).unwrap_or_default();
    let length = message.strip_prefix("invalid length ");
    if let Some((length, expected)) = length.and_then(|rest| rest.split_once(", expected ")) {
        return format!("`{field}`: expected {expected}, found {found} of {length}");
    }
    let expected = match message.as_str() {
        "wanted string or table" => "expected text in quotes",
        other => other,
    };
    if expected.starts_with("expected ") && !expected.contains("found") && !found.is_empty() {
        return format!("`{field}`: {}, found {found}", shown::text(expected));
    }
    let why = super::error::with_nearest(&message);
    match field.is_empty() || message.starts_with("unknown field") {
        true => why,
        false => format!("`{field}`: {why}"),
    }
}

fn segment(segment: &Segment) -> String {
    match segment {
        Segment::Seq { index } => format!("[{index}]"),
        Segment::Map { key } => key.clone(),
        Segment::Enum { variant } => variant.clone(),
        Segment::Unknown => "?".to_owned(),
    }
}

fn find<'a>(root: &'a DeTable<'a>, path: &serde_path_to_error::Path) -> Option<&'a DeValue<'a>> {
    let mut segments = path.iter();
    let mut value = match segments.next()? {
        Segment::Map { key } => root.get(key.as_str())?,
        _ => return None,
    };
    for segment in segments {
        value = match segment {
            Segment::Map { key } => value.get_ref().get(key.as_str())?,
            Segment::Seq { index } => value.get_ref().get(*index)?,
            Segment::Enum { .. } | Segment::Unknown => return None,
        };
    }
    Some(Spanned::get_ref(value))
}

fn type_problem(field: &str, expected: &str, found: &DeValue<'_>) -> String {
    if field == "dataset" && found.is_table() {
        return "`dataset`: there may be several, so its name stands in two brackets: [[dataset]]"
            .to_owned();
    }
    let is_number = matches!(expected, "f64" | "u64" | "u32" | "usize");
    let hint = match found {
        DeValue::String(text) if is_number && text.trim().parse::<f64>().is_ok() => {
            "; leave out the quotes"
        }
        _ => "",
    };
    format!(
        "`{field}`: expected {}, found {}{hint}",
        in_words(expected),
        described(found)
    )
}

/// What serde expects, as a person would say it.
fn in_words(expected: &str) -> &str {
    match expected {
        "f64" => "a number",
        "u64" | "u32" | "usize" => "a whole number",
        "a boolean" => "true or false",
        "a string" => "text in quotes",
        "path string" => "a path in quotes",
        "a sequence" => "a list in brackets",
        "a map" => "fields of its own",
        other if other.starts_with("struct ") => "a section with fields",
        other => other,
    }
}

fn described(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("text \"{}\"", shown::text(text)),
        DeValue::Integer(number) => format!("the number {}", shown::text(&written(number))),
        DeValue::Float(number) => format!("the number {}", shown::text(number.as_str())),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a section".to_owned(),
    }
}

//! The lines of lists of captions. What could be read in two ways is refused: a caption that is silently another one trains, and
//! nobody sees it.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::shown;

/// The fields that may have the caption; the first that is there is taken.
const CAPTIONS: [&str; 2] = ["text", "caption"];
const FILE_NAME: &str = "file_name";
/// What other programs put between columns.
const SEPARATORS: [(char, &str); 3] = [(';', "`;`"), ('\t', "a tab"), ('|', "`|`")];

/// One picture, as a line of a list gives it.
pub(super) struct Line {
    pub(super) file_name: String,
    pub(super) caption: String,
    pub(super) reference: Option<String>,
}

/// The lines of a `metadata.jsonl`, each with its number. `column` has the pictures' references.
pub(super) fn json_lines(
    text: &str,
    column: Option<&str>,
) -> Result<Vec<(u64, Line)>, (u64, String)> {
    let numbered = (1..).zip(text.lines());
    numbered
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(n, line)| Ok((n, json_line(line, column).map_err(|problem| (n, problem))?)))
        .collect()
}

fn json_line(line: &str, column: Option<&str>) -> Result<Line, String> {
    let fields = Fields::read(line, "`file_name` and `text`")?;
    let file_name = fields.text(FILE_NAME)?.ok_or("no field `file_name`")?;
    let [text, caption] = CAPTIONS;
    let caption = match fields.text(text)? {
        Some(chosen) if chosen.trim().is_empty() => {
            check_other(fields.text(caption)?.as_deref())?;
            Some(chosen)
        }
        Some(chosen) => Some(chosen),
        None => fields.text(caption)?,
    };
    let reference = column.map(|column| fields.text(column)).transpose()?;
    Ok(Line {
        file_name,
        caption: caption.ok_or("no field `text` (nor `caption`)")?,
        reference: reference.flatten(),
    })
}

/// The text in a field of a JSON object in one line.
///
/// # Errors
/// If it is no object, or has no such field once.
pub(crate) fn json_text(line: &str, field: &str) -> Result<String, String> {
    let fields = Fields::read(line, &format!("`{field}`"))?;
    fields
        .text(field)?
        .ok_or_else(|| format!("no field `{field}`"))
}

fn twice(what: &str, name: &str) -> String {
    format!(
        "the {what} `{}` is there twice: remove one",
        shown::text(name)
    )
}

/// Of an empty `text`: refuses a `caption` that is not.
fn check_other(caption: Option<&str>) -> Result<(), String> {
    match caption.is_some_and(|caption| !caption.trim().is_empty()) {
        true => Err("`text` is empty, and `caption` is not: keep one of them".to_owned()),
        false => Ok(()),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The fields of a JSON object with those whose name is there twice, of which a [`Value`] keeps the last.
struct Fields(Vec<(String, Value)>);

impl Fields {
    /// `expected` are the fields that a message names.
    fn read(line: &str, expected: &str) -> Result<Self, String> {
        serde_json::from_str(line).map_err(|error| match serde_json::from_str(line) {
            Ok(value) if !Value::is_object(&value) => {
                format!("expected an object with {expected}, found {}", kind(&value))
            }
            Ok(_) => error.to_string(),
            // Of what is no JSON at all, in words of no type that is wanted here.
            Err(error) => error.to_string(),
        })
    }

    /// The text in a field; nothing where the field is not there, or is null.
    fn text(&self, name: &str) -> Result<Option<String>, String> {
        let mut of_name = self.0.iter().filter(|(key, _)| key == name);
        let value = of_name.next().map(|(_, value)| value);
        if of_name.next().is_some() {
            return Err(twice("field", name));
        }
        match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Array(_)) => Err(format!(
                "`{}` is a list, expected one text: choose one of them, or join them",
                shown::text(name)
            )),
            Some(other) => Err(format!(
                "`{}` is {}, expected a text",
                shown::text(name),
                kind(other)
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Fields(fields))
    }
}

/// The rows of a `metadata.csv`, each with the number of its first line. `column` has the pictures' references.
pub(super) fn csv_lines(
    text: &str,
    column: Option<&str>,
) -> Result<Vec<(u64, Line)>, (u64, String)> {
    let mut table = csv::Reader::from_reader(text.as_bytes());
    let problem = |e: &csv::Error| {
        let line = e.position().map_or(1, csv::Position::line);
        let text = e.to_string();
        (line, shown::text(&text).to_string())
    };
    let columns = table.headers().map_err(|e| problem(&e))?.clone();
    let find = |name: &str| {
        let mut found = (columns.iter().enumerate()).filter(|(_, column)| column.trim() == name);
        let first = found.next().map(|(n, _)| n);
        match found.next() {
            Some(_) => Err((1, twice("column", name))),
            None => Ok(first),
        }
    };
    let needed = |name: &str| find(name)?.ok_or_else(|| (1, missing(name, &columns)));
    let file_name = needed(FILE_NAME)?;
    let [of_text, of_caption] = CAPTIONS;
    let (chosen, other) = match (find(of_text)?, find(of_caption)?) {
        (None, Some(caption)) => (caption, None),
        (_, caption) => (needed(of_text)?, caption),
    };
    let reference = column.map(needed).transpose()?;
    check_quotes(text)?;
    let row = |row: Result<csv::StringRecord, csv::Error>| {
        let row = row.map_err(|e| problem(&e))?;
        let line = row.position().map_or(1, csv::Position::line);
        let cell = |n: usize| row.get(n).unwrap_or_default().to_owned();
        let of_picture = Line {
            file_name: cell(file_name),
            caption: cell(chosen),
            reference: reference.map(cell),
        };
        if of_picture.caption.trim().is_empty() {
            check_other(other.and_then(|n| row.get(n))).map_err(|problem| (line, problem))?;
        }
        Ok((line, of_picture))
    };
    table.records().map(row).collect()
}

/// Says that a column is missing, and where columns have another separator, that.
fn missing(name: &str, columns: &csv::StringRecord) -> String {
    let other = SEPARATORS.iter().find(|(separator, _)| {
        let mut parts = columns.iter().flat_map(|column| column.split(*separator));
        parts.any(|part| part.trim().trim_matches('"') == name)
    });
    let name = shown::text(name);
    match other {
        Some((_, found)) => format!(
            "no column `{name}`: the columns are separated by {found}, expected `,`: save the table with commas"
        ),
        None => format!("no column `{name}`"),
    }
}

/// Refuses quotes that `csv` reads in silence: one that is never closed takes the rows behind it into its cell, and one that closes
/// before its cell's end has taken those before.
fn check_quotes(text: &str) -> Result<(), (u64, String)> {
    enum Place {
        Start,
        Plain,
        Quoted,
        Closed,
        Behind,
    }
    let (mut place, mut line, mut opened) = (Place::Start, 1, 1);
    for byte in text.bytes() {
        place = match (place, byte) {
            (Place::Quoted, b'"') => Place::Closed,
            (Place::Quoted, _) | (Place::Closed, b'"') => Place::Quoted,
            (_, b',' | b'\n' | b'\r') => Place::Start,
            (Place::Start, b'"') => {
                opened = line;
                Place::Quoted
            }
            (Place::Start | Place::Plain, _) => Place::Plain,
            (Place::Closed | Place::Behind, b' ' | b'\t') => Place::Behind,
            (Place::Closed | Place::Behind, _) => {
                let closed = match line == opened {
                    true => String::new(),
                    false => format!(" (in line {line})"),
                };
                return Err((
                    opened,
                    format!(
                        "a quote that opens here has text behind its end{closed}: close it at the cell's end, and double those inside"
                    ),
                ));
            }
        };
        line += u64::from(byte == b'\n');
    }
    match place {
        Place::Quoted => Err((
            opened,
            "a quote that opens here is never closed: close it at the cell's end".to_owned(),
        )),
        _ => Ok(()),
    }
}

//! Captions in files: the text beside a picture, and the lists that Hugging Face's image folders have.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Component, Path};

use serde_json::Value;

use super::Error;
use crate::files;
use crate::shown;

/// The names of lists of captions: a JSON object a line, or a table; with `file_name` and `text`.
pub(super) const LISTS: [&str; 2] = ["metadata.jsonl", "metadata.csv"];
/// The largest caption file, and the largest list of captions, that is read.
const MOST_CAPTION_BYTES: u64 = 1 << 20;
const MOST_LIST_BYTES: u64 = 1 << 28;

/// The text of a caption file, without white space around it and with `\n` line ends. The whole of it: that
/// some trainers keep only the first line is a rule of their recipes.
pub(super) fn read(path: &Path) -> Result<String, Error> {
    Ok(text(path, MOST_CAPTION_BYTES)?
        .trim()
        .replace("\r\n", "\n")
        .replace('\r', "\n"))
}

/// A file's text, without the byte-order mark some editors put first.
fn text(path: &Path, most_bytes: u64) -> Result<String, Error> {
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let fail = |problem: String| {
        Err(Error::Unusable {
            path: path.to_owned(),
            problem,
        })
    };
    let (file, mut bytes) = (files::open(path).map_err(io)?, Vec::new());
    // Bounded, as a file may grow, and one that is no file may never end.
    file.take(most_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if bytes.len() as u64 > most_bytes {
        return fail(format!("more bytes than {most_bytes}: cut it"));
    }
    // What Windows' Notepad calls Unicode. As UTF-8 it fails at its first byte, which would tell a person nothing.
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return fail("the text is UTF-16: save it as UTF-8".to_owned());
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text
            .strip_prefix('\u{feff}')
            .map(str::to_owned)
            .unwrap_or(text)),
        Err(error) => fail(format!(
            "the text is not UTF-8 at byte {}: save it as UTF-8",
            error.utf8_error().valid_up_to()
        )),
    }
}

/// One picture and its caption, as a line of a list gives them.
type Line = (String, String);

/// The captions of a list, by the picture's path below the folder of the list. Further fields are allowed.
pub(super) fn list(path: &Path) -> Result<BTreeMap<String, String>, Error> {
    let text = text(path, MOST_LIST_BYTES)?;
    let fail = |(line, problem): (u64, String)| Error::Unusable {
        path: path.to_owned(),
        problem: format!("line {line}: {problem}"),
    };
    let lines = match path.extension().is_some_and(|e| e == "csv") {
        true => csv_lines(&text),
        false => json_lines(&text),
    };
    let mut captions = BTreeMap::new();
    for (number, (file_name, caption)) in lines.map_err(fail)? {
        let shown = shown::text(&file_name);
        let name = below(&file_name).ok_or_else(|| {
            let problem = format!("`file_name` is `{shown}`, expected a path below the folder");
            fail((number, problem))
        })?;
        if captions.insert(name, caption.trim().to_owned()).is_some() {
            return Err(fail((number, format!("`{shown}` is there twice"))));
        }
    }
    Ok(captions)
}

/// The lines of a `metadata.jsonl`, each with its number.
fn json_lines(text: &str) -> Result<Vec<(u64, Line)>, (u64, String)> {
    let numbered = (1..).zip(text.lines());
    numbered
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(n, line)| Ok((n, json_line(line).map_err(|problem| (n, problem))?)))
        .collect()
}

fn json_line(line: &str) -> Result<Line, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let Value::Object(fields) = value else {
        return Err(format!(
            "expected an object with `file_name` and `text`, found {}",
            kind(&value)
        ));
    };
    let field = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(_)) => Err(format!(
            "`{name}` is a list, expected one text: choose one of them, or join them"
        )),
        Some(other) => Err(format!("`{name}` is {}, expected a text", kind(other))),
    };
    let file_name = field("file_name")?.ok_or("no field `file_name`")?;
    let caption = match field("text")? {
        Some(text) => Some(text),
        None => field("caption")?,
    };
    Ok((file_name, caption.ok_or("no field `text` (nor `caption`)")?))
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

/// The rows of a `metadata.csv`, each with the number of its first line.
fn csv_lines(text: &str) -> Result<Vec<(u64, Line)>, (u64, String)> {
    let mut table = csv::Reader::from_reader(text.as_bytes());
    let problem = |e: &csv::Error| {
        let line = e.position().map_or(1, csv::Position::line);
        let text = e.to_string();
        (line, shown::text(&text).to_string())
    };
    let columns = table.headers().map_err(|e| problem(&e))?.clone();
    let column = |name: &str| columns.iter().position(|column| column.trim() == name);
    let file_name = column("file_name");
    let caption = column("text").or(column("caption"));
    let missing = |name: &str| (1, format!("no column `{name}`"));
    let file_name = file_name.ok_or_else(|| missing("file_name"))?;
    let caption = caption.ok_or_else(|| missing("text"))?;
    let row = |row: Result<csv::StringRecord, csv::Error>| {
        let row = row.map_err(|e| problem(&e))?;
        let line = row.position().map_or(1, csv::Position::line);
        let cell = |n: usize| row.get(n).unwrap_or_default().to_owned();
        Ok((line, (cell(file_name), cell(caption))))
    };
    table.records().map(row).collect()
}

/// `path` with `/` and without `.`; `None` if it is empty, absolute, or leads out of the folder.
fn below(path: &str) -> Option<String> {
    // `./a.png` and `a.png` are one picture; `..` and absolute paths would reach files outside.
    let parts = Path::new(path)
        .components()
        .filter(|part| *part != Component::CurDir);
    let parts: Option<Vec<_>> = parts
        .map(|part| match part {
            Component::Normal(part) => part.to_str(),
            _ => None,
        })
        .collect();
    parts
        .filter(|parts| !parts.is_empty())
        .map(|parts| parts.join("/"))
}

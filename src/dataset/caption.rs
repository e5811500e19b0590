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

/// One picture, as a line of a list gives it.
struct Line {
    file_name: String,
    caption: String,
    reference: Option<String>,
}

/// What a list says of a picture.
pub(super) struct Listed {
    pub(super) caption: String,
    /// The path of its reference picture below the folder of the list, where a column of them is asked for.
    pub(super) reference: Option<String>,
}

/// The lines of a list, by the picture's path below the folder of the list. `column` has the pictures' references. Further fields
/// are allowed.
pub(super) fn list(path: &Path, column: Option<&str>) -> Result<BTreeMap<String, Listed>, Error> {
    let text = text(path, MOST_LIST_BYTES)?;
    let fail = |(line, problem): (u64, String)| Error::Unusable {
        path: path.to_owned(),
        problem: format!("line {line}: {problem}"),
    };
    let lines = match path.extension().is_some_and(|e| e == "csv") {
        true => csv_lines(&text, column),
        false => json_lines(&text, column),
    };
    let mut listed = BTreeMap::new();
    for (number, line) in lines.map_err(fail)? {
        let below = |field: &str, path: &str| {
            below(path).ok_or_else(|| {
                let (field, shown) = (shown::text(field), shown::text(path));
                let problem = format!("`{field}` is `{shown}`, expected a path below the folder");
                fail((number, problem))
            })
        };
        let name = below("file_name", &line.file_name)?;
        let reference = line.reference.filter(|path| !path.is_empty());
        let reference = reference.map(|path| below(column.unwrap_or_default(), &path));
        let of_picture = Listed {
            caption: line.caption.trim().to_owned(),
            reference: reference.transpose()?,
        };
        if listed.insert(name, of_picture).is_some() {
            let shown = shown::text(&line.file_name);
            return Err(fail((number, format!("`{shown}` is there twice"))));
        }
    }
    Ok(listed)
}

/// The lines of a `metadata.jsonl`, each with its number.
fn json_lines(text: &str, column: Option<&str>) -> Result<Vec<(u64, Line)>, (u64, String)> {
    let numbered = (1..).zip(text.lines());
    numbered
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(n, line)| Ok((n, json_line(line, column).map_err(|problem| (n, problem))?)))
        .collect()
}

fn json_line(line: &str, column: Option<&str>) -> Result<Line, String> {
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
            "`{}` is a list, expected one text: choose one of them, or join them",
            shown::text(name)
        )),
        Some(other) => Err(format!(
            "`{}` is {}, expected a text",
            shown::text(name),
            kind(other)
        )),
    };
    let file_name = field("file_name")?.ok_or("no field `file_name`")?;
    let caption = match field("text")? {
        Some(text) => Some(text),
        None => field("caption")?,
    };
    Ok(Line {
        file_name,
        caption: caption.ok_or("no field `text` (nor `caption`)")?,
        reference: column.map(field).transpose()?.flatten(),
    })
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
fn csv_lines(text: &str, reference: Option<&str>) -> Result<Vec<(u64, Line)>, (u64, String)> {
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
    let missing = |name: &str| (1, format!("no column `{}`", shown::text(name)));
    let file_name = file_name.ok_or_else(|| missing("file_name"))?;
    let caption = caption.ok_or_else(|| missing("text"))?;
    let reference = reference.map(|name| column(name).ok_or_else(|| missing(name)));
    let reference = reference.transpose()?;
    let row = |row: Result<csv::StringRecord, csv::Error>| {
        let row = row.map_err(|e| problem(&e))?;
        let line = row.position().map_or(1, csv::Position::line);
        let cell = |n: usize| row.get(n).unwrap_or_default().to_owned();
        let of_picture = Line {
            file_name: cell(file_name),
            caption: cell(caption),
            reference: reference.map(cell),
        };
        Ok((line, of_picture))
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

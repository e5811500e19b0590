//! Captions in files: the text beside a picture, and the lists that Hugging Face's image folders have.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Component, Path};

use super::Error;
use super::lists::{csv_lines, json_lines};
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

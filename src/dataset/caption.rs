//! Captions: the text files beside pictures, `metadata.jsonl`, and the trigger word.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Deserialize;

use super::Error;

/// The list of captions that Hugging Face's image folders have.
pub(super) const LIST: &str = "metadata.jsonl";
/// What stands in a caption for the trigger word.
const PLACEHOLDER: &str = "[trigger]";
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
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length > most_bytes {
        return fail(format!("{length} bytes, expected at most {most_bytes}"));
    }
    let bytes = std::fs::read(path).map_err(io)?;
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

/// A line of `metadata.jsonl`. Further fields are allowed.
#[derive(Deserialize)]
struct CaptionLine {
    file_name: String,
    text: Option<String>,
    caption: Option<String>,
}

/// The captions of `metadata.jsonl`, by the picture's path below the folder.
pub(super) fn list(path: &Path) -> Result<BTreeMap<String, String>, Error> {
    let mut captions = BTreeMap::new();
    for (n, line) in text(path, MOST_LIST_BYTES)?.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let fail = |problem: String| Error::Unusable {
            path: path.to_owned(),
            problem: format!("line {}: {problem}", n + 1),
        };
        // Through a map, as serde would also take a list for a structure.
        let map: serde_json::Map<_, _> =
            serde_json::from_str(line).map_err(|e| fail(e.to_string()))?;
        let line: CaptionLine =
            serde_json::from_value(map.into()).map_err(|e| fail(e.to_string()))?;
        let Some(caption) = line.text.or(line.caption) else {
            return Err(fail("no field `text` (nor `caption`)".to_owned()));
        };
        let name = below(&line.file_name).ok_or_else(|| {
            fail(format!(
                "`file_name` is `{}`, expected a path below the folder",
                line.file_name
            ))
        })?;
        if captions.insert(name, caption.trim().to_owned()).is_some() {
            return Err(fail(format!("`{}` is there twice", line.file_name)));
        }
    }
    Ok(captions)
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

/// The caption with the trigger word in it.
///
/// # Errors
/// What is wrong, if there is a placeholder and no word.
pub(super) fn with_trigger(caption: &str, trigger: Option<&str>) -> Result<String, String> {
    let Some(word) = trigger else {
        return match caption.contains(PLACEHOLDER) {
            true => Err(format!(
                "the caption has `{PLACEHOLDER}`, but no trigger word is given"
            )),
            false => Ok(caption.to_owned()),
        };
    };
    if caption.contains(PLACEHOLDER) {
        Ok(caption.replace(PLACEHOLDER, word))
    } else if caption.contains(word) {
        Ok(caption.to_owned())
    } else if caption.is_empty() {
        Ok(word.to_owned())
    } else {
        Ok(format!("{word}, {caption}"))
    }
}

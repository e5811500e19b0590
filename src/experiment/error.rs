//! What can be wrong with an Experiment file, each as one clear line.

use std::path::{Path, PathBuf};

/// Why an Experiment could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{}: cannot be read: {why}", file.display())]
    Unreadable {
        /// The Experiment file.
        file: PathBuf,
        /// What the system said.
        why: String,
    },
    /// The text is not TOML, or a value has the wrong type, or a key is unknown or missing.
    #[error("{}:{line}: {why}", file.display())]
    Malformed {
        /// The Experiment file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and the nearest known name for an unknown one.
        why: String,
    },
    /// A value is out of its range.
    #[error("{}: `{field}`: {why}", file.display())]
    Value {
        /// The Experiment file.
        file: PathBuf,
        /// The field's dotted name.
        field: String,
        /// Expected and found.
        why: String,
    },
}

impl Error {
    pub(super) fn from_toml(file: &Path, text: &str, error: &toml::de::Error) -> Self {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = text.as_bytes()[..start]
            .iter()
            .filter(|&&b| b == b'\n')
            .count()
            + 1;
        Self::Malformed {
            file: file.into(),
            line,
            why: with_nearest(error.message()),
        }
    }
}

/// serde lists every known name after an unknown one; a person wants the nearest.
fn with_nearest(message: &str) -> String {
    let message = message.trim().replace('\n', " ");
    // serde's message has every name in backticks, the unknown one first.
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let kind = ["unknown field", "unknown variant"]
        .into_iter()
        .find(|k| message.starts_with(k));
    let (Some(kind), Some((unknown, known))) = (kind, names.split_first()) else {
        return message;
    };
    let kind = if kind == "unknown field" {
        "unknown key"
    } else {
        "unknown value"
    };
    let nearest = known
        .iter()
        .map(|name| (strsim::jaro_winkler(unknown, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity > 0.75);
    match nearest {
        Some((_, name)) => format!("{kind} `{unknown}`; did you mean `{name}`?"),
        None => format!("{kind} `{unknown}`; expected one of {}", known.join(", ")),
    }
}

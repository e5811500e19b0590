//! What can be wrong with an Experiment file, each as one clear line.

use std::path::PathBuf;

use crate::shown;

/// Why an Experiment could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{}: {why}", shown::path(file))]
    Unreadable {
        /// The Experiment file.
        file: PathBuf,
        /// Why not.
        why: String,
    },
    /// The text is not TOML, or a value has the wrong type, or a key is unknown or missing.
    #[error("{}:{line}: {why}", shown::path(file))]
    Malformed {
        /// The Experiment file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and the nearest known name for an unknown one.
        why: String,
    },
    /// Something is missing that only some commands need.
    #[error(
        "{}: {what} needs {missing}; write at least {smallest}",
        shown::path(file)
    )]
    Missing {
        /// The Experiment file.
        file: PathBuf,
        /// What was asked for.
        what: &'static str,
        /// The fields that are not there.
        missing: String,
        /// The smallest section that has them.
        smallest: &'static str,
    },
    /// There is neither a data set nor a prompt.
    #[error(
        "{}: there is nothing to encode: give a [[dataset]] with its `path`, `prompts` under [sample], or --captions FILE",
        shown::path(file)
    )]
    NothingToEncode {
        /// The Experiment file.
        file: PathBuf,
    },
    /// A value is out of its range.
    #[error("{}{}: `{field}`: {why}", shown::path(file), in_line(*line))]
    Value {
        /// The Experiment file.
        file: PathBuf,
        /// The line, from 1, where the value stands in one.
        line: Option<usize>,
        /// The field's dotted name.
        field: String,
        /// Expected and found.
        why: String,
    },
}

fn in_line(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(":{line}"))
}

/// serde lists every known name after an unknown one; a person wants the nearest.
pub(super) fn with_nearest(message: &str) -> String {
    // serde's message has every name in backticks, the unknown one first.
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let kind = ["unknown field", "unknown variant"]
        .into_iter()
        .find(|k| message.starts_with(k));
    let (Some(kind), Some((unknown, known))) = (kind, names.split_first()) else {
        return shown::text(message).to_string();
    };
    let kind = if kind == "unknown field" {
        "unknown key"
    } else {
        "unknown value"
    };
    let nearest = known
        .iter()
        // Nobody mistypes so much that megabytes were to be compared.
        .filter(|_| unknown.len() <= 200)
        .map(|name| (strsim::jaro_winkler(unknown, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity > 0.75);
    match nearest {
        Some((_, name)) => {
            let unknown = shown::text(unknown);
            format!("{kind} `{unknown}`; did you mean `{name}`?")
        }
        None => {
            let unknown = shown::text(unknown);
            format!("{kind} `{unknown}`; expected one of {}", known.join(", "))
        }
    }
}

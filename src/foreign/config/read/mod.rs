//! From a file's text to values: YAML, JSON, TOML, and command lines of a shell. Nothing in a file is run, no variable of
//! the environment is read, and no reader follows what a file names.

mod json;
mod shell;
mod toml;
mod yaml;

use std::path::Path;

use super::tree::{Budget, Node};
use crate::experiment::read_text;

pub(super) use shell::{Script, Word};

/// The largest config; those of people have a few kB.
const MAX_BYTES: u64 = 4 << 20;

/// What a file is, apart from whose it is.
#[derive(Debug)]
pub(super) enum Document {
    /// A YAML, JSON or TOML.
    Values(Node),
    /// Command lines.
    Script(Script),
}

/// Reads a file; its name's ending says how, or else its text.
///
/// # Errors
/// If it cannot be read, or is in none of the formats: what is wrong, with the line.
pub(super) fn read(file: &Path, budget: &mut Budget) -> Result<Document, String> {
    let text = read_text(file, MAX_BYTES)?;
    let text = text.trim_start_matches('\u{feff}');
    if text.contains('\0') {
        return Err("it is binary; a config is text".to_owned());
    }
    if text.trim().is_empty() {
        return Err("there is nothing in it".to_owned());
    }
    let ending = file.extension().unwrap_or_default().to_string_lossy();
    match ending.to_lowercase().as_str() {
        "yaml" | "yml" => yaml::read(text, budget).map(Document::Values),
        "json" => json::read(text, budget).map(Document::Values),
        "toml" => toml::read(text, budget).map(Document::Values),
        "sh" | "bash" | "bat" | "cmd" | "ps1" | "txt" | "env" => {
            shell::read(text, budget).map(Document::Script)
        }
        _ => by_content(text, budget),
    }
}

fn by_content(text: &str, budget: &mut Budget) -> Result<Document, String> {
    let start = text.trim_start();
    if start.starts_with('{') {
        return json::read(text, budget).map(Document::Values);
    }
    let is_shell = start.starts_with("#!") || start.starts_with("--") || text.contains(".py ");
    if is_shell {
        return shell::read(text, budget).map(Document::Script);
    }
    match toml::read(text, budget) {
        Ok(node) => Ok(Document::Values(node)),
        Err(_) => yaml::read(text, budget).map(Document::Values),
    }
}

//! The files of byte-level BPE vocabularies: a `tokenizer.json`, or a `vocab.json` with a `merges.txt` beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::Decoder as _;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::files::read_bytes;
use super::{AddedToken, Error, TokenizerFormat};

/// A byte-level BPE vocabulary.
pub(in crate::text) struct BpeFiles {
    /// Each token's id.
    pub(in crate::text) vocab: BTreeMap<String, u32>,
    /// In order of their rank.
    pub(in crate::text) merges: Vec<(String, String)>,
    /// The tokens that the file names as added; some may be of the vocabulary.
    pub(in crate::text) added: Vec<AddedToken>,
}

/// Reads `file`, one of the two kinds, whose vocabulary must have these special tokens.
pub(in crate::text) fn read(
    format: &TokenizerFormat,
    specials: &[&str],
    file: &Path,
) -> Result<BpeFiles, Error> {
    let malformed = |problem| format.malformed(file, problem);
    if file.extension().is_none_or(|ext| ext != "json") {
        return Err(malformed(
            "expected a tokenizer.json or a vocab.json".to_owned(),
        ));
    }
    let json = format.json(file)?;
    // A vocab.json has `model` too: the token, with its id.
    if json.get("model").is_some_and(Value::is_object) {
        return from_json(json, specials).map_err(malformed);
    }
    let merges = file.with_file_name("merges.txt");
    let text = String::from_utf8(read_bytes(&merges)?)
        .map_err(|_| format.malformed(&merges, "not UTF-8".to_owned()))?;
    let merges = merges_from_text(&text).map_err(|p| format.malformed(&merges, p))?;
    let vocab = serde_json::from_value(json)
        .map_err(|e| malformed(format!("not a map from token to id: {e}")))?;
    checked(vocab, merges, specials).map_err(malformed)
}

#[derive(Deserialize)]
struct TokenizerJson {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct Model {
    vocab: BTreeMap<String, u32>,
    merges: Vec<Merge>,
}

/// A merge, as newer and older `tokenizer.json` spell it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

fn from_json(json: Value, specials: &[&str]) -> Result<BpeFiles, String> {
    let json: TokenizerJson = serde_json::from_value(json).map_err(|e| e.to_string())?;
    let merges: Result<_, String> = (json.model.merges.into_iter())
        .map(|merge| match merge {
            Merge::Pair(left, right) => Ok((left, right)),
            Merge::Text(text) => merge_from_text(&text),
        })
        .collect();
    Ok(BpeFiles {
        added: json.added_tokens,
        ..checked(json.model.vocab, merges?, specials)?
    })
}

/// The lines of a `merges.txt`, whose first may be a comment with the version.
fn merges_from_text(text: &str) -> Result<Vec<(String, String)>, String> {
    text.lines()
        // Not every `#`: merges of hash signs begin so, too.
        .filter(|line| !line.is_empty() && !line.starts_with("#version"))
        .map(merge_from_text)
        .collect()
}

fn merge_from_text(line: &str) -> Result<(String, String), String> {
    match line.split_once(' ') {
        Some((left, right)) if !right.contains(' ') => Ok((left.to_owned(), right.to_owned())),
        _ => Err(format!("`{line}` is not a merge of two tokens")),
    }
}

fn checked(
    vocab: BTreeMap<String, u32>,
    merges: Vec<(String, String)>,
    specials: &[&str],
) -> Result<BpeFiles, String> {
    if let Some(special) = specials.iter().find(|s| !vocab.contains_key(**s)) {
        return Err(format!("the vocabulary has no `{special}`"));
    }
    // `id_to_token` could give back either of two.
    let mut ids = BTreeSet::new();
    for (token, id) in &vocab {
        if !ids.insert(*id) {
            return Err(format!(
                "two tokens have the id {id}, one of them `{token}`"
            ));
        }
    }
    for (left, right) in &merges {
        for token in [left, right, &format!("{left}{right}")] {
            if !vocab.contains_key(token) {
                return Err(format!(
                    "the merge of `{left}` and `{right}` needs the token `{token}`, which the vocabulary lacks"
                ));
            }
        }
    }
    Ok(BpeFiles {
        vocab,
        merges,
        added: Vec::new(),
    })
}

/// The largest id of a vocabulary and its token.
pub(in crate::text) fn largest(vocab: &BTreeMap<String, u32>) -> Option<(u32, String)> {
    // The map is in order of texts, not of ids.
    let largest = vocab.iter().max_by_key(|(_, id)| **id);
    largest.map(|(token, id)| (*id, token.clone()))
}

/// A byte-level token with its bytes as text, or the token itself where they are not whole characters.
pub(in crate::text) fn readable(token: String) -> String {
    match ByteLevel::default().decode_chain(vec![token.clone()]) {
        Ok(parts) if !parts.concat().contains(char::REPLACEMENT_CHARACTER) => parts.concat(),
        _ => token,
    }
}

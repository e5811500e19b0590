//! Byte-level BPE vocabularies, and their files: a `tokenizer.json`, or a `vocab.json` with a `merges.txt` beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokenizers::Decoder as _;
use tokenizers::models::bpe::{BPE, BpeBuilder, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::files::read_bytes;
use super::{AddedToken, Error, NamedImplementations, Pipeline, TokenizerFormat, Vocabulary};
use crate::digest;

/// What one kind's vocabularies have of their own.
pub(in crate::text) struct BpeKind {
    /// The name in the canonical form behind the digest.
    pub(in crate::text) name: &'static str,
    /// The version of that form.
    pub(in crate::text) version: u32,
    /// Tokens that every such vocabulary has.
    pub(in crate::text) specials: &'static [&'static str],
    /// As [`Vocabulary::pipeline`].
    pub(in crate::text) pipeline: fn(&BpeVocabulary) -> tokenizers::Result<Pipeline>,
    /// As [`Vocabulary::implementations`].
    pub(in crate::text) implementations: fn() -> NamedImplementations,
}

/// A vocabulary.
pub(in crate::text) struct BpeVocabulary {
    kind: &'static BpeKind,
    /// Each token's id.
    vocab: BTreeMap<String, u32>,
    /// In order of their rank.
    merges: Vec<(String, String)>,
}

impl BpeVocabulary {
    /// The model, but for what a kind sets.
    pub(in crate::text) fn model(&self) -> BpeBuilder {
        let tokens = self.vocab.iter();
        let vocab: Vocab = tokens.map(|(token, id)| (token.clone(), *id)).collect();
        BPE::builder().vocab_and_merges(vocab, self.merges.clone())
    }
}

impl Vocabulary for BpeVocabulary {
    fn id_of(&self, token: &str) -> Option<u32> {
        self.vocab.get(token).copied()
    }

    fn largest(&self) -> Option<(u32, String)> {
        // The map is in order of texts, not of ids.
        let largest = self.vocab.iter().max_by_key(|(_, id)| **id);
        largest.map(|(token, id)| (*id, token.clone()))
    }

    fn canonical(&self, added: &[AddedToken]) -> Vec<u8> {
        #[derive(Serialize)]
        struct Form<'a> {
            kind: &'a str,
            version: u32,
            vocab: &'a BTreeMap<String, u32>,
            merges: &'a [(String, String)],
            added: &'a [AddedToken],
        }
        digest::canonical_json(&Form {
            kind: self.kind.name,
            version: self.kind.version,
            vocab: &self.vocab,
            merges: &self.merges,
            added,
        })
    }

    fn pipeline(&self) -> tokenizers::Result<Pipeline> {
        (self.kind.pipeline)(self)
    }

    fn implementations(&self) -> Result<NamedImplementations, String> {
        Ok((self.kind.implementations)())
    }
}

/// Reads `file`, a tokenizer.json or a vocab.json: the vocabulary, and the tokens that the file names as added, of which some may
/// be of the vocabulary.
pub(in crate::text) fn read(
    kind: &'static BpeKind,
    format: &TokenizerFormat,
    file: &Path,
) -> Result<(BpeVocabulary, Vec<AddedToken>), Error> {
    let malformed = |problem| format.malformed(file, problem);
    if file.extension().is_none_or(|ext| ext != "json") {
        return Err(malformed(
            "expected a tokenizer.json or a vocab.json".to_owned(),
        ));
    }
    let json = format.json(file)?;
    // A vocab.json has `model` too: the token, with its id.
    if json.get("model").is_some_and(Value::is_object) {
        return from_json(kind, json).map_err(malformed);
    }
    let merges = file.with_file_name("merges.txt");
    let text = String::from_utf8(read_bytes(&merges)?)
        .map_err(|_| format.malformed(&merges, "not UTF-8".to_owned()))?;
    let merges = merges_from_text(&text).map_err(|p| format.malformed(&merges, p))?;
    let vocab = serde_json::from_value(json)
        .map_err(|e| malformed(format!("not a map from token to id: {e}")))?;
    let vocabulary = checked(kind, vocab, merges).map_err(malformed)?;
    Ok((vocabulary, Vec::new()))
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

fn from_json(
    kind: &'static BpeKind,
    json: Value,
) -> Result<(BpeVocabulary, Vec<AddedToken>), String> {
    let json: TokenizerJson = serde_json::from_value(json).map_err(|e| e.to_string())?;
    let merges: Result<_, String> = (json.model.merges.into_iter())
        .map(|merge| match merge {
            Merge::Pair(left, right) => Ok((left, right)),
            Merge::Text(text) => merge_from_text(&text),
        })
        .collect();
    Ok((checked(kind, json.model.vocab, merges?)?, json.added_tokens))
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
    kind: &'static BpeKind,
    vocab: BTreeMap<String, u32>,
    merges: Vec<(String, String)>,
) -> Result<BpeVocabulary, String> {
    if let Some(special) = kind.specials.iter().find(|s| !vocab.contains_key(**s)) {
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
    Ok(BpeVocabulary {
        kind,
        vocab,
        merges,
    })
}

/// A byte-level token with its bytes as text, or the token itself where they are not whole characters.
pub(in crate::text) fn readable(token: String) -> String {
    match ByteLevel::default().decode_chain(vec![token.clone()]) {
        Ok(parts) if !parts.concat().contains(char::REPLACEMENT_CHARACTER) => parts.concat(),
        _ => token,
    }
}

//! CLIP's tokenizer: byte-level BPE with `<|startoftext|>` before and `<|endoftext|>` after.
//!
//! Source: `CLIPTokenizer.__init__` of transformers 5 (`models/clip/tokenization_clip.py`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{Decoder as _, SplitDelimiterBehavior};

use super::implementations;
use crate::digest;
use crate::text::tokenizer::{
    AddedToken, Error, NamedImplementations, Pipeline, TokenizerDefinition, TokenizerFormat,
    Vocabulary, read_bytes,
};

pub(super) const BOS: &str = "<|startoftext|>";
pub(super) const EOS: &str = "<|endoftext|>";

/// The version of the canonical form behind the digest.
const VERSION: u32 = 1;

/// How CLIP splits a text before BPE.
const SPLIT: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// CLIP's tokenizers.
pub(super) static FORMAT: TokenizerFormat = TokenizerFormat {
    name: "CLIP",
    files: &["tokenizer.json", "vocab.json"],
    expected: "tokenizer.json, or vocab.json and merges.txt",
    before: &[BOS],
    after: &[EOS],
    end: EOS,
    unknown: EOS,
    read,
    prompt: |_, _| None,
    windows: super::chunks::windows,
    readable,
};

struct ClipVocabulary {
    vocab: BTreeMap<String, u32>,
    /// In order of their rank.
    merges: Vec<(String, String)>,
}

impl Vocabulary for ClipVocabulary {
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
            kind: "clip",
            version: VERSION,
            vocab: &self.vocab,
            merges: &self.merges,
            added,
        })
    }

    fn pipeline(&self) -> tokenizers::Result<Pipeline> {
        let vocab: Vocab = self
            .vocab
            .iter()
            .map(|(token, id)| (token.clone(), *id))
            .collect();
        let model = BPE::builder()
            .vocab_and_merges(vocab, self.merges.clone())
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix("</w>".to_owned())
            // As `CLIPTokenizer`, whose unknown token is `<|endoftext|>`.
            .unk_token(FORMAT.unknown.to_owned())
            .build()?;
        let mut tokenizer = tokenizers::Tokenizer::new(model);
        tokenizer.with_normalizer(Some(Sequence::new(vec![
            NFC.into(),
            Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?.into(),
            Lowercase.into(),
        ])))?;
        tokenizer.with_pre_tokenizer(Some(PreSequence::new(vec![
            Split::new(
                SplitPattern::Regex(SPLIT.to_owned()),
                // Inverted: what lies between matches is removed, white space above all.
                SplitDelimiterBehavior::Removed,
                true,
            )?
            .into(),
            ByteLevel::default().add_prefix_space(false).into(),
        ])));
        Pipeline::new(tokenizer, [BOS.to_owned(), EOS.to_owned()])
    }

    fn implementations(&self) -> Result<NamedImplementations, String> {
        Ok(implementations::all())
    }
}

fn read(file: &Path) -> Result<TokenizerDefinition, Error> {
    let malformed = |problem| FORMAT.malformed(file, problem);
    if file.extension().is_none_or(|ext| ext != "json") {
        return Err(malformed(
            "expected a tokenizer.json or a vocab.json".to_owned(),
        ));
    }
    let json = FORMAT.json(file)?;
    // A vocab.json has `model` too: the token, with its id.
    if json.get("model").is_some_and(Value::is_object) {
        return from_json(json).map_err(malformed);
    }
    let merges = file.with_file_name("merges.txt");
    let text = String::from_utf8(read_bytes(&merges)?)
        .map_err(|_| FORMAT.malformed(&merges, "not UTF-8".to_owned()))?;
    let merges = merges_from_text(&text).map_err(|p| FORMAT.malformed(&merges, p))?;
    let vocab = serde_json::from_value(json)
        .map_err(|e| malformed(format!("not a map from token to id: {e}")))?;
    let clip = checked(vocab, merges).map_err(malformed)?;
    Ok(TokenizerDefinition {
        vocabulary: Box::new(clip),
        added: Vec::new(),
    })
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

fn from_json(json: Value) -> Result<TokenizerDefinition, String> {
    let json: TokenizerJson = serde_json::from_value(json).map_err(|e| e.to_string())?;
    let merges: Result<_, String> = (json.model.merges.into_iter())
        .map(|merge| match merge {
            Merge::Pair(left, right) => Ok((left, right)),
            Merge::Text(text) => merge_from_text(&text),
        })
        .collect();
    let clip = checked(json.model.vocab, merges?)?;
    Ok(TokenizerDefinition {
        vocabulary: Box::new(clip),
        added: json.added_tokens,
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
) -> Result<ClipVocabulary, String> {
    for special in [BOS, EOS] {
        if !vocab.contains_key(special) {
            return Err(format!("the vocabulary has no `{special}`"));
        }
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
    Ok(ClipVocabulary { vocab, merges })
}

/// A byte-level token with its bytes as text, or the token itself where they are not whole characters.
fn readable(token: String) -> String {
    match ByteLevel::default().decode_chain(vec![token.clone()]) {
        Ok(parts) if !parts.concat().contains(char::REPLACEMENT_CHARACTER) => parts.concat(),
        _ => token,
    }
}

//! What a tokenizer is, read from whichever files it is kept in.
//!
//! Everything else these files may say (normalizer, pre-tokenizer, post-processor, truncation, padding, names
//! of special tokens, lengths) is the same for every CLIP and T5 tokenizer, or decided by the recipe.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, TokenizerKind, charsmap, sentencepiece};
use crate::digest::{Digest, canonical_json};

pub(super) const CLIP_BOS: &str = "<|startoftext|>";
pub(super) const CLIP_EOS: &str = "<|endoftext|>";
pub(super) const T5_EOS: &str = "</s>";
/// The index of T5's unknown piece; transformers takes no other.
pub(super) const T5_UNKNOWN: usize = 2;
/// How many `<extra_id_*>` pieces follow the pieces of a `spiece.model`.
const T5_EXTRA_IDS: usize = 100;

/// The version of the canonical form behind the digest.
const VERSION: u32 = 1;

/// What a tokenizer is; serialized, its canonical form.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Definition {
    Clip(Clip),
    T5(T5),
}

#[derive(Debug, Serialize)]
pub(super) struct Clip {
    version: u32,
    pub(super) vocab: BTreeMap<String, u32>,
    /// In order of their rank.
    pub(super) merges: Vec<(String, String)>,
    pub(super) added: Vec<Added>,
}

#[derive(Debug, Serialize)]
pub(super) struct T5 {
    version: u32,
    /// Text and score, in order of their ids.
    pub(super) pieces: Vec<(String, f64)>,
    #[serde(rename = "charsmap", serialize_with = "digest_of_map")]
    pub(super) charsmap: Option<Vec<u8>>,
    pub(super) added: Vec<Added>,
}

fn digest_of_map<S: serde::Serializer>(map: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
    map.as_deref().map(Digest::of).serialize(to)
}

/// A token that somebody added beyond the vocabulary (textual inversion).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Added {
    /// Absent where the file keys its tokens by id.
    #[serde(default)]
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) single_word: bool,
    #[serde(default)]
    pub(super) lstrip: bool,
    #[serde(default)]
    pub(super) rstrip: bool,
    #[serde(default)]
    pub(super) normalized: bool,
}

impl Definition {
    pub(super) fn digest(&self) -> Digest {
        Digest::of(&canonical_json(self))
    }

    pub(super) fn added(&self) -> &[Added] {
        match self {
            Self::Clip(clip) => &clip.added,
            Self::T5(t5) => &t5.added,
        }
    }

    /// The largest id and its token.
    pub(super) fn largest_id(&self) -> Option<(u32, String)> {
        let added = self.added().last().map(|a| (a.id, a.content.clone()));
        let base = match self {
            Self::Clip(clip) => {
                let largest = clip.vocab.iter().max_by_key(|(_, id)| **id);
                largest.map(|(token, id)| (*id, token.clone()))
            }
            Self::T5(t5) => {
                let id = u32::try_from(t5.pieces.len()).ok()?.checked_sub(1)?;
                t5.pieces.last().map(|(piece, _)| (id, piece.clone()))
            }
        };
        added.max(base)
    }
}

/// The file of the tokenizer at `path`, a folder or a file.
pub(super) fn find(kind: TokenizerKind, path: &Path) -> Result<PathBuf, Error> {
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let (names, expected): (&[&str], _) = match kind {
        TokenizerKind::Clip => (
            &["tokenizer.json", "vocab.json"],
            "tokenizer.json, or vocab.json and merges.txt",
        ),
        TokenizerKind::T5 => (
            &["tokenizer.json", "spiece.model"],
            "tokenizer.json or spiece.model",
        ),
    };
    let mut candidates = names.iter().map(|name| path.join(name));
    candidates
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| Error::Missing {
            path: path.to_owned(),
            kind,
            expected,
        })
}

/// Reads the tokenizer kept in `file` and, where it needs them, in the files beside it.
pub(super) fn read(kind: TokenizerKind, file: &Path) -> Result<Definition, Error> {
    let malformed = |path: &Path, problem| Error::Malformed {
        path: path.to_owned(),
        kind,
        problem,
    };
    let bytes = read_bytes(file)?;
    let mut definition = if file.extension().is_some_and(|ext| ext == "json") {
        let json: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|e| malformed(file, format!("not JSON: {e}")))?;
        drop(bytes);
        match (
            kind,
            json.get("model").is_some_and(|model| model.is_object()),
        ) {
            (TokenizerKind::Clip, true) => clip_from_json(json),
            (TokenizerKind::T5, true) => t5_from_json(json),
            (TokenizerKind::T5, false) => Err("it has no `model`".to_owned()),
            (TokenizerKind::Clip, false) => {
                let merges = file.with_file_name("merges.txt");
                let text = String::from_utf8(read_bytes(&merges)?)
                    .map_err(|_| malformed(&merges, "not UTF-8".to_owned()))?;
                let merges = merges_from_text(&text).map_err(|p| malformed(&merges, p))?;
                serde_json::from_value(json)
                    .map_err(|e| format!("not a map from token to id: {e}"))
                    .and_then(|vocab| clip(vocab, merges, Vec::new()))
            }
        }
    } else if kind == TokenizerKind::T5 {
        t5_from_sentencepiece(&bytes)
    } else {
        Err("expected a tokenizer.json or a vocab.json".to_owned())
    }
    .map_err(|problem| malformed(file, problem))?;

    let config = file.with_file_name("tokenizer_config.json");
    if config.is_file() {
        let found = added_in_config(&read_bytes(&config)?).map_err(|p| malformed(&config, p))?;
        add(&mut definition, found).map_err(|p| malformed(&config, p))?;
    }
    Ok(definition)
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

#[derive(Deserialize)]
struct ClipJson {
    model: ClipModel,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct ClipModel {
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

fn clip_from_json(json: serde_json::Value) -> Result<Definition, String> {
    let json: ClipJson = serde_json::from_value(json).map_err(|e| e.to_string())?;
    let merges: Result<_, String> = (json.model.merges.into_iter())
        .map(|merge| match merge {
            Merge::Pair(left, right) => Ok((left, right)),
            Merge::Text(text) => merge_from_text(&text),
        })
        .collect();
    clip(json.model.vocab, merges?, json.added_tokens)
}

/// The lines of a `merges.txt`, whose first may be a comment with the version.
fn merges_from_text(text: &str) -> Result<Vec<(String, String)>, String> {
    text.lines()
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

fn clip(
    vocab: BTreeMap<String, u32>,
    merges: Vec<(String, String)>,
    added: Vec<Added>,
) -> Result<Definition, String> {
    for special in [CLIP_BOS, CLIP_EOS] {
        if !vocab.contains_key(special) {
            return Err(format!("the vocabulary has no `{special}`"));
        }
    }
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
    let mut definition = Definition::Clip(Clip {
        version: VERSION,
        vocab,
        merges,
        added: Vec::new(),
    });
    add(&mut definition, added)?;
    Ok(definition)
}

#[derive(Deserialize)]
struct T5Json {
    model: T5Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<NormalizerJson>,
}

#[derive(Deserialize)]
struct T5Model {
    vocab: Vec<(String, f64)>,
    unk_id: Option<usize>,
}

/// A normalizer, of which only the character map matters.
#[derive(Deserialize)]
struct NormalizerJson {
    #[serde(default)]
    normalizers: Vec<Self>,
    /// Present in the normalizer of type `Precompiled`; base64, as its deserializer in `tokenizers` reads.
    precompiled_charsmap: Option<String>,
}

impl NormalizerJson {
    fn charsmap(&self) -> Option<&str> {
        let own = self.precompiled_charsmap.as_deref();
        own.or_else(|| self.normalizers.iter().find_map(Self::charsmap))
    }
}

fn t5_from_json(json: serde_json::Value) -> Result<Definition, String> {
    let json: T5Json = serde_json::from_value(json).map_err(|e| e.to_string())?;
    let charsmap = (json.normalizer.as_ref())
        .and_then(NormalizerJson::charsmap)
        .map(base64)
        .transpose()?;
    let mut definition = t5(json.model.vocab, json.model.unk_id, charsmap)?;
    add(&mut definition, json.added_tokens)?;
    Ok(definition)
}

fn t5_from_sentencepiece(bytes: &[u8]) -> Result<Definition, String> {
    let mut model = sentencepiece::parse(bytes)?;
    // The sentinels are not in the file; transformers appends them, the last first.
    if !model
        .pieces
        .iter()
        .any(|(piece, _)| piece == "<extra_id_0>")
    {
        let extra = (0..T5_EXTRA_IDS)
            .rev()
            .map(|n| (format!("<extra_id_{n}>"), 0.0));
        model.pieces.extend(extra);
    }
    let charsmap = Some(model.charsmap).filter(|map| !map.is_empty());
    t5(model.pieces, model.unknown, charsmap)
}

fn t5(
    pieces: Vec<(String, f64)>,
    unknown: Option<usize>,
    charsmap: Option<Vec<u8>>,
) -> Result<Definition, String> {
    if unknown != Some(T5_UNKNOWN) || pieces.len() <= T5_UNKNOWN {
        return Err(format!(
            "the unknown piece must have the id {T5_UNKNOWN}, found {unknown:?} of {} pieces",
            pieces.len()
        ));
    }
    let mut seen = BTreeSet::new();
    for (id, (piece, score)) in pieces.iter().enumerate() {
        if piece.is_empty() || !score.is_finite() || !seen.insert(piece) {
            return Err(format!(
                "piece {id} (`{piece}`, score {score}) is empty, a duplicate, or without a finite score"
            ));
        }
    }
    if !seen.iter().any(|piece| *piece == T5_EOS) {
        return Err(format!("the vocabulary has no `{T5_EOS}`"));
    }
    if let Some(map) = &charsmap {
        charsmap::check(map)?;
    }
    Ok(Definition::T5(T5 {
        version: VERSION,
        pieces,
        charsmap,
        added: Vec::new(),
    }))
}

fn base64(text: &str) -> Result<Vec<u8>, String> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0);
    for digit in text.trim_end_matches('=').bytes() {
        let value = (ALPHABET.iter().position(|a| *a == digit))
            .ok_or("the precompiled character map is not base64")?;
        bits = bits << 6 | u32::try_from(value).unwrap_or(0);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xFF) as u8);
        }
    }
    Ok(bytes)
}

/// The tokens under `added_tokens_decoder`, in a `tokenizer_config.json`.
fn added_in_config(bytes: &[u8]) -> Result<Vec<Added>, String> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        added_tokens_decoder: BTreeMap<u32, Added>,
    }
    let config: Config = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    Ok((config.added_tokens_decoder.into_iter())
        .map(|(id, token)| Added { id, ..token })
        .collect())
}

/// Adds the tokens that lie beyond the vocabulary. Those inside it are dropped: its own specials are known, and
/// whether the pad's text is special (`!` of CLIP-G) is for the recipe to say.
fn add(definition: &mut Definition, found: Vec<Added>) -> Result<(), String> {
    let mut all: BTreeMap<u32, Added> = definition
        .added()
        .iter()
        .map(|token| (token.id, token.clone()))
        .collect();
    for token in found {
        let known = match &*definition {
            Definition::Clip(clip) => clip.vocab.get(&token.content).copied(),
            Definition::T5(t5) => (t5.pieces.iter().zip(0_u32..))
                .find_map(|((piece, _), id)| (*piece == token.content).then_some(id)),
        };
        match known {
            Some(id) if id == token.id => {}
            Some(id) => {
                return Err(format!(
                    "the added token `{}` has the id {}, in the vocabulary {id}",
                    token.content, token.id
                ));
            }
            None => {
                all.insert(token.id, token);
            }
        }
    }
    let all = all.into_values().collect();
    match definition {
        Definition::Clip(clip) => clip.added = all,
        Definition::T5(t5) => t5.added = all,
    }
    Ok(())
}

//! What is known of an entry beside its payloads: given by the writer, repeated in the pack's header, kept
//! as rows of the index.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

use super::Error;
use super::tensor::{ElementType, Summary, TensorBytes};
use crate::digest::{Digest, Fingerprint, canonical_json};

/// The longest caption. A limit lets readers refuse a hostile index before it fills the memory.
pub(super) const SOURCE_LIMIT_BYTES: usize = 256 << 10;
/// The most parts of an entry; those of today have one or two.
pub(super) const PARTS_LIMIT: usize = 16;
/// The most token ids of an entry.
pub(super) const TOKENS_LIMIT: usize = 1 << 16;

/// An entry to be stored: its tensors, and everything the index will say of it.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// The fingerprint of `key`.
    pub entry: Fingerprint,
    /// The spec that made the tensors.
    pub spec: Fingerprint,
    /// The caption; for a picture, words that tell it without naming its file.
    pub source: String,
    /// The token ids, pads included; empty for a picture.
    pub tokens: Vec<u32>,
    /// How many of them came before padding.
    pub token_count: u32,
    /// Whether the caption had more tokens than the spec allows, and was cut.
    pub truncated: bool,
    /// The tensors by name: `hidden`, `pooled`, `mean`, `logvar`.
    pub parts: Vec<(String, TensorBytes)>,
    /// All that the entry depends on: a JSON object whose member `spec` is the spec's fingerprint, and whose
    /// canonical form has the fingerprint `entry`.
    pub key: Value,
}

impl NewEntry {
    pub(super) fn payload_bytes(&self) -> usize {
        self.parts.iter().map(|(_, t)| t.bytes.len()).sum()
    }

    /// The canonical form of the key, when everything about this entry can be stored.
    pub(super) fn validate(&self) -> Result<String, Error> {
        let names: BTreeSet<_> = self.parts.iter().map(|(name, _)| name).collect();
        if names.is_empty() || names.len() != self.parts.len() || names.len() > PARTS_LIMIT {
            return Err(self.unfit(
                None,
                format!(
                    "expected 1 to {PARTS_LIMIT} parts with different names, found {:?}",
                    self.parts.iter().map(|(n, _)| n).collect::<Vec<_>>()
                ),
            ));
        }
        for (what, found, limit) in [
            ("caption bytes", self.source.len(), SOURCE_LIMIT_BYTES),
            ("token ids", self.tokens.len(), TOKENS_LIMIT),
        ] {
            if found > limit {
                return Err(self.unfit(
                    None,
                    format!("expected at most {limit} {what}, found {found}"),
                ));
            }
        }
        for (name, tensor) in &self.parts {
            if !is_part_name(name) {
                let why = "expected a name of 1 to 32 lower-case letters, digits and `_`";
                return Err(self.unfit(Some(name), why.to_owned()));
            }
            if let Some(fault) = tensor.fault() {
                return Err(self.unfit(Some(name), fault));
            }
        }
        self.canonical_key()
    }

    fn canonical_key(&self) -> Result<String, Error> {
        let unfit = |why| self.unfit(None, why);
        if self.key.get("spec").and_then(Value::as_str) != Some(self.spec.to_string().as_str()) {
            return Err(unfit(
                "expected the key record to name the spec in its member `spec`".to_owned(),
            ));
        }
        let key = canonical_json(&self.key);
        // Computed here, not believed: an entry under a wrong fingerprint would be found for another caption.
        let found = Fingerprint::of_canonical(&key);
        if found != self.entry {
            return Err(unfit(format!(
                "expected the entry's fingerprint to be that of its key record, {found}, found {}",
                self.entry
            )));
        }
        String::from_utf8(key).map_err(|e| unfit(format!("key record: {e}")))
    }

    pub(super) fn unfit(&self, part: Option<&str>, why: String) -> Error {
        Error::Unfit {
            spec: self.spec,
            source_text: shorten(&self.source),
            part: part.map(str::to_owned),
            why,
        }
    }
}

/// The first 80 characters, for messages.
fn shorten(text: &str) -> String {
    // By characters: cut inside one, the text would be no text.
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

pub(super) fn is_part_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// The name of a payload in its pack.
pub(super) fn tensor_name(entry: &Fingerprint, part: &str) -> String {
    format!("{entry}.{part}")
}

/// An entry as the index has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    /// Its fingerprint, which is that of its key record.
    pub entry: Fingerprint,
    /// The caption, or what stands for it.
    pub source: String,
    /// The token ids, pads included.
    pub tokens: Vec<u32>,
    /// How many of them came before padding.
    pub token_count: u32,
    /// Whether the caption had more tokens than the spec allows, and was cut.
    pub truncated: bool,
    /// The program that made it, with its version.
    pub tool: String,
    /// The pack that holds all its payloads.
    pub pack: Digest,
    /// Its payloads, sorted by name.
    pub parts: Vec<PartRecord>,
}

/// One payload as the index has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartRecord {
    /// Its name in the entry, such as `hidden`.
    pub part: String,
    /// Its name in the pack's header, `<entry>.<part>`.
    pub tensor: String,
    /// Where it begins in the pack's file.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// The digest of its bytes, to be compared whenever they are read.
    pub digest: Digest,
    /// The type of its elements.
    pub dtype: ElementType,
    /// The size of each dimension, outermost first.
    pub shape: Vec<usize>,
    /// Mean, deviation and extremes of its numbers.
    #[serde(flatten)]
    pub summary: Summary,
}

//! Captions into the store: each encoder of a base model, each caption that the store lacks, once. Nothing is loaded for an
//! encoder whose entries are all there.

use std::collections::HashSet;

use rayon::prelude::{IntoParallelRefIterator as _, ParallelIterator as _};
use serde::Serialize;

use super::{EncodeOptions, Error};
use crate::base_model::{BaseModel, TextEncoderPart};
use crate::cache::tensors;
use crate::digest::{Fingerprint, canonical_json};
use crate::monitor::Monitor;
use crate::recipe::spec::caption_entry;
use crate::shown;
use crate::store::{NewEntry, Store, StoreReader, StoreWriter};
use crate::text::tokenizer::Lost;
use crate::text::{Encoded, Residency, TextEncoder, Tokens, tokenizer};

/// Captions in one call of a resident encoder; the store may commit after each.
const RESIDENT_CHUNK: usize = 128;
/// Captions in one call of a streamed encoder, which reads all its weights in each.
const STREAMED_CHUNK: usize = 4096;
/// The longest caption: more is a wrong file, and would only be told after all before it were encoded.
pub(super) const MAX_CAPTION_BYTES: usize = 64 << 10;

/// What encoding one encoder's captions came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CaptionStats {
    /// The encoder's slot in the recipe: `clip_l`, `t5`.
    pub slot: String,
    /// The spec's fingerprint.
    pub spec: String,
    /// Different captions asked for.
    pub captions: u64,
    /// Of these, already in the store.
    pub present: u64,
    /// Encoded now.
    pub encoded: u64,
    /// Of all asked for, cut because they are too long, now or when they were encoded.
    pub truncated: u64,
    /// Of all asked for, those of which the recipe's clean-up drops text before anything is counted in tokens.
    pub shortened: u64,
}

/// Tells that what was encoded now is of no run, so that garbage collection may remove it. For verbs that encode to look at something;
/// what `plumb encode` makes, and what a training needs, is a run's.
pub fn tell_of_no_run(stats: &[CaptionStats], monitor: &dyn Monitor) {
    let encoded: u64 = stats.iter().map(|stats| stats.encoded).sum();
    if encoded > 0 {
        monitor.note(&format!(
            "{encoded} embeddings were encoded into the store for this alone: `plumb store gc` removes them once they are old enough, unless \
             `plumb encode` is asked for their captions"
        ));
    }
}

/// Encodes what the store lacks of `captions`, for every encoder of `base`.
///
/// # Errors
/// At the first caption that cannot be encoded or stored; what was committed before stays.
pub fn encode_captions(
    base: &BaseModel,
    store: &Store,
    captions: &[String],
    options: &EncodeOptions,
    monitor: &dyn Monitor,
) -> Result<Vec<CaptionStats>, Error> {
    let mut seen = HashSet::new();
    let unique: Vec<&str> = captions
        .iter()
        .map(String::as_str)
        .filter(|c| seen.insert(*c))
        .collect();
    if let Some(long) = unique
        .iter()
        .find(|caption| caption.len() > MAX_CAPTION_BYTES)
    {
        return Err(Error::LongCaption {
            caption: shown::text(long).to_string(),
            bytes: long.len(),
        });
    }
    let specs: Vec<Fingerprint> = base.encoders.iter().map(|e| e.fingerprint).collect();
    let reader = store.reader_of(&specs)?;
    base.encoders
        .iter()
        .map(|e| encode_for((base, e), store, &reader, &unique, options, monitor))
        .collect()
}

fn encode_for(
    (base, encoder): (&BaseModel, &TextEncoderPart),
    store: &Store,
    reader: &StoreReader,
    captions: &[&str],
    options: &EncodeOptions,
    monitor: &dyn Monitor,
) -> Result<CaptionStats, Error> {
    let (present, missing) = split(encoder, reader, captions);
    let rules = base.recipe.encoder(&encoder.slot);
    let shortens = |text: &&&str| rules.is_some_and(|e| e.rules.tokens.shortens(text));
    let shortened = captions.par_iter().filter(shortens).count();
    let mut stats = CaptionStats {
        slot: encoder.slot.clone(),
        spec: encoder.fingerprint.to_string(),
        captions: captions.len() as u64,
        present: present.len() as u64,
        truncated: reader.truncated(&encoder.fingerprint, &present)?,
        shortened: shortened as u64,
        ..CaptionStats::default()
    };
    if missing.is_empty() {
        return Ok(stats);
    }
    let streamed = encoder.weight_bytes() > options.resident_limit_bytes;
    let (residency, chunk) = match streamed {
        true => (Residency::Streamed, STREAMED_CHUNK),
        false => (Residency::Resident, RESIDENT_CHUNK),
    };
    let mut writer = store.when_free(monitor, || store.writer())?;
    // The store takes no entry of a spec that it does not have.
    writer.put_spec(&encoder.fingerprint, &canonical_json(&encoder.spec))?;
    monitor.start(
        &format!("captions, {}", encoder.slot),
        Some(missing.len() as u64),
    );
    let network = encoder.load(residency, &options.device, &options.kernels)?;
    // With a configuration beside them the files are a library's own, whose names can be trusted.
    if encoder.bare_file {
        for note in network.notes() {
            monitor.note(note);
        }
    }
    let reduced = encoder.reduced_types();
    if !reduced.is_empty() {
        monitor.note(&format!(
            "{}: its weights are stored as {}; what it makes of captions is near what the full encoder does, not equal",
            encoder.slot,
            reduced.join(", ")
        ));
    }
    for captions in missing.chunks(chunk) {
        stats.truncated += encode_chunk(encoder, &network, captions, &mut writer)?;
        stats.encoded += captions.len() as u64;
        monitor.advance(captions.len() as u64);
    }
    writer.finish()?;
    monitor.finish();
    Ok(stats)
}

/// A caption that an encoder has no entry of, and the fingerprint that the entry will have.
type Missing<'a> = (Fingerprint, &'a str);

/// Captions of which an encoder has an entry, by those, and the others.
fn split<'a>(
    encoder: &TextEncoderPart,
    reader: &StoreReader,
    captions: &[&'a str],
) -> (Vec<Fingerprint>, Vec<Missing<'a>>) {
    let entry = |caption: &&'a str| (caption_entry(&encoder.fingerprint, caption), *caption);
    let entries: Vec<Missing<'a>> = captions.par_iter().map(entry).collect();
    let (present, missing): (Vec<_>, Vec<_>) = entries
        .into_iter()
        .partition(|(entry, _)| reader.contains(&encoder.fingerprint, entry));
    (
        present.into_iter().map(|(entry, _)| entry).collect(),
        missing,
    )
}

/// Encodes some captions; returns how many were cut.
fn encode_chunk(
    encoder: &TextEncoderPart,
    network: &TextEncoder,
    part: &[Missing<'_>],
    writer: &mut StoreWriter,
) -> Result<u64, Error> {
    let tokens: Vec<Tokens> = part
        .par_iter()
        .map(|(_, caption)| tokenize(encoder, caption))
        .collect::<Result<_, _>>()?;
    let encoded = network.encode(&tokens).map_err(|source| Error::Encoder {
        slot: encoder.slot.clone(),
        source,
    })?;
    let mut truncated = 0;
    for (((entry, caption), tokens), encoded) in part.iter().zip(tokens).zip(&encoded) {
        truncated += u64::from(tokens.truncated);
        writer.put(new_entry(encoder, *entry, caption, tokens, encoded)?)?;
    }
    writer.commit_if_large()?;
    Ok(truncated)
}

/// A caption's ids under an encoder's rules.
///
/// # Errors
/// If the caption cannot be tokenized.
pub fn tokenize(encoder: &TextEncoderPart, caption: &str) -> Result<Tokens, Error> {
    encoder
        .tokenizer
        .encode(&encoder.tokens, caption)
        .map_err(|source| tokenizer_failed(encoder, caption, source))
}

/// What of a caption an encoder's tokenizer turns into ids, after all clean-up.
///
/// # Errors
/// As [`tokenize`].
pub fn read_text(encoder: &TextEncoderPart, caption: &str) -> Result<String, Error> {
    encoder
        .tokenizer
        .read_text(&encoder.tokens, caption)
        .map_err(|source| tokenizer_failed(encoder, caption, source))
}

/// What of a caption an encoder does not see.
///
/// # Errors
/// As [`tokenize`].
pub fn lost_text(encoder: &TextEncoderPart, caption: &str) -> Result<Lost, Error> {
    encoder
        .tokenizer
        .lost(&encoder.tokens, caption)
        .map_err(|source| tokenizer_failed(encoder, caption, source))
}

fn tokenizer_failed(encoder: &TextEncoderPart, caption: &str, source: tokenizer::Error) -> Error {
    Error::Tokenizer {
        slot: encoder.slot.clone(),
        caption: shown::text(caption).to_string(),
        source,
    }
}

fn new_entry(
    encoder: &TextEncoderPart,
    entry: Fingerprint,
    caption: &str,
    tokens: Tokens,
    encoded: &Encoded,
) -> Result<NewEntry, Error> {
    let output = encoder.spec.precision.output;
    let mut parts = Vec::new();
    for (name, tensor) in encoded.outputs() {
        parts.push((name.to_owned(), tensors::to_bytes(tensor, output)?));
    }
    Ok(NewEntry {
        entry,
        spec: encoder.fingerprint,
        source: caption.to_owned(),
        token_count: tokens.count as u32,
        truncated: tokens.truncated,
        tokens: tokens.ids,
        parts,
        // What `caption_entry` hashes: the store refuses a key of another fingerprint.
        key: serde_json::json!({ "caption": caption, "spec": encoder.fingerprint, "version": 1 }),
    })
}

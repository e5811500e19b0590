//! Captions into the store: each encoder of a base model, each caption that the store lacks, once. Nothing is loaded for an
//! encoder whose entries are all there.

use std::collections::HashSet;
use std::path::Path;

use rayon::prelude::{IntoParallelRefIterator as _, ParallelIterator as _};
use serde::Serialize;

use super::missing::Missing;
use super::part::Part;
use super::pauses::Pauses;
use super::{EncodeOptions, Error};
use crate::base_model::{BaseModel, TextEncoderPart};
use crate::cache::tensors;
use crate::digest::{Fingerprint, canonical_json};
use crate::monitor::{Monitor, Signal, Stop, never};
use crate::recipe::spec::caption_entry;
use crate::shown;
use crate::store::{NewEntry, Store, StoreReader, StoreWriter, about_record_bytes};
use crate::text::tokenizer::Lost;
use crate::text::{self, Encoded, Residency, TextEncoder, Tokens, tokenizer};

/// Captions in one call of a resident encoder; the store may commit after each.
pub(crate) const RESIDENT_CHUNK: usize = 128;
/// Most captions in one call of a streamed encoder, which reads all its weights in each.
const STREAMED_CHUNK: usize = 4096;
/// Most bytes that what such a call makes takes while it lies in memory, until the call has ended.
const STREAMED_BYTES: u64 = 1 << 30;
/// Of each number of an output: in f32 as the layers make it, and once more where parts of it are put together.
const STREAMED_NUMBER_BYTES: u64 = 8;
/// What is written beside the outputs: headers, parts of the index, specs.
const SPARE_BYTES: u64 = 1_000_000;
/// The longest caption: more is a wrong file, and would only be told after all before it were encoded.
pub(crate) const MAX_CAPTION_BYTES: usize = 64 << 10;

/// What encoding one encoder's captions came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CaptionStats {
    /// The encoder's slot in the recipe: `clip_l`, `t5`.
    pub slot: String,
    /// The spec's fingerprint.
    pub spec: String,
    /// Different captions asked for, of a part those whose entries are in it.
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
    let plan = CaptionPlan::new(base, store, captions, Part::WHOLE)?;
    plan.encode(options, &mut Pauses::none(store), monitor)
}

/// What a store lacks of captions, for every encoder of a base model.
pub(super) struct CaptionPlan<'a> {
    base: &'a BaseModel,
    store: &'a Store,
    /// Each of the captions once.
    pub(super) captions: Vec<&'a str>,
    encoders: Vec<EncoderPlan<'a>>,
}

impl<'a> CaptionPlan<'a> {
    /// Looks into the store, for the entries of a part.
    ///
    /// # Errors
    /// If the store cannot be read, or a caption is too long or cannot be tokenized.
    pub(super) fn new(
        base: &'a BaseModel,
        store: &'a Store,
        captions: &'a [String],
        part: Part,
    ) -> Result<Self, Error> {
        let mut seen = HashSet::new();
        let captions: Vec<&str> = captions
            .iter()
            .map(String::as_str)
            .filter(|c| seen.insert(*c))
            .collect();
        if let Some(long) = captions
            .iter()
            .find(|caption| caption.len() > MAX_CAPTION_BYTES)
        {
            return Err(Error::LongCaption {
                caption: shown::text(long).to_string(),
                bytes: long.len(),
            });
        }
        let of_encoder = |encoder| EncoderPlan::new(encoder, store, &captions, part);
        let encoders = base.encoders.iter().map(of_encoder);
        Ok(Self {
            base,
            store,
            encoders: encoders.collect::<Result<_, _>>()?,
            captions,
        })
    }

    /// Entries asked for, and those of all parts.
    pub(super) fn entries(&self) -> (u64, u64) {
        let of_part = self.encoders.iter().map(|plan| plan.captions.len() as u64);
        let all = self.encoders.len() * self.captions.len();
        (of_part.sum(), all as u64)
    }

    /// What all encoders are to make.
    pub(super) fn missing(&self) -> Missing {
        self.encoders.iter().map(EncoderPlan::missing).sum()
    }

    /// Makes it, or of it what `pauses` leaves time for.
    ///
    /// # Errors
    /// As [`encode_captions`].
    pub(super) fn encode(
        &self,
        options: &EncodeOptions,
        pauses: &mut Pauses<'_>,
        monitor: &dyn Monitor,
    ) -> Result<Vec<CaptionStats>, Error> {
        check_room(self.store, self.missing())?;
        let encoders = self.encoders.iter();
        encoders
            .map(|e| self.encode_for(e, options, pauses, monitor))
            .collect()
    }

    fn encode_for(
        &self,
        plan: &EncoderPlan<'_>,
        options: &EncodeOptions,
        pauses: &mut Pauses<'_>,
        monitor: &dyn Monitor,
    ) -> Result<CaptionStats, Error> {
        let (encoder, lacking) = (plan.encoder, &plan.lacking);
        let rules = self.base.recipe.encoder(&encoder.slot);
        let shortens = |text: &&&str| rules.is_some_and(|e| e.rules.tokens.shortens(text));
        let shortened = plan.captions.par_iter().filter(shortens).count();
        let mut stats = CaptionStats {
            slot: encoder.slot.clone(),
            spec: encoder.fingerprint.to_string(),
            captions: plan.captions.len() as u64,
            present: plan.present.len() as u64,
            truncated: plan.reader.truncated(&encoder.fingerprint, &plan.present)?,
            shortened: shortened as u64,
            ..CaptionStats::default()
        };
        if lacking.is_empty() || pauses.stopped().is_some() {
            return Ok(stats);
        }
        let streamed = encoder.weight_bytes() > options.resident_limit_bytes;
        let (residency, chunk) = match streamed {
            true => (
                Residency::Streamed,
                streamed_chunk(lacking.len(), plan.numbers),
            ),
            false => (Residency::Resident, RESIDENT_CHUNK),
        };
        let mut writer = self.store.when_free(monitor, || self.store.writer())?;
        // The store takes no entry of a spec that it does not have.
        writer.put_spec(&encoder.fingerprint, &canonical_json(&encoder.spec))?;
        monitor.start(
            &format!("captions, {}", encoder.slot),
            Some(lacking.len() as u64),
        );
        let network = load(encoder, residency, options, monitor)?;
        for captions in lacking.chunks(chunk) {
            if pauses.ends() {
                break;
            }
            // Of a resident encoder a call is over soon, and what it makes is kept.
            let stop = if streamed { pauses.stop() } else { never };
            match encode_chunk(encoder, &network, captions, &mut writer, stop)? {
                Ok(truncated) => stats.truncated += truncated,
                Err(signal) => {
                    monitor.note(&format!(
                        "{}: ended between two layers; the {} captions that were under way are encoded anew next time",
                        encoder.slot,
                        captions.len()
                    ));
                    pauses.end(signal);
                    break;
                }
            }
            pauses.keep(&mut writer, monitor)?;
            stats.encoded += captions.len() as u64;
            monitor.advance(captions.len() as u64);
        }
        writer.finish()?;
        monitor.finish();
        Ok(stats)
    }
}

/// What one encoder is to make.
pub(super) struct EncoderPlan<'a> {
    encoder: &'a TextEncoderPart,
    /// Of the part's entries.
    reader: StoreReader,
    /// Those of the part.
    captions: Vec<&'a str>,
    /// The entries that are there.
    present: Vec<Fingerprint>,
    lacking: Vec<Lacking<'a>>,
    /// How many numbers will be made of those.
    numbers: u64,
    /// What they will take in the store.
    bytes: u64,
}

impl<'a> EncoderPlan<'a> {
    /// Looks into the store, for a part of the entries of captions that are each named once.
    pub(super) fn new(
        encoder: &'a TextEncoderPart,
        store: &Store,
        captions: &[&'a str],
        part: Part,
    ) -> Result<Self, Error> {
        let entry = |caption: &&'a str| (caption_entry(&encoder.fingerprint, caption), *caption);
        let mut entries: Vec<Lacking<'a>> = captions.par_iter().map(entry).collect();
        entries.retain(|(entry, _)| part.has(entry));
        let captions = entries.iter().map(|(_, caption)| *caption).collect();
        let wanted: Vec<_> = entries
            .iter()
            .map(|(entry, _)| (encoder.fingerprint, *entry))
            .collect();
        let reader = store.reader_of_entries(&wanted)?;
        let (present, lacking): (Vec<_>, Vec<_>) = entries
            .into_iter()
            .partition(|(entry, _)| reader.contains(&encoder.fingerprint, entry));
        let sizes = |(_, caption): &Lacking<'_>| {
            let tokens = tokenize(encoder, caption)?;
            let record = about_record_bytes(caption, tokens.ids.len());
            let numbers = encoder.spec.network.numbers(&tokens) as u64;
            Ok::<_, Error>((numbers, encoder.entry_bytes(&tokens) + record))
        };
        let add = |a: (u64, u64), b: (u64, u64)| Ok((a.0 + b.0, a.1 + b.1));
        let sizes = lacking.par_iter().map(sizes);
        let (numbers, bytes) = sizes.try_reduce(<(u64, u64)>::default, add)?;
        Ok(Self {
            encoder,
            reader,
            captions,
            present: present.into_iter().map(|(entry, _)| entry).collect(),
            lacking,
            numbers,
            bytes,
        })
    }

    pub(super) fn missing(&self) -> Missing {
        Missing {
            entries: self.lacking.len() as u64,
            bytes: self.bytes,
        }
    }
}

/// Fails where the disk has no room for entries to come.
pub(super) fn check_room(store: &Store, missing: Missing) -> Result<(), Error> {
    let place = store.path();
    // Where the system does not tell, writing will.
    let free = fs4::available_space(place).unwrap_or(u64::MAX);
    has_room(place, missing.bytes, free)
}

fn has_room(store: &Path, needed: u64, free: u64) -> Result<(), Error> {
    if needed == 0 || free >= needed.saturating_add(SPARE_BYTES) {
        return Ok(());
    }
    Err(Error::NoSpace {
        store: store.to_owned(),
        needed: amount(needed),
        free: amount(free),
    })
}

/// `7.9 GB`
pub(super) fn amount(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.1} GB", bytes as f64 / 1e9),
        1_000_000.. => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} kB", bytes as f64 / 1e3),
    }
}

/// With how many captions a streamed encoder is called, of so many whose outputs have so many numbers.
fn streamed_chunk(captions: usize, numbers: u64) -> usize {
    let one = numbers
        .div_ceil(captions.max(1) as u64)
        .saturating_mul(STREAMED_NUMBER_BYTES);
    let fit = usize::try_from(STREAMED_BYTES / one.max(1)).unwrap_or(usize::MAX);
    fit.clamp(1, STREAMED_CHUNK)
}

/// A caption that an encoder has no entry of, and the fingerprint that the entry will have.
type Lacking<'a> = (Fingerprint, &'a str);

/// An encoder's network, and what a person should know of its files.
pub(crate) fn load(
    encoder: &TextEncoderPart,
    residency: Residency,
    options: &EncodeOptions,
    monitor: &dyn Monitor,
) -> Result<TextEncoder, Error> {
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
    Ok(network)
}

/// Encodes some captions; returns how many were cut, or by which signal it ended before any was encoded.
fn encode_chunk(
    encoder: &TextEncoderPart,
    network: &TextEncoder,
    part: &[Lacking<'_>],
    writer: &mut StoreWriter,
    stop: Stop,
) -> Result<Result<u64, Signal>, Error> {
    let mut truncated = 0;
    let encoded = entries_until(encoder, network, part, stop, |entry| {
        truncated += u64::from(entry.truncated);
        Ok(writer.put(entry)?)
    });
    match encoded {
        Err(Error::Encoder {
            source: text::Error::Stopped(signal),
            ..
        }) => Ok(Err(signal)),
        encoded => encoded.map(|()| Ok(truncated)),
    }
}

/// What an encoder makes of captions in one call, given with the fingerprints of their entries; each to `take`, in their order.
pub(crate) fn entries(
    encoder: &TextEncoderPart,
    network: &TextEncoder,
    captions: &[(Fingerprint, &str)],
    take: impl FnMut(NewEntry) -> Result<(), Error>,
) -> Result<(), Error> {
    entries_until(encoder, network, captions, never, take)
}

/// As [`entries`]; a streamed encoder asks `stop` between its layers, and makes nothing where that says so.
fn entries_until(
    encoder: &TextEncoderPart,
    network: &TextEncoder,
    captions: &[(Fingerprint, &str)],
    stop: Stop,
    mut take: impl FnMut(NewEntry) -> Result<(), Error>,
) -> Result<(), Error> {
    let tokens: Vec<Tokens> = captions
        .par_iter()
        .map(|(_, caption)| tokenize(encoder, caption))
        .collect::<Result<_, _>>()?;
    let encoded = network.encode_until(&tokens, stop);
    let encoded = encoded.map_err(|source| Error::Encoder {
        slot: encoder.slot.clone(),
        source,
    })?;
    for (((entry, caption), tokens), encoded) in captions.iter().zip(tokens).zip(&encoded) {
        take(new_entry(encoder, *entry, caption, tokens, encoded)?)?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_has_no_room_for_is_refused_before_anything_is_encoded() {
        let store = Path::new("store");
        has_room(store, 0, 0).expect("nothing to write");
        has_room(store, 1, u64::MAX).expect("room");
        let error = has_room(store, 7_900_000_000, 4_000_000_000).expect_err("no room");
        assert_eq!(
            error.to_string(),
            "store: what is to be encoded takes 7.9 GB, its disk has 4.0 GB free: make room, or name a store elsewhere under [store]"
        );
        has_room(store, u64::MAX, u64::MAX - 1).expect_err("no room for the spare bytes");
    }

    #[test]
    fn a_streamed_encoder_is_called_with_what_fits_in_memory() {
        assert_eq!(streamed_chunk(10_000, 0), STREAMED_CHUNK);
        // FLUX.2 klein: 31 MB a caption.
        assert_eq!(streamed_chunk(100, 100 * 512 * 7680), 34);
        assert_eq!(streamed_chunk(1, 1 << 40), 1);
        assert_eq!(streamed_chunk(0, 0), STREAMED_CHUNK);
    }
}

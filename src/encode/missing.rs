//! What is to be encoded, counted before it is begun.

use std::collections::BTreeSet;

use rayon::prelude::{IntoParallelRefIterator as _, ParallelIterator as _};

use super::captions::amount;
use super::{Error, tokenize};
use crate::base_model::{BaseModel, TextEncoderPart};
use crate::dataset::Item;
use crate::digest::Fingerprint;
use crate::monitor::Monitor;
use crate::recipe::spec::caption_entry;
use crate::store::{Store, StoreReader};

/// Entries that a store lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// How many.
    pub entries: u64,
    /// About what they take in the store, in bytes.
    pub bytes: u64,
}

/// What a store lacks of an encoder's entries of some captions, each of them named once.
///
/// # Errors
/// If a caption cannot be tokenized.
pub fn missing(
    encoder: &TextEncoderPart,
    reader: &StoreReader,
    captions: &[&str],
) -> Result<Missing, Error> {
    let spec = &encoder.fingerprint;
    let lacks = |text: &&&str| !reader.contains(spec, &caption_entry(spec, text));
    let add = |a: Missing, b: Missing| Missing {
        entries: a.entries + b.entries,
        bytes: a.bytes + b.bytes,
    };
    let one = |text: &&str| {
        let bytes = encoder.entry_bytes(&tokenize(encoder, text)?);
        Ok(Missing { entries: 1, bytes })
    };
    let missing = captions.par_iter().filter(lacks).map(one);
    missing.try_reduce(Missing::default, |a, b| Ok(add(a, b)))
}

/// Tells how many captions there are, and what of them is to be encoded.
pub(super) fn tell(
    base: &BaseModel,
    store: &Store,
    texts: &[String],
    items: &[Item],
    monitor: &dyn Monitor,
) -> Result<(), Error> {
    let unique: BTreeSet<&str> = texts.iter().map(String::as_str).collect();
    // One that is too long is refused in a moment.
    let is_usable = |text: &&str| text.len() <= super::captions::MAX_CAPTION_BYTES;
    let unique: Vec<&str> = unique.into_iter().filter(is_usable).collect();
    let specs: Vec<Fingerprint> = base.encoders.iter().map(|e| e.fingerprint).collect();
    let reader = store.reader_of(&specs)?;
    let mut all = Missing::default();
    for encoder in &base.encoders {
        let of_encoder = missing(encoder, &reader, &unique)?;
        all.entries += of_encoder.entries;
        all.bytes += of_encoder.bytes;
    }
    if all.entries > 0 {
        monitor.note(&format!(
            "{} different captions{}; to encode: {} embeddings, about {} in the store",
            unique.len(),
            variants(items),
            all.entries,
            amount(all.bytes)
        ));
    }
    Ok(())
}

/// How many of the captions are variants, in brackets; nothing where none are.
fn variants(items: &[Item]) -> String {
    let varied = items.iter().filter(|item| item.captions.len() > 1);
    let (mut pictures, mut different) = (0, BTreeSet::new());
    for item in varied {
        pictures += 1;
        different.extend(&item.captions);
    }
    match pictures {
        0 => String::new(),
        _ => format!(
            " ({} of them variants for {pictures} pictures)",
            different.len()
        ),
    }
}

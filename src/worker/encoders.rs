//! The encoders of a base model, each loaded when the first caption needs it and kept for the next ones.

use std::collections::HashMap;

use crate::base_model::{BaseModel, TextEncoderPart};
use crate::digest::{Digest, Fingerprint, canonical_json};
use crate::encode::{self, EncodeOptions, Error, RESIDENT_CHUNK};
use crate::monitor::Monitor;
use crate::recipe::spec::caption_entry;
use crate::store::{
    self, ElementType, Lookup, NewEntry, Record, Store, StoreReader, StoreWriter, Summary,
};
use crate::text::{Residency, TextEncoder};

/// When so many entries were made, what their commits left of index parts is merged: each part is looked at for each batch.
const MERGED_AFTER: usize = 50_000;

/// An entry, as it goes out.
#[derive(Clone)]
pub(super) struct Made {
    /// The encoder's slot in the recipe.
    pub(super) slot: String,
    pub(super) spec: Fingerprint,
    pub(super) entry: Fingerprint,
    pub(super) token_count: u32,
    pub(super) truncated: bool,
    /// Sorted by name.
    pub(super) parts: Vec<MadePart>,
}

/// A tensor of it.
#[derive(Clone)]
pub(super) struct MadePart {
    pub(super) part: String,
    pub(super) dtype: ElementType,
    pub(super) shape: Vec<usize>,
    pub(super) digest: Digest,
    pub(super) summary: Summary,
    /// Empty where they are in the store.
    pub(super) bytes: Vec<u8>,
}

/// The encoders, and where what they make goes.
pub(super) struct Encoders<'a> {
    base: &'a BaseModel,
    options: &'a EncodeOptions,
    monitor: &'a dyn Monitor,
    loaded: Vec<Option<TextEncoder>>,
    kept: Option<Kept>,
    /// Entries made.
    pub(super) encoded: u64,
    /// Entries asked for that the store had.
    pub(super) present: u64,
}

/// The store, and what is known of it.
struct Kept {
    store: Store,
    lookup: Lookup,
    /// Entries that were added here since index parts were merged.
    added: usize,
}

/// What a caption came to: an entry, or why there is none.
type Outcome = Result<Made, String>;

impl<'a> Encoders<'a> {
    pub(super) fn new(
        base: &'a BaseModel,
        store: Option<Store>,
        options: &'a EncodeOptions,
        monitor: &'a dyn Monitor,
    ) -> Self {
        let kept = |store: Store| Kept {
            lookup: store.lookup(),
            added: 0,
            store,
        };
        Self {
            base,
            options,
            monitor,
            loaded: base.encoders.iter().map(|_| None).collect(),
            kept: store.map(kept),
            encoded: 0,
            present: 0,
        }
    }

    /// Whether tensors go into a store.
    pub(super) fn keeps(&self) -> bool {
        self.kept.is_some()
    }

    /// Encodes captions, each named once; what became of each, in their order.
    ///
    /// # Errors
    /// If an encoder cannot be loaded, or the store fails.
    pub(super) fn encode(
        &mut self,
        captions: &[&str],
    ) -> Result<Vec<Result<Vec<Made>, String>>, Error> {
        let mut all: Vec<Result<Vec<Made>, String>> =
            captions.iter().map(|_| Ok(Vec::new())).collect();
        for number in 0..self.base.encoders.len() {
            let made = self.encode_by(number, captions)?;
            for (all, made) in all.iter_mut().zip(made) {
                match (made, &mut *all) {
                    (Ok(made), Ok(before)) => before.push(made),
                    (Err(why), Ok(_)) => *all = Err(why),
                    (_, Err(_)) => {}
                }
            }
        }
        Ok(all)
    }

    fn encode_by(&mut self, number: usize, captions: &[&str]) -> Result<Vec<Outcome>, Error> {
        let encoder = &self.base.encoders[number];
        let spec = encoder.fingerprint;
        let entries: Vec<(Fingerprint, &str)> = (captions.iter())
            .map(|caption| (caption_entry(&spec, caption), *caption))
            .collect();
        let reader = self.kept.as_ref().map(|kept| kept.look(&spec, &entries));
        let reader = reader.transpose()?;
        let is_here = |entry: &Fingerprint| {
            let reader = reader.as_ref();
            reader.is_some_and(|reader| reader.contains(&spec, entry))
        };
        let (here, lacking): (Vec<_>, Vec<_>) =
            (entries.iter().copied()).partition(|(entry, _)| is_here(entry));
        self.present += here.len() as u64;
        let mut found = match &reader {
            Some(reader) => find(encoder, reader, &here)?,
            None => HashMap::new(),
        };
        if !lacking.is_empty() {
            self.load(number)?;
            let network = self.loaded[number].as_ref();
            let new = match (&mut self.kept, network) {
                (_, None) => HashMap::new(),
                (None, Some(network)) => make(encoder, network, &lacking)?,
                (Some(kept), Some(network)) => {
                    kept.make(encoder, network, &lacking, self.monitor)?
                }
            };
            self.encoded += new.values().filter(|made| made.is_ok()).count() as u64;
            found.extend(new);
        }
        let outcome = |(entry, _): &(Fingerprint, &str)| {
            let lost = || {
                Err(format!(
                    "{}: the store lost the entry {entry}",
                    encoder.slot
                ))
            };
            found.remove(entry).unwrap_or_else(lost)
        };
        Ok(entries.iter().map(outcome).collect())
    }

    /// Loads an encoder that is not yet.
    fn load(&mut self, number: usize) -> Result<(), Error> {
        if self.loaded[number].is_some() {
            return Ok(());
        }
        let encoders = &self.base.encoders;
        // All of them stay, so that one is in memory where it fits there beside those before it.
        let bytes: u64 = encoders[..=number]
            .iter()
            .map(TextEncoderPart::weight_bytes)
            .sum();
        let residency = match bytes > self.options.resident_limit_bytes {
            true => Residency::Streamed,
            false => Residency::Resident,
        };
        let network = encode::load(&encoders[number], residency, self.options, self.monitor)?;
        self.loaded[number] = Some(network);
        Ok(())
    }

    /// Merges what many commits left in the store.
    ///
    /// # Errors
    /// If the store fails.
    pub(super) fn finish(self) -> Result<(), Error> {
        if let Some(kept) = self.kept.filter(|_| self.encoded > 0) {
            let writer = kept.store.when_free(self.monitor, || kept.store.writer())?;
            writer.finish()?;
            encode::share(&kept.store, self.monitor)?;
        }
        Ok(())
    }
}

/// What the store has of entries that are there.
fn find(
    encoder: &TextEncoderPart,
    reader: &StoreReader,
    here: &[(Fingerprint, &str)],
) -> Result<HashMap<Fingerprint, Outcome>, Error> {
    let here: Vec<Fingerprint> = here.iter().map(|(entry, _)| *entry).collect();
    let records = reader.records_of(&encoder.fingerprint, &here)?;
    Ok(records
        .into_iter()
        .map(|(entry, record)| (entry, Ok(of_record(encoder, &record))))
        .collect())
}

impl Kept {
    /// What the store has of some entries now, those included that others added.
    fn look(
        &self,
        spec: &Fingerprint,
        entries: &[(Fingerprint, &str)],
    ) -> Result<StoreReader, Error> {
        let wanted = entries.iter().map(|(entry, _)| (*spec, *entry));
        let wanted: Vec<_> = wanted.collect();
        Ok(self.lookup.reader_of_entries(&wanted)?)
    }

    /// Makes entries and commits them.
    fn make(
        &mut self,
        encoder: &TextEncoderPart,
        network: &TextEncoder,
        lacking: &[(Fingerprint, &str)],
        monitor: &dyn Monitor,
    ) -> Result<HashMap<Fingerprint, Outcome>, Error> {
        let (entries, bytes) = (lacking.len() as u64, 0);
        encode::check_writable(&self.store, &encode::Missing { entries, bytes })?;
        let mut writer: StoreWriter = self.store.when_free(monitor, || self.store.writer())?;
        writer.put_spec(&encoder.fingerprint, &canonical_json(&encoder.spec))?;
        let mut found = each(encoder, network, lacking, |entry| Ok(writer.put(entry)?))?;
        let added = &mut self.added;
        writer.commit_and_tell(|_, records| {
            for record in records {
                found.insert(record.entry, Ok(of_record(encoder, record)));
            }
            *added += records.len();
        })?;
        if self.added < MERGED_AFTER {
            drop(writer);
        } else {
            writer.finish()?;
            self.added = 0;
        }
        // Before a row says so: who reads it may lose this machine next.
        encode::share(&self.store, monitor)?;
        Ok(found)
    }
}

/// Makes entries with their tensors.
fn make(
    encoder: &TextEncoderPart,
    network: &TextEncoder,
    lacking: &[(Fingerprint, &str)],
) -> Result<HashMap<Fingerprint, Outcome>, Error> {
    let mut made = HashMap::new();
    let failed = each(encoder, network, lacking, |entry| {
        made.insert(entry.entry, Ok(of_new(encoder, entry)));
        Ok(())
    })?;
    made.extend(failed);
    Ok(made)
}

/// Gives each entry to `take`; of captions that cannot be encoded, why.
fn each(
    encoder: &TextEncoderPart,
    network: &TextEncoder,
    lacking: &[(Fingerprint, &str)],
    mut take: impl FnMut(NewEntry) -> Result<(), Error>,
) -> Result<HashMap<Fingerprint, Outcome>, Error> {
    let mut failed = HashMap::new();
    for chunk in lacking.chunks(RESIDENT_CHUNK) {
        match encode::entries(encoder, network, chunk, &mut take) {
            Ok(()) => continue,
            Err(error) if !is_of_caption(&error) => return Err(error),
            Err(_) => {}
        }
        // One of them is at fault; what was taken of the others is the same again.
        for one in chunk {
            match encode::entries(encoder, network, std::slice::from_ref(one), &mut take) {
                Ok(()) => {}
                Err(error) if is_of_caption(&error) => {
                    failed.insert(one.0, Err(error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(failed)
}

/// Whether an error may be that of one caption, and not of the machine.
fn is_of_caption(error: &Error) -> bool {
    match error {
        Error::Encoder { .. } | Error::Tokenizer { .. } | Error::Tensor(_) => true,
        Error::Store(error) => matches!(error, store::Error::Unfit { .. }),
        _ => false,
    }
}

fn of_record(encoder: &TextEncoderPart, record: &Record) -> Made {
    let part = |part: &store::PartRecord| MadePart {
        part: part.part.clone(),
        dtype: part.dtype,
        shape: part.shape.clone(),
        digest: part.digest,
        summary: part.summary,
        bytes: Vec::new(),
    };
    Made {
        slot: encoder.slot.clone(),
        spec: encoder.fingerprint,
        entry: record.entry,
        token_count: record.token_count,
        truncated: record.truncated,
        parts: record.parts.iter().map(part).collect(),
    }
}

fn of_new(encoder: &TextEncoderPart, new: NewEntry) -> Made {
    let part = |(part, tensor): (String, store::TensorBytes)| MadePart {
        part,
        dtype: tensor.dtype,
        digest: Digest::of(&tensor.bytes),
        summary: Summary::of(tensor.dtype, &tensor.bytes),
        shape: tensor.shape,
        bytes: tensor.bytes,
    };
    let mut parts: Vec<MadePart> = new.parts.into_iter().map(part).collect();
    parts.sort_by(|a, b| a.part.cmp(&b.part));
    Made {
        slot: encoder.slot.clone(),
        spec: new.spec,
        entry: new.entry,
        token_count: new.token_count,
        truncated: new.truncated,
        parts,
    }
}

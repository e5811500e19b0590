//! The encoders of a base model, each loaded when the first caption needs it and kept for the next ones.

use std::collections::HashMap;

use crate::base_model::{BaseModel, TextEncoderPart};
use crate::digest::{Digest, Fingerprint, canonical_json};
use crate::encode::{self, EncodeOptions, Error, RESIDENT_CHUNK};
use crate::monitor::Monitor;
use crate::recipe::spec::caption_entry;
use crate::store::{self, ElementType, NewEntry, Record, Store, StoreReader, StoreWriter, Summary};
use crate::text::{Residency, TextEncoder};

/// Entries made here that are remembered; then the index is read again, which has them.
const REMEMBERED: usize = 50_000;

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
    reader: StoreReader,
    /// Entries that were added here since the index was read.
    added: HashMap<Fingerprint, Record>,
}

/// What a caption came to: an entry, or why there is none.
type Outcome = Result<Made, String>;

impl<'a> Encoders<'a> {
    pub(super) fn new(
        base: &'a BaseModel,
        store: Option<Store>,
        options: &'a EncodeOptions,
        monitor: &'a dyn Monitor,
    ) -> Result<Self, Error> {
        let specs: Vec<Fingerprint> = base.encoders.iter().map(|e| e.fingerprint).collect();
        let kept = |store: Store| -> Result<Kept, Error> {
            Ok(Kept {
                reader: store.reader_of(&specs)?,
                added: HashMap::new(),
                store,
            })
        };
        Ok(Self {
            base,
            options,
            monitor,
            loaded: base.encoders.iter().map(|_| None).collect(),
            kept: store.map(kept).transpose()?,
            encoded: 0,
            present: 0,
        })
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
        let is_here = |entry: &Fingerprint| {
            self.kept
                .as_ref()
                .is_some_and(|kept| kept.has(&spec, entry))
        };
        let (here, lacking): (Vec<_>, Vec<_>) =
            (entries.iter().copied()).partition(|(entry, _)| is_here(entry));
        self.present += here.len() as u64;
        let mut found = match &self.kept {
            Some(kept) => kept.find(encoder, &here)?,
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

impl Kept {
    fn has(&self, spec: &Fingerprint, entry: &Fingerprint) -> bool {
        self.added.contains_key(entry) || self.reader.contains(spec, entry)
    }

    /// What is there of entries that are.
    fn find(
        &self,
        encoder: &TextEncoderPart,
        here: &[(Fingerprint, &str)],
    ) -> Result<HashMap<Fingerprint, Outcome>, Error> {
        let (added, indexed): (Vec<_>, Vec<_>) = here
            .iter()
            .map(|(entry, _)| *entry)
            .partition(|entry| self.added.contains_key(entry));
        let indexed = self.reader.records_of(&encoder.fingerprint, &indexed)?;
        let added = added.iter().filter_map(|entry| self.added.get(entry));
        let all = added.chain(indexed.values());
        Ok(all
            .map(|record| (record.entry, Ok(of_record(encoder, record))))
            .collect())
    }

    /// Makes entries and commits them.
    fn make(
        &mut self,
        encoder: &TextEncoderPart,
        network: &TextEncoder,
        lacking: &[(Fingerprint, &str)],
        monitor: &dyn Monitor,
    ) -> Result<HashMap<Fingerprint, Outcome>, Error> {
        if self.added.len() > REMEMBERED {
            self.reader.refresh()?;
            self.added.clear();
        }
        let mut writer: StoreWriter = self.store.when_free(monitor, || self.store.writer())?;
        writer.put_spec(&encoder.fingerprint, &canonical_json(&encoder.spec))?;
        let mut found = each(encoder, network, lacking, |entry| Ok(writer.put(entry)?))?;
        let added = &mut self.added;
        writer.commit_and_tell(|_, records| {
            for record in records {
                found.insert(record.entry, Ok(of_record(encoder, record)));
                added.insert(record.entry, record.clone());
            }
        })?;
        drop(writer);
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

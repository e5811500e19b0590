//! One side of a comparison.

use std::collections::HashMap;

use serde_json::Value;

use super::Pairing;
use crate::audit::{CacheEncoder, CacheSide, InCache, Made};
use crate::base_model::{BaseModel, TextEncoderPart};
use crate::cache::{self, EncoderId, EncoderOutput, Specs};
use crate::digest::Fingerprint;
use crate::encode::tokenize;
use crate::inspect::Error;
use crate::inspect::captions::encoders_of_store;
use crate::inspect::spec_title;
use crate::recipe::Diff;
use crate::recipe::spec::{caption_entry, spelled_out};
use crate::store::{self, Store, StoreReader};

/// The encoders of an Experiment, of a store, or of another trainer's cache, and where their entries are.
pub struct Side<'a> {
    /// What a person calls it.
    pub name: String,
    pub(super) base: Option<&'a BaseModel>,
    pub(super) encoders: Vec<EncoderId>,
    source: Source,
}

enum Source {
    Store {
        reader: StoreReader,
        /// Token ids by entry, of a store whose entries many are asked for.
        ids: HashMap<Fingerprint, Vec<u32>>,
        /// Specs that are not what was written, a line each.
        damaged: Vec<String>,
    },
    Cache(CacheSide),
}

/// What a side has of a caption under one encoder.
pub(super) enum Found {
    Output(EncoderOutput, Option<Vec<u32>>),
    /// No entry; or one that is not what was written, and why.
    Missing(Option<String>),
}

impl<'a> Side<'a> {
    /// The encoders of an Experiment, with what its store has of some captions.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn of_experiment(
        name: String,
        base: &'a BaseModel,
        store: &Store,
        captions: &[&str],
    ) -> Result<Self, Error> {
        let encoders = Specs::from(base).encoders;
        let specs: Vec<Fingerprint> = encoders.iter().map(|e| e.spec).collect();
        Ok(Self {
            name,
            base: Some(base),
            source: Source::Store {
                reader: reader_of(store, &specs, captions)?,
                ids: HashMap::new(),
                damaged: Vec::new(),
            },
            encoders,
        })
    }

    /// The text encoders of a store that have an entry of a caption.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn of_store_with(name: String, store: &Store, caption: &str) -> Result<Self, Error> {
        let mut side = Self::of_store(name, store, &[caption])?;
        if let Source::Store { reader, .. } = &side.source {
            let has = |e: &EncoderId| reader.contains(&e.spec, &e.entry(caption));
            side.encoders.retain(has);
        }
        Ok(side)
    }

    /// All text encoders of a store, with what it has of some captions.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn of_store(name: String, store: &Store, captions: &[&str]) -> Result<Self, Error> {
        // Of all its specs, so that it is told where what may have the captions is damaged.
        let specs = store.specs().map_err(cache::Error::from)?;
        let reader = reader_of(store, &specs, captions)?;
        let (encoders, damaged) = encoders_of_store(&reader, |spec| {
            Ok(reader.has_entries(spec) || store.has_entries(spec)?)
        })?;
        Ok(Self {
            name,
            base: None,
            source: Source::Store {
                reader,
                ids: HashMap::new(),
                damaged,
            },
            encoders,
        })
    }

    /// The encoders of another trainer's cache, by the slots of the Experiment that it was opened for. Their specs are those of the
    /// recipe that made it, or of the nearest.
    pub fn of_cache(name: String, cache: CacheSide) -> Self {
        let id = |(slot, encoder): (&String, &CacheEncoder)| EncoderId {
            slot: slot.clone(),
            spec: encoder.part.fingerprint,
        };
        Self {
            name,
            base: None,
            encoders: cache.encoders.iter().map(id).collect(),
            source: Source::Cache(cache),
        }
    }

    /// What of the index could not be used, or what a person should know of a cache, a line each.
    pub fn problems(&self) -> Vec<String> {
        match &self.source {
            Source::Store {
                reader, damaged, ..
            } => {
                let problems = reader.problems();
                let problems = problems.iter().map(ToString::to_string);
                problems.chain(damaged.iter().cloned()).collect()
            }
            Source::Cache(cache) => cache.problems.clone(),
        }
    }

    /// What made an encoder's part of a cache.
    pub(super) fn made(&self, slot: Option<&String>) -> Option<&Made> {
        match &self.source {
            Source::Cache(cache) => cache.encoders.get(slot?).map(|encoder| &encoder.made),
            Source::Store { .. } => None,
        }
    }

    pub(super) fn encoder(&self, slot: Option<&String>) -> Option<&EncoderId> {
        self.encoders.iter().find(|e| Some(&e.slot) == slot)
    }

    /// Reads the token ids of many captions at once.
    pub(super) fn load_ids(&mut self, captions: &[&str]) -> Result<(), Error> {
        let Source::Store { reader, ids, .. } = &mut self.source else {
            return Ok(());
        };
        if self.base.is_some() {
            return Ok(());
        }
        for encoder in &self.encoders {
            let entries: Vec<_> = captions.iter().map(|c| encoder.entry(c)).collect();
            let records = reader.records_of(&encoder.spec, &entries);
            let records = records.map_err(cache::Error::from)?.into_values();
            ids.extend(records.map(|r| (r.entry, r.tokens)));
        }
        Ok(())
    }

    /// What an encoder made of a caption, with the ids of its rows.
    pub(super) fn output(&self, encoder: &EncoderId, caption: &str) -> Result<Found, Error> {
        let (reader, known) = match &self.source {
            Source::Store { reader, ids, .. } => (reader, ids),
            Source::Cache(cache) => {
                return Ok(match cache.output(&encoder.slot, caption)? {
                    InCache::Output(output, ids) => Found::Output(output, ids),
                    InCache::Missing(why) => Found::Missing(why),
                });
            }
        };
        let id = encoder.entry(caption);
        let entry = match reader.get(&encoder.spec, &id) {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(Found::Missing(None)),
            Err(e @ store::Error::Damaged { .. }) => {
                return Ok(Found::Missing(Some(e.to_string())));
            }
            Err(e) => return Err(cache::Error::from(e).into()),
        };
        let output = EncoderOutput::of_entry(&entry)?;
        if let Some(part) = self.part(&encoder.slot) {
            return Ok(Found::Output(output, Some(tokenize(part, caption)?.ids)));
        }
        if let Some(ids) = known.get(&id) {
            return Ok(Found::Output(output, Some(ids.clone())));
        }
        let record = reader.record(&encoder.spec, &id);
        let record = record.map_err(cache::Error::from)?;
        Ok(Found::Output(output, record.map(|record| record.tokens)))
    }

    /// The encoder, where there is more of it than its spec.
    fn part(&self, slot: &str) -> Option<&TextEncoderPart> {
        match &self.source {
            Source::Cache(cache) => cache.encoders.get(slot).map(|encoder| &encoder.part),
            Source::Store { .. } => self.base?.encoders.iter().find(|part| part.slot == slot),
        }
    }

    /// Tokens as a person reads them; their ids where there is no vocabulary.
    pub(super) fn words(&self, slot: &str, ids: &[u32]) -> Vec<String> {
        let part = self.part(slot);
        let word = |id: &u32| {
            let token = part.and_then(|part| part.tokenizer.token(*id));
            token.unwrap_or_else(|| format!("<{id}>"))
        };
        ids.iter().map(word).collect()
    }

    /// Whether its slots are those of an Experiment's recipe.
    fn has_slots(&self) -> bool {
        self.base.is_some() || matches!(self.source, Source::Cache(_))
    }

    fn specs(&self) -> Result<Vec<Value>, Error> {
        let spec = |e: &EncoderId| match (self.part(&e.slot), &self.source) {
            // The store may not have it yet.
            (Some(part), _) => Ok(serde_json::json!(part.spec)),
            (None, Source::Store { reader, .. }) => spec_title::json(reader, &e.spec),
            (None, Source::Cache(_)) => Ok(Value::Null),
        };
        self.encoders.iter().map(spec).collect()
    }
}

/// What a store has of captions under some specs.
fn reader_of(
    store: &Store,
    specs: &[Fingerprint],
    captions: &[&str],
) -> Result<StoreReader, Error> {
    let of_spec = |spec: &Fingerprint| {
        let entries = captions
            .iter()
            .map(|text| (*spec, caption_entry(spec, text)));
        entries.collect::<Vec<_>>()
    };
    let entries: Vec<_> = specs.iter().flat_map(of_spec).collect();
    let reader = store.reader_of_entries(&entries);
    Ok(reader.map_err(cache::Error::from)?)
}

/// Which encoder of the one side is which of the other: by their slots where both have a recipe; else each with the one of its
/// kind whose spec differs in the fewest fields, equal ones first.
pub(super) fn pairings(first: &Side<'_>, second: &Side<'_>) -> Result<Vec<Pairing>, Error> {
    let specs = [first.specs()?, second.specs()?];
    let by_slot = first.has_slots() && second.has_slots();
    let mut candidates = Vec::new();
    for (i, a) in first.encoders.iter().enumerate() {
        for (j, b) in second.encoders.iter().enumerate() {
            let kind = |spec: &Value| spec.pointer("/architecture/kind").cloned();
            let fits = match by_slot {
                true => a.slot == b.slot,
                false => a.spec == b.spec || kind(&specs[0][i]) == kind(&specs[1][j]),
            };
            if fits {
                let diff = Diff::between(&spelled_out(&specs[0][i]), &spelled_out(&specs[1][j]));
                candidates.push((i, j, in_order(diff)));
            }
        }
    }
    candidates.sort_by_key(|(i, j, diff)| (diff.fields.len(), *i, *j));
    let mut partner: Vec<Option<(usize, Diff)>> = vec![None; first.encoders.len()];
    let mut taken = vec![false; second.encoders.len()];
    for (i, j, diff) in candidates {
        if partner[i].is_none() && !taken[j] {
            taken[j] = true;
            partner[i] = Some((j, diff));
        }
    }
    let side = |encoder: Option<&EncoderId>| {
        let slot = encoder.map(|e| e.slot.clone());
        (slot, encoder.map(|e| e.spec))
    };
    let pairing = |a: Option<&EncoderId>, b: Option<&EncoderId>, parameters| {
        let (a, b) = (side(a), side(b));
        let made = [first.made(a.0.as_ref()), second.made(b.0.as_ref())];
        Pairing {
            made: made.map(|made| made.cloned()),
            slots: [a.0, b.0],
            specs: [a.1, b.1],
            parameters,
        }
    };
    let mut found = Vec::new();
    for (encoder, partner) in first.encoders.iter().zip(partner) {
        let (other, diff) = partner.map_or((None, Diff::default()), |(j, d)| (Some(j), d));
        let other = other.map(|j| &second.encoders[j]);
        found.push(pairing(Some(encoder), other, diff));
    }
    let alone = second
        .encoders
        .iter()
        .zip(taken)
        .filter(|(_, taken)| !taken);
    found.extend(alone.map(|(encoder, _)| pairing(None, Some(encoder), Diff::default())));
    Ok(found)
}

/// The groups of a spec's fields on the way from a caption to numbers.
const ORDER: [&str; 6] = [
    "architecture",
    "weights",
    "tokenizer",
    "tokens",
    "forward",
    "precision",
];

fn in_order(mut diff: Diff) -> Diff {
    diff.fields.sort_by_key(|field| {
        let group = field.field.split('.').next().unwrap_or_default();
        ORDER.iter().position(|name| *name == group)
    });
    diff
}

//! One side of a comparison.

use std::collections::HashMap;

use serde_json::Value;

use super::Pairing;
use crate::base_model::BaseModel;
use crate::cache::{self, EncoderId, EncoderOutput, Specs};
use crate::digest::Fingerprint;
use crate::encode::tokenize;
use crate::inspect::Error;
use crate::inspect::captions::Captions;
use crate::inspect::spec_title;
use crate::recipe::Diff;
use crate::recipe::spec::spelled_out;
use crate::store::{self, Store, StoreReader};

/// The encoders of an Experiment or of a store, and where their entries are.
pub struct Side<'a> {
    /// What a person calls it.
    pub name: String,
    pub(super) base: Option<&'a BaseModel>,
    pub(super) encoders: Vec<EncoderId>,
    reader: StoreReader,
    /// Token ids by entry, of a store whose entries many are asked for.
    ids: HashMap<Fingerprint, Vec<u32>>,
}

/// What a side has of a caption under one encoder.
pub(super) enum Found {
    Output(EncoderOutput, Option<Vec<u32>>),
    /// No entry; or one that is not what was written, and why.
    Missing(Option<String>),
}

impl<'a> Side<'a> {
    /// The encoders of an Experiment, in its store.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn of_experiment(name: String, base: &'a BaseModel, store: &Store) -> Result<Self, Error> {
        let specs = Specs::from(base);
        Ok(Self {
            name,
            base: Some(base),
            reader: store.reader_of(&specs.all()).map_err(cache::Error::from)?,
            encoders: specs.encoders,
            ids: HashMap::new(),
        })
    }

    /// All text encoders of a store; with `caption` those that have an entry of it.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn of_store(name: String, store: &Store, caption: Option<&str>) -> Result<Self, Error> {
        let reader = store.reader().map_err(cache::Error::from)?;
        let mut encoders = Captions::of_store(&reader)?.encoders;
        if let Some(caption) = caption {
            encoders.retain(|e| reader.contains(&e.spec, &e.entry(caption)));
        }
        Ok(Self {
            name,
            base: None,
            encoders,
            reader,
            ids: HashMap::new(),
        })
    }

    /// What of the index could not be used, a line each.
    pub fn problems(&self) -> Vec<String> {
        let problems = self.reader.problems();
        problems.iter().map(ToString::to_string).collect()
    }

    pub(super) fn encoder(&self, slot: Option<&String>) -> Option<&EncoderId> {
        self.encoders.iter().find(|e| Some(&e.slot) == slot)
    }

    /// Reads the token ids of all entries at once, for who asks for many.
    pub(super) fn load_ids(&mut self) -> Result<(), Error> {
        if self.base.is_some() {
            return Ok(());
        }
        for encoder in &self.encoders {
            let records = self.reader.records(&encoder.spec);
            let records = records.map_err(cache::Error::from)?.into_iter();
            self.ids.extend(records.map(|r| (r.entry, r.tokens)));
        }
        Ok(())
    }

    /// What an encoder made of a caption, with the ids of its rows.
    pub(super) fn output(&self, encoder: &EncoderId, caption: &str) -> Result<Found, Error> {
        let id = encoder.entry(caption);
        let entry = match self.reader.get(&encoder.spec, &id) {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(Found::Missing(None)),
            Err(e @ store::Error::Damaged { .. }) => {
                return Ok(Found::Missing(Some(e.to_string())));
            }
            Err(e) => return Err(cache::Error::from(e).into()),
        };
        let output = EncoderOutput::of_entry(&entry)?;
        Ok(Found::Output(output, self.ids(encoder, &id, caption)?))
    }

    fn ids(
        &self,
        encoder: &EncoderId,
        entry: &Fingerprint,
        caption: &str,
    ) -> Result<Option<Vec<u32>>, Error> {
        let parts = self.base.map_or(&[][..], |base| &base.encoders);
        if let Some(part) = parts.iter().find(|part| part.slot == encoder.slot) {
            return Ok(Some(tokenize(part, caption)?.ids));
        }
        if let Some(ids) = self.ids.get(entry) {
            return Ok(Some(ids.clone()));
        }
        let record = self.reader.record(&encoder.spec, entry);
        let record = record.map_err(cache::Error::from)?;
        Ok(record.map(|record| record.tokens))
    }

    /// Tokens as a person reads them; their ids where there is no vocabulary.
    pub(super) fn words(&self, slot: &str, ids: &[u32]) -> Vec<String> {
        let parts = self.base.map_or(&[][..], |base| &base.encoders);
        let part = parts.iter().find(|part| part.slot == slot);
        let word = |id: &u32| {
            let token = part.and_then(|part| part.tokenizer.token(*id));
            token.unwrap_or_else(|| format!("<{id}>"))
        };
        ids.iter().map(word).collect()
    }

    fn specs(&self) -> Result<Vec<Value>, Error> {
        if let Some(base) = self.base {
            // The store may not have them yet.
            let specs = base.encoders.iter();
            return Ok(specs.map(|e| serde_json::json!(e.spec)).collect());
        }
        let specs = self.encoders.iter();
        specs
            .map(|e| spec_title::json(&self.reader, &e.spec))
            .collect()
    }
}

/// Which encoder of the one side is which of the other: by their slots where both have a recipe; else each with the one of its
/// kind whose spec differs in the fewest fields, equal ones first.
pub(super) fn pairings(first: &Side<'_>, second: &Side<'_>) -> Result<Vec<Pairing>, Error> {
    let specs = [first.specs()?, second.specs()?];
    let by_slot = first.base.is_some() && second.base.is_some();
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
        Pairing {
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

//! One entry of a store: what made it, where it lies, what its numbers are like, and who uses it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use super::Error;
use super::captions::Captions;
use super::spec_title::{self, spec_title};
use crate::cache::{self, Specs, tensors};
use crate::dataset::Viewed;
use crate::digest::Fingerprint;
use crate::recipe::spec::{caption_entry, spelled_out};
use crate::store::{self, Entry, Payload, Record, Store, StoreReader};

/// An entry.
#[derive(Debug, Serialize)]
pub struct EntryReport {
    /// Its fingerprint.
    pub entry: Fingerprint,
    /// The fingerprint of the spec that made it.
    pub spec: Fingerprint,
    /// What the spec is, in a line.
    pub made_by: String,
    /// The spec with its defaults written out; `Null` where the store does not have it.
    pub fields: Value,
    /// All that the index says of it: caption, token ids, pack, place, type, shape and statistics of each part.
    pub record: Record,
    /// The pack's file.
    pub file: PathBuf,
    /// Its parts as they were read, each compared with its digest; none where they cannot be read.
    pub parts: Vec<PartReport>,
    /// Why the parts cannot be read.
    pub damage: Option<String>,
    /// The runs that use it.
    pub runs: Vec<RunUse>,
    /// The pictures of an Experiment whose latents it is; left out of a store by itself, which does not know files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pictures: Vec<PictureUse>,
}

/// The numbers of one part of an entry.
#[derive(Debug, Serialize)]
pub struct PartReport {
    /// Its name, such as `hidden`.
    pub part: String,
    /// The Euclidean norm of each row of a sequence, or of the vector.
    pub norms: Vec<f64>,
    /// Numbers that are NaN or infinite.
    pub non_finite: u64,
    /// Rows of nothing but zeros.
    pub zero_rows: usize,
}

/// A picture of an Experiment whose latents an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PictureUse {
    /// Its file.
    pub file: PathBuf,
    /// The file of the picture that it is given beside, where it is a reference; of a prompt's, none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside: Option<PathBuf>,
    /// Whether it is a reference.
    pub is_reference: bool,
}

/// The pictures and references of an Experiment whose latents an entry is: copies have one.
pub fn pictures_of(captions: &Captions, specs: &Specs, entry: &Fingerprint) -> Vec<PictureUse> {
    let is_it = |of: &Viewed<'_>| {
        let mut views = of.views.iter();
        views.any(|&view| specs.view(of.digest, view) == *entry)
    };
    let mut found = Vec::new();
    for item in &captions.items {
        if is_it(&item.viewed()) {
            found.push(PictureUse {
                file: item.picture.clone(),
                beside: None,
                is_reference: false,
            });
        }
        let reference = item.reference.as_ref().filter(|r| is_it(&r.viewed()));
        found.extend(reference.map(|reference| PictureUse {
            file: reference.picture.clone(),
            beside: Some(item.picture.clone()),
            is_reference: true,
        }));
    }
    let of_prompts = captions.references.values().filter(|r| is_it(&r.viewed()));
    let of_prompts: BTreeSet<&PathBuf> = of_prompts.map(|r| &r.picture).collect();
    found.extend(of_prompts.into_iter().map(|file| PictureUse {
        file: file.clone(),
        beside: None,
        is_reference: true,
    }));
    found
}

/// A run that uses an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunUse {
    /// Its name, which begins with the command that wrote it.
    pub id: String,
    /// The Experiment's file as it was named then, where the run says.
    pub experiment: Option<String>,
}

/// An entry that was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryAddress {
    /// The spec that makes it.
    pub spec: Fingerprint,
    /// Its fingerprint.
    pub entry: Fingerprint,
}

/// The entries that a store may have of a caption: one under each of its specs.
///
/// # Errors
/// If the store cannot be read.
pub fn entries_of_caption(store: &Store, caption: &str) -> Result<Vec<EntryAddress>, Error> {
    let specs = store.specs().map_err(cache::Error::from)?.into_iter();
    let address = |spec: Fingerprint| EntryAddress {
        entry: caption_entry(&spec, caption),
        spec,
    };
    Ok(specs.map(address).collect())
}

/// The entries of a reader.
///
/// # Errors
/// If the store cannot be read.
pub fn entries_of(reader: &StoreReader) -> Result<Vec<EntryAddress>, Error> {
    let mut found = Vec::new();
    for spec in reader.specs().map_err(cache::Error::from)? {
        let entries = reader.entries(&spec).into_iter();
        found.extend(entries.map(|entry| EntryAddress { spec, entry }));
    }
    Ok(found)
}

/// What there is to say of an entry; `None` if the store does not have it. An entry that is damaged is told as far as the index
/// knows it.
///
/// # Errors
/// If the store cannot be read.
pub fn entry(
    store: &Store,
    reader: &StoreReader,
    address: &EntryAddress,
) -> Result<Option<EntryReport>, Error> {
    let EntryAddress { spec, entry } = *address;
    let record = reader.record(&spec, &entry).map_err(cache::Error::from)?;
    let Some(record) = record else {
        return Ok(None);
    };
    let (parts, damage) = match reader.get(&spec, &entry) {
        Ok(Some(read)) => parts(&read)?,
        Ok(None) => (Vec::new(), Some("it is gone".to_owned())),
        Err(e @ store::Error::Damaged { .. }) => (Vec::new(), Some(e.to_string())),
        Err(e) => return Err(cache::Error::from(e).into()),
    };
    let json = spec_title::json(reader, &spec)?;
    Ok(Some(EntryReport {
        entry,
        spec,
        made_by: spec_title(&json),
        fields: spelled_out(&json),
        file: store.pack_path(&record.pack),
        record,
        parts,
        damage,
        runs: runs_using(store, address)?,
        pictures: Vec::new(),
    }))
}

/// The numbers of the parts, and what keeps some from being numbers.
fn parts(entry: &Entry) -> Result<(Vec<PartReport>, Option<String>), Error> {
    let mut reports = Vec::new();
    for (name, payload) in &entry.parts {
        match part(name, payload) {
            Ok(report) => reports.push(report),
            Err(e) => return Ok((reports, Some(format!("part {name}: {e}")))),
        }
    }
    Ok((reports, None))
}

fn part(name: &str, payload: &Payload) -> candle_core::Result<PartReport> {
    let values = tensors::to_f32(payload.dtype, payload.bytes())?;
    // The rows of a sequence are its tokens'; of latents and vectors there is one norm.
    let width = match payload.shape[..] {
        [_, width] if width > 0 => width,
        _ => values.len().max(1),
    };
    let norm = |row: &[f32]| {
        let squares = row.iter().map(|value| f64::from(*value).powi(2));
        squares.sum::<f64>().sqrt()
    };
    let norms: Vec<f64> = values.chunks(width).map(norm).collect();
    Ok(PartReport {
        part: name.to_owned(),
        non_finite: values.iter().filter(|value| !value.is_finite()).count() as u64,
        zero_rows: norms.iter().filter(|norm| **norm == 0.0).count(),
        norms,
    })
}

fn runs_using(store: &Store, address: &EntryAddress) -> Result<Vec<RunUse>, Error> {
    let mut found = Vec::new();
    for id in store.runs().map_err(cache::Error::from)? {
        // One that cannot be understood is no reason to tell nothing; `inspect store` tells of it.
        let Ok(run) = store.run(&id) else {
            continue;
        };
        let entries = run.entries.get(&address.spec);
        if entries.is_some_and(|entries| entries.binary_search(&address.entry).is_ok()) {
            found.push(run_use(id, &run.extra));
        }
    }
    Ok(found)
}

/// A run, with what it says of itself.
pub(super) fn run_use(id: String, extra: &Value) -> RunUse {
    let experiment = extra.get("experiment").and_then(Value::as_str);
    RunUse {
        id,
        experiment: experiment.map(str::to_owned),
    }
}

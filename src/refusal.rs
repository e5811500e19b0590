//! Refusal: why a store does not hold what an Experiment needs, field by field, and which command mends it.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::digest::Fingerprint;
use crate::recipe::Diff;
use crate::store::{self, StoreReader};

/// What is missing of one spec.
#[derive(Debug, Serialize)]
pub struct Missing {
    /// `clip_l`, `t5`, ..., or `latents`.
    pub what: String,
    /// The spec that is wanted.
    pub spec: Fingerprint,
    /// How many entries are wanted.
    pub wanted: u64,
    /// How many of them are missing.
    pub missing: u64,
    /// A few of the missing captions or pictures.
    pub examples: Vec<String>,
    /// The spec in the store that comes nearest, where none of the wanted entries is there.
    pub nearest: Option<Nearest>,
}

/// A spec of the store that differs from the wanted one.
#[derive(Debug, Serialize)]
pub struct Nearest {
    /// Its fingerprint.
    pub spec: Fingerprint,
    /// How many entries it has.
    pub entries: u64,
    /// In which fields it differs.
    pub diff: Diff,
}

/// All that is missing. It prints as what a person reads.
#[derive(Debug, Serialize)]
pub struct Refusal {
    /// The store.
    pub store: String,
    /// One for each spec of which something is missing; never empty.
    pub missing: Vec<Missing>,
    /// The command that mends it.
    pub command: String,
}

/// The spec among the store's that differs from `wanted` in the fewest fields, and is of the same kind.
/// `origin` says where a wanted field comes from.
///
/// # Errors
/// If the store cannot be read.
pub fn nearest(
    reader: &StoreReader,
    own: &Fingerprint,
    wanted: &Value,
    origin: impl Fn(&str) -> Option<String>,
) -> Result<Option<Nearest>, store::Error> {
    let kind = |spec: &Value| spec.pointer("/architecture/kind").cloned();
    let mut best: Option<Nearest> = None;
    for spec in reader.specs()?.into_iter().filter(|s| s != own) {
        let Some(found) = reader
            .spec_json(&spec)?
            .and_then(|j| serde_json::from_slice::<Value>(&j).ok())
        else {
            continue;
        };
        let entries = reader.entries(&spec).len() as u64;
        if kind(&found) != kind(wanted) || entries == 0 {
            continue;
        }
        let diff = Diff::between(wanted, &found);
        if best
            .as_ref()
            .is_none_or(|b| diff.fields.len() < b.diff.fields.len())
        {
            let from = format!("spec {} in the store", spec.short());
            let diff = diff.wanted_from(&origin).found_from(|_| Some(from.clone()));
            best = Some(Nearest {
                spec,
                entries,
                diff,
            });
        }
    }
    Ok(best)
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} does not hold what this Experiment needs", self.store)?;
        for missing in &self.missing {
            writeln!(f)?;
            writeln!(
                f,
                "{}: {} of {} entries are missing",
                missing.what, missing.missing, missing.wanted
            )?;
            match &missing.nearest {
                None => {
                    for example in &missing.examples {
                        writeln!(f, "    {example}")?;
                    }
                    let rest = missing.missing - missing.examples.len() as u64;
                    if rest > 0 {
                        writeln!(f, "    and {rest} more")?;
                    }
                }
                Some(nearest) => {
                    writeln!(
                        f,
                        "  the store has {} entries that were made otherwise:",
                        nearest.entries
                    )?;
                    for line in nearest.diff.to_string().lines() {
                        writeln!(f, "    {line}")?;
                    }
                }
            }
        }
        write!(f, "\nto mend it: {}", self.command)
    }
}

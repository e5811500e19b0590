//! Refusal: why a store does not hold what an Experiment needs, field by field, and which command mends it.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Error, Reader};
use crate::base_model::BaseModel;
use crate::dataset::{self, Viewed};
use crate::digest::Fingerprint;
use crate::experiment::Experiment;
use crate::recipe::Diff;
use crate::recipe::spec::spelled_out;
use crate::shown;
use crate::store::{self, Store};

/// What is missing of one spec.
#[derive(Debug, Serialize)]
pub struct MissingEntries {
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
    pub nearest: Option<NearestSpec>,
}

/// A spec of the store that differs from the wanted one.
#[derive(Debug, Serialize)]
pub struct NearestSpec {
    /// The fingerprint that its entries are filed under.
    pub spec: Fingerprint,
    /// How many entries it has.
    pub entries: u64,
    /// In which fields it differs.
    pub diff: Diff,
}

/// All that is missing. It prints as what a person reads.
#[derive(Debug, Serialize)]
pub struct Refusal {
    /// The store's folder, as the Experiment names it.
    pub store: String,
    /// One for each spec of which something is missing; empty where there is no store.
    pub missing: Vec<MissingEntries>,
    /// What is wrong with pictures of which no latents can be made, a line each: of those looked at, which are few.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unusable: Vec<String>,
    /// The command that mends it.
    pub command: String,
}

/// So many of the missing captions or pictures are named.
const EXAMPLES: usize = 3;

/// What an Experiment is refused for, if its `captions` and pictures are not all in the store.
///
/// # Errors
/// If the store cannot be read.
pub fn refuse_if_missing(
    experiment: &Experiment,
    base: &BaseModel,
    store: &Store,
    reader: &Reader,
    captions: &BTreeSet<String>,
    pictures: &[Viewed<'_>],
) -> Result<Option<Refusal>, Error> {
    let mut missing = Vec::new();
    for (encoder, part) in reader.specs().encoders.iter().zip(&base.encoders) {
        let without = reader.captions_without(encoder, captions.iter().map(String::as_str));
        // Cut, as captions of several hundred characters would hide the rest of the message.
        let quoted = |caption: &str| format!("`{}`", caption.chars().take(70).collect::<String>());
        let recipe = base.recipe.encoder(&encoder.slot);
        let origin = |path: &str| {
            let field = recipe.and_then(|r| r.field_behind(path));
            field
                .and_then(|f| base.recipe.origin(&f))
                // What is no field of the recipe, the checkpoint decides.
                .or_else(|| Some("the checkpoint".to_owned()))
        };
        missing.extend(missing_entries(
            store,
            (&encoder.slot, encoder.spec),
            captions.len(),
            without.into_iter().map(quoted).collect(),
            &json!(part.spec),
            origin,
        )?);
    }
    let (mut without, mut views, mut lacking) = (Vec::new(), 0, Vec::new());
    for picture in pictures {
        let name = picture.picture.display().to_string();
        let missing = reader.views_without(picture);
        if missing > 0 {
            lacking.push(picture);
        }
        // Once for each view, as entries are what is counted.
        without.extend(std::iter::repeat_n(name, missing));
        views += picture.views.len();
    }
    missing.extend(missing_entries(
        store,
        ("latents", reader.specs().latents),
        views,
        without,
        &json!(base.vae.spec),
        |_| Some("the checkpoint".to_owned()),
    )?);
    if missing.is_empty() {
        return Ok(None);
    }
    // What `encode` had to leave out is missing for ever: few are looked at, as once it has run no others are left.
    let looked_at = lacking.iter().take(EXAMPLES);
    let problems = looked_at.filter_map(|picture| dataset::problem(picture));
    Ok(Some(Refusal {
        unusable: problems.map(|problem| problem.to_string()).collect(),
        ..refusal(experiment, store.shown(), missing)
    }))
}

/// The refusal of an Experiment whose store is not there yet.
pub fn refuse_without_store(experiment: &Experiment, store: &Path) -> Refusal {
    refusal(experiment, store, Vec::new())
}

fn refusal(experiment: &Experiment, store: &Path, missing: Vec<MissingEntries>) -> Refusal {
    Refusal {
        store: store.display().to_string(),
        missing,
        unusable: Vec::new(),
        command: format!("plumb encode {}", experiment.file.display()),
    }
}

fn missing_entries(
    store: &Store,
    (what, spec): (&str, Fingerprint),
    wanted: usize,
    without: Vec<String>,
    json: &Value,
    origin: impl Fn(&str) -> Option<String>,
) -> Result<Option<MissingEntries>, Error> {
    if without.is_empty() {
        return Ok(None);
    }
    // Where some are there, the recipe is right and captions are new; where none is, another recipe may be.
    let has_any = without.len() < wanted || store.has_entries(&spec)?;
    let nearest = match has_any {
        false => nearest(store, &spec, json, origin)?,
        true => None,
    };
    Ok(Some(MissingEntries {
        what: what.to_owned(),
        spec,
        wanted: wanted as u64,
        missing: without.len() as u64,
        examples: without.into_iter().take(EXAMPLES).collect(),
        nearest,
    }))
}

/// The spec among the store's that differs from `wanted` in the fewest fields, and is of the same kind.
/// `origin` says where a wanted field comes from.
///
/// # Errors
/// If the store cannot be read.
fn nearest(
    store: &Store,
    wanted_spec: &Fingerprint,
    wanted: &Value,
    origin: impl Fn(&str) -> Option<String>,
) -> Result<Option<NearestSpec>, store::Error> {
    // Of latents there is no kind: they are compared with latents only.
    let kind = |spec: &Value| spec.pointer("/architecture/kind").cloned();
    // Of no spec: only descriptions are read.
    let reader = store.reader_of(&[])?;
    let mut alike = Vec::new();
    for spec in store.specs()?.into_iter().filter(|s| s != wanted_spec) {
        let Some(found) = reader
            .spec_json(&spec)?
            .and_then(|j| serde_json::from_slice::<Value>(&j).ok())
        else {
            continue;
        };
        if kind(&found) == kind(wanted) {
            // What an earlier version had no rule for, it did in the rule's default way.
            let diff = Diff::between(&spelled_out(wanted), &spelled_out(&found));
            alike.push((spec, diff));
        }
    }
    alike.sort_by_key(|(_, diff)| diff.fields.len());
    for (spec, diff) in alike {
        let entries = store.num_entries(&spec)?;
        // A spec without entries would not show what the store can be used for.
        if entries > 0 {
            let from = format!("spec {} in the store", spec.short());
            let diff = diff.wanted_from(&origin).found_from(|_| Some(from.clone()));
            return Ok(Some(NearestSpec {
                spec,
                entries,
                diff,
            }));
        }
    }
    Ok(None)
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} does not hold what this Experiment needs", self.store)?;
        for missing in &self.missing {
            writeln!(f)?;
            writeln!(
                f,
                "{}: {} {} missing",
                missing.what,
                shown::part_of(missing.missing, missing.wanted, "entry"),
                shown::are(missing.missing)
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
                        "  the store has {} made otherwise:",
                        shown::counted(nearest.entries, "entry")
                    )?;
                    for line in nearest.diff.to_string().lines() {
                        writeln!(f, "    {line}")?;
                    }
                }
            }
        }
        if self.unusable.is_empty() {
            return write!(f, "\nto mend it: {}", self.command);
        }
        writeln!(f)?;
        for problem in &self.unusable {
            writeln!(f, "{problem}")?;
        }
        write!(
            f,
            "\nto mend it: repair what cannot be read, or move it out of its folder with its caption; then {}",
            self.command
        )
    }
}

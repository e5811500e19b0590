//! What a LoRA file says about how it was made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ReadFile;
use crate::base_model::BaseModel;
use crate::digest::{Digest, Fingerprint};
use crate::experiment::Experiment;

/// The metadata key of the JSON below.
pub const METADATA_KEY: &str = crate::lora::metadata::PROVENANCE;

/// How a LoRA was made: enough to make it again, and to notice a use with another recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The plumb that trained it, with its version.
    pub tool: String,
    /// Family of the base model, such as `sd3`.
    pub family: String,
    /// Its flavor in the family, such as `3.5-large`.
    pub flavor: String,
    /// The digest of the denoiser's weights.
    pub base: Digest,
    /// The recipe, readable, with its deviations.
    pub recipe: Value,
    /// The fingerprint of that recipe: equal ones make equal conditioning.
    pub recipe_fingerprint: Fingerprint,
    /// Each encoder's spec by slot: what its embeddings depended on.
    pub encoders: BTreeMap<String, Fingerprint>,
    /// The fingerprint of the VAE's spec.
    pub latents: Fingerprint,
    /// The digest of the list of entries that were trained from.
    pub manifest: Digest,
    /// The seed of all random numbers of the training.
    pub seed: u64,
    /// Optimizer steps done when this file was written.
    pub step: u64,
    /// On what, and in what type, the last of them were computed. Empty in LoRAs of versions that did not record it.
    #[serde(default)]
    pub computed: String,
    /// Earlier stretches of the training that were otherwise than its last one; none in a run from the start to its end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Stretch>,
    /// The LoRAs that the training started from, the last first: itself, the one that this was started from, and so on. Empty where it
    /// began anew.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<StartedFrom>,
    /// The digest of the LoRA that lay beneath this one while it was trained, and has no part in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_adapter: Option<Digest>,
    /// The Experiment file's text, comments and all.
    pub experiment: String,
}

/// A stretch of a training after which it went on otherwise: on another machine, or with learning rates for another length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stretch {
    /// Optimizer steps done at its end, counted from the training's start.
    pub until: u64,
    /// On what, and in what type, it was computed.
    pub computed: String,
    /// The steps that the training was to have: the learning rates depend on them.
    pub steps: u64,
    /// The steps of warm-up in these.
    pub warmup_steps: u64,
}

/// What a training tells of its way.
#[derive(Clone, Copy, Debug)]
pub struct Course<'a> {
    /// Optimizer steps done.
    pub step: u64,
    /// On what, and in what type, the last of them were computed.
    pub computed: &'a str,
    /// What was otherwise before.
    pub history: &'a [Stretch],
    /// The LoRAs that it started from, the last first.
    pub from: &'a [StartedFrom],
    /// The digest of the LoRA beneath it.
    pub training_adapter: Option<Digest>,
}

/// A LoRA that a training started from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartedFrom {
    /// The digest of its file; where PEFT's config was read with it, of both digests.
    pub source: Digest,
    /// The naming that it had, as [`crate::lora::formats::Format::name`] says it.
    pub format: String,
    /// How it was made, where plumb trained it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<MadeBefore>,
    /// What another program said of it, in the keys of its metadata.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub said: BTreeMap<String, String>,
}

/// What a LoRA that plumb trained said of its making.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MadeBefore {
    /// The digest of the denoiser's weights.
    pub base: Digest,
    /// The fingerprint of the recipe.
    pub recipe_fingerprint: Fingerprint,
    /// The digest of the list of entries that it was trained from.
    pub manifest: Digest,
    /// Optimizer steps.
    pub step: u64,
}

/// Keys by which other programs name a LoRA and its training.
const SAID: [&str; 6] = [
    "modelspec.title",
    "ss_base_model_version",
    "ss_output_name",
    "ss_sd_model_name",
    "ss_steps",
    "sshs_model_hash",
];

/// The LoRAs that are remembered; a longer line would be a growing file.
const MAX_BEFORE: usize = 100;

/// Characters of a value that another program wrote.
const MAX_SAID: usize = 200;

/// What a LoRA started from `read` says of that: it, and what it was started from itself. `made` is its own provenance.
pub fn started_from(read: &ReadFile, made: Option<&Provenance>) -> Vec<StartedFrom> {
    let said = SAID.iter().filter_map(|key| {
        let value = read.lora.metadata.get(*key)?;
        Some(((*key).to_owned(), value.chars().take(MAX_SAID).collect()))
    });
    let last = StartedFrom {
        source: read.digest,
        format: read.lora.format.name().to_owned(),
        made: made.map(|made| MadeBefore {
            base: made.base,
            recipe_fingerprint: made.recipe_fingerprint,
            manifest: made.manifest,
            step: made.step,
        }),
        said: if made.is_some() {
            BTreeMap::new()
        } else {
            said.collect()
        },
    };
    let before = made.map(|made| made.from.clone()).unwrap_or_default();
    let mut all: Vec<_> = std::iter::once(last).chain(before).collect();
    all.truncate(MAX_BEFORE);
    all
}

impl Provenance {
    /// Of a LoRA that came about on this course.
    pub fn new(
        experiment: &Experiment,
        base: &BaseModel,
        denoiser: Digest,
        manifest: Digest,
        course: Course<'_>,
    ) -> Self {
        Self {
            tool: crate::store::TOOL.to_owned(),
            family: base.denoiser.family.name.to_owned(),
            flavor: base.flavor.name.to_owned(),
            base: denoiser,
            // The recipe as well as its fingerprint: a person can read the one, and the other tells whether it is the same.
            recipe: base.recipe.describe(),
            recipe_fingerprint: base.recipe.fingerprint(),
            encoders: base
                .encoders
                .iter()
                .map(|e| (e.slot.clone(), e.fingerprint))
                .collect(),
            latents: base.vae.fingerprint,
            manifest,
            seed: experiment.seed(),
            step: course.step,
            computed: course.computed.to_owned(),
            history: course.history.to_vec(),
            from: course.from.to_vec(),
            training_adapter: course.training_adapter,
            experiment: experiment.text.clone(),
        }
    }

    /// From a LoRA file's metadata; `None` where it was not made by plumb.
    ///
    /// # Errors
    /// If the entry is there and is not what a version of plumb wrote.
    pub fn read(metadata: &BTreeMap<String, String>) -> Result<Option<Self>, serde_json::Error> {
        super::read_entry(metadata, METADATA_KEY)
    }

    /// Into a LoRA file's metadata.
    pub fn write(&self, metadata: &mut BTreeMap<String, String>) {
        super::write_entry(metadata, METADATA_KEY, self);
    }
}

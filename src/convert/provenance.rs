//! What a LoRA file says about how it was made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base_model::BaseModel;
use crate::digest::{Digest, Fingerprint};
use crate::experiment::Experiment;

/// The metadata key of the JSON below.
pub const METADATA_KEY: &str = "plumb";

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

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
    /// The Experiment file's text, comments and all.
    pub experiment: String,
}

impl Provenance {
    /// Of a LoRA after `step` steps, the last of them `computed` on the device and in the type named.
    pub fn new(
        experiment: &Experiment,
        base: &BaseModel,
        denoiser: Digest,
        manifest: Digest,
        (step, computed): (u64, &str),
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
            step,
            computed: computed.to_owned(),
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

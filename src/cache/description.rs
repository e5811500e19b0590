//! What it takes to put a base model's entries together, for a reader that has neither the base model nor this crate. The Python
//! package under `python/` is one; `schemas/FORMAT.md` describes the members.

use std::collections::BTreeMap;

use serde::Serialize;

use super::conditioning::filled_rows;
use super::{EncoderId, Specs};
use crate::base_model::BaseModel;
use crate::digest::Fingerprint;
use crate::recipe::Deviation;
use crate::recipe::latents::LatentStatistics;
use crate::recipe::rules::{Absent, Assembly};

/// The version of the members below. A change of what one of them means bumps it, and readers refuse versions that they do not know.
const DESCRIPTION_VERSION: u32 = 1;

/// A base model's recipe with the specs that its entries are filed under, and what becomes of their tensors.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// Of these members; 1.
    version: u32,
    /// The recipe's name, as `plumb recipe` takes it: `sd3/3.5-large:kohya`.
    recipe: String,
    /// The fingerprint of its rules, deviations included.
    recipe_fingerprint: Fingerprint,
    /// Where the Experiment has it otherwise than its name says.
    deviations: Vec<Deviation>,
    /// The encoders that there are, in the recipe's order.
    encoders: Vec<EncoderId>,
    /// By the slot of each encoder that is left out, the rows of zeros in its place.
    zero_rows: BTreeMap<String, usize>,
    /// By slot, how many rows there are at least, zeros behind those of its true tokens: where its pads become zeros that the denoiser
    /// sees.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    filled_rows: BTreeMap<String, usize>,
    /// How the encoders' outputs become context, pooled vector and mask.
    assembly: Assembly,
    /// Channels of the context, up to which rows are filled with zeros.
    context_width: usize,
    /// Of the VAE that makes latents.
    latents: LatentDescription,
    /// Whether the denoiser is told each picture's size and crop.
    size_conditioning: bool,
}

/// What a base model's latents are filed under, and how the denoiser's come from them.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct LatentDescription {
    spec: Fingerprint,
    channels: usize,
    statistics: LatentStatistics,
}

impl Description {
    /// The recipe's name.
    pub fn recipe(&self) -> &str {
        &self.recipe
    }
}

impl From<&BaseModel> for Description {
    fn from(base: &BaseModel) -> Self {
        let specs = Specs::from(base);
        let recipe = &base.recipe;
        let is_here = |slot: &str| specs.encoders.iter().any(|encoder| encoder.slot == slot);
        let zero_rows = recipe.encoders().iter().filter_map(|encoder| {
            match encoder.rules.absent {
                Absent::ZeroRows(rows) if !is_here(&encoder.slot) => {
                    Some((encoder.slot.clone(), rows))
                }
                // Without one that is not to be left out there is no base model.
                _ => None,
            }
        });
        let filled_rows = recipe.encoders().iter().filter_map(|encoder| {
            let rows = filled_rows(recipe, &encoder.slot)?;
            Some((encoder.slot.clone(), rows))
        });
        let geometry = base.latent_geometry();
        Self {
            version: DESCRIPTION_VERSION,
            recipe: recipe.name().to_string(),
            recipe_fingerprint: recipe.fingerprint(),
            deviations: recipe.deviations().to_vec(),
            zero_rows: zero_rows.collect(),
            filled_rows: filled_rows.collect(),
            assembly: recipe.assembly().clone(),
            context_width: base.denoiser.context_width(),
            latents: LatentDescription {
                spec: specs.latents,
                channels: geometry.channels,
                statistics: geometry.statistics,
            },
            size_conditioning: base.flavor.size_conditioning,
            encoders: specs.encoders,
        }
    }
}

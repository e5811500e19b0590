//! What a comparison came to.

use std::path::PathBuf;

use serde::Serialize;

use super::Difference;
use super::measure::{LossesOf, by_picture};
use super::paired::Paired;
use crate::base_model::BaseModel;
use crate::dataset::{Item, Subjects};
use crate::digest::{Digest, Fingerprint};
use crate::probe::stats::mean;
use crate::recipe::Deviation;

/// A comparison.
#[derive(Debug, Serialize)]
pub struct CompareReport {
    /// The one LoRA.
    pub a: Measured,
    /// The other.
    pub b: Measured,
    /// The base model without a LoRA, where it was measured: its mean loss under the Experiment's recipe, or the one for both.
    pub base: Option<f64>,
    /// The Experiment that base model and pictures are from.
    pub data: PathBuf,
    /// How many pictures and clips there are; a clip's windows count as one.
    pub pictures: usize,
    /// How many of them are clips.
    pub clips: usize,
    /// How often noise was drawn for each picture and noise level.
    pub draws: u64,
    /// B's loss less A's: below 0 where B predicts better.
    pub difference: Paired,
    /// The same at each noise level.
    pub levels: Vec<AtLevel>,
    /// In what they were made otherwise.
    pub differences: Vec<Difference>,
    /// The losses of each picture.
    pub by_picture: Vec<OfPicture>,
    /// The sheet of previews, where one was asked for.
    pub sheet: Option<PathBuf>,
}

/// A LoRA, and how it did.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// Which it is.
    #[serde(flatten)]
    pub lora: LoraUsed,
    /// Its mean loss.
    pub loss: f64,
}

/// A LoRA, and the recipe that it is measured under.
#[derive(Debug, Serialize)]
pub struct LoraUsed {
    /// Its file.
    pub file: PathBuf,
    /// The file's digest.
    pub digest: Digest,
    /// Optimizer steps that it was trained for, as it says.
    pub steps: Option<u64>,
    /// The recipe that its captions were encoded by.
    pub under: RecipeUsed,
    /// Whether that is the one it says it was trained with; None where it says nothing.
    pub is_own: Option<bool>,
}

/// A recipe in few words.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecipeUsed {
    /// Family, flavor and variant.
    pub name: String,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// What deviates from the variant.
    pub deviations: Vec<Deviation>,
}

/// The losses at one noise level, 0 for no noise and 1 for nothing else.
#[derive(Debug, Serialize)]
pub struct AtLevel {
    /// The noise's share.
    pub sigma: f64,
    /// A's mean loss.
    pub a: f64,
    /// B's.
    pub b: f64,
    /// B's less A's, over pictures.
    pub difference: Paired,
}

/// The losses of one picture, over noise levels.
#[derive(Debug, Serialize)]
pub struct OfPicture {
    /// Its file.
    pub picture: PathBuf,
    /// A's.
    pub a: f64,
    /// B's.
    pub b: f64,
}

impl CompareReport {
    /// What was measured, for sentences about it.
    pub fn subjects(&self) -> Subjects {
        Subjects::new(self.pictures as u64, self.clips as u64)
    }
}

impl RecipeUsed {
    pub(super) fn of(base: &BaseModel) -> Self {
        Self {
            name: base.recipe.name().to_string(),
            fingerprint: base.recipe.fingerprint(),
            deviations: base.recipe.deviations().to_vec(),
        }
    }
}

/// The losses at each of these noise levels, B's against A's.
pub(super) fn levels([a, b]: &[Vec<LossesOf>; 2], sigmas: Vec<f64>) -> Vec<AtLevel> {
    let at = |losses: &[LossesOf], level: usize| -> Vec<f64> {
        losses
            .iter()
            .filter_map(|of| of.get(level).copied())
            .collect()
    };
    let of_level = |(level, sigma): (usize, f64)| {
        let (a, b) = (at(a, level), at(b, level));
        AtLevel {
            sigma,
            a: mean(&a),
            b: mean(&b),
            difference: Paired::of(&a, &b),
        }
    };
    sigmas.into_iter().enumerate().map(of_level).collect()
}

/// The losses of each picture, over noise levels.
pub(super) fn of_pictures(pictures: &[Item], [a, b]: &[Vec<LossesOf>; 2]) -> Vec<OfPicture> {
    let both = by_picture(a).into_iter().zip(by_picture(b));
    let named = pictures.iter().zip(both);
    named
        .map(|(item, (a, b))| OfPicture {
            picture: item.picture.clone(),
            a,
            b,
        })
        .collect()
}

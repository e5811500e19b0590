//! An Experiment's pictures and captions: found, looked at, sorted into buckets. `encode` makes what they need,
//! `train` asks whether it is there; both come through here, so that they mean the same.

use std::path::PathBuf;

use crate::base::Base;
use crate::dataset::{self, BucketRules, Buckets, Dataset, Folder, HeldOut};
use crate::digest::Digest;
use crate::experiment::{Experiment, raw};
use crate::monitor::Monitor;
use crate::recipe::latents::{Size, View};

/// A picture with its caption and its place.
#[derive(Clone, Debug)]
pub struct Item {
    /// The picture's file.
    pub path: PathBuf,
    /// The digest of the file.
    pub digest: Digest,
    /// The caption, trigger word included.
    pub caption: String,
    /// The size of the whole picture.
    pub size: Size,
    /// The size the VAE sees.
    pub bucket: Size,
    /// Its crops, mirrored or not; never empty.
    pub views: Vec<View>,
    /// How often it comes in an epoch.
    pub repeats: u32,
    /// Whether it is kept for validation.
    pub held_out: bool,
}

/// All items of an Experiment, in the order of its data sets and their files.
///
/// # Errors
/// If a folder, picture or caption cannot be used; all such problems are told at once.
pub fn open(
    experiment: &Experiment,
    base: &Base,
    monitor: &dyn Monitor,
) -> Result<Vec<Item>, dataset::Error> {
    let sets = &experiment.raw.dataset;
    let folders: Vec<Folder> = sets.iter().map(|set| folder(experiment, set)).collect();
    let data = Dataset::scan(&folders, monitor)?;
    let split = data.split(match experiment.raw.train.validation_share {
        0.0 => HeldOut::None,
        share => HeldOut::Fraction(share),
    })?;
    let buckets = sets
        .iter()
        .map(|set| buckets(set, base))
        .collect::<Result<Vec<_>, _>>()?;
    let mut items = Vec::with_capacity(data.items.len());
    for found in data.items {
        let set = &sets[found.folder];
        let placement = buckets[found.folder]
            .place(found.size)
            .map_err(|e| unfit(&found.picture, &e.to_string()))?;
        items.push(Item {
            path: found.picture,
            digest: found.digest,
            caption: found.caption,
            size: found.size,
            bucket: placement.bucket,
            views: placement.views(set.crops, set.flip),
            repeats: found.repeats,
            held_out: false,
        });
    }
    for place in split.validation {
        items[place].held_out = true;
    }
    Ok(items)
}

fn folder(experiment: &Experiment, set: &raw::Dataset) -> Folder {
    Folder {
        path: experiment.path(&set.path),
        repeats: set.repeats,
        trigger: set.trigger.clone(),
        recursive: set.recursive,
        caption_extension: set.caption_extension.clone(),
        default_caption: set.default_caption.clone(),
        allow_empty_captions: set.allow_empty_captions,
    }
}

fn unfit(picture: &std::path::Path, problem: &str) -> dataset::Error {
    dataset::Error::Unusable {
        path: picture.into(),
        problem: problem.to_owned(),
    }
}

/// The buckets of a data set for a base model.
///
/// # Errors
/// If they contradict each other or the model.
pub fn buckets(set: &raw::Dataset, base: &Base) -> Result<Buckets, dataset::Error> {
    let side = set.resolution;
    let (min, max) = match set.bucket {
        true => (set.min_bucket_px(), set.max_bucket_px()),
        false => (side, side),
    };
    let rules = BucketRules {
        resolution: Size {
            width: side,
            height: side,
        },
        min,
        max,
        step: set.bucket_step,
        no_upscale: set.no_upscale,
    };
    // Latents are joined two by two by the denoiser.
    let multiple = base.latent_space().factor as u32 * 2;
    Buckets::new(rules, multiple).map_err(|e| unfit(&set.path, &e.to_string()))
}

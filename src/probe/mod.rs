//! Which recipe a base model expects, measured: the loss of the frozen base on pictures and captions under one recipe and under others,
//! with the same noise at the same timesteps, so that what is left is the recipe's difference.
//!
//! The loss is the mean squared error of what the denoiser itself predicts (velocity, noise), with every noise level counted alike:
//! weights would decide where in the schedule a recipe has to be right. Latents are the mean of the VAE's posterior. What comes out is
//! evidence of what the base model was trained with, on these pictures; nothing is trained.
//!
//! As a control each picture is measured with another's caption as well: where that does no harm, the base model does not use what
//! it is told of these pictures, and which telling it prefers means nothing.
//!
//! - [`choice`]: the recipes that are compared
//! - [`measure`]: the losses of each picture
//! - [`stats`]: what differences of losses say, and what looking several times costs
//! - [`judge`]: the verdicts that follow
//! - [`report`]: what is found, as a file

pub mod choice;
pub mod conclusion;
mod error;
mod fill;
pub mod judge;
pub mod measure;
pub mod report;
pub mod stats;

use std::collections::BTreeMap;

pub use choice::Vary;
pub use error::Error;
pub use report::Report;

use crate::base_model::{self, BaseModel};
use crate::dataset::{self, Item, Subjects};
use crate::digest::Digest;
use crate::encode::{EncodeOptions, encode_pictures};
use crate::experiment::Experiment;
use crate::models::memory::{CallShape, fitted};
use crate::models::{Denoiser, Placement, WeightStorage};
use crate::monitor::Monitor;
use crate::nn::weights::DigestMemo;
use crate::rng::{Rng, Stream};
use crate::store::Store;
use judge::Measured;
use measure::{Draws, Measurement, Row, Subject};
use report::{Method, Picture};

/// The chance of a false alarm over all candidates and looks.
pub const ALPHA: f64 = 0.05;
/// A difference that is surely below this part of the loss is worth nobody's time.
pub const NEGLIGIBLE: f64 = 0.001;
/// Fewer pictures would tell of nothing but a catastrophe.
pub const FEWEST_PICTURES: usize = 8;

/// What is compared, and how thoroughly.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// What is varied; empty: the shipped variants are compared.
    pub vary: Vec<Vary>,
    /// The variant that the others are compared with; none: the reference.
    pub against: Option<String>,
    /// At most so many pictures.
    pub pairs: usize,
    /// Draws of noise and timestep a picture.
    pub draws: u32,
    /// Equal parts of the noise schedule that are reported apart; a divisor of `draws`.
    pub bands: u32,
    /// What all draws derive from.
    pub seed: u64,
    /// The most samples in one call of the denoiser; one where products are in fp8.
    pub batch: usize,
    /// Whether it ends at the first look at which every answer is clear.
    pub stop_early: bool,
}

/// Where it computes.
#[derive(Clone)]
pub struct ProbePlace {
    /// For text encoders and VAE.
    pub encode: EncodeOptions,
    /// For the denoiser; its weights stay in their files where they do not fit.
    pub placement: Placement,
    /// Bytes of the device's memory that may be used.
    pub memory_bytes: u64,
}

/// Compares recipes on the pictures of an Experiment.
///
/// # Errors
/// If there are no pictures or too few, no recipe to compare, or something cannot be encoded or read. A picture that cannot be used is
/// reported and passed over.
pub fn run(
    experiment: &Experiment,
    options: &ProbeOptions,
    place: &ProbePlace,
    memo: &mut DigestMemo,
    monitor: &dyn Monitor,
) -> Result<Report, Error> {
    if experiment.datasets().is_empty() {
        return Err(Error::NoPictures {
            file: experiment.file.clone(),
        });
    }
    if options.bands == 0 || !options.draws.is_multiple_of(options.bands) {
        return Err(Error::Bands {
            bands: options.bands,
            draws: options.draws,
        });
    }
    let store = experiment.store_path().map_err(base_model::Error::from)?;
    monitor.start("reading the base model", None);
    let base = BaseModel::open(experiment, memo)?;
    monitor.finish();
    let mut compared = choice::compared(&base, options, memo)?;
    let store = Store::open_or_create_at(&store)?.waiting(place.encode.wait);
    let multiple = base.latent_geometry().side_multiple();
    let (items, unusable) = dataset::open_usable(experiment, multiple, monitor)?;
    let (subjects, failed) = subjects(&base, &store, items, options, place, monitor)?;
    let firsts = || subjects.iter().map(Subject::first);
    let of_all = Subjects::of(firsts());
    if subjects.len() < FEWEST_PICTURES {
        return Err(Error::TooFew {
            file: experiment.file.clone(),
            found: of_all.counted(),
            things: of_all.several(),
        });
    }
    fill::captions(&compared, &store, &subjects, &place.encode, monitor)?;
    measure::leave_out_misfits(&mut compared, &store, &subjects)?;
    for left_out in &compared.left_out {
        monitor.note(&format!("{} is left out: {}", left_out.label, left_out.why));
    }
    let draws = Draws {
        seed: options.seed,
        count: options.draws,
        batch: match place.placement.storage {
            // Products round a tensor by one scale: samples that share a call would decide on each other's losses.
            WeightStorage::Fp8 { .. } => 1,
            _ => options.batch,
        },
    };
    let call = measure::call(&base, &compared, &subjects, draws);
    let (denoiser, digest) = load(&base, call, place, memo, monitor)?;
    let measurement = Measurement::open(&base, &compared, (&store, &subjects), &*denoiser, draws)?;
    let looks = stats::looks(subjects.len(), ALPHA);
    let (rows, looks_made) = looked(measurement, &subjects, &looks, options, monitor)?;
    let measured = Subjects::of(firsts().take(rows.len()));
    Ok(judge::report(Measured {
        experiment: experiment.file.display().to_string(),
        base: &base,
        digest,
        compared: &compared,
        pictures: firsts().take(rows.len()).map(picture).collect(),
        clips: measured.clips,
        rows: &rows,
        failed: failed + unusable,
        bands: options.bands,
        method: Method {
            seed: options.seed,
            draws: options.draws,
            guidance: base.settings.train.guidance,
            alpha: ALPHA,
            negligible: NEGLIGIBLE,
            looks: looks.iter().map(|&look| look.into()).collect(),
            looks_made,
        },
    }))
}

/// The denoiser, and the digest of its weights.
fn load(
    base: &BaseModel,
    call: CallShape,
    place: &ProbePlace,
    memo: &mut DigestMemo,
    monitor: &dyn Monitor,
) -> Result<(Box<dyn Denoiser>, Digest), Error> {
    let digest = base.denoiser_digest(memo)?;
    let placement = &place.placement;
    let (storage, told) = fitted(&base.denoiser, (&[call], 0), placement, place.memory_bytes)?;
    if let Some(told) = told {
        monitor.note(&told);
    }
    let placement = Placement {
        storage,
        ..placement.clone()
    };
    monitor.start("loading the denoiser", None);
    let denoiser = base.load_denoiser(&placement, &digest)?;
    monitor.finish();
    Ok((denoiser, digest))
}

/// Measures pictures up to the look at which all is clear; gives them and the number of looks.
fn looked(
    mut measurement: Measurement<'_>,
    subjects: &[Subject],
    looks: &[(usize, f64)],
    options: &ProbeOptions,
    monitor: &dyn Monitor,
) -> Result<(Vec<Row>, u32), Error> {
    let things = Subjects::of(subjects.iter().map(Subject::first)).several();
    monitor.start(things, Some(subjects.len() as u64));
    let mut made = 0;
    for (size, _) in looks {
        let next = measurement.rows().len();
        for (at, subject) in subjects.iter().enumerate().take(*size).skip(next) {
            measurement.add(subject, subject.stranger(subjects, at))?;
            monitor.advance(1);
        }
        made += 1;
        let told = judge::told(measurement.rows(), &looks[..made]);
        if options.stop_early && judge::all_clear(&told) {
            break;
        }
    }
    monitor.finish();
    Ok((measurement.into_rows(), made as u32))
}

fn picture(first: &Item) -> Picture {
    Picture {
        file: first.picture.display().to_string(),
        digest: first.digest,
    }
}

/// The pictures to measure, in an order that `seed` decides, with their latents in the store; and how many could not be used.
fn subjects(
    base: &BaseModel,
    store: &Store,
    items: Vec<Item>,
    options: &ProbeOptions,
    place: &ProbePlace,
    monitor: &dyn Monitor,
) -> Result<(Vec<Subject>, u64), Error> {
    // Copies of a picture say one thing, not two; in the digests' order, so that files' names do not matter.
    let mut by_digest = BTreeMap::<_, Vec<Item>>::new();
    for item in items {
        by_digest.entry(item.digest).or_default().push(item);
    }
    let mut groups: Vec<Vec<Item>> = by_digest.into_values().collect();
    Rng::new(options.seed, Stream::Probe, u64::MAX, 0).shuffle(&mut groups);
    groups.truncate(options.pairs);
    // One view, which is all that is measured.
    for item in groups.iter_mut().flatten() {
        item.views.truncate(1);
        if let Some(reference) = &mut item.reference {
            reference.views.truncate(1);
        }
    }
    let all: Vec<Item> = groups.iter().flatten().cloned().collect();
    let on = (&place.encode.device, &place.encode.kernels);
    let stats = encode_pictures(base, store, &dataset::viewed(&all, &[]), on, monitor)?;
    let there = measure::with_latents(base, store, groups)?;
    Ok((there, stats.failed))
}

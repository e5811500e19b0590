//! Sampling: the pictures of an Experiment's `[sample]` section, from its base model with or without a LoRA.

mod animation;
mod denoise;
mod loras;
mod metadata;
pub mod networks;
pub mod previews;
pub mod sheet;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use animation::AnimatedWebp;
pub use denoise::{SampleOptions, Sampling, decode, sample, sample_from};
use loras::open_loras;
pub use loras::{LoraUse, open_lora, read_for, refuse_other_expert};
pub use metadata::UsedLora;
use metadata::{Making, Texts};
use networks::{Network, stages};
use previews::ClipWriter;

use crate::autograd::Tape;
use crate::base_model::{self, BaseModel, placement};
use crate::cache;
use crate::convert;
use crate::dataset::{self, Preview};
use crate::encode::{self, EncodeOptions, encode_captions, encode_pictures};
use crate::experiment::Experiment;
use crate::lora::{self, AdapterSet, Bound};
use crate::models::memory::{self, CallShape};
use crate::models::{self, Denoiser, OpenedDenoiser, Placement, References};
use crate::monitor::Monitor;
use crate::nn::weights::DigestMemo;
use crate::shown;
use crate::store::{self, Store};

/// Why there are no pictures.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no caption to sample.
    #[error("there is nothing to sample: give --prompt, or `prompts` under [sample]")]
    NoPrompt,
    /// The Experiment asks for a picture that this model cannot make.
    #[error("{}: {what}", shown::path(file))]
    Setting {
        /// The Experiment's file.
        file: PathBuf,
        /// Which field, what it may be and what it is.
        what: String,
    },
    /// Neither one reference for all prompts nor one for each.
    #[error(
        "expected one reference for all prompts, or one for each of {prompts}, found {references}"
    )]
    References {
        /// How many there are.
        references: usize,
        /// How many prompts there are.
        prompts: usize,
    },
    /// A clip cannot be written.
    #[error("animated WebP: {0}")]
    Animation(String),
    /// A reference picture.
    #[error(transparent)]
    Dataset(#[from] dataset::Error),
    /// The base model.
    #[error(transparent)]
    Base(#[from] base_model::Error),
    /// The denoiser.
    #[error(transparent)]
    Model(#[from] models::Error),
    /// There is not enough memory.
    #[error(transparent)]
    Memory(#[from] memory::DoesNotFit),
    /// A caption cannot be encoded.
    #[error(transparent)]
    Encode(#[from] encode::Error),
    /// An entry.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// The LoRA's file.
    #[error(transparent)]
    Convert(#[from] convert::Error),
    /// The LoRA.
    #[error(transparent)]
    Lora(#[from] lora::Error),
    /// What the LoRA's file says of its making.
    #[error("{}: its `plumb` metadata cannot be read: {source}", shown::path(path))]
    Provenance {
        /// The LoRA's file.
        path: PathBuf,
        /// What is wrong with its JSON.
        source: serde_json::Error,
    },
    /// A LoRA of the other expert.
    #[error(
        "{}: {says} that it is of flavor `{of}`, and the Experiment is of `{flavor}`: noise levels that it was trained for are not this network's",
        shown::path(path)
    )]
    OtherExpert {
        /// The LoRA's file.
        path: PathBuf,
        /// What says so.
        says: &'static str,
        /// The flavor that it is of.
        of: &'static str,
        /// The Experiment's.
        flavor: &'static str,
    },
    /// A reference did not decode, as was told.
    #[error("a reference picture cannot be used, see above")]
    NoReference,
    /// A computation.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
    /// What was computed of finite numbers is not finite: as a picture it would be black.
    #[error("{what} NaN or infinite: {why}")]
    NotFinite {
        /// What is not finite, with its verb.
        what: String,
        /// Why that may be, and what to do.
        why: String,
    },
    /// The picture cannot be written as PNG.
    #[error("{0}")]
    Picture(#[from] image::ImageError),
    /// A file cannot be written, or the store not be read.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// A picture or clip that was written.
#[derive(Debug, Serialize)]
pub struct Written {
    /// Its caption.
    pub prompt: String,
    /// Its file: a PNG, or an animated WebP of a clip.
    pub file: PathBuf,
}

/// The pictures and clips that sampling wrote.
#[derive(Debug, Serialize)]
pub struct SampleReport {
    /// In the order of the prompts.
    pub pictures: Vec<Written>,
    /// The caption that they were steered away from; absent where it is the recipe's unconditional entry.
    pub negative_prompt: Option<String>,
}

/// Writes the pictures of an Experiment's prompts to `folder`. Captions that the store lacks are encoded into it first. `memory_bytes` of the
/// device's memory may be used: weights that do not fit are read from their files as they are needed.
///
/// # Errors
/// If there is no prompt, or a part of it all cannot be read, computed or written.
pub fn run(
    experiment: &Experiment,
    loras: &[LoraUse],
    folder: &Path,
    (options, memory_bytes): (&EncodeOptions, u64),
    memo: &mut DigestMemo,
    monitor: &dyn Monitor,
) -> Result<SampleReport, Error> {
    let base = BaseModel::open(experiment, memo)?;
    for note in &base.notes {
        monitor.note(note);
    }
    let settings = &base.settings.sample;
    store::check_file(&folder.join(file_name(settings.seed, 0, "png")))?;
    if settings.prompts.is_empty() {
        return Err(Error::NoPrompt);
    }
    previews::check(&base)?;
    let store =
        Store::open_or_create_at(&experiment.store_path().map_err(base_model::Error::from)?)?
            .waiting(options.wait);
    let references = references(&base, monitor)?;
    encode_all((&base, &store), &references, options, monitor)?;
    // Before the denoiser is loaded: a LoRA that does not fit is refused in seconds.
    let other = base.other_expert()?;
    let adapters = open_loras(loras, &base, other.as_ref(), monitor)?;
    tell_negative(&base, monitor);
    let placement = placement(experiment, &options.device, &options.kernels);
    // After encoding, whose networks are dropped by then, and of two experts one after the other: never two networks in memory.
    let call = previews::call(&base, &references);
    let (on, on_device) = (
        (&options.device, &options.kernels),
        (&placement, memory_bytes),
    );
    let own = in_files((&base.denoiser, &adapters.own), &call, on_device, monitor)?;
    let other = (other.as_ref()).map(|other| {
        in_files(
            (&other.denoiser, &adapters.other),
            &call,
            on_device,
            monitor,
        )
    });
    let stages = stages(&base, own, other.transpose()?);
    let source = previews::open(&base, &store, &references)?;
    let steps = settings.steps * settings.prompts.len();
    monitor.start("sampling", Some(steps as u64));
    let advance = || monitor.advance(1);
    let mut files: Vec<ClipWriter> = Vec::new();
    let mut take = |number, frame| {
        // Clips come one after the other.
        while files.len() <= number {
            files.push(ClipWriter::new(settings.rate));
        }
        files[number].push(frame)
    };
    previews::pictures(
        (&base, &source),
        &references,
        &stages,
        on,
        &advance,
        &mut take,
    )?;
    monitor.finish();
    let making = |number: usize, prompt: &str| {
        let reference = previews::reference(&references, number);
        let options = previews::planned(&base, reference, number as u64);
        let with = (&adapters.used[..], placement.dtype);
        Making::new(&base, prompt, &options, reference, with).texts()
    };
    write(&base, files, folder, &making)
}

/// Encodes the captions and references that the store lacks.
fn encode_all(
    (base, store): (&BaseModel, &Store),
    references: &[Preview],
    options: &EncodeOptions,
    monitor: &dyn Monitor,
) -> Result<(), Error> {
    let captions = base.experiment.extra_captions();
    let encoded = encode_captions(base, store, &captions, options, monitor)?;
    let viewed = dataset::viewed(&[], references);
    let on = (&options.device, &options.kernels);
    if encode_pictures(base, store, &viewed, on, monitor)?.failed > 0 {
        return Err(Error::NoReference);
    }
    tell_cuts(&encoded, monitor);
    Ok(())
}

/// A network that is loaded when its turn comes, kept as it fits into the memory.
fn in_files<'a>(
    (denoiser, adapters): (&'a OpenedDenoiser, &'a Option<AdapterSet>),
    call: &CallShape,
    (placement, memory_bytes): (&Placement, u64),
    monitor: &dyn Monitor,
) -> Result<Network<'a>, Error> {
    let numbers = adapters.as_ref().map_or(0, |set| set.values().len());
    let call = std::slice::from_ref(call);
    let (storage, told) = memory::fitted(denoiser, (call, numbers), placement, memory_bytes)?;
    if let Some(told) = told {
        monitor.note(&told);
    }
    Ok(Network::InFiles {
        denoiser,
        adapters: adapters.as_ref(),
        placement: Placement {
            storage,
            ..placement.clone()
        },
    })
}

/// Writes the pictures and clips of a base model's prompts, each with its making, which depends on its number and prompt.
fn write(
    base: &BaseModel,
    files: Vec<ClipWriter>,
    folder: &Path,
    making: &dyn Fn(usize, &str) -> Result<Texts, serde_json::Error>,
) -> Result<SampleReport, Error> {
    let settings = &base.settings.sample;
    let mut written = Vec::new();
    for (number, (writer, prompt)) in files.into_iter().zip(&settings.prompts).enumerate() {
        let texts = making(number, prompt).map_err(candle_core::Error::wrap)?;
        let (end, bytes) = writer.finish(Some(&texts))?;
        let file = folder.join(file_name(settings.seed, number, end));
        store::write_file(&file, &[&bytes])?;
        let prompt = prompt.clone();
        written.push(Written { prompt, file });
    }
    Ok(SampleReport {
        pictures: written,
        negative_prompt: settings.negative_prompt.clone(),
    })
}

/// The seed is in it: another seed does not overwrite the pictures.
fn file_name(seed: u64, number: usize, end: &str) -> String {
    format!("seed{seed}-{number:03}.{end}")
}

fn tell_cuts(encoded: &[encode::CaptionStats], monitor: &dyn Monitor) {
    for stats in encoded.iter().filter(|stats| stats.truncated > 0) {
        monitor.note(&format!(
            "{}: {} {} cut (`plumb inspect tokens` shows where)",
            stats.slot,
            shown::part_of(stats.truncated, stats.captions, "prompt"),
            shown::are(stats.truncated)
        ));
    }
}

/// A word on what is steered away from, where no one asked for it.
pub fn tell_negative(base: &BaseModel, monitor: &dyn Monitor) {
    let settings = &base.settings.sample;
    let steers = settings.guidance != 1.0 || settings.guidance_of_other != 1.0;
    let Some(negative) = &settings.negative_prompt else {
        return;
    };
    if steers && settings.negative_of_authors {
        let start: String = negative.chars().take(12).collect();
        monitor.note(&format!(
            "previews are steered away from the authors' negative prompt ({start}..., {} characters); `negative_prompt = \"\"` under [sample] leaves it out",
            negative.chars().count()
        ));
    }
}

/// The references of the previews, and a word where there is something to say of them.
///
/// # Errors
/// If one cannot be read.
pub fn references(base: &BaseModel, monitor: &dyn Monitor) -> Result<Vec<Preview>, Error> {
    let multiple = base.latent_geometry().side_multiple();
    let settings = &base.settings.sample;
    let found = dataset::previews(&base.experiment, settings, multiple)?;
    if matches!(base.flavor.references, Some(References::Usual(_))) && found.is_empty() {
        monitor.note(
            "no reference picture is named: the previews are made of the prompts alone, as text to picture (`references` under [sample], or \
             `plumb sample --reference FILE`, name one)",
        );
    }
    Ok(found)
}

/// Adapters for inference; none where there is no LoRA.
///
/// # Errors
/// If the device has no room.
pub fn bind(adapters: Option<&AdapterSet>, denoiser: &dyn Denoiser) -> Result<Bound, Error> {
    let Some(adapters) = adapters else {
        return Ok(Bound::none());
    };
    let tape = Tape::off(denoiser.kernels());
    let (dtype, device) = (denoiser.dtype(), denoiser.device());
    // None: dropout is for training.
    Ok(adapters.bind(&tape, dtype, device, None)?)
}

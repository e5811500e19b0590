//! Settings: what the sections of an Experiment come to for the flavor of its base model, every default filled in. Nothing but
//! this folder reads the mirror of the file.

use std::fmt::Display;
use std::path::PathBuf;

use super::clips::ClipUse;
use super::raw::{self, LrDecay, Precision, Products, QuantizedWeights, ReferenceSize, Warmup};
use super::references::ReferenceSettings;
use super::{Error, Experiment, FileMap, bounds};
use crate::diffusion::{
    Band, LossWeighting, Process, Sampler, Shift, Spacing, TimestepSampling, TimestepSpec,
};
use crate::models::Flavor;
use crate::optim::{AdamWOptions, OptimizerOptions};
use crate::recipe::latents::{Rate, Size};
use crate::recipe::spec::Dtype;
use crate::shown;

/// The guidance embedding's input in training: scale 1, as if there were none. A LoRA trained so is sampled at the usual
/// scale.
const TRAINING_GUIDANCE: f64 = 1.0;

/// Enough that a caption's order is seldom the same twice in a row, and few enough to keep.
const CAPTION_VARIANTS: u32 = 8;

/// The base model and its recipe, which need no flavor to be told.
#[derive(Clone, Debug)]
pub struct ModelSettings {
    /// The family, such as `sd3`.
    pub family: String,
    /// The flavor, such as `3.5-large`.
    pub flavor: String,
    /// The model, as the program sees the path.
    pub path: PathBuf,
    /// Components that lie elsewhere, as the program sees their paths.
    pub files: FileMap,
    /// What the denoiser's matrices are quantized into, if into anything.
    pub weights: Option<QuantizedWeights>,
    /// What the denoiser's products are computed in, if not in the type of its numbers.
    pub products: Option<Products>,
    /// What the denoiser computes in, if not in the device's usual type.
    pub compute: Option<Precision>,
    /// The recipe's variant.
    pub variant: String,
    /// Fields of the recipe that are otherwise.
    pub deviate: toml::Table,
    /// What embeddings and latents are stored in, if not as the recipe says.
    pub stored: Option<Dtype>,
}

/// A folder of captioned pictures.
#[derive(Clone, Debug)]
pub struct DatasetSettings {
    /// The folder, as the program sees the path.
    pub path: PathBuf,
    /// How often each of its pictures comes in an epoch.
    pub repeats: u32,
    /// The word that stands for what is learned: it replaces `[trigger]` in captions, and is put before those
    /// that contain neither it, as a whole word, nor the placeholder, as `word, caption`.
    pub trigger: Option<String>,
    /// Whether folders inside it are read as well.
    pub recursive: bool,
    /// Whether links that lead out of it are followed.
    pub follow_links: bool,
    /// The extension of caption files, with the dot or without; `None`: `txt`, else `caption`.
    pub caption_extension: Option<String>,
    /// The caption of pictures that have none; `None`: that is an error.
    pub default_caption: Option<String>,
    /// Whether captions may be empty, and pictures without one count as having an empty one.
    pub allow_empty_captions: bool,
    /// The variants of its captions, if it has some.
    pub tags: Option<TagSettings>,
    /// The size whose area every bucket has about.
    pub resolution: Size,
    /// Whether there are other buckets than the resolution.
    pub bucket: bool,
    /// Buckets' sides are multiples of this, in px.
    pub bucket_step_px: u32,
    /// The shortest side of a bucket, in px.
    pub min_bucket_px: u32,
    /// The longest side of a bucket, in px.
    pub max_bucket_px: u32,
    /// Whether small pictures stay small.
    pub no_upscale: bool,
    /// How many crops of each picture there are.
    pub crops: u32,
    /// Whether each crop is also there mirrored.
    pub flip: bool,
    /// What becomes of its clips.
    pub clips: ClipUse,
    /// Where the pictures' references are, if they have some.
    pub references: Option<ReferenceSettings>,
}

/// Variants of captions that are lists of tags.
#[derive(Clone, Debug, PartialEq)]
pub struct TagSettings {
    /// How many there are of a caption, itself included.
    pub variants: u32,
    /// Whether tags are shuffled.
    pub shuffle: bool,
    /// So many first tags are neither shuffled nor left out.
    pub keep: usize,
    /// What stands after the kept tags instead, and once more before kept ones at the end.
    pub separator: Option<String>,
    /// Probability with which a tag is left out.
    pub dropout: f64,
}

/// The sections that depend on the flavor.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the denoiser predicts, and along which path of noise.
    pub process: Process,
    /// Which LoRA is trained.
    pub adapter: AdapterSettings,
    /// How the LoRA is trained.
    pub train: TrainSettings,
    /// How preview pictures are sampled.
    pub sample: SampleSettings,
}

/// Which LoRA is trained.
#[derive(Clone, Debug)]
pub struct AdapterSettings {
    /// The LoRA that the training starts from.
    pub from: Option<StartSettings>,
    /// Rank of every update of a new LoRA.
    pub rank: usize,
    /// The update of a new LoRA is scaled by alpha / rank.
    pub alpha: f64,
    /// Module patterns or presets; empty: the family's default.
    pub targets: Vec<String>,
    /// Probability with which an input of the update is dropped in training.
    pub dropout: f64,
    /// The precision of the saved LoRA.
    pub save_precision: Precision,
}

/// A LoRA to start from, and what the Experiment says of it.
#[derive(Clone, Debug)]
pub struct StartSettings {
    /// The LoRA, as the program sees the path.
    pub path: PathBuf,
    /// The rank that is set; None: the LoRA's.
    pub rank: Option<usize>,
    /// The alpha that is set; None: the LoRA's.
    pub alpha: Option<f64>,
}

/// When a training ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainLength {
    /// After so many optimizer steps.
    Steps(u64),
    /// After so many passes over the data.
    Epochs(u64),
}

/// How the LoRA is trained, with the flavor's defaults filled in.
#[derive(Clone, Debug)]
pub struct TrainSettings {
    /// When it ends.
    pub length: TrainLength,
    /// The LoRA that lies beneath the trained one, as the program sees the path.
    pub training_adapter: Option<PathBuf>,
    /// The LoRA's file name, without its ending.
    pub name: String,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// What the learning rate does after warm-up.
    pub lr_schedule: LrDecay,
    /// How long the learning rate rises from 0.
    pub warmup: Warmup,
    /// Pictures in a micro-batch.
    pub batch_size: usize,
    /// Micro-batches in an optimizer step.
    pub gradient_accumulation: usize,
    /// What the gradient's norm is cut to; 0: never.
    pub max_grad_norm: f64,
    /// The optimizer, with its constants.
    pub optimizer: OptimizerOptions,
    /// What every random number derives from.
    pub seed: u64,
    /// Probability with which a caption is dropped.
    pub caption_dropout: f64,
    /// The density of a flow's noise levels.
    pub timesteps: TimestepSpec,
    /// The guidance embedding's input, where the denoiser has one.
    pub guidance: Option<f64>,
    /// How much each noise level counts.
    pub loss_weighting: LossWeighting,
    /// The most that a noise level of DDPM may count, as a signal-to-noise ratio.
    pub min_snr_gamma: Option<f64>,
    /// The standard deviation by which the noise of each channel is moved.
    pub noise_offset: f64,
    /// Gradient checkpointing of all blocks, or none; None leaves it to the memory plan.
    pub gradient_checkpointing: Option<bool>,
    /// A checkpoint every so many steps, and at the end; 0: only at the end.
    pub checkpoint_every: u64,
    /// How many checkpoints are kept.
    pub keep_checkpoints: usize,
    /// The validation loss every so many steps; 0: never.
    pub validate_every: u64,
    /// Preview pictures every so many steps; 0: never.
    pub sample_every: u64,
}

/// How preview pictures are sampled, with the flavor's defaults filled in.
#[derive(Clone, Debug)]
pub struct SampleSettings {
    /// Captions of the pictures.
    pub prompts: Vec<String>,
    /// The caption to steer away from; None: the recipe's unconditional entry.
    pub negative_prompt: Option<String>,
    /// Whether that is the one of the flavor's authors, for want of another.
    pub negative_of_authors: bool,
    /// Reference pictures, as the program sees their paths: none, one for all prompts, or one for each.
    pub references: Vec<PathBuf>,
    /// Which size they are brought to.
    pub reference_size: ReferenceSize,
    /// Width in px.
    pub width: u32,
    /// Height in px.
    pub height: u32,
    /// Frames: 1 of a picture.
    pub frames: u32,
    /// Frames a second of a clip.
    pub rate: Rate,
    /// Which sampler, one that fits the process.
    pub sampler: Sampler,
    /// Sampler steps.
    pub steps: usize,
    /// Scale of classifier-free guidance; 1 is none.
    pub guidance: f64,
    /// The same while a sample is in the other of two experts, for a flavor that has one.
    pub guidance_of_other: f64,
    /// How far each guided prediction is brought back to the spread of the conditional one, 0 to 1.
    pub guidance_rescale: f64,
    /// The guidance embedding's input, where the denoiser has one.
    pub embedded_guidance: Option<f64>,
    /// Shift of a flow's noise levels.
    pub shift: Shift,
    /// Where a flow's sampler stops.
    pub spacing: Spacing,
    /// Whether the denoiser has an embedding of the picture's size.
    pub size_conditioning: bool,
    /// What the start noise derives from.
    pub seed: u64,
}

/// What a command line says of the previews instead of the file.
#[derive(Clone, Debug, Default)]
pub struct SampleOverrides {
    /// Prompts, if any.
    pub prompts: Vec<String>,
    /// A file of prompts, seen from where the program runs.
    pub prompts_file: Option<PathBuf>,
    /// Reference pictures, seen from where the program runs, if any.
    pub references: Vec<PathBuf>,
    /// What the start noise derives from.
    pub seed: Option<u64>,
    /// Sampler steps.
    pub steps: Option<usize>,
    /// Guidance scale.
    pub guidance: Option<f64>,
}

impl DatasetSettings {
    /// [`Self::caption_extension`] without the dot.
    pub fn caption_ending(&self) -> Option<&str> {
        let chosen = self.caption_extension.as_deref();
        chosen.map(|text| text.trim_start_matches('.'))
    }
}

impl Experiment {
    /// The base model and its recipe.
    pub fn model(&self) -> ModelSettings {
        let model = &self.raw.model;
        ModelSettings {
            family: model.family.clone(),
            flavor: model.flavor.clone(),
            path: self.path(&model.path),
            files: model.files.map(|path| self.path(path)),
            weights: model.weights,
            products: model.compute,
            compute: self.raw.train.compute,
            variant: self.raw.recipe.variant.clone(),
            deviate: self.raw.recipe.deviate.clone(),
            stored: self.raw.store.precision.map(Dtype::from),
        }
    }

    /// The folders of pictures.
    pub fn datasets(&self) -> Vec<DatasetSettings> {
        self.raw
            .dataset
            .iter()
            .map(|set| self.dataset(set))
            .collect()
    }

    /// Share of the pictures held out for validation.
    pub fn validation_share(&self) -> f64 {
        self.raw.train.validation_share
    }

    /// What every random number of the training derives from.
    pub fn seed(&self) -> u64 {
        self.raw.train.seed
    }

    /// Captions that a run needs beside those of its pictures: prompts, and what stands for no caption.
    pub fn extra_captions(&self) -> Vec<String> {
        let (train, sample) = (&self.raw.train, &self.raw.sample);
        let mut captions = Vec::new();
        // The empty caption, which most recipes have for none.
        if train.caption_dropout > 0.0 {
            captions.push(String::new());
        }
        if !sample.prompts.is_empty() {
            captions.extend(sample.prompts.iter().cloned());
            captions.push(self.negative_prompt().unwrap_or_default());
        }
        captions
    }

    /// Has the previews be as a command line says.
    ///
    /// # Errors
    /// If a value is out of its range.
    pub fn override_sample(&mut self, overrides: SampleOverrides) -> Result<(), Error> {
        // A command line may say what a file may not.
        let (steps, guidance) = (overrides.steps, overrides.guidance);
        let fits = |field, has: &dyn Fn(bounds::Range) -> bool, found: &dyn Display| {
            match bounds::range(field).filter(|range| !has(*range)) {
                Some(range) => {
                    // As it was written: a float would be told with other digits.
                    Err(self.wrong(field, format!("expected {range}, found {found}")))
                }
                None => Ok(()),
            }
        };
        for (field, number) in [
            ("sample.steps", steps.map(|n| n as u64)),
            ("sample.seed", overrides.seed),
        ] {
            let number = number.unwrap_or(1);
            fits(field, &|range| range.has_whole(number.into()), &number)?;
        }
        let number = guidance.unwrap_or(1.0);
        fits(
            "sample.guidance",
            &|range| range.has(number),
            &shown::number(number),
        )?;
        let sample = &mut self.raw.sample;
        if !overrides.prompts.is_empty() || overrides.prompts_file.is_some() {
            sample.prompts = overrides.prompts;
            sample.prompts_file = None;
        }
        if !overrides.references.is_empty() {
            let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
            sample.references = overrides.references.into_iter().map(absolute).collect();
        }
        sample.seed = overrides.seed.unwrap_or(sample.seed);
        sample.steps = overrides.steps.or(sample.steps);
        sample.guidance = overrides.guidance.or(sample.guidance);
        if let Some(file) = overrides.prompts_file {
            // Seen from where the program runs, not from the Experiment's folder.
            sample.prompts_file = Some(std::path::absolute(&file).unwrap_or(file));
            self.read_prompts()?;
        }
        self.check_raw()
    }

    /// The sections that depend on the flavor.
    ///
    /// # Errors
    /// If an option means nothing to the flavor.
    pub fn settings(&self, flavor: &Flavor) -> Result<Settings, Error> {
        let process = self.process(flavor.process, flavor.embedded_guidance)?;
        let adapter = &self.raw.adapter;
        let settings = Settings {
            process,
            adapter: AdapterSettings {
                from: adapter.from.as_ref().map(|path| StartSettings {
                    path: self.path(path),
                    rank: adapter.rank,
                    alpha: adapter.alpha,
                }),
                rank: adapter.new_rank(),
                // A scale of 1, as diffusers' scripts have it; kohya's default alpha is 1 instead.
                alpha: adapter.alpha.unwrap_or(adapter.new_rank() as f64),
                targets: adapter.targets.clone(),
                dropout: adapter.dropout,
                save_precision: adapter.save_precision,
            },
            train: self.train(flavor),
            sample: self.previews(flavor),
        };
        self.check_effects(&settings)?;
        Ok(settings)
    }

    fn dataset(&self, set: &raw::Dataset) -> DatasetSettings {
        let [width, height] = set.resolution.sides();
        DatasetSettings {
            path: self.path(&set.path),
            repeats: set.repeats,
            trigger: set.trigger.clone(),
            recursive: set.recursive,
            follow_links: set.follow_links,
            caption_extension: set.caption_extension.clone(),
            default_caption: set.default_caption.clone(),
            allow_empty_captions: set.allow_empty_captions,
            tags: set.varies_tags().then(|| TagSettings {
                variants: set.caption_variants.unwrap_or(CAPTION_VARIANTS),
                shuffle: set.shuffle_tags,
                keep: set.keep_tags,
                separator: set.keep_tags_separator.clone(),
                dropout: set.tag_dropout,
            }),
            resolution: Size { width, height },
            bucket: set.bucket,
            bucket_step_px: set.bucket_step,
            min_bucket_px: set.min_bucket_px(),
            max_bucket_px: set.max_bucket_px(),
            no_upscale: set.no_upscale,
            crops: set.crops,
            flip: set.flip,
            clips: self.clips(set),
            references: self.references(set),
        }
    }

    fn train(&self, flavor: &Flavor) -> TrainSettings {
        let train = &self.raw.train;
        let sampling = train.timestep_sampling;
        TrainSettings {
            length: match (train.steps, train.epochs) {
                (None, Some(epochs)) => TrainLength::Epochs(epochs),
                // A training that has neither is refused before it begins.
                (steps, _) => TrainLength::Steps(steps.unwrap_or_default()),
            },
            training_adapter: train.training_adapter.as_ref().map(|path| self.path(path)),
            name: train.name.clone(),
            learning_rate: train.learning_rate,
            lr_schedule: train.lr_schedule,
            warmup: train.warmup_steps,
            batch_size: train.batch_size,
            gradient_accumulation: train.gradient_accumulation,
            max_grad_norm: train.max_grad_norm,
            optimizer: OptimizerOptions::AdamW(AdamWOptions {
                beta1: train.beta1,
                beta2: train.beta2,
                epsilon: train.epsilon,
                weight_decay: train.weight_decay,
            }),
            seed: train.seed,
            caption_dropout: train.caption_dropout,
            timesteps: TimestepSpec {
                sampling: sampling.unwrap_or(TimestepSampling::LogitNormal),
                logit_mean: train.logit_mean,
                logit_std: train.logit_std,
                mode_scale: train.mode_scale,
                shift: train.shift.unwrap_or(flavor.shift),
                band: flavor.expert.map_or(Band::WHOLE, |expert| expert.levels),
            },
            guidance: (flavor.embedded_guidance)
                .map(|_| train.guidance.unwrap_or(TRAINING_GUIDANCE)),
            loss_weighting: train.loss_weighting,
            min_snr_gamma: train.min_snr_gamma,
            noise_offset: train.noise_offset,
            gradient_checkpointing: train.gradient_checkpointing,
            checkpoint_every: train.checkpoint_every,
            keep_checkpoints: train.keep_checkpoints,
            validate_every: train.validate_every,
            sample_every: train.sample_every,
        }
    }
}

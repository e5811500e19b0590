//! The mirror of the Experiment file. Each default stands at its field.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::diffusion::{LossWeighting, Sampler, Shift, TimestepSampling};
use crate::recipe::spec::Dtype;

/// An Experiment: a base model, its data, the recipe, the adapter and the training.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Plumb Experiment")]
pub struct Raw {
    /// The base model.
    pub model: Model,
    /// How the base model's conditioning is made.
    #[serde(default)]
    pub recipe: Recipe,
    /// Where embeddings and latents are kept.
    pub store: Store,
    /// Folders of captioned pictures.
    #[serde(default)]
    pub dataset: Vec<Dataset>,
    /// The LoRA.
    #[serde(default)]
    pub adapter: Adapter,
    /// The training.
    pub train: Train,
    /// Preview pictures.
    #[serde(default)]
    pub sample: Sample,
}

/// The base model.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The family, such as `sd3`.
    pub family: String,
    /// The flavor, such as `3.5-large`.
    pub flavor: String,
    /// A folder as diffusers writes it, a single file with the denoiser (safetensors or GGUF), or one of these on
    /// the hub: `hf://owner/name@revision`, `hf://owner/name/file@revision`.
    pub path: PathBuf,
    /// What the denoiser predicts, where a fine-tune of SD1.5 or SDXL differs from its flavor.
    pub prediction: Option<DdpmPrediction>,
    /// Whether the noise schedule of SD1.5 or SDXL ends in pure noise, as some fine-tunes were trained.
    #[serde(default)]
    pub zero_terminal_snr: bool,
    /// Files or folders of components that are not under `path`.
    #[serde(default)]
    pub files: FileMap,
}

/// What a denoiser of the DDPM kind predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DdpmPrediction {
    /// The noise.
    Epsilon,
    /// The velocity.
    V,
}

/// Components that live apart from the model's path, by component name: files, folders, or addresses on the hub.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileMap {
    /// CLIP-L weights.
    pub clip_l: Option<PathBuf>,
    /// CLIP-G weights.
    pub clip_g: Option<PathBuf>,
    /// T5 weights.
    pub t5: Option<PathBuf>,
    /// VAE weights.
    pub vae: Option<PathBuf>,
    /// The folder of CLIP-L's tokenizer.
    pub clip_l_tokenizer: Option<PathBuf>,
    /// The folder of CLIP-G's tokenizer.
    pub clip_g_tokenizer: Option<PathBuf>,
    /// The folder of T5's tokenizer.
    pub t5_tokenizer: Option<PathBuf>,
    /// The `config.json` of CLIP-L, where the file does not lie beside its own.
    pub clip_l_config: Option<PathBuf>,
    /// The `config.json` of CLIP-G.
    pub clip_g_config: Option<PathBuf>,
    /// The `config.json` of T5.
    pub t5_config: Option<PathBuf>,
    /// The `config.json` of the VAE.
    pub vae_config: Option<PathBuf>,
}

impl FileMap {
    /// The paths that are named.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let all = [
            &self.clip_l,
            &self.clip_g,
            &self.t5,
            &self.vae,
            &self.clip_l_tokenizer,
            &self.clip_g_tokenizer,
            &self.t5_tokenizer,
            &self.clip_l_config,
            &self.clip_g_config,
            &self.t5_config,
            &self.vae_config,
        ];
        all.into_iter().filter_map(Option::as_deref)
    }

    /// The same with every path changed.
    #[must_use]
    pub fn map(&self, change: impl Fn(&Path) -> PathBuf) -> Self {
        let at = |path: &Option<PathBuf>| path.as_deref().map(&change);
        Self {
            clip_l: at(&self.clip_l),
            clip_g: at(&self.clip_g),
            t5: at(&self.t5),
            vae: at(&self.vae),
            clip_l_tokenizer: at(&self.clip_l_tokenizer),
            clip_g_tokenizer: at(&self.clip_g_tokenizer),
            t5_tokenizer: at(&self.t5_tokenizer),
            clip_l_config: at(&self.clip_l_config),
            clip_g_config: at(&self.clip_g_config),
            t5_config: at(&self.t5_config),
            vae_config: at(&self.vae_config),
        }
    }
}

/// A floating-point type of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

impl From<Precision> for Dtype {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::F16 => Self::F16,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

/// How conditioning is made.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The recipe's variant: `reference` (the authors' code), `diffusers`, `kohya`, ...
    #[serde(default = "reference")]
    pub variant: String,
    /// Fields in which this Experiment deviates, each by name: `t5.tokens.max_tokens = 154`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub deviate: toml::Table,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            variant: reference(),
            deviate: toml::Table::new(),
        }
    }
}

/// The cache.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// The store's folder; made when it is not there.
    pub path: PathBuf,
    /// The precision in which embeddings and latents are kept; the default is the recipe's, and f32 for
    /// latents.
    pub precision: Option<Precision>,
}

/// One folder of captioned pictures.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    /// The folder: pictures with a .txt or .caption beside each, or a metadata.jsonl.
    pub path: PathBuf,
    /// How often each picture comes in an epoch.
    #[serde(default = "one")]
    pub repeats: u32,
    /// The word for what is learned: it replaces `[trigger]` in captions, and is put before those that contain
    /// neither, as `word, caption`.
    pub trigger: Option<String>,
    /// Whether folders inside it are read as well.
    #[serde(default)]
    pub recursive: bool,
    /// The extension of caption files, without the dot; the default is `txt`, else `caption`.
    pub caption_extension: Option<String>,
    /// The caption of pictures that have none.
    pub default_caption: Option<String>,
    /// Whether captions may be empty, and pictures without one count as having an empty one.
    #[serde(default)]
    pub allow_empty_captions: bool,
    /// Side of a square whose area every bucket has about, in px.
    #[serde(default = "resolution")]
    pub resolution: u32,
    /// Whether pictures are sorted into aspect-ratio buckets; else all are cropped square.
    #[serde(default = "yes")]
    pub bucket: bool,
    /// Buckets' sides are multiples of this, in px.
    #[serde(default = "bucket_step")]
    pub bucket_step: u32,
    /// The shortest side of a bucket, in px; the default is 256, or less for small resolutions.
    pub min_bucket: Option<u32>,
    /// The longest side of a bucket, in px; the default is twice the resolution.
    pub max_bucket: Option<u32>,
    /// Whether small pictures stay small instead of being enlarged to a bucket.
    #[serde(default)]
    pub no_upscale: bool,
    /// How many crops of each picture there are, spread evenly along what its bucket cuts off; 1: the middle.
    /// A step uses one of them, drawn from the seed.
    #[serde(default = "one")]
    pub crops: u32,
    /// Whether each crop is also there mirrored.
    #[serde(default)]
    pub flip: bool,
}

/// The LoRA.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// Rank of every update.
    #[serde(default = "rank")]
    pub rank: usize,
    /// The update is scaled by alpha / rank; the default is the rank.
    pub alpha: Option<f64>,
    /// Module patterns (`*` matches anything), or presets of the family such as `attention`,
    /// `attention+mlp`, `all-linear`; empty: the family's default.
    #[serde(default)]
    pub targets: Vec<String>,
    /// Probability with which an input of the update is dropped in training.
    #[serde(default)]
    pub dropout: f64,
    /// The precision of the saved LoRA.
    #[serde(default = "f32_precision")]
    pub save_precision: Precision,
}

impl Default for Adapter {
    fn default() -> Self {
        Self {
            rank: rank(),
            alpha: None,
            targets: Vec::new(),
            dropout: 0.0,
            save_precision: f32_precision(),
        }
    }
}

/// The training.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Optimizer steps.
    pub steps: u64,
    /// The folder for the LoRA, checkpoints, metrics and previews.
    pub output: PathBuf,
    /// The LoRA's file name, without its ending.
    #[serde(default = "name")]
    pub name: String,
    /// The highest learning rate.
    #[serde(default = "learning_rate")]
    pub learning_rate: f64,
    /// What the learning rate does after warm-up.
    #[serde(default)]
    pub lr_schedule: LrDecay,
    /// Steps over which the learning rate rises from 0.
    #[serde(default)]
    pub warmup_steps: u64,
    /// Pictures in a micro-batch.
    #[serde(default = "one_usize")]
    pub batch_size: usize,
    /// Micro-batches in an optimizer step.
    #[serde(default = "one_usize")]
    pub gradient_accumulation: usize,
    /// The gradient's norm is cut to this; 0: never.
    #[serde(default = "one_f64")]
    pub max_grad_norm: f64,
    /// AdamW's decay of the first moment.
    #[serde(default = "beta1")]
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    #[serde(default = "beta2")]
    pub beta2: f64,
    /// AdamW's epsilon.
    #[serde(default = "epsilon")]
    pub epsilon: f64,
    /// AdamW's decoupled weight decay.
    #[serde(default = "weight_decay")]
    pub weight_decay: f64,
    /// What every random number derives from.
    #[serde(default)]
    pub seed: u64,
    /// Probability with which a caption is replaced by the recipe's unconditional entry.
    #[serde(default)]
    pub caption_dropout: f64,
    /// The density of the noise levels; the default is `logit_normal` for a flow. DDPM's steps are visited evenly
    /// (`uniform`).
    pub timestep_sampling: Option<TimestepSampling>,
    /// Mean of the normal of `logit_normal`.
    #[serde(default)]
    pub logit_mean: f64,
    /// Standard deviation of the normal of `logit_normal`.
    #[serde(default = "one_f64")]
    pub logit_std: f64,
    /// The scale of `mode`.
    #[serde(default = "mode_scale")]
    pub mode_scale: f64,
    /// The shift of a flow's noise levels, a number or `resolution`; the default is the flavor's. With `logit_normal`,
    /// `resolution` is what others call `flux_shift`, and 1 what they call `sigmoid`.
    pub shift: Option<Shift>,
    /// What a model that is told its guidance (FLUX.1-dev) is told in training; the default is 1.
    pub guidance: Option<f64>,
    /// How much each noise level counts.
    #[serde(default = "no_weighting")]
    pub loss_weighting: LossWeighting,
    /// No noise level counts more than one of this signal-to-noise ratio (min-SNR weighting; 5 is usual). For SD1.5
    /// and SDXL.
    pub min_snr_gamma: Option<f64>,
    /// The noise of each channel is moved by a normal number times this (0.05 is usual), for darker and brighter
    /// pictures. For SD1.5 and SDXL.
    #[serde(default)]
    pub noise_offset: f64,
    /// Whether blocks are computed twice to save memory.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// A checkpoint every so many steps, and at the end; 0: only at the end.
    #[serde(default = "checkpoint_every")]
    pub checkpoint_every: u64,
    /// How many checkpoints are kept.
    #[serde(default = "keep_checkpoints")]
    pub keep_checkpoints: usize,
    /// The validation loss every so many steps; 0: never.
    #[serde(default)]
    pub validate_every: u64,
    /// Share of the pictures held out for validation.
    #[serde(default)]
    pub validation_share: f64,
    /// Preview pictures every so many steps; 0: never.
    #[serde(default)]
    pub sample_every: u64,
}

impl Train {
    /// What changes the trained numbers, as JSON: no paths, names, or reporting.
    pub(super) fn effective(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(map) = value.as_object_mut() {
            for reporting in [
                "output",
                "name",
                "checkpoint_every",
                "keep_checkpoints",
                "validate_every",
                "sample_every",
                "gradient_checkpointing",
            ] {
                map.remove(reporting);
            }
        }
        value
    }
}

/// What the learning rate does after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LrDecay {
    /// It stays.
    #[default]
    Constant,
    /// It falls to 0 along half a cosine.
    Cosine,
    /// It falls to 0 along a line.
    Linear,
}

/// Preview pictures.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sample {
    /// Captions of the pictures.
    pub prompts: Vec<String>,
    /// The caption to steer away from; the default is the recipe's unconditional entry.
    pub negative_prompt: Option<String>,
    /// Width in px; the default is the first data set's resolution.
    pub width: Option<u32>,
    /// Height in px.
    pub height: Option<u32>,
    /// How the sampler walks; the default is the flavor's.
    pub sampler: Option<Sampler>,
    /// Sampler steps; the default is the flavor's.
    pub steps: Option<usize>,
    /// Guidance scale; the default is the flavor's. A model that is told its guidance (FLUX.1-dev) is told this one, at
    /// no cost; with others it is classifier-free guidance.
    pub guidance: Option<f64>,
    /// Scale of classifier-free guidance for a model that is told its guidance, at twice the time; the default is none.
    pub true_cfg: Option<f64>,
    /// Shift of a flow's noise levels, a number or `resolution`; the default is the flavor's.
    pub shift: Option<Shift>,
    /// What the start noise derives from.
    pub seed: u64,
}

fn reference() -> String {
    "reference".to_owned()
}

fn name() -> String {
    "lora".to_owned()
}

fn f32_precision() -> Precision {
    Precision::F32
}

fn one() -> u32 {
    1
}

fn one_usize() -> usize {
    1
}

fn one_f64() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

fn resolution() -> u32 {
    1024
}

fn bucket_step() -> u32 {
    64
}

fn rank() -> usize {
    16
}

fn learning_rate() -> f64 {
    1e-4
}

fn beta1() -> f64 {
    0.9
}

fn beta2() -> f64 {
    0.999
}

fn epsilon() -> f64 {
    1e-8
}

fn weight_decay() -> f64 {
    0.01
}

fn no_weighting() -> LossWeighting {
    LossWeighting::None
}

fn mode_scale() -> f64 {
    1.29
}

fn checkpoint_every() -> u64 {
    500
}

fn keep_checkpoints() -> usize {
    3
}

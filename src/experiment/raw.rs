//! The mirror of the Experiment file. Each default stands at its field. `[train]` has a file of its own.

mod files;
mod train;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::diffusion::{Sampler, Shift};
use crate::recipe::spec::Dtype;

pub use files::{FileMap, SlotFiles};
pub use train::{LrDecay, Train};

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
    /// What the denoiser of SD1.5 or SDXL predicts; the default is what the checkpoint says of itself, else its flavor's.
    pub prediction: Option<DdpmPrediction>,
    /// Whether the noise schedule of SD1.5 or SDXL ends in pure noise, as some fine-tunes were trained; the default is what the
    /// checkpoint says of itself, else false.
    pub zero_terminal_snr: Option<bool>,
    /// Quantize the denoiser's matrices, to fit a larger model into memory; each is dequantized when it is used.
    /// The LoRA is then trained on a model that is near the base, not equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<QuantizedWeights>,
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

/// How matrices are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QuantizedWeights {
    /// 8-bit floats (`float8_e4m3fn`) with a scale for each output.
    Fp8,
    /// 8-bit integers with a scale for each output.
    Int8,
    /// 4-bit NormalFloats with a scale for each 64 numbers (QLoRA).
    Nf4,
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
    /// Guidance scale; the default is the flavor's. A guidance-distilled model (FLUX.1-dev) has it in its guidance embedding, at
    /// no cost; with others it is classifier-free guidance.
    pub guidance: Option<f64>,
    /// Scale of classifier-free guidance for a guidance-distilled model, at twice the time; the default is none.
    pub true_cfg: Option<f64>,
    /// Shift of a flow's noise levels, a number or `resolution`; the default is the flavor's.
    pub shift: Option<Shift>,
    /// What the start noise derives from.
    pub seed: u64,
}

fn reference() -> String {
    "reference".to_owned()
}

fn f32_precision() -> Precision {
    Precision::F32
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

// SDXL, SD3 and FLUX.1 were trained at 1024 px.
fn resolution() -> u32 {
    1024
}

// kohya's `--bucket_reso_steps`.
fn bucket_step() -> u32 {
    64
}

fn rank() -> usize {
    16
}

//! The mirror of the Experiment file. Each default stands at its field. `[train]` has a file of its own.

mod files;
mod frames;
mod resolution;
mod train;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::diffusion::{Prediction, Sampler, Shift};
use crate::recipe::spec::Dtype;

pub use files::{FileMap, SlotFiles};
pub use frames::{FrameCounts, Windows};
pub use resolution::Resolution;
pub use train::{LrDecay, Train, Warmup};

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
    #[serde(default)]
    pub store: Store,
    /// Folders of captioned pictures.
    #[serde(default)]
    pub dataset: Vec<Dataset>,
    /// The LoRA.
    #[serde(default)]
    pub adapter: Adapter,
    /// The training; only `plumb train` needs it.
    #[serde(default)]
    pub train: Train,
    /// Preview pictures.
    #[serde(default)]
    pub sample: Sample,
}

impl Raw {
    /// The fields with paths, and what they say.
    pub(super) fn paths(&self) -> Vec<(&'static str, PathBuf)> {
        let model = std::iter::once(("model.path", Some(&self.model.path)));
        let others = [
            ("store.path", self.store.path.as_ref()),
            ("store.cache", self.store.cache.as_ref()),
            ("adapter.from", self.adapter.from.as_ref()),
            ("train.output", self.train.output.as_ref()),
            (
                "train.training_adapter",
                self.train.training_adapter.as_ref(),
            ),
            ("sample.prompts_file", self.sample.prompts_file.as_ref()),
        ];
        let sets = self.dataset.iter().flat_map(|set| {
            [
                ("dataset.path", Some(&set.path)),
                ("dataset.references", set.references.as_ref()),
            ]
        });
        let of_previews = self.sample.references.iter();
        let of_previews = of_previews.map(|path| ("sample.references", Some(path)));
        let named = model.chain(others).chain(sets).chain(of_previews);
        let files = self
            .model
            .files
            .paths()
            .map(|path| ("model.files", path.to_owned()));
        named
            .filter_map(|(field, path)| Some((field, path?.clone())))
            .chain(files)
            .collect()
    }
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
    /// Multiply by the denoiser's matrices in 8-bit floats, as torchao's fp8 training does: matrices and their inputs are rounded to
    /// `float8_e4m3fn`, gradients to `float8_e5m2`, each tensor with a scale of its own, found anew in every step. Meant for GPUs from Ada on;
    /// a CPU rounds the same and is no faster. The LoRA is then trained on a model that is near the base, not equal. Beside it,
    /// `weights = "fp8"` keeps each matrix once where it is else kept twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<Products>,
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

impl From<DdpmPrediction> for Prediction {
    fn from(prediction: DdpmPrediction) -> Self {
        match prediction {
            DdpmPrediction::Epsilon => Self::Epsilon,
            DdpmPrediction::V => Self::Velocity,
        }
    }
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

/// What products of matrices are computed in, if not in the type of the numbers beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Products {
    /// 8-bit floats, with a scale for each tensor.
    Fp8,
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
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// The store's folder; made when it is not there. Every command needs it that encodes or reads what was encoded. Or an address
    /// on object storage: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, or `https://host/folder` to read from.
    /// Credentials come from the usual variables (`AWS_ACCESS_KEY_ID`, ...).
    pub path: Option<PathBuf>,
    /// Of a store on object storage, the folder that keeps what was read from there; the default is one in the user's cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// Of a store on object storage, how much that folder keeps, in GB of packs; without it all that was read or encoded here. Those that
    /// nobody read for longest go first, and are fetched again when they are read; what is not pushed yet stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_gb: Option<f64>,
    /// Of a store on object storage, whether packs are written there in shared form: fewer bytes, nothing lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub compress: bool,
    /// The precision in which embeddings and latents are kept; the default is the recipe's, and f32 for
    /// latents.
    pub precision: Option<Precision>,
}

/// One folder of captioned pictures.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    /// The folder: pictures with a .txt or .caption beside each, or a metadata.jsonl or metadata.csv.
    pub path: PathBuf,
    /// How often each picture comes in an epoch.
    #[serde(default = "one")]
    pub repeats: u32,
    /// The word, or words, for what is learned: it replaces `[trigger]` in captions, and is put before those that contain
    /// neither, as `word, caption`. Inside a longer word it does not count, nor with other capitals.
    pub trigger: Option<String>,
    /// Whether folders inside it are read as well.
    #[serde(default)]
    pub recursive: bool,
    /// Whether links that lead out of the folder are followed; else they are left out, and told.
    #[serde(default)]
    pub follow_links: bool,
    /// The extension of caption files, without the dot; the default is `txt`, else `caption`.
    pub caption_extension: Option<String>,
    /// The caption of pictures that have none.
    pub default_caption: Option<String>,
    /// Whether captions may be empty, and pictures without one count as having an empty one.
    #[serde(default)]
    pub allow_empty_captions: bool,
    /// Whether captions are lists of tags, separated by commas, of which there are variants with the tags in other orders. Each is
    /// encoded like any caption; a step uses one of them, drawn from the seed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shuffle_tags: bool,
    /// So many first tags of a caption stay where they are (kohya's `keep_tokens`).
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub keep_tags: usize,
    /// What stands in a caption after the tags that are kept, such as `|||`, instead of their number; after a second one all tags
    /// are kept too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_tags_separator: Option<String>,
    /// Probability with which a tag that is not kept is left out of a variant.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tag_dropout: f64,
    /// How many variants of each caption there are, the caption in its own order included; the default is 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caption_variants: Option<u32>,
    /// What every bucket has about the area of: a square of this side in px, or `[width, height]`.
    #[serde(default = "resolution")]
    pub resolution: Resolution,
    /// Whether pictures are sorted into aspect-ratio buckets; else all are cropped to the resolution.
    #[serde(default = "yes")]
    pub bucket: bool,
    /// Buckets' sides are multiples of this, in px.
    #[serde(default = "bucket_step")]
    pub bucket_step: u32,
    /// The shortest side of a bucket, in px; the default is 256, or less for small resolutions, in
    /// whole steps.
    pub min_bucket: Option<u32>,
    /// The longest side of a bucket, in px; the default is twice the resolution's longer side, in whole
    /// steps.
    pub max_bucket: Option<u32>,
    /// Whether small pictures stay small instead of being enlarged to a bucket.
    #[serde(default)]
    pub no_upscale: bool,
    /// How many crops of each picture there are, spread evenly along what its bucket cuts off; 1: the middle.
    /// A step uses one of them, drawn from the seed.
    #[serde(default = "one")]
    pub crops: u32,
    /// Whether each crop is also there mirrored, its reference with it.
    #[serde(default)]
    pub flip: bool,
    /// For a family that makes videos: how many frames are taken of a clip, or several such numbers; 1 more than a multiple of 4 (17,
    /// 33, 81). Clips are videos, which need `ffmpeg`, animated GIF, WebP and PNG, and folders of numbered frames with a caption of
    /// the folder's name beside them. Without this there are pictures alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames: Option<FrameCounts>,
    /// Frames a second that clips are brought to, by leaving out or repeating some; the default is 16, as Wan 2.1 has it. Numbered
    /// frames are taken as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame_rate: Option<f64>,
    /// Which frames of a clip: the default is `head`. Each window is a sample of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<Windows>,
    /// So many seconds of each clip's beginning are left out; the default is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_start: Option<f64>,
    /// For a flavor that is given another picture beside each one (FLUX.1 Kontext; FLUX.2 klein can be): the folder of these references, each with the
    /// name of its picture and any ending of a picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub references: Option<PathBuf>,
    /// Instead of a folder: the field of metadata.jsonl, or column of metadata.csv, that names each picture's reference by a path
    /// below the list's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_column: Option<String>,
    /// Which size references are brought to; the default is `target`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_size: Option<ReferenceSize>,
    /// Whether FLUX.1 Kontext is trained on these pictures without references, as on text to picture.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_references: bool,
}

/// Which size a reference picture is brought to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceSize {
    /// Resized, cropped and mirrored as the picture that it stands beside, as trainers have it.
    #[default]
    Target,
    /// The whole of it, whatever size the other has, as diffusers' pipeline of the model has it: of Kontext in that of its authors' sizes
    /// that is nearest in shape, about a megapixel; of klein in its own up to a megapixel.
    Preferred,
}

/// The LoRA.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// A LoRA to start from, in the naming of any program that `plumb import lora` reads: a file, or a folder that PEFT saved. Rank,
    /// alpha and targets are then its own where they are not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// Rank of every update; the default is 16, or that of the LoRA it starts from.
    #[serde(default, serialize_with = "rank_or_default")]
    #[schemars(default = "default_rank", with = "usize")]
    pub rank: Option<usize>,
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
    /// Each default stands at its field: a section without fields has them all.
    fn default() -> Self {
        toml::from_str("").expect("no field is required")
    }
}

/// Preview pictures.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sample {
    /// Captions of the pictures.
    pub prompts: Vec<String>,
    /// A text file of such captions instead, one a line; lines that begin with `#` are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompts_file: Option<PathBuf>,
    /// Reference pictures, for a flavor that is given one (FLUX.1 Kontext, FLUX.2 klein): one for all prompts, or one for each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<PathBuf>,
    /// Which size they are brought to; the default is that of the first data set, or else `preferred`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_size: Option<ReferenceSize>,
    /// The caption to steer away from; the default is that of the flavor's authors where they have one (Wan), or else the recipe's
    /// unconditional entry. An empty one is none.
    pub negative_prompt: Option<String>,
    /// Width in px; the default is the first data set's resolution, in whole steps of its buckets. With a reference, and neither width
    /// nor height, it is that of the reference in a bucket of that data set, or else as `preferred`.
    pub width: Option<u32>,
    /// Height in px.
    pub height: Option<u32>,
    /// For a family that makes videos: how many frames, 1 more than a multiple of 4; the default is the largest of `frames` of the first
    /// data set, or else 1. One frame is a PNG, more are an animated WebP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames: Option<u32>,
    /// Frames a second of the WebP; the default is that of the first data set, or else 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame_rate: Option<f64>,
    /// How the sampler walks; the default is the flavor's.
    pub sampler: Option<Sampler>,
    /// Sampler steps; the default is the flavor's.
    pub steps: Option<usize>,
    /// Guidance scale; the default is the flavor's. A guidance-distilled model (FLUX.1-dev) has it in its guidance embedding, at
    /// no cost. With others it is classifier-free guidance g: from the prediction without the prompt, g times the way to that with it.
    /// 1 is none, at half of the time, and less than 1 is refused. Z-Image's authors and diffusers' pipeline for it count from the
    /// prediction with the prompt on, so that their number is g - 1: their 0 is 1 here, and their 4 is 5.
    pub guidance: Option<f64>,
    /// Scale of classifier-free guidance for a guidance-distilled model, at twice the time; the default is none.
    pub true_cfg: Option<f64>,
    /// How far classifier-free guidance is kept from widening what is predicted, 0 (not at all) to 1: against the glaring colors of
    /// models whose noise schedule ends in pure noise.
    #[serde(skip_serializing_if = "is_zero")]
    pub guidance_rescale: f64,
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

fn is_nothing(number: &usize) -> bool {
    *number == 0
}

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

// SDXL, SD3 and FLUX.1 were trained at 1024 px.
fn resolution() -> Resolution {
    Resolution::Side(1024)
}

// kohya's `--bucket_reso_steps`.
fn bucket_step() -> u32 {
    64
}

fn default_rank() -> usize {
    16
}

/// Fingerprints have the default as they had when it was no option to leave it open.
fn rank_or_default<S: serde::Serializer>(
    rank: &Option<usize>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    rank.unwrap_or_else(default_rank).serialize(serializer)
}

impl Adapter {
    /// The rank of new adapters.
    pub fn new_rank(&self) -> usize {
        self.rank.unwrap_or_else(default_rank)
    }
}

//! The `[train]` section.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Precision;
use crate::diffusion::{LossWeighting, Shift, TimestepSampling};

/// The training. Its length is given as `steps` or as `epochs`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("not" = { "required": ["steps", "epochs"] }))]
pub struct Train {
    /// Optimizer steps: a training needs these or `epochs`, and `output`; other commands need neither. Raised after a training, they
    /// let it go on.
    pub steps: Option<u64>,
    /// Passes over the data instead of steps: each picture as often as its data set's `repeats`. The last step is filled up from the
    /// next pass where `gradient_accumulation` asks for it.
    pub epochs: Option<u64>,
    /// The folder for the LoRA, checkpoints, metrics and previews.
    pub output: Option<PathBuf>,
    /// A LoRA that lies beneath the trained one for as long as that is trained, and is left out of previews and of the file: a training adapter
    /// (`assistant_lora_path` in ai-toolkit), for base models that are distilled to a few steps. In the naming of any program that
    /// `plumb import lora` reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_adapter: Option<PathBuf>,
    /// The LoRA's file name, without its ending.
    #[serde(default = "name")]
    pub name: String,
    /// The highest learning rate.
    #[serde(default = "learning_rate")]
    pub learning_rate: f64,
    /// What the learning rate does after warm-up.
    #[serde(default)]
    pub lr_schedule: LrDecay,
    /// Steps over which the learning rate rises from 0: their number, or a share of all steps (0.1), rounded down.
    #[serde(default)]
    pub warmup_steps: Warmup,
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
    /// Mean of the normal of `logit_normal`. Above 0 there is more noise, as in the SD3 paper. diffusers' scripts, and kohya's for
    /// FLUX.1, take the drawn number as a place in a list that falls from noise: with them a mean above 0 is less noise, so turn its sign.
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
    /// The guidance embedding's input in training, for guidance-distilled models (FLUX.1-dev); the default is 1.
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
    /// Gradient checkpointing: on all blocks, or none. The default is on as many as the memory asks for. It changes no number.
    pub gradient_checkpointing: Option<bool>,
    /// What the base model computes in, `f32` or `bf16`; the adapters, their gradients and the loss are f32 anyway. The
    /// default is f32 on a CPU and bf16 on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<Precision>,
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

/// How long the learning rate rises.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a number of steps, or a share of all steps below 1"
)]
pub enum Warmup {
    /// So many steps.
    Steps(u64),
    /// A part of all steps, at least 0 and less than 1. kohya's `lr_warmup_steps` is read so too.
    Share(f64),
}

impl Warmup {
    /// The steps of warm-up in a training of `steps` steps.
    pub fn of(self, steps: u64) -> u64 {
        match self {
            Self::Steps(number) => number,
            // Rounded down, as kohya's scripts do.
            Self::Share(share) => (share * steps as f64) as u64,
        }
    }
}

impl Default for Warmup {
    fn default() -> Self {
        Self::Steps(0)
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

impl Default for Train {
    /// Each default stands at its field: a section without fields has them all.
    fn default() -> Self {
        toml::from_str("").expect("no field is required")
    }
}

fn name() -> String {
    "lora".to_owned()
}

fn one_usize() -> usize {
    1
}

fn one_f64() -> f64 {
    1.0
}

// The default of diffusers' DreamBooth LoRA scripts.
fn learning_rate() -> f64 {
    1e-4
}

// Betas, epsilon and weight decay are the defaults of PyTorch's `AdamW`.
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

// `rf/mode(1.29)` in Esser et al. 2024 (arXiv:2403.03206); the default of diffusers' scripts too.
fn mode_scale() -> f64 {
    1.29
}

// `--checkpointing_steps` of diffusers' scripts.
fn checkpoint_every() -> u64 {
    500
}

fn keep_checkpoints() -> usize {
    3
}

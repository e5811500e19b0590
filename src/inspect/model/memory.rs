//! Bytes in memory while encoding and training.

use serde::Serialize;

use crate::base_model;
use crate::experiment::{DatasetSettings, Experiment};
use crate::lora;
use crate::models::{self, Flavor, OpenedDenoiser, References, WeightStorage};
use crate::optim::OptimizerOptions;
use crate::recipe::Recipe;
use crate::train::plan::{self, Machine, MemoryRequest, PeakMemory};
use crate::vae::{Extents, Factors, LatentGeometry};

/// The rank that a training's estimate is for.
pub const ADAPTER_RANK: usize = 16;

/// What a training is to be estimated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The largest picture or clip, in px.
    pub pixels: Extents,
    /// How many of them there are in a micro-batch.
    pub samples: usize,
    /// The adapters' rank.
    pub rank: usize,
    /// Whether it makes previews, which pass through the other of two experts as well.
    pub previews: bool,
}

impl Asked {
    /// What an Experiment asks for: its largest resolution with its most frames.
    ///
    /// # Errors
    /// If it names no flavor, or an option means nothing to that.
    pub fn of(experiment: &Experiment) -> Result<Self, base_model::Error> {
        let model = experiment.model();
        let flavor = models::family(&model.family)?.flavor(&model.flavor)?;
        let settings = experiment.settings(flavor)?;
        let extents = |set: &DatasetSettings| {
            let frames = set
                .clip_settings()
                .and_then(|clips| clips.frames.iter().max());
            Extents {
                frames: frames.map_or(1, |&frames| frames as usize),
                height: set.resolution.height as usize,
                width: set.resolution.width as usize,
            }
        };
        let volume = |pixels: &Extents| pixels.frames * pixels.height * pixels.width;
        let sets = experiment.datasets();
        let largest = sets.iter().map(extents).max_by_key(volume);
        Ok(Self {
            pixels: largest.unwrap_or_else(|| of_flavor(flavor)),
            samples: settings.train.batch_size,
            rank: settings.adapter.rank,
            previews: settings.train.sample_every > 0,
        })
    }
}

/// A picture of the size that a flavor was trained for.
fn of_flavor(flavor: &Flavor) -> Extents {
    let side = flavor.resolution_px as usize;
    Extents::picture(side, side)
}

/// Peak memory of encoding and of training, estimated from shapes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Memory {
    /// Each network that encodes, with its weights loaded; one is in memory at a time.
    pub encode: Vec<NetworkMemory>,
    /// Bytes of the largest of them; 0 if there is none.
    pub encode_bytes: u64,
    /// Training in f32 on a processor, and in bf16 on a GPU.
    pub train: Vec<TrainMemory>,
    /// Whether the model can be trained on clips.
    pub of_videos: bool,
    /// What `encode_bytes` does not count.
    pub left_out: &'static str,
}

/// A network that encodes, loaded.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkMemory {
    /// `vae`, or the encoder's slot in recipes: `clip_l`.
    pub what: String,
    /// Numbers of its weights.
    pub parameters: u64,
    /// The type that they are kept in.
    pub dtype: &'static str,
    /// Bytes of its weights in this type.
    pub bytes: u64,
}

/// What a training takes, with adapters on the default targets and the default optimizer: where nothing else is asked for, of
/// [`ADAPTER_RANK`], on one picture at a time of the size that the flavor was trained for, with previews.
#[derive(Clone, Debug, Serialize)]
pub struct TrainMemory {
    /// Where it is trained.
    pub machine: Machine,
    /// The type it computes in.
    pub dtype: &'static str,
    /// Extents of the pictures or clips, in px.
    pub pixels: Extents,
    /// How many of them there are in a micro-batch.
    pub samples: usize,
    /// The adapters' rank.
    pub rank: usize,
    /// Without gradient checkpointing.
    pub stored: PeakMemory,
    /// With gradient checkpointing on every block.
    pub checkpointed: PeakMemory,
}

impl NetworkMemory {
    pub(super) fn new(what: impl Into<String>, parameters: u64, dtype: candle_core::DType) -> Self {
        Self {
            what: what.into(),
            parameters,
            dtype: dtype.as_str(),
            bytes: parameters * dtype.size_in_bytes() as u64,
        }
    }
}

impl Memory {
    pub(super) fn new(encode: Vec<NetworkMemory>, train: Vec<TrainMemory>) -> Self {
        Self {
            of_videos: false,
            // One network is loaded at a time.
            encode_bytes: encode
                .iter()
                .map(|network| network.bytes)
                .max()
                .unwrap_or(0),
            train,
            encode,
            left_out: "what a batch of captions or a picture adds while it is encoded",
        }
    }
}

/// What training a denoiser of this flavor takes, with the latents of a VAE of these factors, beside the other of two experts where it
/// makes previews. Nothing where it cannot be told.
pub(super) fn train(
    (denoiser, other_expert): (&OpenedDenoiser, Option<&OpenedDenoiser>),
    factors: Factors,
    flavor: &Flavor,
    recipe: &Recipe,
    asked: Option<Asked>,
) -> Vec<TrainMemory> {
    let presets = denoiser.family.presets;
    let preset = presets.first().map(|p| p.name.to_owned());
    let chosen = lora::targets::select(denoiser.linears(), preset.as_slice(), presets);
    let Ok(adapted) = chosen else {
        return Vec::new();
    };
    let Asked {
        pixels,
        samples,
        rank,
        previews,
    } = asked.unwrap_or_else(|| Asked {
        pixels: of_flavor(flavor),
        samples: 1,
        rank: ADAPTER_RANK,
        previews: true,
    });
    let pairs = matches!(flavor.references, Some(References::Usual(_)));
    let geometry = LatentGeometry {
        factors,
        ..denoiser.family.latents()
    };
    let estimate = |machine, dtype: candle_core::DType| {
        let bytes = |checkpointing| {
            let request = MemoryRequest {
                other_expert: other_expert.filter(|_| previews),
                denoiser,
                adapted: &adapted,
                rank,
                optimizer: OptimizerOptions::default(),
                samples,
                latents: geometry.latents(pixels),
                // Of the picture's size, as trainers have it.
                reference: pairs.then(|| geometry.latents(pixels)),
                context: plan::context_tokens(recipe),
                dtype,
                storage: WeightStorage::Whole,
                machine,
                // As a training is without `--own-kernels`.
                own_kernels: false,
                apart: 0,
                checkpointing: Some(checkpointing),
            };
            // All memory there is: the estimate itself is asked for, not a way to save.
            plan::make(&request, u64::MAX).ok().map(|plan| plan.bytes)
        };
        Some(TrainMemory {
            machine,
            dtype: dtype.as_str(),
            pixels,
            samples,
            rank,
            stored: bytes(false)?,
            checkpointed: bytes(true)?,
        })
    };
    // The types that a training uses by default there.
    let machines = [
        (Machine::Cpu, candle_core::DType::F32),
        (Machine::Gpu, candle_core::DType::BF16),
    ];
    machines
        .into_iter()
        .filter_map(|(machine, dtype)| estimate(machine, dtype))
        .collect()
}

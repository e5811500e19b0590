//! Bytes in memory while encoding and training.

use serde::Serialize;

use crate::lora;
use crate::models::{Flavor, OpenedDenoiser, References, WeightStorage};
use crate::optim::OptimizerOptions;
use crate::recipe::Recipe;
use crate::train::plan::{self, Machine, MemoryRequest, PeakMemory};
use crate::vae::{Extents, Factors, LatentGeometry};

/// The rank that a training's estimate is for.
pub const ADAPTER_RANK: usize = 16;

/// Peak memory of encoding and of training, estimated from shapes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Memory {
    /// Each network that encodes, with its weights loaded; one is in memory at a time.
    pub encode: Vec<NetworkMemory>,
    /// Bytes of the largest of them; 0 if there is none.
    pub encode_bytes: u64,
    /// Training in f32 on a processor, and in bf16 on a GPU.
    pub train: Vec<TrainMemory>,
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

/// What a training takes: adapters of [`ADAPTER_RANK`] on the default targets, the default optimizer, one picture at a time, of the
/// size that the flavor was trained for.
#[derive(Clone, Debug, Serialize)]
pub struct TrainMemory {
    /// Where it is trained.
    pub machine: Machine,
    /// The type it computes in.
    pub dtype: &'static str,
    /// Extents of the pictures, in px.
    pub pixels: Extents,
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

/// What training a denoiser of this flavor takes, with the latents of a VAE of these factors. Nothing where it cannot be
/// told.
pub(super) fn train(
    denoiser: &OpenedDenoiser,
    factors: Factors,
    flavor: &Flavor,
    recipe: &Recipe,
) -> Vec<TrainMemory> {
    let presets = denoiser.family.presets;
    let preset = presets.first().map(|p| p.name.to_owned());
    let chosen = lora::targets::select(denoiser.linears(), preset.as_slice(), presets);
    let Ok(adapted) = chosen else {
        return Vec::new();
    };
    let side = flavor.resolution_px as usize;
    let pixels = Extents::picture(side, side);
    let pairs = matches!(flavor.references, Some(References::Usual(_)));
    let geometry = LatentGeometry {
        factors,
        ..denoiser.family.latents()
    };
    let estimate = |machine, dtype: candle_core::DType| {
        let bytes = |checkpointing| {
            let request = MemoryRequest {
                denoiser,
                adapted: &adapted,
                rank: ADAPTER_RANK,
                optimizer: OptimizerOptions::default(),
                samples: 1,
                latents: geometry.latents(pixels),
                // Of the picture's size, as trainers have it.
                reference: pairs.then(|| geometry.latents(pixels)),
                context: plan::context_tokens(recipe),
                dtype,
                storage: WeightStorage::Whole,
                machine,
                // As a training is without `--own-kernels`.
                own_kernels: false,
                checkpointing: Some(checkpointing),
            };
            // All memory there is: the estimate itself is asked for, not a way to save.
            plan::make(&request, u64::MAX).ok().map(|plan| plan.bytes)
        };
        Some(TrainMemory {
            machine,
            dtype: dtype.as_str(),
            pixels,
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

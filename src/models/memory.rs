//! The memory that a denoiser takes, from the shapes in its files' headers, and how its weights are kept where it predicts and is not
//! trained. The plan of a training (`train::plan`) counts by the same rules. Estimates are upper bounds, except for the memory of
//! CUDA's libraries.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use candle_core::{DType, Device};
use serde::Serialize;

use super::{OpenedDenoiser, Placement, StepShape, WeightStorage};
use crate::nn;
use crate::recipe::Recipe;
use crate::vae::Extents;

/// A guess at what CUDA's context, cuBLAS and cuDNN take on a GPU; not measured.
const LIBRARY_BYTES: u64 = 600 << 20;

/// Which memory is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Machine {
    /// A processor.
    Cpu,
    /// A GPU.
    Gpu,
}

impl Machine {
    /// The machine of a device; every device but the CPU counts as a GPU.
    pub fn of(device: &Device) -> Self {
        match device {
            Device::Cpu => Self::Cpu,
            _ => Self::Gpu,
        }
    }

    /// Bytes of its libraries.
    pub fn libraries(self) -> u64 {
        match self {
            Self::Cpu => 0,
            Self::Gpu => LIBRARY_BYTES,
        }
    }

    /// Bytes for each passing number. A CPU kernel holds little beside its result; composed of tensor operations, the same
    /// operation also holds a few intermediate tensors in f32. What is rounded to 8 bits is held so, and wide again.
    pub fn passing_bytes(self, dtype: DType, storage: WeightStorage) -> u64 {
        let rounds = matches!(storage, WeightStorage::Fp8 { .. });
        match self == Self::Cpu && dtype == DType::F32 && !rounds {
            true => 8,
            false => 16,
        }
    }
}

/// The shapes of a denoiser's tensors.
pub fn shapes(denoiser: &OpenedDenoiser) -> Vec<Vec<usize>> {
    let tensors = denoiser.tensors().iter();
    tensors.map(|(_, shape)| shape.clone()).collect()
}

/// Bytes of tensors of these shapes, as they are stored.
pub fn weights(shapes: &[Vec<usize>], dtype: DType, storage: WeightStorage) -> u64 {
    // Only matrices are quantized or left in their files.
    let stored = |shape: &Vec<usize>| match shape[..] {
        [outputs, inputs] => storage.bytes([outputs, inputs], dtype),
        _ => shape.iter().product::<usize>() * dtype.size_in_bytes(),
    };
    shapes.iter().map(stored).sum::<usize>() as u64
}

/// A matrix that is not whole is made so for each use: the bytes of itself in the denoiser's type, and of two f32 copies on the way.
pub fn rebuilt(shapes: &[Vec<usize>], dtype: DType, storage: WeightStorage) -> u64 {
    let size = dtype.size_in_bytes() as u64;
    let whole = |shape: &Vec<usize>| shape.iter().product::<usize>() as u64 * size;
    let matrices = shapes.iter().filter(|shape| shape.len() == 2);
    let largest = matrices.map(whole).max().unwrap_or(0);
    match storage {
        WeightStorage::Whole => 0,
        WeightStorage::Quantized(_) => largest + largest / size * 8,
        // Two copies at most: what a CPU makes wide again, or what is turned on a GPU beside an input's codes.
        WeightStorage::Fp8 { .. } => largest / size * 8,
        // And the matrices that are read ahead while this one is used.
        WeightStorage::InFile { .. } => (1 + nn::PREFETCHED as u64) * largest + largest / size * 8,
    }
}

/// Tokens of a recipe's context for an estimate without captions: an encoder's fixed length where the recipe has one.
pub fn context_tokens(recipe: &Recipe) -> usize {
    // A guess, twice CLIP's 77, where the recipe sets no limit.
    const ORDINARY: usize = 154;
    let rows = |slot: &String| {
        let tokens = recipe.encoder(slot).map(|e| &e.rules.tokens);
        tokens.map_or(0, |t| t.max_tokens.unwrap_or(t.min_tokens.max(ORDINARY)))
    };
    let groups = recipe.assembly().context.iter();
    // Encoders of a group stand side by side in each token (as CLIP-L and CLIP-G), groups follow each other.
    groups
        .map(|slots| slots.iter().map(rows).max().unwrap_or(0))
        .sum()
}

/// Bytes for people.
pub fn gb(bytes: u64) -> String {
    match bytes {
        0..100_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// What a call predicts.
#[derive(Clone, Copy, Debug)]
pub struct CallShape {
    /// Samples in it.
    pub samples: usize,
    /// The extents of their latents.
    pub latents: Extents,
    /// Those of the latents of each one's reference, where it has one.
    pub reference: Option<Extents>,
    /// Tokens of the context, pads included.
    pub context: usize,
}

/// Peak memory of predicting, in bytes, by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallMemory {
    /// The denoiser's weights.
    pub weights: u64,
    /// The adapters, in f32 and in the denoiser's type.
    pub adapters: u64,
    /// What a block hands on and makes.
    pub activations: u64,
    /// Temporary tensors inside an operation.
    pub temporary: u64,
    /// CUDA's context and libraries; 0 on a CPU.
    pub libraries: u64,
}

impl CallMemory {
    fn total(&self) -> u64 {
        let parts = [self.weights, self.adapters, self.activations];
        let others = [self.temporary, self.libraries];
        let all = parts.into_iter().chain(others);
        all.fold(0, u64::saturating_add)
    }
}

impl Display for CallMemory {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            weights,
            adapters,
            activations,
            temporary,
            libraries,
        } = *self;
        write!(f, "base model {}", gb(weights))?;
        for (bytes, of) in [
            (adapters, "LoRAs"),
            (activations, "activations"),
            (temporary, "temporary"),
            (libraries, "libraries"),
        ] {
            if bytes > 0 {
                write!(f, ", {of} {}", gb(bytes))?;
            }
        }
        Ok(())
    }
}

/// A denoiser too large for the memory, wherever its weights are.
#[derive(Debug, thiserror::Error)]
#[error("it does not fit: {} needed at least, {} free ({bytes}); {advice}", gb(bytes.total()), gb(*available))]
pub struct DoesNotFit {
    /// The estimated peak where the least is in memory.
    pub bytes: CallMemory,
    /// Bytes that may be used.
    pub available: u64,
    /// What to change.
    pub advice: &'static str,
}

const MORE_MEMORY: &str =
    "make smaller pictures, or fewer at a time; use a machine with more memory";

/// How the weights of a denoiser are stored that predicts in `available` bytes, beside adapters of so many numbers: as the placement says,
/// or in their files where they do not fit whole. The same numbers come of both. And a word where they do not.
///
/// # Errors
/// If they fit neither way.
pub fn fitted(
    denoiser: &OpenedDenoiser,
    (calls, adapters): (&[CallShape], usize),
    placement: &Placement,
    available: u64,
) -> Result<(WeightStorage, Option<String>), DoesNotFit> {
    let shapes = shapes(denoiser);
    let peak = |storage| {
        let each = calls
            .iter()
            .map(|call| of_call(denoiser, &shapes, call, (placement, storage)));
        let most = each.max_by_key(CallMemory::total);
        let adapters = adapters as u64 * (4 + placement.dtype.size_in_bytes() as u64);
        most.map(|bytes| CallMemory { adapters, ..bytes })
    };
    let Some(asked) = peak(placement.storage) else {
        return Ok((placement.storage, None));
    };
    if asked.total() <= available {
        return Ok((placement.storage, None));
    }
    let does_not_fit = |bytes, advice| DoesNotFit {
        bytes,
        available,
        advice,
    };
    let least = peak(WeightStorage::IN_FILE).unwrap_or(asked);
    let left = available.checked_sub(least.total());
    if placement.storage != WeightStorage::Whole {
        let advice = match left {
            Some(_) => {
                "leave out `[model] weights` and `compute`: whole weights are read from their files as they are needed"
            }
            None => MORE_MEMORY,
        };
        return Err(does_not_fit(asked, advice));
    }
    let Some(left) = left else {
        return Err(does_not_fit(least, MORE_MEMORY));
    };
    let resident_bytes = left.min(asked.weights.saturating_sub(least.weights));
    let told = format!(
        "block swap: {} of the base model's {} stay in memory, every other weight matrix is read from its file when it is used",
        gb(least.weights + resident_bytes),
        gb(asked.weights)
    );
    Ok((WeightStorage::InFile { resident_bytes }, Some(told)))
}

/// Without adapters.
fn of_call(
    denoiser: &OpenedDenoiser,
    shapes: &[Vec<usize>],
    call: &CallShape,
    (placement, storage): (&Placement, WeightStorage),
) -> CallMemory {
    let activations = denoiser.activations(&StepShape {
        samples: call.samples,
        latents: call.latents,
        reference: call.reference,
        context: call.context,
        adapted: BTreeMap::new(),
        attended: false,
    });
    // As a training whose blocks are all run again, which keeps between blocks what they hand on.
    let every_block = || activations.kept(activations.blocks.len());
    let held = activations.kept_offloaded().unwrap_or_else(every_block);
    let (dtype, machine) = (placement.dtype, Machine::of(&placement.device));
    let passing = machine.passing_bytes(dtype, storage);
    CallMemory {
        weights: weights(shapes, dtype, storage),
        adapters: 0,
        activations: held.saturating_mul(dtype.size_in_bytes() as u64),
        temporary: (activations.passing.saturating_mul(passing))
            .saturating_add(rebuilt(shapes, dtype, storage)),
        libraries: machine.libraries(),
    }
}

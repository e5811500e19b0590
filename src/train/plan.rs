//! The memory plan of a training, made from headers before anything is loaded: whether the base model's weights fit, on how many
//! blocks gradient checkpointing is needed, whether their inputs are offloaded to the CPU, and what to change where it cannot fit.
//!
//! None of its choices changes a number that is trained. Estimates are upper bounds, except for what CUDA's libraries take for
//! themselves.

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use serde::Serialize;

use crate::lora::{LinearShape, Recompute};
use crate::models::{Activations, OpenedDenoiser, StepShape, WeightStorage};
use crate::nn;
use crate::optim::OptimizerOptions;
use crate::recipe::Recipe;
use crate::vae::Extents;

/// What CUDA's driver and libraries take for themselves, about; measured by nobody yet.
const LIBRARY_BYTES: u64 = 600 << 20;

/// What decides how much memory a training takes.
#[derive(Clone)]
pub struct MemoryRequest<'a> {
    /// The denoiser.
    pub denoiser: &'a OpenedDenoiser,
    /// The linears that will carry adapters.
    pub adapted: &'a [LinearShape],
    /// The adapters' rank.
    pub rank: usize,
    /// What trains them.
    pub optimizer: OptimizerOptions,
    /// Samples in a micro-batch.
    pub samples: usize,
    /// Those of the largest latents.
    pub latents: Extents,
    /// Tokens of the longest context.
    pub context: usize,
    /// The type it computes in.
    pub dtype: DType,
    /// How the denoiser's weights are stored: whole, quantized, or in their files.
    pub storage: WeightStorage,
    /// What it computes on.
    pub machine: Machine,
    /// Whether it computes by our own CUDA kernels, which store no attention scores.
    pub own_kernels: bool,
    /// Gradient checkpointing on all blocks, or none; None leaves it to the plan.
    pub checkpointing: Option<bool>,
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Machine {
    /// A processor.
    Cpu,
    /// A GPU.
    Gpu,
}

impl Machine {
    /// That of a device.
    pub fn of(device: &Device) -> Self {
        match device {
            Device::Cpu => Self::Cpu,
            _ => Self::Gpu,
        }
    }
}

/// Peak memory of a step, by what it is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PeakMemory {
    /// The denoiser's weights.
    pub weights: u64,
    /// The adapters' numbers and gradient, the optimizer's state, and what the network sees of them.
    pub adapters: u64,
    /// What the forward pass stores for the backward pass.
    pub activations: u64,
    /// Temporary tensors inside an operation.
    pub temporary: u64,
    /// What libraries take.
    pub libraries: u64,
}

impl PeakMemory {
    /// Their sum.
    pub fn total(&self) -> u64 {
        self.weights + self.adapters + self.activations + self.temporary + self.libraries
    }
}

/// How a training fits into memory.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    /// How the denoiser's weights are stored.
    pub storage: WeightStorage,
    /// The blocks with gradient checkpointing.
    pub recompute: Recompute,
    /// Whether the inputs of these blocks are offloaded to the CPU's memory.
    pub offload: bool,
    /// How many blocks have gradient checkpointing, of how many.
    pub checkpointed: (usize, usize),
    /// What it takes.
    pub bytes: PeakMemory,
}

/// A training too large for the memory, whatever is done.
#[derive(Debug, thiserror::Error)]
#[error("it does not fit: {} needed at least, {} free ({bytes}); {advice}", gb(bytes.total()), gb(*available))]
pub struct DoesNotFit {
    /// The least that it takes.
    pub bytes: Box<PeakMemory>,
    /// Bytes that are free.
    pub available: u64,
    /// What helps.
    pub advice: String,
}

/// Makes the plan for `available` bytes.
///
/// # Errors
/// If it cannot fit, with what would help.
pub fn make(wanted: &MemoryRequest<'_>, available: u64) -> Result<MemoryPlan, DoesNotFit> {
    let counts = Counts::of(wanted);
    let ways = match wanted.storage {
        WeightStorage::Whole => vec![WeightStorage::Whole, WeightStorage::IN_FILE],
        other => vec![other],
    };
    let mut least = None;
    for storage in ways {
        match counts.fit(wanted, storage, available) {
            Ok(plan) if storage != wanted.storage => {
                return Ok(counts.fill(wanted, plan, available));
            }
            Ok(plan) => return Ok(plan),
            Err(bytes) => least = Some(bytes),
        }
    }
    let bytes = Box::new(least.unwrap_or_default());
    Err(DoesNotFit {
        advice: advice(wanted, &bytes),
        bytes,
        available,
    })
}

/// Rows that a recipe's context has for a caption of ordinary length.
pub fn context_tokens(recipe: &Recipe) -> usize {
    const ORDINARY: usize = 154;
    let rows = |slot: &String| {
        let tokens = recipe.encoder(slot).map(|e| &e.rules.tokens);
        tokens.map_or(0, |t| t.max_tokens.unwrap_or(t.min_tokens.max(ORDINARY)))
    };
    let groups = recipe.assembly().context.iter();
    groups
        .map(|slots| slots.iter().map(rows).max().unwrap_or(0))
        .sum()
}

/// What a plan is made of.
struct Counts {
    activations: Activations,
    /// Shapes of the denoiser's tensors.
    tensors: Vec<Vec<usize>>,
    adapters: u64,
}

impl Counts {
    fn of(wanted: &MemoryRequest<'_>) -> Self {
        let adapted: BTreeMap<String, usize> = wanted
            .adapted
            .iter()
            .map(|linear| (linear.name.clone(), wanted.rank))
            .collect();
        let step = StepShape {
            samples: wanted.samples,
            latents: wanted.latents,
            context: wanted.context,
            adapted,
            attended: wanted.own_kernels,
        };
        let numbers = |linear: &LinearShape| {
            let window = linear.kernel.map_or(1, |side| side * side);
            wanted.rank * (linear.inputs * window + linear.outputs)
        };
        let tensors = wanted.denoiser.tensors().iter();
        Self {
            activations: wanted.denoiser.activations(&step),
            tensors: tensors.map(|(_, shape)| shape.clone()).collect(),
            adapters: wanted.adapted.iter().map(numbers).sum::<usize>() as u64,
        }
    }

    /// A plan with the weights stored so; the least it would take where it does not fit.
    fn fit(
        &self,
        wanted: &MemoryRequest<'_>,
        storage: WeightStorage,
        available: u64,
    ) -> Result<MemoryPlan, PeakMemory> {
        let all = self.activations.blocks.len();
        let counts = match wanted.checkpointing {
            Some(true) => all..=all,
            Some(false) => 0..=0,
            None => 0..=all,
        };
        let mut choices: Vec<(bool, usize, u64)> = counts
            .map(|checkpointed| (false, checkpointed, self.activations.kept(checkpointed)))
            .collect();
        // On a CPU there is nowhere else to offload to.
        if wanted.machine == Machine::Gpu && wanted.checkpointing != Some(false) {
            let offloaded = self.activations.kept_offloaded();
            choices.extend(offloaded.map(|stored| (true, all, stored)));
        }
        // To read a weight from its file costs more than to compute a block again: what activations leave free is for weights.
        if matches!(storage, WeightStorage::InFile { .. }) {
            choices.reverse();
        }
        let mut least: Option<PeakMemory> = None;
        for (offload, checkpointed, stored) in choices {
            let bytes = self.bytes(wanted, storage, stored);
            if bytes.total() <= available {
                return Ok(MemoryPlan {
                    storage,
                    recompute: match checkpointed {
                        0 => Recompute::Never,
                        some if some == all => Recompute::EveryBlock,
                        some => Recompute::Blocks((0..some).collect()),
                    },
                    offload,
                    checkpointed: (checkpointed, all),
                    bytes,
                });
            }
            least = least.filter(|l| l.total() <= bytes.total()).or(Some(bytes));
        }
        Err(least.unwrap_or_default())
    }

    /// Keeps as many weight matrices in memory as fit, where the others are read from their files.
    fn fill(&self, wanted: &MemoryRequest<'_>, mut plan: MemoryPlan, available: u64) -> MemoryPlan {
        let in_files = self.weights(wanted.dtype, WeightStorage::Whole) - plan.bytes.weights;
        let resident_bytes = in_files.min(available.saturating_sub(plan.bytes.total()));
        plan.storage = WeightStorage::InFile { resident_bytes };
        plan.bytes.weights += resident_bytes;
        plan
    }

    fn weights(&self, dtype: DType, storage: WeightStorage) -> u64 {
        let one = |shape: &Vec<usize>| match shape[..] {
            [outputs, inputs] => storage.bytes([outputs, inputs], dtype),
            _ => shape.iter().product::<usize>() * dtype.size_in_bytes(),
        };
        self.tensors.iter().map(one).sum::<usize>() as u64
    }

    /// With so many numbers stored by the forward pass.
    fn bytes(&self, wanted: &MemoryRequest<'_>, storage: WeightStorage, stored: u64) -> PeakMemory {
        let dtype = wanted.dtype;
        let size = dtype.size_in_bytes() as u64;
        let whole = |shape: &[usize]| shape.iter().product::<usize>() * dtype.size_in_bytes();
        // A matrix that is stored quantized is dequantized, by way of f32, whenever it is used.
        let matrices = self.tensors.iter().filter(|shape| shape.len() == 2);
        let largest = matrices.map(|shape| whole(shape)).max().unwrap_or(0) as u64;
        let dequantized = match storage {
            WeightStorage::Whole => 0,
            WeightStorage::Quantized(_) => largest + largest / size * 8,
            // And those that are read ahead of it.
            WeightStorage::InFile { .. } => {
                (1 + nn::PREFETCHED as u64) * largest + largest / size * 8
            }
        };
        // Numbers and gradient in f32; what the network sees of them and gives back in its own type.
        let adapters = self.adapters * (2 * 4 + 2 * size)
            + wanted.optimizer.state_bytes(self.adapters as usize) as u64;
        // By kernels an operation holds its result; composed of tensor operations, a few intermediate ones in f32.
        let kernels = wanted.machine == Machine::Cpu && dtype == DType::F32;
        let temporary = self.activations.passing * if kernels { 8 } else { 16 };
        PeakMemory {
            weights: self.weights(dtype, storage),
            adapters,
            activations: stored * size,
            temporary: temporary + dequantized,
            libraries: match wanted.machine {
                Machine::Cpu => 0,
                Machine::Gpu => LIBRARY_BYTES,
            },
        }
    }
}

/// What to change, the most helpful first.
fn advice(wanted: &MemoryRequest<'_>, bytes: &PeakMemory) -> String {
    let mut list = Vec::new();
    if wanted.checkpointing == Some(false) {
        list.push("leave out `gradient_checkpointing = false`".to_owned());
    }
    if bytes.activations + bytes.temporary > bytes.weights {
        if wanted.samples > 1 {
            list.push(format!(
                "lower `train.batch_size` ({}) and raise `train.gradient_accumulation`",
                wanted.samples
            ));
        }
        list.push("lower the data sets' `resolution`".to_owned());
    }
    if !matches!(wanted.storage, WeightStorage::Quantized(_)) {
        list.push("set `[model] weights = \"nf4\"` (or `fp8`)".to_owned());
    }
    list.push(match wanted.machine {
        Machine::Cpu => "use a machine with more memory".to_owned(),
        Machine::Gpu => "compute on the CPU (`--device cpu`), if it has more memory".to_owned(),
    });
    format!(
        "what helps: {}. A smaller rank does not: the adapters are {} of it",
        list.join("; "),
        gb(bytes.adapters)
    )
}

impl std::fmt::Display for PeakMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "base model {}, adapters and optimizer {}, activations {}, temporary {}",
            gb(self.weights),
            gb(self.adapters),
            gb(self.activations),
            gb(self.temporary)
        )?;
        match self.libraries {
            0 => Ok(()),
            bytes => write!(f, ", libraries {}", gb(bytes)),
        }
    }
}

impl std::fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "peak {} ({})", gb(self.bytes.total()), self.bytes)?;
        if let (some @ 1.., all) = self.checkpointed {
            write!(f, "; gradient checkpointing on {some} of {all} blocks")?;
        }
        if self.offload {
            write!(f, ", their inputs offloaded to the CPU")?;
        }
        match self.storage {
            WeightStorage::InFile { resident_bytes: 0 } => write!(
                f,
                "; block swap: every weight matrix of the base model is read from its file when it is used"
            ),
            WeightStorage::InFile { resident_bytes } => write!(
                f,
                "; block swap: {} of the base model stay, every other weight matrix is read from its file when it is used",
                gb(resident_bytes)
            ),
            _ => Ok(()),
        }
    }
}

fn gb(bytes: u64) -> String {
    match bytes {
        0..100_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

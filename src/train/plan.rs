//! The memory plan of a training, made from the shapes in the weight files' headers before anything is loaded. It decides on how many
//! blocks gradients are checkpointed, whether the inputs of those blocks are offloaded to the CPU, and whether weights stay in their
//! files. Where nothing fits, it says what to change.
//!
//! None of these choices changes a trained number. Estimates are upper bounds, except for the memory of CUDA's libraries.

use std::collections::BTreeMap;

use candle_core::DType;
use serde::Serialize;

use crate::lora::{LinearShape, Recompute};
pub use crate::models::memory::{Machine, context_tokens};
use crate::models::memory::{gb, rebuilt, shapes, weights};
use crate::models::{Activations, OpenedDenoiser, StepShape, WeightStorage};
use crate::optim::OptimizerOptions;
use crate::vae::Extents;

/// What decides how much memory a training takes.
#[derive(Clone)]
pub struct MemoryRequest<'a> {
    /// Opened, not loaded: only its shapes are asked for.
    pub denoiser: &'a OpenedDenoiser,
    /// The other of two experts, where previews are made: a sample passes through it as well, its weights read from their files.
    pub other_expert: Option<&'a OpenedDenoiser>,
    /// The linears that will carry adapters.
    pub adapted: &'a [LinearShape],
    /// The adapters' rank.
    pub rank: usize,
    /// Decides the bytes of state for each trained parameter.
    pub optimizer: OptimizerOptions,
    /// Samples in a micro-batch.
    pub samples: usize,
    /// The extents of the largest latents, as the VAE makes them (not px).
    pub latents: Extents,
    /// Those of its reference's latents, where it has one.
    pub reference: Option<Extents>,
    /// Tokens of the longest context, pads included.
    pub context: usize,
    /// The type that the denoiser computes in.
    pub dtype: DType,
    /// How the denoiser's weights are to be stored. Only for `Whole` does the plan fall back on reading them from their files.
    pub storage: WeightStorage,
    /// Where the denoiser computes.
    pub machine: Machine,
    /// Whether our own CUDA kernels compute attention: they keep its result for the backward pass.
    pub own_kernels: bool,
    /// Gradients that are held beside their sum: of single passes, where they are added in the order of several ranks.
    pub apart: usize,
    /// Gradient checkpointing on all blocks, or none; None leaves it to the plan.
    pub checkpointing: Option<bool>,
}

/// Peak memory of a training step in bytes, by what it is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PeakMemory {
    /// The denoiser's weights.
    pub weights: u64,
    /// The adapters' f32 parameters and gradient, their copies in the denoiser's type, and the optimizer's state.
    pub adapters: u64,
    /// What the forward pass stores for the backward pass.
    pub activations: u64,
    /// Temporary tensors inside an operation.
    pub temporary: u64,
    /// CUDA's context and libraries; 0 on a CPU.
    pub libraries: u64,
    /// The other of two experts while a preview is in it, counted as if nothing of a step were gone by then.
    #[serde(skip_serializing_if = "is_none")]
    pub other_expert: u64,
}

fn is_none(bytes: &u64) -> bool {
    *bytes == 0
}

impl PeakMemory {
    /// The sum of all fields.
    pub fn total(&self) -> u64 {
        let parts = [
            self.weights,
            self.adapters,
            self.activations,
            self.temporary,
            self.libraries,
            self.other_expert,
        ];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

/// How a training fits into memory.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    /// How the denoiser's weights are stored: as asked for, or in their files where that is the only way to fit.
    pub storage: WeightStorage,
    /// The blocks with gradient checkpointing.
    pub recompute: Recompute,
    /// Whether the inputs of these blocks are offloaded to the CPU's memory.
    pub offload: bool,
    /// (blocks with gradient checkpointing, all blocks)
    pub checkpointed: (usize, usize),
    /// The estimated peak.
    pub bytes: PeakMemory,
}

/// A training too large for the memory, whatever is done.
#[derive(Debug, thiserror::Error)]
#[error("it does not fit: {} needed at least, {} free ({bytes}); {advice}", gb(bytes.total()), gb(*available))]
pub struct DoesNotFit {
    /// The estimated peak of the plan that takes least.
    pub bytes: Box<PeakMemory>,
    /// Bytes that are free.
    pub available: u64,
    /// What to change, the most helpful first.
    pub advice: String,
}

/// The first plan that fits into `available` bytes, in the order of the time it costs: no checkpointing, checkpointing of ever more
/// blocks, offloading of their inputs, and last weights that are read from their files.
///
/// # Errors
/// If none fits, with what would help.
pub fn make(request: &MemoryRequest<'_>, available: u64) -> Result<MemoryPlan, DoesNotFit> {
    let estimator = Estimator::of(request);
    let storages = match request.storage {
        WeightStorage::Whole => vec![WeightStorage::Whole, WeightStorage::IN_FILE],
        other => vec![other],
    };
    let mut least = None;
    for storage in storages {
        match estimator.fit(request, storage, available) {
            Ok(plan) if storage != request.storage => {
                return Ok(estimator.fill(request, plan, available));
            }
            Ok(plan) => return Ok(plan),
            // Overwritten by the next storage: with weights in their files the least is needed, and that is reported.
            Err(bytes) => least = Some(bytes),
        }
    }
    let bytes = Box::new(least.unwrap_or_default());
    let whole = MemoryRequest {
        storage: WeightStorage::Whole,
        ..request.clone()
    };
    // As whole ones, weights may stay in their files.
    let swapped = request.storage != WeightStorage::Whole && make(&whole, available).is_ok();
    Err(DoesNotFit {
        advice: advice(request, &bytes, swapped),
        bytes,
        available,
    })
}

/// Estimates the memory of each way to train.
struct Estimator {
    activations: Activations,
    /// Shapes of the denoiser's tensors.
    tensors: Vec<Vec<usize>>,
    /// Bytes of the other expert.
    other_expert: u64,
    /// Trained parameters.
    adapters: u64,
}

impl Estimator {
    fn of(request: &MemoryRequest<'_>) -> Self {
        let adapted: BTreeMap<String, usize> = request
            .adapted
            .iter()
            .map(|linear| (linear.name.clone(), request.rank))
            .collect();
        let step = StepShape {
            samples: request.samples,
            latents: request.latents,
            reference: request.reference,
            context: request.context,
            adapted,
            attended: request.own_kernels,
        };
        let numbers = |linear: &LinearShape| {
            // On a convolution the first matrix has its window, the second is 1 x 1.
            let window = linear.kernel.map_or(1, |side| side * side);
            let row = linear.inputs * window + linear.outputs;
            (request.rank as u64).saturating_mul(row as u64)
        };
        let in_files = |other: &OpenedDenoiser| {
            let (shapes, storage) = (shapes(other), WeightStorage::IN_FILE);
            weights(&shapes, request.dtype, storage) + rebuilt(&shapes, request.dtype, storage)
        };
        Self {
            activations: request.denoiser.activations(&step),
            tensors: shapes(request.denoiser),
            other_expert: request.other_expert.map_or(0, in_files),
            adapters: (request.adapted.iter().map(numbers)).fold(0, u64::saturating_add),
        }
    }

    /// The cheapest plan in time that fits with this storage of the weights, else the memory of the smallest.
    fn fit(
        &self,
        request: &MemoryRequest<'_>,
        storage: WeightStorage,
        available: u64,
    ) -> Result<MemoryPlan, PeakMemory> {
        let blocks = self.activations.blocks.len();
        let counts = match request.checkpointing {
            Some(true) => blocks..=blocks,
            Some(false) => 0..=0,
            None => 0..=blocks,
        };
        let mut choices: Vec<(bool, usize, u64)> = counts
            .map(|checkpointed| (false, checkpointed, self.activations.kept(checkpointed)))
            .collect();
        // On a CPU, activations already are in the memory that they would be offloaded to.
        if request.machine == Machine::Gpu && request.checkpointing != Some(false) {
            let offloaded = self.activations.kept_offloaded();
            choices.extend(offloaded.map(|stored| (true, blocks, stored)));
        }
        // Reading a weight from its file takes longer than computing a block again: first shrink activations, so that `fill` can keep
        // more weights in memory.
        if matches!(storage, WeightStorage::InFile { .. }) {
            choices.reverse();
        }
        let mut least: Option<PeakMemory> = None;
        for (offload, checkpointed, stored) in choices {
            let bytes = self.bytes(request, storage, stored);
            if bytes.total() <= available {
                return Ok(MemoryPlan {
                    storage,
                    recompute: match checkpointed {
                        0 => Recompute::Never,
                        some if some == blocks => Recompute::EveryBlock,
                        some => Recompute::Blocks((0..some).collect()),
                    },
                    offload,
                    checkpointed: (checkpointed, blocks),
                    bytes,
                });
            }
            least = least.filter(|l| l.total() <= bytes.total()).or(Some(bytes));
        }
        Err(least.unwrap_or_default())
    }

    /// Keeps as many weight matrices in memory as fit, where the others are read from their files.
    fn fill(
        &self,
        request: &MemoryRequest<'_>,
        mut plan: MemoryPlan,
        available: u64,
    ) -> MemoryPlan {
        let whole = weights(&self.tensors, request.dtype, WeightStorage::Whole);
        let in_files = whole.saturating_sub(plan.bytes.weights);
        let resident_bytes = in_files.min(available.saturating_sub(plan.bytes.total()));
        plan.storage = WeightStorage::InFile { resident_bytes };
        plan.bytes.weights = plan.bytes.weights.saturating_add(resident_bytes);
        plan
    }

    /// The peak with `stored` numbers kept for the backward pass.
    fn bytes(
        &self,
        request: &MemoryRequest<'_>,
        storage: WeightStorage,
        stored: u64,
    ) -> PeakMemory {
        let dtype = request.dtype;
        let size = dtype.size_in_bytes() as u64;
        // Parameters and gradient in f32, and both again in the denoiser's type: the copy it reads, the gradient it returns.
        // Beyond this no machine has the memory, and the bytes of the state could not be counted.
        let counted = self.adapters.min(1 << 56);
        let state = request.optimizer.state_bytes(counted as usize) as u64;
        let apart = 4 * request.apart as u64;
        let adapters = self.adapters.saturating_mul(2 * 4 + 2 * size + apart);
        let adapters = adapters.saturating_add(state);
        let bytes_each = request.machine.passing_bytes(dtype, storage);
        let temporary = self.activations.passing.saturating_mul(bytes_each);
        PeakMemory {
            weights: weights(&self.tensors, dtype, storage),
            adapters,
            activations: stored.saturating_mul(size),
            temporary: temporary.saturating_add(rebuilt(&self.tensors, dtype, storage)),
            libraries: request.machine.libraries(),
            other_expert: self.other_expert,
        }
    }
}

/// What to change, the most helpful first. `swapped`: it would fit with whole weights that stay in their files.
fn advice(request: &MemoryRequest<'_>, bytes: &PeakMemory, swapped: bool) -> String {
    let others = bytes.activations.saturating_add(bytes.temporary);
    let mut list = Vec::new();
    let lower_rank = format!("lower `adapter.rank` ({})", request.rank);
    let rank_is_most = bytes.adapters > bytes.weights.max(others);
    if rank_is_most {
        list.push(lower_rank.clone());
    }
    if swapped {
        let field = match request.storage {
            WeightStorage::Fp8 { .. } => "compute = \"fp8\"",
            _ => "weights",
        };
        list.push(format!(
            "leave out `[model] {field}`: whole weights are read from their files as they are needed"
        ));
    }
    if request.checkpointing == Some(false) {
        list.push("leave out `gradient_checkpointing = false`".to_owned());
    }
    // Smaller batches and pictures help only against activations.
    if others > bytes.weights {
        if request.samples > 1 {
            list.push(format!(
                "lower `train.batch_size` ({}) and raise `train.gradient_accumulation`",
                request.samples
            ));
        }
        list.push("lower the data sets' `resolution`".to_owned());
    }
    match request.storage {
        WeightStorage::Quantized(_)
        | WeightStorage::Fp8 {
            in_both_orders: false,
        } => {}
        WeightStorage::Fp8 {
            in_both_orders: true,
        } => list
            .push("set `[model] weights = \"fp8\"`, by which each matrix is kept once".to_owned()),
        WeightStorage::Whole | WeightStorage::InFile { .. } => {
            list.push("set `[model] weights = \"nf4\"` (or `fp8`)".to_owned());
        }
    }
    list.push(match request.machine {
        Machine::Cpu => "use a machine with more memory".to_owned(),
        Machine::Gpu => "compute on the CPU (`--device cpu`), if it has more memory".to_owned(),
    });
    // Below a twentieth it is not worth a weaker LoRA.
    let rank_matters = bytes.adapters > bytes.total() / 20;
    if rank_matters && !rank_is_most {
        list.push(lower_rank);
    }
    let list = format!("what helps: {}", list.join("; "));
    match rank_matters {
        true => list,
        false => format!(
            "{list}. A smaller rank does not: the adapters are {} of it",
            gb(bytes.adapters)
        ),
    }
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
        if self.other_expert > 0 {
            let bytes = gb(self.other_expert);
            write!(f, ", the other expert in previews {bytes}")?;
        }
        match self.libraries {
            0 => Ok(()),
            bytes => write!(f, ", libraries {}", gb(bytes)),
        }
    }
}

impl std::fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "peak {} ({})", gb(self.bytes.total()), self.bytes)?;
        if let (checkpointed @ 1.., blocks) = self.checkpointed {
            write!(
                f,
                "; gradient checkpointing on {checkpointed} of {blocks} blocks"
            )?;
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

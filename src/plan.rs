//! The plan of a training's memory, made from headers before anything is loaded: what will be kept, how many blocks must be
//! run twice, whether the base model's matrices can stay in memory, and what to change where it cannot fit.
//!
//! None of its choices changes a number that is trained. Estimates are upper bounds but for what libraries take for
//! themselves.

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use serde::Serialize;

use crate::lora::{LinearShape, Recompute};
use crate::models::{Activations, Components, Error, Family, Keep, StepShape};
use crate::nn;
use crate::recipe::Recipe;

/// What a card's driver and libraries take for themselves, about.
const LIBRARY_BYTES: u64 = 600 << 20;

/// What a training will do, as far as memory goes.
#[derive(Clone)]
pub struct Wanted<'a> {
    /// The denoiser's family.
    pub family: &'a dyn Family,
    /// Where the denoiser's parts are.
    pub components: &'a Components,
    /// The linears that will carry adapters.
    pub adapted: &'a [LinearShape],
    /// The adapters' rank.
    pub rank: usize,
    /// Samples in a micro-batch.
    pub samples: usize,
    /// Height and width of the largest latents.
    pub latents: (usize, usize),
    /// Tokens of the longest context.
    pub context: usize,
    /// The type it computes in.
    pub dtype: DType,
    /// How the denoiser is to be kept.
    pub keep: Keep,
    /// What it computes on.
    pub machine: Machine,
    /// Whether it computes by our own kernels for cards.
    pub own_kernels: bool,
    /// Whether all blocks, or none, are to be run twice; None leaves it to the plan.
    pub checkpointing: Option<bool>,
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Machine {
    /// A processor.
    Cpu,
    /// A graphics card.
    Card,
}

impl Machine {
    /// That of a device.
    pub fn of(device: &Device) -> Self {
        match device {
            Device::Cpu => Self::Cpu,
            _ => Self::Card,
        }
    }
}

/// Memory in use at the height of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// The denoiser's weights.
    pub weights: u64,
    /// The adapters' numbers, gradient and both moments of AdamW, and what the network sees of them.
    pub adapters: u64,
    /// What the forward pass keeps for the backward pass.
    pub activations: u64,
    /// What an operation holds for a moment.
    pub passing: u64,
    /// What libraries take.
    pub libraries: u64,
}

impl Bytes {
    /// Their sum.
    pub fn total(&self) -> u64 {
        self.weights + self.adapters + self.activations + self.passing + self.libraries
    }
}

/// A plan that fits.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How the denoiser is kept.
    pub keep: Keep,
    /// The blocks that are run again for their gradients.
    pub recompute: Recompute,
    /// Whether what they are given waits in the host's memory.
    pub offload: bool,
    /// How many they are, of how many.
    pub again: (usize, usize),
    /// What it takes.
    pub bytes: Bytes,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Too large for the memory, whatever is done.
    #[error(
        "it does not fit: {} needed at least, {} free ({bytes}); {advice}", gb(bytes.total()), gb(*available)
    )]
    TooLarge {
        /// The least that it takes.
        bytes: Box<Bytes>,
        /// What there is.
        available: u64,
        /// What helps.
        advice: String,
    },
    /// The denoiser cannot be told.
    #[error(transparent)]
    Model(#[from] Error),
}

/// Makes the plan for `available` bytes.
///
/// # Errors
/// If it cannot fit, with what would help; or if the denoiser's headers cannot be read.
pub fn make(wanted: &Wanted<'_>, available: u64) -> Result<Plan, Refused> {
    let counts = Counts::of(wanted)?;
    let keeps = match wanted.keep {
        Keep::Whole => vec![Keep::Whole, Keep::IN_FILE],
        other => vec![other],
    };
    let mut least = None;
    for keep in keeps {
        match counts.fit(wanted, keep, available) {
            Ok(plan) if keep != wanted.keep => return Ok(counts.fill(wanted, plan, available)),
            Ok(plan) => return Ok(plan),
            Err(bytes) => least = Some(bytes),
        }
    }
    let bytes = Box::new(least.unwrap_or_default());
    Err(Refused::TooLarge {
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
    fn of(wanted: &Wanted<'_>) -> Result<Self, Error> {
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
        let tensors = wanted.family.expected(wanted.components)?.tensors;
        Ok(Self {
            activations: wanted.family.activations(wanted.components, &step)?,
            tensors: tensors.into_iter().map(|(_, shape)| shape).collect(),
            adapters: wanted.adapted.iter().map(numbers).sum::<usize>() as u64,
        })
    }

    /// A plan with the weights kept so; the least bytes it would take where it does not fit.
    fn fit(&self, wanted: &Wanted<'_>, keep: Keep, available: u64) -> Result<Plan, Bytes> {
        let all = self.activations.blocks.len();
        let choices = match wanted.checkpointing {
            Some(true) => all..=all,
            Some(false) => 0..=0,
            None => 0..=all,
        };
        let kept = choices.map(|again| (again, Some(self.activations.kept(again))));
        // Waiting elsewhere is only another place on a card.
        let elsewhere = wanted.machine == Machine::Card && wanted.checkpointing != Some(false);
        let offloaded = elsewhere.then(|| (all, self.activations.kept_offloaded()));
        let mut least: Option<Bytes> = None;
        for (offload, (again, kept)) in kept
            .map(|choice| (false, choice))
            .chain(offloaded.map(|choice| (true, choice)))
        {
            let Some(kept) = kept else { continue };
            let bytes = self.bytes(wanted, keep, kept);
            if bytes.total() <= available {
                return Ok(Plan {
                    keep,
                    recompute: match again {
                        0 => Recompute::Never,
                        some if some == all => Recompute::EveryBlock,
                        some => Recompute::Blocks((0..some).collect()),
                    },
                    offload,
                    again: (again, all),
                    bytes,
                });
            }
            least = least.filter(|l| l.total() <= bytes.total()).or(Some(bytes));
        }
        Err(least.unwrap_or_default())
    }

    /// Keeps as many matrices whole as fit, where they would stay in their files.
    fn fill(&self, wanted: &Wanted<'_>, mut plan: Plan, available: u64) -> Plan {
        let in_files = self.weights(wanted.dtype, Keep::Whole) - plan.bytes.weights;
        let resident_bytes = in_files.min(available.saturating_sub(plan.bytes.total()));
        plan.keep = Keep::InFile { resident_bytes };
        plan.bytes.weights += resident_bytes;
        plan
    }

    fn weights(&self, dtype: DType, keep: Keep) -> u64 {
        let one = |shape: &Vec<usize>| match shape[..] {
            [outputs, inputs] => keep.bytes([outputs, inputs], dtype),
            _ => shape.iter().product::<usize>() * dtype.size_in_bytes(),
        };
        self.tensors.iter().map(one).sum::<usize>() as u64
    }

    /// Where the forward pass keeps so many numbers.
    fn bytes(&self, wanted: &Wanted<'_>, keep: Keep, kept: u64) -> Bytes {
        let dtype = wanted.dtype;
        let size = dtype.size_in_bytes() as u64;
        let whole = |shape: &[usize]| shape.iter().product::<usize>() * dtype.size_in_bytes();
        // A matrix that is not kept whole is unpacked, by way of f32, when it is used.
        let matrices = self.tensors.iter().filter(|shape| shape.len() == 2);
        let largest = matrices.map(|shape| whole(shape)).max().unwrap_or(0) as u64;
        let unpacked = match keep {
            Keep::Whole => 0,
            Keep::Packed(_) => largest + largest / size * 8,
            // And those that are read ahead of it.
            Keep::InFile { .. } => (1 + nn::AHEAD as u64) * largest + largest / size * 8,
        };
        // Numbers, gradient and two moments in f32; what the network sees of them and gives back in its own type.
        let adapters = self.adapters * (4 * 4 + 2 * size);
        // By kernels an operation holds its result; composed of tensor operations, a few intermediate ones in f32.
        let kernels = wanted.machine == Machine::Cpu && dtype == DType::F32;
        let passing = self.activations.passing * if kernels { 8 } else { 16 };
        Bytes {
            weights: self.weights(dtype, keep),
            adapters,
            activations: kept * size,
            passing: passing + unpacked,
            libraries: match wanted.machine {
                Machine::Cpu => 0,
                Machine::Card => LIBRARY_BYTES,
            },
        }
    }
}

/// What to change, the most helpful first.
fn advice(wanted: &Wanted<'_>, bytes: &Bytes) -> String {
    let mut list = Vec::new();
    if wanted.checkpointing == Some(false) {
        list.push("leave out `gradient_checkpointing = false`".to_owned());
    }
    if bytes.activations + bytes.passing > bytes.weights {
        if wanted.samples > 1 {
            list.push(format!(
                "lower `train.batch_size` ({}) and raise `train.gradient_accumulation`",
                wanted.samples
            ));
        }
        list.push("lower the data sets' `resolution`".to_owned());
    }
    if !matches!(wanted.keep, Keep::Packed(_)) {
        list.push("set `[model] weights = \"nf4\"` (or `fp8`)".to_owned());
    }
    list.push(match wanted.machine {
        Machine::Cpu => "use a machine with more memory".to_owned(),
        Machine::Card => "compute on the CPU (`--device cpu`), if it has more memory".to_owned(),
    });
    format!(
        "what helps: {}. A smaller rank does not: the adapters are {} of it",
        list.join("; "),
        gb(bytes.adapters)
    )
}

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "base model {}, adapters and optimizer {}, activations {}, passing {}",
            gb(self.weights),
            gb(self.adapters),
            gb(self.activations),
            gb(self.passing)
        )?;
        match self.libraries {
            0 => Ok(()),
            bytes => write!(f, ", libraries {}", gb(bytes)),
        }
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} at the height of a step ({})",
            gb(self.bytes.total()),
            self.bytes
        )?;
        if let (again @ 1.., all) = self.again {
            write!(f, "; {again} of {all} blocks are computed twice to fit")?;
        }
        if self.offload {
            write!(f, "; what they are given waits in the machine's memory")?;
        }
        match self.keep {
            Keep::InFile { resident_bytes: 0 } => write!(
                f,
                "; the base model stays in its file, and each matrix is read when it is used"
            ),
            Keep::InFile { resident_bytes } => write!(
                f,
                "; of the base model {} are kept, and each other matrix is read from its file when it is used",
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

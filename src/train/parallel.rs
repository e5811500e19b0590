//! A training by several ranks: what they agree on before the first step, who has which micro-batch, and that their numbers stay the
//! same.
//!
//! The Experiment means the same for any number of ranks: `gradient_accumulation` micro-batches of `batch_size` samples are a step, whoever
//! computes them, with the draws and in the order of one process. They are dealt in turn, and rank 0 alone reads and writes the
//! run's folder.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::beginning::Beginning;
use super::checkpoint::Checkpoint;
use super::identity::{Identity, Sides, joined};
use super::{Error, TrainOptions};
use crate::digest::Digest;
use crate::experiment::TrainSettings;
use crate::monitor::{Monitor, Signal};
use crate::optim::OptimizerOptions;
use crate::ranks::{Ranks, sum::Sums};

/// What of a checkpoint is no tensor: the description of a run, at most.
const MOST_STATE: u64 = 64 << 20;

/// What all ranks must have alike.
#[derive(Serialize, Deserialize)]
struct Facts {
    /// The program's version.
    version: String,
    /// What decides the run's numbers.
    identity: Identity,
    /// On what and in what type it is computed.
    computed: String,
    /// Of the numbers that a new run starts from; None where it goes on.
    adapters: Option<Digest>,
}

/// What rank 0 decides for all: the fields of an Experiment that change no number may differ from machine to machine.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Due {
    /// Steps that are done already.
    done: u64,
    /// The last step of this call.
    pub(super) last: u64,
    pub(super) checkpoint_every: u64,
    pub(super) validate_every: u64,
}

/// An f64 by its bits: as JSON it would come back as its neighbour, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bits(u64);

impl From<f64> for Bits {
    fn from(number: f64) -> Self {
        Self(number.to_bits())
    }
}

impl From<Bits> for f64 {
    fn from(bits: Bits) -> Self {
        Self::from_bits(bits.0)
    }
}

/// What a rank says of its passes in a round.
#[derive(Serialize, Deserialize)]
pub(super) struct Made {
    /// What each pass counts in the step.
    pub(super) factors: Vec<Bits>,
    /// Each pass's loss, times its factor.
    pub(super) losses: Vec<Bits>,
    /// The gradient's norm in the step before.
    pub(super) norm: Bits,
    /// Whether it is asked to end.
    pub(super) stop: Option<Signal>,
}

/// The micro-batches of a step that a rank computes, by their places in it, one in each round.
pub(super) fn places(ranks: &Ranks, each: usize) -> impl Iterator<Item = u64> + use<> {
    (ranks.rank()..each)
        .step_by(ranks.world())
        .map(|place| place as u64)
}

/// That each rank gets a micro-batch of every step, and how they are dealt, in words.
pub(super) fn dealt(
    ranks: &Ranks,
    train: &TrainSettings,
    file: &Path,
) -> Result<Option<String>, Error> {
    let (world, each) = (ranks.world(), train.gradient_accumulation);
    if ranks.is_alone() {
        return Ok(None);
    }
    if world > each {
        let batch = train.batch_size;
        return Err(Error::Experiment {
            file: file.into(),
            what: format!(
                "`train.gradient_accumulation`: expected at least {world}, a micro-batch of each step for every rank, found {each}; a step \
                 has the same samples whatever the number of ranks: `gradient_accumulation = {world}` gives each one micro-batch of \
                 `batch_size` ({batch})"
            ),
        });
    }
    let rounds = each.div_ceil(world);
    let batches = if rounds == 1 {
        "1 micro-batch"
    } else {
        &format!("{rounds} micro-batches")
    };
    let (rest, fewer) = (each % world, world - each % world);
    let others = match (rest, fewer) {
        (0, _) => String::new(),
        (_, 1) => format!(
            ", but for 1 rank, which computes {} and then waits",
            rounds - 1
        ),
        _ => format!(
            ", but for {fewer} ranks, which compute {} and then wait",
            rounds - 1
        ),
    };
    let none_waits = match rest {
        0 => String::new(),
        _ => format!(
            "; none would with `train.gradient_accumulation = {}`, a multiple of {world}",
            rounds * world
        ),
    };
    Ok(Some(format!(
        "{world} ranks: each computes {batches} of the {each} of a step{others}{none_waits}"
    )))
}

/// That all ranks are about to train the same, from where rank 0 begins: afterwards all begin there.
///
/// # Errors
/// If a rank is another training, by name, or is lost.
pub(super) fn agree(
    ranks: &Ranks,
    beginning: &mut Beginning,
    train: &TrainSettings,
    options: &TrainOptions,
) -> Result<Due, Error> {
    let step = beginning.state.step;
    let due = Due {
        done: step,
        last: last(options, (step, beginning.length.steps)),
        checkpoint_every: train.checkpoint_every,
        validate_every: train.validate_every,
    };
    if ranks.is_alone() {
        return Ok(due);
    }
    let facts = Facts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        identity: beginning.state.identity.clone(),
        computed: beginning.state.computed.clone(),
        adapters: (step == 0).then(|| digest(beginning.adapters.values())),
    };
    if let Some(all) = ranks.gather(facts)? {
        compare(&all)?;
    }
    let due = ranks.tell(ranks.is_first().then_some(due))?;
    if due.done > 0 {
        go_on(ranks, beginning, &train.optimizer)?;
    }
    Ok(due)
}

/// The last step of this call.
pub(super) fn last(options: &TrainOptions, (done, steps): (u64, u64)) -> u64 {
    let left = options.stop_after.unwrap_or(u64::MAX);
    steps.min(done.saturating_add(left))
}

/// How the ranks' gradients are summed.
///
/// # Errors
/// If a rank is lost, or GPUs do not find each other.
pub(super) fn sums(ranks: &Ranks, device: &Device, monitor: &dyn Monitor) -> Result<Sums, Error> {
    let (sums, note) = Sums::open(ranks, device)?;
    if let Some(note) = note {
        monitor.note(&note);
    }
    if !ranks.is_alone() && !device.is_cpu() {
        monitor.note(
            "caution: training on several GPUs has been tested by processes on a CPU alone, not on cards yet: compare with a few steps on one",
        );
    }
    Ok(sums)
}

fn compare(all: &[Facts]) -> Result<(), Error> {
    let Some((first, others)) = all.split_first() else {
        return Ok(());
    };
    for (rank, other) in (1..).zip(others) {
        let name = format!("rank {rank}");
        let sides = Sides {
            first: &name,
            file: "rank 0",
            now: "rank 0",
            free: &[],
            files: &[],
        };
        let mut found = Vec::new();
        for (what, theirs, ours) in [
            ("the version of plumb", &other.version, &first.version),
            ("it computes", &other.computed, &first.computed),
        ] {
            if theirs != ours {
                found.push(sides.both(what, theirs, ours));
            }
        }
        found.extend(other.identity.differences(&first.identity, false, sides));
        if found.is_empty() && other.identity.training != first.identity.training {
            found.push("the Experiment".to_owned());
        }
        if let (Some(theirs), Some(ours), true) = (other.adapters, first.adapters, found.is_empty())
            && theirs != ours
        {
            found.push(sides.both("the adapters at the start", &theirs.short(), &ours.short()));
        }
        if !found.is_empty() {
            let what = joined(&found);
            return Err(Error::Unlike { rank, what });
        }
    }
    Ok(())
}

/// Where rank 0 goes on from a checkpoint, the others are given it: they need not see its folder.
fn go_on(
    ranks: &Ranks,
    beginning: &mut Beginning,
    optimizer: &OptimizerOptions,
) -> Result<(), Error> {
    let count = beginning.adapters.values().len();
    let bytes = match &beginning.optimizer {
        Some(state) if ranks.is_first() => {
            let checkpoint = Checkpoint {
                state: beginning.state.clone(),
                parameters: beginning.adapters.to_device(&Device::Cpu)?,
                optimizer: state.clone(),
            };
            checkpoint.to_bytes()?
        }
        _ => Vec::new(),
    };
    let most = (4 * count + optimizer.state_bytes(count)) as u64 + MOST_STATE;
    let bytes = ranks.tell_bytes(bytes, most)?;
    if !ranks.is_first() {
        let checkpoint = Checkpoint::of_rank(bytes, optimizer)?;
        // Of another length it would be another training's, and refused.
        let values = checkpoint.parameters.to_vec1()?;
        beginning.adapters.set_values(values)?;
        beginning.optimizer = Some(checkpoint.optimizer);
        beginning.state = checkpoint.state;
    }
    Ok(())
}

/// That the gradients' norms of the step before, one of each rank, are the same bits.
pub(super) fn same_norms(made: &[Made], step: u64) -> Result<(), Error> {
    let norms: Vec<Bits> = made.iter().map(|made| made.norm).collect();
    same(&norms, step)
}

/// That the adapters' numbers are the same bits on all ranks.
pub(super) fn same_numbers(ranks: &Ranks, values: &Tensor, step: u64) -> Result<(), Error> {
    if ranks.is_alone() {
        return Ok(());
    }
    same(&ranks.exchange(digest(&values.to_vec1()?))?, step)
}

/// That all ranks have what rank 0 has.
fn same<T: PartialEq>(each: &[T], step: u64) -> Result<(), Error> {
    match each.iter().position(|one| Some(one) != each.first()) {
        Some(rank) => Err(Error::Drifted { rank, step }),
        None => Ok(()),
    }
}

fn digest(values: &[f32]) -> Digest {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    Digest::of(&bytes)
}

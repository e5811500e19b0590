//! Training: a LoRA from the store. Nothing is encoded and nothing is guessed: what the store lacks is refused
//! before the first step ([`crate::cache::Refusal`]).
//!
//! The loop is in `run.rs`; a step is a function of (Experiment, base model, entries, number of the step), so that a
//! resumed run equals an uninterrupted one bit for bit. Read [`inputs`] for what a step sees, [`step`] for what it
//! does with it, [`checkpoint`] for what is kept.

pub mod batches;
pub mod checkpoint;
mod error;
pub mod events;
pub mod inputs;
mod loader;
mod metadata;
pub mod metrics;
pub mod plan;
mod results;
mod run;
mod set;
pub mod step;

use std::path::PathBuf;

use serde::Serialize;

use crate::base_model::BaseModel;
use crate::cache::refuse_without_store;
use crate::experiment::{Experiment, Settings};
use crate::models::Placement;
use crate::monitor::Monitor;
use crate::nn::weights::DigestMemo;
use crate::store::{self, Store};

pub use error::Error;
use metrics::Clock;
use plan::{Machine, MemoryPlan, MemoryRequest};
use run::Run;
pub use set::TrainingSet;

/// The noise levels at which validation looks: sigmas of a flow, thousandths of DDPM's steps.
pub const VALIDATION_SIGMAS: [f64; 10] =
    [0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95];

/// What the command line adds to an Experiment; nothing of it changes what a step computes but `placement`.
pub struct TrainOptions {
    /// Whether checkpoints of an earlier run are ignored.
    pub restart: bool,
    /// (K, file): write what step K (from 1) saw and made to the file.
    pub dump_step: Option<(u64, PathBuf)>,
    /// Stop after this many steps of this call, as if interrupted: with a checkpoint.
    pub stop_after: Option<u64>,
    /// Seconds since 1970; the library itself reads no clock.
    pub clock: Clock,
    /// The base model's device, type and storage of weights; the plan may change the last.
    pub placement: Placement,
    /// Bytes of that device's memory that may be used.
    pub memory_bytes: u64,
}

/// The result of a training.
#[derive(Clone, Debug, Serialize)]
pub struct TrainReport {
    /// The LoRA; absent where the run stopped early.
    pub lora: Option<PathBuf>,
    /// Optimizer steps done in all.
    pub step: u64,
    /// The checkpoint's step that it resumed from; 0 for a run from the start.
    pub resumed_from: u64,
    /// The mean loss of the last steps, 20 at most; absent where this call made none.
    pub loss: Option<f64>,
    /// The last validation loss.
    pub validation_loss: Option<f64>,
    /// Adapted modules.
    pub modules: usize,
    /// Trained parameters.
    pub parameters: usize,
    /// Pictures trained from, repeats and mirrored ones not counted twice.
    pub pictures: usize,
}

/// Trains the LoRA of an Experiment, or goes on with it.
///
/// # Errors
/// [`Error::Refused`] where the store lacks something; else as the variants say.
pub fn run(
    experiment: &Experiment,
    options: &TrainOptions,
    memo: &mut DigestMemo,
    monitor: &dyn Monitor,
) -> Result<TrainReport, Error> {
    let base = BaseModel::open(experiment, memo)?;
    tell_recipe(&base, monitor);
    if let Some(caution) = base.flavor.caution {
        monitor.note(&format!("caution: {caution}"));
    }
    let store = Store::open(&experiment.store_path()).map_err(|e| no_store(experiment, &e))?;
    let set = TrainingSet::open(experiment, &base, &store, monitor)?;
    // Before loading: a model that cannot fit is refused in seconds.
    let plan = plan(&base, &set, options)?;
    monitor.note(&format!("memory: {plan}"));
    let placement = Placement {
        // Where whole weights do not fit, the plan reads them from their files.
        storage: plan.storage,
        ..options.placement.clone()
    };
    let denoiser_digest = base.denoiser_digest(memo)?;
    monitor.start("loading the base model", None);
    let denoiser = base.load_denoiser(&placement, &denoiser_digest)?;
    monitor.finish();
    let mut run = Run::start(
        experiment,
        &base,
        &set,
        denoiser.as_ref(),
        denoiser_digest,
        plan,
        options,
    )?;
    tell_start(&run, monitor);
    // Refused, or nothing would be dumped and nobody told.
    if let Some((step, _)) = &options.dump_step
        && *step <= run.step
    {
        return Err(Error::Experiment {
            file: experiment.file.clone(),
            what: format!(
                "step {step} cannot be dumped: a checkpoint is at step {} already; say --restart to begin again",
                run.step
            ),
        });
    }
    run.go(options, monitor)
}

/// The plan of the training's memory.
fn plan(
    base: &BaseModel,
    set: &TrainingSet<'_>,
    options: &TrainOptions,
) -> Result<MemoryPlan, Error> {
    let Settings { adapter, train, .. } = &base.settings;
    let request = MemoryRequest {
        denoiser: &base.denoiser,
        adapted: &run::adapted(base)?,
        rank: adapter.rank,
        optimizer: train.optimizer,
        samples: train.batch_size,
        // The largest pictures with the longest caption, though no micro-batch may have both: an upper bound.
        latents: set.largest_latents(),
        context: set.longest_context()?,
        dtype: options.placement.dtype,
        storage: options.placement.storage,
        machine: Machine::of(&options.placement.device),
        own_kernels: options.placement.kernels.are_there(),
        checkpointing: train.gradient_checkpointing,
    };
    Ok(plan::make(&request, options.memory_bytes)?)
}

fn tell_recipe(base: &BaseModel, monitor: &dyn Monitor) {
    let name = base.recipe.name();
    monitor.note(&format!(
        "recipe {name} ({})",
        base.recipe.fingerprint().short()
    ));
    for deviation in base.recipe.deviations() {
        monitor.note(&format!("  deviates: {deviation}"));
    }
}

fn tell_start(run: &Run<'_>, monitor: &dyn Monitor) {
    monitor.note(&format!(
        "{} modules, {} parameters, {} pictures, {} micro-batches an epoch",
        run.adapters.adapters().len(),
        run.adapters.values().len(),
        run.set.items().len(),
        run.num_per_epoch()
    ));
    if run.step > 0 {
        monitor.note(&format!("going on after step {}", run.step));
    }
    if let Some(before) = &run.computed_before {
        monitor.note(&format!(
            "until now this run was computed {before}, from here on {}: the steps to come differ in rounding",
            run.state.computed
        ));
    }
}

/// A store that is there and cannot be opened is the fault; one that is not there is refused with the command that makes it.
fn no_store(experiment: &Experiment, error: &store::Error) -> Error {
    if experiment.store_path().join("store.json").exists() {
        let what = format!("the store cannot be opened: {error}");
        return Error::Experiment {
            file: experiment.file.clone(),
            what,
        };
    }
    Error::Refused(Box::new(refuse_without_store(experiment)))
}

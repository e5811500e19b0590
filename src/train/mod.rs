//! Training: a LoRA from the store. Nothing is encoded and nothing is guessed: what the store lacks is refused
//! before the first step ([`crate::cache::Refusal`]).
//!
//! The loop is in `run.rs`; a step is a function of (Experiment, base model, entries, number of the step), so that a
//! resumed run equals an uninterrupted one bit for bit. Read [`inputs`] for what a step sees, [`step`] for what it
//! does with it, `parallel.rs` for several processes at one training, [`checkpoint`] for what is kept, [`identity`] for what must be the same for a run to go on, [`output`] for its folder.

mod advance;
pub mod batches;
mod beginning;
pub mod checkpoint;
pub mod checkpoints;
mod error;
pub mod events;
pub mod graphs;
pub mod identity;
pub mod inputs;
mod length;
mod loader;
mod metadata;
pub mod metrics;
pub mod output;
mod parallel;
pub mod plan;
mod results;
mod resume;
mod run;
mod set;
mod start;
pub mod step;
mod training_adapter;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::base_model::{self, BaseModel};
use crate::cache::{CutCaptions, refuse_without_store};
use crate::dataset;
use crate::digest::Digest;
use crate::experiment::{Experiment, Settings};
use crate::models::{Placement, References, WeightStorage};
use crate::monitor::{Clock, Monitor, Signal, Stop};
use crate::nn::weights::DigestMemo;
use crate::ranks::Ranks;
use crate::sample;
use crate::shown;
use crate::store::{self, Place, Store};

use beginning::Beginning;
pub use error::Error;
use output::OutputFolder;
use parallel::Due;
use plan::{Machine, MemoryPlan, MemoryRequest};
use run::{Run, Together};
pub use set::{TrainingSet, largest_latents};
use start::Start;
use training_adapter::TrainingAdapter;

/// The noise levels at which validation looks, as shares of those that the model is for: sigmas of a flow, thousandths of DDPM's
/// steps.
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
    /// Asked after each step; of ranks, one that is to end ends all after the same step. The run can be gone on with.
    pub stop: Stop,
    /// The base model's device, type and storage of weights; the plan may change the last.
    pub placement: Placement,
    /// Bytes of that device's memory that may be used.
    pub memory_bytes: u64,
    /// How long to wait for a process that cleans the store up or mends it.
    pub wait: Duration,
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
    /// Pictures and windows of clips trained from, repeats and mirrored ones not counted twice.
    pub pictures: usize,
    /// Of these and those held out, the pictures that stand beside a reference.
    pub pairs: usize,
    /// How many captions each encoder cut.
    pub captions: Vec<CutCaptions>,
    /// The processes that trained together.
    pub ranks: usize,
    /// The signal that ended the call before its last step, with a checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Signal>,
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
    run_with(experiment, options, &Ranks::alone(), memo, monitor)
}

/// As [`run`], with other processes: each computes a part of every step's micro-batches, and rank 0 writes what one process would. Where one
/// ends, all do.
///
/// # Errors
/// As there, and [`Error::Ranks`] if another rank ended.
pub fn run_with(
    experiment: &Experiment,
    options: &TrainOptions,
    ranks: &Ranks,
    memo: &mut DigestMemo,
    monitor: &dyn Monitor,
) -> Result<TrainReport, Error> {
    let result = run_as_rank(experiment, options, ranks, memo, monitor);
    if let Err(error) = &result {
        let of_ranks = match error {
            Error::Ranks(error) => Some(error),
            _ => None,
        };
        ranks.end(error, of_ranks);
    }
    result
}

fn run_as_rank(
    experiment: &Experiment,
    options: &TrainOptions,
    ranks: &Ranks,
    memo: &mut DigestMemo,
    monitor: &dyn Monitor,
) -> Result<TrainReport, Error> {
    // First, as it takes no time: what other commands do not ask for may be missing.
    let output = experiment
        .training_output()
        .map_err(base_model::Error::from)?;
    let store = experiment.store_path().map_err(base_model::Error::from)?;
    let base = BaseModel::open(experiment, memo)?;
    // With what the model says of itself: a run goes on only while that stays the same too.
    let experiment = &base.experiment;
    tell_base(&base, monitor)?;
    let store = Store::open_at(&store).map_err(|e| no_store(experiment, &store, &e))?;
    let store = store.waiting(options.wait);
    let set = TrainingSet::open(experiment, &base, &store, monitor)?;
    tell_cuts(set.truncated(), monitor);
    tell_pairs(&base, &set, monitor);
    // Before loading: a model that cannot fit is refused in seconds.
    let start = Start::read(experiment, &base, monitor)?;
    let training_adapter = TrainingAdapter::read(experiment, &base, monitor)?;
    let beneath = training_adapter.as_ref();
    let beside = beneath.map_or(0, |adapter| adapter.bytes(options.placement.dtype));
    let start_and_beside = (start.as_ref(), beside);
    let plan = plan(&base, &set, (options, ranks), start_and_beside, monitor)?;
    monitor.note(&format!("memory: {plan}"));
    let placement = Placement {
        // Where whole weights do not fit, the plan reads them from their files.
        storage: plan.storage,
        ..options.placement.clone()
    };
    tell_whole(&base, placement.storage, monitor);
    let (folder, digest, beginning, due) = begin(
        (&base, &set, &output),
        (start, beneath.map(|adapter| adapter.digest)),
        (options, &placement, ranks),
        memo,
        monitor,
    )?;
    monitor.start("loading the base model", None);
    let denoiser = base.load_denoiser(&placement, &digest)?;
    monitor.finish();
    let above = beneath.map(|adapter| adapter.beneath(denoiser.as_ref()));
    let above = above.transpose()?;
    let trained = above.as_ref().map_or(denoiser.as_ref(), |above| above);
    let together = Together {
        sums: parallel::sums(ranks, &placement.device, monitor)?,
        ranks,
        due,
        stop: options.stop,
    };
    let mut run = Run::start(
        experiment,
        &base,
        &set,
        (denoiser.as_ref(), trained, beneath),
        plan,
        &output,
        (beginning, together),
    )?;
    tell_start(&run, monitor);
    // Now that nothing stands in the way of the first step.
    if let (true, Some(folder)) = (options.restart, &folder) {
        begin_anew(folder, &results::lora_file(&base.settings.train), monitor)?;
    }
    let report = run.go(options, monitor);
    // Until now nobody else may work in it.
    drop(folder);
    report
}

/// Nobody may take what a run made that is given up for the new one's.
fn begin_anew(folder: &OutputFolder, lora: &str, monitor: &dyn Monitor) -> Result<(), Error> {
    for stays in folder.begin_anew(lora)? {
        monitor.note(&format!(
            "caution: {} is not this run's, which will write `{lora}`: whoever names the folder as a LoRA gets it until then",
            shown::path(&stays)
        ));
    }
    Ok(())
}

/// A run's folder, which rank 0 holds; the digest of the denoiser's weights; where the run begins; and what rank 0 decides for all.
type Begun = (Option<OutputFolder>, Digest, Beginning, Due);

/// Where the run begins, the same on all ranks.
fn begin(
    (base, set, output): (&BaseModel, &TrainingSet<'_>, &Path),
    (start, training_adapter): (Option<Start>, Option<Digest>),
    (options, placement, ranks): (&TrainOptions, &Placement, &Ranks),
    memo: &mut DigestMemo,
    monitor: &dyn Monitor,
) -> Result<Begun, Error> {
    let (experiment, train) = (&base.experiment, &base.settings.train);
    if let Some(told) = parallel::dealt(ranks, train, &experiment.file)? {
        monitor.note(&told);
    }
    // From here on the folder of the run is this training's; nothing is in it yet that was not there before.
    let open = || OutputFolder::open(output, &results::lora_file(train));
    let folder = ranks.is_first().then(open).transpose()?;
    let denoiser = base.denoiser_digest(memo)?;
    if let Some(start) = &start {
        start.tell_base(denoiser, monitor);
    }
    let mut beginning = Beginning::find(
        experiment,
        base,
        set,
        (denoiser, start, training_adapter),
        (output, ranks.is_first()),
        (options, placement),
        monitor,
    )?;
    let (done, steps) = (beginning.state.step, beginning.length.steps);
    check_dump(experiment, (options, ranks), (done, steps))?;
    if let Some(folder) = &folder {
        folder.check_room(&beginning.needs(&base.settings)?)?;
    }
    let due = parallel::agree(ranks, &mut beginning, train, options)?;
    Ok((folder, denoiser, beginning, due))
}

/// Refused, or nothing would be dumped and nobody told.
fn check_dump(
    experiment: &Experiment,
    (options, ranks): (&TrainOptions, &Ranks),
    (done, steps): (u64, u64),
) -> Result<(), Error> {
    let last = parallel::last(options, (done, steps));
    if let Some((_, file)) = &options.dump_step {
        store::check_file(file)?;
    }
    let why = match &options.dump_step {
        Some(_) if !ranks.is_alone() => {
            "a rank sees its own part of it; one process trains on the same numbers".to_owned()
        }
        Some((step, _)) if *step <= done => {
            format!("a checkpoint is at step {done} already; say --restart to begin again")
        }
        Some((step, _)) if *step > steps => format!("the training has {steps}"),
        Some((step, _)) if *step > last => {
            format!("--stop-after ends this call after step {last}")
        }
        _ => return Ok(()),
    };
    let step = options.dump_step.as_ref().map_or(0, |(step, _)| *step);
    Err(Error::Experiment {
        file: experiment.file.clone(),
        what: format!("step {step} cannot be dumped: {why}"),
    })
}

/// The plan of the training's memory, of which `beside` bytes are taken already.
fn plan(
    base: &BaseModel,
    set: &TrainingSet<'_>,
    (options, ranks): (&TrainOptions, &Ranks),
    (start, beside): (Option<&Start>, u64),
    monitor: &dyn Monitor,
) -> Result<MemoryPlan, Error> {
    let Settings { adapter, train, .. } = &base.settings;
    let samples = set.most_in_a_batch(train.batch_size, monitor);
    // The largest pictures with the longest caption, though no micro-batch may have both: an upper bound.
    let (latents, reference) = set.largest_latents();
    let other = match train.sample_every > 0 {
        true => base.other_expert()?,
        false => None,
    };
    let request = MemoryRequest {
        denoiser: &base.denoiser,
        other_expert: other.as_ref().map(|other| &other.denoiser),
        adapted: &run::adapted(base, start)?,
        rank: start.map_or(adapter.rank, Start::rank),
        optimizer: train.optimizer,
        samples,
        latents,
        reference,
        context: set.longest_context()?,
        dtype: options.placement.dtype,
        storage: options.placement.storage,
        machine: Machine::of(&options.placement.device),
        own_kernels: options.placement.kernels.are_there(),
        apart: gradients_apart(samples, &options.placement, ranks),
        checkpointing: train.gradient_checkpointing,
    };
    let available = options.memory_bytes.saturating_sub(beside);
    Ok(plan::make(&request, available)?)
}

/// Says where no matrix is of a size that is kept as the Experiment asks.
fn tell_whole(base: &BaseModel, storage: WeightStorage, monitor: &dyn Monitor) {
    let asked = match storage {
        WeightStorage::Quantized(_) => "weights",
        WeightStorage::Fp8 { .. } => "compute",
        WeightStorage::Whole | WeightStorage::InFile { .. } => return,
    };
    let shapes = base.denoiser.tensors().iter().map(|(_, shape)| shape);
    let matrices = shapes.filter_map(|shape| <[usize; 2]>::try_from(&shape[..]).ok());
    if matrices.clone().all(|shape| storage.is_whole(shape)) {
        monitor.note(&format!(
            "`[model] {asked}` has no effect: each of the model's {} matrices is too small for it, or of a width that does not fit",
            matrices.count()
        ));
    }
}

/// The adapters' gradients beside the one that a step is summed in.
fn gradients_apart(samples: usize, placement: &Placement, ranks: &Ranks) -> usize {
    // Of each pass of a micro-batch, at most as many as samples, and one that comes from another rank.
    let of_ranks = match ranks.is_alone() {
        true => 0,
        false => samples.saturating_add(1),
    };
    // Where a graph leaves its own, and the one that its first is compared with.
    let of_graphs = if placement.kernels.have_graphs() {
        2
    } else {
        0
    };
    of_graphs + of_ranks
}

/// What there is to say of the base model, and that previews can be made of it where they are asked for.
fn tell_base(base: &BaseModel, monitor: &dyn Monitor) -> Result<(), Error> {
    tell_recipe(base, monitor);
    tell_expert(base, monitor);
    check_previews(base, monitor)?;
    if let Some(caution) = base.flavor.caution {
        monitor.note(&format!("caution: {caution}"));
    }
    Ok(())
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
    for note in &base.notes {
        monitor.note(note);
    }
}

/// Which noise levels are trained, where it is not all.
fn tell_expert(base: &BaseModel, monitor: &dyn Monitor) {
    if let Some(expert) = base.flavor.expert {
        monitor.note(&format!(
            "this expert is for noise levels from {} to {}: trained and validated there alone; the other one (`{}`) needs a LoRA of its own",
            expert.levels.from, expert.levels.to, expert.other
        ));
    }
}

/// Refuses previews that could not be made, before the first step: they pass through the other of two experts as well.
fn check_previews(base: &BaseModel, monitor: &dyn Monitor) -> Result<(), Error> {
    if base.settings.train.sample_every > 0 {
        base.other_expert()?;
        sample::previews::check(base)?;
        sample::tell_negative(base, monitor);
    }
    Ok(())
}

/// What the denoiser is given beside pictures, where it can be given something.
fn tell_pairs(base: &BaseModel, set: &TrainingSet<'_>, monitor: &dyn Monitor) {
    let (pairs, all) = (set.pairs(), set.items().len() + set.held_out().len());
    match base.flavor.references {
        None => return,
        Some(References::Possible { .. }) if pairs == 0 => return,
        Some(_) => {}
    }
    monitor.note(&format!(
        "a reference stands beside {}{}",
        shown::part_of(pairs, all, "picture"),
        match all - pairs {
            0 => "",
            _ => "; the others are trained on as text to picture",
        }
    ));
    let settings = &base.settings;
    let previews = settings.train.sample_every > 0;
    if previews && pairs > 0 && set.previews().is_empty() {
        monitor.note(
            "the previews are made of the prompts alone, as text to picture: `references` under [sample] names pictures to give beside",
        );
    }
}

fn tell_cuts(captions: &[CutCaptions], monitor: &dyn Monitor) {
    for of in captions {
        for (count, why) in [
            (of.truncated, ""),
            (
                of.shortened,
                " by the recipe's clean-up, before tokens are made",
            ),
        ] {
            if count > 0 {
                monitor.note(&format!(
                    "{}: {} {} cut{why} (`plumb inspect tokens` shows where)",
                    of.slot,
                    shown::part_of(count, of.captions, "caption"),
                    shown::are(count)
                ));
            }
        }
    }
}

fn tell_start(run: &Run<'_>, monitor: &dyn Monitor) {
    monitor.note(&format!(
        "{}, {} parameters, {}, {} an epoch",
        shown::counted(run.adapters.adapters().len(), "module"),
        run.adapters.values().len(),
        dataset::items_in_words(run.set.items()),
        shown::counted(run.num_per_epoch(), "micro-batch")
    ));
}

/// A store that is there and cannot be opened is the fault; one that is not there is refused with the command that makes it.
fn no_store(experiment: &Experiment, store: &Place, error: &store::Error) -> Error {
    if !error.is_no_store() {
        let what = format!("the store cannot be opened: {error}");
        return Error::Experiment {
            file: experiment.file.clone(),
            what,
        };
    }
    Error::Refused(Box::new(refuse_without_store(experiment, &store.shown())))
}

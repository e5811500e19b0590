//! `plumb train`: a LoRA from the store.

use std::path::PathBuf;

use plumb::base_model;
use plumb::dataset;
use plumb::ranks::Ranks;
use plumb::sample;
use plumb::shown::counted;
use plumb::train::{self, Error, TrainOptions, TrainReport};

use crate::CommandResult;
use crate::ranks::{Position, RanksArgs, Where};
use crate::signals;
use crate::ui::{Failure, Ui};
use crate::world::{self, DeviceArgs, WaitArgs};

/// Train the LoRA of an Experiment, or go on with it.
///
/// Nothing is encoded here: if the store lacks something, the command says what and why, and ends with exit
/// status 4. An interrupted run goes on at its newest checkpoint, and ends with the same LoRA as if it had never
/// stopped. Ctrl-C and SIGTERM let the step under way end, write a checkpoint, and end with exit status 130 and 143; a second one ends at
/// once.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The Experiment file.
    pub(crate) experiment: PathBuf,
    /// Begin again, whatever checkpoints there are.
    #[arg(long)]
    pub(crate) restart: bool,
    /// Stop after this many steps, with a checkpoint.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) stop_after: Option<u64>,
    /// Write what step K (from 1) saw and made to FILE (safetensors).
    ///
    /// Tensors: latents, noise, noisy_latents, sigma, timestep, context, pooled, prediction, target,
    /// loss_weight, loss, and where there are some guidance, time_ids, token_counts, reference; adapter.MODULE.lora_A.weight and lora_B.weight before the step; gradient.MODULE... of
    /// each before clipping; beneath.MODULE... of a training adapter, its scale in B. A step of several micro-batches has those of the first under these names, and of
    /// the others with .1, .2, ... behind. tools/replay_step.py replays it in diffusers and peft.
    #[arg(long, num_args = 2, value_names = ["K", "FILE"])]
    pub(crate) dump_step: Option<Vec<String>>,
    #[command(flatten)]
    ranks: RanksArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// With own kernels, ask for each step's passes as a CUDA graph: those of a shape are recorded at its first step and asked for as a
    /// whole from its third on, if the second gives the same bits both ways. No real GPU has run this yet.
    #[arg(long, requires = "own_kernels")]
    cuda_graphs: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> CommandResult {
    // Before other processes are started: what is wrong with it is told once.
    let experiment = world::open_experiment(&args.experiment, ui)?;
    let dump_step = dump_step(args.dump_step.as_deref())?;
    let position = args.ranks.position()?;
    let rank = position.as_ref().map_or(0, Position::rank);
    // What all ranks would say, rank 0 says.
    let of_rank = (rank > 0).then(|| Ui::of_rank(rank));
    let ui = of_rank.as_ref().unwrap_or(ui);
    signals::heed("ending after this step, with a checkpoint", ui)?;
    let named = |failure: Failure| match rank {
        0 => failure,
        rank => failure.of_rank(rank),
    };
    let (work, processes) = position
        .as_ref()
        .map_or((Where::AsAsked, 1), |p| (p.work, p.on_machine));
    let opened = args.device.open_shared(work, processes, ui);
    let place = opened.and_then(|place| place.for_denoiser_of(&experiment, ui));
    let mut place = place.map_err(named)?;
    // Kernels that failed are left out, and there is nothing to record.
    if args.cuda_graphs && place.kernels.are_there() {
        place.kernels = (place.kernels.with_graphs()).map_err(|e| named(Failure::error(e)))?;
    }
    let options = TrainOptions {
        restart: args.restart,
        dump_step,
        stop_after: args.stop_after,
        clock: world::now_seconds,
        stop: signals::asked,
        placement: base_model::placement(&experiment, &place.device, &place.kernels),
        memory_bytes: place.memory_bytes,
        wait: args.wait.limit(),
    };
    let met = position.map(|position| args.ranks.meet(position, ui));
    let (ranks, started) = met.transpose().map_err(named)?.unzip();
    let ranks = ranks.unwrap_or_else(Ranks::alone);
    let mut memo = world::digest_memo();
    let report = train::run_with(&experiment, &options, &ranks, &mut memo, ui);
    // Those that were started end when they see that the connection is closed.
    drop((ranks, started));
    // Of ranks that are ended before all have begun, the first that end take the others with them.
    let report = report.map_err(|error| {
        let signal = signals::found().filter(|_| matches!(error, Error::Ranks(_)));
        let failure = match rank {
            0 => failure(error),
            _ if args.ranks.is_launched() => Failure::told(),
            rank => failure(error).of_rank(rank),
        };
        match signal {
            Some(signal) => failure.by(signal),
            None => failure,
        }
    })?;
    if rank == 0 {
        ui.report(&report, &describe(&report))?;
    }
    report.stopped.map_or(Ok(()), |s| Err(Failure::stopped(s)))
}

/// The exit status that goes with an error.
pub(crate) fn failure(error: Error) -> Failure {
    match error {
        Error::Refused(refusal) => Failure::refused(refusal),
        Error::Base(error) => world::base_failure(error),
        Error::Dataset(dataset::Error::Several(_)) => Failure::errors(error),
        Error::Experiment { .. } | Error::Preview(sample::Error::Setting { .. }) => {
            Failure::usage(error)
        }
        other => Failure::error(other),
    }
}

fn dump_step(values: Option<&[String]>) -> Result<Option<(u64, PathBuf)>, Failure> {
    let Some([step, file]) = values else {
        return Ok(None);
    };
    let number = step.parse::<u64>().ok().filter(|n| *n > 0);
    let number = number.ok_or_else(|| {
        Failure::usage(format!(
            "--dump-step: expected a step from 1, found `{step}`"
        ))
    })?;
    Ok(Some((number, file.into())))
}

pub(crate) fn describe(report: &TrainReport) -> String {
    let mut lines = vec![format!("{} done", counted(report.step, "step"))];
    if report.ranks > 1 {
        lines[0] += &format!(" by {}", counted(report.ranks, "rank"));
    }
    if report.resumed_from > 0 {
        lines[0] += &format!(", the first {} of them before", report.resumed_from);
    }
    if let Some(loss) = report.loss {
        lines.push(format!("mean loss of the last steps: {loss:.4}"));
    }
    if let Some(loss) = report.validation_loss {
        lines.push(format!("validation loss: {loss:.4}"));
    }
    match &report.lora {
        Some(path) => lines.push(format!("LoRA: {}", path.display())),
        None => {
            let by = report.stopped.map(|signal| format!("ended by {signal}"));
            let why = by.unwrap_or_else(|| "not finished".to_owned());
            lines.push(format!(
                "{why}, with a checkpoint: run the same command again to go on"
            ));
        }
    }
    lines.join("\n")
}

//! `plumb sample`: pictures from a base model, with or without a LoRA.

use std::path::PathBuf;

use plumb::experiment::SampleOverrides;
use plumb::sample::{self, Error, LoraUse};

use crate::CommandResult;
use crate::ui::{Failure, Ui};
use crate::world::{self, DeviceArgs, WaitArgs};

/// Sample the pictures of an Experiment's [sample] section.
///
/// Captions that the store lacks are encoded into it first.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The Experiment file.
    experiment: PathBuf,
    /// Use this LoRA, a file or a folder that PEFT saved, with a strength from -100 to 100 instead of 1; may be given several times.
    ///
    /// What the LoRAs change is added up, so their order means nothing.
    #[arg(long, value_name = "FILE[:STRENGTH]")]
    lora: Vec<PathBuf>,
    /// Sample this caption instead of the Experiment's; may be given several times.
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// Sample the captions in this text file instead, one a line; lines that begin with `#` are left out.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompts_file: Option<PathBuf>,
    /// Give this picture beside the noisy one, for a model that takes one (FLUX.1 Kontext), instead of the Experiment's; given several
    /// times, one for each caption.
    #[arg(long, value_name = "FILE")]
    reference: Vec<PathBuf>,
    /// What the start noise derives from, instead of the Experiment's.
    #[arg(long)]
    seed: Option<u64>,
    /// Sampler steps, instead of the Experiment's.
    #[arg(long)]
    steps: Option<usize>,
    /// Guidance scale, instead of the Experiment's.
    #[arg(long)]
    guidance: Option<f64>,
    /// Where the pictures go; the default is `samples` in the Experiment's output folder.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> CommandResult {
    let loras = args.lora.iter().cloned().map(LoraUse::parse);
    let loras: Vec<_> = loras.collect::<Result<_, _>>().map_err(Failure::usage)?;
    let mut experiment = world::open_experiment(&args.experiment, ui)?;
    let overrides = SampleOverrides {
        prompts: args.prompt.clone(),
        prompts_file: args.prompts_file.clone(),
        references: args.reference.clone(),
        seed: args.seed,
        steps: args.steps,
        guidance: args.guidance,
    };
    experiment
        .override_sample(overrides)
        .map_err(Failure::usage)?;
    let samples = experiment.output_path().map(|out| out.join("samples"));
    let folder = args.out.clone().or(samples).ok_or_else(|| {
        Failure::usage("where do the pictures go? Give --out FOLDER, or `output` under [train] in the Experiment")
    })?;
    let place = args.device.open(ui)?.for_denoiser_of(&experiment, ui)?;
    let options = world::encode_options(&place, &args.wait);
    let options = (&options, place.memory_bytes);
    let mut memo = world::digest_memo();
    let report =
        sample::run(&experiment, &loras, &folder, options, &mut memo, ui).map_err(failure)?;
    let lines = report
        .pictures
        .iter()
        .map(|p| format!("{}  {}", p.file.display(), p.prompt));
    let lines: Vec<String> = lines.collect();
    ui.report(&report, &lines.join("\n"))
}

fn failure(error: Error) -> Failure {
    match error {
        Error::NoPrompt | Error::References { .. } | Error::Setting { .. } => Failure::usage(error),
        Error::Base(error) => world::base_failure(error),
        other => Failure::error(other),
    }
}

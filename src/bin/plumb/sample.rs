//! `plumb sample`: pictures from a base model, with or without a LoRA.

use std::path::{Path, PathBuf};

use plumb::autograd::Tape;
use plumb::base::{self, Base};
use plumb::convert;
use plumb::embed::encode_captions;
use plumb::experiment::Experiment;
use plumb::lora::{self, AdapterSet, Bound};
use plumb::models::Denoiser;
use plumb::monitor::Monitor as _;
use plumb::preview;
use plumb::store::{self, Store};
use plumb::train::provenance::Provenance;
use plumb::train::{PairSource, extra_captions};
use serde::Serialize;

use crate::CommandResult;
use crate::ui::{Failure, Ui};
use crate::world::{self, DeviceArgs, Place};

/// Sample the pictures of an Experiment's [sample] section.
///
/// Captions that the store lacks are encoded into it first.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The Experiment file.
    experiment: PathBuf,
    /// Use this LoRA.
    #[arg(long, value_name = "FILE")]
    lora: Option<PathBuf>,
    /// Sample this caption instead of the Experiment's; may be given several times.
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
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
}

#[derive(Serialize)]
struct Report {
    pictures: Vec<Written>,
}

#[derive(Serialize)]
struct Written {
    prompt: String,
    file: PathBuf,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> CommandResult {
    let mut experiment = world::open_experiment(&args.experiment, ui)?;
    let sample = &mut experiment.raw.sample;
    if !args.prompt.is_empty() {
        sample.prompts.clone_from(&args.prompt);
    }
    sample.seed = args.seed.unwrap_or(sample.seed);
    sample.steps = args.steps.or(sample.steps);
    sample.guidance = args.guidance.or(sample.guidance);
    experiment.recheck().map_err(Failure::usage)?;
    if experiment.raw.sample.prompts.is_empty() {
        return Err(Failure::usage(
            "there is nothing to sample: give --prompt, or `prompts` under [sample]",
        ));
    }
    let folder = args
        .out
        .clone()
        .unwrap_or_else(|| experiment.output_path().join("samples"));
    let place = args.device.open(ui)?;
    let report = sample_all(&experiment, args.lora.as_deref(), &folder, &place, ui)?;
    let lines: Vec<String> = report
        .pictures
        .iter()
        .map(|p| format!("{}  {}", p.file.display(), p.prompt))
        .collect();
    ui.report(&report, &lines.join("\n"))
}

fn sample_all(
    experiment: &Experiment,
    lora: Option<&Path>,
    folder: &Path,
    place: &Place,
    ui: &Ui,
) -> Result<Report, Failure> {
    let base = Base::open(experiment, &mut world::digest_memo()).map_err(world::base_failure)?;
    let store = Store::open_or_create(&experiment.store_path()).map_err(Failure::error)?;
    let captions = extra_captions(experiment);
    let embed = world::embed_options(place);
    encode_captions(&base, &store, &captions, &embed, ui).map_err(Failure::error)?;
    let adapters = lora.map(|path| open_lora(path, &base, ui)).transpose()?;
    let denoiser = base
        .family
        .load(
            &base.components,
            &base::placement(experiment, &place.device),
        )
        .map_err(Failure::error)?;
    let bound = bind(adapters.as_ref(), denoiser.as_ref())?;
    let source = PairSource::open(&base, &store).map_err(Failure::error)?;
    let options = preview::options(experiment, &base);
    let steps = options.steps * experiment.raw.sample.prompts.len();
    ui.start("sampling", Some(steps as u64));
    let pictures = preview::pictures(
        experiment,
        &base,
        &source,
        denoiser.as_ref(),
        &bound,
        &|| ui.advance(1),
    )
    .map_err(Failure::error)?;
    ui.finish();
    let mut written = Vec::new();
    for (number, (prompt, picture)) in pictures.into_iter().enumerate() {
        let file = folder.join(format!("seed{}-{number:03}.png", options.seed));
        let png = preview::png(&picture).map_err(Failure::error)?;
        store::write_file(&file, &[&png]).map_err(Failure::error)?;
        written.push(Written { prompt, file });
    }
    Ok(Report { pictures: written })
}

/// Adapters for inference; none where there is no LoRA.
pub(crate) fn bind(
    adapters: Option<&AdapterSet>,
    denoiser: &dyn Denoiser,
) -> Result<Bound, Failure> {
    let Some(adapters) = adapters else {
        return Ok(Bound::none());
    };
    adapters.check(denoiser.linears()).map_err(Failure::error)?;
    adapters
        .bind(&Tape::off(), denoiser.dtype(), denoiser.device(), None)
        .map_err(Failure::error)
}

/// Reads a LoRA and warns where it was trained otherwise than it is used.
pub(crate) fn open_lora(path: &Path, base: &Base, ui: &Ui) -> Result<AdapterSet, Failure> {
    let origin = path.display().to_string();
    let file = convert::read_lora(path, Some(base.family.name()), false).map_err(Failure::error)?;
    let provenance = Provenance::read(&file.metadata).map_err(|e| {
        Failure::error(format!(
            "{origin}: its `plumb` metadata cannot be read: {e}"
        ))
    })?;
    if let Some(made) = provenance
        && made.recipe_fingerprint != base.recipe.fingerprint()
    {
        let made = made.recipe.get("rules").cloned().unwrap_or_default();
        let diff = plumb::recipe::Diff::between(&base.recipe.rules(), &made);
        ui.note(&format!(
            "warning: {origin} was trained with another recipe than this Experiment's:\n{diff}"
        ));
    }
    lora::formats::adapters(file.modules).map_err(Failure::error)
}

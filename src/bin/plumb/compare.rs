//! `plumb compare`: which of two LoRAs predicts unseen pictures better, and in what they were made otherwise.

use std::path::{Path, PathBuf};

use plumb::base_model::placement;
use plumb::compare::{
    self, AtLevel, CompareOptions, CompareReport, Error, Measured, Paired, Under,
};
use plumb::dataset;
use plumb::experiment::Experiment;
use plumb::probe::stats::FEWEST_CHANGED;
use plumb::recipe::diff::readable;
use plumb::sample;
use plumb::shown;

use crate::CommandResult;
use crate::ui::{Failure, Ui};
use crate::world::{self, DeviceArgs, WaitArgs};

/// Lines of differences that are printed.
const MOST_DIFFERENCES: usize = 60;

/// Compare two LoRAs of one base model on pictures that neither was trained from.
///
/// A and B predict the same pictures with the same noise, so the difference is measured picture by picture. Base
/// model and pictures are those of A's Experiment (the pictures that it holds out with `validation_share`), or of
/// --data. Each LoRA gets its captions under the recipe that it says it was trained with; --recipe gives both the
/// same, as a program does that samples them. Captions and pictures that the store lacks are encoded first.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A: the folder of a training, or a LoRA file.
    a: PathBuf,
    /// B.
    b: PathBuf,
    /// The Experiment with base model, store and pictures: those that it holds out, or all of them where it holds out none.
    #[arg(long, value_name = "EXPERIMENT")]
    data: Option<PathBuf>,
    /// Under which recipe captions are encoded: `own`, each LoRA's; `experiment`, that of --data; or a variant for both, such
    /// as `reference`.
    #[arg(long, value_name = "NAME", default_value = "own")]
    recipe: String,
    /// Draw noise so often for each picture and noise level; 1 is what training validates with.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    draws: u64,
    /// Measure the base model without a LoRA too.
    #[arg(long)]
    base: bool,
    /// Sample previews of the base model, A and B side by side into FOLDER/compare.png (.webp of a model of videos): the Experiment's prompts, or four captions.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> CommandResult {
    let experiment = match &args.data {
        Some(file) => world::open_experiment(file, ui)?,
        None => {
            let of = |variables: &_| compare::experiment_of(&args.a, variables).map_err(failure);
            world::fetched(of(&world::variables())?, ui)?
        }
    };
    let place = args.device.open(ui)?.for_denoiser_of(&experiment, ui)?;
    let options = CompareOptions {
        under: match args.recipe.as_str() {
            "own" => Under::Own,
            "experiment" => Under::Experiment,
            variant => Under::Variant(variant.to_owned()),
        },
        with_base: args.base,
        draws: args.draws,
        out: args.out.clone(),
        memory_bytes: place.memory_bytes,
        placement: placement(&experiment, &place.device, &place.kernels),
        encode: world::encode_options(&place, &args.wait),
    };
    let report = compare(args, &experiment, &options, ui)?;
    ui.report(&report, &describe(&report))
}

fn compare(
    args: &Args,
    experiment: &Experiment,
    options: &CompareOptions,
    ui: &Ui,
) -> Result<CompareReport, Failure> {
    let files: [&Path; 2] = [&args.a, &args.b];
    compare::run(files, experiment, options, &mut world::digest_memo(), ui).map_err(failure)
}

fn failure(error: Error) -> Failure {
    match error {
        Error::Base(error) => world::base_failure(error),
        Error::Dataset(dataset::Error::Several(_)) => Failure::errors(error),
        Error::SameLora { .. }
        | Error::NoExperiment { .. }
        | Error::NoPictures { .. }
        | Error::TrainedOn { .. }
        | Error::Sample(sample::Error::Setting { .. })
        | Error::Recipe(_) => Failure::usage(error),
        other => Failure::error(other),
    }
}

fn describe(report: &CompareReport) -> String {
    let mut lines = vec![described("A", &report.a), described("B", &report.b)];
    if let Some(base) = report.base {
        lines.push(format!("base model alone: loss {base:.5}"));
    }
    lines.push(String::new());
    lines.push(verdict(report));
    lines.push(String::new());
    let things = report.subjects().several();
    lines.push(format!(
        "  noise        A        B     B - A  (95 % interval over {things})"
    ));
    lines.extend(report.levels.iter().map(level));
    lines.push(String::new());
    lines.extend(differences(report));
    if let Some(sheet) = &report.sheet {
        lines.push(String::new());
        lines.push(format!("previews: {}", shown::path(sheet)));
    }
    lines.join("\n")
}

fn described(name: &str, measured: &Measured) -> String {
    let lora = &measured.lora;
    let steps = lora
        .steps
        .map_or_else(String::new, |steps| format!(", {steps} steps"));
    let whose = match lora.is_own {
        Some(true) => "its own recipe",
        Some(false) => "another recipe than its own",
        None => "the recipe",
    };
    let deviations: Vec<_> = lora
        .under
        .deviations
        .iter()
        .map(|deviation| {
            let value = readable(Some(&deviation.value));
            format!(", {} = {}", deviation.field, shown::text(&value))
        })
        .collect();
    format!(
        "{name}: loss {:.5} under {whose} ({}{}): {}{steps}",
        measured.loss,
        lora.under.name,
        deviations.concat(),
        shown::path(&lora.file)
    )
}

/// What the difference says, and what it does not.
fn verdict(report: &CompareReport) -> String {
    let Paired {
        mean,
        interval,
        p,
        b_is_lower,
        pictures_to_tell,
    } = &report.difference;
    let (mean, b_is_lower) = (*mean, *b_is_lower);
    let (pictures, things) = (report.subjects().counted(), report.subjects().several());
    let Some([low, high]) = interval else {
        return format!(
            "B's loss is {mean:+.5} beside A's, over {pictures}: too few for an interval, {FEWEST_CHANGED} are the fewest"
        );
    };
    let p = p.map_or_else(String::new, |p| match p < 0.001 {
        true => ", p < 0.001".to_owned(),
        false => format!(", p = {p:.3}"),
    });
    let found = format!(
        "B's loss is {mean:+.5} beside A's (95 % interval {low:+.5} to {high:+.5}{p}), and lower for {b_is_lower} of {pictures}"
    );
    if !report.difference.is_shown() {
        let more = pictures_to_tell.map_or_else(String::new, |count| {
            format!("; if it is as large as it seems, {count} {things} would tell")
        });
        return format!("no difference is shown: {found}{more}");
    }
    let better = if mean < 0.0 { "B" } else { "A" };
    format!("{better} predicts these {things} better: {found}")
}

fn level(level: &AtLevel) -> String {
    let AtLevel {
        sigma,
        a,
        b,
        difference,
    } = level;
    let interval = difference.interval.map_or_else(String::new, |[low, high]| {
        format!("  [{low:+.5}, {high:+.5}]")
    });
    let mean = difference.mean;
    format!("  {sigma:5.2}  {a:7.4}  {b:7.4}  {mean:+8.5}{interval}")
}

fn differences(report: &CompareReport) -> Vec<String> {
    let found = &report.differences;
    if found.is_empty() {
        let why = match (report.a.lora.steps, report.b.lora.steps) {
            (Some(_), Some(_)) => "as far as they say, they were made alike",
            _ => "in what they were made otherwise is not known: not both say how they were made",
        };
        return vec![why.to_owned()];
    }
    let value = |value| shown::text(&readable(Some(value))).to_string();
    let mut lines = vec!["made otherwise:".to_owned()];
    let of = found.iter().map(|difference| {
        let (a, b) = (value(&difference.a), value(&difference.b));
        format!("  {}: A {a}, B {b}", shown::text(&difference.field))
    });
    lines.extend(of.take(MOST_DIFFERENCES));
    if let Some(more @ 1..) = found.len().checked_sub(MOST_DIFFERENCES) {
        lines.push(format!("  and {more} more (--json has all)"));
    }
    lines
}

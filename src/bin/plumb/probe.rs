//! `plumb probe`: which recipe a base model expects.

use std::path::PathBuf;

use plumb::base_model;
use plumb::dataset;
use plumb::experiment::{Experiment, Products};
use plumb::probe::report::{CandidateReport, Control, Difference, Verdict};
use plumb::probe::{
    self, Error, FEWEST_PICTURES, ProbeOptions, ProbePlace, Report, Vary, conclusion,
};
use plumb::{encode, shown, store};

use crate::CommandResult;
use crate::layout::wrapped_to;
use crate::ui::{Failure, Ui};
use crate::world::{self, DeviceArgs, WaitArgs};

/// Measure which conditioning recipe the base model expects.
///
/// The frozen base model predicts the same noisy pictures under one recipe and under others; the difference of its losses is the
/// recipes'. Use pictures of the kind and the resolution that the base model was trained on: on others it may prefer recipes that it was
/// not trained with. As a control, each picture is measured with another's caption as well. By default the shipped variants are compared with the reference. Captions are encoded into the Experiment's store first.
/// The probe ends as soon as every recipe's answer is clear. What it says is evidence, not proof.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The Experiment file, for its base model and its captioned pictures.
    experiment: PathBuf,
    /// Vary a field: t5.tokens.max_tokens=77,154,256,512. Several fields that take one value together: A+B=VALUE. `all`: every
    /// variant, and every field with the values that programs use. May be given several times.
    #[arg(long, value_name = "FIELD=V,V,...")]
    vary: Vec<String>,
    /// Compare with this variant, or with `experiment`, the Experiment's own recipe. [default: reference]
    #[arg(long, value_name = "VARIANT")]
    against: Option<String>,
    /// Use at most so many pictures; all windows of a clip count as one.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u64).range(FEWEST_PICTURES as u64..=100_000))]
    pairs: u64,
    /// Draws of noise and timestep for each picture, spread evenly over the noise schedule.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    draws: u32,
    /// Equal parts of the noise schedule that are shown apart; a divisor of the draws.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    bands: u32,
    /// Measure all pictures, also where every answer is clear before.
    #[arg(long)]
    all_pairs: bool,
    /// What noise, timesteps and the choice of pictures derive from.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// The most samples in one call of the denoiser. [default: 8; with `[model] compute = "fp8"` it is 1 and no other]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=4096))]
    batch: Option<u64>,
    /// Write the report to this file (JSON), for `plumb recipe explain --measured`.
    #[arg(long, value_name = "REPORT.json")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

/// The most samples in a call, where nobody says.
const USUAL_BATCH: usize = 8;

pub(crate) fn run(args: &Args, ui: &Ui) -> CommandResult {
    let vary = args.vary.iter().map(|text| text.parse::<Vary>());
    let vary = vary.collect::<Result<_, _>>().map_err(Failure::usage)?;
    if let Some(out) = &args.out {
        world::check_file("--out", out)?;
    }
    let experiment = world::open_experiment(&args.experiment, ui)?;
    let batch = batch(args.batch, &experiment)?;
    let place = args.device.open(ui)?.for_denoiser_of(&experiment, ui)?;
    let options = ProbeOptions {
        vary,
        against: args.against.clone(),
        pairs: args.pairs as usize,
        draws: args.draws,
        bands: args.bands,
        seed: args.seed,
        batch,
        stop_early: !args.all_pairs,
    };
    let place = ProbePlace {
        memory_bytes: place.memory_bytes,
        encode: world::encode_options(&place, &args.wait),
        placement: base_model::placement(&experiment, &place.device, &place.kernels),
    };
    let mut memo = world::digest_memo();
    let report = probe::run(&experiment, &options, &place, &mut memo, ui).map_err(failure)?;
    if let Some(out) = &args.out {
        let json = report.to_json().map_err(Failure::error)?;
        store::write_file(out, &[&json]).map_err(Failure::error)?;
    }
    ui.report(&report, &describe(&report))
}

/// The most samples in a call.
fn batch(asked: Option<u64>, experiment: &Experiment) -> Result<usize, Failure> {
    match (asked, experiment.model().products) {
        (Some(batch @ 2..), Some(Products::Fp8)) => Err(Failure::usage(format!(
            "--batch {batch}: expected 1, or the option left out, with `[model] compute = \"fp8\"` in {}: one scale rounds all samples \
             of a call, so that their losses would depend on it",
            shown::path(&experiment.file)
        ))),
        (None, _) => Ok(USUAL_BATCH),
        (Some(batch), _) => Ok(batch as usize),
    }
}

/// The exit status that goes with an error.
fn failure(error: Error) -> Failure {
    match error {
        Error::NoPictures { .. }
        | Error::TooFew { .. }
        | Error::Bands { .. }
        | Error::Against { .. }
        | Error::NothingToCompare { .. }
        | Error::Recipe(_) => Failure::usage(error),
        Error::Base(error) | Error::Encode(encode::Error::Base(error)) => {
            world::base_failure(error)
        }
        Error::Dataset(dataset::Error::Several(_)) => Failure::errors(error),
        other => Failure::error(other),
    }
}

/// Columns of the narrowest terminal that the table is for.
const WIDTH: usize = 80;
/// Columns of the labels; a longer one has a line of its own.
const LABEL: usize = 28;

fn describe(report: &Report) -> String {
    let against = report
        .candidates
        .first()
        .map_or_else(String::new, CandidateReport::title);
    let mut rows: Vec<&CandidateReport> = report.distinct().into_iter().skip(1).collect();
    rows.retain(|c| !matches!(c.verdict, Verdict::Same | Verdict::Negligible));
    rows.sort_by(|a, b| mean(a).total_cmp(&mean(b)));
    let loss = report.candidates.first().map_or(0.0, |c| c.loss);
    let things = report.subjects().several();
    let mut text = wrapped(&format!(
        "{}/{}, compared with {against} (mean loss {loss:.4}); below 0 is better",
        report.family, report.flavor
    ));
    if !rows.is_empty() {
        text += &table(report, &rows);
        text += &by_band(report, &rows);
    }
    let negligible = format!(
        "Negligible, surely below {} % of the loss",
        report.method.negligible * 100.0
    );
    text += &listed(report, Verdict::Negligible, &negligible);
    let same = "No effect on this base with these captions, as the denoiser gets the same tensors";
    text += &listed(report, Verdict::Same, same);
    if let Some(control) = &report.control {
        text += "\n";
        text += &wrapped(&of_control(control, things));
    }
    let method = &report.method;
    let guidance = method.guidance.map_or_else(String::new, |guidance| {
        format!(" Embedded guidance {guidance}, as in training.")
    });
    text += "\n";
    text += &wrapped(&format!(
        "{}, {} each, look {} of {}. The loss is the mean squared error of what the denoiser predicts, every noise \
         level counted alike.{guidance} Intervals: 95 % for each recipe, over {things}, for any look. p: paired t test over {things}, \
         corrected for all recipes (Holm) and looks.",
        report.subjects().counted(),
        shown::counted(method.draws, "draw"),
        method.looks_made,
        method.looks.len()
    ));
    text += "\n";
    text + &wrapped(&report.conclusion)
}

/// A paragraph of all that came to one verdict.
fn listed(report: &Report, verdict: Verdict, what: &str) -> String {
    let found = report.distinct().into_iter();
    let found = found.filter(|c| c.verdict == verdict);
    let labels: Vec<String> = found.map(|c| report.label(c)).collect();
    match labels.is_empty() {
        true => String::new(),
        false => format!("\n{}", wrapped(&format!("{what}: {}.", labels.join("; ")))),
    }
}

fn of_control(control: &Control, things: &str) -> String {
    let Some(found) = &control.difference else {
        return format!(
            "Control: too few captions differ between {things} to tell whether they matter."
        );
    };
    let decimals = decimals_of(half(found));
    format!(
        "Control: with the captions of other {things} the loss is {} (p {}): {}.",
        interval(found, decimals),
        probability(found.p),
        match control.verdict {
            Verdict::Worse => "the captions matter",
            _ => "the captions do not clearly matter",
        }
    )
}

fn mean(candidate: &CandidateReport) -> f64 {
    candidate
        .difference
        .map_or(0.0, |difference| difference.mean)
}

fn table(report: &Report, rows: &[&CandidateReport]) -> String {
    let decimals = decimals(rows);
    let mut text = format!(
        "\n{:LABEL$}  {:<21}  {:<7}  {}\n",
        "recipe", "difference", "p", "verdict"
    );
    for row in rows {
        let label = report.label(row);
        if label.chars().count() > LABEL {
            text += &format!("{label}\n{:LABEL$}", "");
        } else {
            text += &format!("{label:LABEL$}");
        }
        text += &match &row.difference {
            None => format!("  {:21}  {:7}  too few captions change", "", ""),
            Some(found) => format!(
                "  {:<21}  {:<7}  {}",
                interval(found, decimals),
                probability(found.p_corrected),
                row.verdict.words()
            ),
        };
        text += "\n";
        if let Some(enough) = row.pictures_to_tell {
            let things = report.subjects().several();
            let needs = format!("{} {things} would tell", conclusion::count(enough));
            text += &format!("{:LABEL$}  {needs}\n", "");
        }
    }
    text
}

/// So many that the width of an interval has two digits.
fn decimals(rows: &[&CandidateReport]) -> usize {
    let differences = rows.iter().filter_map(|row| row.difference);
    let mut halves: Vec<f64> = differences.map(|d| half(&d)).filter(|h| *h > 0.0).collect();
    halves.sort_by(f64::total_cmp);
    decimals_of(halves.get(halves.len() / 2).copied().unwrap_or(0.01))
}

fn decimals_of(half: f64) -> usize {
    (1.0 - half.max(1e-9).log10().floor()).clamp(3.0, 7.0) as usize
}

fn half(difference: &Difference) -> f64 {
    0.5 * (difference.high - difference.low)
}

/// `+0.0083 +- 0.0014`
pub(crate) fn interval(difference: &Difference, decimals: usize) -> String {
    let half = half(difference);
    format!("{:+.decimals$} +- {half:.decimals$}", difference.mean)
}

pub(crate) fn probability(p: f64) -> String {
    match p {
        p if p < 0.0001 => "<0.0001".to_owned(),
        p if p >= 1.0 => "1".to_owned(),
        p => format!("{p:.4}"),
    }
}

/// What is known of each part of the noise schedule, where there are several.
fn by_band(report: &Report, rows: &[&CandidateReport]) -> String {
    let Some(bands) = rows
        .iter()
        .map(|row| &row.bands)
        .find(|bands| bands.len() > 1)
    else {
        return String::new();
    };
    let decimals = decimals(rows);
    // More would not fit beside each other.
    let shown = bands.len().min((WIDTH - LABEL) / 12);
    let heads = bands
        .iter()
        .take(shown)
        .map(|b| format!("  {:>10}", format!("{:.2}-{:.2}", b.from, b.to)));
    let mut text = format!(
        "\n{:LABEL$}{}\n",
        "by share of noise",
        heads.collect::<String>()
    );
    for row in rows.iter().filter(|row| row.bands.len() == bands.len()) {
        let label = report.label(row);
        if label.chars().count() > LABEL {
            text += &format!("{label}\n{:LABEL$}", "");
        } else {
            text += &format!("{label:LABEL$}");
        }
        for band in row.bands.iter().take(shown) {
            let clear = if band.low > 0.0 || band.high < 0.0 {
                "*"
            } else {
                " "
            };
            text += &format!("  {:>9}{clear}", format!("{:+.decimals$}", band.mean));
        }
        text = text.trim_end().to_owned() + "\n";
    }
    text += "* its own 95 % interval is clear of 0, uncorrected\n";
    if shown < bands.len() {
        text += &format!(
            "the first {shown} of {} bands; --json has all\n",
            bands.len()
        );
    }
    text
}

/// Broken at spaces.
fn wrapped(text: &str) -> String {
    wrapped_to(WIDTH, text, "", 0)
}

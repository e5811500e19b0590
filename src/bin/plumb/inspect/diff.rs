//! `plumb inspect diff`: two recipes, two captions, two stores, or an Experiment and another trainer's cache, by parameters and numbers.

mod parties;
mod text;

use std::path::{Path, PathBuf};

use plumb::encode::{encode_captions, tell_of_no_run};
use plumb::inspect::diff::{Side, caption_diff, set_diff};
use plumb::monitor::Monitor as _;
use plumb::shown;
use plumb::store::Store;

use super::open_store;
use super::subject::Subject;
use crate::CommandResult;
use crate::ui::{Failure, Ui};
use crate::world::{self, ComputeDevice, WaitArgs};
use parties::{Parties, Party};

/// Show in what two recipes, captions, stores or caches differ: the first parameter that does, then the numbers.
///
///   plumb inspect diff A.toml B.toml --caption TEXT            one caption under two Experiments
///   plumb inspect diff A.toml --caption TEXT --caption TEXT    two captions under one
///   plumb inspect diff A.toml B.toml                           all captions of A.toml, summed up
///   plumb inspect diff A.toml CACHE                            the same against another trainer's cache
///   plumb inspect diff STORE CACHE --experiment A.toml         a store, or a second cache, against a cache
///
/// Each of the two may also be the folder of a store: its encoders are paired with those whose specs differ least. True tokens
/// (aligned by their ids), pads and pooled vectors are compared apart: cosine, and the largest absolute difference of two numbers.
/// A caption that an Experiment's store lacks is encoded first; with all captions, what is missing is counted.
///
/// Of a cache (kohya, musubi, ai-toolkit, SimpleTuner, OneTrainer, diffusion-pipe, safetensors; a folder or a file), the parameters are
/// those of the recipe that reproduces it, found as `plumb audit` does, or of the nearest. An Experiment tells whose its entries are: the
/// other side, or --experiment, or the one that the runs of a store on the other side are of, if it is still there.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// An Experiment file, a store's folder, or another trainer's cache.
    #[arg(value_name = "EXPERIMENT|STORE|CACHE")]
    first: PathBuf,
    /// What it is compared with.
    #[arg(value_name = "EXPERIMENT|STORE|CACHE")]
    second: Option<PathBuf>,
    /// The caption; given twice, the one of the first side and the one of the second.
    #[arg(long, value_name = "TEXT")]
    caption: Vec<String>,
    /// Compare all captions of the first side: the default without --caption.
    #[arg(long, conflicts_with = "caption")]
    dataset: bool,
    /// The Experiment whose pictures, captions and base model a cache is of, where neither side is one.
    #[arg(long, value_name = "FILE")]
    experiment: Option<PathBuf>,
    /// Print so many rows of each encoder, those that differ most; --json has all.
    #[arg(long, value_name = "N", default_value_t = 24)]
    rows: usize,
}

pub(super) fn run(args: &Args, ui: &Ui) -> CommandResult {
    let captions = match (args.caption.as_slice(), &args.second) {
        ([], Some(_)) => None,
        ([one], Some(_)) => Some([one, one]),
        ([first, second], _) => Some([first, second]),
        ([], None) => {
            return Err(Failure::usage(
                "expected two sides to compare: a second Experiment or store, or --caption twice",
            ));
        }
        ([_], None) => {
            return Err(Failure::usage(
                "expected a second Experiment or store to compare the caption with, or a second --caption",
            ));
        }
        (many, _) => {
            return Err(Failure::usage(format!(
                "--caption: expected one or two, found {}",
                many.len()
            )));
        }
    };
    let parties = Parties::open(args, ui)?;
    let names = [
        name(&args.first),
        name(args.second.as_ref().unwrap_or(&args.first)),
    ];
    match captions {
        Some(captions) => one(args, &parties, names, captions, ui),
        None => all(args, &parties, names, ui),
    }
}

fn name(path: &Path) -> String {
    shown::path(path).to_string()
}

fn one(
    args: &Args,
    parties: &Parties,
    names: [String; 2],
    captions: [&String; 2],
    ui: &Ui,
) -> CommandResult {
    let [first, second] = names;
    let [one, other] = parties.both();
    let a = caption_side(parties, one, first, captions[0], ui)?;
    let b = caption_side(parties, other, second, captions[1], ui)?;
    tell_problems([&a, &b], ui);
    let report = caption_diff([&a, &b], captions.map(String::as_str)).map_err(Failure::error)?;
    if report.encoders.iter().all(|e| e.difference.is_none()) {
        let damage = report
            .encoders
            .iter()
            .flat_map(|e| e.damage.iter().flatten());
        let why = damage.map(|d| format!("; {d}")).next().unwrap_or_default();
        return Err(Failure::error(format!(
            "there is nothing to compare: no encoder has a sound entry of the caption on both sides{why}"
        )));
    }
    ui.report(&report, &text::one(&report, args.rows))?;
    for encoder in &report.encoders {
        for damage in encoder.damage.iter().flatten() {
            ui.problem(&format!("{}: {damage}", encoder.pairing.name()));
        }
    }
    Ok(())
}

/// A side that has the caption: an Experiment's is encoded where it is missing.
fn caption_side<'a>(
    parties: &Parties,
    party: &'a Party,
    name: String,
    caption: &str,
    ui: &Ui,
) -> Result<Side<'a>, Failure> {
    let store: Store;
    let subject = match party {
        Party::Subject(subject) => subject,
        Party::Cache(path) => return parties.cache(path, name, ui),
    };
    let side = match subject {
        Subject::Store(store) => Side::of_store_with(name, store, caption),
        Subject::Experiment(opened, _) => {
            let (experiment, base) = &**opened;
            store = open_store(experiment)?;
            let options = world::encode_options(&ComputeDevice::cpu(), &WaitArgs::default());
            let stats = encode_captions(base, &store, &[caption.to_owned()], &options, ui);
            tell_of_no_run(&stats.map_err(Failure::error)?, ui);
            Side::of_experiment(name, base, &store, &[caption])
        }
    };
    side.map_err(Failure::error)
}

fn all(args: &Args, parties: &Parties, names: [String; 2], ui: &Ui) -> CommandResult {
    let captions = parties.captions(ui)?;
    let captions = captions.texts();
    let [first, second] = names;
    let [one, other] = parties.both();
    let sides = [
        set_side(parties, one, first, &captions, ui)?,
        set_side(parties, other, second, &captions, ui)?,
    ];
    tell_problems([&sides[0], &sides[1]], ui);
    let report = set_diff(sides, &captions, ui).map_err(Failure::error)?;
    ui.report(&report, &text::all(&report))?;
    for encoder in &report.encoders {
        let name = encoder.pairing.name();
        if let Some(damage) = &encoder.damage {
            ui.problem(&format!("{name}: {damage}"));
        }
        let of_experiments = parties
            .both()
            .into_iter()
            .map(Party::subject)
            .zip(encoder.missing)
            .zip([&args.first, args.second.as_ref().unwrap_or(&args.first)]);
        for ((subject, missing), path) in of_experiments {
            if missing > 0 && subject.is_some_and(|s| s.base().is_some()) {
                ui.problem(&format!(
                    "{name}: no sound entry of {} under {}; `plumb encode` makes what is missing",
                    shown::part_of(missing, report.captions, "caption"),
                    shown::path(path)
                ));
            }
        }
    }
    Ok(())
}

/// A side as it is: of many captions, nothing is encoded.
fn set_side<'a>(
    parties: &Parties,
    party: &'a Party,
    name: String,
    captions: &[&str],
    ui: &Ui,
) -> Result<Side<'a>, Failure> {
    let subject = match party {
        Party::Subject(subject) => subject,
        Party::Cache(path) => return parties.cache(path, name, ui),
    };
    let side = match subject {
        Subject::Store(store) => Side::of_store(name, store, captions),
        Subject::Experiment(opened, _) => {
            Side::of_experiment(name, &opened.1, subject.store()?, captions)
        }
    };
    side.map_err(Failure::error)
}

fn tell_problems(sides: [&Side<'_>; 2], ui: &Ui) {
    let mut problems: Vec<String> = sides.iter().flat_map(|side| side.problems()).collect();
    problems.sort();
    problems.dedup();
    for problem in problems {
        ui.problem(&problem);
    }
}

//! `plumb inspect store`: what a store holds and who uses it.

use std::path::PathBuf;

use plumb::cache::Specs;
use plumb::inspect::{self, Leftovers, RunReport, StoreReport};
use plumb::monitor::Monitor as _;
use plumb::recipe::diff::readable;
use plumb::shown::{self, counted};

use super::subject::Subject;
use crate::CommandResult;
use crate::layout::{columns, size};
use crate::ui::{Failure, Ui};

/// Show what a store holds and who uses it: its encoders in words, sharing between runs, and what no run uses.
///
/// With an Experiment, its store, and which of the store's encoders are the Experiment's. Only headers and the index are read.
/// `plumb store stats` counts files, `plumb store check` looks for damage, `plumb store gc` removes what no run uses.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The store's folder, or an Experiment file.
    #[arg(value_name = "STORE|EXPERIMENT")]
    place: PathBuf,
}

pub(super) fn run(args: &Args, ui: &Ui) -> CommandResult {
    let subject = Subject::open(&args.place, ui)?;
    let store = subject.store()?;
    let report = inspect::store(store, ui).map_err(Failure::error)?;
    let own = subject.base().map(|base| {
        let specs = Specs::from(base);
        let encoders = specs.encoders.into_iter().map(|e| (e.slot, e.spec));
        encoders
            .chain([("latents".to_owned(), specs.latents)])
            .collect::<Vec<_>>()
    });
    let mut text = describe(&report);
    if let Some(own) = own {
        text += "\nthis Experiment\n";
        let rows: Vec<[String; 2]> = (own.iter())
            .map(|(slot, spec)| {
                let here = report.specs.iter().find(|s| s.spec == *spec);
                let found = here.map_or("nothing in the store".to_owned(), |s| {
                    format!("{}, {}", spec.short(), counted(s.entries, "entry"))
                });
                [format!("  {slot}"), found]
            })
            .collect();
        text += &columns(&rows);
    }
    ui.report(&report, &text)?;
    for problem in &report.problems {
        ui.problem(problem);
    }
    Ok(())
}

fn describe(report: &StoreReport) -> String {
    let entries: u64 = report.specs.iter().map(|spec| spec.entries).sum();
    let stats = &report.stats;
    let mut text = format!(
        "{}: {} in {}, {} and {} of index\n",
        shown::path(&report.path),
        counted(entries, "entry"),
        counted(stats.packs, "pack"),
        size(stats.pack_bytes),
        size(stats.index_bytes)
    );
    for spec in &report.specs {
        text += &format!("\n{}  {}\n", spec.spec.short(), shown::text(&spec.what));
        text += &format!("  {}, {}", counted(spec.entries, "entry"), size(spec.bytes));
        for (n, what) in [
            (spec.shared, "used by several runs"),
            (spec.orphans, "used by none"),
            (spec.truncated, "with a cut caption"),
        ] {
            if n > 0 {
                text += &format!("; {n} {what}");
            }
        }
        text += "\n";
        if let Some(alike) = &spec.alike {
            let fields = alike.diff.fields.iter().map(|field| {
                let value = |value: &Option<_>| readable(value.as_ref());
                let (here, there) = (value(&field.wanted), value(&field.found));
                shown::text(&format!("{} {here}, there {there}", field.field)).to_string()
            });
            let fields: Vec<String> = fields.collect();
            text += &format!(
                "  as {} but for {}\n",
                alike.spec.short(),
                fields.join("; ")
            );
        }
        if !spec.runs.is_empty() {
            text += &format!("  of {}\n", spec.runs.join(", "));
        }
    }
    text += &runs(&report.runs);
    text += &match (report.orphans, report.runs.is_empty()) {
        (0, _) => "\nevery entry is used by a run\n".to_owned(),
        (_, true) => "\nthere is no run, so nothing keeps these entries\n".to_owned(),
        (n, false) => format!(
            "\n{} ({}) of no run; `plumb store gc` removes what is old enough\n",
            counted(n, "entry"),
            size(report.orphan_bytes)
        ),
    };
    text + &leftovers(&report.leftovers)
}

fn runs(runs: &[RunReport]) -> String {
    if runs.is_empty() {
        return String::new();
    }
    let head = ["run", "entries", "its alone", "gone", "Experiment"].map(str::to_owned);
    let rows: Vec<[String; 5]> = runs
        .iter()
        .map(|run| {
            let entries = run
                .entries
                .map_or("unreadable".to_owned(), |n| n.to_string());
            let experiment = run.run.experiment.as_deref().unwrap_or("-");
            [
                run.run.id.clone(),
                entries,
                run.alone.to_string(),
                run.missing.to_string(),
                shown::text(experiment).to_string(),
            ]
        })
        .collect();
    format!("\n{}", columns(&[vec![head], rows].concat()))
}

fn leftovers(found: &Leftovers) -> String {
    [
        (
            found.unindexed_entries,
            "packed entries without a row in the index",
        ),
        (found.temporary_files, "files of interrupted writes"),
        (found.set_aside_packs, "packs set aside as damaged"),
        (found.set_aside_specs, "misnamed specs set aside"),
    ]
    .iter()
    .filter(|(n, _)| *n > 0)
    .map(|(n, what)| format!("{n} {what}\n"))
    .collect()
}

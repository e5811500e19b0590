//! `plumb inspect export`.

use std::path::PathBuf;

use plumb::inspect::{self, ExportReport};
use plumb::monitor::Monitor as _;
use plumb::shown::{self, counted};
use serde::Serialize;

use super::subject::Subject;
use crate::CommandResult;
use crate::ui::{Failure, Ui};
use crate::world;

/// Write the captions as a table for other programs: each with its vectors and its place on a map.
///
/// One row a caption. Columns: `caption`, `origin`, `pictures`, `recipe`, `thumbnail`, and of each encoder `SLOT_x` and `SLOT_y` (the
/// plane of the first two principal components), `SLOT_norm`, `SLOT_tokens` (before pads), `SLOT_truncated` and `SLOT_vector` (the
/// pooled vector, or the mean of the true tokens where the encoder has none). What the store lacks is null; nothing is encoded.
///
/// To look at it: `embedding-atlas FILE --text caption --x clip_l_x --y clip_l_y`, or `pandas.read_parquet("FILE")`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The Experiment file, or the folder of a store.
    #[arg(value_name = "EXPERIMENT|STORE")]
    subject: PathBuf,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    parquet: PathBuf,
    /// Leave the thumbnails out: no picture is decoded.
    #[arg(long)]
    no_thumbnails: bool,
}

#[derive(Serialize)]
struct Told<'a> {
    file: &'a PathBuf,
    #[serde(flatten)]
    report: &'a ExportReport,
}

pub(super) fn run(args: &Args, ui: &Ui) -> CommandResult {
    world::check_file("--parquet", &args.parquet)?;
    let subject = Subject::open(&args.subject, ui)?;
    let (captions, reader) = subject.read(ui)?;
    let recipe = subject.base().map(|base| base.recipe.name().to_string());
    let has_pictures = !captions.items.is_empty();
    let to = (args.parquet.as_path(), has_pictures && !args.no_thumbnails);
    let report = inspect::export(&captions, &reader, recipe.as_deref(), to, ui);
    let report = report.map_err(Failure::error)?;
    for encoder in &report.encoders {
        if encoder.missing + encoder.damaged > 0 {
            ui.problem(&format!(
                "{}: {} {} not in the store, {} {} damaged: their columns are null",
                encoder.slot,
                shown::part_of(encoder.missing, report.captions, "caption"),
                shown::are(encoder.missing),
                encoder.damaged,
                shown::are(encoder.damaged)
            ));
        }
    }
    let file = &args.parquet;
    ui.report(
        &Told {
            file,
            report: &report,
        },
        &describe(args, &report),
    )
}

fn describe(args: &Args, report: &ExportReport) -> String {
    let file = shown::path(&args.parquet);
    let mut lines = vec![format!("{file}: {}", counted(report.captions, "caption"))];
    for encoder in &report.encoders {
        let [x, y] = encoder.explained.map(|part| 100.0 * part);
        lines.push(format!(
            "  {}: {} vectors; the map's axes have {x:.0} and {y:.0} % of the variance",
            encoder.slot, encoder.vectors
        ));
    }
    if let Some(first) = report.encoders.first() {
        let slot = &first.slot;
        lines.push(format!(
            "look at it: embedding-atlas {file} --text caption --x {slot}_x --y {slot}_y"
        ));
    }
    lines.join("\n")
}

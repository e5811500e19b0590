//! `plumb inspect latents`: a picture's latents.

use std::path::PathBuf;

use plumb::inspect;

use super::{open, open_store, table};
use crate::CommandResult;
use crate::ui::{Failure, Ui};
use crate::world;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The Experiment file.
    experiment: PathBuf,
    /// The picture.
    #[arg(long, value_name = "FILE")]
    picture: PathBuf,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn run(args: &Args, ui: &Ui) -> CommandResult {
    world::check_file("--out", &args.out)?;
    let (experiment, base) = open(&args.experiment, ui)?;
    let store = open_store(&experiment)?;
    let report = inspect::latents(&experiment, &base, &store, &args.picture, &args.out, ui)
        .map_err(Failure::error)?;
    let (size, view) = (report.original_size, report.view);
    let text = format!(
        "{} x {} px, resized to {} x {}, cropped at ({}, {}) to {} x {}\n{}\n{}",
        size.width,
        size.height,
        view.resized.width,
        view.resized.height,
        view.left,
        view.top,
        view.bucket.width,
        view.bucket.height,
        table(&report.tensors),
        args.out.display()
    );
    ui.report(&report, &text)
}

//! `plumb inspect conditioning`: what the denoiser receives for a caption.

use std::path::PathBuf;

use plumb::inspect;

use super::{open, open_store, table};
use crate::CommandResult;
use crate::ui::{Failure, Ui};
use crate::world::{self, ComputeDevice, WaitArgs};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The Experiment file.
    experiment: PathBuf,
    /// The caption.
    #[arg(long, value_name = "TEXT")]
    caption: String,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn run(args: &Args, ui: &Ui) -> CommandResult {
    world::check_file("--out", &args.out)?;
    let (experiment, base) = open(&args.experiment, ui)?;
    let store = open_store(&experiment)?;
    let options = world::encode_options(&ComputeDevice::cpu(), &WaitArgs::default());
    let shapes = inspect::conditioning(&base, &store, &args.caption, &options, &args.out, ui)
        .map_err(Failure::error)?;
    let text = format!("{}\n{}", table(&shapes), args.out.display());
    ui.report(&shapes, &text)
}

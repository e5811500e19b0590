//! `plumb inspect manifest`: what another program has to know to read a store.

use std::path::PathBuf;

use plumb::dataset;
use plumb::inspect::{self, Error, Listed, ManifestReport};
use plumb::shown::counted;
use plumb::store;

use super::open;
use crate::CommandResult;
use crate::ui::{Failure, Ui};
use crate::world;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The Experiment file.
    experiment: PathBuf,
    /// List this caption instead of the Experiment's pictures and prompts; may be given several times.
    #[arg(long, value_name = "TEXT")]
    caption: Vec<String>,
    /// Read from the store in this folder instead of the Experiment's.
    #[arg(long, value_name = "FOLDER")]
    store: Option<PathBuf>,
    /// The file to write; without it, only what is in it is told (and `--json` prints all of it).
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &Args, ui: &Ui) -> CommandResult {
    if let Some(out) = &args.out {
        world::check_file("--out", out)?;
    }
    let (experiment, base) = open(&args.experiment, ui)?;
    let place = match &args.store {
        Some(path) => world::store_place(path)?,
        None => experiment.store_path().map_err(Failure::usage)?,
    };
    let listed = match args.caption.as_slice() {
        [] => Listed::Experiment,
        captions => Listed::Captions(captions),
    };
    let manifest =
        inspect::manifest(&experiment, &base, &place, listed, ui).map_err(|error| match error {
            Error::Refused(refusal) => Failure::refused(refusal),
            Error::Dataset(dataset::Error::Several(_)) => Failure::errors(error),
            other => Failure::error(other),
        })?;
    let mut text = describe(&manifest);
    if let Some(out) = &args.out {
        store::write_file(out, &[&manifest.to_bytes()]).map_err(Failure::error)?;
        text += &format!("\n{}", out.display());
    }
    ui.report(&manifest, &text)
}

fn describe(manifest: &ManifestReport) -> String {
    let views: usize = manifest.pictures.iter().map(|p| p.views.len()).sum();
    let pictures = manifest.pictures.iter();
    let of_clips = pictures.filter(|p| p.views.iter().any(|v| v.view.window.is_some()));
    let of_clips = of_clips.count();
    let pairs = manifest
        .pictures
        .iter()
        .filter(|p| p.reference.is_some())
        .count();
    let pairs = match pairs {
        0 => String::new(),
        pairs => format!(", {pairs} of them beside a reference"),
    };
    format!(
        "recipe {}, store {}: {} in {}{pairs}, and {} without a picture",
        manifest.model.recipe(),
        manifest.store,
        dataset::pictures_and_windows((manifest.pictures.len() - of_clips) as u64, of_clips as u64),
        counted(views, "view"),
        counted(manifest.prompts.len(), "caption"),
    )
}

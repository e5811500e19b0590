//! `plumb inspect`: what exactly a model receives, and what a LoRA was trained with.

mod conditioning;
mod diff;
mod entry;
mod export;
mod latents;
mod lora;
mod manifest;
mod neighbors;
pub(crate) mod report;
mod store;
mod subject;
mod tokens;

use std::collections::BTreeMap;
use std::path::Path;

use plumb::base_model::BaseModel;
use plumb::experiment::Experiment;
use plumb::store::Store;

use crate::CommandResult;
use crate::ui::{Failure, Ui};
use crate::world::{self, WaitArgs};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Tokens(tokens::Args),
    /// Write the tensors that the denoiser receives for a caption.
    ///
    /// The file (safetensors) has `context` and `pooled`, each encoder's raw `SLOT.hidden` and `SLOT.pooled`, and
    /// `SLOT.token_ids`. The caption is encoded first if the store lacks it.
    Conditioning(conditioning::Args),
    /// Write a picture's latents: `mean` and `logvar`, unscaled, and the crop and bucket used.
    ///
    /// The picture is cropped as the Experiment's first data set says, and encoded first if the store lacks it.
    Latents(latents::Args),
    Entry(entry::Args),
    Diff(diff::Args),
    Neighbors(neighbors::Args),
    Store(store::Args),
    Report(report::Args),
    Export(export::Args),
    /// Show what a LoRA was trained with.
    Lora(lora::Args),
    /// Write what another program has to know to read an Experiment's captions and pictures from a store.
    ///
    /// The Python package reads it. The store is looked at as `train` does: what it lacks is refused.
    Manifest(manifest::Args),
}

pub(crate) fn run(args: &Args, ui: &Ui) -> CommandResult {
    match &args.command {
        Command::Tokens(args) => tokens::run(args, ui),
        Command::Conditioning(args) => conditioning::run(args, ui),
        Command::Latents(args) => latents::run(args, ui),
        Command::Entry(args) => entry::run(args, ui),
        Command::Diff(args) => diff::run(args, ui),
        Command::Neighbors(args) => neighbors::run(args, ui),
        Command::Store(args) => store::run(args, ui),
        Command::Report(args) => report::run(args, ui),
        Command::Export(args) => export::run(args, ui),
        Command::Lora(args) => lora::run(args, ui),
        Command::Manifest(args) => manifest::run(args, ui),
    }
}

fn open(experiment: &Path, ui: &Ui) -> Result<(Experiment, BaseModel), Failure> {
    let experiment = world::open_experiment(experiment, ui)?;
    let base =
        BaseModel::open(&experiment, &mut world::digest_memo()).map_err(world::base_failure)?;
    Ok((experiment, base))
}

fn open_store(experiment: &Experiment) -> Result<Store, Failure> {
    let path = experiment.store_path().map_err(Failure::usage)?;
    let store = Store::open_or_create_at(&path).map_err(Failure::error)?;
    Ok(store.waiting(WaitArgs::default().limit()))
}

fn table(shapes: &BTreeMap<String, Vec<usize>>) -> String {
    let width = shapes.keys().map(String::len).max().unwrap_or(0);
    let lines: Vec<String> = shapes
        .iter()
        .map(|(name, shape)| format!("{name:width$}  {shape:?}"))
        .collect();
    lines.join("\n")
}

/// A part of a whole, for a person.
fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

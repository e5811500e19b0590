//! `plumb store push` and `pull`: to object storage and back.

use std::collections::BTreeSet;
use std::path::Path;

use plumb::base_model::BaseModel;
use plumb::cache::{self, Manifest};
use plumb::dataset;
use plumb::experiment::Experiment;
use plumb::monitor::Monitor as _;
use plumb::shown::counted;
use plumb::store::{Address, PullReport, PushOptions, PushReport, Store};

use super::tell;
use crate::CommandResult;
use crate::layout::size;
use crate::ui::{Failure, Ui};
use crate::world;

pub(super) fn push(
    from: &Path,
    address: Option<&Path>,
    options: PushOptions,
    ui: &Ui,
) -> CommandResult {
    let (store, place, to) = match address {
        Some(address) => {
            if Address::is_one(from) {
                let why = "the first is the store's folder, the second the address: pull a store to push it elsewhere";
                return Err(Failure::usage(why));
            }
            // First: what is wrong with the address costs no look at the store.
            let to = world::remote(address)?;
            let store = Store::open(from).map_err(Failure::error)?;
            (store, world::store_place(address)?, to)
        }
        None => {
            if from.is_dir() || Address::is_one(from) {
                let why = "say where to: plumb store push FOLDER s3://bucket/prefix";
                return Err(Failure::usage(why));
            }
            let experiment = on_object_storage(from, ui)?;
            let place = experiment.store_path().map_err(Failure::usage)?;
            let store = Store::open_or_create_at(&place).map_err(Failure::error)?;
            let to = world::remote(&place.shown())?;
            (store, place, to)
        }
    };
    let report = to.push(&store, options, ui).map_err(Failure::error)?;
    let text = format!("{}: {}", to.address(), push_text(&report));
    ui.report(&report, &text)?;
    tell(&report.problems, ui);
    // What was pushed is there, whatever comes of this; the next one to push merges.
    if report.index_parts > 0
        && let Err(e) = Store::merge_at(&place)
    {
        ui.note(&format!("the index there was not merged: {e}"));
    }
    Ok(())
}

pub(crate) fn push_text(report: &PushReport) -> String {
    if report.index_parts + report.packs + report.runs == 0 {
        return "nothing to push, all of it is there".to_owned();
    }
    let less = match report.sent_bytes < report.pack_bytes {
        true => format!(" (of {})", size(report.pack_bytes)),
        false => String::new(),
    };
    format!(
        "pushed {} in {}, {}{less}, {} and {}",
        counted(report.entries, "entry"),
        counted(report.packs, "pack"),
        size(report.sent_bytes),
        counted(report.index_parts, "index part"),
        counted(report.runs, "run"),
    )
}

pub(super) fn pull(from: &Path, folder: Option<&Path>, ui: &Ui) -> CommandResult {
    match (Address::is_one(from), folder) {
        (true, Some(folder)) => pull_all(from, folder, ui),
        (true, None) => Err(Failure::usage(
            "say where to: plumb store pull s3://bucket/prefix FOLDER",
        )),
        (false, Some(_)) => Err(Failure::usage(
            "expected an address before the folder: plumb store pull s3://bucket/prefix FOLDER",
        )),
        (false, None) => pull_needed(from, ui),
    }
}

fn pull_all(from: &Path, folder: &Path, ui: &Ui) -> CommandResult {
    let remote = world::remote(from)?;
    // Before the folder is made: of nothing there is nothing to copy.
    remote.find().map_err(Failure::error)?;
    let store = Store::open_or_create(folder).map_err(Failure::error)?;
    let report = remote.pull(&store, ui).map_err(Failure::error)?;
    ui.report(&report, &pull_text(folder, &report))?;
    tell(&report.problems, ui);
    Ok(())
}

fn pull_text(folder: &Path, report: &PullReport) -> String {
    format!(
        "{}: pulled {}, {}, {} and {}; {} there already",
        folder.display(),
        counted(report.packs, "pack"),
        size(report.bytes),
        counted(report.index_parts, "index part"),
        counted(report.runs, "run"),
        counted(report.packs_here, "pack"),
    )
}

/// Fetches the packs of what an Experiment needs, so that a training begins without a network.
fn pull_needed(file: &Path, ui: &Ui) -> CommandResult {
    let experiment = on_object_storage(file, ui)?;
    let base = BaseModel::open(&experiment, &mut world::digest_memo());
    let base = base.map_err(world::base_failure)?;
    let place = experiment.store_path().map_err(Failure::usage)?;
    let store = Store::open_at(&place).map_err(Failure::error)?;
    let multiple = base.latent_geometry().side_multiple();
    let items = dataset::open(&experiment, multiple, ui).map_err(Failure::error)?;
    let previews = dataset::previews(&experiment, &base.settings.sample, multiple);
    let previews = previews.map_err(Failure::error)?;
    let texts: BTreeSet<String> = cache::captions(&experiment, &items).into_iter().collect();
    let viewed = dataset::viewed(&items, &previews);
    let needed = Manifest::new(&base, texts.iter().map(String::as_str), &viewed);
    let reader = store.reader_of_entries(needed.entries());
    let reader = reader.map_err(Failure::error)?;
    let packs = reader.fetch(needed.entries(), ui).map_err(Failure::error)?;
    let missing = needed.entries().iter();
    let missing = missing
        .filter(|(spec, entry)| !reader.contains(spec, entry))
        .count() as u64;
    let report = serde_json::json!({
        "folder": place.folder(), "packs": packs, "entries": needed.entries().len(), "missing": missing,
    });
    ui.report(
        &report,
        &format!(
            "{}: {} fetched; {} of what {} needs",
            place.folder().display(),
            counted(packs, "pack"),
            counted(needed.entries().len() as u64 - missing, "entry"),
            file.display()
        ),
    )?;
    if missing > 0 {
        let lacking = counted(missing, "entry");
        ui.problem(&format!(
            "{}: {lacking} not there; `plumb encode {}` adds them",
            place.shown().display(),
            file.display()
        ));
    }
    Ok(())
}

/// An Experiment whose store is on object storage.
fn on_object_storage(file: &Path, ui: &Ui) -> Result<Experiment, Failure> {
    let experiment = world::open_experiment(file, ui)?;
    match experiment.store_address() {
        Some(_) => Ok(experiment),
        None => Err(Failure::usage(format!(
            "{}: its store is a folder; `plumb store push FOLDER s3://bucket/prefix` and `pull` name both",
            file.display()
        ))),
    }
}

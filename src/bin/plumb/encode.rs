//! `plumb encode`: captions and pictures into the store.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use plumb::base::Base;
use plumb::embed::{EmbedStats, encode_captions};
use plumb::experiment::Experiment;
use plumb::latents::{self, LatentStats, Wanted, encode_pictures};
use plumb::manifest::Manifest;
use plumb::material::{self, Item};
use plumb::monitor::Monitor as _;
use plumb::store::Store;
use plumb::train::extra_captions;
use serde::Serialize;

use crate::CommandResult;
use crate::ui::{Failure, Ui};
use crate::world::{self, DeviceArgs, Place};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The Experiment file.
    pub(crate) experiment: PathBuf,
    /// Encode the captions in this text file, one a line (an empty line is the empty caption), and nothing else.
    #[arg(long, value_name = "FILE")]
    pub(crate) captions: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Serialize)]
pub(crate) struct Report {
    store: PathBuf,
    captions: Vec<EmbedStats>,
    pictures: Option<LatentStats>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> CommandResult {
    let experiment = world::open_experiment(&args.experiment, ui)?;
    let place = args.device.open(ui)?;
    let report = encode(&experiment, args.captions.as_deref(), &place, ui)?;
    ui.report(&report, &describe(&report))
}

pub(crate) fn encode(
    experiment: &Experiment,
    captions: Option<&Path>,
    place: &Place,
    ui: &Ui,
) -> Result<Report, Failure> {
    let mut memo = world::digest_memo();
    ui.start("reading the base model", None);
    let base = Base::open(experiment, &mut memo).map_err(world::base_failure)?;
    ui.finish();
    for deviation in base.recipe.deviations() {
        ui.note(&format!(
            "recipe {} deviates: {deviation}",
            base.recipe.name()
        ));
    }
    let store = Store::open_or_create(&experiment.store_path()).map_err(Failure::error)?;
    let items: Option<Vec<Item>> = match captions {
        Some(_) => None,
        None => Some(material::open(experiment, &base, ui).map_err(Failure::error)?),
    };
    let wanted = match (captions, &items) {
        (Some(file), _) => read_captions(file)?,
        (None, items) => {
            let items = items.iter().flatten();
            items
                .map(|i| i.caption.clone())
                .chain(extra_captions(experiment))
                .collect()
        }
    };
    let pictures: Vec<Wanted> = items
        .iter()
        .flatten()
        .map(|i| Wanted {
            path: i.path.clone(),
            digest: i.digest,
            views: i.views.clone(),
        })
        .collect();
    let options = world::embed_options(place);
    let embedded = encode_captions(&base, &store, &wanted, &options, ui).map_err(Failure::error)?;
    let device = &place.device;
    let encoded = match items {
        Some(_) => {
            Some(encode_pictures(&base, &store, &pictures, device, ui).map_err(Failure::error)?)
        }
        None => None,
    };
    // Only now: a list of entries that an interrupted encode did not get to would be a problem to `store check`.
    let views = latents::entries(&base, &pictures).map_err(Failure::error)?;
    Manifest::new(&base, wanted.iter().map(String::as_str), views.into_iter())
        .map_err(Failure::error)?
        .write(&store, "encode", experiment, captions)
        .map_err(Failure::error)?;
    Ok(Report {
        store: store.path().to_owned(),
        captions: embedded,
        pictures: encoded,
    })
}

/// One caption a line, exactly as it stands there; only the line's end is no part of it.
fn read_captions(file: &Path) -> Result<Vec<String>, Failure> {
    let fail = |why: String| Failure::error(format!("{}: {why}", file.display()));
    let bytes = std::fs::read(file).map_err(|e| fail(e.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = e.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count() + 1;
        fail(format!(
            "line {line} is not UTF-8 text; save the file as UTF-8"
        ))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Ok(text.lines().map(str::to_owned).collect())
}

pub(crate) fn describe(report: &Report) -> String {
    let mut lines = Vec::new();
    for stats in &report.captions {
        let cut = match stats.truncated {
            0 => String::new(),
            n => format!(", {n} of them cut (`plumb inspect tokens` shows where)"),
        };
        lines.push(format!(
            "{:8} {:6} captions: {} encoded{cut}, {} there already",
            stats.slot, stats.captions, stats.encoded, stats.present
        ));
    }
    if let Some(stats) = &report.pictures {
        lines.push(format!(
            "{:8} {:6} pictures: {} encoded, {} there already",
            "vae", stats.views, stats.encoded, stats.present
        ));
    }
    let problems = report.pictures.as_ref().map_or(0, |p| p.failed);
    if problems > 0 {
        lines.push(format!("{problems} pictures could not be used, see above"));
    }
    let specs: BTreeSet<&str> = report.captions.iter().map(|s| s.spec.as_str()).collect();
    lines.push(format!(
        "store {}, {} encoder specs",
        report.store.display(),
        specs.len()
    ));
    lines.join("\n")
}

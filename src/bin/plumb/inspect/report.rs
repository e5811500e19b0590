//! `plumb inspect report`.

use std::path::{Path, PathBuf};

use plumb::base_model::{self, BaseModel};
use plumb::cache::Manifest;
use plumb::encode::{encode_captions, tell_of_no_run};
use plumb::experiment::Experiment;
use plumb::inspect::captions::Captions;
use plumb::inspect::report::{self, Budget, Other, Report, Sources};
use plumb::monitor::Monitor as _;
use plumb::probe::report::Report as ProbeReport;
use plumb::recipe::{REFERENCE, Recipe, RecipeName};
use plumb::shown;
use plumb::store::{self, Store, StoreReader};
use serde::Serialize;

use super::subject::Subject;
use crate::CommandResult;
use crate::ui::{Failure, Ui};
use crate::world::{self, ComputeDevice, WaitArgs};

/// Write a page for a browser: recipe, tokens, a map of the captions, what is cut, what another recipe makes of them.
///
/// The page is one file below 5 MB and asks no network for anything. Of an Experiment it shows the recipe beside the base model's own,
/// and the training's curves and previews where there are some; of a store by itself what its index tells. Nothing is encoded but
/// by --encode; what the store lacks is told on the page and here.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The Experiment file, or the folder of a store.
    #[arg(value_name = "EXPERIMENT|STORE")]
    subject: PathBuf,
    /// The page to write.
    #[arg(long, value_name = "FILE")]
    html: PathBuf,
    /// Compare with another recipe: a variant's name, or another Experiment's file.
    /// [default: reference, where the Experiment's recipe is another]
    #[arg(long, value_name = "VARIANT|EXPERIMENT")]
    against: Option<String>,
    /// Show what `plumb probe` measured, from the report that its --out wrote.
    #[arg(long, value_name = "FILE")]
    probe: Option<PathBuf>,
    /// Encode the captions under the recipe that is compared with, where its store lacks them.
    #[arg(long)]
    encode: bool,
}

#[derive(Serialize)]
struct Told<'a> {
    file: &'a Path,
    #[serde(flatten)]
    report: &'a Report,
}

pub(super) fn run(args: &Args, ui: &Ui) -> CommandResult {
    let report = write(args, ui)?;
    for (slot, count) in &report.missing {
        ui.problem(&format!(
            "{slot}: {} {} not in the store; `plumb encode` makes what is missing",
            shown::part_of(count, report.captions, "caption"),
            shown::are(count)
        ));
    }
    for (slot, count, why) in &report.damaged {
        ui.problem(&format!(
            "{slot}: {} damaged in the store: {why}",
            shown::counted(count, "caption")
        ));
    }
    for sentence in &report.left_out {
        ui.note(sentence);
    }
    let file = args.html.as_path();
    let text = format!(
        "{}: {}, {:.1} MB; open it in a browser",
        shown::path(file),
        shown::counted(report.captions, "caption"),
        report.bytes as f64 / 1e6
    );
    let report = &report;
    ui.report(&Told { file, report }, &text)
}

fn write(args: &Args, ui: &Ui) -> Result<Report, Failure> {
    world::check_file("--html", &args.html)?;
    let subject = Subject::open(&args.subject, ui)?;
    let (captions, reader) = subject.read(ui)?;
    let other = match subject.base() {
        Some(base) => OtherRecipe::open(args, base, &captions, ui)?,
        None if args.against.is_some() => {
            return Err(Failure::usage(
                "--against: a store by itself has no recipe to compare; give an Experiment",
            ));
        }
        None => None,
    };
    let probe = match &args.probe {
        Some(file) => Some(open_probe(file, subject.base())?),
        None => None,
    };
    let sources = Sources {
        title: args.subject.display().to_string(),
        base: subject.base(),
        captions: &captions,
        reader: &reader,
        other: other.as_ref().map(OtherRecipe::source),
        probe: probe.as_ref(),
        output: subject.experiment().and_then(Experiment::output_path),
    };
    let report = report::report(&sources, Budget::default(), ui).map_err(Failure::error)?;
    store::write_file(&args.html, &[report.html.as_bytes()]).map_err(Failure::error)?;
    Ok(report)
}

/// A probe's report, which must be of this base model.
fn open_probe(file: &Path, base: Option<&BaseModel>) -> Result<ProbeReport, Failure> {
    let wrong = |why: String| Failure::usage(format!("--probe {}: {why}", shown::path(file)));
    let report = ProbeReport::read(file).map_err(wrong)?;
    let Some(base) = base else {
        return Err(wrong(
            "a store by itself has no base model; give an Experiment".to_owned(),
        ));
    };
    let digest = base.denoiser_digest(&mut world::digest_memo());
    let digest = digest.map_err(world::base_failure)?;
    if report.base != digest {
        let (found, digest) = (report.base.short(), digest.short());
        return Err(wrong(format!(
            "expected a report of this base model (weights {digest}), found one of weights {found}"
        )));
    }
    Ok(report)
}

/// Writes the page of an Experiment that is in its store, as `plumb demo` ends.
pub(crate) fn write_page(experiment: &Path, html: &Path, ui: &Ui) -> Result<(), Failure> {
    let args = Args {
        subject: experiment.to_owned(),
        html: html.to_owned(),
        against: None,
        probe: None,
        encode: false,
    };
    write(&args, ui).map(drop)
}

/// The recipe that is compared with, and its entries.
struct OtherRecipe {
    name: String,
    base: BaseModel,
    reader: StoreReader,
    command: String,
}

impl OtherRecipe {
    fn source(&self) -> Other<'_> {
        Other {
            name: self.name.clone(),
            base: &self.base,
            reader: &self.reader,
            command: self.command.clone(),
        }
    }

    /// `None` where nothing is asked for and the Experiment's recipe is the base model's own.
    fn open(
        args: &Args,
        base: &BaseModel,
        captions: &Captions,
        ui: &Ui,
    ) -> Result<Option<Self>, Failure> {
        let named = args.against.as_deref();
        let (name, other, place) = match named {
            Some(file) if is_experiment(file) => {
                let (experiment, base) = super::open(Path::new(file), ui)?;
                let place = experiment.store_path().map_err(Failure::usage)?;
                (file.to_owned(), base, place)
            }
            _ => {
                let name = base.recipe.name();
                let is_own = name.variant == REFERENCE && base.recipe.deviations().is_empty();
                if named.is_none() && is_own {
                    return Ok(None);
                }
                let variant = named.unwrap_or(REFERENCE);
                let other = under(base, variant)?;
                let place = base.experiment.store_path().map_err(Failure::usage)?;
                (variant.to_owned(), other, place)
            }
        };
        let store = Store::open_at(&place).map_err(Failure::error)?;
        if args.encode {
            let store = store.clone().waiting(WaitArgs::default().limit());
            let options = world::encode_options(&ComputeDevice::cpu(), &WaitArgs::default());
            let texts: Vec<String> = captions.all.iter().map(|c| c.text.clone()).collect();
            let stats = encode_captions(&other, &store, &texts, &options, ui);
            tell_of_no_run(&stats.map_err(Failure::error)?, ui);
        }
        let texts = captions.texts();
        let needed = Manifest::new(&other, texts.iter().copied(), &[]);
        let reader = store.reader_of_entries(needed.entries());
        Ok(Some(Self {
            command: format!(
                "plumb inspect report {} --html {} --against {} --encode",
                args.subject.display(),
                args.html.display(),
                name
            ),
            name,
            base: other,
            reader: reader.map_err(Failure::error)?,
        }))
    }
}

/// No variant's name has a dot.
fn is_experiment(name: &str) -> bool {
    name.contains('.') || name.contains('/') || Path::new(name).is_file()
}

fn under(base: &BaseModel, variant: &str) -> Result<BaseModel, Failure> {
    let name = RecipeName {
        variant: variant.to_owned(),
        ..base.recipe.name().clone()
    };
    let recipe = Recipe::shipped(&name)
        .map_err(base_model::Error::from)
        .map_err(world::base_failure)?;
    let mut memo = world::digest_memo();
    base.with_recipe(recipe, &mut memo)
        .map_err(world::base_failure)
}

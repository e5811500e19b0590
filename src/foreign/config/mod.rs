//! Configs of other trainers as Experiments, with a table of what becomes of every setting.
//!
//! [`import`] reads the files ([`read`]), tells whose they are, takes them apart into settings as that trainer does
//! ([`forms`]), looks up what each does ([`knowledge`]), and puts what plumb has into an Experiment that is tried before it is given
//! away ([`draft`]). What a setting does is data with sources, in `configs/trainers/`. Where the trainer makes conditioning otherwise
//! than the base model expects, the Experiment has the base model's way unless the trainer's is asked for.
//!
//! No file is run, nothing is downloaded, and nothing is guessed silently: what is not understood is in the table.

mod base;
mod classify;
mod convert;
mod draft;
mod error;
mod forms;
mod knowledge;
mod processes;
mod read;
mod report;
mod setting;
mod tree;

use std::fmt;
use std::path::{Path, PathBuf};

use toml::Value as Toml;

pub use error::Error;
pub use knowledge::Status;
pub use report::{Imported, RecipeChoice, Row};

use crate::shown;
use classify::Classifier;
use draft::Draft;
use forms::{Gathered, Sources};
use knowledge::Knowledge;
use setting::Lookup;

/// Programs whose configs are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trainer {
    /// kohya-ss sd-scripts: command lines, `--config_file`, `--dataset_config`.
    Kohya,
    /// kohya-ss musubi-tuner: command lines, `--config_file`, `--dataset_config`.
    Musubi,
    /// ostris ai-toolkit: YAML.
    AiToolkit,
    /// bghira SimpleTuner: config.json (or .toml, .env) and multidatabackend.json.
    SimpleTuner,
    /// The example scripts of diffusers: command lines.
    Diffusers,
    /// Nerogar OneTrainer: JSON.
    OneTrainer,
    /// tdrussell diffusion-pipe: TOML.
    DiffusionPipe,
}

impl Trainer {
    /// Every trainer.
    pub const ALL: [Self; 7] = [
        Self::Kohya,
        Self::Musubi,
        Self::AiToolkit,
        Self::SimpleTuner,
        Self::Diffusers,
        Self::OneTrainer,
        Self::DiffusionPipe,
    ];

    /// Its name, which is also that of its variant of a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kohya => "kohya",
            Self::Musubi => "musubi",
            Self::AiToolkit => "ai-toolkit",
            Self::SimpleTuner => "simpletuner",
            Self::Diffusers => "diffusers",
            Self::OneTrainer => "onetrainer",
            Self::DiffusionPipe => "diffusion-pipe",
        }
    }
}

impl fmt::Display for Trainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a person may say about an import.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whose the files are, where they do not tell.
    pub from: Option<Trainer>,
    /// The base model as `family/flavor`, where the files do not tell.
    pub model: Option<String>,
    /// Whether conditioning is made as the trainer makes it, and not as the base model expects.
    pub keep_recipe: bool,
}

/// Reads a run's configs: the first file is its main one, others are those that it names (data sets, previews). Files that lie
/// where the first names them are found without being given.
///
/// # Errors
/// If a file cannot be read, or it is not told whose it is or for which base model.
pub fn import(files: &[PathBuf], options: &Options) -> Result<Imported, Error> {
    let mut sources = Sources::read(files)?;
    let trainer = match options.from {
        Some(trainer) => trainer,
        None => forms::detect(&sources)?,
    };
    let main = sources.path(0).to_owned();
    let internal = |why: String| Error::Internal {
        file: main.clone(),
        why,
    };
    let mut knowledge = Knowledge::of(trainer).map_err(internal)?;
    let mut gathered = forms::gather(trainer, &mut sources)?;
    gathered.canonical(&mut knowledge);
    let lookup = Lookup::new(&gathered.settings, &[]);
    let told = base::family(trainer, &knowledge, &lookup, options.model.as_deref());
    let told = told.map_err(|why| Error::NoModel {
        file: main.clone(),
        why,
    })?;
    let mut draft = Draft::default();
    let classifier = Classifier {
        trainer,
        knowledge: &knowledge,
        family: &told.family,
        folder: main.parent().unwrap_or(Path::new(".")),
        sets: (0..gathered.sets).collect(),
    };
    let mut rows = classifier.run(&gathered.settings, &mut draft);
    processes::apply(
        &gathered.settings,
        &mut draft,
        &mut rows,
        &mut gathered.notes,
    );
    let replaced = std::mem::take(&mut gathered.replaced).into_iter();
    rows.extend(replaced.map(|(setting, why)| classifier.replaced(&setting, why)));
    finish(
        trainer, &knowledge, &sources, gathered, told, draft, rows, options,
    )
}

/// The Experiment, tried, and the report.
#[expect(
    clippy::too_many_arguments,
    reason = "what the parts of an import came to"
)]
fn finish(
    trainer: Trainer,
    knowledge: &Knowledge,
    sources: &Sources,
    gathered: Gathered,
    told: base::Told,
    mut draft: Draft,
    mut rows: Vec<Row>,
    options: &Options,
) -> Result<Imported, Error> {
    let main = sources.path(0);
    let internal = |why: String| Error::Internal {
        file: main.to_owned(),
        why,
    };
    let path = draft.text_of("model.path").ok_or_else(|| Error::NoModel {
        file: main.to_owned(),
        why: format!(
            "it names no base model ({} does); give the file that does as well",
            knowledge.model_path
        ),
    })?;
    let flavor =
        base::flavor(&told, &path).ok_or_else(|| internal("a family has no flavor".to_owned()))?;
    let mut notes = gathered.notes;
    notes.extend(base::note(&told, flavor, &path));
    complete(&mut draft, &told.family, flavor.name, &mut notes);
    let differing = draft.differing();
    notes.push(format!(
        "paths are as they stand: {}; an Experiment's start from its own folder",
        knowledge.paths
    ));
    let (recipe, changes) = base::recipe(&told, flavor, options.keep_recipe, &mut draft);
    draft.header = header(trainer, &sources.names(), &recipe);
    let settled = draft.settle(main, flavor).map_err(internal)?;
    notes.extend(settled.notes);
    let changes = changes.into_iter().chain(differing);
    for change in changes.chain(settled.refused) {
        for row in change.rows {
            if let Some(row) = rows.get_mut(row) {
                row.status = change.status;
                row.why = Some(change.why.clone());
            }
        }
    }
    settle_rows(&draft, &mut rows);
    // A default that something written took the place of is no news.
    rows.retain(|row| row.written || row.status == Status::Effective || row.status.is_lost());
    Ok(Imported {
        files: sources.paths(),
        trainer: trainer.name(),
        title: knowledge.title.clone(),
        revision: knowledge.revisions(trainer),
        family: told.family,
        flavor: flavor.name.to_owned(),
        recipe,
        settings: rows,
        notes,
        experiment: settled.text,
    })
}

/// What every Experiment has, and what is left out of this one.
fn complete(draft: &mut Draft, family: &str, flavor: &str, notes: &mut Vec<String>) {
    let ours = [
        ("model.family", family),
        ("model.flavor", flavor),
        ("store.path", "store"),
    ];
    for (field, value) in ours {
        draft.ours(field, Toml::String(value.to_owned()));
    }
    if !draft.has("train.output") {
        draft.ours("train.output", Toml::String("out".to_owned()));
    }
    let without = draft.drop_sets_without_path();
    if without > 0 {
        notes.push(format!(
            "{without} data sets name no folder and are left out"
        ));
    }
    if draft.set_count() == 0 {
        let why = "there is no data set in it: give its file as well, or write [[dataset]]";
        notes.push(why.to_owned());
    }
}

/// What is in the end in the Experiment: of two settings of one field, one.
fn settle_rows(draft: &Draft, rows: &mut [Row]) {
    let places: Vec<String> = rows.iter().map(|row| row.setting.clone()).collect();
    for (n, row) in rows.iter_mut().enumerate() {
        // What is lost for some data sets is a field of others.
        if row.status != Status::Effective && !row.status.is_lost() {
            continue;
        }
        let fields = draft.fields_of(n);
        if fields.is_empty() && row.status.is_lost() {
            continue;
        }
        if fields.is_empty() {
            row.status = Status::Overridden;
            row.why = Some("another setting of the same thing counts".to_owned());
            if let Some(other) = draft.instead_of(n) {
                row.why = Some(format!("`{}` counts", shown::text(&places[other])));
            } else if row.written && draft.set_count() == 0 {
                row.status = Status::NotSupported;
                let why = "it is about pictures and captions, and the files that are given name no folder of them";
                row.why = Some(why.to_owned());
            }
            continue;
        }
        let json = |value: Toml| serde_json::to_value(value).unwrap_or_default();
        row.fields = fields
            .into_iter()
            .map(|(field, value)| (field, json(value)))
            .collect();
    }
}

fn header(trainer: Trainer, names: &str, recipe: &RecipeChoice) -> Vec<String> {
    let mut lines = vec![format!(
        "From {names}, a config of {trainer}, by `plumb import config`."
    )];
    if !recipe.differences.is_empty() {
        let fields = shown::counted(recipe.differences.fields.len(), "field");
        lines.push(match recipe.kept {
            true => format!("Conditioning as {trainer} makes it, which differs from the base model's own in {fields}."),
            false => format!("Conditioning as the base model expects it; {trainer}'s differs in {fields} (--keep-recipe keeps it)."),
        });
    }
    lines
}

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod place_tests;
#[cfg(test)]
mod rule_tests;
#[cfg(test)]
mod script_tests;
#[cfg(test)]
mod tests;

//! The Experiment: the TOML file a person writes. Everything that changes bytes is in it; flags of the
//! command line only choose where, how fast and how loud.
//!
//! [`raw`] mirrors the file, with every default in plain sight; [`Experiment::open`] reads it, checks what
//! can be checked without a model or a store, and resolves paths against the file's folder. What the rest of the program
//! reads are [`Settings`], with what depends on the flavor (shift, guidance) filled in.

mod bounds;
mod check;
mod clips;
mod effect;
mod error;
mod file_name;
mod fingerprint;
mod parse;
mod paths;
mod previews;
mod process;
pub mod raw;
mod references;
mod schedule;
mod settings;
mod text_file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::shown;
use crate::store::{Address, Place};

pub(crate) use check::PLACEHOLDER;
pub use clips::{ClipSettings, ClipUse};
pub use error::Error;
pub use fingerprint::{LoraDigests, TrainingFields, default_of};
pub use paths::Variables;
pub use raw::{
    DdpmPrediction, FileMap, LrDecay, Precision, Products, QuantizedWeights, Raw, ReferenceSize,
    SlotFiles, Warmup, Windows,
};
pub use references::{ReferenceSettings, ReferenceSource, References};
pub use settings::{
    AdapterSettings, DatasetSettings, ModelSettings, SampleOverrides, SampleSettings, Settings,
    StartSettings, TagSettings, TrainLength, TrainSettings,
};
pub use text_file::{prompt_lines, read_text};

/// The largest Experiment file, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// An Experiment whose values were checked.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// What the file says, with the defaults that depend on nothing.
    raw: Raw,
    /// The file, as it was named when it was opened.
    pub file: PathBuf,
    /// The folder that relative paths start from.
    pub folder: PathBuf,
    /// The file's text, for provenance.
    pub text: String,
    /// Where paths are that the file does not say plainly (`hf://...`, `~`, `$NAME`), by what it says.
    pub fetched: BTreeMap<PathBuf, PathBuf>,
    /// The store, where it is on object storage: made of its address by whoever knows the environment.
    pub remote_store: Option<Place>,
}

impl Experiment {
    /// Reads and checks an Experiment file; its paths may have `~` and the names of `variables`.
    ///
    /// # Errors
    /// If the file cannot be read, is not TOML, has an unknown key (the nearest known one is named) or a
    /// value out of its range.
    pub fn open(file: &Path, variables: &Variables) -> Result<Self, Error> {
        let text = read_text(file, MAX_FILE).map_err(|why| Error::Unreadable {
            file: file.into(),
            why,
        })?;
        Self::of_text(file, text, variables)
    }

    /// The same of a text that is in no file of its own, such as the one that a LoRA carries; `file` names it in messages and anchors
    /// relative paths.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn of_text(file: &Path, text: String, variables: &Variables) -> Result<Self, Error> {
        let mut experiment = Self::parse(file, text)?;
        experiment.expand_paths(variables)?;
        experiment.read_prompts()?;
        Ok(experiment)
    }

    fn expand_paths(&mut self, variables: &Variables) -> Result<(), Error> {
        for (field, path) in self.raw.paths() {
            let expanded = paths::expand(&path, variables).map_err(|why| self.wrong(field, why))?;
            if let Some(expanded) = expanded {
                self.fetched.insert(path, self.folder.join(expanded));
            }
        }
        Ok(())
    }

    /// The prompts of `prompts_file`: one a line; empty lines and those that begin with `#` are none.
    fn read_prompts(&mut self) -> Result<(), Error> {
        const FIELD: &str = "sample.prompts_file";
        let Some(file) = self.raw.sample.prompts_file.clone() else {
            return Ok(());
        };
        let file = self.path(&file);
        let wrong = |why: String| self.wrong(FIELD, format!("{}: {why}", shown::path(&file)));
        if !self.raw.sample.prompts.is_empty() {
            return Err(wrong(
                "there are `prompts` too; give one of the two".to_owned(),
            ));
        }
        let text = read_text(&file, MAX_FILE).map_err(wrong)?;
        let prompts: Vec<String> = prompt_lines(&text).map(str::to_owned).collect();
        if prompts.is_empty() {
            return Err(wrong("there is no prompt in it".to_owned()));
        }
        self.raw.sample.prompts = prompts;
        self.check_raw()
    }

    fn check_raw(&self) -> Result<(), Error> {
        let checked = self.raw.check();
        checked.map_err(|(field, why)| self.wrong(&field, why))
    }

    /// Checks an Experiment's text; `file` names it in messages and anchors relative paths.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn parse(file: &Path, text: String) -> Result<Self, Error> {
        let raw = parse::parse(file, &text)?;
        raw.check().map_err(|(field, why)| Error::Value {
            file: file.into(),
            line: None,
            field,
            why,
        })?;
        // The parent of a bare file name is empty, which is no folder to open.
        let folder = file
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        Ok(Self {
            raw,
            file: file.into(),
            folder: folder.into(),
            text,
            fetched: BTreeMap::new(),
            remote_store: None,
        })
    }

    /// A path of the file, seen from where the program runs.
    pub fn path(&self, relative: &Path) -> PathBuf {
        let fetched = self.fetched.get(relative).cloned();
        fetched.unwrap_or_else(|| self.folder.join(relative))
    }

    /// The paths of the base model and its files, as the file says them.
    pub fn model_paths(&self) -> Vec<&Path> {
        let model = &self.raw.model;
        std::iter::once(model.path.as_path())
            .chain(model.files.paths())
            .collect()
    }

    /// Where the store is.
    ///
    /// # Errors
    /// If the file does not say, or it is on object storage and nobody made [`Self::remote_store`] of its address.
    pub fn store_path(&self) -> Result<Place, Error> {
        let path = self.raw.store.path.as_deref();
        let path = path.ok_or_else(|| Error::Missing {
            file: self.file.clone(),
            what: "what is encoded",
            missing: "a place, `path` under [store]".to_owned(),
            smallest: "two lines: `[store]` and `path = \"store\"`",
        })?;
        match (self.store_address(), &self.remote_store) {
            (None, _) => Ok(self.path(path).into()),
            (Some(_), Some(place)) => Ok(place.clone()),
            (Some(_), None) => Err(self.wrong(
                "store.path",
                "a store on object storage cannot be opened here".to_owned(),
            )),
        }
    }

    /// The address of a store on object storage.
    pub fn store_address(&self) -> Option<Address> {
        let path = self.raw.store.path.as_deref()?;
        // Checked when the file was read.
        Address::parse(path.to_str()?).ok()
    }

    /// The folder that keeps what is read from a store on object storage, where the file says it.
    pub fn store_cache(&self) -> Option<PathBuf> {
        self.raw.store.cache.as_deref().map(|path| self.path(path))
    }

    /// How much that folder keeps, in bytes, where the file says it.
    pub fn store_cache_bytes(&self) -> Option<u64> {
        self.raw.store.cache_gb.map(|gb| (gb * 1e9) as u64)
    }

    /// Whether packs go to object storage in shared form.
    pub fn store_compress(&self) -> bool {
        self.raw.store.compress
    }

    /// Where a training's files go, if the file says so.
    pub fn output_path(&self) -> Option<PathBuf> {
        self.raw.train.output.as_deref().map(|path| self.path(path))
    }

    /// Where the files of a training go that can begin.
    ///
    /// # Errors
    /// If `[train]` lacks what has no default.
    pub fn training_output(&self) -> Result<PathBuf, Error> {
        let output = self.output_path();
        let has_no_length = self.raw.train.steps.or(self.raw.train.epochs).is_none();
        let missing: Vec<&str> = [
            ("`steps` (or `epochs`)", has_no_length),
            ("`output`", output.is_none()),
        ]
        .into_iter()
        .filter_map(|(field, is_missing)| is_missing.then_some(field))
        .collect();
        output
            .filter(|_| missing.is_empty())
            .ok_or_else(|| Error::Missing {
                file: self.file.clone(),
                what: "training",
                missing: format!("{} under [train]", missing.join(" and ")),
                smallest: "three lines: `[train]`, `steps = 2000` and `output = \"out\"`",
            })
    }
}

/// The JSON Schema of the Experiment file, as pretty JSON with a final newline.
///
/// # Errors
/// If the schema cannot be written as JSON, which would be a bug.
pub fn json_schema() -> Result<String, serde_json::Error> {
    let mut schema = schemars::schema_for!(Raw).to_value();
    bounds::write_into(&mut schema);
    // As a schema again, it is written in the usual order.
    let schema = schemars::Schema::try_from(schema)?;
    Ok(serde_json::to_string_pretty(&schema)? + "\n")
}

#[cfg(test)]
mod tests;

//! The Experiment: the TOML file a person writes. Everything that changes bytes is in it; flags of the
//! command line only choose where, how fast and how loud.
//!
//! [`raw`] mirrors the file, with every default in plain sight; [`Experiment::open`] reads it, checks what
//! can be checked without a model or a store, and resolves paths against the file's folder. What the rest of the program
//! reads are [`Settings`], with what depends on the flavor (shift, guidance) filled in.

mod check;
mod error;
mod fingerprint;
mod process;
pub mod raw;
mod schedule;
mod settings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use error::Error;
pub use raw::{DdpmPrediction, FileMap, LrDecay, Precision, QuantizedWeights, Raw, SlotFiles};
pub use settings::{
    AdapterSettings, DatasetSettings, ModelSettings, SampleOverrides, SampleSettings, Settings,
    TrainSettings,
};

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
    /// Where paths of the file are that are no paths of this machine (`hf://...`), by what the file says.
    pub fetched: BTreeMap<PathBuf, PathBuf>,
}

impl Experiment {
    /// Reads and checks an Experiment file.
    ///
    /// # Errors
    /// If the file cannot be read, is not TOML, has an unknown key (the nearest known one is named) or a
    /// value out of its range.
    pub fn open(file: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(file).map_err(|e| Error::Unreadable {
            file: file.into(),
            why: e.to_string(),
        })?;
        let text = String::from_utf8(bytes).map_err(|e| Error::Unreadable {
            file: file.into(),
            why: format!(
                "it is not UTF-8 text (byte {} is not)",
                e.utf8_error().valid_up_to()
            ),
        })?;
        Self::parse(file, text)
    }

    /// Checks an Experiment's text; `file` names it in messages and anchors relative paths.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn parse(file: &Path, text: String) -> Result<Self, Error> {
        let raw: Raw = toml::from_str(&text).map_err(|e| Error::from_toml(file, &text, &e))?;
        raw.check().map_err(|(field, why)| Error::Value {
            file: file.into(),
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
    pub fn store_path(&self) -> PathBuf {
        self.path(&self.raw.store.path)
    }

    /// Where the run's files go.
    pub fn output_path(&self) -> PathBuf {
        self.path(&self.raw.train.output)
    }
}

/// The JSON Schema of the Experiment file, as pretty JSON with a final newline.
///
/// # Errors
/// If the schema cannot be written as JSON, which would be a bug.
pub fn json_schema() -> Result<String, serde_json::Error> {
    Ok(serde_json::to_string_pretty(&schemars::schema_for!(Raw))? + "\n")
}

#[cfg(test)]
mod tests;

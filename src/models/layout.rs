//! Where the parts of a model lie: in a folder as diffusers writes it (one sub-folder per part), or in a single
//! file (one prefix per part).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Error;
use crate::nn::weights::Weights;

/// One part of a model, such as its VAE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// What `Weights::open` takes: a folder or a file.
    pub weights: PathBuf,
    /// What the tensors' names begin with; empty, or ends with a dot.
    pub prefix: String,
    /// Its `config.json`, if it has one.
    pub config: Option<PathBuf>,
}

impl Component {
    /// Its weights, lazily, with names as they are in the files after the prefix.
    ///
    /// # Errors
    /// If the files are not whole safetensors files.
    pub fn open(&self) -> Result<Weights, Error> {
        Ok(Weights::open(std::slice::from_ref(&self.weights))?.pp(&self.prefix))
    }
}

/// The parts of a model, by the names that diffusers gives them (`transformer`, `vae`, `text_encoder`, ...).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Components {
    /// The folder or file.
    pub path: PathBuf,
    /// Networks.
    pub parts: BTreeMap<&'static str, Component>,
    /// Folders of tokenizers (`tokenizer`, `tokenizer_2`, ...); a single file has none.
    pub tokenizers: BTreeMap<&'static str, PathBuf>,
}

impl Components {
    /// A part.
    ///
    /// # Errors
    /// If the model does not have it.
    pub fn get(&self, name: &str) -> Result<&Component, Error> {
        self.parts.get(name).ok_or_else(|| Error::NoComponent {
            path: self.path.clone(),
            component: name.to_owned(),
            hint: String::new(),
        })
    }

    /// A folder with one sub-folder per part. Parts that are not there are left out.
    pub(super) fn in_folder(
        path: &Path,
        parts: &[&'static str],
        tokenizers: &[&'static str],
    ) -> Self {
        let component = |name: &&'static str| {
            let folder = path.join(name);
            let config = folder.join("config.json");
            folder.is_dir().then(|| {
                let config = config.is_file().then_some(config);
                (
                    *name,
                    Component {
                        weights: folder,
                        prefix: String::new(),
                        config,
                    },
                )
            })
        };
        let tokenizer = |name: &&'static str| {
            let folder = path.join(name);
            folder.is_dir().then_some((*name, folder))
        };
        Self {
            path: path.to_owned(),
            parts: parts.iter().filter_map(component).collect(),
            tokenizers: tokenizers.iter().filter_map(tokenizer).collect(),
        }
    }

    /// A single file: each part is what has one of its prefixes (the first that is there).
    ///
    /// # Errors
    /// If it is not a whole safetensors file.
    pub(super) fn in_file(
        path: &Path,
        prefixes: &[(&'static str, &[&'static str])],
    ) -> Result<Self, Error> {
        let weights = Weights::open(&[path.to_owned()])?;
        let mut parts = BTreeMap::new();
        for (name, candidates) in prefixes {
            let there = |prefix: &&&str| !weights.pp(prefix).names().is_empty();
            if let Some(prefix) = candidates.iter().find(there) {
                let prefix = (*prefix).to_owned();
                parts.insert(
                    *name,
                    Component {
                        weights: path.to_owned(),
                        prefix,
                        config: None,
                    },
                );
            }
        }
        Ok(Self {
            path: path.to_owned(),
            parts,
            tokenizers: BTreeMap::new(),
        })
    }

    /// Takes a whole single file as the part `name`, if it has tensors that begin with `sign`.
    ///
    /// # Errors
    /// If it is not a whole safetensors file.
    pub(super) fn add_unprefixed(&mut self, name: &'static str, sign: &str) -> Result<(), Error> {
        if !Weights::open(std::slice::from_ref(&self.path))?
            .pp(sign)
            .names()
            .is_empty()
        {
            let weights = self.path.clone();
            self.parts.insert(
                name,
                Component {
                    weights,
                    prefix: String::new(),
                    config: None,
                },
            );
        }
        Ok(())
    }
}

/// A JSON object in a file.
///
/// # Errors
/// If the file cannot be read or holds something else.
pub(super) fn read_json(path: &Path) -> Result<Map<String, Value>, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|error| Error::Config {
        path: path.to_owned(),
        what: format!("expected a JSON object: {error}"),
    })
}

//! Where the parts of a model lie: in a folder as diffusers writes it (one sub-folder per part), or in a single
//! file (one prefix per part).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Error, LatentScaling};
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
    fn in_folder(path: &Path, parts: &[&'static str], tokenizers: &[&'static str]) -> Self {
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
    fn in_file(path: &Path, prefixes: &[(&'static str, &[&'static str])]) -> Result<Self, Error> {
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
    fn add_unprefixed(&mut self, name: &'static str, sign: &str) -> Result<(), Error> {
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

/// Where a family's models have their parts.
pub(super) struct Layout {
    pub(super) family: &'static str,
    /// The denoiser among the parts.
    pub(super) denoiser: &'static str,
    /// Parts in a folder of diffusers, each a folder.
    pub(super) folders: &'static [&'static str],
    /// Tokenizers there.
    pub(super) tokenizers: &'static [&'static str],
    /// Parts in a single file, by what the names of their tensors begin with.
    pub(super) prefixes: &'static [(&'static str, &'static [&'static str])],
    /// What begins the names of the denoiser's tensors in a single file of its own, without a prefix.
    pub(super) sign: &'static str,
}

impl Layout {
    /// The parts of a model at `path`.
    ///
    /// # Errors
    /// If it has no denoiser, or is not a whole safetensors file.
    pub(super) fn find(&self, path: &Path) -> Result<Components, Error> {
        let mut components = if path.is_dir() {
            Components::in_folder(path, self.folders, self.tokenizers)
        } else {
            Components::in_file(path, self.prefixes)?
        };
        if !path.is_dir() && !components.parts.contains_key(self.denoiser) {
            components.add_unprefixed(self.denoiser, self.sign)?;
        }
        if components.parts.contains_key(self.denoiser) {
            return Ok(components);
        }
        let (folder, sign) = (self.denoiser, self.sign);
        Err(Error::NotThisFamily {
            path: path.to_owned(),
            family: format!("`{}`", self.family),
            reason: format!(
                "expected a folder with `{folder}/`, or a safetensors file with tensors `{sign}*` or `model.diffusion_model.{sign}*`"
            ),
        })
    }
}

/// Reads a denoiser's `config.json`, of this class if it names one. Fields that begin with `_` are not read.
///
/// # Errors
/// If it cannot be read, is of another class, or has a field that `T` has not.
pub(super) fn read_config<T: DeserializeOwned>(path: &Path, class: &str) -> Result<T, Error> {
    let wrong = |what: String| Error::Config {
        path: path.to_owned(),
        what,
    };
    let mut object = read_json(path)?;
    match object.get("_class_name").and_then(Value::as_str) {
        Some(other) if other != class => {
            return Err(wrong(format!(
                "`_class_name`: expected `{class}`, found `{other}`"
            )));
        }
        _ => {}
    }
    object.retain(|key, _| !key.starts_with('_'));
    serde_json::from_value(Value::Object(object)).map_err(|error| wrong(error.to_string()))
}

/// Checks by their headers that the files hold these tensors (canonical names and shapes), and no other.
///
/// # Errors
/// For the first that is missing, misshapen or too many.
pub(super) fn check_whole(
    weights: &Weights,
    tensors: &[(String, Vec<usize>)],
) -> Result<(), Error> {
    weights.require(tensors)?;
    let extra = weights.extra(tensors);
    match extra.first() {
        Some(first) => Err(Error::ExtraTensors {
            files: weights.describe(),
            count: extra.len(),
            first: first.clone(),
        }),
        None => Ok(()),
    }
}

/// How latents are scaled: as the VAE's config says, or as `unsaid` where there is none.
///
/// # Errors
/// If the config cannot be read, or lacks a number.
pub(super) fn latent_scaling(
    components: &Components,
    unsaid: LatentScaling,
) -> Result<LatentScaling, Error> {
    let vae = components.parts.get("vae");
    let Some(path) = vae.and_then(|vae| vae.config.as_ref()) else {
        return Ok(unsaid);
    };
    let fields = read_json(path)?;
    let number = |field: &str| match fields.get(field) {
        // diffusers takes a shift that is null as none.
        None | Some(serde_json::Value::Null) if field == "shift_factor" => Ok(0.0),
        Some(value) if value.is_number() => Ok(value.as_f64().unwrap_or(0.0)),
        other => Err(Error::Config {
            path: path.clone(),
            what: match other {
                Some(other) => format!("`{field}`: expected a number, found {other}"),
                None => format!("`{field}`: expected a number, found no such field"),
            },
        }),
    };
    Ok(LatentScaling {
        scale: number("scaling_factor")?,
        shift: number("shift_factor")?,
    })
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

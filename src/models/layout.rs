//! Where the parts of a model lie: in a folder as diffusers writes it (one sub-folder per part), or in a single
//! file (one prefix per part).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::Error;
use crate::files;
use crate::nn::weights::Weights;
use crate::recipe::latents::LatentStatistics;

/// One part of a model, such as its VAE.
#[derive(Clone)]
pub struct Component {
    /// What `Weights::open` takes: a folder or a file.
    pub weights: PathBuf,
    /// What the tensors' names begin with; empty, or ends with a dot.
    pub prefix: String,
    /// Its `config.json`, if it has one.
    pub config: Option<PathBuf>,
    /// The file that several parts share, so that its header is parsed for the first of them only.
    shared: Option<Weights>,
}

impl Component {
    /// A part in a folder or file of its own.
    pub fn new(weights: PathBuf, config: Option<PathBuf>) -> Self {
        Self {
            weights,
            prefix: String::new(),
            config,
            shared: None,
        }
    }

    /// A part that a person names: a folder or a file, with the `config.json` that lies in it or beside it, if any.
    pub fn at(path: &Path) -> Self {
        let configs = [path.join("config.json"), path.with_file_name("config.json")];
        let config = configs.into_iter().find(|config| config.is_file());
        Self::new(path.to_owned(), config)
    }

    /// A network of `family`: what its config says, or where it has none, the shapes of its `weights` under canonical names.
    ///
    /// # Errors
    /// As the two functions; what shapes do not tell is that it is not of the family.
    pub(super) fn told<A>(
        &self,
        family: &str,
        weights: &Weights,
        by_config: fn(&Path) -> Result<A, Error>,
        by_shapes: fn(&Weights) -> Result<A, String>,
    ) -> Result<A, Error> {
        match &self.config {
            Some(config) => by_config(config),
            None => by_shapes(weights).map_err(|reason| Error::NotThisFamily {
                path: self.weights.clone(),
                family: format!("`{family}`"),
                reason,
            }),
        }
    }

    /// A part of a single file that was opened.
    fn below(weights: &Weights, path: &Path, prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            shared: Some(weights.clone()),
            ..Self::new(path.to_owned(), None)
        }
    }

    /// All of the file it is in, or of its own files.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) fn whole(&self) -> Result<Weights, Error> {
        match &self.shared {
            Some(weights) => Ok(weights.clone()),
            None => Ok(Weights::open(std::slice::from_ref(&self.weights))?),
        }
    }

    /// Its weights, lazily, with names as they are in the files after the prefix.
    ///
    /// # Errors
    /// If the files are not whole safetensors files.
    pub fn open(&self) -> Result<Weights, Error> {
        Ok(self.whole()?.pp(&self.prefix))
    }
}

/// The parts of a model, by the names that diffusers gives them (`transformer`, `vae`, `text_encoder`, ...).
#[derive(Clone)]
pub struct Components {
    /// The folder or file.
    pub path: PathBuf,
    /// Networks.
    pub parts: BTreeMap<&'static str, Component>,
    /// Folders of tokenizers (`tokenizer`, `tokenizer_2`, ...); a single file has none.
    pub tokenizers: BTreeMap<&'static str, PathBuf>,
    /// The scheduler's configuration; a single file has none.
    pub scheduler: Option<PathBuf>,
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
                (*name, Component::new(folder, config))
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
            scheduler: Some(path.join("scheduler/scheduler_config.json")).filter(|p| p.is_file()),
        }
    }

    /// A single file: each part is what has one of its prefixes (the first that is there). Without a prefix for the
    /// denoiser, the whole file is the denoiser if it has tensors that begin with the family's sign.
    ///
    /// # Errors
    /// If it is not a whole safetensors or GGUF file.
    fn in_file(path: &Path, layout: &Layout) -> Result<Self, Error> {
        let weights = Weights::open(&[path.to_owned()])?;
        let there = |prefix: &str| !weights.pp(prefix).names().is_empty();
        let mut parts = BTreeMap::new();
        for (name, candidates) in layout.prefixes {
            if let Some(prefix) = candidates.iter().find(|prefix| there(prefix)) {
                parts.insert(*name, Component::below(&weights, path, prefix));
            }
        }
        if !parts.contains_key(layout.denoiser) && there(layout.sign) {
            parts.insert(layout.denoiser, Component::below(&weights, path, ""));
        }
        Ok(Self {
            path: path.to_owned(),
            parts,
            tokenizers: BTreeMap::new(),
            scheduler: None,
        })
    }
}

/// Where a family's models have their parts.
pub(super) struct Layout {
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
    /// The parts of a model of `family` at `path`.
    ///
    /// # Errors
    /// If it has no denoiser, or is not a whole safetensors file.
    pub(super) fn find(&self, family: &str, path: &Path) -> Result<Components, Error> {
        let components = if path.is_dir() {
            Components::in_folder(path, self.folders, self.tokenizers)
        } else {
            Components::in_file(path, self)?
        };
        if components.parts.contains_key(self.denoiser) {
            return Ok(components);
        }
        let (folder, sign) = (self.denoiser, self.sign);
        Err(Error::NotThisFamily {
            path: path.to_owned(),
            family: format!("`{family}`"),
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
pub(super) fn read_config<T: DeserializeOwned>(
    path: &Path,
    class: &'static str,
) -> Result<T, Error> {
    let wrong = |what: String| Error::Config {
        path: path.to_owned(),
        what,
    };
    let mut object = read_json(path)?;
    match object.get("_class_name").and_then(Value::as_str) {
        Some(other) if other != class => {
            return Err(Error::OtherClass {
                path: path.to_owned(),
                expected: class,
                found: other.to_owned(),
            });
        }
        _ => {}
    }
    object.retain(|key, _| !key.starts_with('_'));
    serde_json::from_value(Value::Object(object)).map_err(|error| wrong(error.to_string()))
}

/// How the denoiser's latents come from the VAE's: as the VAE's config says, or as `unsaid` where there is none.
///
/// # Errors
/// If the config cannot be read, lacks a number, or is of another number of channels.
pub(super) fn latent_statistics(
    components: &Components,
    channels: usize,
    unsaid: LatentStatistics,
) -> Result<LatentStatistics, Error> {
    let vae = components.parts.get("vae");
    let Some(path) = vae.and_then(|vae| vae.config.as_ref()) else {
        return Ok(unsaid);
    };
    let fields = read_json(path)?;
    let wrong = |what: String| Error::Config {
        path: path.clone(),
        what,
    };
    // diffusers takes what is null as none.
    let told = |field: &str| fields.get(field).filter(|value| !value.is_null());
    let unlike = |field: &str, kind: &str| {
        let found = fields.get(field).map(Value::to_string);
        let found = found.unwrap_or_else(|| "no such field".to_owned());
        wrong(format!("`{field}`: expected {kind}, found {found}"))
    };
    let number =
        |field: &str| told(field).map(|v| v.as_f64().ok_or_else(|| unlike(field, "a number")));
    let numbers = |field: &str| {
        let list = told(field).map(|v| serde_json::from_value::<Vec<f64>>(v.clone()));
        list.map(|list| list.map_err(|_| unlike(field, "a list of numbers")))
    };
    let scale =
        number("scaling_factor").unwrap_or_else(|| Err(unlike("scaling_factor", "a number")))?;
    let shift = number("shift_factor").transpose()?;
    let mean = numbers("latents_mean").transpose()?;
    let std = numbers("latents_std").transpose()?;
    let statistics = LatentStatistics::new(scale, shift, mean, std).map_err(wrong)?;
    statistics.check(channels).map_err(wrong)?;
    Ok(statistics)
}

/// A JSON object in a file.
///
/// # Errors
/// If the file cannot be read or holds something else.
pub(super) fn read_json(path: &Path) -> Result<Map<String, Value>, Error> {
    let bytes = files::read(path, files::MAX_CONFIG_BYTES).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|error| Error::Config {
        path: path.to_owned(),
        what: format!("expected a JSON object: {error}"),
    })
}

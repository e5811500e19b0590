//! A base model as an Experiment names it: its files found, its recipe resolved, and the spec of each encoder
//! and of the VAE computed. Nothing is loaded here but headers, configurations and tokenizers; weights are read
//! once, for their digests, which the memo remembers.

mod encoder;
mod expert;
mod files;
pub mod hub;
mod vae;

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Device};

pub use encoder::TextEncoderPart;
pub use expert::OtherExpert;
use files::ModelFiles;
pub use files::{NeededFile, needed_files};
pub use vae::VaePart;

use crate::device;
use crate::digest::{Digest, Fingerprint};
use crate::experiment::{self, Experiment, ModelSettings, Products, QuantizedWeights, Settings};
use crate::models::{self, Denoiser, Family, Flavor, OpenedDenoiser, Placement, WeightStorage};
use crate::nn::weights::{self, DigestMemo};
use crate::nn::{Kernels, Quantization};
use crate::recipe::latents::ConfigError;
use crate::recipe::rules::DenoiserMask;
use crate::recipe::{self, Deviation, Recipe};
use crate::shown;
use crate::text::spec::Dtype;
use crate::text::{self, tokenizer};
use crate::vae::LatentGeometry;

/// Why a base model could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option is not for this flavor.
    #[error(transparent)]
    Experiment(#[from] experiment::Error),
    /// The denoiser's family does not know it.
    #[error(transparent)]
    Model(#[from] models::Error),
    /// The recipe or a deviation is wrong, or does not fit the checkpoint.
    #[error(transparent)]
    Recipe(#[from] recipe::Error),
    /// An encoder's `config.json` is wrong.
    #[error(transparent)]
    EncoderConfig(#[from] text::ConfigError),
    /// The VAE's `config.json` is wrong.
    #[error(transparent)]
    VaeConfig(#[from] ConfigError),
    /// A tokenizer is wrong.
    #[error(transparent)]
    Tokenizer(#[from] tokenizer::Error),
    /// A text encoder's weights are wrong.
    #[error("{slot}: {source}")]
    Encoder {
        /// The encoder's slot in the recipe: `clip_l`, `t5`.
        slot: String,
        /// What is wrong.
        source: text::Error,
    },
    /// Weights are wrong.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// Something the Experiment does not name is needed.
    #[error("{}: {what}", shown::path(file))]
    Missing {
        /// The Experiment file or the model.
        file: PathBuf,
        /// What is missing, and what to do.
        what: String,
    },
}

/// A base model, ready to be used in parts.
pub struct BaseModel {
    /// Its denoiser, with the family it is of and the model's parts.
    pub denoiser: Arc<OpenedDenoiser>,
    /// Its flavor, whose defaults fill `settings`.
    pub flavor: &'static Flavor,
    /// The Experiment, with what the model says of its noise schedule where the Experiment says nothing.
    pub experiment: Experiment,
    /// What a person should know of it, as sentences: what came from the model, and which deviation changes nothing.
    pub notes: Vec<String>,
    /// What the Experiment says of it and of its training, with the flavor's defaults.
    pub settings: Settings,
    /// How its conditioning is made, the Experiment's deviations included.
    pub recipe: Recipe,
    /// The encoders there are, in the recipe's order.
    pub encoders: Vec<TextEncoderPart>,
    /// The VAE.
    pub vae: VaePart,
}

impl BaseModel {
    /// Finds and describes the base model of an Experiment.
    ///
    /// # Errors
    /// If a part is missing, is not what the recipe or the family expects, or cannot be read.
    pub fn open(experiment: &Experiment, memo: &mut DigestMemo) -> Result<Self, Error> {
        let model = experiment.model();
        let family = models::family(&model.family)?;
        let flavor = family.flavor(&model.flavor)?;
        let recipe = resolve_recipe(&model)?;
        check_mask(family, &recipe)?;
        let denoiser = Arc::new(family.open_as(family.components(&model.path)?, flavor)?);
        denoiser.check_whole()?;
        denoiser.check_flavor(flavor)?;
        let without = without_each(&model, &recipe);
        let files = ModelFiles {
            experiment: &experiment.file,
            map: model.files,
            stored: model.stored,
            components: &denoiser.components,
            recipe: &recipe,
            without,
            other_expert: other_expert(&denoiser, flavor),
        };
        let schedule = denoiser.schedule(files.scheduler())?;
        let (completed, mut notes) = experiment.completed(flavor, &schedule)?;
        let settings = completed.settings(flavor)?;
        notes.extend(named_after_another(&denoiser, flavor));
        notes.extend(expert_by_word(&denoiser, flavor));
        files.check()?;
        let mut encoders = Vec::new();
        for encoder in recipe.encoders() {
            // None of one that the recipe does without.
            encoders.extend(files.encoder(encoder, &[], memo, &mut notes)?);
        }
        encoder::check_width(&recipe, &encoders, denoiser.context_width())?;
        let vae = files.vae_base(family, memo)?;
        Ok(Self {
            denoiser,
            flavor,
            experiment: completed,
            notes,
            settings,
            recipe,
            encoders,
            vae,
        })
    }

    /// The same base model under another recipe of its family. Files that are open stay so, and weights that were looked at are not
    /// looked at again: a change of rules costs next to nothing.
    ///
    /// # Errors
    /// If the recipe does not fit the model, or needs an encoder that is not there.
    pub fn with_recipe(&self, recipe: Recipe, memo: &mut DigestMemo) -> Result<Self, Error> {
        let model = self.experiment.model();
        check_mask(self.denoiser.family, &recipe)?;
        let files = ModelFiles {
            experiment: &self.experiment.file,
            map: model.files,
            stored: model.stored,
            components: &self.denoiser.components,
            recipe: &recipe,
            without: Vec::new(),
            other_expert: other_expert(&self.denoiser, self.flavor),
        };
        files.check()?;
        let mut encoders = Vec::new();
        for encoder in recipe.encoders() {
            encoders.extend(files.encoder(encoder, &self.encoders, memo, &mut Vec::new())?);
        }
        encoder::check_width(&recipe, &encoders, self.denoiser.context_width())?;
        Ok(Self {
            denoiser: self.denoiser.clone(),
            flavor: self.flavor,
            experiment: self.experiment.clone(),
            notes: Vec::new(),
            settings: self.settings.clone(),
            encoders,
            vae: self.vae.clone(),
            recipe,
        })
    }

    /// The model's latents, against pixels and against the VAE's own.
    pub fn latent_geometry(&self) -> LatentGeometry {
        let patch = self.denoiser.family.latents().patch;
        LatentGeometry::new(&self.vae.architecture, &self.vae.statistics, patch)
    }

    /// What configurations say that is neither in a digest of weights nor in a spec: the denoiser's (None: it has none), and how its
    /// latents come from the VAE's.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn configurations(&self) -> Result<(Option<Fingerprint>, Fingerprint), Error> {
        let denoiser = self.denoiser.config()?;
        Ok((
            denoiser.as_ref().map(Fingerprint::of),
            Fingerprint::of(&self.vae.statistics),
        ))
    }

    /// Why a prediction of the denoiser, computed in `dtype` with or without a LoRA, may be no finite number, and what to do. Its weights
    /// were finite when they were read.
    pub fn why_not_finite(&self, dtype: DType, with_lora: bool) -> String {
        let model = shown::path(&self.denoiser.components.path);
        let mut why = match with_lora {
            false => format!("the weights of {model} are damaged (fetch them again)"),
            true => format!(
                "the weights of {model} or the LoRA's are damaged (fetch them again), or its strength is too high"
            ),
        };
        if dtype != DType::F32 {
            let dtype = dtype.as_str();
            why +=
                &format!(", or {dtype} is too coarse for them (`[train] compute = \"f32\"` shows)");
        }
        if self.experiment.model().products == Some(Products::Fp8) {
            why += ", or 8-bit products are (leaving out `[model] compute = \"fp8\"` shows)";
        }
        why
    }

    /// The digest of the denoiser's weights.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn denoiser_digest(&self, memo: &mut DigestMemo) -> Result<Digest, Error> {
        Ok(memo.digest(self.denoiser.weights(), self.denoiser.tensors())?)
    }

    /// Loads the denoiser, and makes sure that its weights have this digest.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen or not finite, the weights are others, or memory is short.
    pub fn load_denoiser(
        &self,
        placement: &Placement,
        digest: &Digest,
    ) -> Result<Box<dyn Denoiser>, Error> {
        let (weights, tensors) = (self.denoiser.weights(), self.denoiser.tensors());
        Ok(weights.load_checked(tensors, digest, || self.denoiser.load(placement))?)
    }
}

/// What the name of a model says against the flavor that the Experiment names, where shapes say nothing: one that takes references and
/// is used as one that takes none would be trained without them, and nobody would know.
fn named_after_another(denoiser: &OpenedDenoiser, flavor: &Flavor) -> Option<String> {
    let path = &denoiser.components.path;
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let possible = denoiser.flavors();
    let takes_references = |other: &&&Flavor| other.references.is_some();
    let mut others = possible.iter().filter(takes_references);
    let other = others.find(|other| name.contains(other.name))?;
    (flavor.references.is_none()).then(|| {
        format!(
            "warning: {} is called after flavor `{}`, whose shapes it has too, and the Experiment says `{}`, which is given no references",
            shown::path(path),
            other.name,
            flavor.name
        )
    })
}

/// What the other of two experts is called under `[model.files]`, where it may be named there: a folder has both.
fn other_expert(denoiser: &OpenedDenoiser, flavor: &Flavor) -> Option<&'static str> {
    let other = denoiser.family.flavor(flavor.expert?.other).ok()?;
    let is_file = !denoiser.components.path.is_dir();
    other.expert.map(|expert| expert.name).filter(|_| is_file)
}

/// A word on a single file that says by nothing which of two experts it is.
fn expert_by_word(denoiser: &OpenedDenoiser, flavor: &Flavor) -> Option<String> {
    let path = &denoiser.components.path;
    let says = models::expert_of_name(denoiser.family, path).is_some();
    (flavor.expert.is_some() && !path.is_dir() && !says).then(|| {
        format!(
            "nothing in {} says which of two experts it is: taken as flavor `{}`, as the Experiment says",
            shown::path(path),
            flavor.name
        )
    })
}

fn check_mask(family: &Family, recipe: &Recipe) -> Result<(), Error> {
    if recipe.assembly().mask == DenoiserMask::None || family.masks_pads {
        return Ok(());
    }
    Err(Error::Recipe(recipe::Error::DoesNotFit {
        slot: "denoiser".to_owned(),
        field: "assembly.mask".to_owned(),
        why: format!(
            "expected none (a denoiser of family `{}` has no mask), found {}",
            family.name,
            shown::word(&recipe.assembly().mask)
        ),
    }))
}

/// Where, in what and by what an Experiment's denoiser computes on `device`, and how it is kept.
pub fn placement(experiment: &Experiment, device: &Device, kernels: &Kernels) -> Placement {
    let model = experiment.model();
    Placement {
        dtype: match model.compute {
            Some(precision) => candle_dtype(precision.into()),
            None => device::usual_dtype(device),
        },
        device: device.clone(),
        kernels: kernels.clone(),
        storage: match model.weights {
            kept if model.products == Some(Products::Fp8) => WeightStorage::Fp8 {
                in_both_orders: kept.is_none() && !device.is_cpu(),
            },
            None => WeightStorage::Whole,
            Some(QuantizedWeights::Fp8) => WeightStorage::Quantized(Quantization::Fp8),
            Some(QuantizedWeights::Int8) => WeightStorage::Quantized(Quantization::Int8),
            Some(QuantizedWeights::Nf4) => WeightStorage::Quantized(Quantization::Nf4),
        },
    }
}

/// The recipe an Experiment asks for, its deviations included. `[store] precision` is one more way to name
/// the precision that outputs are kept in.
///
/// # Errors
/// If there is no such recipe, or a deviation does not fit.
pub fn resolve_recipe(model: &ModelSettings) -> Result<Recipe, recipe::Error> {
    let (family, flavor) = (&model.family, &model.flavor);
    let recipe = Recipe::resolve(family, flavor, &model.variant, &model.deviate)?;
    storing(recipe, model.stored)
}

/// The recipe with the precision that `[store] precision` keeps outputs in, where no deviation names another.
///
/// # Errors
/// If a precision does not go with the recipe.
pub fn storing(recipe: Recipe, stored: Option<Dtype>) -> Result<Recipe, recipe::Error> {
    let Some(precision) = stored else {
        return Ok(recipe);
    };
    let mut changes = Vec::new();
    for encoder in recipe.encoders() {
        let field = format!("{}.precision.output", encoder.slot);
        let named = recipe.deviations().iter().any(|d| d.field == field);
        if !named && encoder.rules.precision.output != precision {
            changes.push((field, serde_json::to_value(precision).unwrap_or_default()));
        }
    }
    match changes.is_empty() {
        true => Ok(recipe),
        false => recipe.deviating(&changes),
    }
}

/// The recipe without each of the deviations that the Experiment names, by its field. One without which the others do not fit has no
/// recipe.
fn without_each(model: &ModelSettings, recipe: &Recipe) -> Vec<(String, Recipe)> {
    let table = |left_out: &str| {
        let others = recipe.deviations().iter().filter(|d| d.field != left_out);
        let entry = |d: &Deviation| Some((d.field.clone(), toml::Value::try_from(&d.value).ok()?));
        others.filter_map(entry).collect::<toml::Table>()
    };
    let without = |field: &str| {
        let model = ModelSettings {
            deviate: table(field),
            // What is stored is a wish of its own, and among the deviations already.
            stored: None,
            ..model.clone()
        };
        Some((field.to_owned(), resolve_recipe(&model).ok()?))
    };
    let of_store = |d: &&Deviation| d.field.ends_with(".precision.output");
    let named = recipe.deviations().iter().filter(|d| !of_store(d));
    named.filter_map(|d| without(&d.field)).collect()
}

/// candle's name of a precision.
pub fn candle_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    }
}

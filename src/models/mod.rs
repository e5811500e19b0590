//! Denoisers, one folder per family. A family's code is written once for inference (tape off) and training,
//! reads like its paper, and shares with other families only what is the same by definition.
//!
//! Adding a family is one folder here, one folder under `configs/recipes/`, and one line in [`FAMILIES`]. Nothing above this
//! module names a family, but for the demo's miniatures.

pub mod activations;
pub mod flux1;
pub mod layout;
pub mod linear;
pub mod lora_names;
pub mod sd3;
pub mod source;
#[cfg(test)]
mod testing;
mod transformer;
pub mod unet;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

pub use activations::{Activations, BlockActivations, StepShape};
pub use layout::{Component, Components};
use source::Files;
pub use source::{Placement, Source, WeightStorage};

use crate::autograd::{Tape, Value};
use crate::diffusion::{Process, Sampler, Shift, Spacing};
use crate::lora::formats::Naming;
use crate::lora::{Bound, LinearShape, Preset};
use crate::nn::weights::{self, Weights};

/// Every family this program knows.
pub const FAMILIES: &[&dyn Family] = &[&sd3::Sd3, &flux1::Flux1, &unet::SDXL, &unet::SD1];

/// Why a base model could not be found, recognised or loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No family of that name.
    #[error("model family: expected one of {known}, found `{found}`")]
    NoSuchFamily {
        /// The name given.
        found: String,
        /// The names there are.
        known: String,
    },
    /// No flavor of that name.
    #[error("model flavor of family `{family}`: expected one of {known}, found `{found}`")]
    NoSuchFlavor {
        /// The family.
        family: &'static str,
        /// The name given.
        found: String,
        /// The names there are.
        known: String,
    },
    /// The model is of another flavor than the one named.
    #[error("{}: the weights are those of flavor {detected}, not of `{wanted}`", path.display())]
    WrongFlavor {
        /// The model.
        path: PathBuf,
        /// The flavor named.
        wanted: String,
        /// What the weights are.
        detected: String,
    },
    /// Nothing at the path that is a model of a known family.
    #[error("{}: not a model of family {family}: {reason}", path.display())]
    NotThisFamily {
        /// The model.
        path: PathBuf,
        /// The family or families tried.
        family: String,
        /// What was looked for.
        reason: String,
    },
    /// A part of the model is not there.
    #[error("{}: the model has no `{component}`{hint}", path.display())]
    NoComponent {
        /// The model.
        path: PathBuf,
        /// The part.
        component: String,
        /// Where it was looked for, as the end of a sentence, or nothing.
        hint: String,
    },
    /// A file could not be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A config file is wrong.
    #[error("{}: {what}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Which field, what was expected and found.
        what: String,
    },
    /// The weights have tensors that the network has no place for.
    #[error(
        "{files}: {count} tensors that this network does not have, the first is `{first}`; the file is of another architecture or damaged"
    )]
    ExtraTensors {
        /// The files.
        files: String,
        /// How many.
        count: usize,
        /// The first by name.
        first: String,
    },
    /// A tensor is missing, misshapen or damaged.
    #[error(transparent)]
    Weights(Box<weights::Error>),
    /// The device failed.
    #[error("{what}: {source}")]
    Device {
        /// What was being done.
        what: String,
        /// What candle said.
        source: candle_core::Error,
    },
}

impl From<weights::Error> for Error {
    fn from(error: weights::Error) -> Self {
        Self::Weights(Box::new(error))
    }
}

/// What a recipe's assembly gives the denoiser.
#[derive(Clone, Debug)]
pub struct ConditioningTensors {
    /// [batch, tokens, width]: one row per token of the concatenated encoders.
    pub context: Tensor,
    /// [batch, width]: one vector per caption; width 0 for a family without one.
    pub pooled: Tensor,
    /// Rows of each sample's context before its pads, where the recipe has the denoiser mask pads.
    pub token_counts: Option<Vec<usize>>,
    /// [batch]: the guidance embedding's input, for distilled models.
    pub guidance: Option<Tensor>,
    /// [batch, 6]: height and width of the picture before its crop, top and left of the crop, height and width of
    /// what came out, in px; for families with a size embedding.
    pub time_ids: Option<Tensor>,
}

impl ConditioningTensors {
    /// Context [batch, tokens, width] and pooled vectors [batch, width], and nothing else.
    pub fn new(context: Tensor, pooled: Tensor) -> Self {
        Self {
            context,
            pooled,
            token_counts: None,
            guidance: None,
            time_ids: None,
        }
    }

    /// Context and pooled vectors in `dtype` on `device`. The few other numbers, and the timesteps, stay where the
    /// program is: the networks make sinusoids of them there.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn to(&self, dtype: DType, device: &Device) -> candle_core::Result<Self> {
        let moved = |t: &Tensor| t.to_device(device)?.to_dtype(dtype);
        Ok(Self {
            context: moved(&self.context)?,
            pooled: moved(&self.pooled)?,
            ..self.clone()
        })
    }
}

/// A base model's denoising network with frozen weights. It has no state, draws no random numbers and opens no
/// file.
pub trait Denoiser: Send + Sync {
    /// The network's prediction for noisy latents.
    ///
    /// `latents` [batch, channels, height, width], `timesteps` [batch] f32, of [`crate::diffusion::Level`]; the result has the
    /// latents' shape. Latents, context and pooled vectors are of the network's type, on its device. With a recording tape, gradients reach the adapters in `adapters` and whatever
    /// else on the tape was put in.
    ///
    /// # Errors
    /// If shapes do not fit the network, or the device fails.
    fn forward(
        &self,
        tape: &Tape,
        adapters: &Bound,
        latents: &Value,
        timesteps: &Tensor,
        conditioning: &ConditioningTensors,
    ) -> candle_core::Result<Value>;

    /// Every linear that can carry an adapter, in the order of the network.
    fn linears(&self) -> &[LinearShape];

    /// The type it computes in.
    fn dtype(&self) -> DType;

    /// Where it computes.
    fn device(&self) -> &Device;
}

/// [`Denoiser::forward`] on inputs of any type on any device.
///
/// # Errors
/// As there.
pub fn predict(
    denoiser: &dyn Denoiser,
    tape: &Tape,
    adapters: &Bound,
    latents: &Tensor,
    timesteps: &Tensor,
    conditioning: &ConditioningTensors,
) -> candle_core::Result<Value> {
    let (dtype, device) = (denoiser.dtype(), denoiser.device());
    let latents = Value::constant(latents.to_device(device)?.to_dtype(dtype)?);
    let conditioning = conditioning.to(dtype, device)?;
    denoiser.forward(tape, adapters, &latents, timesteps, &conditioning)
}

/// One released variant of a family, and how it is sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flavor {
    /// What an Experiment writes in `[model] flavor`.
    pub name: &'static str,
    /// What it predicts, and along which path of noise.
    pub process: Process,
    /// How its previews are sampled where nothing else is asked for.
    pub sampler: Sampler,
    /// Whether it has an embedding of each picture's size and crop ([`ConditioningTensors::time_ids`]).
    pub size_conditioning: bool,
    /// The shift of a flow's noise schedule.
    pub shift: Shift,
    /// Where a flow's sampler stops.
    pub spacing: Spacing,
    /// Sampling steps its authors use.
    pub steps: u32,
    /// Classifier-free guidance its authors use; 1 is none.
    pub guidance: f64,
    /// The authors' input of the guidance embedding ([`ConditioningTensors::guidance`]), where the model has one.
    pub embedded_guidance: Option<f64>,
    /// Side of the pictures it was trained for, in pixels.
    pub resolution_px: u32,
    /// ModelSpec's name.
    pub architecture: &'static str,
    /// kohya's name (`ss_base_model_version`).
    pub base_version: &'static str,
    /// What a person who trains it should know first.
    pub caution: Option<&'static str>,
}

/// From the VAE's latents to what the denoiser sees: `(latents - shift) * scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentScaling {
    /// Multiplied after the shift is taken off.
    pub scale: f64,
    /// Taken off first.
    pub shift: f64,
}

/// The denoiser's weights under their canonical names.
pub struct BaseWeights {
    /// Canonical names, whatever the files call them.
    pub weights: Weights,
    /// Name and shape of every tensor of the network: what a digest of the base model is made of.
    pub tensors: Vec<(String, Vec<usize>)>,
}

/// A family of base models: what differs between families and is not in the recipe.
pub trait Family: Sync {
    /// What an Experiment writes in `[model] family`.
    fn name(&self) -> &'static str;

    /// Its released variants.
    fn flavors(&self) -> &'static [Flavor];

    /// The parts of a model at `path`: a folder as diffusers writes it, or a single file.
    ///
    /// # Errors
    /// If there is no model of this family.
    fn components(&self, path: &Path) -> Result<Components, Error>;

    /// The flavors that the denoiser's architecture allows, told from its config or tensors; several where only
    /// the weights' values differ.
    ///
    /// # Errors
    /// If the denoiser is not of this family.
    fn possible_flavors(&self, components: &Components) -> Result<Vec<&'static Flavor>, Error>;

    /// The denoiser's weights, checked by their headers: every tensor there, in the right shape, and no other.
    ///
    /// # Errors
    /// For the first tensor that is missing, misshapen or too many.
    fn weights(&self, components: &Components) -> Result<BaseWeights, Error>;

    /// As [`Self::weights`], unchecked where the family can tell the architecture of a denoiser that is not whole:
    /// for telling all that is wrong with it.
    ///
    /// # Errors
    /// If the architecture cannot be told.
    fn expected(&self, components: &Components) -> Result<BaseWeights, Error> {
        self.weights(components)
    }

    /// The denoiser that the config, or the files' headers, describe, of tensors of any source.
    ///
    /// # Errors
    /// If the architecture cannot be told, or the source lacks a tensor.
    fn build(
        &self,
        components: &Components,
        source: &dyn Source,
    ) -> Result<Box<dyn Denoiser>, Error>;

    /// The denoiser, loaded from its files.
    ///
    /// # Errors
    /// As [`Self::weights`], or if a weight is not finite.
    fn load(
        &self,
        components: &Components,
        placement: &Placement,
    ) -> Result<Box<dyn Denoiser>, Error> {
        let base = self.weights(components)?;
        self.build(components, &Files::new(&base.weights, placement))
    }

    /// Channels of the denoiser's context.
    ///
    /// # Errors
    /// If the denoiser's config or tensors cannot be read.
    fn context_width(&self, components: &Components) -> Result<usize, Error>;

    /// Every linear that can carry an adapter, as [`Denoiser::linears`], told from headers.
    ///
    /// # Errors
    /// If the architecture cannot be told.
    fn linears(&self, components: &Components) -> Result<Vec<LinearShape>, Error>;

    /// What a training step keeps of a forward pass.
    ///
    /// # Errors
    /// If the architecture cannot be told.
    fn activations(&self, components: &Components, step: &StepShape) -> Result<Activations, Error>;

    /// How latents are scaled: as the VAE's config says, or as the family does where there is none.
    ///
    /// # Errors
    /// If the VAE's config cannot be read.
    fn latent_scaling(&self, components: &Components) -> Result<LatentScaling, Error>;

    /// Named lists of adapter targets; the first is the default.
    fn presets(&self) -> &'static [Preset];

    /// The pipeline's name of the denoiser: the first part of tensor names in a LoRA file.
    fn lora_component(&self) -> &'static str;

    /// What its modules are called in the LoRA files of other programs.
    fn naming(&self) -> Naming;

    /// Whether the denoiser can leave a context's pads out of its attention ([`ConditioningTensors::token_counts`]).
    fn can_mask_pads(&self) -> bool {
        false
    }
}

/// The family of that name.
///
/// # Errors
/// If there is none.
pub fn family(name: &str) -> Result<&'static dyn Family, Error> {
    let found = FAMILIES.iter().find(|family| family.name() == name);
    found.copied().ok_or_else(|| Error::NoSuchFamily {
        found: name.to_owned(),
        known: quoted(FAMILIES.iter().map(|family| family.name())),
    })
}

/// The flavor of that name.
///
/// # Errors
/// If the family has none.
pub fn flavor(family: &dyn Family, name: &str) -> Result<&'static Flavor, Error> {
    let found = family.flavors().iter().find(|flavor| flavor.name == name);
    found.ok_or_else(|| Error::NoSuchFlavor {
        family: family.name(),
        found: name.to_owned(),
        known: quoted(family.flavors().iter().map(|flavor| flavor.name)),
    })
}

/// Checks that a model can be the flavor that an Experiment names.
///
/// # Errors
/// If it is another one, or not of the family.
pub fn check_flavor(
    family: &dyn Family,
    components: &Components,
    wanted: &Flavor,
) -> Result<(), Error> {
    let possible = family.possible_flavors(components)?;
    if possible.iter().any(|flavor| flavor.name == wanted.name) {
        return Ok(());
    }
    Err(Error::WrongFlavor {
        path: components.path.clone(),
        wanted: wanted.name.to_owned(),
        detected: quoted(possible.iter().map(|flavor| flavor.name)),
    })
}

/// The family of the model at `path`, its parts, and the flavors it may be.
///
/// # Errors
/// If it cannot be read, or no family takes it; the reason is that of the last one that has a name for its tensors.
pub fn detect(
    path: &Path,
) -> Result<(&'static dyn Family, Components, Vec<&'static Flavor>), Error> {
    let mut refused = None;
    for &family in FAMILIES {
        let components = match family.components(path) {
            Ok(components) => components,
            Err(Error::NotThisFamily { .. }) => continue,
            Err(unreadable) => return Err(unreadable),
        };
        match family.possible_flavors(&components) {
            Ok(flavors) => return Ok((family, components, flavors)),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| Error::NotThisFamily {
        path: path.to_owned(),
        family: quoted(FAMILIES.iter().map(|family| family.name())),
        reason: "expected a folder with `transformer/` or `unet/`, or a safetensors or GGUF file with a denoiser's tensors".to_owned(),
    }))
}

fn quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

//! Denoisers, one folder per family. A family's code is written once for inference (tape off) and training,
//! reads like its paper, and shares with other families only what is the same by definition.
//!
//! Adding a family is one folder here, one folder under `configs/recipes/`, and one line in [`FAMILIES`]. Nothing above this
//! module names a family, but for the demo's miniatures.

pub mod activations;
pub mod cache_names;
pub mod chroma;
mod experts;
#[cfg(test)]
#[path = "../../tests/fake_family/mod.rs"]
mod fake_family;
mod family;
pub mod flux1;
pub mod flux2;
pub mod layout;
pub mod linear;
pub mod lora_names;
pub mod memory;
mod opened;
#[cfg(test)]
#[expect(dead_code, reason = "the whole of it is used by tests of the program")]
#[path = "../../tests/peers/mod.rs"]
mod peers;
pub mod schedule;
pub mod sd3;
pub mod source;
mod tables;
#[cfg(test)]
mod testing;
mod transformer;
pub mod unet;
pub mod wan;
pub mod zimage;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

pub use activations::{Activations, BlockActivations, StepShape};
pub use experts::expert_of_name;
pub use family::{Architecture, Expert, Family, Flavor, References};
pub use layout::{Component, Components};
pub use opened::OpenedDenoiser;
pub use schedule::{Said, Schedule};
pub use source::{Placement, Source, WeightStorage};

use crate::autograd::{Tape, Value};
use crate::lora::Bound;
use crate::nn::{Kernels, weights};
use crate::shown;

/// Every family this program knows.
static FAMILIES: &[&Family] = &[
    &sd3::SD3,
    &flux1::FLUX1,
    &chroma::CHROMA,
    &flux2::FLUX2,
    &unet::SDXL,
    &unet::SD1,
    &zimage::ZIMAGE,
    &wan::WAN,
    #[cfg(test)]
    &fake_family::FAKE,
];

/// Every family this program knows.
pub fn families() -> impl Iterator<Item = &'static Family> {
    FAMILIES.iter().copied()
}

/// Why a base model could not be found, recognised or loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No family of that name.
    #[error(
        "model family: expected one of {known}, found `{}`",
        shown::text(found)
    )]
    NoSuchFamily {
        /// The name given.
        found: String,
        /// The names there are.
        known: String,
    },
    /// No flavor of that name.
    #[error(
        "model flavor of family `{family}`: expected one of {known}, found `{}`",
        shown::text(found)
    )]
    NoSuchFlavor {
        /// The family.
        family: &'static str,
        /// The name given.
        found: String,
        /// The names there are.
        known: String,
    },
    /// The model is of another flavor than the one named.
    #[error(
        "{}: the weights are those of flavor {detected}, not of `{wanted}`",
        shown::path(path)
    )]
    WrongFlavor {
        /// The model.
        path: PathBuf,
        /// The flavor named.
        wanted: String,
        /// What the weights are.
        detected: String,
    },
    /// The model is, or has, another of several experts than the flavor's.
    #[error("{}: {why}", shown::path(path))]
    WrongExpert {
        /// The model.
        path: PathBuf,
        /// What it is, and what to do.
        why: String,
    },
    /// Nothing at the path that is a model of a known family.
    #[error("{}: not a model of family {family}: {reason}", shown::path(path))]
    NotThisFamily {
        /// The model.
        path: PathBuf,
        /// The family or families tried.
        family: String,
        /// What was looked for.
        reason: String,
    },
    /// A part of the model is not there.
    #[error("{}: the model has no `{component}`{hint}", shown::path(path))]
    NoComponent {
        /// The model.
        path: PathBuf,
        /// The part.
        component: String,
        /// Where it was looked for, as the end of a sentence, or nothing.
        hint: String,
    },
    /// A file could not be read.
    #[error("{}: cannot be read: {source}", shown::path(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A config is of another network.
    #[error(
        "{}: `_class_name`: expected `{expected}`, found `{}`",
        shown::path(path),
        shown::text(found)
    )]
    OtherClass {
        /// The file.
        path: PathBuf,
        /// The class of the family's networks.
        expected: &'static str,
        /// The class it names.
        found: String,
    },
    /// A config file is wrong.
    #[error("{}: {what}", shown::path(path))]
    Config {
        /// The file.
        path: PathBuf,
        /// Which field, what was expected and found.
        what: String,
    },
    /// What a model says of its noise schedule is not supported, or contradicts itself.
    #[error("{}: {what}", shown::path(path))]
    Schedule {
        /// The file or folder.
        path: PathBuf,
        /// Which field, what was expected and found.
        what: String,
    },
    /// The weights have tensors that the network has no place for.
    #[error(
        "{files}: {} that this network does not have, the first is `{first}`; the file is of another architecture or damaged",
        shown::counted(*count, "tensor")
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
    /// Rows of each sample's context that are seen, the first so many, where the recipe has the denoiser mask pads.
    pub token_counts: Option<Vec<usize>>,
    /// [batch]: the guidance embedding's input, for distilled models.
    pub guidance: Option<Tensor>,
    /// [batch, 6]: height and width of the picture before its crop, top and left of the crop, height and width of
    /// what came out, in px; for families with a size embedding.
    pub time_ids: Option<Tensor>,
    /// [batch, channels, height, width]: the denoiser's latents of a picture that is given beside each noisy one, of any size; for
    /// flavors with [`Flavor::references`].
    pub reference: Option<Tensor>,
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
            reference: None,
        }
    }

    /// Context, pooled vectors and reference in `dtype` on `device`. The few other numbers, and the timesteps, stay where they are.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn to(&self, dtype: DType, device: &Device) -> candle_core::Result<Self> {
        let moved = |t: &Tensor| match t.elem_count() {
            // A pooled vector of width 0 has no place on a GPU, which launches nothing for no number.
            0 => t.to_dtype(dtype),
            _ => t.to_device(device)?.to_dtype(dtype),
        };
        Ok(Self {
            context: moved(&self.context)?,
            pooled: moved(&self.pooled)?,
            reference: self.reference.as_ref().map(moved).transpose()?,
            ..self.clone()
        })
    }

    /// For a network with attention to the context, which must have a row.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn refuse_empty_context(&self) -> candle_core::Result<()> {
        match self.context.dim(1)? {
            0 => candle_core::bail!(
                "denoiser input `context`: expected at least one token, found none"
            ),
            _ => Ok(()),
        }
    }

    /// For a network without a guidance embedding.
    ///
    /// # Errors
    /// If there is a guidance for one.
    pub(crate) fn refuse_guidance(&self) -> candle_core::Result<()> {
        match self.guidance {
            None => Ok(()),
            Some(_) => candle_core::bail!(
                "denoiser input `guidance`: this model has no guidance embedding, found an input"
            ),
        }
    }

    /// For a network that takes no reference picture: it would be passed over, and nobody told.
    ///
    /// # Errors
    /// If there is one.
    pub(crate) fn refuse_reference(&self) -> candle_core::Result<()> {
        match &self.reference {
            None => Ok(()),
            Some(reference) => candle_core::bail!(
                "denoiser input `reference`: this network takes no reference picture, found {:?}",
                reference.dims()
            ),
        }
    }
}

/// A base model's denoising network with frozen weights. It has no state, draws no random numbers and opens no
/// file.
pub trait Denoiser: Send + Sync {
    /// The network's prediction for noisy latents.
    ///
    /// `latents` [batch, channels, height, width], or [batch, channels, frames, height, width] for a network of videos;
    /// `timesteps` [batch] f32, of [`crate::diffusion::Level`]; the result has the latents' shape. Latents, context and
    /// pooled vectors are of the network's type, on its device. With a recording tape, gradients reach the adapters in
    /// `adapters` and whatever else on the tape was put in.
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

    /// The type it computes in.
    fn dtype(&self) -> DType;

    /// Where it computes.
    fn device(&self) -> &Device;

    /// What it computes by there, where the tape is told so.
    fn kernels(&self) -> &Kernels;
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
    let mut conditioning = conditioning.to(dtype, device)?;
    // Where our own kernels make sinusoids of them, they are made on the GPU.
    let told = |numbers: &Tensor| match tape.kernels().are_there() {
        true => numbers.to_device(device),
        false => Ok(numbers.clone()),
    };
    conditioning.guidance = conditioning.guidance.as_ref().map(told).transpose()?;
    conditioning.time_ids = conditioning.time_ids.as_ref().map(told).transpose()?;
    denoiser.forward(tape, adapters, &latents, &told(timesteps)?, &conditioning)
}

/// The family of that name.
///
/// # Errors
/// If there is none.
pub fn family(name: &str) -> Result<&'static Family, Error> {
    families()
        .find(|family| family.name == name)
        .ok_or_else(|| Error::NoSuchFamily {
            found: name.to_owned(),
            known: quoted(families().map(|family| family.name)),
        })
}

/// The denoiser of the model at `path`, whole, and with it the model's family and parts.
///
/// # Errors
/// If it cannot be read, or no family takes it; the reason is that of the last one that has a name for its tensors.
pub fn detect(path: &Path) -> Result<OpenedDenoiser, Error> {
    let mut refused = None;
    for family in families() {
        let components = match family.components(path) {
            Ok(components) => components,
            Err(Error::NotThisFamily { .. }) => continue,
            Err(unreadable) => return Err(unreadable),
        };
        let opened = family.open(components);
        match opened.and_then(|opened| opened.check_whole().map(|()| opened)) {
            Ok(opened) => return Ok(opened),
            // Another family may still take it: all that have a folder `transformer` look alike until it is opened.
            // What is wrong with a model of this family says more than that it is of another one.
            Err(error) => {
                let keeps = refused.as_ref().is_some_and(|old| !is_other_family(old));
                if !(keeps && is_other_family(&error)) {
                    refused = Some(error);
                }
            }
        }
    }
    Err(refused.unwrap_or_else(|| Error::NotThisFamily {
        path: path.to_owned(),
        family: quoted(families().map(|family| family.name)),
        reason: "expected a folder with `transformer/` or `unet/`, or a safetensors or GGUF file with a denoiser's tensors".to_owned(),
    }))
}

fn is_other_family(error: &Error) -> bool {
    matches!(
        error,
        Error::NotThisFamily { .. } | Error::OtherClass { .. }
    )
}

fn quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

//! What a family is: data, and the one function that tells a denoiser's architecture from its files.

use std::path::Path;

use super::cache_names::CacheNames;
use super::experts;
use super::layout::{self, Layout};
use super::{
    Activations, Component, Components, Denoiser, Error, OpenedDenoiser, Source, StepShape, quoted,
};
use crate::diffusion::{Band, Process, Sampler, Shift, Spacing};
use crate::lora::Preset;
use crate::lora::formats::Naming;
use crate::nn::weights::{Stored, Weights};
use crate::recipe::latents::{LatentStatistics, Size};
use crate::vae::LatentGeometry;

/// A family of base models: what differs between families and is not in the recipe.
pub struct Family {
    /// What an Experiment writes in `[model] family`.
    pub name: &'static str,
    /// Its released variants.
    pub flavors: &'static [Flavor],
    /// Named lists of adapter targets; the first is the default.
    pub presets: &'static [Preset],
    /// Whether the denoiser can leave a context's pads out of its attention
    /// ([`ConditioningTensors::token_counts`](super::ConditioningTensors::token_counts)).
    pub masks_pads: bool,
    /// Its names in the caches of other trainers; none where no cache of it is written.
    pub caches: Option<&'static CacheNames>,
    /// See [`Self::latents`].
    pub(super) latents: fn() -> LatentGeometry,
    /// Where its models have their parts.
    pub(super) layout: Layout,
    /// What its modules are called in the LoRA files of other programs.
    pub(super) naming: fn() -> Naming,
    /// Reads headers and config of a denoiser. Fails if its architecture cannot be told or is not the family's; whether
    /// every tensor is there is looked at later ([`OpenedDenoiser::check_whole`]).
    pub(super) open: fn(&Component) -> Result<DescribedWeights, Error>,
}

/// A denoiser's weights under canonical names (diffusers'), and what network they make.
pub(super) struct DescribedWeights {
    pub(super) weights: Weights,
    pub(super) architecture: Box<dyn Architecture>,
}

impl DescribedWeights {
    /// Of weights under canonical names, or, if `other`, where `place` says; `read` tells the network.
    pub(super) fn named<A: Architecture + 'static>(
        component: &Component,
        stored: &Weights,
        other: bool,
        place: fn(&str) -> Stored,
        read: fn(&Component, &Weights) -> Result<A, Error>,
    ) -> Result<Self, Error> {
        let weights = stored.renamed(move |name: &str| match other {
            true => place(name),
            false => name.into(),
        });
        Ok(Self {
            architecture: Box::new(read(component, &weights)?),
            weights,
        })
    }
}

/// The numbers of one network, as its config or its tensors' shapes tell them: the whole network but its weights.
pub trait Architecture: Send + Sync {
    /// The denoiser, of tensors of any source.
    ///
    /// # Errors
    /// If the source lacks a tensor.
    fn build(&self, source: &dyn Source) -> Result<Box<dyn Denoiser>, Error>;

    /// Channels of the context.
    fn context_width(&self) -> usize;

    /// What a training step keeps of a forward pass.
    fn activations(&self, step: &StepShape) -> Activations;

    /// Whether this can be that released model, as far as shapes tell.
    fn could_be(&self, _flavor: &Flavor) -> bool {
        true
    }
}

/// The reference pictures that a flavor takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum References {
    /// A model for pairs: who trains it without references says so. Its authors bring one to that of these sizes in px that is nearest in
    /// shape.
    Usual(&'static [Size]),
    /// A model of text to picture that can be given one as well. Its authors leave a reference of at most so many pixels at its size, and
    /// bring a larger one to about as many.
    Possible {
        /// Width times height.
        most_pixels: u32,
    },
}

/// One of two networks that share the noise levels of a flow: a sample begins in the one and ends in the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expert {
    /// As names of files have it, and `[model.files]`: `high_noise`.
    pub name: &'static str,
    /// Its folder in a model as diffusers writes it.
    pub component: &'static str,
    /// The levels that it is for.
    pub levels: Band,
    /// The flavor of the network for the others.
    pub other: &'static str,
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
    /// Whether it has an embedding of each picture's size and crop
    /// ([`ConditioningTensors::time_ids`](super::ConditioningTensors::time_ids)).
    pub size_conditioning: bool,
    /// The noise levels that it is for, where its authors released another network for the others; None for a model of all levels.
    pub expert: Option<Expert>,
    /// What its authors have it steer away from where nobody says otherwise; None: from nothing but the recipe's unconditional entry.
    pub negative_prompt: Option<&'static str>,
    /// The shift of a flow's noise schedule.
    pub shift: Shift,
    /// Where a flow's sampler stops.
    pub spacing: Spacing,
    /// Sampling steps its authors use.
    pub steps: u32,
    /// Classifier-free guidance its authors use; 1 is none.
    pub guidance: f64,
    /// The authors' input of the guidance embedding
    /// ([`ConditioningTensors::guidance`](super::ConditioningTensors::guidance)), where the model has one.
    pub embedded_guidance: Option<f64>,
    /// What it is given beside the noisy picture ([`ConditioningTensors::reference`](super::ConditioningTensors::reference)); None
    /// for a model that takes no reference picture.
    pub references: Option<References>,
    /// Side of the pictures it was trained for, in pixels.
    pub resolution_px: u32,
    /// ModelSpec's name.
    pub architecture: &'static str,
    /// kohya's name (`ss_base_model_version`).
    pub base_version: &'static str,
    /// What a person who trains it should know first.
    pub caution: Option<&'static str>,
}

impl Family {
    /// The parts of a model at `path`: a folder as diffusers writes it, or a single file.
    ///
    /// # Errors
    /// If there is no model of this family.
    pub fn components(&self, path: &Path) -> Result<Components, Error> {
        self.layout.find(self.name, path)
    }

    /// Whether the denoiser among `components` has a tensor by whose name this family's single files are known, whatever else is wrong with it.
    pub fn has_sign(&self, components: &Components) -> bool {
        let denoiser = components.get(self.denoiser()).and_then(Component::open);
        denoiser.is_ok_and(|weights| !weights.pp(self.layout.sign).names().is_empty())
    }

    /// The denoiser among `components`, by headers alone. Nothing is loaded, and it need not be whole.
    ///
    /// # Errors
    /// If its architecture cannot be told, or is not of this family.
    pub fn open(&'static self, components: Components) -> Result<OpenedDenoiser, Error> {
        OpenedDenoiser::new(self, self.denoiser(), components)
    }

    /// The same for a flavor: of two experts in a folder its own. Where folder or name say that the model is another's, it is refused.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_as(
        &'static self,
        components: Components,
        flavor: &Flavor,
    ) -> Result<OpenedDenoiser, Error> {
        let part = experts::part(self, &components, flavor)?;
        OpenedDenoiser::new(self, part, components)
    }

    /// The flavor of that name.
    ///
    /// # Errors
    /// If the family has none.
    pub fn flavor(&self, name: &str) -> Result<&'static Flavor, Error> {
        let found = self.flavors.iter().find(|flavor| flavor.name == name);
        found.ok_or_else(|| Error::NoSuchFlavor {
            family: self.name,
            found: name.to_owned(),
            known: quoted(self.flavors.iter().map(|flavor| flavor.name)),
        })
    }

    /// The pipeline's name of the denoiser (`transformer`, `unet`): its folder, and the first part of tensor names in a
    /// LoRA file.
    pub fn denoiser(&self) -> &'static str {
        self.layout.denoiser
    }

    /// The latents of its released models. The patch is the denoiser's; the rest is what a VAE says of itself, and counts
    /// where it does not: without a config nothing tells the statistics, without a VAE nothing but this tells the factors.
    pub fn latents(&self) -> LatentGeometry {
        (self.latents)()
    }

    /// How the denoiser's latents come from the VAE's `channels`: as the VAE's config says, or as the family does where
    /// there is none.
    ///
    /// # Errors
    /// If the VAE's config cannot be read, or is of another number of channels.
    pub fn latent_statistics(
        &self,
        components: &Components,
        channels: usize,
    ) -> Result<LatentStatistics, Error> {
        layout::latent_statistics(components, channels, self.latents().statistics)
    }
}

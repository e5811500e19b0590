//! Stable Diffusion 3 and 3.5: the MMDiT of Esser et al. 2024 (arXiv 2403.03206).
//!
//! - `architecture`: the network's numbers, from a config or from shapes
//! - `names`: diffusers' and Stability's naming of its weights
//! - `embed`, `block`, `mmdit`: the network
//!
//! The three released networks are one code: SD3-medium; SD3.5-large, which norms queries and keys; SD3.5-medium,
//! which also has a second attention over the picture alone in its first blocks.

mod activations;
mod architecture;
mod block;
mod embed;
mod lora_names;
mod mmdit;
mod names;

use std::path::Path;

use self::architecture::HEAD_CHANNELS;
use self::mmdit::MmDit;
use self::names::Named;
pub(super) use self::names::{BLOCK, OUTER};
use super::layout::{self, Layout};
use super::{
    Activations, BaseWeights, Components, Denoiser, Error, Family, Flavor, LatentScaling, Source,
    StepShape,
};
use crate::diffusion::{Prediction, Process, Sampler, Shift, Spacing};
use crate::lora::formats::Naming;
use crate::lora::{LinearShape, Preset};

/// The family.
pub struct Sd3;

const FLOW: Process = Process::new(Prediction::Flow);

/// Steps and guidance as in the authors' `sd3_infer.py`. That script looks the shift of SD3-medium up as 1.0, while its
/// own comment and every other implementation use 3.0; 3.0 it is.
const FLAVORS: &[Flavor] = &[
    Flavor {
        name: "3-medium",
        process: FLOW,
        sampler: Sampler::Euler,
        size_conditioning: false,
        shift: Shift::Fixed(3.0),
        spacing: Spacing::Trained,
        steps: 50,
        guidance: 5.0,
        embedded_guidance: None,
        resolution_px: 1024,
        architecture: "stable-diffusion-3-medium",
        base_version: "medium",
        caution: None,
    },
    Flavor {
        name: "3.5-medium",
        process: FLOW,
        sampler: Sampler::Euler,
        size_conditioning: false,
        shift: Shift::Fixed(3.0),
        spacing: Spacing::Trained,
        steps: 50,
        guidance: 5.0,
        embedded_guidance: None,
        resolution_px: 1024,
        architecture: "stable-diffusion-3-5-medium",
        base_version: "5-medium",
        caution: None,
    },
    Flavor {
        name: "3.5-large",
        process: FLOW,
        sampler: Sampler::Euler,
        size_conditioning: false,
        shift: Shift::Fixed(3.0),
        spacing: Spacing::Trained,
        steps: 40,
        guidance: 4.5,
        embedded_guidance: None,
        resolution_px: 1024,
        architecture: "stable-diffusion-3-5-large",
        base_version: "5-large",
        caution: None,
    },
    Flavor {
        name: "3.5-large-turbo",
        process: FLOW,
        sampler: Sampler::Euler,
        size_conditioning: false,
        shift: Shift::Fixed(3.0),
        spacing: Spacing::Trained,
        steps: 4,
        guidance: 1.0,
        embedded_guidance: None,
        resolution_px: 1024,
        architecture: "stable-diffusion-3-5-large",
        base_version: "5-large",
        caution: None,
    },
];

/// `attention` is what diffusers' training script for SD3 adapts, and the second attention.
const PRESETS: &[Preset] = &[
    Preset {
        name: "attention",
        patterns: &["attn.*", "attn2.*"],
    },
    Preset {
        name: "attention+mlp",
        patterns: &["attn.*", "attn2.*", "ff.*", "ff_context.*"],
    },
    Preset {
        name: "all-linear",
        patterns: &["*"],
    },
];

/// The VAE's, if its config does not say (a single file has none).
const LATENT_SCALING: LatentScaling = LatentScaling {
    scale: 1.5305,
    shift: 0.0609,
};

const DENOISER: &str = "transformer";
const VAE: &str = "vae";

const LAYOUT: Layout = Layout {
    family: "sd3",
    denoiser: DENOISER,
    folders: &[
        DENOISER,
        VAE,
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
    ],
    tokenizers: &["tokenizer", "tokenizer_2", "tokenizer_3"],
    prefixes: &[
        (DENOISER, &["model.diffusion_model.", "diffusion_model."]),
        (VAE, &["first_stage_model.", "vae."]),
        ("text_encoder", &["text_encoders.clip_l.transformer."]),
        ("text_encoder_2", &["text_encoders.clip_g.transformer."]),
        ("text_encoder_3", &["text_encoders.t5xxl.transformer."]),
    ],
    sign: "joint_blocks.",
};

impl Family for Sd3 {
    fn name(&self) -> &'static str {
        LAYOUT.family
    }

    fn naming(&self) -> Naming {
        lora_names::naming()
    }

    fn flavors(&self) -> &'static [Flavor] {
        FLAVORS
    }

    fn components(&self, path: &Path) -> Result<Components, Error> {
        LAYOUT.find(path)
    }

    fn possible_flavors(&self, components: &Components) -> Result<Vec<&'static Flavor>, Error> {
        let architecture = Named::open(components.get(DENOISER)?)?.architecture;
        Ok(FLAVORS
            .iter()
            .filter(|flavor| architecture.could_be(flavor))
            .collect())
    }

    fn weights(&self, components: &Components) -> Result<BaseWeights, Error> {
        Ok(Named::open(components.get(DENOISER)?)?.into_base())
    }

    fn expected(&self, components: &Components) -> Result<BaseWeights, Error> {
        Ok(Named::unchecked(components.get(DENOISER)?, HEAD_CHANNELS)?.into_base())
    }

    fn build(
        &self,
        components: &Components,
        source: &dyn Source,
    ) -> Result<Box<dyn Denoiser>, Error> {
        let named = Named::unchecked(components.get(DENOISER)?, HEAD_CHANNELS)?;
        Ok(Box::new(MmDit::build(named.architecture, source)?))
    }

    fn context_width(&self, components: &Components) -> Result<usize, Error> {
        Ok(Named::open(components.get(DENOISER)?)?
            .architecture
            .context_width)
    }

    fn linears(&self, components: &Components) -> Result<Vec<LinearShape>, Error> {
        Ok(Named::unchecked(components.get(DENOISER)?, HEAD_CHANNELS)?
            .architecture
            .linears())
    }

    fn activations(&self, components: &Components, step: &StepShape) -> Result<Activations, Error> {
        Ok(Named::unchecked(components.get(DENOISER)?, HEAD_CHANNELS)?
            .architecture
            .activations(step))
    }

    fn latent_scaling(&self, components: &Components) -> Result<LatentScaling, Error> {
        layout::latent_scaling(components, LATENT_SCALING)
    }

    fn presets(&self) -> &'static [Preset] {
        PRESETS
    }

    fn lora_component(&self) -> &'static str {
        DENOISER
    }
}

#[cfg(test)]
mod tests;

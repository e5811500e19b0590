//! Stable Diffusion 1.5 (Rombach et al. 2022, arXiv:2112.10752) and SDXL (Podell et al. 2023, arXiv:2307.01952): one
//! UNet of residual blocks and transformers, with other numbers.
//!
//! - `architecture`: the network's numbers, from a config or from shapes
//! - `names`: diffusers' and the original code's naming of its weights
//! - `layers`, `network`: the network
//!
//! SDXL embeds the pooled vector of its second encoder and the picture's size and crop beside the timestep; SD1 does not.

mod activations;
mod architecture;
mod layers;
mod lora_names;
mod names;
mod network;

use std::path::Path;

use self::architecture::{Heads, Unshaped};
use self::names::Named;
pub(super) use self::names::{OUTER, RESNET};
use self::network::UNet;
use super::layout::{self, Layout};
use super::{
    Activations, BaseWeights, Components, Denoiser, Error, Family, Flavor, LatentScaling, Source,
    StepShape,
};
use crate::diffusion::{Prediction, Process, Sampler, Shift, Spacing};
use crate::lora::formats::Naming;
use crate::lora::{LinearShape, Preset};

/// A family of UNets.
pub struct UNetFamily {
    flavors: &'static [Flavor],
    presets: &'static [Preset],
    /// The VAE's, if its config does not say (a single file has none).
    scaling: LatentScaling,
    /// What shapes do not tell.
    unshaped: Unshaped,
    /// Whether it has an embedding of the pooled vector and sizes.
    size_embedding: bool,
    naming: fn() -> Naming,
    layout: Layout,
}

const NOISE: Process = Process::new(Prediction::Epsilon);

/// SDXL. Steps and guidance as in diffusers' pipeline; the sampler is the one its files name.
pub const SDXL: UNetFamily = UNetFamily {
    flavors: &[Flavor {
        name: "base-1.0",
        process: NOISE,
        sampler: Sampler::Euler,
        size_conditioning: true,
        shift: Shift::Fixed(1.0),
        spacing: Spacing::Trained,
        steps: 50,
        guidance: 5.0,
        embedded_guidance: None,
        resolution_px: 1024,
        architecture: "stable-diffusion-xl-v1-base",
        base_version: "sdxl_base_v1-0",
        caution: None,
    }],
    presets: &[
        ATTENTION,
        ATTENTION_MLP,
        TRANSFORMER,
        Preset {
            name: "all-linear",
            patterns: &[
                "attentions.*",
                "time_emb_proj",
                "time_embedding.*",
                "add_embedding.*",
            ],
        },
        ALL,
    ],
    scaling: LatentScaling {
        scale: 0.13025,
        shift: 0.0,
    },
    unshaped: Unshaped {
        heads: Heads::Channels(64),
        groups: 32,
        size_channels: 256,
    },
    size_embedding: true,
    naming: lora_names::sdxl,
    layout: Layout {
        family: "sdxl",
        denoiser: DENOISER,
        folders: &[DENOISER, "vae", "text_encoder", "text_encoder_2"],
        tokenizers: &["tokenizer", "tokenizer_2"],
        prefixes: &[
            (DENOISER, DENOISER_PREFIXES),
            ("vae", VAE_PREFIXES),
            ("text_encoder", &["conditioner.embedders.0."]),
            ("text_encoder_2", &["conditioner.embedders.1."]),
        ],
        sign: SIGN,
    },
};

/// Stable Diffusion 1.5. Steps, guidance and sampler as in the authors' `scripts/txt2img.py`.
pub const SD1: UNetFamily = UNetFamily {
    flavors: &[Flavor {
        name: "1.5",
        process: NOISE,
        sampler: Sampler::Ddim,
        size_conditioning: false,
        shift: Shift::Fixed(1.0),
        spacing: Spacing::Trained,
        steps: 50,
        guidance: 7.5,
        embedded_guidance: None,
        resolution_px: 512,
        architecture: "stable-diffusion-v1",
        base_version: "sd_v1",
        caution: None,
    }],
    presets: &[
        ATTENTION,
        ATTENTION_MLP,
        TRANSFORMER,
        // Transformers are entered and left by convolutions here.
        Preset {
            name: "all-linear",
            patterns: &[
                "attn1.*",
                "attn2.*",
                "ff.*",
                "time_emb_proj",
                "time_embedding.*",
            ],
        },
        ALL,
    ],
    scaling: LatentScaling {
        scale: 0.18215,
        shift: 0.0,
    },
    unshaped: Unshaped {
        heads: Heads::Count(8),
        groups: 32,
        size_channels: 256,
    },
    size_embedding: false,
    naming: lora_names::sd1,
    layout: Layout {
        family: "sd1",
        denoiser: DENOISER,
        folders: &[DENOISER, "vae", "text_encoder"],
        tokenizers: &["tokenizer"],
        prefixes: &[
            (DENOISER, DENOISER_PREFIXES),
            ("vae", VAE_PREFIXES),
            ("text_encoder", &["cond_stage_model."]),
        ],
        sign: SIGN,
    },
};

const DENOISER: &str = "unet";
const DENOISER_PREFIXES: &[&str] = &["model.diffusion_model.", "diffusion_model."];
/// What begins the names of a bare denoiser's tensors in the original naming.
const SIGN: &str = "input_blocks.";
const VAE_PREFIXES: &[&str] = &["first_stage_model.", "vae."];

/// What diffusers' training scripts adapt.
const ATTENTION: Preset = Preset {
    name: "attention",
    patterns: &["attn1.*", "attn2.*"],
};
const ATTENTION_MLP: Preset = Preset {
    name: "attention+mlp",
    patterns: &["attn1.*", "attn2.*", "ff.*"],
};
/// What kohya's sd-scripts adapt: whole transformers, with the linears (or convolutions of one pixel) around them.
const TRANSFORMER: Preset = Preset {
    name: "transformer",
    patterns: &["attentions.*"],
};
/// Convolutions too.
const ALL: Preset = Preset {
    name: "all",
    patterns: &["*"],
};

impl UNetFamily {
    fn open(&self, components: &Components) -> Result<Named, Error> {
        let named = self.unchecked(components)?;
        named.check()?;
        Ok(named)
    }

    fn unchecked(&self, components: &Components) -> Result<Named, Error> {
        let component = components.get(DENOISER)?;
        let named = Named::unchecked(component, self.unshaped, self.name())?;
        if named.architecture.addition.is_some() == self.size_embedding {
            return Ok(named);
        }
        Err(self.not_this(
            components,
            match self.size_embedding {
                true => {
                    "its UNet has no embedding of pooled vectors and sizes, so it is not an SDXL"
                }
                false => "its UNet has an embedding of pooled vectors and sizes, as SDXL has",
            },
        ))
    }

    fn not_this(&self, components: &Components, reason: &str) -> Error {
        Error::NotThisFamily {
            path: components.path.clone(),
            family: format!("`{}`", self.name()),
            reason: reason.to_owned(),
        }
    }
}

impl Family for UNetFamily {
    fn name(&self) -> &'static str {
        self.layout.family
    }

    fn naming(&self) -> Naming {
        (self.naming)()
    }

    fn flavors(&self) -> &'static [Flavor] {
        self.flavors
    }

    fn components(&self, path: &Path) -> Result<Components, Error> {
        self.layout.find(path)
    }

    fn possible_flavors(&self, components: &Components) -> Result<Vec<&'static Flavor>, Error> {
        self.open(components)?;
        Ok(self.flavors.iter().collect())
    }

    fn weights(&self, components: &Components) -> Result<BaseWeights, Error> {
        Ok(self.open(components)?.into_base())
    }

    fn expected(&self, components: &Components) -> Result<BaseWeights, Error> {
        Ok(self.unchecked(components)?.into_base())
    }

    fn build(
        &self,
        components: &Components,
        source: &dyn Source,
    ) -> Result<Box<dyn Denoiser>, Error> {
        let linears = self.linears(components)?;
        let architecture = self.unchecked(components)?.architecture;
        let network = UNet::build(architecture, source)?;
        Ok(Box::new(network.with_linears(linears)))
    }

    fn context_width(&self, components: &Components) -> Result<usize, Error> {
        Ok(self.open(components)?.architecture.context_width)
    }

    fn linears(&self, components: &Components) -> Result<Vec<LinearShape>, Error> {
        let architecture = self.unchecked(components)?.architecture;
        Ok(network::linears(&network::tensors(&architecture)))
    }

    fn activations(&self, components: &Components, step: &StepShape) -> Result<Activations, Error> {
        Ok(self.unchecked(components)?.architecture.activations(step))
    }

    fn latent_scaling(&self, components: &Components) -> Result<LatentScaling, Error> {
        layout::latent_scaling(components, self.scaling)
    }

    fn presets(&self) -> &'static [Preset] {
        self.presets
    }

    fn lora_component(&self) -> &'static str {
        DENOISER
    }
}

#[cfg(test)]
mod tests;

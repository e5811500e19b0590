//! Stable Diffusion 1.5 (Rombach et al. 2022, arXiv:2112.10752) and SDXL (Podell et al. 2023, arXiv:2307.01952): one
//! UNet of residual blocks and transformers, with other numbers.
//!
//! - `architecture`: the network's numbers, from a config or from shapes
//! - `flavors`: SDXL and the large fine-tunes of it
//! - `names`: diffusers' and the original code's naming of its weights
//! - `layers`, `network`: the network
//!
//! SDXL embeds the pooled vector of its second encoder and the picture's size and crop beside the timestep; SD1 does not.

mod activations;
mod architecture;
mod flavors;
mod layers;
mod lora_names;
mod names;
mod network;

use self::architecture::{Architecture, Heads, Variant};
pub(super) use self::names::{OUTER, RESNET};
use self::network::UNet;
use super::cache_names::{
    AiToolkitNames, AiToolkitTexts, CacheNames, KohyaArrays, KohyaNames, SimpleTunerNames,
    SimpleTunerTexts,
};
use super::layout::Layout;
use super::{Activations, Denoiser, Error, Family, Flavor, Source, StepShape};
use crate::diffusion::{Prediction, Process, Sampler, Shift, Spacing};
use crate::lora::Preset;
use crate::recipe::latents::LatentStatistics;
use crate::vae::{Factors, LatentGeometry};

const NOISE: Process = Process::new(Prediction::Epsilon);

/// As `strategy_sdxl.py` and `strategy_sd.py` of kohya's sd-scripts, `stable_diffusion_model.py` of ai-toolkit and
/// `models/sdxl/model.py` of SimpleTuner have it.
const CACHES: CacheNames = CacheNames {
    context: &[&["clip_l", "clip_g"]],
    pooled: &["clip_g"],
    kohya: Some(KohyaNames {
        texts: "_te_outputs.npz",
        latents: "_sdxl.npz",
        arrays: KohyaArrays::TwoClips,
        // `library/sdxl_model_util.py:18`.
        statistics: Some((0.13025, 0.0)),
        resolutions: false,
        masks: false,
    }),
    musubi: None,
    ai_toolkit: Some(AiToolkitNames {
        texts: &[("", "sdxl")],
        latents: None,
        step: 2,
        tensors: AiToolkitTexts::Pooled,
    }),
    simpletuner: Some(SimpleTunerNames {
        name: "sdxl",
        tensors: SimpleTunerTexts::Pooled,
    }),
};

/// SDXL, with the fine-tunes that are bases themselves.
pub const SDXL: Family = Family {
    name: "sdxl",
    flavors: flavors::SDXL,
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
    masks_pads: false,
    latents: || latents(0.13025),
    layout: Layout {
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
    naming: lora_names::sdxl,
    caches: Some(&CACHES),
    open: |component| names::open(component, SDXL_VARIANT),
};

const SDXL_VARIANT: Variant = Variant {
    family: "sdxl",
    size_embedding: true,
    heads: Heads::Channels(64),
    groups: 32,
    size_channels: 256,
};

/// Stable Diffusion 1.5. Steps, guidance and sampler as in the authors' `scripts/txt2img.py`.
pub const SD1: Family = Family {
    name: "sd1",
    flavors: &[Flavor {
        name: "1.5",
        process: NOISE,
        sampler: Sampler::Ddim,
        size_conditioning: false,
        expert: None,
        negative_prompt: None,
        shift: Shift::Fixed(1.0),
        spacing: Spacing::Trained,
        steps: 50,
        guidance: 7.5,
        embedded_guidance: None,
        references: None,
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
    masks_pads: false,
    latents: || latents(0.18215),
    layout: Layout {
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
    naming: lora_names::sd1,
    // Neither kohya nor SimpleTuner keeps its embeddings.
    caches: None,
    open: |component| names::open(component, SD1_VARIANT),
};

const SD1_VARIANT: Variant = Variant {
    family: "sd1",
    size_embedding: false,
    heads: Heads::Count(8),
    groups: 32,
    size_channels: 256,
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

/// Those of a VAE whose latents have this factor.
fn latents(scale: f64) -> LatentGeometry {
    LatentGeometry {
        channels: 4,
        factors: Factors::of_pictures(8),
        statistics: LatentStatistics::Shared { scale, shift: 0.0 },
        // A UNet joins none; even sides are those that its first halving divides.
        patch: 2,
    }
}

impl super::Architecture for Architecture {
    fn build(&self, source: &dyn Source) -> Result<Box<dyn Denoiser>, Error> {
        Ok(Box::new(UNet::build(self.clone(), source)?))
    }

    fn context_width(&self) -> usize {
        self.context_width
    }

    fn activations(&self, step: &StepShape) -> Activations {
        self.of_step(step)
    }
}

#[cfg(test)]
mod tests;

//! Z-Image of Tongyi-MAI: a transformer of one stream, in which picture and caption are one sequence from the first block over both
//! (github.com/Tongyi-MAI/Z-Image `src/zimage/transformer.py`; diffusers `ZImageTransformer2DModel`).
//!
//! - `architecture`: the network's numbers, from a config or from shapes
//! - `names`: diffusers' and ComfyUI's naming of its weights
//! - `embed`, `block`, `network`: the network
//!
//! Captions have as many rows as tokens; the network fills them, and the picture's tokens, up to a multiple of 32 with learned tokens
//! that are seen. base is guided by a second pass without the caption. turbo is distilled to eight steps without guidance, and nothing
//! but the values of its weights tells it from base.

mod activations;
mod architecture;
mod block;
mod embed;
mod lora_names;
mod names;
mod network;

use self::architecture::{Architecture, PATCH};
use self::network::ZImage;
use super::cache_names::{
    AiToolkitNames, AiToolkitTexts, CacheNames, MusubiLatents, MusubiNames, MusubiTexts,
    SimpleTunerNames, SimpleTunerTexts,
};
use super::flux1::FLUX1;
use super::layout::Layout;
use super::{Activations, Denoiser, Error, Family, Flavor, Source, StepShape};
use crate::diffusion::{Prediction, Process, Sampler, Shift, Spacing};
use crate::lora::Preset;
use crate::vae::LatentGeometry;

/// Steps and guidance of the base as diffusers' pipeline has them by default, of turbo as in the authors' `inference.py`; their guidance w
/// is 1 + w here. The shifts are those of the released `scheduler_config.json`.
const BASE: Flavor = Flavor {
    name: "base",
    process: Process::new(Prediction::Flow),
    sampler: Sampler::Euler,
    size_conditioning: false,
    expert: None,
    negative_prompt: None,
    shift: Shift::Fixed(6.0),
    spacing: Spacing::Even,
    steps: 50,
    guidance: 6.0,
    embedded_guidance: None,
    references: None,
    resolution_px: 1024,
    architecture: "z-image",
    base_version: "zimage",
    caution: None,
};

const FLAVORS: &[Flavor] = &[
    BASE,
    Flavor {
        name: "turbo",
        shift: Shift::Fixed(3.0),
        steps: 8,
        guidance: 1.0,
        architecture: "z-image-turbo",
        caution: Some(
            "turbo is distilled to eight steps without guidance, and training it as if it were not undoes that: pictures of few steps get worse as the LoRA learns. A training adapter that takes the distillation back in the meantime slows this down (`training_adapter` under [train]; there is ostris/zimage_turbo_training_adapter); a LoRA made for `base` is the other way",
        ),
        ..BASE
    },
];

/// `blocks` is what ai-toolkit adapts where it is told nothing else, modulations included; musubi-tuner adapts `attention+mlp` of
/// `layers` alone.
const PRESETS: &[Preset] = &[
    Preset {
        name: "attention",
        patterns: &["attention.*"],
    },
    Preset {
        name: "attention+mlp",
        patterns: &["attention.*", "feed_forward.*"],
    },
    Preset {
        name: "blocks",
        patterns: &["layers.*"],
    },
    Preset {
        name: "all-linear",
        patterns: &["*"],
    },
];

const DENOISER: &str = "transformer";

const CACHES: CacheNames = CacheNames {
    context: &[&["qwen3"]],
    pooled: &[],
    kohya: None,
    musubi: Some(MusubiNames {
        architectures: &[("", "zi", "z_image")],
        texts: MusubiTexts::TrueRows("varlen_llm_embed"),
        latents: MusubiLatents::Pictures,
        // `zimage/zimage_config.py:58-59`, `zimage_train_network.py` `scale_shift_latents`.
        statistics: Some((0.3611, 0.1159)),
    }),
    ai_toolkit: Some(AiToolkitNames {
        texts: &[("", "zimage")],
        latents: None,
        step: 2,
        tensors: AiToolkitTexts::Listed,
    }),
    simpletuner: Some(SimpleTunerNames {
        name: "z_image",
        tensors: SimpleTunerTexts::Masked("attention_mask", 512),
    }),
};

/// The family `zimage`.
pub const ZIMAGE: Family = Family {
    name: "zimage",
    flavors: FLAVORS,
    presets: PRESETS,
    masks_pads: true,
    // FLUX.1's VAE.
    latents: || LatentGeometry {
        patch: PATCH,
        ..(FLUX1.latents)()
    },
    layout: Layout {
        denoiser: DENOISER,
        folders: &[DENOISER, "vae", "text_encoder"],
        tokenizers: &["tokenizer"],
        prefixes: &[
            (DENOISER, &["model.diffusion_model.", "diffusion_model."]),
            ("vae", &["first_stage_model.", "vae."]),
            ("text_encoder", &["text_encoders.qwen3_4b.transformer."]),
        ],
        sign: "noise_refiner.",
    },
    naming: lora_names::naming,
    caches: Some(&CACHES),
    open: names::open,
};

impl super::Architecture for Architecture {
    fn build(&self, source: &dyn Source) -> Result<Box<dyn Denoiser>, Error> {
        Ok(Box::new(ZImage::build(self, source)?))
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

//! Chroma1 of lodestones: FLUX.1's blocks, whose modulations all come from one small network, the approximator, that
//! was distilled from FLUX.1's own (github.com/lodestone-rock/flow `src/models/chroma/model.py`; diffusers
//! `ChromaTransformer2DModel`).
//!
//! - `architecture`: the network's numbers, from a config or from shapes
//! - `approximator`: the network of the modulations, which is never trained
//! - `names`: diffusers' and the author's naming of its weights
//!
//! It knows captions by T5 alone, and sees of the pads the first. Its guidance input is always 0: pictures are guided by a
//! second pass without the caption.

mod approximator;
mod architecture;
mod lora_names;
mod names;

use self::approximator::Approximator;
use self::architecture::Architecture;
use super::cache_names::{
    AiToolkitNames, AiToolkitTexts, CacheNames, SimpleTunerNames, SimpleTunerTexts,
};
use super::flux1::FLUX1;
use super::flux1::flux::Flux;
use super::layout::Layout;
use super::{Activations, Denoiser, Error, Family, Flavor, Source, StepShape};
use crate::diffusion::{Prediction, Process, Sampler, Shift, ShiftRule, Spacing};
use crate::lora::Preset;

/// Steps, guidance and shift as the author's trainer samples its previews (`training_config_chroma_lora.json` and
/// `src/models/chroma/sampling.py` of lodestone-rock/flow); the second of its two guidances, which is that of the base's too.
const HD: Flavor = Flavor {
    name: "hd",
    process: Process::new(Prediction::Flow),
    sampler: Sampler::Euler,
    size_conditioning: false,
    expert: None,
    negative_prompt: None,
    shift: Shift::By(ShiftRule::Resolution),
    spacing: Spacing::Even,
    steps: 20,
    guidance: 4.0,
    embedded_guidance: None,
    references: None,
    resolution_px: 1024,
    architecture: "chroma",
    base_version: "chroma",
    caution: None,
};

/// Of the same shapes: which of the two a file is, its name says and nothing in it. That the base is one of 512 px is believed, from its
/// author's announcement.
const FLAVORS: &[Flavor] = &[
    HD,
    Flavor {
        name: "base",
        resolution_px: 512,
        ..HD
    },
];

/// FLUX.1's names. There is no module for modulations in a block, so that `blocks` are the linears of attention and
/// feed-forward, which is what the author's trainer adapts.
const PRESETS: &[Preset] = FLUX1.presets;

const DENOISER: &str = "transformer";

const CACHES: CacheNames = CacheNames {
    context: &[&["t5"]],
    pooled: &[],
    kohya: None,
    musubi: None,
    ai_toolkit: Some(AiToolkitNames {
        texts: &[("", "chroma")],
        latents: None,
        step: 4,
        tensors: AiToolkitTexts::Masked(512),
    }),
    simpletuner: Some(SimpleTunerNames {
        name: "chroma",
        tensors: SimpleTunerTexts::Masked("attention_masks", 512),
    }),
};

/// The family `chroma`.
pub const CHROMA: Family = Family {
    name: "chroma",
    flavors: FLAVORS,
    presets: PRESETS,
    masks_pads: true,
    // FLUX.1's VAE.
    latents: FLUX1.latents,
    layout: Layout {
        denoiser: DENOISER,
        folders: &[DENOISER, "vae", "text_encoder"],
        tokenizers: &["tokenizer"],
        prefixes: &[
            (DENOISER, &["model.diffusion_model.", "diffusion_model."]),
            ("vae", &["first_stage_model.", "vae."]),
            ("text_encoder", &["text_encoders.t5xxl.transformer."]),
        ],
        sign: "distilled_guidance_layer.",
    },
    naming: lora_names::naming,
    caches: Some(&CACHES),
    open: names::open,
};

impl super::Architecture for Architecture {
    fn build(&self, source: &dyn Source) -> Result<Box<dyn Denoiser>, Error> {
        let approximator = Approximator::load(self, source)?;
        let modulators = |of| Ok(self.modulator(of));
        let trunk = self.trunk.clone();
        Ok(Box::new(Flux::of(
            trunk,
            source,
            Box::new(approximator),
            &modulators,
        )?))
    }

    fn context_width(&self) -> usize {
        self.trunk.context_width
    }

    fn activations(&self, step: &StepShape) -> Activations {
        self.of_step(step)
    }
}

#[cfg(test)]
mod tests;

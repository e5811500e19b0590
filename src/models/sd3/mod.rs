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

use self::architecture::Architecture;
use self::mmdit::MmDit;
pub(super) use self::names::{BLOCK, OUTER};
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

const FLOW: Process = Process::new(Prediction::Flow);

/// Steps and guidance as in the authors' `sd3_infer.py`. That script looks the shift of SD3-medium up as 1.0, while its
/// own comment and every other implementation use 3.0; 3.0 it is.
const FLAVORS: &[Flavor] = &[
    Flavor {
        name: "3-medium",
        process: FLOW,
        sampler: Sampler::Euler,
        size_conditioning: false,
        expert: None,
        negative_prompt: None,
        shift: Shift::Fixed(3.0),
        spacing: Spacing::Trained,
        steps: 50,
        guidance: 5.0,
        embedded_guidance: None,
        references: None,
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
        expert: None,
        negative_prompt: None,
        shift: Shift::Fixed(3.0),
        spacing: Spacing::Trained,
        steps: 50,
        guidance: 5.0,
        embedded_guidance: None,
        references: None,
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
        expert: None,
        negative_prompt: None,
        shift: Shift::Fixed(3.0),
        spacing: Spacing::Trained,
        steps: 40,
        guidance: 4.5,
        embedded_guidance: None,
        references: None,
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
        expert: None,
        negative_prompt: None,
        shift: Shift::Fixed(3.0),
        spacing: Spacing::Trained,
        steps: 4,
        guidance: 1.0,
        embedded_guidance: None,
        references: None,
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
const STATISTICS: LatentStatistics = LatentStatistics::Shared {
    scale: 1.5305,
    shift: 0.0609,
};

/// Side of a patch in the released networks.
const PATCH: usize = 2;

const DENOISER: &str = "transformer";

/// As `strategy_sd3.py` of kohya's sd-scripts, `stable_diffusion_model.py` of ai-toolkit and `models/sd3/model.py` of SimpleTuner have it.
const CACHES: CacheNames = CacheNames {
    context: &[&["clip_l", "clip_g"], &["t5"]],
    pooled: &["clip_l", "clip_g"],
    kohya: Some(KohyaNames {
        texts: "_sd3_te.npz",
        latents: "_sd3.npz",
        arrays: KohyaArrays::ClipsAndT5,
        // `library/sd3_models.py` `process_in`.
        statistics: Some((1.5305, 0.0609)),
        resolutions: true,
        masks: false,
    }),
    musubi: None,
    ai_toolkit: Some(AiToolkitNames {
        texts: &[("", "sd3")],
        latents: None,
        step: 4,
        tensors: AiToolkitTexts::Pooled,
    }),
    simpletuner: Some(SimpleTunerNames {
        name: "sd3",
        tensors: SimpleTunerTexts::Pooled,
    }),
};

/// The family `sd3`.
pub const SD3: Family = Family {
    name: "sd3",
    flavors: FLAVORS,
    presets: PRESETS,
    masks_pads: false,
    latents: || LatentGeometry {
        channels: 16,
        factors: Factors::of_pictures(8),
        statistics: STATISTICS,
        patch: PATCH,
    },
    layout: Layout {
        denoiser: DENOISER,
        folders: &[
            DENOISER,
            "vae",
            "text_encoder",
            "text_encoder_2",
            "text_encoder_3",
        ],
        tokenizers: &["tokenizer", "tokenizer_2", "tokenizer_3"],
        prefixes: &[
            (DENOISER, &["model.diffusion_model.", "diffusion_model."]),
            ("vae", &["first_stage_model.", "vae."]),
            ("text_encoder", &["text_encoders.clip_l.transformer."]),
            ("text_encoder_2", &["text_encoders.clip_g.transformer."]),
            ("text_encoder_3", &["text_encoders.t5xxl.transformer."]),
        ],
        sign: "joint_blocks.",
    },
    naming: lora_names::naming,
    caches: Some(&CACHES),
    open: names::open,
};

impl super::Architecture for Architecture {
    fn build(&self, source: &dyn Source) -> Result<Box<dyn Denoiser>, Error> {
        Ok(Box::new(MmDit::build(self.clone(), source)?))
    }

    fn context_width(&self) -> usize {
        self.context_width
    }

    fn activations(&self, step: &StepShape) -> Activations {
        self.of_step(step)
    }

    /// The released models differ in the norm of queries and keys and in the second attention.
    fn could_be(&self, flavor: &Flavor) -> bool {
        let (qk_norm, dual) = match flavor.name {
            "3-medium" => (false, false),
            "3.5-medium" => (true, true),
            _ => (true, false),
        };
        (self.qk_norm, !self.dual_attention.is_empty()) == (qk_norm, dual)
    }
}

#[cfg(test)]
mod tests;

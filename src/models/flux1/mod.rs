//! FLUX.1 of Black Forest Labs: a rectified-flow transformer of double and single blocks (github.com/black-forest-labs/flux
//! `src/flux/model.py`; diffusers `FluxTransformer2DModel`).
//!
//! - `architecture`: the network's numbers, from a config or from shapes
//! - `names`: diffusers' and the authors' naming of its weights
//! - `embed`, `block`, `flux`: the network
//!
//! dev is distilled from guidance: it has a guidance embedding and needs one pass a step. kontext is dev trained further to be
//! given a reference picture, whose tokens stand behind the noisy picture's. schnell is distilled from many steps to a few, and
//! has no guidance embedding.

mod activations;
pub(super) mod architecture;
pub(super) mod block;
pub(super) mod embed;
pub(super) mod flux;
pub(super) mod lora_names;
pub(super) mod names;

use self::architecture::{Architecture, PATCH};
use self::flux::Flux;
use self::names::{DOUBLE, OUTER, SINGLE};
use super::cache_names::{
    AiToolkitNames, AiToolkitTexts, CacheNames, KohyaArrays, KohyaNames, MusubiLatents,
    MusubiNames, MusubiTexts, SimpleTunerNames, SimpleTunerTexts,
};
use super::layout::Layout;
use super::{Activations, Denoiser, Error, Family, Flavor, References, Source, StepShape};
use crate::diffusion::{Prediction, Process, Sampler, Shift, ShiftRule, Spacing};
use crate::lora::Preset;
use crate::recipe::latents::{LatentStatistics, Size};
use crate::vae::{Factors, LatentGeometry};

const FLOW: Process = Process::new(Prediction::Flow);

/// `PREFERED_KONTEXT_RESOLUTIONS` of the authors' `src/flux/util.py`, on which the model was trained: width and height.
const KONTEXT_SIZES: [Size; 17] = [
    size(672, 1568),
    size(688, 1504),
    size(720, 1456),
    size(752, 1392),
    size(800, 1328),
    size(832, 1248),
    size(880, 1184),
    size(944, 1104),
    size(1024, 1024),
    size(1104, 944),
    size(1184, 880),
    size(1248, 832),
    size(1328, 800),
    size(1392, 752),
    size(1456, 720),
    size(1504, 688),
    size(1568, 672),
];

const fn size(width: u32, height: u32) -> Size {
    Size { width, height }
}

/// Steps, guidance and shift as in the authors' command lines (`src/flux/cli.py`, `cli_kontext.py`, `sampling.py`).
const FLAVORS: &[Flavor] = &[
    Flavor {
        name: "dev",
        process: FLOW,
        sampler: Sampler::Euler,
        size_conditioning: false,
        expert: None,
        negative_prompt: None,
        shift: Shift::By(ShiftRule::Resolution),
        spacing: Spacing::Even,
        steps: 50,
        guidance: 1.0,
        embedded_guidance: Some(3.5),
        references: None,
        resolution_px: 1024,
        architecture: "flux-1-dev",
        base_version: "flux1",
        caution: None,
    },
    Flavor {
        name: "kontext",
        process: FLOW,
        sampler: Sampler::Euler,
        size_conditioning: false,
        expert: None,
        negative_prompt: None,
        shift: Shift::By(ShiftRule::Resolution),
        spacing: Spacing::Even,
        steps: 30,
        guidance: 1.0,
        embedded_guidance: Some(2.5),
        references: Some(References::Usual(&KONTEXT_SIZES)),
        resolution_px: 1024,
        architecture: "flux-1-kontext-dev",
        base_version: "flux1",
        caution: Some(
            "nothing but the values of its weights tells kontext from dev: that these are kontext's is taken from the Experiment",
        ),
    },
    Flavor {
        name: "schnell",
        process: FLOW,
        sampler: Sampler::Euler,
        size_conditioning: false,
        expert: None,
        negative_prompt: None,
        shift: Shift::Fixed(1.0),
        spacing: Spacing::Even,
        steps: 4,
        guidance: 1.0,
        embedded_guidance: None,
        references: None,
        resolution_px: 1024,
        architecture: "flux-1-schnell",
        base_version: "flux1",
        caution: Some(
            "schnell is distilled to a few steps, and training it as if it were not undoes that: pictures of few steps get worse as the LoRA learns. A training adapter that takes the distillation back in the meantime slows this down (`training_adapter` under [train]; there is ostris/FLUX.1-schnell-training-adapter); a LoRA made for `dev` is the usual other way",
        ),
    },
];

/// `attention` is every attention's queries, keys, values and outputs; `blocks` is what kohya's sd-scripts and
/// ai-toolkit adapt where they are told nothing else: all linears in blocks, modulations included.
const PRESETS: &[Preset] = &[
    Preset {
        name: "attention",
        patterns: &["attn.*"],
    },
    Preset {
        name: "attention+mlp",
        patterns: &[
            "attn.*",
            "ff.*",
            "ff_context.*",
            "proj_mlp",
            "single_transformer_blocks.*.proj_out",
        ],
    },
    Preset {
        name: "blocks",
        patterns: &["transformer_blocks.*", "single_transformer_blocks.*"],
    },
    Preset {
        name: "all-linear",
        patterns: &["*"],
    },
];

/// The VAE's, if its config does not say (a single file has none).
const STATISTICS: LatentStatistics = LatentStatistics::Shared {
    scale: 0.3611,
    shift: 0.1159,
};

const DENOISER: &str = "transformer";

/// As `strategy_flux.py` of kohya's sd-scripts, musubi-tuner's FLUX.1 Kontext, `stable_diffusion_model.py` of ai-toolkit and
/// `models/flux/model.py` of SimpleTuner have it.
const CACHES: CacheNames = CacheNames {
    context: &[&["t5"]],
    pooled: &["clip_l"],
    kohya: Some(KohyaNames {
        texts: "_flux_te.npz",
        latents: "_flux.npz",
        arrays: KohyaArrays::PooledAndT5,
        statistics: None,
        resolutions: true,
        masks: true,
    }),
    musubi: Some(MusubiNames {
        architectures: &[("", "fk", "flux_kontext")],
        texts: MusubiTexts::T5AndPooled,
        latents: MusubiLatents::Pairs,
        statistics: None,
    }),
    ai_toolkit: Some(AiToolkitNames {
        texts: &[("", "flux")],
        latents: Some("flux1"),
        step: 4,
        tensors: AiToolkitTexts::Pooled,
    }),
    simpletuner: Some(SimpleTunerNames {
        name: "flux",
        tensors: SimpleTunerTexts::PooledAndMask,
    }),
};

/// The family `flux1`.
pub const FLUX1: Family = Family {
    name: "flux1",
    flavors: FLAVORS,
    presets: PRESETS,
    masks_pads: true,
    latents: || LatentGeometry {
        channels: 16,
        factors: Factors::of_pictures(8),
        statistics: STATISTICS,
        patch: PATCH,
    },
    layout: Layout {
        denoiser: DENOISER,
        folders: &[DENOISER, "vae", "text_encoder", "text_encoder_2"],
        tokenizers: &["tokenizer", "tokenizer_2"],
        prefixes: &[
            (DENOISER, &["model.diffusion_model.", "diffusion_model."]),
            ("vae", &["first_stage_model.", "vae."]),
            ("text_encoder", &["text_encoders.clip_l.transformer."]),
            ("text_encoder_2", &["text_encoders.t5xxl.transformer."]),
        ],
        sign: "double_blocks.",
    },
    naming: lora_names::naming,
    caches: Some(&CACHES),
    open: names::open,
};

impl super::Architecture for Architecture {
    fn build(&self, source: &dyn Source) -> Result<Box<dyn Denoiser>, Error> {
        Ok(Box::new(Flux::build(self.clone(), source)?))
    }

    fn context_width(&self) -> usize {
        self.context_width
    }

    fn activations(&self, step: &StepShape) -> Activations {
        self.of_step(step)
    }

    /// Only dev and kontext have a guidance embedding, and nothing but the weights' values tells those two apart.
    fn could_be(&self, flavor: &Flavor) -> bool {
        self.guidance == flavor.embedded_guidance.is_some()
    }
}

#[cfg(test)]
mod tests;

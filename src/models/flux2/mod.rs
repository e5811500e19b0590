//! FLUX.2 klein of Black Forest Labs: a rectified-flow transformer of double and single blocks that share their modulations
//! (github.com/black-forest-labs/flux2 `src/flux2/model.py`; diffusers `Flux2Transformer2DModel`).
//!
//! - `architecture`: the network's numbers, from a config or from shapes
//! - `names`: diffusers' and the authors' naming of its weights
//! - `embed`, `block`, `network`: the network
//!
//! It knows captions by three hidden states of a Qwen3 and sees all rows of them, pads too; a reference picture's tokens stand behind the
//! noisy picture's. The base models are guided by a second
//! pass; the other two are distilled to a few steps without one. FLUX.2-dev is of the same build with a guidance embedding; its text
//! encoder is another, so that it is refused.

mod activations;
mod architecture;
mod block;
mod embed;
mod lora_names;
mod names;
mod network;

use self::architecture::Architecture;
use self::network::Flux2;
use super::cache_names::{
    AiToolkitNames, AiToolkitTexts, CacheNames, MusubiLatents, MusubiNames, MusubiTexts,
    SimpleTunerNames, SimpleTunerTexts,
};
use super::flux1::architecture::PATCH;
use super::layout::Layout;
use super::{Activations, Denoiser, Error, Family, Flavor, References, Source, StepShape};
use crate::diffusion::{Prediction, Process, Sampler, Shift, ShiftRule, Spacing};
use crate::lora::Preset;
use crate::recipe::latents::LatentStatistics;
use crate::vae::{Factors, LatentGeometry};

/// Steps, guidance and shift of diffusers' pipeline (`pipeline_flux2_klein.py`) and of musubi-tuner (`flux2_utils.py`).
const BASE: Flavor = Flavor {
    name: "klein-base-4b",
    process: Process::new(Prediction::Flow),
    sampler: Sampler::Euler,
    size_conditioning: false,
    expert: None,
    negative_prompt: None,
    shift: Shift::By(ShiftRule::Steps),
    spacing: Spacing::Even,
    steps: 50,
    guidance: 4.0,
    embedded_guidance: None,
    // `Flux2KleinPipeline.__call__` for each picture that it is given.
    references: Some(References::Possible {
        most_pixels: 1024 * 1024,
    }),
    resolution_px: 1024,
    architecture: "flux-2-klein-base-4b",
    base_version: "flux2_klein_base_4b",
    caution: None,
};

const DISTILLED: Flavor = Flavor {
    name: "klein-4b",
    steps: 4,
    guidance: 1.0,
    architecture: "flux-2-klein-4b",
    base_version: "flux2_klein_4b",
    caution: Some(
        "this model is distilled to a few steps, and training it as if it were not undoes that: pictures of few steps get worse as the LoRA learns. The usual way is to train on the base model of its size (`klein-base-4b`, `klein-base-9b`): such a LoRA works on both",
    ),
    ..BASE
};

/// A base model and the one distilled from it are of the same shapes: which of the two a file is, its name says and nothing in it.
const FLAVORS: &[Flavor] = &[
    BASE,
    Flavor {
        name: "klein-base-9b",
        architecture: "flux-2-klein-base-9b",
        base_version: "flux2_klein_base_9b",
        ..BASE
    },
    DISTILLED,
    Flavor {
        name: "klein-9b",
        architecture: "flux-2-klein-9b",
        base_version: "flux2_klein_9b",
        ..DISTILLED
    },
];

/// `attention` is every attention's queries, keys, values and outputs, of single blocks with the feed-forward that is fused with
/// them (diffusers' script, told nothing else, leaves out the text's side of it); `blocks` is all linears in blocks, which is what
/// ai-toolkit, musubi-tuner and diffusion-pipe adapt.
const PRESETS: &[Preset] = &[
    Preset {
        name: "attention",
        patterns: &["attn.*"],
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

const DENOISER: &str = "transformer";

const CACHES: CacheNames = CacheNames {
    context: &[&["qwen3"]],
    pooled: &[],
    kohya: None,
    musubi: Some(MusubiNames {
        architectures: &[
            ("9b", "f2k9b", "flux_2_klein_9b"),
            ("4b", "f2k4b", "flux_2_klein_4b"),
        ],
        texts: MusubiTexts::Rows("ctx_vec"),
        latents: MusubiLatents::Patches,
        statistics: None,
    }),
    ai_toolkit: Some(AiToolkitNames {
        texts: &[("9b", "flux2_klein_9b"), ("4b", "flux2_klein_4b")],
        latents: None,
        step: 2,
        tensors: AiToolkitTexts::Alone,
    }),
    simpletuner: Some(SimpleTunerNames {
        name: "flux2",
        tensors: SimpleTunerTexts::MaskAside,
    }),
};

/// The family `flux2`.
pub const FLUX2: Family = Family {
    name: "flux2",
    flavors: FLAVORS,
    presets: PRESETS,
    masks_pads: true,
    latents: || LatentGeometry {
        channels: 32,
        factors: Factors::of_pictures(8),
        // The VAE's own weights have them.
        statistics: LatentStatistics::Patches {
            side: PATCH,
            mean: Vec::new(),
            std: Vec::new(),
        },
        patch: PATCH,
    },
    layout: Layout {
        denoiser: DENOISER,
        folders: &[DENOISER, "vae", "text_encoder"],
        tokenizers: &["tokenizer"],
        prefixes: &[
            (DENOISER, &["model.diffusion_model.", "diffusion_model."]),
            ("vae", &["first_stage_model.", "vae."]),
            (
                "text_encoder",
                &[
                    "text_encoders.qwen3_4b.transformer.",
                    "text_encoders.qwen3_8b.transformer.",
                ],
            ),
        ],
        sign: "double_stream_modulation_img.",
    },
    naming: lora_names::naming,
    caches: Some(&CACHES),
    open: names::open,
};

impl super::Architecture for Architecture {
    fn build(&self, source: &dyn Source) -> Result<Box<dyn Denoiser>, Error> {
        Ok(Box::new(Flux2::build(self.clone(), source)?))
    }

    fn context_width(&self) -> usize {
        self.context_width
    }

    fn activations(&self, step: &StepShape) -> Activations {
        self.of_step(step)
    }

    /// A network of the width of one size is not of the other; of any other width, it may be either.
    fn could_be(&self, flavor: &Flavor) -> bool {
        let other = if flavor.name.ends_with("9b") {
            3072
        } else {
            4096
        };
        self.width() != other
    }
}

#[cfg(test)]
mod tests;

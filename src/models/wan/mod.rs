//! Wan 2.1 and 2.2 of Alibaba, text to video: one stream of patches of all frames, which attends to itself and then to the caption
//! (github.com/Wan-Video/Wan2.1 `wan/modules/model.py`; diffusers `WanTransformer3DModel`).
//!
//! - `architecture`: the network's numbers, from a config or from shapes
//! - `names`: diffusers' and the authors' naming of its weights
//! - `network`, `block`, `positions`: the network
//!
//! Latents have an axis for frames, [b, c, f, h, w], also those of a still picture. All rows of the context are seen, zeros among
//! them. Wan 2.2's A14B is two networks of the 14B's shapes, one for high noise and one for low: a flavor each. Models that are given
//! more than noise and a caption are refused by name (`others`).

mod activations;
mod architecture;
mod block;
mod lora_names;
mod names;
mod network;
mod others;
mod positions;

use self::architecture::{Architecture, PATCH};
use self::network::Wan;
use super::cache_names::{
    AiToolkitNames, AiToolkitTexts, CacheNames, MusubiLatents, MusubiNames, MusubiTexts,
    SimpleTunerNames, SimpleTunerTexts,
};
use super::layout::Layout;
use super::{Activations, Denoiser, Error, Expert, Family, Flavor, Source, StepShape};
use crate::diffusion::{Band, Prediction, Process, Sampler, Shift, Spacing};
use crate::lora::Preset;
use crate::recipe::latents::{LatentStatistics, WAN_LATENTS};
use crate::vae::{Factors, LatentGeometry};

/// Width of the 1.3B.
const SMALL: usize = 1536;

/// Steps, sampler and guidance as in `generate.py` of Wan 2.1, where the 1.3B is advised a guidance of 6 and a shift of 8 to 12
/// (README.md); the shift of the code is 5.
const T2V_1_3B: Flavor = Flavor {
    name: "t2v-1.3b",
    process: Process::new(Prediction::Flow),
    sampler: Sampler::Unipc,
    size_conditioning: false,
    expert: None,
    negative_prompt: Some(include_str!("negative_prompt.txt")),
    shift: Shift::Fixed(5.0),
    spacing: Spacing::Even,
    steps: 50,
    guidance: 5.0,
    embedded_guidance: None,
    references: None,
    resolution_px: 640,
    architecture: "wan-2.1-t2v-1.3b",
    base_version: "wan2.1",
    caution: None,
};

/// As in `wan/configs/wan_t2v_A14B.py` of Wan 2.2: the guidance is the second of `sample_guide_scale`.
const A14B_HIGH: Flavor = Flavor {
    name: "2.2-t2v-a14b-high",
    expert: Some(Expert {
        name: "high_noise",
        component: DENOISER,
        levels: Band {
            from: BOUNDARY,
            to: 1.0,
        },
        other: "2.2-t2v-a14b-low",
    }),
    shift: Shift::Fixed(12.0),
    steps: 40,
    guidance: 4.0,
    resolution_px: 960,
    architecture: "wan-2.2-t2v-a14b-high-noise",
    base_version: "wan2.2",
    ..T2V_1_3B
};

/// The share of the noise levels at which Wan 2.2's A14B changes its network (`boundary`, diffusers' `boundary_ratio`).
const BOUNDARY: f64 = 0.875;

const FLAVORS: &[Flavor] = &[
    T2V_1_3B,
    Flavor {
        name: "t2v-14b",
        resolution_px: 960,
        architecture: "wan-2.1-t2v-14b",
        ..T2V_1_3B
    },
    A14B_HIGH,
    Flavor {
        name: "2.2-t2v-a14b-low",
        expert: Some(Expert {
            name: "low_noise",
            component: "transformer_2",
            levels: Band {
                from: 0.0,
                to: BOUNDARY,
            },
            other: "2.2-t2v-a14b-high",
        }),
        guidance: 3.0,
        architecture: "wan-2.2-t2v-a14b-low-noise",
        ..A14B_HIGH
    },
];

/// `blocks` is what musubi-tuner, ai-toolkit and diffusion-pipe adapt where they are told nothing else: attention and feed-forward.
const PRESETS: &[Preset] = &[
    Preset {
        name: "blocks",
        patterns: &["blocks.*"],
    },
    Preset {
        name: "attention",
        patterns: &["attn1.*", "attn2.*"],
    },
    Preset {
        name: "all-linear",
        patterns: &["*"],
    },
];

const DENOISER: &str = "transformer";

const CACHES: CacheNames = CacheNames {
    context: &[&["umt5"]],
    pooled: &[],
    kohya: None,
    musubi: Some(MusubiNames {
        architectures: &[("", "wan", "wan")],
        texts: MusubiTexts::TrueRows("varlen_t5"),
        latents: MusubiLatents::Clips,
        statistics: None,
    }),
    ai_toolkit: Some(AiToolkitNames {
        texts: &[("", "wan21")],
        latents: None,
        step: 2,
        tensors: AiToolkitTexts::Alone,
    }),
    simpletuner: Some(SimpleTunerNames {
        name: "wan",
        tensors: SimpleTunerTexts::Alone,
    }),
};

/// The family `wan`.
pub const WAN: Family = Family {
    name: "wan",
    flavors: FLAVORS,
    presets: PRESETS,
    masks_pads: false,
    latents: || LatentGeometry {
        channels: 16,
        factors: Factors {
            height: 8,
            width: 8,
            time: Some(4),
        },
        statistics: LatentStatistics::PerChannel {
            scale: 1.0,
            mean: WAN_LATENTS.map(|(mean, _)| mean).to_vec(),
            std: WAN_LATENTS.map(|(_, std)| std).to_vec(),
        },
        patch: PATCH,
    },
    layout: Layout {
        denoiser: DENOISER,
        folders: &[DENOISER, "transformer_2", "vae", "text_encoder"],
        tokenizers: &["tokenizer"],
        prefixes: &[
            (DENOISER, &["model.diffusion_model.", "diffusion_model."]),
            ("vae", &["first_stage_model.", "vae."]),
            ("text_encoder", &["text_encoders.umt5xxl.transformer."]),
        ],
        sign: "time_projection",
    },
    naming: lora_names::naming,
    caches: Some(&CACHES),
    open: names::open,
};

impl super::Architecture for Architecture {
    fn build(&self, source: &dyn Source) -> Result<Box<dyn Denoiser>, Error> {
        Ok(Box::new(Wan::build(self.clone(), source)?))
    }

    fn context_width(&self) -> usize {
        self.context_width
    }

    fn activations(&self, step: &StepShape) -> Activations {
        self.of_step(step)
    }

    /// By width; a miniature can be either.
    fn could_be(&self, flavor: &Flavor) -> bool {
        match self.width() {
            SMALL => flavor.name == "t2v-1.3b",
            width if width > SMALL => flavor.name != "t2v-1.3b",
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests;

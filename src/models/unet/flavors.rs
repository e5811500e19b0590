//! The flavors of SDXL: the base, and fine-tunes that LoRAs are trained for as if they were one. All have one architecture, so
//! that no shape tells them apart; they differ in what they predict and in how their authors sample.

use super::NOISE;
use crate::diffusion::{Prediction, Process, Sampler, Shift, Spacing};
use crate::models::Flavor;

pub(super) const SDXL: &[Flavor] = &[
    BASE,
    // civitai.com/models/795765, as civitaiarchive.com/models/894707 quotes it: Euler a, 20 to 28 steps, 5 to 7.5.
    fine_tune("illustrious-0.1", 28, 6.0),
    // huggingface.co/OnomaAIResearch/Illustrious-XL-v1.0: up to 1536 px. Of sampling no card of 1.0 or 2.0 that could be read says
    // anything: numbers of 0.1's range, and for 2.0 the side of 1.0, which is believed.
    Flavor {
        resolution_px: 1536,
        ..fine_tune("illustrious-1.0", 28, 5.0)
    },
    Flavor {
        resolution_px: 1536,
        ..fine_tune("illustrious-2.0", 28, 5.0)
    },
    // huggingface.co/Laxhar/noobai-XL-1.1: Euler a, 25 to 30 steps, 5 to 6.
    fine_tune("noobai-1.1", 28, 5.5),
    // huggingface.co/Laxhar/noobai-XL-Vpred-1.0: Euler and no other, 28 to 35 steps, 4 to 5.
    Flavor {
        process: Process {
            prediction: Prediction::Velocity,
            zero_terminal_snr: true,
        },
        sampler: Sampler::Euler,
        caution: Some(
            "a LoRA trained on a model of v-prediction is for such models: on one that predicts epsilon (Illustrious, NoobAI 1.1, SDXL) its effect is not the one that was trained",
        ),
        ..fine_tune("noobai-vpred-1.0", 28, 4.5)
    },
    // civitai.com/models/257749: Euler a, 25 steps; the guidance is the usual one of web UIs, as its author leaves it open.
    fine_tune("pony-v6", 25, 7.0),
    // huggingface.co/cagliostrolab/animagine-xl-4.0: Euler a, 28 steps, 5.
    fine_tune("animagine-4.0", 28, 5.0),
];

/// SDXL base 1.0. Steps and guidance as in diffusers' pipeline; the sampler is the one its files name.
const BASE: Flavor = Flavor {
    name: "base-1.0",
    process: NOISE,
    sampler: Sampler::Euler,
    size_conditioning: true,
    expert: None,
    negative_prompt: None,
    shift: Shift::Fixed(1.0),
    spacing: Spacing::Trained,
    steps: 50,
    guidance: 5.0,
    embedded_guidance: None,
    references: None,
    resolution_px: 1024,
    architecture: "stable-diffusion-xl-v1-base",
    base_version: "sdxl_base_v1-0",
    caution: None,
};

/// One of those whose authors sample with Euler a.
const fn fine_tune(name: &'static str, steps: u32, guidance: f64) -> Flavor {
    Flavor {
        name,
        sampler: Sampler::EulerAncestral,
        steps,
        guidance,
        ..BASE
    }
}

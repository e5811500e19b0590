//! A family that only the unit tests know, added as any other is: this folder, its recipe, and a line in `FAMILIES`. That the
//! whole way from captions to a LoRA works with it (`pipeline.rs`) shows that nothing else knows families by name.
//!
//! Its network predicts each pixel of the latents from that pixel, the timestep and the caption's pooled vector.

mod pipeline;

use candle_core::{DType, Device, Result, Tensor};
use serde::Deserialize;

use super::family::DescribedWeights;
use super::layout::{Layout, read_config};
use super::linear::Linear;
use super::transformer::{check_shapes, timestep_sinusoid};
use super::{
    Activations, Architecture, Component, ConditioningTensors, Denoiser, Error, Family, Flavor,
    Source, StepShape,
};
use crate::autograd::{Tape, Value};
use crate::diffusion::{Prediction, Process, Sampler, Shift, Spacing};
use crate::lora::formats::{AiToolkitNaming, Naming, Row, Spelling};
use crate::lora::{Bound, Preset};
use crate::nn::Kernels;
use crate::recipe::latents::LatentStatistics;
use crate::vae::{Factors, LatentGeometry};

const TIME_CHANNELS: usize = 256;

pub(super) const FAKE: Family = Family {
    name: "fake",
    flavors: &[Flavor {
        name: "only",
        process: Process::new(Prediction::Flow),
        sampler: Sampler::Euler,
        size_conditioning: false,
        expert: None,
        negative_prompt: None,
        shift: Shift::Fixed(1.0),
        spacing: Spacing::Even,
        steps: 2,
        guidance: 1.0,
        embedded_guidance: None,
        references: None,
        resolution_px: 64,
        architecture: "fake",
        base_version: "fake",
        caution: None,
    }],
    presets: &[Preset {
        name: "all",
        patterns: &["*"],
    }],
    masks_pads: false,
    latents: || LatentGeometry {
        channels: 16,
        factors: Factors::of_pictures(8),
        statistics: LatentStatistics::Shared {
            scale: 1.0,
            shift: 0.0,
        },
        patch: 1,
    },
    layout: Layout {
        denoiser: "transformer",
        folders: &["transformer", "vae", "text_encoder"],
        tokenizers: &["tokenizer"],
        prefixes: &[("transformer", &["model."])],
        sign: "to_hidden.",
    },
    caches: None,
    naming: || Naming {
        family: "fake",
        component: "transformer",
        kohya: Spelling::Diffusers,
        network_module: "networks.lora_fake",
        implementation: "tests/fake_family",
        base_version: None,
        metadata_marks: &["fake"],
        widths: &[],
        only_where_stated: false,
        ai_toolkit: AiToolkitNaming::Diffusers,
        ai_toolkit_modules: &[],
        rows: ["to_hidden", "time", "caption", "to_pixels"]
            .map(|name| Row::new(name, format!("native_{name}")))
            .into(),
    },
    open: |component| {
        Ok(DescribedWeights {
            architecture: Box::new(Numbers::read(component)?),
            weights: component.open()?,
        })
    },
};

#[derive(Clone, Copy, Deserialize)]
struct Numbers {
    channels: usize,
    hidden: usize,
    pooled: usize,
}

impl Numbers {
    fn read(component: &Component) -> std::result::Result<Self, Error> {
        match &component.config {
            Some(config) => read_config(config, "FakePixels"),
            None => Err(Error::NotThisFamily {
                path: component.weights.clone(),
                family: "`fake`".to_owned(),
                reason: "it has no config.json".to_owned(),
            }),
        }
    }
}

impl Architecture for Numbers {
    fn build(&self, source: &dyn Source) -> std::result::Result<Box<dyn Denoiser>, Error> {
        let linear = |name: &str, size| Linear::load(source, name, size, true);
        Ok(Box::new(Pixels {
            kernels: source.kernels(),
            numbers: *self,
            to_hidden: linear("to_hidden", (self.hidden, self.channels))?,
            time: linear("time", (self.hidden, TIME_CHANNELS))?,
            caption: linear("caption", (self.hidden, self.pooled))?,
            to_pixels: linear("to_pixels", (self.channels, self.hidden))?,
            like: source.tensor(&[self.hidden], "time.bias")?,
        }))
    }

    fn context_width(&self) -> usize {
        self.pooled
    }

    fn activations(&self, step: &StepShape) -> Activations {
        let pixels = step.samples * step.latents.height * step.latents.width;
        let numbers = pixels * (3 * self.hidden + 3 * self.channels);
        Activations {
            outside: numbers as u64,
            passing: numbers as u64,
            ..Activations::default()
        }
    }
}

struct Pixels {
    kernels: Kernels,
    numbers: Numbers,
    to_hidden: Linear,
    time: Linear,
    caption: Linear,
    to_pixels: Linear,
    like: Tensor,
}

impl Denoiser for Pixels {
    fn forward(
        &self,
        tape: &Tape,
        adapters: &Bound,
        latents: &Value,
        timesteps: &Tensor,
        conditioning: &ConditioningTensors,
    ) -> Result<Value> {
        let (b, c, h, w) = latents.tensor().dims4()?;
        conditioning.refuse_reference()?;
        let pooled = &conditioning.pooled;
        check_shapes(&[
            ("latents", latents.dims(), &[b, self.numbers.channels, h, w]),
            ("pooled", pooled.dims(), &[b, self.numbers.pooled]),
        ])?;
        let x_bcn = tape.reshape(latents, &[b, c, h * w])?;
        let x_bnc = tape.permute(&x_bcn, &[0, 2, 1])?;
        let mut x = self.to_hidden.forward(tape, adapters, &x_bnc)?;
        for (linear, input) in [
            (
                &self.time,
                timestep_sinusoid(tape.kernels(), timesteps, &self.like)?,
            ),
            (&self.caption, pooled.clone()),
        ] {
            let y = linear.forward(tape, adapters, &Value::constant(input))?;
            x = tape.add(&x, &tape.reshape(&y, &[b, 1, self.numbers.hidden])?)?;
        }
        let y_bnc = self.to_pixels.forward(tape, adapters, &tape.silu(&x)?)?;
        tape.reshape(&tape.permute(&y_bnc, &[0, 2, 1])?, &[b, c, h, w])
    }

    fn dtype(&self) -> DType {
        self.like.dtype()
    }

    fn device(&self) -> &Device {
        self.like.device()
    }

    fn kernels(&self) -> &Kernels {
        &self.kernels
    }
}

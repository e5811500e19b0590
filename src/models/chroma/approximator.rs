//! The approximator (`distilled_guidance_layer`): from a timestep to every shift, scale and gate of the network. It was
//! distilled from FLUX.1's modulations and is never trained after: its linears carry no adapter.
//!
//! Shapes: b batch, k vectors (three of each single block, six of each half of a double block, two of the last norm), f
//! width inside, d width of the network.

use candle_core::{DType, Device, Result, Tensor};

use super::architecture::Architecture;
use crate::autograd::Value;
use crate::models::flux1::flux::Conditioner;
use crate::models::linear::Linear;
use crate::models::transformer::{EPS, Loaded, Pass};
use crate::models::{ConditioningTensors, Error, Source};
use crate::nn::{Kernels, sinusoids};

/// The numbers of the vectors are embedded as a timestep of 0 to 1 is: in thousandths.
const NUMBER_UNIT: f32 = 1000.0;

/// A residual network of each vector's number, the timestep and a guidance of 0.
pub(super) struct Approximator {
    /// Channels of its input: a quarter each for timestep and guidance, half for the vector's number.
    channels: usize,
    vectors: usize,
    /// What each vector is told by, [k] in f32, where the network is.
    numbers: Tensor,
    inward: Linear,
    layers: Vec<Layer>,
    outward: Linear,
}

/// Two linears with a SiLU between, behind a norm.
struct Layer {
    /// [f]
    norm: Tensor,
    linears: [Linear; 2],
}

impl Approximator {
    pub(super) fn load(architecture: &Architecture, source: &dyn Source) -> Loaded<Self> {
        let (inner, channels) = (architecture.inner, architecture.channels);
        let linear = |name: &str, size| {
            Linear::untrained(source, &format!("distilled_guidance_layer.{name}"), size)
        };
        let layer = |i: usize| {
            let norm = format!("distilled_guidance_layer.norms.{i}.weight");
            Ok(Layer {
                norm: source.tensor(&[inner], &norm)?,
                linears: [
                    linear(&format!("layers.{i}.linear_1"), (inner, inner))?,
                    linear(&format!("layers.{i}.linear_2"), (inner, inner))?,
                ],
            })
        };
        let layers = (0..architecture.layers)
            .map(layer)
            .collect::<Loaded<Vec<Layer>>>()?;
        let vectors = architecture.vectors();
        let numbers: Vec<f32> = (0..vectors).map(|n| n as f32 * NUMBER_UNIT).collect();
        let device = layers
            .first()
            .map_or(&Device::Cpu, |layer| layer.norm.device());
        Ok(Self {
            channels,
            vectors,
            numbers: Tensor::from_vec(numbers, vectors, device).map_err(|source| {
                Error::Device {
                    what: "placing the numbers of the approximator's vectors".to_owned(),
                    source,
                }
            })?,
            inward: linear("in_proj", (inner, channels))?,
            layers,
            outward: linear("out_proj", (architecture.trunk.width(), inner))?,
        })
    }

    /// Timesteps [b] to [b, k, channels].
    fn input(&self, kernels: &Kernels, timesteps: &Tensor, like: &Tensor) -> Result<Tensor> {
        let (b, k, quarter) = (timesteps.dim(0)?, self.vectors, self.channels / 4);
        let zeros = Tensor::zeros(b, DType::F32, timesteps.device())?;
        let of_sample = |told: &Tensor| {
            let rows = sinusoids(kernels, told, quarter, like)?.unsqueeze(1)?;
            kernels.contiguous(&rows.broadcast_as((b, k, quarter))?)
        };
        let of_vector = sinusoids(kernels, &self.numbers, 2 * quarter, like)?.unsqueeze(0)?;
        let of_vector = kernels.contiguous(&of_vector.broadcast_as((b, k, 2 * quarter))?)?;
        Tensor::cat(&[of_sample(timesteps)?, of_sample(&zeros)?, of_vector], 2)
    }
}

impl Conditioner for Approximator {
    /// Timesteps to the vectors [b, k, d].
    fn vector(
        &self,
        pass: Pass<'_>,
        timesteps: &Tensor,
        _conditioning: &ConditioningTensors,
        like: &Tensor,
    ) -> Result<Value> {
        let (tape, adapters) = (pass.tape, pass.adapters);
        let input = Value::constant(self.input(tape.kernels(), timesteps, like)?);
        let mut x = self.inward.forward(tape, adapters, &input)?;
        for Layer { norm, linears } in &self.layers {
            let y = tape.rms_norm(&x, Some(norm), EPS)?;
            let y = tape.silu(&linears[0].forward(tape, adapters, &y)?)?;
            x = tape.add(&x, &linears[1].forward(tape, adapters, &y)?)?;
        }
        self.outward.forward(tape, adapters, &x)
    }
}

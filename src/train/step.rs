//! One optimizer step: forward, backward, clip, AdamW.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};

use super::inputs::Part;
use crate::autograd::{Tape, Value};
use crate::lora::{AdapterSet, Dropout, Recompute};
use crate::models::Denoiser;

/// What a forward and backward pass needs beside the part.
pub struct Pass<'a> {
    /// The base model.
    pub denoiser: &'a dyn Denoiser,
    /// The adapters being trained.
    pub adapters: &'a AdapterSet,
    /// Probability, and the seed, of dropout inside the adapters.
    pub dropout: (f64, u64),
    /// Whether every block is computed twice to save memory.
    pub checkpointing: bool,
}

/// What a part's pass made.
pub struct PassResult {
    /// The denoiser's prediction.
    pub prediction: Tensor,
    /// The mean weighted squared error.
    pub loss: f64,
}

impl Pass<'_> {
    /// Predicts, and adds the gradient of `factor * loss` to `gradient`, laid out as the adapters' values.
    /// `number` is one that no other pass of the run has.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn backward(
        &self,
        part: &Part,
        number: u64,
        factor: f64,
        gradient: &mut [f32],
    ) -> Result<PassResult> {
        let tape = Tape::recording();
        let (probability, seed) = self.dropout;
        let dropout = Dropout {
            probability,
            seed,
            pass: number,
        };
        let bound = self
            .adapters
            .bind(&tape, DType::F32, &Device::Cpu, Some(dropout))?;
        let recompute = if self.checkpointing {
            Recompute::EveryBlock
        } else {
            Recompute::Never
        };
        let bound = bound.with_recompute(recompute);
        let latents = Value::constant(part.noisy.clone());
        let prediction =
            self.denoiser
                .forward(&tape, &bound, &latents, &part.timesteps, &part.conditioning)?;
        let (loss, slope) = weighted_mse(prediction.tensor(), &part.target, &part.weights)?;
        let mut gradients = tape.backward_from(&[(&prediction, slope)])?;
        bound.collect(&mut gradients, factor as f32, gradient)?;
        Ok(PassResult {
            prediction: prediction.into_tensor(),
            loss,
        })
    }

    /// Predicts only; the loss is that of [`Self::backward`].
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn loss(&self, part: &Part) -> Result<f64> {
        let tape = Tape::off();
        let bound = self.adapters.bind(&tape, DType::F32, &Device::Cpu, None)?;
        let latents = Value::constant(part.noisy.clone());
        let prediction =
            self.denoiser
                .forward(&tape, &bound, &latents, &part.timesteps, &part.conditioning)?;
        Ok(weighted_mse(prediction.tensor(), &part.target, &part.weights)?.0)
    }
}

/// `mean(w (p - t)^2)` and its gradient by `p`, `2 w (p - t) / n`. The sum is taken in f64, in order.
fn weighted_mse(prediction: &Tensor, target: &Tensor, weights: &Tensor) -> Result<(f64, Tensor)> {
    let difference = (prediction - target)?;
    let mut shape = vec![1; difference.rank()];
    shape[0] = difference.dim(0)?;
    let weighted = difference.broadcast_mul(&weights.reshape(shape)?)?;
    let count = difference.elem_count() as f64;
    let pairs = difference
        .flatten_all()?
        .to_vec1::<f32>()?
        .into_iter()
        .zip(weighted.flatten_all()?.to_vec1::<f32>()?);
    let loss = pairs.map(|(d, w)| f64::from(d) * f64::from(w)).sum::<f64>() / count;
    Ok((loss, (weighted * (2.0 / count))?))
}

/// What step K saw and made, by name, for `--dump-step`.
#[derive(Default)]
pub struct Dump {
    tensors: BTreeMap<String, Tensor>,
}

impl Dump {
    /// Adds what pass number `pass` of the step saw and made. Names of passes after the first end in `.1`,
    /// `.2`, ...
    ///
    /// # Errors
    /// If the device fails.
    pub fn add(&mut self, pass: usize, part: &Part, result: &PassResult) -> Result<()> {
        let suffix = if pass == 0 {
            String::new()
        } else {
            format!(".{pass}")
        };
        let loss = Tensor::new(&[result.loss as f32], &Device::Cpu)?;
        for (name, tensor) in [
            ("latents", &part.latents),
            ("noise", &part.noise),
            ("noisy_latents", &part.noisy),
            ("sigma", &part.sigmas),
            ("timestep", &part.timesteps),
            ("context", &part.conditioning.context),
            ("pooled", &part.conditioning.pooled),
            ("prediction", &result.prediction),
            ("target", &part.target),
            ("loss_weight", &part.weights),
            ("loss", &loss),
        ] {
            self.tensors
                .insert(format!("{name}{suffix}"), tensor.contiguous()?);
        }
        Ok(())
    }

    /// Adds each adapter tensor before the step and its gradient, before clipping.
    ///
    /// # Errors
    /// If the device fails.
    pub fn add_adapters(&mut self, adapters: &AdapterSet, gradient: &[f32]) -> Result<()> {
        for (name, shape, range) in adapters.tensors() {
            for (kind, values) in [("adapter", adapters.values()), ("gradient", gradient)] {
                let tensor = Tensor::from_slice(&values[range.clone()], &shape, &Device::Cpu)?;
                self.tensors.insert(format!("{kind}.{name}"), tensor);
            }
        }
        Ok(())
    }

    /// The tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }
}

#[cfg(test)]
mod tests {
    use super::weighted_mse;
    use candle_core::{Device, Tensor};

    #[test]
    fn the_loss_and_its_slope_are_those_of_the_formula() {
        let tensor = |v: [[f32; 2]; 2]| Tensor::new(&v, &Device::Cpu).expect("a tensor");
        let (prediction, target) = (
            tensor([[1.0, 2.0], [3.0, 4.0]]),
            tensor([[0.0, 2.0], [1.0, 1.0]]),
        );
        let weights = Tensor::new(&[1.0f32, 2.0], &Device::Cpu).expect("a tensor");
        let (loss, slope) = weighted_mse(&prediction, &target, &weights).expect("computed");
        assert!((loss - (1.0 + 2.0 * 4.0 + 2.0 * 9.0) / 4.0).abs() < 1e-6);
        assert_eq!(
            slope.to_vec2::<f32>().expect("values"),
            [[0.5, 0.0], [2.0, 3.0]]
        );
    }
}

//! The passes of an optimizer step, forward and backward, and what `--dump-step` tells of them.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};

use super::inputs::DenoiserBatch;
use crate::autograd::{Tape, Value};
use crate::lora::{AdapterSet, Bound, Dropout, Recompute};
use crate::models::{self, ConditioningTensors, Denoiser};

/// What the passes of a step share: the network, the adapters and how memory is saved.
pub struct Pass<'a> {
    /// The base model.
    pub denoiser: &'a dyn Denoiser,
    /// Where the adapters' numbers are among the values.
    pub adapters: &'a AdapterSet,
    /// The numbers of the adapters being trained, `[n]` in f32, on the denoiser's device.
    pub values: &'a Tensor,
    /// Probability, and the seed, of dropout inside the adapters.
    pub dropout: (f64, u64),
    /// Which blocks have gradient checkpointing.
    pub recompute: Recompute,
    /// Whether the inputs of these are offloaded to the CPU's memory.
    pub offload: bool,
}

/// What a pass made.
pub struct PassResult {
    /// The denoiser's prediction, in the shape of the batch's target.
    pub prediction: Tensor,
    /// The mean weighted squared error.
    pub loss: f64,
}

/// What of a batch the network is given and held against, on whatever device.
pub(super) struct Inputs {
    pub(super) noisy: Tensor,
    pub(super) target: Tensor,
    pub(super) timesteps: Tensor,
    pub(super) weights: Tensor,
    pub(super) conditioning: ConditioningTensors,
}

impl Inputs {
    pub(super) fn of(batch: &DenoiserBatch) -> Self {
        Self {
            noisy: batch.noisy.clone(),
            target: batch.target.clone(),
            timesteps: batch.timesteps.clone(),
            weights: batch.weights.clone(),
            conditioning: batch.conditioning.clone(),
        }
    }
}

impl Pass<'_> {
    /// Predicts, and adds the gradient of `factor * loss` to `gradient`, `[n]` in f32 as the values. `number` keys the dropout
    /// inside the adapters: no other pass of the run may have the same.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn backward(
        &self,
        batch: &DenoiserBatch,
        number: u64,
        factor: f64,
        gradient: &Tensor,
    ) -> Result<PassResult> {
        let (probability, seed) = self.dropout;
        let dropout = Dropout {
            probability,
            seed,
            pass: number,
        };
        let inputs = Inputs::of(batch);
        let (prediction, loss) = self.compute(&inputs, Some(dropout), factor, gradient)?;
        Ok(PassResult {
            prediction: prediction.into_tensor(),
            // Last: reading it waits for the device, which would have nothing to do until backward is asked for.
            loss: scalar(&loss)?,
        })
    }

    /// As [`Self::backward`]; the prediction and the loss. A GPU by our own kernels reads nothing back.
    pub(super) fn compute(
        &self,
        inputs: &Inputs,
        dropout: Option<Dropout>,
        factor: f64,
        gradient: &Tensor,
    ) -> Result<(Value, Value)> {
        let tape = Tape::recording(self.denoiser.kernels()).offloading(self.offload);
        let dtype = self.denoiser.dtype();
        let bound = self
            .adapters
            .bind_to(self.values, &tape, dtype, dropout)?
            .with_recompute(self.recompute.clone());
        let prediction = predict(self.denoiser, &tape, &bound, inputs)?;
        let loss = loss_value(&tape, &prediction, inputs)?;
        let mut gradients = tape.backward(&loss)?;
        bound.collect(&mut gradients, factor, gradient)?;
        Ok((prediction, loss))
    }

    /// The loss of [`Self::backward`], without gradients and without dropout.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn loss(&self, batch: &DenoiserBatch) -> Result<f64> {
        let tape = Tape::off(self.denoiser.kernels());
        let dtype = self.denoiser.dtype();
        let bound = self.adapters.bind_to(self.values, &tape, dtype, None)?;
        loss(self.denoiser, &tape, &bound, batch)
    }
}

/// The loss of a batch under adapters that are bound to a tape without gradients.
///
/// # Errors
/// If shapes do not fit or the device fails.
pub fn loss(
    denoiser: &dyn Denoiser,
    tape: &Tape,
    bound: &Bound,
    batch: &DenoiserBatch,
) -> Result<f64> {
    let inputs = Inputs::of(batch);
    let prediction = predict(denoiser, tape, bound, &inputs)?;
    scalar(&loss_value(tape, &prediction, &inputs)?)
}

fn predict(denoiser: &dyn Denoiser, tape: &Tape, bound: &Bound, inputs: &Inputs) -> Result<Value> {
    let (noisy, timesteps) = (&inputs.noisy, &inputs.timesteps);
    models::predict(
        denoiser,
        tape,
        bound,
        noisy,
        timesteps,
        &inputs.conditioning,
    )
}

/// The mean of the squared error, each sample's times its weight.
fn loss_value(tape: &Tape, prediction: &Value, inputs: &Inputs) -> Result<Value> {
    let target = inputs.target.to_device(prediction.tensor().device())?;
    tape.mse(prediction, &target, Some(&inputs.weights))
}

fn scalar(value: &Value) -> Result<f64> {
    value.tensor().to_dtype(DType::F64)?.to_scalar::<f64>()
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
    pub fn add(&mut self, pass: usize, batch: &DenoiserBatch, result: &PassResult) -> Result<()> {
        let suffix = if pass == 0 {
            String::new()
        } else {
            format!(".{pass}")
        };
        let loss = Tensor::new(&[result.loss as f32], &Device::Cpu)?;
        let counts = batch.conditioning.token_counts.as_ref().map(|counts| {
            let counts: Vec<u32> = counts.iter().map(|&count| count as u32).collect();
            Tensor::new(counts, &Device::Cpu)
        });
        for (name, tensor) in [
            ("time_ids", batch.conditioning.time_ids.clone()),
            ("guidance", batch.conditioning.guidance.clone()),
            ("reference", batch.conditioning.reference.clone()),
            ("token_counts", counts.transpose()?),
        ] {
            if let Some(tensor) = tensor {
                let name = format!("{name}{suffix}");
                self.tensors.insert(name, tensor.contiguous()?);
            }
        }
        for (name, tensor) in [
            ("latents", &batch.latents),
            ("noise", &batch.noise),
            ("noisy_latents", &batch.noisy),
            ("sigma", &batch.sigmas),
            ("timestep", &batch.timesteps),
            ("context", &batch.conditioning.context),
            ("pooled", &batch.conditioning.pooled),
            ("prediction", &result.prediction),
            ("target", &batch.target),
            ("loss_weight", &batch.weights),
            ("loss", &loss),
        ] {
            // f32 holds every number of bf16 and f16 exactly: one type to read, whatever was computed in.
            let on_host = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
            self.tensors
                .insert(format!("{name}{suffix}"), on_host.contiguous()?);
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
                let tensor =
                    Tensor::from_slice(&values[range.clone()], shape.as_slice(), &Device::Cpu)?;
                self.tensors.insert(format!("{kind}.{name}"), tensor);
            }
        }
        Ok(())
    }

    /// Adds what lies beneath the adapters: `beneath.<module>.lora_A.weight` and `lora_B`, which has alpha / rank in it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn add_beneath(&mut self, beneath: &AdapterSet) -> Result<()> {
        for adapter in beneath.adapters() {
            for (part, range, shape, factor) in [
                ('A', adapter.a(), adapter.a_shape(), 1.0),
                ('B', adapter.b(), adapter.b_shape(), adapter.scale()),
            ] {
                let numbers = &beneath.values()[range];
                let tensor = (Tensor::from_slice(numbers, shape, &Device::Cpu)? * factor)?;
                let name = format!("beneath.{}.lora_{part}.weight", adapter.name);
                self.tensors.insert(name, tensor);
            }
        }
        Ok(())
    }

    /// The tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }
}

//! The LoRA that an Experiment puts beneath the one that it trains: there in every step and every validation, and nowhere else.

use candle_core::{DType, Device, Result, Tensor};

use super::Error;
use crate::autograd::{Tape, Value};
use crate::base_model::BaseModel;
use crate::digest::Digest;
use crate::experiment::Experiment;
use crate::lora::{self, AdapterSet, Beneath, Bound};
use crate::models::{ConditioningTensors, Denoiser};
use crate::monitor::Monitor;
use crate::nn::Kernels;
use crate::sample::read_for;
use crate::shown;

/// A training adapter.
pub(super) struct TrainingAdapter {
    pub(super) adapters: AdapterSet,
    /// The digest of its file.
    pub(super) digest: Digest,
}

impl TrainingAdapter {
    /// Reads the LoRA that the Experiment names, if it names one.
    ///
    /// # Errors
    /// If the file is no LoRA for the base model, or adapts a convolution.
    pub(super) fn read(
        experiment: &Experiment,
        base: &BaseModel,
        monitor: &dyn Monitor,
    ) -> std::result::Result<Option<Self>, Error> {
        let Some(path) = &base.settings.train.training_adapter else {
            return Ok(None);
        };
        let (read, _) = read_for(path, base, monitor)?;
        let (name, digest) = (shown::path(&read.file).to_string(), read.digest);
        let adapters = lora::formats::adapters(read.lora.modules)?;
        adapters.check(base.denoiser.linears())?;
        let of_a_window = adapters.adapters().iter().find(|a| a.kernel.is_some());
        if let Some(adapter) = of_a_window {
            return Err(Error::Experiment {
                file: experiment.file.clone(),
                what: format!(
                    "train.training_adapter: {name} is on the convolution `{}`; expected linears alone",
                    adapter.name
                ),
            });
        }
        monitor.note(&format!(
            "training above {name} ({}), {}, which is left out of previews and of the LoRA; in a long training a distillation wears off all the same",
            digest.short(),
            shown::counted(adapters.adapters().len(), "module")
        ));
        Ok(Some(Self { adapters, digest }))
    }

    /// Bytes that it takes beside the denoiser.
    pub(super) fn bytes(&self, dtype: DType) -> u64 {
        (self.adapters.values().len() * dtype.size_in_bytes()) as u64
    }

    /// A denoiser above it.
    ///
    /// # Errors
    /// If the device has no room for it.
    pub(super) fn beneath<'a>(&self, denoiser: &'a dyn Denoiser) -> Result<Above<'a>> {
        let (dtype, device) = (denoiser.dtype(), denoiser.device());
        Ok(Above {
            beneath: Beneath::new(&self.adapters, dtype, device)?,
            denoiser,
        })
    }
}

/// A denoiser above a training adapter.
pub(super) struct Above<'a> {
    denoiser: &'a dyn Denoiser,
    beneath: Beneath,
}

impl Denoiser for Above<'_> {
    fn forward(
        &self,
        tape: &Tape,
        adapters: &Bound,
        latents: &Value,
        timesteps: &Tensor,
        conditioning: &ConditioningTensors,
    ) -> Result<Value> {
        let adapters = adapters.clone().over(&self.beneath);
        self.denoiser
            .forward(tape, &adapters, latents, timesteps, conditioning)
    }

    fn dtype(&self) -> DType {
        self.denoiser.dtype()
    }

    fn device(&self) -> &Device {
        self.denoiser.device()
    }

    fn kernels(&self) -> &Kernels {
        self.denoiser.kernels()
    }
}

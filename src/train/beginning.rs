//! Where a run begins, before anything long is done for it.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::batches::Batches;
use super::checkpoint::State;
use super::checkpoints::Checkpoints;
use super::identity::Identity;
use super::length::Length;
use super::output::{CHECKPOINTS, Needs};
use super::results::save_dtype;
use super::resume::Wanted;
use super::run::first_adapters;
use super::start::Start;
use super::{Error, TrainOptions, TrainingSet};
use crate::base_model::BaseModel;
use crate::convert::provenance::StartedFrom;
use crate::digest::Digest;
use crate::experiment::{Experiment, LoraDigests, Settings};
use crate::lora::AdapterSet;
use crate::models::{Placement, WeightStorage};
use crate::monitor::Monitor;

/// Where a run begins and how long it is, all of it known before the base model is loaded.
pub(super) struct Beginning {
    /// The layout of the adapters, with the numbers of the start or of the checkpoint.
    pub(super) adapters: AdapterSet,
    /// The optimizer's state in the checkpoint, if the run goes on from one.
    pub(super) optimizer: Option<BTreeMap<String, Tensor>>,
    pub(super) state: State,
    pub(super) checkpoints: Checkpoints,
    pub(super) batches: Batches,
    pub(super) length: Length,
    /// The LoRAs that the training started from, the last first.
    pub(super) from: Vec<StartedFrom>,
}

/// What decides how numbers are rounded, in words. Written into checkpoints and LoRAs.
fn computed(placement: &Placement) -> String {
    let kernels = &placement.kernels;
    let device = match placement.device {
        Device::Cpu => "on a CPU",
        _ if kernels.have_cudnn() => "on a GPU by own kernels and cuDNN",
        _ if kernels.are_there() => "on a GPU by own kernels",
        _ => "on a GPU",
    };
    // Weights that are read from their files are the same numbers as whole ones: only quantization counts.
    let quantized = match placement.storage {
        WeightStorage::Quantized(quantization) => {
            format!(", weights in {quantization:?}").to_lowercase()
        }
        WeightStorage::Fp8 { .. } => ", products in fp8".to_owned(),
        _ => String::new(),
    };
    format!("{device} in {}{quantized}", placement.dtype.as_str())
}

impl Beginning {
    /// Finds where the run in `output` begins: at its newest sound checkpoint, or at step 0, as it does without looking where `is_first` says
    /// that another rank looks. `denoiser` is the digest of its weights, `start` the LoRA that the training starts from, `training_adapter`
    /// that beneath it.
    pub(super) fn find(
        experiment: &Experiment,
        base: &BaseModel,
        set: &TrainingSet<'_>,
        (denoiser, start, training_adapter): (Digest, Option<Start>, Option<Digest>),
        (output, is_first): (&Path, bool),
        options: (&TrainOptions, &Placement),
        monitor: &dyn Monitor,
    ) -> Result<Self, Error> {
        let train = &base.settings.train;
        let (options, placement) = options;
        let batches = Batches::new(&set.buckets(), train.batch_size, train.seed);
        let length = Length::new(train, batches.num_per_epoch(), &experiment.file)?;
        if let Some(told) = length.told(train, batches.num_per_epoch()) {
            monitor.note(&told);
        }
        let mut adapters = first_adapters(base, start.as_ref())?;
        let loras = LoraDigests {
            start: start.as_ref().map(|start| start.digest),
            training_adapter,
        };
        let identity = Identity::new(experiment, base, set, (denoiser, loras, &adapters), length)?;
        let mut checkpoints = Checkpoints::new(&output.join(CHECKPOINTS), train.keep_checkpoints);
        let wanted = Wanted {
            experiment,
            train,
            identity,
            loras,
            length,
            computed: computed(placement),
        };
        let found = match options.restart || !is_first {
            true => None,
            false => wanted.find(&mut checkpoints, monitor)?,
        };
        let mut state = State {
            step: 0,
            identity: wanted.identity,
            computed: wanted.computed,
            history: Vec::new(),
        };
        let mut optimizer = None;
        if let Some(found) = found {
            adapters.set_values(found.checkpoint.parameters.to_vec1()?)?;
            (state.step, state.history) = (found.checkpoint.state.step, found.history);
            optimizer = Some(found.checkpoint.optimizer);
        }
        Ok(Self {
            adapters,
            optimizer,
            state,
            checkpoints,
            batches,
            length,
            from: start.map(|start| start.from).unwrap_or_default(),
        })
    }

    /// Bytes that the run will write.
    pub(super) fn needs(&self, settings: &Settings) -> Result<Needs, Error> {
        let numbers = self.adapters.values().len();
        let optimizer = settings.train.optimizer.state_bytes(numbers);
        let each = save_dtype(settings.adapter.save_precision).size();
        let left = self.length.steps.saturating_sub(self.state.step);
        let writes = match settings.train.checkpoint_every {
            0 => left.min(1),
            every => left.div_ceil(every),
        };
        let there = self.checkpoints.count()? as u64;
        // At least one comes before any goes.
        let at_once = writes.min(self.checkpoints.most().saturating_sub(there).max(1));
        Ok(Needs {
            checkpoint: (numbers * 4 + optimizer) as u64,
            checkpoints: at_once,
            lora: (numbers * each) as u64,
        })
    }
}

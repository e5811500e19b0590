//! What a training writes: checkpoints, previews, dumped steps, and the LoRA.

use std::path::{Path, PathBuf};

use super::Error;
use super::checkpoint::{Checkpoint, State};
use super::metadata::training;
use super::metrics::Metrics;
use super::output::{PREVIEW, PREVIEWS};
use super::run::Run;
use super::step::Dump;
use crate::autograd::Tape;
use crate::cache::tensors;
use crate::convert::provenance::{Course, Provenance};
use crate::diffusion::Prediction;
use crate::experiment::{Precision, Settings, TrainSettings};
use crate::lora::{self, FileOptions, SaveDtype, metadata::FileInfo};
use crate::sample;
use crate::sample::networks::{Network, beside, stages};
use crate::sample::previews::{self, ClipRow, ClipSheet, KeptFrames};
use crate::store;

/// The type of a LoRA's numbers in its file.
pub(super) fn save_dtype(precision: Precision) -> SaveDtype {
    match precision {
        Precision::F32 => SaveDtype::F32,
        Precision::F16 => SaveDtype::F16,
        Precision::Bf16 => SaveDtype::Bf16,
    }
}

/// The name of a training's LoRA.
pub(super) fn lora_file(train: &TrainSettings) -> String {
    format!("{}.safetensors", train.name)
}

impl Run<'_> {
    /// Samples the prompts with the adapters as they are, into `previews/` and TensorBoard.
    pub(super) fn preview(&self, metrics: &mut Metrics, step: u64) -> Result<(), Error> {
        let (tape, dtype) = (Tape::off(self.denoiser.kernels()), self.denoiser.dtype());
        let bound = self.adapters.bind_to(&self.values, &tape, dtype, None)?;
        let from = (self.base, self.set.source());
        let other = self.base.other_expert()?;
        let beside = other.as_ref().map(|other| beside(other, self.denoiser));
        let stages = stages(self.base, Network::Loaded(self.denoiser, &bound), beside);
        let prompts = &self.base.settings.sample.prompts;
        let mut made = vec![KeptFrames::default(); prompts.len()];
        let mut take = |number: usize, frame| made[number].push(&frame);
        let on = (self.denoiser.device(), self.denoiser.kernels());
        let references = self.set.previews();
        let made_all = previews::pictures(from, references, &stages, on, &|| (), &mut take);
        made_all.map_err(|error| match error {
            sample::Error::NotFinite { what, .. } => {
                self.diverged(step, format!("previews: {what} NaN or infinite"))
            }
            other => other.into(),
        })?;
        let mut rows = ClipRow::beside(prompts, &self.references);
        for (row, frames) in rows.iter_mut().zip(made) {
            row.columns.push(frames);
        }
        let heads: &[&str] = match self.references.is_empty() {
            true => &[],
            false => &["reference", "preview"],
        };
        let sheet = ClipSheet {
            title: &format!("step {step}"),
            heads,
            rows: &rows,
        };
        let (end, bytes) = sheet.file(self.base.settings.sample.rate)?;
        // Eight digits: file names sort as steps do.
        let path = self
            .output
            .join(PREVIEWS)
            .join(format!("{PREVIEW}{step:08}.{end}"));
        store::write_file(&path, &[&bytes])?;
        // TensorBoard plays nothing: it gets the frame in the middle of a clip.
        let middle = sheet.frame(sheet.count() / 2)?;
        let png = previews::png(&middle)?;
        let size = (middle.width(), middle.height());
        metrics
            .picture(step, "preview", size, &png)
            .map_err(|source| Error::Io { path, source })
    }

    /// Writes a checkpoint, as rank 0.
    pub(super) fn checkpoint(&mut self) -> Result<(), Error> {
        if !self.ranks.is_first() {
            return Ok(());
        }
        let checkpoint = Checkpoint {
            state: State {
                step: self.step,
                ..self.state.clone()
            },
            parameters: self.values.clone(),
            optimizer: self.optimizer.state(),
        };
        // Not kept: the run could not go on from it, and the last one would be the next to be removed.
        if let Some(name) = checkpoint.not_finite()? {
            return Err(Error::NotFinite {
                step: self.step,
                what: format!("the checkpoint's `{name}` has numbers that are"),
            });
        }
        self.checkpoints.write(&checkpoint)?;
        self.kept = self.step;
        Ok(())
    }

    /// Writes the finished LoRA and gives its path.
    pub(super) fn save_lora(&self) -> Result<PathBuf, Error> {
        let (settings, adapters) = (&self.base.settings, self.adapters_now()?);
        let provenance = Provenance::new(
            self.experiment,
            self.base,
            self.state.identity.denoiser,
            self.state.identity.manifest,
            Course {
                step: self.step,
                computed: &self.state.computed,
                history: &self.state.history,
                from: &self.from,
                training_adapter: self.training_adapter.map(|adapter| adapter.digest),
            },
        );
        let resolution = self.set.resolution();
        let flavor = self.base.flavor;
        let predicts_v = settings.process.prediction == Prediction::Velocity;
        let base_version = match flavor.base_version {
            // kohya's scripts name what is predicted of Stable Diffusion 1 only.
            "sd_v1" if predicts_v => "sd_v1_v",
            other => other,
        };
        let info = FileInfo {
            architecture: flavor.architecture,
            base_version,
            title: &settings.train.name,
            resolution: (resolution.width, resolution.height),
        };
        let mut metadata = lora::metadata::standard(&adapters, &info);
        metadata.extend(training(settings, self.set, self.length, self.step));
        provenance.write(&mut metadata);
        let options = FileOptions {
            component: self.base.denoiser.family.denoiser(),
            dtype: save_dtype(settings.adapter.save_precision),
            metadata,
        };
        let path = self.output.join(lora_file(&settings.train));
        let written = lora::file::write(&adapters, &options).map_err(|error| {
            match settings.adapter.save_precision {
                Precision::F16 => Error::SavePrecision(error),
                Precision::F32 | Precision::Bf16 => error.into(),
            }
        });
        store::write_file(&path, &[&written?])?;
        Ok(path)
    }

    /// Writes the dump of the step under way, of so many passes.
    pub(super) fn write_dump(&self, dump: &Dump, passes: usize, path: &Path) -> Result<(), Error> {
        let Settings { adapter, train, .. } = &self.base.settings;
        let first = self.adapters.adapters().first();
        let facts = [
            // Written within the step, before it is counted.
            ("step", (self.step + 1).to_string()),
            ("micro_batches", passes.to_string()),
            ("rank", first.map_or(0, |adapter| adapter.rank).to_string()),
            (
                "alpha",
                first.map_or(0.0, |adapter| adapter.alpha).to_string(),
            ),
            ("dropout", adapter.dropout.to_string()),
            ("seed", train.seed.to_string()),
            ("family", self.base.denoiser.family.name.to_owned()),
        ];
        let metadata = facts.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        Ok(tensors::write_safetensors(path, dump.tensors(), &metadata)?)
    }
}

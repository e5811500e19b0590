//! The loop: steps, and what happens between them.

use std::path::PathBuf;

use candle_core::{DType, Device};

use super::batches::Batches;
use super::checkpoint::{Checkpoint, State};
use super::inputs::{self, DrawOptions};
use super::metadata::training;
use super::metrics::{Line, Metrics};
use super::provenance::{self, Provenance};
use super::step::{Dump, Pass};
use super::{Error, Pair, TrainOptions, TrainReport, TrainingSet, VALIDATION_SIGMAS};
use crate::autograd::Tape;
use crate::base::Base;
use crate::diffusion::{TimestepSampling, TimestepSpec};
use crate::digest::{self, Digest, Fingerprint};
use crate::experiment::{Experiment, LrDecay, Precision};
use crate::lora::{self, AdapterSet, Bound, FileOptions, SaveDtype, metadata::FileInfo};
use crate::models::Denoiser;
use crate::monitor::Monitor;
use crate::optim::{AdamW, AdamWOptions, Decay, LrSchedule, clip_gradient_norm};
use crate::sample::sheet::{Row, contact_sheet};
use crate::{payload, preview, store};

/// What a model that is told its guidance is told in training: scale 1, as if there were none. A LoRA trained so is
/// sampled at the usual scale.
const TRAINING_GUIDANCE: f64 = 1.0;

/// A training under way.
pub(super) struct Run<'a> {
    experiment: &'a Experiment,
    base: &'a Base,
    set: &'a TrainingSet<'a>,
    denoiser: &'a dyn Denoiser,
    state: State,
    pub(super) step: u64,
    pub(super) adapters: AdapterSet,
    optimizer: AdamW,
    schedule: LrSchedule,
    pub(super) batches: Batches,
    draws: DrawOptions,
    output: PathBuf,
    recent: Vec<f64>,
    validation_loss: Option<f64>,
}

impl<'a> Run<'a> {
    pub(super) fn start(
        experiment: &'a Experiment,
        base: &'a Base,
        set: &'a TrainingSet<'a>,
        denoiser: &'a dyn Denoiser,
        denoiser_digest: Digest,
        options: &TrainOptions,
    ) -> Result<Self, Error> {
        let train = &experiment.raw.train;
        let mut adapters = new_adapters(experiment, base, denoiser)?;
        let layout: Vec<_> = adapters
            .tensors()
            .map(|(name, shape, _)| (name, shape))
            .collect();
        let state = State {
            step: 0,
            training: experiment.training_fingerprint()?,
            denoiser: denoiser_digest,
            manifest: set.manifest(),
            layout: Fingerprint::of(&layout)?,
        };
        let output = experiment.output_path();
        let adamw = AdamWOptions {
            beta1: train.beta1,
            beta2: train.beta2,
            epsilon: train.epsilon,
            weight_decay: train.weight_decay,
        };
        let mut optimizer = AdamW::new(adamw, adapters.values().len());
        let mut step = 0;
        if !options.restart
            && let Some(found) = Checkpoint::newest(&output.join("checkpoints"), &state)?
        {
            step = found.state.step;
            adapters.set_values(found.parameters)?;
            optimizer = AdamW::from_state(adamw, step, found.first_moment, found.second_moment);
        }
        Ok(Self {
            batches: Batches::new(&set.buckets(), train.batch_size, train.seed),
            schedule: schedule(experiment),
            draws: draw_options(experiment, base),
            recent: Vec::new(),
            validation_loss: None,
            experiment,
            base,
            set,
            denoiser,
            state,
            step,
            adapters,
            optimizer,
            output,
        })
    }

    /// The loop.
    pub(super) fn go(
        &mut self,
        options: &TrainOptions,
        monitor: &dyn Monitor,
    ) -> Result<TrainReport, Error> {
        let train = &self.experiment.raw.train;
        let resumed_from = self.step;
        let last = options
            .stop_after
            .map_or(train.steps, |n| train.steps.min(resumed_from + n));
        let due = |every: u64, step: u64| every > 0 && step.is_multiple_of(every);
        let io = |path: &PathBuf, source| Error::Io {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(&self.output).map_err(|e| io(&self.output, e))?;
        let mut metrics = Metrics::open(&self.output, self.step, options.clock)
            .map_err(|e| io(&self.output, e))?;
        if self.step == 0 {
            self.report(
                &mut metrics,
                0,
                train.validate_every > 0,
                train.sample_every > 0,
                monitor,
            )?;
        }
        monitor.start("training", Some(train.steps));
        monitor.advance(self.step);
        while self.step < last {
            let started = (options.clock)();
            let dump = options
                .dump_step
                .as_ref()
                .filter(|(step, _)| *step == self.step + 1);
            let (loss, gradient_norm) = self.advance(dump.map(|(_, path)| path))?;
            let learning_rate = self.schedule.at(self.step - 1);
            let seconds = (options.clock)() - started;
            metrics
                .tell(&Line::Step {
                    step: self.step,
                    loss,
                    learning_rate,
                    gradient_norm,
                    seconds,
                })
                .map_err(|e| io(&self.output, e))?;
            monitor.advance(1);
            monitor.status(&format!(
                "loss {:.4}, {seconds:.2} s/step",
                mean(&self.recent).unwrap_or(loss)
            ));
            let end = self.step == train.steps;
            let (validate, preview) = (
                due(train.validate_every, self.step),
                due(train.sample_every, self.step),
            );
            self.report(&mut metrics, self.step, validate, preview, monitor)?;
            if end || self.step == last || due(train.checkpoint_every, self.step) {
                self.checkpoint()?;
            }
        }
        monitor.finish();
        let lora = if self.step == train.steps {
            Some(self.save_lora()?)
        } else {
            None
        };
        Ok(TrainReport {
            lora,
            step: self.step,
            resumed_from,
            loss: mean(&self.recent),
            validation_loss: self.validation_loss,
            modules: self.adapters.adapters().len(),
            parameters: self.adapters.values().len(),
            pictures: self.set.num_pictures(),
        })
    }

    /// One optimizer step; gives its loss and the gradient's norm before clipping.
    fn advance(&mut self, dump: Option<&PathBuf>) -> Result<(f64, f64), Error> {
        let train = &self.experiment.raw.train;
        let accumulation = train.gradient_accumulation as u64;
        let mut gradient = vec![0f32; self.adapters.values().len()];
        let mut record = dump.map(|_| Dump::default());
        let (mut loss, mut passes) = (0.0, 0);
        for micro in 0..accumulation {
            let index = self.step * accumulation + micro;
            let pairs: Vec<&Pair> = self
                .batches
                .get(index)
                .iter()
                .map(|&s| self.set.pair(s))
                .collect();
            let parts = inputs::micro_batch(self.set.source(), &pairs, index, &self.draws)?;
            for (place, part) in parts.iter().enumerate() {
                let share = part.share / accumulation as f64;
                let result =
                    self.pass()
                        .backward(part, index << 16 | place as u64, share, &mut gradient)?;
                loss += result.loss * share;
                if let Some(record) = &mut record {
                    record.add(passes, part, &result)?;
                }
                passes += 1;
            }
        }
        if !loss.is_finite() {
            return Err(Error::Diverged {
                step: self.step + 1,
                loss,
            });
        }
        if let (Some(mut record), Some(path)) = (record, dump) {
            record.add_adapters(&self.adapters, &gradient)?;
            self.write_dump(&record, passes, path)?;
        }
        let max_norm = Some(train.max_grad_norm).filter(|n| *n > 0.0);
        let norm = clip_gradient_norm(&mut gradient, max_norm);
        let rate = self.schedule.at(self.step);
        self.optimizer
            .step(self.adapters.values_mut(), &gradient, rate);
        self.step += 1;
        self.recent.push(loss);
        if self.recent.len() > 20 {
            self.recent.remove(0);
        }
        Ok((loss, norm))
    }

    fn pass(&self) -> Pass<'_> {
        Pass {
            denoiser: self.denoiser,
            adapters: &self.adapters,
            dropout: (
                self.experiment.raw.adapter.dropout,
                self.experiment.raw.train.seed,
            ),
            checkpointing: self.experiment.raw.train.gradient_checkpointing,
        }
    }

    /// Validation and previews.
    fn report(
        &mut self,
        metrics: &mut Metrics,
        step: u64,
        validate: bool,
        preview: bool,
        monitor: &dyn Monitor,
    ) -> Result<(), Error> {
        let io = |source| Error::Io {
            path: self.output.clone(),
            source,
        };
        if validate && !self.set.held_out().is_empty() {
            let losses = self.validate()?;
            let loss = mean(&losses).unwrap_or_default();
            let line = Line::Validation {
                step,
                loss,
                sigmas: VALIDATION_SIGMAS.to_vec(),
                losses,
            };
            metrics.tell(&line).map_err(io)?;
            monitor.note(&format!("step {step}: validation loss {loss:.5}"));
            self.validation_loss = Some(loss);
        }
        if preview {
            self.preview(metrics, step)?;
        }
        Ok(())
    }

    /// The mean loss over the held-out pairs at each of [`VALIDATION_SIGMAS`], with noise that never changes.
    fn validate(&self) -> Result<Vec<f64>, Error> {
        let mut losses = Vec::new();
        for level in VALIDATION_SIGMAS
            .iter()
            .copied()
            .enumerate()
            .map(|(i, s)| (i as u64, s))
        {
            let mut sum = 0.0;
            for (number, pair) in self.set.held_out().iter().enumerate() {
                let source = self.set.source();
                let part =
                    inputs::validation_part(source, pair, number as u64, level, &self.draws)?;
                sum += self.pass().loss(&part)?;
            }
            losses.push(sum / self.set.held_out().len() as f64);
        }
        Ok(losses)
    }

    fn preview(&self, metrics: &mut Metrics, step: u64) -> Result<(), Error> {
        let bound: Bound = self
            .adapters
            .bind(&Tape::off(), DType::F32, &Device::Cpu, None)?;
        let pictures = preview::pictures(
            self.experiment,
            self.base,
            self.set.source(),
            self.denoiser,
            &bound,
            &|| (),
        )?;
        let rows: Vec<Row> = pictures
            .into_iter()
            .map(|(label, p)| Row {
                label,
                pictures: vec![p],
            })
            .collect();
        let sheet = contact_sheet(&format!("step {step}"), &[], &rows);
        let png = preview::png(&sheet)?;
        let path = self
            .output
            .join("previews")
            .join(format!("step-{step:08}.png"));
        store::write_file(&path, &[&png])?;
        let size = (sheet.width(), sheet.height());
        metrics
            .picture(step, "preview", size, &png)
            .map_err(|source| Error::Io { path, source })
    }

    fn checkpoint(&self) -> Result<(), Error> {
        let (first, second) = self.optimizer.moments();
        let checkpoint = Checkpoint {
            state: State {
                step: self.step,
                ..self.state.clone()
            },
            parameters: self.adapters.values().to_vec(),
            first_moment: first.to_vec(),
            second_moment: second.to_vec(),
        };
        checkpoint.write(
            &self.output.join("checkpoints"),
            self.experiment.raw.train.keep_checkpoints,
        )?;
        Ok(())
    }

    fn save_lora(&self) -> Result<PathBuf, Error> {
        let raw = &self.experiment.raw;
        let provenance = Provenance::new(
            self.experiment,
            self.base,
            self.state.denoiser,
            self.state.manifest,
            self.step,
        );
        let info = FileInfo {
            architecture: self.base.flavor.architecture,
            base_version: self.base.flavor.base_version,
            title: &raw.train.name,
            resolution: (self.set.resolution_px(), self.set.resolution_px()),
        };
        let mut metadata = lora::metadata::standard(&self.adapters, &info);
        let process = &self.base.process;
        metadata.extend(training(self.experiment, self.set, process, self.step));
        let text = serde_json::to_string(&provenance)
            .map_err(|e| digest::Error::NoCanonicalForm(e.to_string()))?;
        metadata.insert(provenance::METADATA_KEY.to_owned(), text);
        let options = FileOptions {
            component: self.base.family.lora_component(),
            dtype: match raw.adapter.save_precision {
                Precision::F32 => SaveDtype::F32,
                Precision::F16 => SaveDtype::F16,
                Precision::Bf16 => SaveDtype::Bf16,
            },
            metadata,
        };
        let path = self.output.join(format!("{}.safetensors", raw.train.name));
        store::write_file(&path, &[&lora::file::write(&self.adapters, &options)?])?;
        Ok(path)
    }

    fn write_dump(&self, dump: &Dump, passes: usize, path: &std::path::Path) -> Result<(), Error> {
        let raw = &self.experiment.raw;
        let facts = [
            ("step", (self.step + 1).to_string()),
            ("micro_batches", passes.to_string()),
            ("rank", raw.adapter.rank.to_string()),
            (
                "alpha",
                raw.adapter
                    .alpha
                    .unwrap_or(raw.adapter.rank as f64)
                    .to_string(),
            ),
            ("dropout", raw.adapter.dropout.to_string()),
            ("seed", raw.train.seed.to_string()),
            ("family", self.base.family.name().to_owned()),
        ];
        let metadata = facts.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        Ok(payload::write_safetensors(path, dump.tensors(), &metadata)?)
    }
}

fn new_adapters(
    experiment: &Experiment,
    base: &Base,
    denoiser: &dyn Denoiser,
) -> Result<AdapterSet, Error> {
    let adapter = &experiment.raw.adapter;
    let presets = base.family.presets();
    let targets = match adapter.targets.is_empty() {
        true => presets
            .first()
            .map(|p| p.name.to_owned())
            .into_iter()
            .collect(),
        false => adapter.targets.clone(),
    };
    let linears = lora::targets::select(denoiser.linears(), &targets, presets)?;
    let alpha = adapter.alpha.unwrap_or(adapter.rank as f64);
    Ok(AdapterSet::new(
        &linears,
        adapter.rank,
        alpha,
        experiment.raw.train.seed,
    )?)
}

fn schedule(experiment: &Experiment) -> LrSchedule {
    let train = &experiment.raw.train;
    LrSchedule {
        peak: train.learning_rate,
        warmup_steps: train.warmup_steps,
        total_steps: train.steps,
        decay: match train.lr_schedule {
            LrDecay::Constant => Decay::Constant,
            LrDecay::Cosine => Decay::Cosine,
            LrDecay::Linear => Decay::Linear,
        },
    }
}

fn draw_options(experiment: &Experiment, base: &Base) -> DrawOptions {
    let train = &experiment.raw.train;
    DrawOptions {
        seed: train.seed,
        timesteps: TimestepSpec {
            sampling: train
                .timestep_sampling
                .unwrap_or(TimestepSampling::LogitNormal),
            logit_mean: train.logit_mean,
            logit_std: train.logit_std,
            mode_scale: train.mode_scale,
            shift: train.shift.unwrap_or(base.flavor.shift),
        },
        process: base.process,
        weighting: train.loss_weighting,
        min_snr_gamma: train.min_snr_gamma,
        noise_offset: train.noise_offset,
        size_conditioning: base.flavor.size_conditioning,
        told_guidance: base
            .flavor
            .told_guidance
            .map(|_| train.guidance.unwrap_or(TRAINING_GUIDANCE)),
        caption_dropout: train.caption_dropout,
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

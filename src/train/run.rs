//! The loop: steps, and what happens between them.

use std::path::PathBuf;

use candle_core::Tensor;

use super::batches::Batches;
use super::beginning::Beginning;
use super::checkpoint::State;
use super::checkpoints::Checkpoints;
use super::inputs::{DenoiserBatch, DrawOptions, HeldOut};
use super::length::Length;
use super::loader::Loader;
use super::metrics::{Metrics, MetricsLine};
use super::output::OutputFolder;
use super::plan::MemoryPlan;
use super::start::Start;
use super::step::{Dump, Pass};
use super::training_adapter::TrainingAdapter;
use super::{Error, TrainOptions, TrainReport, TrainingSet, VALIDATION_SIGMAS};
use crate::base_model::BaseModel;
use crate::convert::provenance::StartedFrom;
use crate::experiment::{Experiment, TrainSettings};
use crate::lora::{self, AdapterSet, LinearShape};
use crate::models::Denoiser;
use crate::monitor::Monitor;
use crate::optim::{LrSchedule, Optimizer, clip_gradient_norm};

/// Steps whose losses are averaged for what is shown and reported: a single step's loss jumps with its noise level.
const RECENT_STEPS: usize = 20;

/// The base model; it above its training adapter, or again where there is none; and that adapter.
pub(super) type Denoisers<'a> = (
    &'a dyn Denoiser,
    &'a dyn Denoiser,
    Option<&'a TrainingAdapter>,
);

/// A training under way.
pub(super) struct Run<'a> {
    pub(super) experiment: &'a Experiment,
    pub(super) base: &'a BaseModel,
    pub(super) set: &'a TrainingSet<'a>,
    pub(super) denoiser: &'a dyn Denoiser,
    /// The same above its training adapter: what steps and validations are of.
    pub(super) trained: &'a dyn Denoiser,
    pub(super) training_adapter: Option<&'a TrainingAdapter>,
    /// What checkpoints say, their step aside.
    pub(super) state: State,
    pub(super) checkpoints: Checkpoints,
    pub(super) length: Length,
    /// The LoRAs that the training started from, the last first.
    pub(super) from: Vec<StartedFrom>,
    /// Optimizer steps done.
    pub(super) step: u64,
    /// The adapters' layout in `values`. Their own numbers are those of the start and not updated.
    pub(super) adapters: AdapterSet,
    /// The adapters' numbers, `[n]` in f32 on the denoiser's device, updated in place by each step.
    pub(super) values: Tensor,
    pub(super) optimizer: Optimizer,
    pub(super) schedule: LrSchedule,
    pub(super) batches: Batches,
    pub(super) draws: DrawOptions,
    pub(super) plan: MemoryPlan,
    pub(super) output: PathBuf,
    /// Losses of the last steps, at most [`RECENT_STEPS`].
    pub(super) recent: Vec<f64>,
    pub(super) validation_loss: Option<f64>,
}

impl<'a> Run<'a> {
    pub(super) fn start(
        experiment: &'a Experiment,
        base: &'a BaseModel,
        set: &'a TrainingSet<'a>,
        (denoiser, trained, training_adapter): Denoisers<'a>,
        plan: MemoryPlan,
        output: &OutputFolder,
        beginning: Beginning,
    ) -> Result<Self, Error> {
        let train = &base.settings.train;
        let Beginning {
            adapters,
            optimizer,
            state,
            checkpoints,
            batches,
            length,
            from,
        } = beginning;
        let (device, count) = (denoiser.device(), adapters.values().len());
        let optimizer = match optimizer {
            None => Optimizer::new(train.optimizer, count, device)?,
            Some(found) => {
                Optimizer::from_state(train.optimizer, count, state.step, &found, device)?
            }
        };
        Ok(Self {
            values: adapters.to_device(device)?,
            schedule: length.schedule(train),
            draws: DrawOptions::of(base),
            recent: Vec::new(),
            validation_loss: None,
            step: state.step,
            output: output.path.clone(),
            from,
            experiment,
            base,
            set,
            denoiser,
            trained,
            training_adapter,
            state,
            checkpoints,
            length,
            adapters,
            optimizer,
            batches,
            plan,
        })
    }

    /// Micro-batches in an epoch.
    pub(super) fn num_per_epoch(&self) -> u64 {
        self.batches.num_per_epoch()
    }

    /// Trains until the last step, or the last of this call, with the reports and checkpoints that are due.
    pub(super) fn go(
        &mut self,
        options: &TrainOptions,
        monitor: &dyn Monitor,
    ) -> Result<TrainReport, Error> {
        let train: &'a TrainSettings = &self.base.settings.train;
        let (resumed_from, steps) = (self.step, self.length.steps);
        let last = options
            .stop_after
            .map_or(steps, |n| steps.min(resumed_from.saturating_add(n)));
        let mut metrics =
            Metrics::open(&self.output, self.step, options.clock, monitor).map_err(|source| {
                Error::Io {
                    path: self.output.clone(),
                    source,
                }
            })?;
        // The base model alone (B is 0 at the start), or with the LoRA that the training starts from: what later validations and previews are compared with.
        if self.step == 0 {
            self.report(
                &mut metrics,
                0,
                train.validate_every > 0,
                train.sample_every > 0,
                monitor,
            )?;
        }
        monitor.start("training", Some(steps));
        monitor.advance(self.step);
        // Counted over the whole run, so that a resumed one draws what the uninterrupted one would have drawn.
        let each = train.gradient_accumulation as u64;
        let (mut batches, set) = (self.batches.clone(), self.set);
        let numbers = self.step * each..last * each;
        let batches = numbers.map(move |number| (number, batches.get(number).to_vec()));
        let draws = self.draws.clone();
        Loader::with(set, batches, &draws, |loader| {
            while self.step < last {
                self.one_step(&loader, options, &mut metrics, last, monitor)?;
            }
            Ok::<_, Error>(())
        })?;
        monitor.finish();
        let lora = if self.step == steps {
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
            pictures: self.set.items().len(),
            pairs: self.set.pairs(),
            captions: self.set.truncated().to_vec(),
        })
    }

    /// One optimizer step, with what is due after it.
    fn one_step(
        &mut self,
        loader: &Loader,
        options: &TrainOptions,
        metrics: &mut Metrics,
        last: u64,
        monitor: &dyn Monitor,
    ) -> Result<(), Error> {
        let train: &'a TrainSettings = &self.base.settings.train;
        let started = (options.clock)();
        let micro_batches = (0..train.gradient_accumulation)
            .map(|_| loader.next())
            .collect::<Result<Vec<_>, _>>()?;
        // Not below 0 where somebody sets the clock.
        let waited = ((options.clock)() - started).max(0.0);
        let dump = options
            .dump_step
            .as_ref()
            .filter(|(step, _)| *step == self.step + 1);
        let (loss, gradient_norm) = self.advance(&micro_batches, dump.map(|(_, path)| path))?;
        let seconds = ((options.clock)() - started).max(0.0);
        let line = MetricsLine::Step {
            step: self.step,
            loss,
            // `advance` has counted the step already.
            learning_rate: self.schedule.at(self.step - 1),
            gradient_norm,
            seconds,
            waited,
        };
        metrics.write(&line).map_err(|source| Error::Io {
            path: self.output.clone(),
            source,
        })?;
        monitor.advance(1);
        monitor.status(&format!(
            "loss {:.4}, {seconds:.2} s/step",
            mean(&self.recent).unwrap_or(loss)
        ));
        let due = |every: u64| every > 0 && self.step.is_multiple_of(every);
        let (validate, preview) = (due(train.validate_every), due(train.sample_every));
        // Also where `stop_after` ends the call: no step is done twice.
        let checkpoint = self.step == last || due(train.checkpoint_every);
        // Before the checkpoint: a run killed in between repeats the step and with it its validation.
        self.report(metrics, self.step, validate, preview, monitor)?;
        if checkpoint {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// One optimizer step; gives its loss and the gradient's norm before clipping.
    fn advance(
        &mut self,
        micro_batches: &[Vec<DenoiserBatch>],
        dump: Option<&PathBuf>,
    ) -> Result<(f64, f64), Error> {
        let train: &'a TrainSettings = &self.base.settings.train;
        let accumulation = micro_batches.len() as u64;
        let gradient = self.values.zeros_like()?;
        let mut record = dump.map(|_| Dump::default());
        let (mut loss, mut passes) = (0.0, 0);
        for (number, batches) in (self.step * accumulation..).zip(micro_batches) {
            for (index, batch) in batches.iter().enumerate() {
                let share = batch.share / accumulation as f64;
                // Unique in the run: a micro-batch has at most as many batches as samples, far below 2^16.
                let pass = number << 16 | index as u64;
                let result = self.pass().backward(batch, pass, share, &gradient)?;
                loss += result.loss * share;
                if let Some(record) = &mut record {
                    record.add(passes, batch, &result)?;
                }
                passes += 1;
            }
        }
        // Before the update: the adapters and their last checkpoint stay usable.
        if !loss.is_finite() {
            return Err(Error::Diverged {
                step: self.step + 1,
                loss,
            });
        }
        if let (Some(mut record), Some(path)) = (record, dump) {
            record.add_adapters(&self.adapters_now()?, &gradient.to_vec1()?)?;
            if let Some(beneath) = self.training_adapter {
                record.add_beneath(&beneath.adapters)?;
            }
            self.write_dump(&record, passes, path)?;
        }
        // 0 means no clipping, as in kohya's scripts.
        let max_norm = Some(train.max_grad_norm).filter(|n| *n > 0.0);
        let kernels = self.denoiser.kernels();
        let norm = clip_gradient_norm(kernels, &gradient, max_norm)?;
        if !norm.is_finite() {
            return Err(Error::NotFinite {
                step: self.step + 1,
                what: "the loss is finite, but its gradient is".to_owned(),
            });
        }
        let rate = self.schedule.at(self.step);
        self.optimizer
            .step(kernels, &self.values, &gradient, rate)?;
        self.step += 1;
        self.recent.push(loss);
        if self.recent.len() > RECENT_STEPS {
            self.recent.remove(0);
        }
        Ok((loss, norm))
    }

    fn pass(&self) -> Pass<'_> {
        let settings = &self.base.settings;
        Pass {
            denoiser: self.trained,
            adapters: &self.adapters,
            values: &self.values,
            dropout: (settings.adapter.dropout, settings.train.seed),
            recompute: self.plan.recompute.clone(),
            offload: self.plan.offload,
        }
    }

    /// The adapters with the numbers that they have now.
    pub(super) fn adapters_now(&self) -> Result<AdapterSet, Error> {
        let mut adapters = self.adapters.clone();
        adapters.set_values(self.values.to_vec1()?)?;
        Ok(adapters)
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
            let line = MetricsLine::Validation {
                step,
                loss,
                sigmas: self.draws.validation_levels(),
                losses,
            };
            metrics.write(&line).map_err(io)?;
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
        let mut sums = vec![0.0; VALIDATION_SIGMAS.len()];
        let (source, held_out) = (self.set.source(), self.set.held_out());
        for (number, item) in (0..).zip(held_out) {
            let picture = HeldOut::read(source, item)?;
            for (level, sum) in (0..).zip(VALIDATION_SIGMAS).zip(&mut sums) {
                let batch = picture.batch(number, level, &self.draws)?;
                *sum += self.pass().loss(&batch)?;
            }
        }
        let count = held_out.len() as f64;
        Ok(sums.into_iter().map(|sum| sum / count).collect())
    }
}

/// The linears that an Experiment adapts.
pub(super) fn adapted(base: &BaseModel, start: Option<&Start>) -> Result<Vec<LinearShape>, Error> {
    if let Some(start) = start {
        return Ok(start.linears(base));
    }
    let presets = base.denoiser.family.presets;
    let named = &base.settings.adapter.targets;
    // The family's first preset is its default.
    let targets = match named.is_empty() {
        true => presets
            .first()
            .map(|p| p.name.to_owned())
            .into_iter()
            .collect(),
        false => named.clone(),
    };
    Ok(lora::targets::select(
        base.denoiser.linears(),
        &targets,
        presets,
    )?)
}

/// The linears that the Experiment names; None where it leaves them open.
pub(super) fn named_targets(base: &BaseModel) -> Result<Option<Vec<LinearShape>>, Error> {
    match base.settings.adapter.targets.is_empty() {
        true => Ok(None),
        false => adapted(base, None).map(Some),
    }
}

/// The adapters of an Experiment, with the numbers that a training starts from.
pub(super) fn first_adapters(base: &BaseModel, start: Option<&Start>) -> Result<AdapterSet, Error> {
    if let Some(start) = start {
        return Ok(start.adapters.clone());
    }
    let (adapter, seed) = (&base.settings.adapter, base.settings.train.seed);
    let linears = adapted(base, None)?;
    Ok(AdapterSet::new(
        &linears,
        adapter.rank,
        adapter.alpha,
        seed,
    )?)
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

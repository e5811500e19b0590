//! The loop: steps, and what happens between them.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use super::batches::Batches;
use super::beginning::Beginning;
use super::checkpoint::State;
use super::checkpoints::Checkpoints;
use super::graphs::Graphs;
use super::inputs::DrawOptions;
use super::length::Length;
use super::loader::Loader;
use super::metrics::{Metrics, MetricsLine};
use super::parallel::{Due, places, same_numbers};
use super::plan::MemoryPlan;
use super::start::Start;
use super::training_adapter::TrainingAdapter;
use super::{Error, TrainOptions, TrainReport, TrainingSet};
use crate::base_model::BaseModel;
use crate::convert::provenance::StartedFrom;
use crate::experiment::{Experiment, TrainSettings};
use crate::lora::{self, AdapterSet, LinearShape};
use crate::models::Denoiser;
use crate::monitor::{Monitor, Signal, Stop};
use crate::optim::{LrSchedule, Optimizer};
use crate::ranks::{Ranks, sum::Sums};
use crate::sample::previews::{KeptFrames, shown_references};

/// Steps whose losses are averaged for what is shown and reported: a single step's loss jumps with its noise level.
pub(super) const RECENT_STEPS: usize = 20;

/// The base model; it above its training adapter, or again where there is none; and that adapter.
pub(super) type Denoisers<'a> = (
    &'a dyn Denoiser,
    &'a dyn Denoiser,
    Option<&'a TrainingAdapter>,
);

/// The ranks, how their gradients are summed, and what rank 0 decides for all.
pub(super) struct Together<'a> {
    pub(super) ranks: &'a Ranks,
    pub(super) sums: Sums,
    pub(super) due: Due,
    pub(super) stop: Stop,
}

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
    /// What stands beside each preview; none where previews have no references, or are not made here.
    pub(super) references: Vec<KeptFrames>,
    /// The passes of steps, where the kernels are meant for CUDA graphs.
    pub(super) graphs: RefCell<Option<Graphs>>,
    /// Losses of the last steps, at most [`RECENT_STEPS`].
    pub(super) recent: Vec<f64>,
    pub(super) validation_loss: Option<f64>,
    /// The other processes that train this LoRA, if there are any.
    pub(super) ranks: &'a Ranks,
    pub(super) sums: Sums,
    pub(super) due: Due,
    /// Whether this rank is asked to end.
    pub(super) stop: Stop,
    /// The signal that ends the call after the step under way, the same on all ranks.
    pub(super) stopped: Option<Signal>,
    /// The gradient's norm in the last step of this call; 0 before the first.
    pub(super) norm: f64,
    /// The step of the newest checkpoint.
    pub(super) kept: u64,
}

impl<'a> Run<'a> {
    pub(super) fn start(
        experiment: &'a Experiment,
        base: &'a BaseModel,
        set: &'a TrainingSet<'a>,
        (denoiser, trained, training_adapter): Denoisers<'a>,
        plan: MemoryPlan,
        output: &Path,
        (beginning, together): (Beginning, Together<'a>),
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
        // Read now: a picture that is gone later ends no training.
        let references = match train.sample_every > 0 && together.ranks.is_first() {
            true => shown_references(set.previews(), &base.settings.sample.prompts)?,
            false => Vec::new(),
        };
        Ok(Self {
            references,
            graphs: RefCell::default(),
            values: adapters.to_device(device)?,
            schedule: length.schedule(train),
            draws: DrawOptions::of(base),
            recent: Vec::new(),
            validation_loss: None,
            step: state.step,
            output: output.to_owned(),
            ranks: together.ranks,
            sums: together.sums,
            due: together.due,
            stop: together.stop,
            stopped: None,
            norm: 0.0,
            kept: state.step,
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
        let (graphs, why) = Graphs::of(&self.pass())?;
        self.graphs = RefCell::new(graphs);
        if let Some(why) = why {
            monitor.note(why);
        }
        let (resumed_from, steps, last) = (self.step, self.length.steps, self.due.last);
        let open = || Metrics::open(&self.output, self.step, options.clock, monitor);
        // Rank 0 writes what there is to be written.
        let metrics = self.ranks.is_first().then(open).transpose();
        let mut metrics = metrics.map_err(|source| Error::Io {
            path: self.output.clone(),
            source,
        })?;
        // The base model alone (B is 0 at the start), or with the LoRA that the training starts from: what later validations and previews are compared with.
        if self.step == 0 {
            self.report(
                &mut metrics,
                0,
                self.due.validate_every > 0,
                train.sample_every > 0,
                monitor,
            )?;
        }
        monitor.start("training", Some(steps));
        monitor.advance(self.step);
        // Counted over the whole run, so that a resumed one draws what the uninterrupted one would have drawn.
        let each = train.gradient_accumulation as u64;
        let (mut batches, set) = (self.batches.clone(), self.set);
        let own: Vec<u64> = places(self.ranks, train.gradient_accumulation).collect();
        let numbers = (self.step..last).flat_map(move |step| {
            own.clone()
                .into_iter()
                .map(move |place| step * each + place)
        });
        let batches = numbers.map(move |number| (number, batches.get(number).to_vec()));
        let draws = self.draws.clone();
        Loader::with(set, batches, &draws, |loader| {
            while self.step < last && self.stopped.is_none() {
                self.one_step(&loader, options, &mut metrics, monitor)?;
            }
            Ok::<_, Error>(())
        })?;
        monitor.finish();
        let lora = if self.step == steps && self.ranks.is_first() {
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
            ranks: self.ranks.world(),
            stopped: self.stopped.filter(|_| self.step < last),
        })
    }

    /// One optimizer step, with what is due after it.
    fn one_step(
        &mut self,
        loader: &Loader,
        options: &TrainOptions,
        metrics: &mut Option<Metrics>,
        monitor: &dyn Monitor,
    ) -> Result<(), Error> {
        let train: &'a TrainSettings = &self.base.settings.train;
        let started = (options.clock)();
        let micro_batches = places(self.ranks, train.gradient_accumulation)
            .map(|_| loader.next())
            .collect::<Result<Vec<_>, _>>()?;
        // Not below 0 where somebody sets the clock.
        let waited = ((options.clock)() - started).max(0.0);
        let dump = options
            .dump_step
            .as_ref()
            .filter(|(step, _)| *step == self.step + 1);
        let advanced = self.advance(&micro_batches, dump.map(|(_, path)| path));
        if let Err(Error::Ranks(_)) = &advanced {
            self.keep_before_end(monitor);
        }
        let (loss, gradient_norm) = advanced?;
        for note in (self.graphs.get_mut().iter_mut()).flat_map(Graphs::notes) {
            monitor.note(&note);
        }
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
        self.tell(metrics, &line)?;
        monitor.advance(1);
        monitor.status(&format!(
            "loss {:.4}, {seconds:.2} s/step{}",
            mean(&self.recent).unwrap_or(loss),
            match self.ranks.world() {
                1 => String::new(),
                world => format!(", {world} ranks"),
            }
        ));
        let due = |every: u64| every > 0 && self.step.is_multiple_of(every);
        let (validate, preview) = (due(self.due.validate_every), due(train.sample_every));
        // Also where `stop_after` ends the call: no step is done twice.
        let checkpoint = self.step == self.due.last || due(self.due.checkpoint_every);
        if self.stopped.is_some() {
            // First: who asked for the end may not wait for a validation.
            self.keep(monitor)?;
            return self.report(metrics, self.step, validate, preview, monitor);
        }
        // Before the checkpoint: a run killed in between repeats the step and with it its validation.
        self.report(metrics, self.step, validate, preview, monitor)?;
        if checkpoint {
            self.keep(monitor)?;
        }
        Ok(())
    }

    /// Writes a checkpoint of what all ranks have alike.
    fn keep(&mut self, monitor: &dyn Monitor) -> Result<(), Error> {
        let same = same_numbers(self.ranks, &self.values, self.step);
        if let Err(Error::Ranks(_)) = &same {
            self.keep_before_end(monitor);
        }
        same?;
        self.checkpoint()
    }

    /// Where another rank is gone, the steps that all have done need not be done again.
    fn keep_before_end(&mut self, monitor: &dyn Monitor) {
        if !self.ranks.is_first() || self.step <= self.kept {
            return;
        }
        // What ended the run is what has to be told.
        if self.checkpoint().is_ok() {
            let step = self.step;
            monitor.note(&format!(
                "kept a checkpoint of step {step}, the last that all ranks did"
            ));
        }
    }

    fn tell(&self, metrics: &mut Option<Metrics>, line: &MetricsLine) -> Result<(), Error> {
        let written = metrics.as_mut().map(|metrics| metrics.write(line));
        written.transpose().map(|_| ()).map_err(|source| Error::Io {
            path: self.output.clone(),
            source,
        })
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
        metrics: &mut Option<Metrics>,
        step: u64,
        validate: bool,
        preview: bool,
        monitor: &dyn Monitor,
    ) -> Result<(), Error> {
        if let (true, Some(graphs)) = (validate || preview, self.graphs.get_mut()) {
            graphs.pause()?;
        }
        let losses = match validate && !self.set.held_out().is_empty() {
            true => self.validate()?,
            false => None,
        };
        if let Some(losses) = losses {
            let loss = mean(&losses).unwrap_or_default();
            if !loss.is_finite() {
                return Err(self.diverged(step, format!("the validation loss is {loss}")));
            }
            let line = MetricsLine::Validation {
                step,
                loss,
                sigmas: self.draws.validation_levels(),
                losses,
            };
            self.tell(metrics, &line)?;
            monitor.note(&format!("step {step}: validation loss {loss:.5}"));
            self.validation_loss = Some(loss);
        }
        if let (true, Some(metrics)) = (preview, metrics) {
            self.preview(metrics, step)?;
        }
        Ok(())
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

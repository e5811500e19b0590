//! Where a run begins: at its newest checkpoint that is sound, if that is of this run, or of the same but for its length.

use std::path::Path;

use super::Error;
use super::checkpoint::{self, Checkpoint};
use super::checkpoints::{Checkpoints, Newest};
use super::identity::{Identity, Sides, is_same_but_longer, joined};
use super::length::Length;
use crate::convert::provenance::Stretch;
use crate::experiment::{Experiment, LoraDigests, TrainLength, TrainSettings};
use crate::monitor::Monitor;
use crate::shown;

/// The run that is asked for.
pub(super) struct Wanted<'a> {
    pub(super) experiment: &'a Experiment,
    pub(super) train: &'a TrainSettings,
    pub(super) identity: Identity,
    /// The digests of the LoRAs that its Experiment names.
    pub(super) loras: LoraDigests,
    pub(super) length: Length,
    /// On what and in what type it will be computed, in words.
    pub(super) computed: String,
}

/// A checkpoint of the run that is asked for.
pub(super) struct Resumed {
    pub(super) checkpoint: Checkpoint,
    /// Stretches until its step that the run's LoRA has to tell of.
    pub(super) history: Vec<Stretch>,
}

impl Wanted<'_> {
    /// The checkpoint to go on from, and what there is to say of it; None where there is none.
    ///
    /// # Errors
    /// If none is sound, or it is of another run, or has more steps than are asked for.
    pub(super) fn find(
        &self,
        checkpoints: &mut Checkpoints,
        monitor: &dyn Monitor,
    ) -> Result<Option<Resumed>, Error> {
        let Some(newest) = checkpoints.newest(&self.train.optimizer)? else {
            return Ok(None);
        };
        let before = self.length_of(&newest)?;
        let step = newest.checkpoint.state.step;
        if step > self.length.steps {
            return Err(self.too_short(step));
        }
        for damaged in &newest.damaged {
            monitor.problem(&format!("{damaged}; going on from step {step} instead"));
        }
        if !newest.has_digest {
            monitor.note(&format!(
                "{}: was written by an earlier plumb and carries no digest, so damage in it could not be seen",
                shown::path(&newest.path)
            ));
        }
        let state = &newest.checkpoint.state;
        let mut history = state.history.clone();
        let same_rates = self.length.agrees_until(before, step, self.train);
        if step > 0 && (!same_rates || state.computed != self.computed) {
            history.push(Stretch {
                until: step,
                computed: state.computed.clone(),
                steps: before.steps,
                warmup_steps: before.warmup_steps,
            });
        }
        self.tell(state, before, same_rates, monitor);
        Ok(Some(Resumed {
            checkpoint: newest.checkpoint,
            history,
        }))
    }

    fn tell(
        &self,
        state: &checkpoint::State,
        before: Length,
        same_rates: bool,
        monitor: &dyn Monitor,
    ) {
        let (step, steps) = (state.step, self.length.steps);
        if step == 0 {
            return;
        }
        let longer = match before.steps {
            known if known == steps => String::new(),
            known => format!(", to {steps} steps instead of {known}"),
        };
        monitor.note(&format!("going on after step {step}{longer}"));
        if !same_rates {
            monitor.note(&format!(
                "the learning rates of the steps before were for a training of {} steps: the LoRA will not be that of {steps} steps \
                 from the start, and says so",
                before.steps
            ));
        }
        if state.computed != self.computed {
            monitor.note(&format!(
                "until now this run was computed {}, from here on {}: the steps to come differ in rounding",
                shown::text(&state.computed),
                self.computed
            ));
        }
    }

    /// The length that the checkpoint's run was to have, if it is this run but for that.
    fn length_of(&self, newest: &Newest) -> Result<Length, Error> {
        let state = &newest.checkpoint.state;
        let found = &state.identity;
        // One of an earlier version tells its length by its fingerprint alone: that of this run, or that of a run that is at its end.
        let lengths = [self.length, Length::with(self.train.warmup, state.step)];
        let by_fingerprint = || lengths.into_iter().find(|l| self.is_fingerprint(found, *l));
        let before = found.length().or_else(by_fingerprint);
        let warmup = self.train.warmup;
        let longer = before.is_some_and(|before| is_same_but_longer(before, self.length, warmup));
        let mut found = found.clone();
        if before.is_some() && found.description.is_none() {
            found.training = self.identity.training;
        }
        let files = self.experiment.loras_of_training();
        let sides = Sides {
            files: &files,
            ..Sides::RESUMED
        };
        let differences = found.differences(&self.identity, longer, sides);
        match (before, differences.is_empty()) {
            (Some(before), true) => Ok(before),
            _ => Err(checkpoint::Error::OtherRun {
                path: newest.path.clone(),
                differences: joined(&differences),
            }
            .into()),
        }
    }

    fn is_fingerprint(&self, found: &Identity, length: Length) -> bool {
        let (steps, warmup) = (length.steps, length.warmup_steps);
        let training = self
            .experiment
            .training(steps, warmup, self.loras)
            .fingerprint();
        let first = self.experiment.first_training_fingerprint(steps, warmup);
        found.training == training || Some(found.training) == first
    }

    fn too_short(&self, done: u64) -> Error {
        let steps = self.length.steps;
        let (field, found) = match self.train.length {
            TrainLength::Steps(_) => ("train.steps", format!("{steps}")),
            TrainLength::Epochs(epochs) => {
                ("train.epochs", format!("{epochs}, which come to {steps}"))
            }
        };
        let file: &Path = &self.experiment.file;
        Error::Experiment {
            file: file.into(),
            what: format!(
                "`{field}`: expected at least the {done} steps that the run in `train.output` has done, found {found}; \
                 choose another `train.output`, or start over with --restart"
            ),
        }
    }
}

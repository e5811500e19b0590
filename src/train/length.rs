//! How many steps a training has, and how the learning rate goes along them. An Experiment may say the one in epochs and the
//! warm-up as a share, so both are known only with the data.

use std::path::Path;

use super::Error;
use crate::experiment::{LrDecay, TrainLength, TrainSettings, Warmup};
use crate::optim::{Decay, LrSchedule};
use crate::shown::counted;

/// Micro-batches of a run: a pass of the network is numbered by its micro-batch and 16 bits.
const MAX_MICRO_BATCHES: u64 = 1 << 47;

/// A training's length, in steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Length {
    pub(super) steps: u64,
    pub(super) warmup_steps: u64,
}

impl Length {
    /// The length of a training whose epoch has so many micro-batches.
    ///
    /// # Errors
    /// If it has no steps or too many, or the warm-up has more than there are.
    pub(super) fn new(train: &TrainSettings, per_epoch: u64, file: &Path) -> Result<Self, Error> {
        let wrong = |what: String| Error::Experiment {
            file: file.into(),
            what,
        };
        let each = train.gradient_accumulation as u64;
        if per_epoch == 0 {
            return Err(wrong("there are no pictures to train from".to_owned()));
        }
        let (field, steps) = match train.length {
            TrainLength::Steps(steps) => ("train.steps", Some(steps)),
            // Rounded up: every picture is seen in every epoch.
            TrainLength::Epochs(epochs) => (
                "train.epochs",
                epochs.checked_mul(per_epoch).map(|all| all.div_ceil(each)),
            ),
        };
        let fits = |steps: &u64| {
            let all = steps.checked_mul(each);
            all.is_some_and(|all| all <= MAX_MICRO_BATCHES)
        };
        let steps = steps.filter(fits).ok_or_else(|| {
            let most = MAX_MICRO_BATCHES;
            wrong(format!(
                "`{field}`: expected at most {most} micro-batches in all, found more"
            ))
        })?;
        let length = Self::with(train.warmup, steps);
        if length.warmup_steps > steps {
            let found = length.warmup_steps;
            return Err(wrong(format!(
                "`train.warmup_steps`: expected at most the {steps} steps that `{field}` comes to, found {found}"
            )));
        }
        Ok(length)
    }

    /// So many steps with this warm-up.
    pub(super) fn with(warmup: Warmup, steps: u64) -> Self {
        Self {
            steps,
            warmup_steps: warmup.of(steps),
        }
    }

    /// The learning rates along these steps.
    pub(super) fn schedule(self, train: &TrainSettings) -> LrSchedule {
        LrSchedule {
            peak: train.learning_rate,
            warmup_steps: self.warmup_steps,
            total_steps: self.steps,
            decay: match train.lr_schedule {
                LrDecay::Constant => Decay::Constant,
                LrDecay::Cosine => Decay::Cosine,
                LrDecay::Linear => Decay::Linear,
            },
        }
    }

    /// Whether the first `done` steps have the same learning rates under both lengths.
    pub(super) fn agrees_until(self, other: Self, done: u64, train: &TrainSettings) -> bool {
        let (a, b) = (self.schedule(train), other.schedule(train));
        (0..done).all(|step| a.at(step).to_bits() == b.at(step).to_bits())
    }

    /// How the length came about, for a person; None where the file says it.
    pub(super) fn told(self, train: &TrainSettings, per_epoch: u64) -> Option<String> {
        let TrainLength::Epochs(epochs) = train.length else {
            return None;
        };
        let (batches, each) = (
            counted(per_epoch, "micro-batch"),
            train.gradient_accumulation,
        );
        let steps = counted(self.steps, "step");
        let joined = match each {
            1 => String::new(),
            _ => format!(", {each} a step"),
        };
        let epochs = counted(epochs, "epoch");
        Some(format!("{epochs} of {batches}{joined}: {steps}"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Length;
    use crate::experiment::{Experiment, TrainSettings};
    use crate::models;

    fn settings(train: &str) -> TrainSettings {
        let text = format!(
            "[model]\nfamily = \"sd3\"\nflavor = \"3-medium\"\npath = \"m\"\n[store]\npath = \"s\"\n\
             [train]\noutput = \"o\"\n{train}\n[[dataset]]\npath = \"a\"\n"
        );
        let experiment = Experiment::parse(Path::new("exp.toml"), text).expect("valid");
        let family = models::family("sd3").expect("a family");
        let flavor = family.flavors.iter().find(|f| f.name == "3-medium");
        experiment
            .settings(flavor.expect("a flavor"))
            .expect("valid")
            .train
    }

    fn length(train: &str, per_epoch: u64) -> Result<(u64, u64), String> {
        let length = Length::new(&settings(train), per_epoch, Path::new("exp.toml"));
        length
            .map(|l| (l.steps, l.warmup_steps))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn epochs_and_shares_come_to_steps() {
        assert_eq!(length("steps = 7\nwarmup_steps = 2", 5), Ok((7, 2)));
        assert_eq!(length("epochs = 3", 5), Ok((15, 0)));
        assert_eq!(length("epochs = 3\nwarmup_steps = 0.5", 5), Ok((15, 7)));
        // 15 micro-batches, 4 a step: the fourth step takes one of the next epoch.
        assert_eq!(
            length("epochs = 3\ngradient_accumulation = 4", 5),
            Ok((4, 0))
        );
        let told = |train: &str| {
            let settings = settings(train);
            let length = Length::new(&settings, 5, Path::new("")).expect("a length");
            length.told(&settings, 5)
        };
        assert_eq!(told("steps = 7"), None);
        assert_eq!(
            told("epochs = 3\ngradient_accumulation = 4").as_deref(),
            Some("3 epochs of 5 micro-batches, 4 a step: 4 steps")
        );
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_by_name() {
        for (train, per_epoch, why) in [
            (
                "epochs = 2\nwarmup_steps = 11",
                5,
                "`train.warmup_steps`: expected at most the 10 steps that `train.epochs` comes to, found 11",
            ),
            (
                "epochs = 1000000000",
                1 << 40,
                "`train.epochs`: expected at most",
            ),
            ("steps = 1000", 0, "no pictures"),
        ] {
            let said = length(train, per_epoch).expect_err("refused");
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn only_rates_that_do_not_look_at_the_end_stay_when_it_moves() {
        let agrees = |train: &str, done: u64| {
            let train = settings(&format!("steps = 10\n{train}"));
            let of = |steps| Length::with(train.warmup, steps);
            of(10).agrees_until(of(20), done, &train)
        };
        assert!(agrees("", 10));
        assert!(agrees("warmup_steps = 3", 10));
        assert!(!agrees("warmup_steps = 0.5", 10));
        assert!(!agrees("lr_schedule = \"cosine\"", 10));
        assert!(!agrees("lr_schedule = \"linear\"", 2));
        // The first step of each has the full rate.
        assert!(agrees("lr_schedule = \"linear\"", 1));
    }
}

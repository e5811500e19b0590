//! The learning rate as a pure function of the step.

/// What the learning rate does after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// It stays.
    Constant,
    /// It falls to 0 along half a cosine.
    Cosine,
    /// It falls to 0 along a line.
    Linear,
}

/// A learning-rate schedule: a linear warm-up from 0, then a decay that ends at the last step.
/// As `get_constant_schedule_with_warmup`, `get_cosine_schedule_with_warmup` and
/// `get_linear_schedule_with_warmup` of transformers and diffusers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrSchedule {
    /// The highest learning rate.
    pub peak: f64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// Steps in all, warm-up included.
    pub total_steps: u64,
    /// What follows the warm-up.
    pub decay: Decay,
}

impl LrSchedule {
    /// The learning rate of optimizer step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        // From 0: the first step of a warm-up changes nothing, as in transformers.
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        // At least 1: where warm-up takes all steps there is nothing to divide by.
        let decay_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / decay_steps as f64).min(1.0);
        self.peak
            * match self.decay {
                Decay::Constant => 1.0,
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
                Decay::Linear => 1.0 - progress,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::{Decay, LrSchedule};

    #[test]
    fn the_rate_rises_over_the_warmup_and_then_follows_its_decay() {
        let at = |decay, step| {
            LrSchedule {
                peak: 2.0,
                warmup_steps: 10,
                total_steps: 110,
                decay,
            }
            .at(step)
        };
        for decay in [Decay::Constant, Decay::Cosine, Decay::Linear] {
            assert_eq!((at(decay, 0), at(decay, 5), at(decay, 10)), (0.0, 1.0, 2.0));
        }
        assert_eq!(at(Decay::Constant, 1_000_000), 2.0);
        assert!((at(Decay::Cosine, 60) - 1.0).abs() < 1e-12);
        assert!((at(Decay::Linear, 85) - 0.5).abs() < 1e-12);
        assert_eq!((at(Decay::Linear, 110), at(Decay::Linear, 200)), (0.0, 0.0));
    }
}

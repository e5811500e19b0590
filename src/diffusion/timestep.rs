//! Which noise levels training visits, and how much each counts.

use serde::{Deserialize, Serialize};

use super::Shift;

/// The density of the noise levels, before the shift.
///
/// As `compute_density_for_timestep_sampling` of diffusers and section 3.1 of the SD3 paper
/// (arXiv:2403.03206).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSampling {
    /// Every level as likely as any other.
    Uniform,
    /// `sigmoid(mean + std * n)` with `n` standard normal.
    LogitNormal,
    /// The mode density of the SD3 paper, with `mode_scale`.
    Mode,
}

/// The factor of a noise level's loss, as `compute_loss_weighting_for_sd3` of diffusers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossWeighting {
    /// 1 at every level.
    None,
    /// `2 / (pi (1 - 2 sigma + 2 sigma^2))`.
    Cosmap,
    /// `1 / sigma^2`.
    SigmaSqrt,
}

impl LossWeighting {
    /// The factor of the loss at `sigma`, in [0, 1].
    pub fn weight(self, sigma: f64) -> f64 {
        match self {
            Self::None => 1.0,
            Self::Cosmap => {
                2.0 / (std::f64::consts::PI * (1.0 - 2.0 * sigma + 2.0 * sigma * sigma))
            }
            // diffusers has no bound here. Without one, a single draw near 0 could outweigh all other samples of a run.
            Self::SigmaSqrt => sigma.max(1e-3).powi(-2),
        }
    }
}

/// A part of a flow's noise levels, by sigma.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Band {
    /// Its lowest level.
    pub from: f64,
    /// The level at which it ends, which is its own only where there is none above.
    pub to: f64,
}

impl Band {
    /// All levels.
    pub const WHOLE: Self = Self { from: 0.0, to: 1.0 };

    /// Whether a sigma is in it.
    pub fn has(self, sigma: f64) -> bool {
        sigma >= self.from && (sigma < self.to || self.to >= 1.0)
    }

    /// The level at `share` (in [0, 1]) of the way through it.
    pub fn at(self, share: f64) -> f64 {
        self.from + (self.to - self.from) * share
    }
}

/// How a flow's noise levels are distributed in training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimestepSpec {
    /// The density of the levels before the shift.
    pub sampling: TimestepSampling,
    /// Mean of the normal in [`TimestepSampling::LogitNormal`].
    pub logit_mean: f64,
    /// Standard deviation of that normal.
    pub logit_std: f64,
    /// The scale of [`TimestepSampling::Mode`]: 0 is uniform, diffusers' default 1.29.
    pub mode_scale: f64,
    /// How far the drawn levels are shifted towards noise.
    pub shift: Shift,
    /// The levels that are trained, after the shift; others are drawn anew. Within the band the density so keeps its shape.
    pub band: Band,
}

impl TimestepSpec {
    /// The sigma of one sample with latents of so many tokens from its two draws: `uniform` in [0, 1) and a standard
    /// `normal`. Never exactly 0, where the loss would say nothing.
    pub fn sigma(&self, uniform: f64, normal: f64, tokens: usize) -> f64 {
        let u = match self.sampling {
            TimestepSampling::Uniform => uniform,
            TimestepSampling::LogitNormal => {
                1.0 / (1.0 + (-(self.logit_mean + self.logit_std * normal)).exp())
            }
            TimestepSampling::Mode => {
                let cosine = (std::f64::consts::FRAC_PI_2 * uniform).cos();
                1.0 - uniform - self.mode_scale * (cosine * cosine - 1.0 + uniform)
            }
        };
        // The mode density leaves [0, 1] where its scale is beyond the paper's limits, about -1 to 1.75.
        shift_sigma(u.clamp(0.0, 1.0), self.shift.at(tokens)).max(1e-5)
    }
}

/// `shift * s / (1 + (shift - 1) * s)`: moves noise levels towards noise for larger pictures
/// (SD3 paper, equation 23).
pub fn shift_sigma(sigma: f64, shift: f64) -> f64 {
    shift * sigma / (1.0 + (shift - 1.0) * sigma)
}

#[cfg(test)]
mod tests {
    use super::{Band, LossWeighting, Shift, TimestepSampling, TimestepSpec, shift_sigma};

    fn spec(sampling: TimestepSampling, shift: f64) -> TimestepSpec {
        TimestepSpec {
            sampling,
            logit_mean: 0.0,
            logit_std: 1.0,
            mode_scale: 1.29,
            shift: Shift::Fixed(shift),
            band: Band::WHOLE,
        }
    }

    #[test]
    fn densities_follow_their_formulas() {
        assert_eq!(
            spec(TimestepSampling::Uniform, 1.0).sigma(0.25, 9.0, 16),
            0.25
        );
        assert_eq!(
            spec(TimestepSampling::LogitNormal, 1.0).sigma(0.9, 0.0, 16),
            0.5
        );
        // diffusers: 1 - 0.25 - 1.29 * (cos(pi/8)^2 - 1 + 0.25)
        assert!(
            (spec(TimestepSampling::Mode, 1.0).sigma(0.25, 0.0, 16) - 0.616_416_2).abs() < 1e-6
        );
        assert!((spec(TimestepSampling::Uniform, 3.0).sigma(0.5, 0.0, 16) - 0.75).abs() < 1e-12);
        assert!(spec(TimestepSampling::Uniform, 3.0).sigma(0.0, 0.0, 16) > 0.0);
    }

    #[test]
    fn a_shift_keeps_the_ends() {
        for shift in [0.5, 1.0, 3.0] {
            assert_eq!(
                (shift_sigma(0.0, shift), shift_sigma(1.0, shift)),
                (0.0, 1.0)
            );
        }
    }

    #[test]
    fn weights_are_those_of_diffusers() {
        assert_eq!(LossWeighting::None.weight(0.3), 1.0);
        assert!((LossWeighting::Cosmap.weight(0.5) - 1.273_239_5).abs() < 1e-6);
        assert!((LossWeighting::SigmaSqrt.weight(0.5) - 4.0).abs() < 1e-12);
    }
}

//! The Euler sampler of rectified flow: `x += (sigma_next - sigma) * velocity`.

use candle_core::{Result, Tensor};

use super::shift_sigma;

const TRAINED_STEPS: f64 = 1000.0;

/// How the noise levels of an Euler run are spaced, before the shift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Evenly between the shifted ends of the trained schedule, and 0 after that: as
    /// `FlowMatchEulerDiscreteScheduler.set_timesteps` of diffusers does (and Stability's reference).
    Trained,
    /// Evenly from 1 to 0: as FLUX.1's authors do (`get_schedule`), and diffusers' pipeline of it.
    Even,
}

/// The noise levels of an Euler run, `num_steps + 1` of them, the last 0.
pub fn euler_sigmas(num_steps: usize, shift: f64, spacing: Spacing) -> Vec<f64> {
    let (last, gaps) = match spacing {
        Spacing::Trained => {
            // diffusers takes the ends from the schedule that it shifted when it was made, and shifts what it spaces between
            // them again.
            let last = shift_sigma(1.0 / TRAINED_STEPS, shift);
            // A single step has no gap, and stands at the beginning: 0 / 1.
            (last, num_steps.saturating_sub(1).max(1))
        }
        Spacing::Even => (0.0, num_steps.max(1)),
    };
    let mut sigmas: Vec<f64> = (0..num_steps)
        .map(|i| shift_sigma(1.0 + (last - 1.0) * i as f64 / gaps as f64, shift))
        .collect();
    sigmas.push(0.0);
    sigmas
}

/// Classifier-free guidance (Ho and Salimans, arXiv:2207.12598):
/// `unconditional + scale * (conditional - unconditional)`.
///
/// # Errors
/// If the shapes disagree.
pub fn guide(unconditional: &Tensor, conditional: &Tensor, scale: f64) -> Result<Tensor> {
    unconditional + ((conditional - unconditional)? * scale)?
}

#[cfg(test)]
mod tests {
    use super::{Spacing, euler_sigmas};

    /// `FlowMatchEulerDiscreteScheduler(shift=...).set_timesteps(5)`, diffusers 0.42.1.
    #[test]
    fn sigmas_equal_those_of_diffusers() {
        let expected = [
            (1.0, [1.0, 0.750_25, 0.5005, 0.250_75, 0.001, 0.0]),
            (
                3.0,
                [
                    1.0,
                    0.900_359_1,
                    0.751_121_1,
                    0.502_985_06,
                    0.008_928_572,
                    0.0,
                ],
            ),
        ];
        for (shift, sigmas) in expected {
            for (ours, theirs) in euler_sigmas(5, shift, Spacing::Trained).iter().zip(sigmas) {
                assert!(
                    (ours - theirs).abs() < 1e-6,
                    "shift {shift}: {ours} {theirs}"
                );
            }
        }
        assert_eq!(euler_sigmas(1, 1.0, Spacing::Trained), [1.0, 0.0]);
    }

    /// `FluxPipeline`'s schedule (sigmas `linspace(1, 1 / n, n)`): dev at 1024 x 1024 px, and schnell.
    #[test]
    fn flux_walks_evenly_to_the_end() {
        let dev = [1.0, 0.904_530_76, 0.759_510_93, 0.512_844_15, 0.0];
        let found = euler_sigmas(4, 1.15f64.exp(), Spacing::Even);
        for (ours, theirs) in found.iter().zip(dev) {
            assert!((ours - theirs).abs() < 1e-6, "{found:?}");
        }
        let schnell = euler_sigmas(4, 1.0, Spacing::Even);
        assert_eq!(schnell, [1.0, 0.75, 0.5, 0.25, 0.0]);
        assert_eq!(euler_sigmas(1, 1.0, Spacing::Even), [1.0, 0.0]);
    }
}

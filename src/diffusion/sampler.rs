//! The Euler sampler of rectified flow: `x += (sigma_next - sigma) * velocity`.

use candle_core::{Result, Tensor};

use super::shift_sigma;

const TRAINED_STEPS: f64 = 1000.0;

/// The noise levels of an Euler run, `num_steps + 1` of them, the last 0.
///
/// As `FlowMatchEulerDiscreteScheduler.set_timesteps` of diffusers (and Stability's reference): evenly
/// spaced between the shifted ends of the trained schedule, then shifted again.
pub fn euler_sigmas(num_steps: usize, shift: f64) -> Vec<f64> {
    let last = shift_sigma(1.0 / TRAINED_STEPS, shift);
    let gaps = num_steps.saturating_sub(1).max(1) as f64;
    let mut sigmas: Vec<f64> = (0..num_steps)
        .map(|i| shift_sigma(1.0 + (last - 1.0) * i as f64 / gaps, shift))
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
    use super::euler_sigmas;

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
            for (ours, theirs) in euler_sigmas(5, shift).iter().zip(sigmas) {
                assert!(
                    (ours - theirs).abs() < 1e-6,
                    "shift {shift}: {ours} {theirs}"
                );
            }
        }
        assert_eq!(euler_sigmas(1, 1.0), [1.0, 0.0]);
    }
}

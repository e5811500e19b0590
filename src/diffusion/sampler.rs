//! The Euler sampler of rectified flow: `x += (sigma_next - sigma) * velocity`.

use candle_core::{Result, Tensor};

use super::process::TRAINED_STEPS;
use super::shift_sigma;

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
            let last = shift_sigma(1.0 / TRAINED_STEPS as f64, shift);
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

/// The guided prediction, `rescale` of the way (0 to 1) to one with the spread of the conditional prediction (Lin et al.,
/// arXiv:2305.08891, section 3.4; `rescale_noise_cfg` of diffusers).
///
/// Shapes: [B, ..], each sample of the batch on its own.
///
/// # Errors
/// If the shapes disagree.
pub fn rescale_guided(guided: &Tensor, conditional: &Tensor, rescale: f64) -> Result<Tensor> {
    let factor = (spread(conditional)? / spread(guided)?)?;
    let factor = ((factor * rescale)? + (1.0 - rescale))?;
    let mut shape = vec![1; guided.rank()];
    shape[0] = factor.elem_count();
    guided.broadcast_mul(&factor.reshape(shape)?.to_dtype(guided.dtype())?)
}

/// The standard deviation of each sample's numbers, up to a factor that is the same for all of one shape.
fn spread(samples: &Tensor) -> Result<Tensor> {
    let rows = samples.flatten_from(1)?.to_dtype(candle_core::DType::F64)?;
    let centered = rows.broadcast_sub(&rows.mean_keepdim(1)?)?;
    // A prediction that is the same everywhere has none, and is left as it is by any factor that is a number.
    centered.sqr()?.mean(1)?.sqrt()?.maximum(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::{Spacing, euler_sigmas, rescale_guided};

    /// diffusers 0.42.1: `rescale_noise_cfg(2 * x - 1, x, 0.7)` of x = [[1, 2, 4], [0, 0, 1]].
    #[test]
    fn guidance_is_rescaled_as_in_diffusers_sample_by_sample() {
        let with = Tensor::new(&[[1f32, 2.0, 4.0], [0.0, 0.0, 1.0]], &Device::Cpu).expect("x");
        let guided = with.affine(2.0, -1.0).expect("guided");
        let made = rescale_guided(&guided, &with, 0.7).expect("rescaled");
        let made = made.to_vec2::<f32>().expect("numbers");
        for (ours, theirs) in made
            .concat()
            .iter()
            .zip([0.65, 1.95, 4.55, -0.65, -0.65, 0.65])
        {
            assert!((ours - theirs).abs() < 1e-6, "{made:?}");
        }
        let flat = Tensor::zeros((1, 4), candle_core::DType::F32, &Device::Cpu).expect("zeros");
        let made = rescale_guided(&flat, &flat, 1.0).expect("rescaled");
        assert_eq!(made.to_vec2::<f32>().expect("numbers"), [[0.0; 4]]);
    }

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

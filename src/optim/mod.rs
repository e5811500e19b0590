//! Optimizers of one flat f32 tensor of parameters, the gradient's norm, and the learning rate.
//!
//! Flat, because the order of a reduction is then fixed (the gradient's norm is the same bits on every run)
//! and because one pass over memory updates everything. The numbers stay where the network is, and `nn::flat` computes
//! there. Knows nothing of adapters, models or files.

mod adamw;
mod optimizer;
mod schedule;

use candle_core::{Result, Tensor};

pub use adamw::{AdamW, AdamWOptions};
pub use optimizer::{Optimizer, OptimizerOptions, StateTensor};
pub use schedule::{Decay, LrSchedule};

use crate::nn::Kernels;
use crate::nn::flat::{scale_in_place, sum_of_squares};

/// Scales `gradient` `[n]` in place so that its Euclidean norm is at most `max_norm`; returns the norm it had.
///
/// The norm is summed in order, on a CPU in `f64`. As `torch.nn.utils.clip_grad_norm_`, with its `1e-6`.
///
/// # Errors
///
/// Those of the backend.
pub fn clip_gradient_norm(
    kernels: &Kernels,
    gradient: &Tensor,
    max_norm: Option<f64>,
) -> Result<f64> {
    let norm = sum_of_squares(kernels, gradient)?.sqrt();
    let Some(max_norm) = max_norm else {
        return Ok(norm);
    };
    // torch's `clip_grad_norm_` adds 1e-6, against a division by 0.
    let scale = max_norm / (norm + 1e-6);
    // Also false for a norm of NaN: the gradient stays as it is, to be seen.
    if scale < 1.0 {
        scale_in_place(gradient, scale)?;
    }
    Ok(norm)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::clip_gradient_norm;
    use crate::nn::Kernels;
    use crate::nn::testing::composed;

    fn clipped(values: &[f32], max_norm: Option<f64>) -> (f64, Vec<f32>) {
        let gradient = Tensor::new(values, &Device::Cpu).expect("a gradient");
        let norm = clip_gradient_norm(&Kernels::NONE, &gradient, max_norm).expect("clipped");
        (norm, gradient.to_vec1().expect("values"))
    }

    #[test]
    fn a_long_gradient_is_shortened_and_a_short_one_left_alone() {
        let check = || {
            let (norm, long) = clipped(&[3.0, 4.0], Some(1.0));
            assert!((norm - 5.0).abs() < 1e-6);
            assert!((long[0].hypot(long[1]) - 1.0).abs() < 1e-5);
            assert_eq!(clipped(&[0.3, 0.4], Some(1.0)).1, [0.3, 0.4]);
            assert_eq!(clipped(&[3.0, 4.0], None).1, [3.0, 4.0]);
        };
        check();
        composed(check);
    }
}

//! Optimisation of the adapter's parameters: one flat `f32` buffer, its gradient, and its moments.
//!
//! Flat, because the order of a reduction is then fixed (the gradient's norm is the same bits on every run)
//! and because one pass over memory updates everything. Knows nothing of adapters, models or files.

mod adamw;
mod schedule;

pub use adamw::{AdamW, AdamWOptions};
pub use schedule::{Decay, LrSchedule};

/// Scales `gradient` so that its Euclidean norm is at most `max_norm`; returns the norm it had.
///
/// The norm is summed in `f64`, in order. As `torch.nn.utils.clip_grad_norm_`, with its `1e-6`.
pub fn clip_gradient_norm(gradient: &mut [f32], max_norm: Option<f64>) -> f64 {
    let norm = gradient
        .iter()
        .map(|&g| f64::from(g).powi(2))
        .sum::<f64>()
        .sqrt();
    if let Some(max_norm) = max_norm {
        let scale = max_norm / (norm + 1e-6);
        if scale < 1.0 {
            let scale = scale as f32;
            for g in gradient {
                *g *= scale;
            }
        }
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::clip_gradient_norm;

    #[test]
    fn a_long_gradient_is_shortened_and_a_short_one_left_alone() {
        let mut long = [3.0f32, 4.0];
        assert!((clip_gradient_norm(&mut long, Some(1.0)) - 5.0).abs() < 1e-12);
        assert!((long[0].hypot(long[1]) - 1.0).abs() < 1e-5);
        let mut short = [0.3f32, 0.4];
        clip_gradient_norm(&mut short, Some(1.0));
        assert_eq!(short, [0.3, 0.4]);
        clip_gradient_norm(&mut long, None);
        assert!((long[0].hypot(long[1]) - 1.0).abs() < 1e-5);
    }
}

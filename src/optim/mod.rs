//! Optimizers of one flat f32 tensor of parameters, the gradient's norm, and the learning rate.
//!
//! Flat, because the order of a reduction is then fixed (the gradient's norm is the same bits on every run)
//! and because one pass over memory updates everything. The numbers stay where the network is: on a CPU they are edited
//! in place on all cores, elsewhere in pieces by tensor operations. Knows nothing of adapters, models or files.

mod adamw;
mod optimizer;
mod schedule;

use candle_core::{Result, Tensor, WithDType as _};

pub use adamw::{AdamW, AdamWOptions};
pub use optimizer::{Optimizer, OptimizerOptions, StateTensor};
pub use schedule::{Decay, LrSchedule};

use crate::nn::cpu::{self, by_kernel, elements};
#[cfg(feature = "cuda")]
use crate::nn::cuda;

/// Numbers that tensor operations update at a time, so that their temporaries stay small.
const PIECE: usize = 1 << 24;

/// The (start, length) of the pieces of a buffer of `len` numbers.
fn pieces(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len)
        .step_by(PIECE)
        .map(move |start| (start, PIECE.min(len - start)))
}

/// The sum of squares by tensor operations: first of rows, because a GPU sums a row by one block.
fn by_rows(numbers: &Tensor) -> Result<f64> {
    const ROW: usize = 1024;
    let len = numbers.elem_count();
    let whole = len / ROW * ROW;
    let rows = numbers.narrow(0, 0, whole)?.reshape((len / ROW, ROW))?;
    let mut sums = rows.sqr()?.sum(1)?.to_vec1::<f32>()?;
    if whole < len {
        let rest = numbers.narrow(0, whole, len - whole)?.sqr()?.sum_all()?;
        sums.push(rest.to_scalar()?);
    }
    Ok(sums.into_iter().map(f64::from).sum())
}

/// Scales `gradient` `[n]` in place so that its Euclidean norm is at most `max_norm`; returns the norm it had.
///
/// The norm is summed in order, on a CPU in `f64`. As `torch.nn.utils.clip_grad_norm_`, with its `1e-6`.
///
/// # Errors
///
/// Those of the backend.
pub fn clip_gradient_norm(gradient: &Tensor, max_norm: Option<f64>) -> Result<f64> {
    let squares: f64 = by_kernel!(
        gradient,
        T => elements::<T>(gradient)?.iter().map(|&g| g.to_f64().powi(2)).sum(),
        cuda k => cuda::flat::sum_of_squares(k, gradient)?,
        {
            let mut sum = 0.0;
            for (start, len) in pieces(gradient.elem_count()) {
                sum += by_rows(&gradient.narrow(0, start, len)?)?;
            }
            sum
        }
    );
    let norm = squares.sqrt();
    let Some(max_norm) = max_norm else {
        return Ok(norm);
    };
    let scale = max_norm / (norm + 1e-6);
    if scale < 1.0 {
        by_kernel!(
            gradient,
            T => cpu::edit::<T>(gradient, |values| {
                let scale = T::from_f64(scale);
                for g in values {
                    *g *= scale;
                }
            })?,
            for (start, len) in pieces(gradient.elem_count()) {
                let scaled = (gradient.narrow(0, start, len)? * scale)?;
                gradient.slice_set(&scaled, 0, start)?;
            }
        );
    }
    Ok(norm)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::clip_gradient_norm;
    use crate::nn::tests::composed;

    fn clipped(values: &[f32], max_norm: Option<f64>) -> (f64, Vec<f32>) {
        let gradient = Tensor::new(values, &Device::Cpu).expect("a gradient");
        let norm = clip_gradient_norm(&gradient, max_norm).expect("clipped");
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

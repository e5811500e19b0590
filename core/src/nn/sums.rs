//! Sums on the CPU in f64, where the result may be a small difference of large numbers, or is divided by.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::cpu::{self, elements};
use super::real::{Real, vectorised};

/// Sums side by side, as one chain of additions would wait for each: they become vector code. Fixed, whatever vectors the machine
/// has, so that all machines add in one order.
const LANES: usize = 8;

/// The sum of `f` over the elements.
#[inline(always)]
pub(crate) fn sum_f64<T: Real>(x: &[T], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0f64; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += f(chunk[i].to_f64());
        }
    }
    let rest: f64 = rest.iter().map(|v| f(v.to_f64())).sum();
    lanes.iter().sum::<f64>() + rest
}

/// The sum of `f` over the pairs of two rows of one length.
#[inline(always)]
pub(crate) fn sum2_f64<T: Real>(x: &[T], y: &[T], f: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [0f64; LANES];
    let (x_chunks, x_rest) = x.as_chunks::<LANES>();
    let (y_chunks, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x_chunks.iter().zip(y_chunks) {
        for i in 0..LANES {
            lanes[i] += f(x[i].to_f64(), y[i].to_f64());
        }
    }
    let rest = x_rest.iter().zip(y_rest);
    let rest: f64 = rest.map(|(x, y)| f(x.to_f64(), y.to_f64())).sum();
    lanes.iter().sum::<f64>() + rest
}

/// The sum of `x` over the dimensions `over`, each of which becomes 1.
pub(crate) fn sum_keepdim<T: Real>(x: &Tensor, over: &[usize]) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    for &d in over {
        dims[d] = 1;
    }
    // Dimensions that are summed over lie side by side only at the end.
    let end = x.rank() - over.len();
    let row: usize = x.dims()[end..].iter().product();
    if !over.iter().all(|&d| d >= end) || row == 0 {
        return x
            .to_dtype(DType::F64)?
            .sum_keepdim(over)?
            .to_dtype(x.dtype());
    }
    let dense = cpu::contiguous(x)?;
    let data = elements::<T>(&dense)?;
    let sums = data.par_chunks_exact(row).map(sum_of_row).collect();
    cpu::tensor(sums, &dims)
}

vectorised! {
    fn sum_of_row<T: Real>(row: &[T]) -> T {
        T::from_f64(sum_f64(row, |v| v))
    }
}

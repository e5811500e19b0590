//! The mean square of a difference, row by row of the batch.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use super::Kernels;
use super::compose::wide;
use super::cpu::{self, GRAIN, by_kernel, elements, sum2};
#[cfg(feature = "cuda")]
use super::cuda::loss::Compared;
use super::real::{Real, vectorised};

/// The mean square of each row of `prediction - target`, `[B, ..]` both; one number per row of the batch.
///
/// # Errors
///
/// If the shapes differ or the rows are empty, and those of the backend.
pub fn squared_error(prediction: &Tensor, target: &Tensor) -> Result<Vec<f64>> {
    let row = check(prediction, target)?;
    by_kernel!(prediction, T => squares::<T>(prediction, target, row), {
        // Widened before subtracting: a good prediction's error is in the last bits of bf16.
        let error = (wide(prediction)? - wide(target)?)?.sqr()?.flatten_from(1)?.mean(1)?;
        error.to_dtype(DType::F64)?.to_vec1()
    })
}

/// The type of an error of `dtype`: f32, but f64 for f64, in which gradients are tested.
fn scalar_dtype(dtype: DType) -> DType {
    match dtype {
        DType::F64 => dtype,
        _ => DType::F32,
    }
}

/// The weights, one for each row, or ones.
fn weights_of(prediction: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
    let rows = prediction.dim(0)?;
    match weights {
        None => Tensor::ones(rows, DType::F32, prediction.device()),
        Some(weights) if weights.dims() == [rows] => Ok(weights.clone()),
        Some(weights) => bail!("weights {:?} for a batch of {rows}", weights.dims()),
    }
}

/// What each row's mean square counts in the mean over the batch, times `outer`.
fn factors_of(weights: &Tensor, outer: f64) -> Result<Vec<f64>> {
    let weights = weights.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let count = weights.len() as f64;
    Ok((weights.iter())
        .map(|weight| weight / count * outer)
        .collect())
}

fn check(prediction: &Tensor, target: &Tensor) -> Result<usize> {
    let row = prediction
        .dims()
        .get(1..)
        .map_or(0, |row| row.iter().product());
    if prediction.dims() != target.dims() || row == 0 {
        bail!(
            "an error of {:?} against {:?}",
            prediction.dims(),
            target.dims()
        );
    }
    Ok(row)
}

vectorised! {
    fn square_sum<T: Real>(p: &[T], t: &[T]) -> T {
        sum2(p, t, |p, t| (p - t) * (p - t))
    }
}

vectorised! {
    fn difference<T: Real>(factor: T, out: &mut [T], p: &[T], t: &[T]) {
        for (out, (&p, &t)) in out.iter_mut().zip(p.iter().zip(t)) {
            *out = factor * (p - t);
        }
    }
}

fn squares<T: Real>(prediction: &Tensor, target: &Tensor, row: usize) -> Result<Vec<f64>> {
    let (p, t) = (cpu::contiguous(prediction)?, cpu::contiguous(target)?);
    let (p, t) = (elements::<T>(&p)?, elements::<T>(&t)?);
    let (p, t): (&[T], &[T]) = (&p, &t);
    // Pieces are summed in f32 lanes, their sums in f64 and in order.
    let row_error = |(p, t): (&[T], &[T])| {
        let pieces: Vec<f64> = p
            .par_chunks(GRAIN)
            .zip(t.par_chunks(GRAIN))
            .map(|(p, t)| square_sum(p, t).to_f64())
            .collect();
        pieces.iter().sum::<f64>() / row as f64
    };
    Ok(p.chunks_exact(row)
        .zip(t.chunks_exact(row))
        .map(row_error)
        .collect())
}

/// The mean over the batch of `weights[b]` times the mean square of row b of `prediction - target`: both `[B, ..]`, `weights` `[B]` (1 if
/// there are none), the result `[]` in f32 (f64 for f64). Our own kernels leave it on the GPU, and nothing waits for it.
pub fn mean_squared_error(
    kernels: &Kernels,
    prediction: &Tensor,
    target: &Tensor,
    weights: Option<&Tensor>,
) -> Result<Tensor> {
    check(prediction, target)?;
    let weights = weights_of(prediction, weights)?;
    #[cfg(feature = "cuda")]
    if let Some(kernels) = kernels.serving(prediction) {
        return Compared::new(kernels, prediction, target, &weights)?.error(kernels);
    }
    // Read by the CUDA build only.
    let _ = kernels;
    // On the host in f64: the rows' sums are there already, and there are few.
    let errors = squared_error(prediction, target)?;
    let factors = factors_of(&weights, 1.0)?;
    let total: f64 = (errors.iter().zip(&factors))
        .map(|(error, factor)| error * factor)
        .sum();
    Tensor::new(total, prediction.device())?.to_dtype(scalar_dtype(prediction.dtype()))
}

/// The gradient of [`mean_squared_error`] towards the prediction, times `outer`, which is `[]` and of the result's type: 1 for the error
/// itself, something else where it is part of a larger value.
pub fn mean_squared_error_backward(
    kernels: &Kernels,
    prediction: &Tensor,
    target: &Tensor,
    weights: Option<&Tensor>,
    outer: &Tensor,
) -> Result<Tensor> {
    let row = check(prediction, target)?;
    let weights = weights_of(prediction, weights)?;
    #[cfg(feature = "cuda")]
    if let Some(kernels) = kernels.serving(prediction) {
        return Compared::new(kernels, prediction, target, &weights)?.gradient(kernels, outer);
    }
    // Read by the CUDA build only.
    let _ = kernels;
    let outer = outer.to_dtype(DType::F64)?.to_scalar::<f64>()?;
    let factors: Vec<f64> = factors_of(&weights, outer)?
        .iter()
        .map(|factor| 2.0 * factor / row as f64)
        .collect();
    by_kernel!(prediction, T => differences::<T>(prediction, target, &factors, row), {
        let mut shape = vec![1; prediction.rank()];
        shape[0] = factors.len();
        let difference = (wide(prediction)? - wide(target)?)?;
        let factors = Tensor::new(factors, prediction.device())?;
        let factors = factors.to_dtype(difference.dtype())?.reshape(shape)?;
        difference.broadcast_mul(&factors)?.to_dtype(prediction.dtype())
    })
}

fn differences<T: Real>(
    prediction: &Tensor,
    target: &Tensor,
    factors: &[f64],
    row: usize,
) -> Result<Tensor> {
    let (p, t) = (cpu::contiguous(prediction)?, cpu::contiguous(target)?);
    let (p, t) = (elements::<T>(&p)?, elements::<T>(&t)?);
    let mut out = vec![T::zero(); p.len()];
    let rows = out
        .par_chunks_mut(row)
        .zip(p.par_chunks(row))
        .zip(t.par_chunks(row));
    rows.zip(factors).for_each(|(((out, p), t), &factor)| {
        let factor = T::from_f64(factor);
        difference(factor, out, p, t);
    });
    cpu::tensor(out, prediction.dims())
}

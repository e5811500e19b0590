//! The norm of each pixel over its channels, forward; fused with the SiLU that follows it in Wan's VAE.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use super::Kernels;
use super::cpu::{by_kernel, contiguous, elements, tensor};
use super::gemm::{MatrixMut, Shared};
use super::real::{Real, vectorised};

/// Pixels that a thread takes at a time: with all their channels they lie in its cache.
const PIXELS: usize = 512;
/// The least length a pixel is divided by, `eps` of torch's `normalize`.
const EPS: f64 = 1e-12;

/// `x / |x| * sqrt(C) * gain`, where |x| is the length of a pixel's channels: `WanRMS_norm` of diffusers.
///
/// Shapes: `x` `[B, C, ..]`, `gain` `[C]`; the result is shaped as `x`.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn pixel_norm(kernels: &Kernels, x: &Tensor, gain_c: &Tensor) -> Result<Tensor> {
    forward(kernels, x, gain_c, false)
}

/// [`pixel_norm`], then SiLU.
///
/// # Errors
/// As there.
pub fn pixel_norm_silu(kernels: &Kernels, x: &Tensor, gain_c: &Tensor) -> Result<Tensor> {
    forward(kernels, x, gain_c, true)
}

fn forward(kernels: &Kernels, x: &Tensor, gain: &Tensor, silu: bool) -> Result<Tensor> {
    // No kernel of ours for GPUs: it is a small part of what convolutions take there.
    let _ = kernels;
    match x.dims() {
        [_, c, ..] if gain.dims() == [*c] => {}
        dims => bail!(
            "pixel_norm: a gain of shape {:?} does not fit {dims:?}",
            gain.dims()
        ),
    }
    by_kernel!(x, T => on_cpu::<T>(x, gain, silu), composed(x, gain, silu))
}

fn composed(x: &Tensor, gain: &Tensor, silu: bool) -> Result<Tensor> {
    let (b, c) = (x.dim(0)?, x.dim(1)?);
    // Squares overflow in f16.
    let wide = match x.dtype() {
        DType::F64 => x.clone(),
        _ => x.to_dtype(DType::F32)?,
    };
    let pixels = wide.reshape((b, c, ()))?;
    let length = pixels.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(EPS)?;
    let gain = (gain.to_dtype(wide.dtype())? * (c as f64).sqrt())?.reshape((1, c, 1))?;
    let y = pixels.broadcast_div(&length)?.broadcast_mul(&gain)?;
    let y = if silu { y.silu()? } else { y };
    y.reshape(x.dims())?.to_dtype(x.dtype())
}

fn on_cpu<T: Real>(x: &Tensor, gain: &Tensor, silu: bool) -> Result<Tensor> {
    let gain: Vec<T> = gain.to_vec1::<T>()?;
    let channels = gain.len();
    let root = T::from_f64((channels as f64).sqrt());
    let gain: Vec<T> = gain.into_iter().map(|g| g * root).collect();
    let plane: usize = x.dims()[2..].iter().product();
    let mut out = vec![T::zero(); x.elem_count()];
    let shared = Shared::new(&mut out);
    let x = contiguous(x)?;
    let x_elements = elements::<T>(&x)?;
    let data: &[T] = &x_elements;
    let pieces = plane.div_ceil(PIXELS);
    (0..x.dim(0)? * pieces).into_par_iter().for_each(|task| {
        let (picture, start) = (task / pieces, task % pieces * PIXELS);
        let pixels = PIXELS.min(plane - start);
        let offset = picture * channels * plane + start;
        // SAFETY: the pieces of a picture have distinct columns of its planes, pictures distinct planes.
        let out = unsafe { shared.matrix(offset, channels, pixels, plane) };
        piece(&data[offset..], plane, &gain, silu, out);
    });
    drop(x_elements);
    tensor(out, x.dims())
}

vectorised! {
    /// The norm of the pixels at the beginning of each plane of `x`, which are `plane` apart.
    fn piece<T: Real>(x: &[T], plane: usize, gain: &[T], silu: bool, out: MatrixMut<'_, T>) {
        let mut out = out;
        let pixels = out.columns();
        let mut factors = [T::zero(); PIXELS];
        let factors = &mut factors[..pixels];
        for c in 0..gain.len() {
            for (sum, &v) in factors.iter_mut().zip(&x[c * plane..][..pixels]) {
                *sum = v.mul_add(v, *sum);
            }
        }
        let least = T::from_f64(EPS);
        for factor in factors.iter_mut() {
            let length = Real::sqrt(*factor);
            *factor = T::one() / if length > least { length } else { least };
        }
        for (c, &gain) in gain.iter().enumerate() {
            let row = out.row(c);
            let x = &x[c * plane..][..pixels];
            for ((y, &v), &factor) in row.iter_mut().zip(x).zip(factors.iter()) {
                *y = v * factor * gain;
            }
            if silu {
                for y in row {
                    *y /= T::one() + (T::zero() - *y).exp();
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "pixel_norm_tests.rs"]
mod tests;

//! Group normalisation of pictures, forward, with an optional SiLU in the same pass.
//!
//! Mean and variance are those of a whole group of a whole picture, so pictures are never cut into parts for
//! it. They are taken in two passes and summed in f64.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::Kernels;
use super::compose::wide;
use super::cpu::{by_kernel, contiguous, elements, tensor};
#[cfg(feature = "cuda")]
use super::cuda::groups::Normed;
use super::real::{Real, vectorised};
use super::sums::sum_f64;

/// `x` normalised over each of `groups` equal groups of channels, then scaled and shifted per channel.
///
/// Shapes: `x` `[B, C, ...]`, `weight` and `bias` `[C]`. The variance is the biased one, as everywhere.
///
/// # Errors
///
/// If the channels do not divide into `groups`, or weight or bias have another length.
pub fn group_norm(
    kernels: &Kernels,
    x: &Tensor,
    weight_c: &Tensor,
    bias_c: &Tensor,
    groups: usize,
    eps: f64,
) -> Result<Tensor> {
    forward(kernels, x, weight_c, bias_c, groups, eps, false)
}

/// [`group_norm`] followed by `y * sigmoid(y)`.
///
/// # Errors
///
/// As [`group_norm`].
pub fn group_norm_silu(
    kernels: &Kernels,
    x: &Tensor,
    weight_c: &Tensor,
    bias_c: &Tensor,
    groups: usize,
    eps: f64,
) -> Result<Tensor> {
    forward(kernels, x, weight_c, bias_c, groups, eps, true)
}

fn forward(
    kernels: &Kernels,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    silu: bool,
) -> Result<Tensor> {
    let [_, channels, ..] = *x.dims() else {
        bail!("group_norm: expected [B, C, ...], found {:?}", x.dims());
    };
    if groups == 0 || channels % groups != 0 {
        bail!("group_norm: {channels} channels do not divide into {groups} groups");
    }
    if weight.dims() != [channels] || bias.dims() != [channels] {
        bail!(
            "group_norm: weight {:?} and bias {:?} do not fit {channels} channels",
            weight.dims(),
            bias.dims()
        );
    }
    by_kernel!(
        x,
        T => on_cpu::<T>(x, weight, bias, groups, eps, silu),
        cuda k in kernels => Normed::new(x, (weight, bias), groups, eps)?.forward(k, silu),
        composed(x, weight, bias, groups, eps, silu)
    )
}

fn composed(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    silu: bool,
) -> Result<Tensor> {
    let (b, c) = (x.dim(0)?, x.dim(1)?);
    let grouped = wide(x)?.reshape((b, groups, ()))?;
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim(2)?)?;
    let spread = (centred.sqr()?.mean_keepdim(2)? + eps)?.sqrt()?;
    let unit = centred.broadcast_div(&spread)?.reshape((b, c, ()))?;
    let y = unit
        .broadcast_mul(&wide(weight)?.reshape((1, c, 1))?)?
        .broadcast_add(&wide(bias)?.reshape((1, c, 1))?)?;
    let y = if silu { y.silu()? } else { y };
    y.reshape(x.dims())?.to_dtype(x.dtype())
}

fn on_cpu<T: Real>(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    silu: bool,
) -> Result<Tensor> {
    let (weight, bias) = (weight.to_vec1::<T>()?, bias.to_vec1::<T>()?);
    let channels = weight.len() / groups;
    let pixels: usize = x.dims()[2..].iter().product();
    let mut out = vec![T::zero(); x.elem_count()];
    // Chunks of 0 elements would panic.
    if !out.is_empty() {
        let x = contiguous(x)?;
        let x = elements::<T>(&x)?;
        // One thread a group: the channels of a group lie side by side in [B, C, ..].
        let size = channels * pixels;
        let pieces = out.par_chunks_exact_mut(size).zip(x.par_chunks_exact(size));
        pieces.enumerate().for_each(|(n, (out, x))| {
            let (mean, scale) = moments(x, eps);
            let (mean, first) = (T::from_f64(mean), n % groups * channels);
            let planes = out.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels));
            for (c, (out, x)) in planes.enumerate() {
                // Folded into one factor: one multiply-add a pixel.
                let gain = T::from_f64(scale * weight[first + c].to_f64());
                let bias = bias[first + c];
                apply(x, mean, gain, bias, silu, out);
            }
        });
    }
    tensor(out, x.dims())
}

vectorised! {
    /// Mean and one over the standard deviation.
    fn moments<T: Real>(x: &[T], eps: f64) -> (f64, f64) {
        let count = x.len() as f64;
        let mean = sum_f64(x, |v| v) / count;
        let variance = sum_f64(x, |v| (v - mean) * (v - mean)) / count;
        (mean, 1.0 / (variance + eps).sqrt())
    }
}

vectorised! {
    /// Writes `(x - mean) * gain + bias`, through SiLU if asked.
    fn apply<T: Real>(x: &[T], mean: T, gain: T, bias: T, silu: bool, out: &mut [T]) {
        for (y, &v) in out.iter_mut().zip(x) {
            *y = (v - mean).mul_add(gain, bias);
        }
        if silu {
            for y in out {
                *y /= T::one() + (T::zero() - *y).exp();
            }
        }
    }
}

#[cfg(test)]
#[path = "group_norm_tests.rs"]
mod tests;

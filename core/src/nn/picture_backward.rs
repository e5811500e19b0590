//! The gradients of the operations on pictures towards their inputs, and of convolutions towards their weights.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::cpu::{self, by_kernel, elements};
#[cfg(feature = "cuda")]
use super::cuda::conv::Conv;
use super::norm::{Statistic, norm_backward};
use super::real::Real;
use super::{Activation, Conv2dOptions, Kernels, Padding, conv2d, group_norm, upsample_nearest_2x};

/// The gradient towards `x` `[B, I, H, W]` of `conv2d(x, weight, ..)`, of that of its result: the convolution of
/// the gradient, its pixels `stride` apart, with the turned kernel.
pub fn conv2d_backward(
    kernels: &Kernels,
    weight_oikk: &Tensor,
    options: Conv2dOptions,
    (height, width): (usize, usize),
    gradient: &Tensor,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(k) = kernels.serving(gradient) {
        let (batch, shape) = (gradient.dim(0)?, weight_oikk.dims4()?);
        let conv = Conv::new(k, shape, options, batch, (height, width));
        return conv.backward(weight_oikk, gradient);
    }
    let (_, _, kernel_h, kernel_w) = weight_oikk.dims4()?;
    let grown = if options.upsample { 2 } else { 1 };
    let spread = spread(gradient, options.stride)?;
    let (_, _, spread_h, spread_w) = spread.dims4()?;
    // Zeros before and after, so that the result has the input's extent.
    let around = |extent: usize, kernel: usize, before: usize, spread: usize| {
        // None for a padding beyond the kernel: the gradient would have to be cut, and no network here has one.
        let start = (kernel - 1).checked_sub(before)?;
        let end = (extent * grown + kernel - 1).checked_sub(spread + start)?;
        Some((start, end))
    };
    let p = options.padding;
    let rows = around(height, kernel_h, p.top, spread_h);
    let columns = around(width, kernel_w, p.left, spread_w);
    let (Some((top, bottom)), Some((left, right))) = (rows, columns) else {
        bail!("no gradient for a convolution padded by more than its kernel: {p:?}");
    };
    let turned = weight_oikk
        .contiguous()?
        .flip(&[2, 3])?
        .transpose(0, 1)?
        .contiguous()?;
    let options = Conv2dOptions {
        stride: 1,
        padding: Padding {
            top,
            bottom,
            left,
            right,
        },
        upsample: false,
    };
    let dx = conv2d(kernels, &spread, &turned, None, options)?;
    if grown == 2 {
        upsample_nearest_2x_backward(kernels, &dx)
    } else {
        Ok(dx)
    }
}

/// The gradient towards the weight `[O, I, kernel, kernel]` of `conv2d(x, weight, ..)`, of that of its result: the
/// convolution of each channel of `x` with each of the gradient, its pixels `stride` apart, summed over the batch.
pub fn conv2d_weight_backward(
    kernels: &Kernels,
    x_bihw: &Tensor,
    kernel: usize,
    options: Conv2dOptions,
    gradient: &Tensor,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(k) = kernels.serving(x_bihw) {
        let (batch, inputs, height, width) = x_bihw.dims4()?;
        let shape = (gradient.dim(1)?, inputs, kernel, kernel);
        let conv = Conv::new(k, shape, options, batch, (height, width));
        return conv.weight_backward(x_bihw, gradient);
    }
    let x = match options.upsample {
        true => upsample_nearest_2x(kernels, x_bihw)?,
        false => x_bihw.clone(),
    };
    let window = spread(gradient, options.stride)?;
    let window_obhw = window.transpose(0, 1)?.contiguous()?;
    let options = Conv2dOptions {
        stride: 1,
        upsample: false,
        ..options
    };
    let x_ibhw = x.transpose(0, 1)?.contiguous()?;
    // The batch takes the place of the input channels, so that the convolution sums over it.
    let found_iokk = conv2d(kernels, &x_ibhw, &window_obhw, None, options)?;
    // Rows and columns that no stride reached are left over below and on the right.
    let found_iokk = found_iokk.narrow(2, 0, kernel)?.narrow(3, 0, kernel)?;
    found_iokk.transpose(0, 1)?.contiguous()
}

/// The pixels of `x` `[B, C, H, W]` `stride` apart, zeros between.
fn spread(x: &Tensor, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return Ok(x.clone());
    }
    let (b, c, h, w) = x.dims4()?;
    let apart = x.reshape((b, c, h, 1, w, 1))?;
    let apart = apart
        .pad_with_zeros(3, 0, stride - 1)?
        .pad_with_zeros(5, 0, stride - 1)?;
    let apart = apart.reshape((b, c, h * stride, w * stride))?;
    apart
        .narrow(2, 0, (h - 1) * stride + 1)?
        .narrow(3, 0, (w - 1) * stride + 1)
}

/// The gradient towards `x` of `upsample_nearest_2x(x)`: the sums over 2 x 2 pixels.
pub fn upsample_nearest_2x_backward(kernels: &Kernels, gradient: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = gradient.dims4()?;
    let (h, w) = (h / 2, w / 2);
    by_kernel!(
        gradient,
        T => sums_2x2::<T>(gradient, [b, c, h, w]),
        cuda k in kernels => super::cuda::conv::summed_2x2(k, gradient),
        gradient.contiguous()?.reshape((b, c, h, 2, w, 2))?.sum((3, 5))
    )
}

fn sums_2x2<T: Real>(x: &Tensor, [b, c, h, w]: [usize; 4]) -> Result<Tensor> {
    let dense = cpu::contiguous(x)?;
    let data = elements::<T>(&dense)?;
    let mut out = vec![T::zero(); b * c * h * w];
    // Chunks of 0 elements would panic.
    if !out.is_empty() {
        let planes = out
            .par_chunks_exact_mut(h * w)
            .zip(data.par_chunks_exact(4 * h * w));
        planes.for_each(|(out, x)| {
            for (out, rows) in out.chunks_exact_mut(w).zip(x.chunks_exact(4 * w)) {
                let (upper, lower) = rows.split_at(2 * w);
                for (i, out) in out.iter_mut().enumerate() {
                    *out = upper[2 * i] + upper[2 * i + 1] + lower[2 * i] + lower[2 * i + 1];
                }
            }
        });
    }
    cpu::tensor(out, &[b, c, h, w])
}

/// The gradient towards `x` of `group_norm(x, ..)`, or of `group_norm_silu(x, ..)`, of that of its result, which
/// is edited in place.
pub fn group_norm_backward(
    kernels: &Kernels,
    x: &Tensor,
    (weight_c, bias_c): (&Tensor, &Tensor),
    groups: usize,
    eps: f64,
    silu: bool,
    gradient: Tensor,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(k) = kernels.serving(x) {
        let normed = super::cuda::groups::Normed::new(x, (weight_c, bias_c), groups, eps)?;
        return normed.backward(k, &gradient, silu);
    }
    // The normed picture is made again: it would be as large as x to keep.
    let gradient = if silu {
        let y = group_norm(kernels, x, weight_c, bias_c, groups, eps)?;
        Activation::Silu.backward(kernels, &y, gradient)?
    } else {
        gradient
    };
    let (batch, channels) = (x.dim(0)?, x.dim(1)?);
    let planes = gradient.reshape((batch, channels, ()))?;
    let scaled = by_kernel!(
        &planes,
        T => scale_planes::<T>(planes, weight_c)?,
        planes.broadcast_mul(&weight_c.reshape((1, channels, 1))?)?
    );
    let rows = cpu::contiguous(x)?.reshape((batch * groups, ()))?;
    let scaled = scaled.reshape(rows.shape())?;
    norm_backward(kernels, Statistic::Deviation, &rows, None, eps, scaled)?.reshape(x.shape())
}

/// Multiplies the planes `[B, C, pixels]` by their channel's weight, in place.
fn scale_planes<T: Real>(planes: Tensor, weight: &Tensor) -> Result<Tensor> {
    let (_, channels, pixels) = planes.dims3()?;
    let weight = cpu::contiguous(weight)?;
    let weight = elements::<T>(&weight)?;
    let weight: &[T] = &weight;
    cpu::edit::<T>(&planes, |data| {
        data.par_chunks_exact_mut(pixels.max(1))
            .enumerate()
            .for_each(|(plane, data)| {
                for x in data {
                    *x *= weight[plane % channels];
                }
            });
    })?;
    Ok(planes)
}

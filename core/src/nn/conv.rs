//! Two-dimensional convolution, forward.
//!
//! Legend of shape suffixes: b batch, i input channels, o output channels, h height, w width, k kernel.
//!
//! On a CPU in f32 the output is cut into tiles of whole rows. A tile's windows are laid out as columns for a
//! few channels at a time and multiplied into the tile, so no buffer beyond [`COLUMN_FLOATS`] per thread is
//! made (the whole of the windows would be nine times the picture). A tile is computed by one thread in one
//! order: the result depends neither on the number of threads nor on what else is in the batch.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use super::Kernels;
use super::cpu::{by_kernel, contiguous, elements, tensor};
#[cfg(feature = "cuda")]
use super::cuda::conv::Conv;
use super::gemm::{ALONE, Matrix, MatrixMut, Shared, Write, matmul};
use super::real::Real;
use super::resample::upsample_nearest_2x;

/// Output pixels a tile aims at; a row wider than this is a tile of its own. It depends on the shape only, never on the threads.
const TILE_PIXELS: usize = 512;
/// The most floats of unrolled windows a thread holds.
const COLUMN_FLOATS: usize = 256 * 1024;

/// Zeros around the picture, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns on the left.
    pub left: usize,
    /// Columns on the right.
    pub right: usize,
}

/// How the window moves over the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dOptions {
    /// Step of the window in both directions.
    pub stride: usize,
    /// Zeros around the picture (after doubling, where that is asked for).
    pub padding: Padding,
    /// Whether every pixel is first repeated to 2 x 2, as [`upsample_nearest_2x`] does, without the larger
    /// picture ever being made.
    pub upsample: bool,
}

impl Conv2dOptions {
    /// A 1 x 1 convolution.
    pub const POINTWISE: Self = Self {
        stride: 1,
        padding: Padding {
            top: 0,
            bottom: 0,
            left: 0,
            right: 0,
        },
        upsample: false,
    };
    /// A 3 x 3 convolution that keeps the size.
    pub const SAME: Self = Self {
        stride: 1,
        padding: Padding {
            top: 1,
            bottom: 1,
            left: 1,
            right: 1,
        },
        upsample: false,
    };
    /// A 3 x 3 convolution that halves the size, with zeros below and on the right only.
    pub const HALVE: Self = Self {
        stride: 2,
        padding: Padding {
            top: 0,
            bottom: 1,
            left: 0,
            right: 1,
        },
        upsample: false,
    };
    /// A 3 x 3 convolution over the doubled picture.
    pub const DOUBLE: Self = Self {
        upsample: true,
        ..Self::SAME
    };
}

/// Sizes of one convolution, checked against each other.
#[derive(Clone, Copy)]
struct Geometry {
    i: usize,
    o: usize,
    h: usize,
    w: usize,
    kh: usize,
    kw: usize,
    out_h: usize,
    out_w: usize,
    options: Conv2dOptions,
}

/// `x` convolved with `weight`.
///
/// Shapes: `x` `[B, I, H, W]`, `weight` `[O, I, KH, KW]`, `bias` `[O]`; the result is `[B, O, H', W']` with
/// `H' = (H + top + bottom - KH) / stride + 1`, H doubled before where `options.upsample`.
///
/// # Errors
/// If shapes do not fit each other, the window does not fit the padded picture, or the stride is 0.
pub fn conv2d(
    kernels: &Kernels,
    x_bihw: &Tensor,
    weight_oikk: &Tensor,
    bias_o: Option<&Tensor>,
    options: Conv2dOptions,
) -> Result<Tensor> {
    conv2d_sum(kernels, &[(x_bihw, weight_oikk)], bias_o, options)
}

/// The sum of convolutions of one shape, each of a picture with its own weight: what a convolution over time makes of one frame.
///
/// Shapes as [`conv2d`].
///
/// # Errors
/// As [`conv2d`], and if there is nothing to add up or the shapes differ.
pub fn conv2d_sum(
    kernels: &Kernels,
    terms: &[(&Tensor, &Tensor)],
    bias_o: Option<&Tensor>,
    options: Conv2dOptions,
) -> Result<Tensor> {
    let Some((&(x_bihw, weight_oikk), rest)) = terms.split_first() else {
        bail!("conv2d: there is nothing to add up");
    };
    let geometry = geometry(x_bihw, weight_oikk, bias_o, options)?;
    if let Some((x, weight)) = rest
        .iter()
        .find(|(x, weight)| x.shape() != x_bihw.shape() || weight.shape() != weight_oikk.shape())
    {
        bail!(
            "conv2d: {:?} by {:?} cannot be added to {:?} by {:?}",
            x.dims(),
            weight.dims(),
            x_bihw.dims(),
            weight_oikk.dims()
        );
    }
    by_kernel!(
        x_bihw,
        T => on_cpu::<T>(terms, bias_o, geometry),
        cuda k in kernels => {
            let (b, _, h, w) = x_bihw.dims4()?;
            let conv = Conv::new(k, weight_oikk.dims4()?, options, b, (h, w));
            let first = conv.forward(x_bihw, weight_oikk, bias_o)?;
            rest.iter()
                .try_fold(first, |sum, (x, weight)| sum + conv.forward(x, weight, None)?)
        },
        {
            let first = composed(x_bihw, weight_oikk, bias_o, options)?;
            rest.iter()
                .try_fold(first, |sum, (x, weight)| sum + composed(x, weight, None, options)?)
        }
    )
}

fn composed(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: Conv2dOptions,
) -> Result<Tensor> {
    let p = options.padding;
    let x = if options.upsample {
        upsample_nearest_2x(&Kernels::NONE, x)?
    } else {
        x.clone()
    };
    let x = x
        .pad_with_zeros(2, p.top, p.bottom)?
        .pad_with_zeros(3, p.left, p.right)?;
    // candle's convolution for CPUs knows no bf16.
    let y = if x.device().is_cpu() && x.dtype() == DType::BF16 {
        let wide = x.to_dtype(DType::F32)?;
        let weight = weight.to_dtype(DType::F32)?;
        in_strips(&wide, &weight, options.stride, STRIP_BYTES)?.to_dtype(DType::BF16)?
    } else {
        in_strips(&x, weight, options.stride, STRIP_BYTES)?
    };
    match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, (), 1, 1))?),
        None => Ok(y),
    }
}

/// What candle's convolution may write out of its windows at a time: it makes a matrix of them, which of a large picture
/// is larger than the rest of the network.
const STRIP_BYTES: usize = 1 << 29;

/// `x` convolved with `weight`, a strip of rows after the other.
fn in_strips(x: &Tensor, weight: &Tensor, stride: usize, strip_bytes: usize) -> Result<Tensor> {
    let (b, i, h, w) = x.dims4()?;
    let (_, _, kh, kw) = weight.dims4()?;
    let (out_h, out_w) = ((h - kh) / stride + 1, (w - kw) / stride + 1);
    let row_bytes = b * i * kh * kw * out_w * x.dtype().size_in_bytes();
    let rows = (strip_bytes / row_bytes.max(1)).clamp(1, out_h);
    let strip = |start: usize| {
        let rows = rows.min(out_h - start);
        // Strips overlap by the rows that a window reaches beyond its own.
        let seen = x.narrow(2, start * stride, (rows - 1) * stride + kh)?;
        seen.contiguous()?.conv2d(weight, 0, stride, 1, 1)
    };
    let strips = (0..out_h).step_by(rows).map(strip);
    match rows == out_h {
        true => x.conv2d(weight, 0, stride, 1, 1),
        false => Tensor::cat(&strips.collect::<Result<Vec<_>>>()?, 2),
    }
}

fn geometry(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: Conv2dOptions,
) -> Result<Geometry> {
    let (_, i, mut h, mut w) = x.dims4()?;
    let (o, weight_i, kh, kw) = weight.dims4()?;
    if weight_i != i {
        bail!("conv2d: the weight is for {weight_i} channels, the input has {i}");
    }
    if let Some(bias) = bias
        && bias.dims() != [o]
    {
        bail!(
            "conv2d: the bias has shape {:?}, expected [{o}]",
            bias.dims()
        );
    }
    // Before padding, as `Upsample2D` of diffusers does: interpolation, then a padded convolution.
    if options.upsample {
        (h, w) = (2 * h, 2 * w);
    }
    let p = options.padding;
    let (padded_h, padded_w) = (h + p.top + p.bottom, w + p.left + p.right);
    if options.stride == 0 || kh == 0 || kw == 0 || padded_h < kh || padded_w < kw {
        bail!(
            "conv2d: a {kh} x {kw} window with stride {} does not fit a padded picture of {padded_h} x {padded_w}",
            options.stride
        );
    }
    let out_h = (padded_h - kh) / options.stride + 1;
    let out_w = (padded_w - kw) / options.stride + 1;
    Ok(Geometry {
        i,
        o,
        h,
        w,
        kh,
        kw,
        out_h,
        out_w,
        options,
    })
}

fn on_cpu<T: Real>(
    terms: &[(&Tensor, &Tensor)],
    bias: Option<&Tensor>,
    g: Geometry,
) -> Result<Tensor> {
    let b = terms.first().map_or(Ok(0), |(x, _)| x.dim(0))?;
    let bias = bias.map(|bias| bias.to_vec1::<T>()).transpose()?;
    let plane = g.out_h * g.out_w;
    let rows = (TILE_PIXELS / g.out_w).clamp(1, g.out_h);
    let tiles = g.out_h.div_ceil(rows);
    let mut out = vec![T::zero(); b * g.o * plane];
    let shared = Shared::new(&mut out);
    let terms = terms
        .iter()
        .map(|(x, weight)| Ok((contiguous(x)?, contiguous(weight)?)))
        .collect::<Result<Vec<_>>>()?;
    let terms = terms
        .iter()
        .map(|(x, weight)| Ok((elements::<T>(x)?, elements::<T>(weight)?)))
        .collect::<Result<Vec<_>>>()?;
    let terms: Vec<(&[T], &[T])> = terms.iter().map(|(x, weight)| (&**x, &**weight)).collect();
    (0..b * tiles)
        .into_par_iter()
        .for_each_init(Vec::new, |columns, task| {
            let (picture, first) = (task / tiles, task % tiles * rows);
            let span = rows.min(g.out_h - first);
            let offset = picture * g.o * plane + first * g.out_w;
            // SAFETY: the tiles of a picture have distinct rows of its planes, pictures distinct planes.
            let mut out = unsafe { shared.matrix(offset, g.o, span * g.out_w, plane) };
            // First, so that products are added to it and no pass over the picture follows.
            if let Some(bias) = &bias {
                for (o, bias) in bias.iter().enumerate() {
                    out.row(o).fill(*bias);
                }
            }
            for (x, weight) in &terms {
                let size = x.len() / b;
                let x = &x[picture * size..][..size];
                one_tile(x, weight, &g, first, &mut out, columns);
            }
        });
    tensor(out, &[b, g.o, g.out_h, g.out_w])
}

/// Adds the products of one picture to rows from `first` on of every output channel.
fn one_tile<T: Real>(
    x: &[T],
    weight: &[T],
    g: &Geometry,
    first: usize,
    out: &mut MatrixMut<'_, T>,
    columns: &mut Vec<T>,
) {
    if g.i == 0 {
        return;
    }
    let (window, in_plane) = (g.kh * g.kw, x.len() / g.i);
    let pixels = out.columns();
    // A 1 x 1 window is the picture itself: nothing to unroll.
    let pointwise = window == 1 && g.options == Conv2dOptions::POINTWISE;
    let step = match pointwise {
        true => g.i,
        false => (COLUMN_FLOATS / (window * pixels)).clamp(1, g.i),
    };
    for c in (0..g.i).step_by(step) {
        let channels = step.min(g.i - c);
        let depth = channels * window;
        let left = Matrix::new(&weight[c * window..], g.o, depth, g.i * window);
        let right = if pointwise {
            Matrix::new(&x[first * g.out_w..], depth, pixels, in_plane)
        } else {
            unroll(
                &x[c * in_plane..][..channels * in_plane],
                g,
                first,
                pixels / g.out_w,
                columns,
            );
            Matrix::new(columns, depth, pixels, pixels)
        };
        matmul(out, Write::Add, T::one(), left, right, ALONE);
    }
}

/// The windows of rows `first..first + span` over the channels in `x`, as a matrix
/// [channels * kh * kw, span * out_w].
fn unroll<T: Real>(x: &[T], g: &Geometry, first: usize, span: usize, columns: &mut Vec<T>) {
    let channels_plane = if g.options.upsample {
        g.h * g.w / 4
    } else {
        g.h * g.w
    };
    let depth = x.len() / channels_plane * g.kh * g.kw;
    columns.resize(depth * span * g.out_w, T::zero());
    let mut rows = columns.chunks_exact_mut(g.out_w);
    for plane in x.chunks_exact(channels_plane) {
        for ky in 0..g.kh {
            for kx in 0..g.kw {
                for y in first..first + span {
                    let Some(row) = rows.next() else { return };
                    unroll_row(plane, g, y * g.options.stride + ky, kx, row);
                }
            }
        }
    }
}

/// One output row's pixels under one place of the window: row `y` (counted with padding) of the picture,
/// from column `kx` on (counted with padding), every `stride`-th.
fn unroll_row<T: Real>(plane: &[T], g: &Geometry, y: usize, kx: usize, row: &mut [T]) {
    let (stride, p) = (g.options.stride, g.options.padding);
    if y < p.top || y - p.top >= g.h {
        row.fill(T::zero());
        return;
    }
    let y = y - p.top;
    // The output columns whose pixel lies inside the picture.
    let begin = p.left.saturating_sub(kx).div_ceil(stride).min(row.len());
    let end = (g.w + p.left)
        .saturating_sub(kx)
        .div_ceil(stride)
        .clamp(begin, row.len());
    row[..begin].fill(T::zero());
    row[end..].fill(T::zero());
    if begin == end {
        return;
    }
    let start = begin * stride + kx - p.left;
    if g.options.upsample {
        let source = &plane[y / 2 * (g.w / 2)..][..g.w / 2];
        for (n, value) in row[begin..end].iter_mut().enumerate() {
            *value = source[(start + n * stride) / 2];
        }
    } else if stride == 1 {
        row[begin..end].copy_from_slice(&plane[y * g.w + start..][..end - begin]);
    } else {
        let source = &plane[y * g.w + start..(y + 1) * g.w];
        for (value, pixel) in row[begin..end]
            .iter_mut()
            .zip(source.iter().step_by(stride))
        {
            *value = *pixel;
        }
    }
}

#[cfg(test)]
#[path = "conv_tests.rs"]
mod tests;

//! Norms on CPU slices, one pass over memory. Gains and biases are flat: nothing, one row for all, or one for
//! each row of the batch.

use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

use super::Statistic;
use crate::nn::cpu::{self, elements, sum};
use crate::nn::real::{Real, vectorised};
use crate::nn::sums::{sum_f64, sum2_f64};

/// Rows summed into one partial sum: fixed, so that the sums do not depend on the number of threads.
const SUM_ROWS: usize = 64;

/// Parameters for rows of `width`, of which consecutive `span` share one.
#[derive(Clone, Copy)]
struct PerRow<'a, T> {
    data: &'a [T],
    width: usize,
    span: usize,
}

impl<'a, T> PerRow<'a, T> {
    fn new(data: &'a [T], rows: usize, width: usize) -> Self {
        let groups = (data.len() / width).max(1);
        Self {
            data,
            width,
            span: rows.div_ceil(groups).max(1),
        }
    }

    /// The parameters of row `row`, if there are any.
    fn get(&self, row: usize) -> Option<&'a [T]> {
        self.data
            .get(row / self.span * self.width..)?
            .get(..self.width)
    }
}

/// A row's mean (0 where it is not taken off) and the factor that brings it to 1.
#[inline(always)]
fn statistics<T: Real>(statistic: Statistic, row: &[T], eps: f64) -> (T, T) {
    let count = T::from_f64(row.len() as f64);
    // Two passes: E[x^2] - E[x]^2 would lose the digits of a row whose mean is large.
    let mean = match statistic {
        Statistic::Deviation => sum(row, |x| x) / count,
        Statistic::RootMeanSquare => T::zero(),
    };
    let square = sum(row, |x| (x - mean) * (x - mean)) / count;
    (mean, T::one() / (square + T::from_f64(eps)).sqrt())
}

vectorised! {
    fn norm_row<T: Real>(
        statistic: Statistic,
        eps: f64,
        out: &mut [T],
        x: &[T],
        gain: Option<&[T]>,
        bias: Option<&[T]>,
    ) {
        let (mean, factor) = statistics(statistic, x, eps);
        match (gain, bias) {
            (Some(gain), Some(bias)) => {
                for (out, (&x, (&g, &b))) in out.iter_mut().zip(x.iter().zip(gain.iter().zip(bias))) {
                    *out = ((x - mean) * factor).mul_add(g, b);
                }
            }
            (Some(gain), None) => {
                for (out, (&x, &g)) in out.iter_mut().zip(x.iter().zip(gain)) {
                    *out = (x - mean) * factor * g;
                }
            }
            (None, bias) => {
                for (out, &x) in out.iter_mut().zip(x) {
                    *out = (x - mean) * factor;
                }
                for (out, &b) in out.iter_mut().zip(bias.unwrap_or_default()) {
                    *out += b;
                }
            }
        }
    }
}

vectorised! {
    /// Edits the gradient `h` of a row's result into that of the row.
    ///
    /// Computed in f64 and rounded once: the numbers of a row's gradient add up to 0, and what is summed over them next
    /// (the shift of each channel before a group norm) is a small difference of large numbers. A rounded mean would leave
    /// the same error in all of them, which grows with their number.
    fn norm_row_backward<T: Real>(
        statistic: Statistic,
        eps: f64,
        h: &mut [T],
        x: &[T],
        gain: Option<&[T]>,
    ) {
        for (h, &gain) in h.iter_mut().zip(gain.unwrap_or_default()) {
            *h *= gain;
        }
        let count = x.len() as f64;
        let mean = match statistic {
            Statistic::Deviation => sum_f64(x, |x| x) / count,
            Statistic::RootMeanSquare => 0.0,
        };
        let square = sum_f64(x, |x| (x - mean) * (x - mean)) / count;
        let factor = 1.0 / (square + eps).sqrt();
        let across = match statistic {
            Statistic::Deviation => sum_f64(h, |h| h) / count,
            Statistic::RootMeanSquare => 0.0,
        };
        let along = sum2_f64(h, x, |h, x| h * (x - mean)) * factor / count;
        for (h, &x) in h.iter_mut().zip(x) {
            let unit = (x.to_f64() - mean) * factor;
            *h = T::from_f64(factor * (h.to_f64() - across - unit * along));
        }
    }
}

vectorised! {
    /// `gate y`, plus `x` if there is one.
    fn gated_row<T: Real>(out: &mut [T], x: Option<&[T]>, gate: &[T], y: &[T]) {
        for (out, (&gate, &y)) in out.iter_mut().zip(gate.iter().zip(y)) {
            *out = gate * y;
        }
        for (out, &x) in out.iter_mut().zip(x.unwrap_or_default()) {
            *out += x;
        }
    }
}

vectorised! {
    fn add_products<T: Real>(sums: &mut [T], x: &[T], y: &[T]) {
        for (sum, (&x, &y)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *sum = x.mul_add(y, *sum);
        }
    }
}

vectorised! {
    fn add_modulation_gradients<T: Real>(
        eps: f64,
        scale: &mut [T],
        shift: &mut [T],
        x: &[T],
        gradient: &[T],
    ) {
        let (mean, factor) = statistics(Statistic::Deviation, x, eps);
        let sums = scale.iter_mut().zip(shift);
        for ((scale, shift), (&x, &g)) in sums.zip(x.iter().zip(gradient)) {
            *scale += g * (x - mean) * factor;
            *shift += g;
        }
    }
}

pub(super) fn forward<T: Real>(
    statistic: Statistic,
    x: &Tensor,
    gain: &[T],
    bias: &[T],
    eps: f64,
) -> Result<Tensor> {
    let (rows, width) = cpu::rows_of(x)?;
    let dense = cpu::contiguous(x)?;
    let data = elements::<T>(&dense)?;
    let (gain, bias) = (
        PerRow::new(gain, rows, width),
        PerRow::new(bias, rows, width),
    );
    let mut out = vec![T::zero(); rows * width];
    let step = cpu::rows_per_piece(width);
    let pieces = out
        .par_chunks_mut(step * width)
        .zip(data.par_chunks(step * width));
    pieces.enumerate().for_each(|(piece, (out, x))| {
        for (i, (out, x)) in out
            .chunks_exact_mut(width)
            .zip(x.chunks_exact(width))
            .enumerate()
        {
            let row = piece * step + i;
            norm_row(statistic, eps, out, x, gain.get(row), bias.get(row));
        }
    });
    cpu::tensor(out, x.dims())
}

/// With u the normed row, r its factor, h the gradient times the gain:
/// `dx = r (h - mean(h) - u mean(h u))`, the mean of h only where the norm takes off a mean.
pub(super) fn backward<T: Real>(
    statistic: Statistic,
    x: &Tensor,
    gain: &[T],
    eps: f64,
    gradient: Tensor,
) -> Result<Tensor> {
    let (rows, width) = cpu::rows_of(x)?;
    let dense = cpu::contiguous(x)?;
    let data = elements::<T>(&dense)?;
    let data: &[T] = &data;
    let gain = PerRow::new(gain, rows, width);
    let step = cpu::rows_per_piece(width);
    cpu::edit::<T>(&gradient, |gradient| {
        let pieces = gradient
            .par_chunks_mut(step * width)
            .zip(data.par_chunks(step * width));
        pieces.enumerate().for_each(|(piece, (gradient, x))| {
            let rows = gradient.chunks_exact_mut(width).zip(x.chunks_exact(width));
            for (i, (gradient, x)) in rows.enumerate() {
                norm_row_backward(statistic, eps, gradient, x, gain.get(piece * step + i));
            }
        });
    })?;
    Ok(gradient)
}

/// `gate y`, plus `x` if there is one.
pub(super) fn gated<T: Real>(x: Option<&Tensor>, gate: &[T], y: &Tensor) -> Result<Tensor> {
    let (rows, width) = cpu::rows_of(y)?;
    if let Some(x) = x
        && x.dims() != y.dims()
    {
        candle_core::bail!("a residual of {:?} for {:?}", y.dims(), x.dims());
    }
    let (x, dense_y) = (x.map(cpu::contiguous).transpose()?, cpu::contiguous(y)?);
    let (x, data) = (
        x.as_ref().map(elements::<T>).transpose()?,
        elements::<T>(&dense_y)?,
    );
    let x = x.as_deref();
    let gate = PerRow::new(gate, rows, width);
    let mut out = vec![T::zero(); rows * width];
    let step = cpu::rows_per_piece(width);
    let pieces = out
        .par_chunks_mut(step * width)
        .zip(data.par_chunks(step * width));
    pieces.enumerate().for_each(|(piece, (out, y))| {
        let x = x.map(|x| &x[piece * step * width..][..y.len()]);
        for (i, (out, y)) in out
            .chunks_exact_mut(width)
            .zip(y.chunks_exact(width))
            .enumerate()
        {
            let x = x.map(|x| &x[i * width..][..width]);
            gated_row(out, x, gate.get(piece * step + i).unwrap_or_default(), y);
        }
    });
    cpu::tensor(out, y.dims())
}

/// The sums over the rows of a batch row of what `add` adds up: `[B, .., n]` to `[B, n]` for each of `N` sums.
/// `add` is given the sums so far, a row of `x` and one of `y`.
fn sums_over_rows<T: Real, const N: usize>(
    x: &Tensor,
    y: &Tensor,
    add: impl Fn(&mut [Vec<T>; N], &[T], &[T]) + Sync,
) -> Result<[Vec<T>; N]> {
    let (rows, width) = cpu::rows_of(x)?;
    let batch = x.dim(0)?;
    let (x, y) = (cpu::contiguous(x)?, cpu::contiguous(y)?);
    let (x, y) = (elements::<T>(&x)?, elements::<T>(&y)?);
    let (x, y): (&[T], &[T]) = (&x, &y);
    let span = rows / batch.max(1);
    let pieces = span.div_ceil(SUM_ROWS);
    let partial_sums = |index: usize| {
        let (b, start) = (index / pieces, index % pieces * SUM_ROWS);
        let range = (b * span + start) * width..(b * span + span.min(start + SUM_ROWS)) * width;
        let mut sums = std::array::from_fn(|_| vec![T::zero(); width]);
        for (x, y) in x[range.clone()]
            .chunks_exact(width)
            .zip(y[range].chunks_exact(width))
        {
            add(&mut sums, x, y);
        }
        sums
    };
    let partial: Vec<[Vec<T>; N]> = (0..batch * pieces)
        .into_par_iter()
        .map(partial_sums)
        .collect();
    let mut out: [Vec<f64>; N] = std::array::from_fn(|_| vec![0.0; batch * width]);
    // By one thread and in order: the same bits whatever finished first.
    for (index, sums) in partial.iter().enumerate() {
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, &sum) in out[index / pieces * width..].iter_mut().zip(sums) {
                *out += sum.to_f64();
            }
        }
    }
    Ok(out.map(|sums| sums.into_iter().map(T::from_f64).collect()))
}

/// The sums of the products of the rows of `x` and `y`, per batch row.
pub(super) fn row_products<T: Real>(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let [sums] = sums_over_rows::<T, 1>(x, y, |[sums], x, y| add_products(sums, x, y))?;
    cpu::tensor(sums, &[x.dim(0)?, x.dim(D::Minus1)?])
}

pub(super) fn modulation_gradients<T: Real>(
    x: &Tensor,
    eps: f64,
    gradient: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let [scale, shift] = sums_over_rows::<T, 2>(x, gradient, |[scale, shift], x, g| {
        add_modulation_gradients(eps, scale, shift, x, g);
    })?;
    let shape = [x.dim(0)?, x.dim(D::Minus1)?];
    Ok((cpu::tensor(scale, &shape)?, cpu::tensor(shift, &shape)?))
}

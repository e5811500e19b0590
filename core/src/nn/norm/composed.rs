//! Norms by tensor operations, statistics in f32 at least.

use candle_core::{D, Result, Tensor};

use super::Statistic;
use crate::nn::compose::wide;

/// The normed rows, and the factor that brought each to 1 (`[.., 1]`).
fn unit(statistic: Statistic, x: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let x = wide(x)?;
    let x = match statistic {
        Statistic::Deviation => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
        Statistic::RootMeanSquare => x,
    };
    let factor = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    Ok((x.broadcast_mul(&factor)?, factor))
}

pub(super) fn norm(
    statistic: Statistic,
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    // Back in the type of x before the weight, which has that type.
    let y = unit(statistic, x, eps)?.0.to_dtype(x.dtype())?;
    let y = if let Some(weight) = weight {
        y.broadcast_mul(weight)?
    } else {
        y
    };
    if let Some(bias) = bias {
        y.broadcast_add(bias)
    } else {
        Ok(y)
    }
}

pub(super) fn modulate(x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f64) -> Result<Tensor> {
    let unit = norm(Statistic::Deviation, x, None, None, eps)?;
    unit.broadcast_mul(&per_row(&(scale + 1.0)?, x)?)?
        .broadcast_add(&per_row(shift, x)?)
}

/// The gradient towards `x` of the normed rows, of theirs.
pub(super) fn backward(
    statistic: Statistic,
    x: &Tensor,
    eps: f64,
    gradient: &Tensor,
) -> Result<Tensor> {
    let (unit, factor) = unit(statistic, x, eps)?;
    let gradient = wide(gradient)?;
    let along = unit.broadcast_mul(&(&gradient * &unit)?.mean_keepdim(D::Minus1)?)?;
    let across = match statistic {
        Statistic::Deviation => gradient.broadcast_sub(&gradient.mean_keepdim(D::Minus1)?)?,
        Statistic::RootMeanSquare => gradient,
    };
    (across - along)?
        .broadcast_mul(&factor)?
        .to_dtype(x.dtype())
}

/// `[B, n]` so that it spreads over `like`, `[B, .., n]`.
pub(super) fn per_row(vectors: &Tensor, like: &Tensor) -> Result<Tensor> {
    let (batch, width) = vectors.dims2()?;
    let mut shape = vec![1; like.rank()];
    shape[0] = batch;
    shape[like.rank() - 1] = width;
    vectors.reshape(shape)
}

/// The sums over all but the first and the last dimension: `[B, .., n]` to `[B, n]`.
pub(super) fn row_sums(x: &Tensor) -> Result<Tensor> {
    let (batch, width) = (x.dim(0)?, x.dim(D::Minus1)?);
    // Summed in f32: a sum over thousands of tokens outgrows bf16's 8 bits.
    wide(x)?
        .reshape((batch, (), width))?
        .sum(1)?
        .to_dtype(x.dtype())
}

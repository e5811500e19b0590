//! Norms over the last dimension, and what the blocks of diffusion transformers put around them: modulation by
//! a conditioning vector and gated residuals. Statistics are taken in two passes (mean, then squares of what is
//! left), so a large mean costs no digits.

mod composed;
mod kernel;

use candle_core::{Result, Tensor, bail};

use super::Kernels;
use super::cpu::{self, by_kernel};
#[cfg(feature = "cuda")]
use super::cuda::rows;

/// `(x - mean) / sqrt(var + eps) * weight + bias` over the last dimension of `x` `[.., n]`, with `weight` and
/// `bias` `[n]` (Ba, Kiros, Hinton 2016).
///
/// # Errors
///
/// If the shapes do not fit, and those of the backend.
pub fn layer_norm(
    kernels: &Kernels,
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    norm(kernels, Statistic::Deviation, x, weight, bias, eps)
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension of `x` `[.., n]` (Zhang, Sennrich 2019).
///
/// # Errors
///
/// If the shapes do not fit, and those of the backend.
pub fn rms_norm(
    kernels: &Kernels,
    x: &Tensor,
    weight: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    norm(kernels, Statistic::RootMeanSquare, x, weight, None, eps)
}

/// `layer_norm(x) (1 + scale) + shift`, each row of the batch with its own `scale` and `shift`: `x` `[B, .., n]`,
/// `scale` and `shift` `[B, n]` (the adaptive norm of Peebles, Xie 2022).
///
/// # Errors
///
/// If the shapes do not fit, and those of the backend.
pub fn modulate(
    kernels: &Kernels,
    x: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    check_rows(x, scale)?;
    check_rows(x, shift)?;
    by_kernel!(
        x,
        T => {
            // 1 + scale once for each batch row, not for each token.
            let mut gain = elements_of::<T>(scale)?;
            for gain in &mut gain {
                *gain += 1.0;
            }
            kernel::forward::<T>(Statistic::Deviation, x, &gain, &elements_of::<T>(shift)?, eps)
        },
        cuda k in kernels => rows::norm(k, Statistic::Deviation, x, (Some(scale), 1.0), Some(shift), eps),
        composed::modulate(x, scale, shift, eps)
    )
}

/// `x + gate y`, each row of the batch with its own `gate`: `x` and `y` `[B, .., n]`, `gate` `[B, n]`.
///
/// # Errors
///
/// If the shapes do not fit, and those of the backend.
pub fn gated_residual(kernels: &Kernels, x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    check_rows(x, gate)?;
    by_kernel!(
        x,
        T => kernel::gated::<T>(Some(x), &elements_of::<T>(gate)?, y),
        cuda k in kernels => rows::gated(k, Some(x), gate, y),
        x + y.broadcast_mul(&composed::per_row(gate, y)?)?
    )
}

/// What a norm brings to 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// The standard deviation, after taking off the mean.
    Deviation,
    /// The root of the mean square.
    RootMeanSquare,
}

fn norm(
    kernels: &Kernels,
    statistic: Statistic,
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    check_parameter(x, weight)?;
    check_parameter(x, bias)?;
    by_kernel!(
        x,
        T => {
            let gain = weight.map(elements_of::<T>).transpose()?.unwrap_or_default();
            let bias = bias.map(elements_of::<T>).transpose()?.unwrap_or_default();
            kernel::forward::<T>(statistic, x, &gain, &bias, eps)
        },
        cuda k in kernels => rows::norm(k, statistic, x, (weight, 0.0), bias, eps),
        composed::norm(statistic, x, weight, bias, eps)
    )
}

/// The gradient towards `x` of a norm, of that of its result, which is edited in place.
pub fn norm_backward(
    kernels: &Kernels,
    statistic: Statistic,
    x: &Tensor,
    weight: Option<&Tensor>,
    eps: f64,
    gradient: Tensor,
) -> Result<Tensor> {
    by_kernel!(
        x,
        T => {
            let gain = weight.map(elements_of::<T>).transpose()?.unwrap_or_default();
            kernel::backward::<T>(statistic, x, &gain, eps, gradient)
        },
        cuda k in kernels => rows::norm_backward(k, statistic, x, (weight, 0.0), eps, &gradient),
        {
            let gradient = match weight {
                Some(weight) => gradient.broadcast_mul(weight)?,
                None => gradient,
            };
            composed::backward(statistic, x, eps, &gradient)
        }
    )
}

/// The gradient towards `x` of `modulate`, of that of its result, which is edited in place.
pub fn modulate_backward(
    kernels: &Kernels,
    x: &Tensor,
    scale: &Tensor,
    eps: f64,
    gradient: Tensor,
) -> Result<Tensor> {
    by_kernel!(
        x,
        T => {
            let mut gain = elements_of::<T>(scale)?;
            for gain in &mut gain {
                *gain += 1.0;
            }
            kernel::backward::<T>(Statistic::Deviation, x, &gain, eps, gradient)
        },
        cuda k in kernels => rows::norm_backward(k, Statistic::Deviation, x, (Some(scale), 1.0), eps, &gradient),
        {
            let gain = composed::per_row(&(scale + 1.0)?, x)?;
            composed::backward(Statistic::Deviation, x, eps, &gradient.broadcast_mul(&gain)?)
        }
    )
}

/// The gradients towards `scale` and `shift` of `modulate`, `[B, n]`.
pub fn modulation_gradients(x: &Tensor, eps: f64, gradient: &Tensor) -> Result<(Tensor, Tensor)> {
    by_kernel!(
        x,
        T => kernel::modulation_gradients::<T>(x, eps, gradient),
        {
            let unit = composed::norm(Statistic::Deviation, x, None, None, eps)?;
            Ok((composed::row_sums(&(unit * gradient)?)?, composed::row_sums(gradient)?))
        }
    )
}

/// The gradient towards `y` of `gated_residual`.
pub fn gated_backward(kernels: &Kernels, gate: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    by_kernel!(
        gradient,
        T => kernel::gated::<T>(None, &elements_of::<T>(gate)?, gradient),
        cuda k in kernels => rows::gated(k, None, gate, gradient),
        gradient.broadcast_mul(&composed::per_row(gate, gradient)?)
    )
}

/// The gradient towards `gate` of `gated_residual`, `[B, n]`.
pub fn gate_gradient(y: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    by_kernel!(
        y,
        T => kernel::row_products::<T>(y, gradient),
        composed::row_sums(&(y * gradient)?)
    )
}

fn elements_of<T: crate::nn::real::Real>(tensor: &Tensor) -> Result<Vec<T>> {
    Ok(cpu::elements::<T>(&cpu::dense::<T>(tensor)?)?.to_vec())
}

fn check_parameter(x: &Tensor, parameter: Option<&Tensor>) -> Result<()> {
    let (_, width) = cpu::rows_of(x)?;
    if width == 0 {
        bail!("a norm over no values ({:?})", x.dims());
    }
    match parameter {
        Some(parameter) if parameter.dims() != [width] => {
            bail!(
                "a norm over {width} values was given a parameter of shape {:?}",
                parameter.dims()
            )
        }
        _ => Ok(()),
    }
}

/// A vector for each row of the batch.
fn check_rows(x: &Tensor, vectors: &Tensor) -> Result<()> {
    match (x.dims(), vectors.dims()) {
        ([b, .., n], [vectors_b, vectors_n]) if b == vectors_b && n == vectors_n && *n > 0 => {
            Ok(())
        }
        (x, vectors) => bail!("a modulation of shape {vectors:?} for rows of shape {x:?}"),
    }
}

//! What the kernels are composed of where there is no CPU slice: candle's tensor operations, in f32 at least.

use candle_core::{D, DType, Result, Tensor};

/// `x` in f32, unless it is f64.
pub(crate) fn wide(x: &Tensor) -> Result<Tensor> {
    if x.dtype() == DType::F64 {
        Ok(x.clone())
    } else {
        x.to_dtype(DType::F32)
    }
}

/// `1 / (1 + e^-x)`.
pub(crate) fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// Softmax over the last dimension.
pub(crate) fn softmax(x: &Tensor) -> Result<Tensor> {
    // Less the largest, or an exponential of a score above 88 would be infinite in f32.
    let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    x.broadcast_div(&x.sum_keepdim(D::Minus1)?)
}

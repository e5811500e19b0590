//! Sums and products of whole tensors, with the smaller spread over the larger.

use candle_core::{Result, Tensor};

use super::Kernels;
use super::compose::wide;
use super::cpu::{Product, Sum, Unary, by_kernel, map, map2};
use super::real::Real;
use super::sums;

/// `x + y`, spreading dimensions of 1.
pub(crate) fn add(kernels: &Kernels, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.dims() != y.dims() {
        return x.broadcast_add(y);
    }
    by_kernel!(
        x,
        T => map2::<T>(x, y, Sum),
        cuda k in kernels => super::cuda::rows::add(k, x, y),
        x + y
    )
}

/// `x y`, spreading dimensions of 1.
pub(crate) fn mul(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.dims() != y.dims() {
        return x.broadcast_mul(y);
    }
    by_kernel!(x, T => map2::<T>(x, y, Product), x * y)
}

/// `factor x`.
pub(crate) fn scale(x: &Tensor, factor: f64) -> Result<Tensor> {
    by_kernel!(x, T => map::<T>(x, Times(factor)), x * factor)
}

/// `tanh(x)`, in f32 at least: few numbers are, so that no kernel is worth it.
pub(crate) fn tanh(x: &Tensor) -> Result<Tensor> {
    wide(x)?.tanh()?.to_dtype(x.dtype())
}

/// The number times a fixed one.
struct Times(f64);

impl Unary for Times {
    #[inline(always)]
    fn apply<T: Real>(&self, x: T) -> T {
        x * T::from_f64(self.0)
    }
}

/// The sum of `x` over the dimensions along which a tensor of shape `dims` was spread to it.
pub(crate) fn sum_to(x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    let lead = x.rank().saturating_sub(dims.len());
    let spread: Vec<usize> = (0..x.rank())
        .filter(|&d| d < lead || (dims[d - lead] == 1 && x.dims()[d] != 1))
        .collect();
    let summed: Result<Tensor> = by_kernel!(
        x,
        T => sums::sum_keepdim::<T>(x, &spread),
        // In f32 at least: a sum over all tokens in bf16 would stop growing.
        wide(x)?.sum_keepdim(spread)?.to_dtype(x.dtype())
    );
    summed?.reshape(dims)
}

//! Sums and products of whole tensors, with the smaller spread over the larger.

use candle_core::{Result, Tensor};

use super::Kernels;
use super::compose::wide;
use super::cpu::{Product, Same, Sum, Unary, by_kernel, edit_with, map, map2};
use super::real::Real;
use super::sums;

/// `x + y`, spreading dimensions of 1.
pub fn add(kernels: &Kernels, x: &Tensor, y: &Tensor) -> Result<Tensor> {
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

/// Adds `y`, of the same shape, to the contiguous `x` in its place where kernels of the CPU serve it; else nothing is done, and false is
/// returned. Whoever else holds `x` sees the sum.
///
/// # Errors
/// If the shapes differ, or `x` is not contiguous.
pub fn add_in_place(x: &Tensor, y: &Tensor) -> Result<bool> {
    by_kernel!(x, T => edit_with::<T>(x, y, Sum).map(|()| true), Ok(false))
}

/// The numbers of `x` where nobody else holds them, if kernels of the CPU serve it; else `x`, which is never edited.
///
/// # Errors
/// If there is no memory for them.
pub fn copy(x: &Tensor) -> Result<Tensor> {
    by_kernel!(x, T => map::<T>(x, Same), Ok(x.clone()))
}

/// `x y`, spreading dimensions of 1.
pub fn mul(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.dims() != y.dims() {
        return x.broadcast_mul(y);
    }
    by_kernel!(x, T => map2::<T>(x, y, Product), x * y)
}

/// `factor x`.
pub fn scale(x: &Tensor, factor: f64) -> Result<Tensor> {
    by_kernel!(x, T => map::<T>(x, Times(factor)), x * factor)
}

/// `tanh(x)`, in f32 at least: few numbers are, so that no kernel is worth it.
pub fn tanh(x: &Tensor) -> Result<Tensor> {
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
pub fn sum_to(x: &Tensor, dims: &[usize]) -> Result<Tensor> {
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

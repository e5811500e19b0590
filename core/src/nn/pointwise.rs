//! Sums and products of whole tensors, with the smaller spread over the larger.

use candle_core::{Result, Tensor};

use super::Kernels;
use super::compose::wide;
use super::cpu::{Product, Same, Sum, Unary, by_kernel, edit_with, map, map2};
#[cfg(feature = "cuda")]
use super::cuda::combine as cuda;
use super::real::Real;
use super::sums;

/// `x + y`, spreading dimensions of 1.
pub fn add(kernels: &Kernels, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    combine(kernels, Combine::Sum, x, y)
}

/// `x y`, spreading dimensions of 1.
pub fn mul(kernels: &Kernels, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    combine(kernels, Combine::Product, x, y)
}

/// What is made of two numbers.
#[derive(Clone, Copy)]
pub(super) enum Combine {
    Sum,
    Product,
}

fn combine(kernels: &Kernels, how: Combine, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(k) = kernels.serving(x)
        && let Some(found) = by_cuda(k, how, x, y)?
    {
        return Ok(found);
    }
    // Read by the CUDA build only.
    let _ = kernels;
    match (how, x.dims() == y.dims()) {
        (Combine::Sum, true) => by_kernel!(x, T => map2::<T>(x, y, Sum), x + y),
        (Combine::Sum, false) => x.broadcast_add(y),
        (Combine::Product, true) => by_kernel!(x, T => map2::<T>(x, y, Product), x * y),
        (Combine::Product, false) => x.broadcast_mul(y),
    }
}

/// None where neither is spread over the other as the kernels do it.
#[cfg(feature = "cuda")]
fn by_cuda(
    kernels: &super::cuda::Kernels,
    how: Combine,
    x: &Tensor,
    y: &Tensor,
) -> Result<Option<Tensor>> {
    if x.dims() == y.dims() {
        return cuda::combine(kernels, how, x, y).map(Some);
    }
    let spread = |x: &Tensor, y: &Tensor| {
        let span = span(x.dims(), y.dims());
        span.map(|span| cuda::combine_spread(kernels, how, x, (y, span)))
    };
    spread(x, y).or_else(|| spread(y, x)).transpose()
}

/// To how many neighbours of a tensor of shape `x` each number of one of shape `y` is added, where it is some of the dimensions of `x`, one
/// after the other, with 1 for all others.
#[cfg(any(test, feature = "cuda"))]
fn span(x: &[usize], y: &[usize]) -> Option<usize> {
    let y = [&vec![1; x.len().checked_sub(y.len())?], y].concat();
    let own = |d: &usize| y[*d] != 1;
    let (first, last) = ((0..x.len()).find(own)?, (0..x.len()).rfind(own)?);
    (x[first..=last] == y[first..=last]).then(|| x[last + 1..].iter().product())
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
pub fn sum_to(kernels: &Kernels, x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let (Some(k), Some(span)) = (kernels.serving(x), span(x.dims(), dims)) {
        return cuda::spread_sums(k, x, dims.iter().product(), span)?.reshape(dims);
    }
    // Read by the CUDA build only.
    let _ = kernels;
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

#[cfg(test)]
mod tests {
    use super::span;

    #[test]
    fn numbers_are_spread_over_neighbours() {
        for (x, y, want) in [
            (&[2, 3, 4, 5][..], &[2, 3, 1, 1][..], Some(20)),
            (&[2, 3, 4, 5], &[1, 3, 1, 1], Some(20)),
            (&[2, 3, 4, 5], &[4, 5], Some(1)),
            (&[2, 3], &[3], Some(1)),
            (&[1, 3, 4], &[2, 3, 4], None),
            (&[2, 3, 4], &[2, 1, 4], None),
            (&[2, 3], &[1, 1], None),
            (&[3], &[2, 3], None),
        ] {
            assert_eq!(span(x, y), want, "{x:?} {y:?}");
        }
    }
}

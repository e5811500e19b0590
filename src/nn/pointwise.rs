//! Sums and products of whole tensors, with the smaller spread over the larger.

use candle_core::{DType, Result, Tensor, bail};

use super::compose::wide;
use super::cpu::{self, Product, Sum, Unary, by_kernel, elements, map, map2};
use super::real::Real;

/// `x + y`, spreading dimensions of 1.
pub(crate) fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.dims() != y.dims() {
        return x.broadcast_add(y);
    }
    by_kernel!(x, T => map2::<T>(x, y, Sum), cuda k => super::cuda::rows::add(k, x, y), x + y)
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
    wide(x)?
        .sum_keepdim(spread)?
        .reshape(dims)?
        .to_dtype(x.dtype())
}

/// Adds `factor source` to the numbers of the flat f32 tensor `target` from `start` on, in place.
pub(crate) fn accumulate(
    target: &Tensor,
    start: usize,
    source: &Tensor,
    factor: f64,
) -> Result<()> {
    let count = source.elem_count();
    if target.rank() != 1 || start + count > target.elem_count() {
        bail!(
            "{count} numbers from {start} on do not fit in {:?}",
            target.dims()
        );
    }
    #[cfg(feature = "cuda")]
    if let Some(kernels) = super::cuda::serving(source) {
        return super::cuda::flat::accumulate(&kernels, target, start, source, factor);
    }
    let source = source.to_dtype(DType::F32)?;
    by_kernel!(
        target,
        _T => {
            let source = cpu::contiguous(&source)?;
            let source = elements::<f32>(&source)?;
            let source: &[f32] = &source;
            let factor = factor as f32;
            cpu::edit::<f32>(target, |target| {
                for (sum, x) in target[start..start + count].iter_mut().zip(source) {
                    *sum += factor * x;
                }
            })
        },
        {
            let sum = target.narrow(0, start, count)? + (source.flatten_all()? * factor)?;
            target.slice_set(&sum?, 0, start)
        }
    )
}

/// `accumulate` of many sources, each from its own place on; no two places overlap.
pub(crate) fn accumulate_all(
    target: &Tensor,
    sources: &[(usize, Tensor)],
    factor: f64,
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(kernels) = super::cuda::serving(target)
        && sources
            .iter()
            .all(|(_, source)| source.dtype() == DType::F32)
    {
        return super::cuda::flat::accumulate_pieces(&kernels, target, sources, factor);
    }
    let mut each = sources.iter();
    each.try_for_each(|(start, source)| accumulate(target, *start, source, factor))
}

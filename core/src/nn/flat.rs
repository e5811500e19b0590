//! Flat f32 tensors, which the numbers, gradients and moments of all adapters are: sums into a part, the norm, AdamW.
//!
//! On a CPU they are edited in place on all cores, elsewhere in pieces by tensor operations, or by our own kernels.

use std::ops::Range;

use candle_core::{DType, Result, Tensor, WithDType as _, bail};
use rayon::prelude::*;

use super::Kernels;
use super::cpu::{self, GRAIN, by_kernel, elements};
#[cfg(feature = "cuda")]
use super::cuda::flat as cuda;

/// Numbers that tensor operations update at a time, so that their temporaries stay small.
const PIECE: usize = 1 << 24;

/// The (start, length) of the pieces of a buffer of `len` numbers.
fn pieces(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len)
        .step_by(PIECE)
        .map(move |start| (start, PIECE.min(len - start)))
}

/// Adds `factor source` to the numbers of the flat f32 tensor `target` from `start` on, in place.
fn accumulate(
    kernels: &Kernels,
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
    if let Some(k) = kernels.serving(source) {
        return cuda::accumulate(k, target, start, source, factor);
    }
    // Read by the CUDA build only.
    let _ = kernels;
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

/// Adds `factor` times each source to the flat f32 tensor `target` from the source's own place on, in place; no two places
/// overlap.
pub fn accumulate_all(
    kernels: &Kernels,
    target: &Tensor,
    sources: &[(usize, Tensor)],
    factor: f64,
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(k) = kernels.serving(target)
        && sources
            .iter()
            .all(|(_, source)| source.dtype() == DType::F32)
    {
        return cuda::accumulate_pieces(k, target, sources, factor);
    }
    let mut each = sources.iter();
    each.try_for_each(|(start, source)| accumulate(kernels, target, *start, source, factor))
}

/// The numbers of the flat f32 tensor `values` in these ranges, one behind the other, in `dtype`.
pub fn gather(
    kernels: &Kernels,
    values: &Tensor,
    ranges: &[Range<usize>],
    dtype: DType,
) -> Result<Tensor> {
    if ranges.iter().any(|range| range.end > values.elem_count()) || values.rank() != 1 {
        bail!("ranges of {:?} that are not there", values.dims());
    }
    #[cfg(feature = "cuda")]
    if let Some(k) = kernels.serving(values)
        && matches!(dtype, DType::F32 | DType::BF16)
    {
        return cuda::gather(k, values, ranges, dtype);
    }
    // Read by the CUDA build only.
    let _ = kernels;
    let part = |range: &Range<usize>| values.narrow(0, range.start, range.len());
    let parts = ranges.iter().map(part).collect::<Result<Vec<_>>>()?;
    cpu::cat(&parts, 0)?.to_dtype(dtype)
}

/// The sum of the squares of a flat tensor, in order; on a CPU in f64.
pub fn sum_of_squares(kernels: &Kernels, x: &Tensor) -> Result<f64> {
    by_kernel!(
        x,
        // By one thread: in order, so that the clipped gradient is the same bits on every run.
        T => Ok(elements::<T>(x)?.iter().map(|&x| x.to_f64().powi(2)).sum()),
        cuda k in kernels => cuda::sum_of_squares(k, x),
        {
            let mut sum = 0.0;
            for (start, len) in pieces(x.elem_count()) {
                sum += squares_by_rows(&x.narrow(0, start, len)?)?;
            }
            Ok(sum)
        }
    )
}

/// The sum of squares by tensor operations: first of rows, because a GPU sums a row by one block.
fn squares_by_rows(x: &Tensor) -> Result<f64> {
    // Sums of so many squares in f32; those of the rows in f64, on the host.
    const ROW: usize = 1024;
    let len = x.elem_count();
    let whole = len / ROW * ROW;
    let rows = x.narrow(0, 0, whole)?.reshape((len / ROW, ROW))?;
    let mut sums = rows.sqr()?.sum(1)?.to_vec1::<f32>()?;
    if whole < len {
        let rest = x.narrow(0, whole, len - whole)?.sqr()?.sum_all()?;
        sums.push(rest.to_scalar()?);
    }
    Ok(sums.into_iter().map(f64::from).sum())
}

/// Multiplies the numbers of a flat tensor by `factor`, in place.
pub fn scale_in_place(x: &Tensor, factor: f64) -> Result<()> {
    by_kernel!(
        x,
        T => cpu::edit::<T>(x, |values| {
            let factor = T::from_f64(factor);
            for x in values {
                *x *= factor;
            }
        }),
        {
            for (start, len) in pieces(x.elem_count()) {
                let scaled = (x.narrow(0, start, len)? * factor)?;
                x.slice_set(&scaled, 0, start)?;
            }
            Ok(())
        }
    )
}

/// What a step of AdamW does to every number p, of gradient g and moments m and v: `m = keep1 m + take1 g`,
/// `v = keep2 v + take2 g^2`, `p = shrink p - step_size m / (sqrt(v) / root_correction + epsilon)`.
#[derive(Clone, Copy)]
pub struct AdamWUpdate {
    /// What is kept of the first moment.
    pub keep1: f32,
    /// What is taken of the gradient into it.
    pub take1: f32,
    /// What is kept of the second moment.
    pub keep2: f32,
    /// What is taken of the gradient's square into it.
    pub take2: f32,
    /// One less the weight decay.
    pub shrink: f32,
    /// The rate, corrected for the first moment's beginning at 0.
    pub step_size: f32,
    /// The root of the second moment's correction.
    pub root_correction: f32,
    /// Against a division by 0.
    pub epsilon: f32,
}

impl AdamWUpdate {
    /// Makes the step, on the parameters and both moments in place. All four tensors are flat, f32 and of one length.
    pub fn apply(
        self,
        kernels: &Kernels,
        parameters: &Tensor,
        gradient: &Tensor,
        moments: (&Tensor, &Tensor),
    ) -> Result<()> {
        by_kernel!(
            parameters,
            _T => self.on_cpu(parameters, gradient, moments),
            cuda k in kernels => cuda::adamw(k, parameters, gradient, moments, self),
            self.composed(parameters, gradient, moments)
        )
    }

    fn on_cpu(
        self,
        parameters: &Tensor,
        gradient: &Tensor,
        (first, second): (&Tensor, &Tensor),
    ) -> Result<()> {
        let gradient = elements::<f32>(gradient)?;
        let gradient: &[f32] = &gradient;
        let moment = |tensor, f: &(dyn Fn(&mut f32, f32) + Sync)| {
            cpu::edit::<f32>(tensor, |moment| {
                let pieces = moment.par_chunks_mut(GRAIN).zip(gradient.par_chunks(GRAIN));
                pieces.for_each(|(moment, gradient)| {
                    for (m, &g) in moment.iter_mut().zip(gradient) {
                        f(m, g);
                    }
                });
            })
        };
        // Moments in passes of their own: candle lends one tensor at a time for editing.
        moment(first, &|m, g| *m = self.keep1 * *m + self.take1 * g)?;
        moment(second, &|v, g| *v = self.keep2 * *v + self.take2 * g * g)?;
        let (first, second) = (elements::<f32>(first)?, elements::<f32>(second)?);
        let (first, second): (&[f32], &[f32]) = (&first, &second);
        cpu::edit::<f32>(parameters, |parameters| {
            let moments = first.par_chunks(GRAIN).zip(second.par_chunks(GRAIN));
            let pieces = parameters.par_chunks_mut(GRAIN).zip(moments);
            pieces.for_each(|(parameters, (first, second))| {
                for (p, (&m, &v)) in parameters.iter_mut().zip(first.iter().zip(second)) {
                    let root = v.sqrt() / self.root_correction + self.epsilon;
                    *p = self.shrink * *p - self.step_size * m / root;
                }
            });
        })
    }

    fn composed(
        self,
        parameters: &Tensor,
        gradient: &Tensor,
        (first, second): (&Tensor, &Tensor),
    ) -> Result<()> {
        for (start, len) in pieces(parameters.elem_count()) {
            let part = |tensor: &Tensor| tensor.narrow(0, start, len);
            let times = |tensor: Tensor, factor: f32| tensor * f64::from(factor);
            let g = part(gradient)?;
            let m = (times(part(first)?, self.keep1)? + times(g.clone(), self.take1)?)?;
            let v = (times(part(second)?, self.keep2)? + times(g.sqr()?, self.take2)?)?;
            let root = v
                .sqrt()?
                .affine(1.0 / f64::from(self.root_correction), self.epsilon.into())?;
            let step = (times(m.clone(), self.step_size)? / root)?;
            let p = (times(part(parameters)?, self.shrink)? - step)?;
            for (tensor, new) in [(parameters, &p), (first, &m), (second, &v)] {
                tensor.slice_set(new, 0, start)?;
            }
        }
        Ok(())
    }
}

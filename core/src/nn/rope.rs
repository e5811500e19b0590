//! Rotary positions (Su et al. 2021) on interleaved pairs, as FLUX has them.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::Kernels;
use super::compose::wide;
use super::cpu::{self, by_kernel, elements};
#[cfg(feature = "cuda")]
use super::cuda::rows;
use super::real::{Real, vectorised};

/// Turns the pair (2i, 2i + 1) of every head of `x` `[B, N, H, D]` by the angle whose cosine and sine are in
/// `cos` and `sin`, `[N, D / 2]` (f32 whatever the type of `x`, or f64 if `x` is).
///
/// # Errors
///
/// If the shapes do not fit, and those of the backend.
pub fn rope(kernels: &Kernels, x_bnhd: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (batch, length, heads, width) = x_bnhd.dims4()?;
    if width % 2 != 0 || cos.dims() != [length, width / 2] || sin.dims() != cos.dims() {
        bail!(
            "rotary tables {:?} and {:?} for {:?}",
            cos.dims(),
            sin.dims(),
            x_bnhd.dims()
        );
    }
    by_kernel!(x_bnhd, T => kernel::<T>(x_bnhd, cos, sin), cuda k in kernels => rows::rope(k, x_bnhd, (cos, sin), false), {
        let pairs = wide(x_bnhd)?.reshape((batch, length, heads, width / 2, 2))?;
        let part = |i| pairs.narrow(4, i, 1)?.squeeze(4)?.contiguous();
        let (a, b) = (part(0)?, part(1)?);
        let table = |t: &Tensor| t.to_dtype(a.dtype())?.reshape((1, length, 1, width / 2));
        let (cos, sin) = (table(cos)?, table(sin)?);
        let turned_a = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let turned_b = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
        Tensor::stack(&[turned_a, turned_b], 4)?.reshape(x_bnhd.shape())?.to_dtype(x_bnhd.dtype())
    })
}

fn kernel<T: Real>(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (_, length, heads, width) = x.dims4()?;
    let table = |t: &Tensor| cpu::contiguous(&t.to_dtype(T::DTYPE)?);
    let (dense, cos, sin) = (cpu::contiguous(x)?, table(cos)?, table(sin)?);
    let (data, cos, sin) = (
        elements::<T>(&dense)?,
        elements::<T>(&cos)?,
        elements::<T>(&sin)?,
    );
    let (cos, sin): (&[T], &[T]) = (&cos, &sin);
    let mut out = vec![T::zero(); data.len()];
    let row = heads * width;
    if row > 0 {
        let step = cpu::rows_per_piece(row);
        let pieces = out
            .par_chunks_mut(step * row)
            .zip(data.par_chunks(step * row));
        pieces.enumerate().for_each(|(piece, (out, x))| {
            for (i, (out, x)) in out
                .chunks_exact_mut(row)
                .zip(x.chunks_exact(row))
                .enumerate()
            {
                // Rows are [B, N]: the table begins again with each batch row.
                let start = (piece * step + i) % length * (width / 2);
                turn(
                    out,
                    x,
                    &cos[start..][..width / 2],
                    &sin[start..][..width / 2],
                );
            }
        });
    }
    cpu::tensor(out, x.dims())
}

vectorised! {
    /// Turns all heads of a token; the tables are as long as half a head.
    fn turn<T: Real>(out: &mut [T], x: &[T], cos: &[T], sin: &[T]) {
        let width = 2 * cos.len();
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let (out, _) = out.as_chunks_mut::<2>();
            let (x, _) = x.as_chunks::<2>();
            for ((out, &[a, b]), (&cos, &sin)) in out.iter_mut().zip(x).zip(cos.iter().zip(sin)) {
                *out = [a * cos - b * sin, a * sin + b * cos];
            }
        }
    }
}

/// The gradient towards `x` of `rope`, of that of its result: it is turned back.
pub fn rope_backward(
    kernels: &Kernels,
    gradient: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(k) = kernels.serving(gradient) {
        return rows::rope(k, gradient, (cos, sin), true);
    }
    // A rotation's transpose is its inverse: the angle's sine changes sign.
    rope(kernels, gradient, cos, &wide(sin)?.neg()?)
}

//! Nearest-neighbour doubling of pictures, forward.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::Kernels;
use super::cpu::{by_kernel, contiguous, elements, tensor};
use super::real::Real;

/// Each pixel of `x` repeated to 2 x 2: `[B, C, H, W]` to `[B, C, 2H, 2W]`.
///
/// # Errors
///
/// If `x` has not four dimensions, and those of the backend.
pub fn upsample_nearest_2x(kernels: &Kernels, x_bchw: &Tensor) -> Result<Tensor> {
    let (_, _, h, w) = x_bchw.dims4()?;
    by_kernel!(
        x_bchw,
        T => on_cpu::<T>(x_bchw),
        cuda k in kernels => super::cuda::conv::doubled(k, x_bchw),
        x_bchw.contiguous()?.upsample_nearest2d(2 * h, 2 * w)
    )
}

fn on_cpu<T: Real>(x_bchw: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x_bchw.dims4()?;
    let mut out = vec![T::zero(); 4 * x_bchw.elem_count()];
    // Chunks of 0 elements would panic.
    if !out.is_empty() {
        let x = contiguous(x_bchw)?;
        let x = elements::<T>(&x)?;
        let planes = out
            .par_chunks_exact_mut(4 * h * w)
            .zip(x.par_chunks_exact(h * w));
        planes.for_each(|(large, small)| {
            for (rows, row) in large.chunks_exact_mut(4 * w).zip(small.chunks_exact(w)) {
                let (upper, lower) = rows.split_at_mut(2 * w);
                for (pair, pixel) in upper.chunks_exact_mut(2).zip(row) {
                    pair.fill(*pixel);
                }
                lower.copy_from_slice(upper);
            }
        });
    }
    tensor(out, &[b, c, 2 * h, 2 * w])
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn doubling_equals_the_general_operation() {
        let x = Tensor::arange(0f32, 30.0, &Device::Cpu)
            .and_then(|x| x.reshape((1, 2, 3, 5)))
            .expect("shape");
        let ours = upsample_nearest_2x(&Kernels::NONE, &x).expect("ours");
        let theirs = x.upsample_nearest2d(6, 10).expect("theirs");
        assert_eq!(
            ours.flatten_all()
                .and_then(|t| t.to_vec1::<f32>())
                .expect("values"),
            theirs
                .flatten_all()
                .and_then(|t| t.to_vec1::<f32>())
                .expect("values")
        );
    }
}

//! Numbers to compute with and what two results differ by, for tests and for the check that a GPU's kernels pass where they run.

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::rng::{Rng, Stream};

/// Normal numbers, f64, on the CPU.
pub(super) fn normal(seed: u64, shape: &[usize]) -> Result<Tensor> {
    let count = shape.iter().product();
    let numbers = Rng::new(seed, Stream::Noise, 0, 0).normals(count);
    let numbers: Vec<f64> = numbers.into_iter().map(f64::from).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}

/// The largest difference of two tensors on the CPU, in units of the largest value of `b`; infinite where a number is none.
///
/// Fails if the shapes differ.
pub(super) fn difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    if a.dims() != b.dims() {
        bail!("results of {:?} and {:?}", a.dims(), b.dims());
    }
    let flat = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let (a, b) = (flat(a)?, flat(b)?);
    let size = b.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    let worst = |most: f64, (a, b): (&f64, &f64)| match (a - b).abs() {
        // `max` alone would pass over what is no number.
        off if off.is_nan() => f64::INFINITY,
        off => most.max(off),
    };
    Ok(a.iter().zip(&b).fold(0.0, worst) / size)
}

//! What tests of kernels, and of what is computed by them, compare with.

#![expect(clippy::unwrap_used, reason = "tests end there")]

use candle_core::{DType, Device, Tensor};

use super::cpu;
use crate::rng::{Rng, Stream};

pub mod memory;
pub mod peak;

/// Normal numbers, f64.
///
/// # Panics
/// Never but for want of memory.
pub fn normal(seed: u64, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    let numbers = Rng::new(seed, Stream::Noise, 0, 0).normals(count);
    let numbers: Vec<f64> = numbers.into_iter().map(f64::from).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

/// The largest difference, in units of the largest value of `b`; without end where a number is none.
///
/// # Panics
/// If the shapes differ.
pub fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let flat = |t: &Tensor| {
        t.to_dtype(DType::F64)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f64>()
            .unwrap()
    };
    let (a, b) = (flat(a), flat(b));
    let size = b.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    a.iter()
        .zip(&b)
        // `max` alone would pass over what is no number.
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |most: f64, off| {
            if off.is_nan() {
                f64::INFINITY
            } else {
                most.max(off)
            }
        })
        / size
}

/// What `f` gives when every operation is composed of candle's.
pub fn composed<R>(f: impl FnOnce() -> R) -> R {
    cpu::COMPOSED.set(true);
    let result = f();
    cpu::COMPOSED.set(false);
    result
}

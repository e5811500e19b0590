//! What tests of kernels, and of what is computed by them, compare with.

#![expect(clippy::unwrap_used, reason = "tests end there")]

use candle_core::Tensor;

use super::{compare, cpu};

pub mod memory;
pub mod peak;

/// Normal numbers, f64.
///
/// # Panics
/// Never but for want of memory.
pub fn normal(seed: u64, shape: &[usize]) -> Tensor {
    compare::normal(seed, shape).unwrap()
}

/// The largest difference, in units of the largest value of `b`; without end where a number is none.
///
/// # Panics
/// If the shapes differ.
pub fn difference(a: &Tensor, b: &Tensor) -> f64 {
    compare::difference(a, b).unwrap()
}

/// What `f` gives when every operation is composed of candle's.
pub fn composed<R>(f: impl FnOnce() -> R) -> R {
    cpu::COMPOSED.set(true);
    let result = f();
    cpu::COMPOSED.set(false);
    result
}

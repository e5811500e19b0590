//! What tests of kernels, and of what is computed by them, compare with.

#![expect(clippy::unwrap_used, reason = "tests end there")]

use candle_core::{Device, Tensor};

use super::{Kernels, compare, cpu};
use crate::device::{self, Choice};

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

/// The first GPU, opened anew with a stream and kernels of its own; none, which is said, where there is no GPU that computes.
///
/// # Panics
/// If its kernels cannot be compiled.
pub fn gpu() -> Option<(Device, Kernels)> {
    let folders = device::cuda_folders(|name| std::env::var_os(name));
    match device::open(Choice::Cuda(0), &folders) {
        Ok(opened) => {
            let kernels = Kernels::compile(&opened.device).unwrap();
            Some((opened.device, kernels))
        }
        Err(why) => {
            println!("not computed on a GPU: {why}");
            None
        }
    }
}

/// What `f` gives when every operation is composed of candle's.
pub fn composed<R>(f: impl FnOnce() -> R) -> R {
    cpu::COMPOSED.set(true);
    let result = f();
    cpu::COMPOSED.set(false);
    result
}

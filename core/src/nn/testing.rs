//! What tests of kernels, and of what is computed by them, compare with.

#![expect(clippy::unwrap_used, reason = "tests end there")]

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

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

/// Held while a test uses a GPU.
static USE: RwLock<()> = RwLock::new(());

/// For a test that uses a GPU beside others: while it is held, none records a graph there.
pub fn beside_others() -> RwLockReadGuard<'static, ()> {
    USE.read().unwrap_or_else(PoisonError::into_inner)
}

/// For a test that records a graph: CUDA lets nobody wait for a GPU as a whole meanwhile, as whoever opens it does.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    USE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Says that a test computes nothing on a GPU.
///
/// # Panics
/// If `PLUMB_REQUIRE_GPU` is set, so that on a machine with a GPU none is passed over.
pub fn without_gpu(why: &str) {
    assert!(
        std::env::var_os("PLUMB_REQUIRE_GPU").is_none(),
        "PLUMB_REQUIRE_GPU is set, and nothing is computed on a GPU: {why}"
    );
    println!("not computed on a GPU: {why}");
}

/// The first GPU, opened anew with a stream and kernels of its own; none, which is said, where there is no GPU that computes. The caller is
/// [`beside_others`] or [`alone`].
///
/// # Panics
/// If its kernels cannot be compiled, or as [`without_gpu`].
pub fn gpu() -> Option<(Device, Kernels)> {
    let folders = device::cuda_folders(|name| std::env::var_os(name));
    match device::open(Choice::Cuda(0), &folders) {
        Ok(opened) => {
            let kernels = Kernels::compile(&opened.device).unwrap();
            Some((opened.device, kernels))
        }
        Err(why) => {
            without_gpu(&why.to_string());
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

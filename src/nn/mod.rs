//! Forward kernels on plain tensors: fused and parallel for f32 (and f64, their oracle) on a CPU, composed of
//! candle's operations elsewhere. None of them records anything; `crate::autograd` adds the backward side.
//!
//! On a CPU no result depends on the number of threads, and a row of a batch equals the row alone, bit for bit.

pub mod activation;
pub(crate) mod attention;
#[cfg(feature = "cuda")]
pub(crate) mod card;
pub(crate) mod compose;
mod conv;
pub(crate) mod cpu;
mod frozen;
pub(crate) mod gemm;
mod group_norm;
pub(crate) mod linear;
pub(crate) mod loss;
pub(crate) mod norm;
pub(crate) mod picture_backward;
pub(crate) mod pointwise;
mod real;
mod resample;
pub(crate) mod rope;
pub mod weights;

pub use activation::{Activation, gelu_erf, gelu_tanh, quick_gelu, silu};
pub use attention::{AttentionMask, attention};
pub use conv::{Conv2dOptions, Padding, conv2d};
pub use frozen::{Ahead, DEPTH as AHEAD, Frozen, Packing};
pub use group_norm::{group_norm, group_norm_silu};
pub use linear::{linear, linear_onto};
pub use loss::squared_error;
pub use norm::{gated_residual, layer_norm, modulate, rms_norm};
pub use resample::upsample_nearest_2x;
pub use rope::rope;

/// Makes our own CUDA kernels serve a card from now on; until then, and always on a CPU, nothing of them is used. They have
/// been held against the CPU on an emulated card only.
///
/// # Errors
///
/// If they cannot be compiled there.
pub fn own_kernels(device: &candle_core::Device) -> candle_core::Result<()> {
    #[cfg(feature = "cuda")]
    card::load(device)?;
    let _ = device;
    Ok(())
}

/// Whether they do.
pub fn has_own_kernels(device: &candle_core::Device) -> bool {
    #[cfg(feature = "cuda")]
    let found = card::serve(device);
    #[cfg(not(feature = "cuda"))]
    let found = {
        let _ = device;
        false
    };
    found
}

#[cfg(test)]
pub(crate) mod tests;

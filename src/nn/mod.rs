//! Forward kernels on plain tensors: fused and parallel for f32 (and f64, their oracle) on a CPU, composed of
//! candle's operations elsewhere. None of them records anything; `crate::autograd` adds the backward side.
//!
//! On a CPU no result depends on the number of threads, and a row of a batch equals the row alone, bit for bit.

pub mod activation;
pub(crate) mod attention;
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
pub use frozen::{Frozen, Packing};
pub use group_norm::{group_norm, group_norm_silu};
pub use linear::linear;
pub use loss::squared_error;
pub use norm::{gated_residual, layer_norm, modulate, rms_norm};
pub use resample::upsample_nearest_2x;
pub use rope::rope;

#[cfg(test)]
pub(crate) mod tests;

//! Forward kernels on plain tensors: fused and parallel for f32 (and f64, their oracle) on a CPU, composed of
//! candle's operations elsewhere. None of them records anything; `plumb::autograd` adds the backward side.
//!
//! What can be computed by our own CUDA kernels is given them as a value, [`Kernels`], first of its arguments. No other
//! module knows of `nn::cuda`.
//!
//! An operation fails where shapes or types do not fit, or the device refuses: those that say nothing of errors fail for no other reason.
//!
//! On a CPU no result depends on the number of threads, and a row of a batch equals the row alone, bit for bit.

#![expect(clippy::missing_errors_doc, reason = "said once, above")]

pub mod activation;
pub mod attention;
#[cfg(any(test, feature = "testing", feature = "cuda"))]
mod compare;
mod compose;
mod conv;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub mod dropout;
mod feed_forward;
pub mod flat;
mod fp8;
mod frozen;
pub mod fused;
pub mod gemm;
mod graph;
mod group_norm;
mod instructions;
mod kernels;
pub mod linear;
pub mod loss;
pub mod norm;
mod packed;
pub mod picture_backward;
mod pixel_norm;
pub mod pointwise;
mod real;
mod resample;
pub mod rope;
mod sinusoids;
mod sums;
pub mod weights;
pub mod winograd;

pub use activation::Activation;
pub use attention::{AttentionMask, attention};
pub use conv::{Conv2dOptions, Padding, conv2d, conv2d_sum};
pub use cpu::cat;
pub use feed_forward::{FeedForward, Inward};
pub use frozen::{DEPTH as PREFETCHED, Frozen, Prefetch, Quantization};
pub use graph::{Graph, Recorded};
pub use group_norm::{group_norm, group_norm_silu};
pub use instructions::Instructions;
pub use kernels::Kernels;
pub use linear::{linear, linear_onto};
pub use loss::squared_error;
pub use norm::{gated_residual, layer_norm, modulate, rms_norm};
pub use packed::Packed;
pub use pixel_norm::{pixel_norm, pixel_norm_silu};
pub use resample::upsample_nearest_2x;
pub use rope::rope;
pub use sinusoids::sinusoids;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

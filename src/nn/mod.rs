//! Forward kernels on plain tensors: fused and parallel for f32 (and f64, their oracle) on a CPU, composed of
//! candle's operations elsewhere. None of them records anything; `crate::autograd` adds the backward side.
//!
//! On a CPU no result depends on the number of threads, and a row of a batch equals the row alone, bit for bit.

pub mod activation;
pub(crate) mod attention;
pub(crate) mod compose;
mod conv;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
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
pub use frozen::{DEPTH as PREFETCHED, Frozen, Prefetch, Quantization};
pub use group_norm::{group_norm, group_norm_silu};
pub use linear::{linear, linear_onto};
pub use loss::squared_error;
pub use norm::{gated_residual, layer_norm, modulate, rms_norm};
pub use resample::upsample_nearest_2x;
pub use rope::rope;

/// Makes our own CUDA kernels serve a GPU from now on; until then, and always on a CPU, nothing of them is used. They have
/// been held against the CPU on an emulated GPU only.
///
/// # Errors
///
/// If they cannot be compiled there.
pub fn own_kernels(device: &candle_core::Device) -> candle_core::Result<()> {
    #[cfg(feature = "cuda")]
    cuda::load(device)?;
    let _ = device;
    Ok(())
}

/// Has attention on a GPU that own kernels serve computed by NVIDIA's cuDNN 9, which is looked for by the system's loader and in
/// `folders`. No real GPU has run it yet.
///
/// # Errors
///
/// If it is not found, or own kernels do not serve the GPU.
pub fn cudnn_attention(
    device: &candle_core::Device,
    folders: &[std::path::PathBuf],
) -> candle_core::Result<()> {
    #[cfg(feature = "cuda")]
    return cuda::attend_by_cudnn(device, folders);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = (device, folders);
        candle_core::bail!("this plumb was built without CUDA")
    }
}

/// Whether a GPU's attention is computed by cuDNN.
pub fn has_cudnn_attention(device: &candle_core::Device) -> bool {
    #[cfg(feature = "cuda")]
    let found = cuda::attends_by_cudnn(device);
    #[cfg(not(feature = "cuda"))]
    let found = {
        let _ = device;
        false
    };
    found
}

/// Whether own kernels serve a device.
pub fn has_own_kernels(device: &candle_core::Device) -> bool {
    #[cfg(feature = "cuda")]
    let found = cuda::serve(device);
    #[cfg(not(feature = "cuda"))]
    let found = {
        let _ = device;
        false
    };
    found
}

#[cfg(test)]
pub(crate) mod tests;

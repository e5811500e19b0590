//! Masks of dropout, drawn by counter: the same numbers wherever they are drawn.

use candle_core::{Result, Tensor};

use super::Kernels;
use crate::rng::Rng;

/// 0 with the probability, else 1 / (1 - probability): the shape, type and device of `like`, drawn one after the other from the
/// generator with the key.
pub fn mask(kernels: &Kernels, key: [u8; 32], probability: f64, like: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(k) = kernels.serving(like) {
        return super::cuda::rows::dropout(k, key, probability, like);
    }
    let _ = kernels;
    let mut rng = Rng::with_key(key);
    let kept = (1.0 / (1.0 - probability)) as f32;
    // On the host and in f64, as our CUDA kernel compares too: the same zeros on every device.
    let draw = |_| {
        if rng.uniform() < probability {
            0.0
        } else {
            kept
        }
    };
    let mask: Vec<f32> = (0..like.elem_count()).map(draw).collect();
    Tensor::from_vec(mask, like.shape(), like.device())?.to_dtype(like.dtype())
}

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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::rng::Stream;

    #[test]
    fn it_is_drawn_one_after_the_other() {
        let (stream, probability) = (Stream::AdapterDropout, 0.3);
        for count in [1, 8, 8 * 300 + 3] {
            let like = Tensor::zeros(count, DType::F32, &Device::Cpu).unwrap();
            let key = Rng::key(7, stream, 2, 5);
            let found = mask(&Kernels::NONE, key, probability, &like).unwrap();
            let mut rng = Rng::new(7, stream, 2, 5);
            for (i, found) in found.to_vec1::<f32>().unwrap().into_iter().enumerate() {
                let dropped = rng.uniform() < probability;
                let want = if dropped {
                    0.0
                } else {
                    1.0 / (1.0 - probability)
                };
                assert_eq!(found, want as f32, "{i} of {count}");
            }
        }
    }
}

//! Numbers as sinusoids, which a network is told times, sizes and strengths by.

use candle_core::{DType, Device, Result, Tensor};

use super::Kernels;

/// The longest period of a sinusoid, over 2 pi.
const MAX_PERIOD: f32 = 10_000.0;

/// Numbers `[k]` in f32 to `[k, channels]`, of the type and on the device of `like`: cosines, then sines, of `number / 10000^(2 i / channels)`.
///
/// In f32 as diffusers does it, because rounding an angle near 1000 is what moves the result most. Numbers on a GPU that the kernels
/// are of stay there.
pub fn sinusoids(
    kernels: &Kernels,
    numbers: &Tensor,
    channels: usize,
    like: &Tensor,
) -> Result<Tensor> {
    let half = channels / 2;
    // The exponent is rounded to f32 as torch does; only exp, cos and sin are taken in f64, where they are exact to f32.
    let step = -MAX_PERIOD.ln();
    let numbers = numbers.to_dtype(DType::F32)?;
    #[cfg(feature = "cuda")]
    if let (Some(k), Some(_)) = (kernels.serving(&numbers), kernels.serving(like)) {
        return super::cuda::rows::sinusoids(k, &numbers, half, step, like.dtype());
    }
    // Read by the CUDA build only.
    let _ = kernels;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| f64::from(step * i as f32 / half as f32).exp() as f32)
        .collect();
    let all = numbers.to_vec1::<f32>()?;
    let mut values = Vec::with_capacity(all.len() * channels);
    for &number in &all {
        let angles = frequencies.iter().map(|f| f64::from(number * f));
        values.extend(angles.clone().map(|angle| angle.cos() as f32));
        values.extend(angles.map(|angle| angle.sin() as f32));
    }
    let sinusoids = Tensor::from_vec(values, (all.len(), 2 * half), &Device::Cpu)?;
    sinusoids.to_dtype(like.dtype())?.to_device(like.device())
}

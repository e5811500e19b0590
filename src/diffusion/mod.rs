//! Rectified flow (Liu et al., arXiv:2209.03003; SD3: Esser et al., arXiv:2403.03206): what is added, what
//! is predicted, which noise levels are visited, and how a sampler walks back.
//!
//! One convention throughout: sigma in [0, 1], sigma = 1 is pure noise, and the network is told
//! `1000 * sigma`. Nothing here draws numbers or knows a model.

mod sampler;
mod timestep;

pub use sampler::{euler_sigmas, guide};
pub use timestep::{LossWeighting, TimestepSampling, TimestepSpec, shift_sigma};

use candle_core::{Result, Tensor};

/// The network's timestep at `sigma`.
pub fn network_timestep(sigma: f64) -> f64 {
    sigma * 1000.0
}

/// `(1 - sigma) * latents + sigma * noise`, per sample.
///
/// Shapes: `latents` and `noise` [B, C, H, W], `sigmas` B values; the result [B, C, H, W].
///
/// # Errors
/// If the shapes disagree.
pub fn add_noise(latents: &Tensor, noise: &Tensor, sigmas: &[f64]) -> Result<Tensor> {
    let (keep, take) = (
        per_sample(latents, sigmas, |s| 1.0 - s)?,
        per_sample(latents, sigmas, |s| s)?,
    );
    latents.broadcast_mul(&keep)? + noise.broadcast_mul(&take)?
}

/// The velocity the network is to predict: `noise - latents`.
///
/// # Errors
/// If the shapes disagree.
pub fn velocity_target(latents: &Tensor, noise: &Tensor) -> Result<Tensor> {
    noise - latents
}

fn per_sample(like: &Tensor, sigmas: &[f64], f: impl Fn(f64) -> f64) -> Result<Tensor> {
    let values: Vec<f32> = sigmas.iter().map(|&s| f(s) as f32).collect();
    let mut shape = vec![1; like.rank()];
    shape[0] = sigmas.len();
    Tensor::from_vec(values, shape, like.device())?.to_dtype(like.dtype())
}

#[cfg(test)]
mod tests {
    use super::{add_noise, velocity_target};
    use candle_core::{Device, Tensor};

    #[test]
    fn noise_is_mixed_per_sample_and_the_velocity_leads_from_noise_to_latents() {
        let device = Device::Cpu;
        let latents = Tensor::new(&[[[[1.0f32, 2.0]]], [[[3.0, 4.0]]]], &device).expect("latents");
        let noise = Tensor::new(&[[[[5.0f32, 5.0]]], [[[7.0, 0.0]]]], &device).expect("noise");
        let noisy = add_noise(&latents, &noise, &[0.25, 1.0]).expect("noisy");
        assert_eq!(
            noisy
                .flatten_all()
                .and_then(|t| t.to_vec1::<f32>())
                .expect("values"),
            [2.0, 2.75, 7.0, 0.0]
        );
        let velocity = velocity_target(&latents, &noise).expect("velocity");
        assert_eq!(
            velocity
                .flatten_all()
                .and_then(|t| t.to_vec1::<f32>())
                .expect("values"),
            [4.0, 3.0, 4.0, -4.0]
        );
    }
}

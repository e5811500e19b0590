//! The latents a denoiser sees: their size against pixels, and their scale.

use candle_core::{Result, Tensor};

/// What a model's latents are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentSpace {
    /// Channels.
    pub channels: usize,
    /// Pixels per latent along a side.
    pub factor: usize,
    /// The denoiser sees `(latents - shift) * scale`.
    pub scale: f64,
    /// See `scale`.
    pub shift: f64,
}

impl LatentSpace {
    /// What the denoiser sees of a VAE's latents.
    ///
    /// # Errors
    /// If the device fails.
    pub fn normalize(&self, latents: &Tensor) -> Result<Tensor> {
        latents.affine(self.scale, -self.shift * self.scale)
    }

    /// The VAE's latents of what the denoiser made.
    ///
    /// # Errors
    /// If the device fails.
    pub fn denormalize(&self, latents: &Tensor) -> Result<Tensor> {
        latents.affine(1.0 / self.scale, self.shift)
    }
}

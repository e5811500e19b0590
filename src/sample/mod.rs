//! Sampling: pictures from a base model, with or without adapters, by Euler steps along the flow with
//! classifier-free guidance. The start noise is drawn from the seed on the host, so it is the same everywhere.

pub mod sheet;

use candle_core::{Device, Result, Tensor, bail};
use image::RgbImage;

use crate::autograd::{Tape, Value};
use crate::conditioning::Conditioning;
use crate::diffusion::{euler_sigmas, guide, network_timestep};
use crate::lora::Bound;
use crate::models::{ConditioningTensors, Denoiser};
use crate::rng::{Rng, Stream};
use crate::vae::Decoder;

/// How one picture is sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleOptions {
    /// Width in px.
    pub width: u32,
    /// Height in px.
    pub height: u32,
    /// Euler steps.
    pub steps: usize,
    /// Guidance scale; 1 is none.
    pub guidance: f64,
    /// Shift of the noise levels.
    pub shift: f64,
    /// What the start noise derives from.
    pub seed: u64,
    /// The number of the picture among those of one seed.
    pub number: u64,
}

/// What a model's latents are: their size against pixels, and their scale.
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

/// Samples latents as the denoiser sees them, [1, channels, height, width].
///
/// `unconditional` is needed unless the guidance is 1. `each_step` is called after every step.
///
/// # Errors
/// If the size does not fit the model, or the model fails.
pub fn sample(
    denoiser: &dyn Denoiser,
    adapters: &Bound,
    space: &LatentSpace,
    conditional: &Conditioning,
    unconditional: Option<&Conditioning>,
    options: &SampleOptions,
    each_step: &dyn Fn(),
) -> Result<Tensor> {
    let noise = start_noise(space, options)?;
    sample_from(
        denoiser,
        adapters,
        noise,
        conditional,
        unconditional,
        options,
        each_step,
    )
}

/// As [`sample`], from given start noise.
///
/// # Errors
/// As [`sample`].
pub fn sample_from(
    denoiser: &dyn Denoiser,
    adapters: &Bound,
    noise: Tensor,
    conditional: &Conditioning,
    unconditional: Option<&Conditioning>,
    options: &SampleOptions,
    each_step: &dyn Fn(),
) -> Result<Tensor> {
    let guided = match (options.guidance == 1.0, unconditional) {
        (true, _) => None,
        (false, Some(unconditional)) => Some(unconditional),
        (false, None) => bail!(
            "a guidance of {} needs the unconditional entry",
            options.guidance
        ),
    };
    let sigmas = euler_sigmas(options.steps, options.shift);
    let mut latents = noise;
    for pair in sigmas.windows(2) {
        let (sigma, next) = (pair[0], pair[1]);
        let velocity = match guided {
            None => predict(denoiser, adapters, &latents, sigma, conditional)?,
            Some(unconditional) => {
                let (with, without) = predict_both(
                    denoiser,
                    adapters,
                    &latents,
                    sigma,
                    conditional,
                    unconditional,
                )?;
                guide(&without, &with, options.guidance)?
            }
        };
        latents = (latents + (velocity * (next - sigma))?)?;
        each_step();
    }
    Ok(latents)
}

/// Turns what the denoiser made into a picture.
///
/// # Errors
/// If the decoder fails.
pub fn decode(decoder: &Decoder, space: &LatentSpace, latents: &Tensor) -> Result<RgbImage> {
    let pixels = decoder.decode(&space.denormalize(latents)?)?.squeeze(0)?;
    let (channels, height, width) = pixels.dims3()?;
    if channels != 3 {
        bail!("expected a decoder of 3 channels, found {channels}");
    }
    let values = pixels.permute((1, 2, 0))?.flatten_all()?.to_vec1::<f32>()?;
    let bytes = values
        .iter()
        .map(|v| ((v.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8)
        .collect();
    match RgbImage::from_raw(width as u32, height as u32, bytes) {
        Some(picture) => Ok(picture),
        None => bail!("a picture of {width} x {height} px has another number of bytes"),
    }
}

fn start_noise(space: &LatentSpace, options: &SampleOptions) -> Result<Tensor> {
    let step = space.factor as u32 * 2;
    let (width, height) = (options.width, options.height);
    if width == 0 || height == 0 || width % step != 0 || height % step != 0 {
        bail!("a picture of {width} x {height} px: both sides must be multiples of {step}");
    }
    let (rows, columns) = (
        height as usize / space.factor,
        width as usize / space.factor,
    );
    let mut rng = Rng::new(options.seed, Stream::Sample, 0, options.number);
    let values = rng.normals(space.channels * rows * columns);
    Tensor::from_vec(values, (1, space.channels, rows, columns), &Device::Cpu)
}

fn predict(
    denoiser: &dyn Denoiser,
    adapters: &Bound,
    latents: &Tensor,
    sigma: f64,
    conditioning: &Conditioning,
) -> Result<Tensor> {
    let inputs = ConditioningTensors {
        context: conditioning.context.unsqueeze(0)?,
        pooled: conditioning.pooled.unsqueeze(0)?,
    };
    forward(denoiser, adapters, latents, sigma, &inputs)
}

/// Both branches of guidance, as one batch where their contexts are equally long.
fn predict_both(
    denoiser: &dyn Denoiser,
    adapters: &Bound,
    latents: &Tensor,
    sigma: f64,
    with: &Conditioning,
    without: &Conditioning,
) -> Result<(Tensor, Tensor)> {
    if with.context.dims() != without.context.dims() {
        return Ok((
            predict(denoiser, adapters, latents, sigma, with)?,
            predict(denoiser, adapters, latents, sigma, without)?,
        ));
    }
    let inputs = ConditioningTensors {
        context: Tensor::stack(&[&with.context, &without.context], 0)?,
        pooled: Tensor::stack(&[&with.pooled, &without.pooled], 0)?,
    };
    let both = forward(
        denoiser,
        adapters,
        &Tensor::cat(&[latents, latents], 0)?,
        sigma,
        &inputs,
    )?;
    Ok((both.narrow(0, 0, 1)?, both.narrow(0, 1, 1)?))
}

fn forward(
    denoiser: &dyn Denoiser,
    adapters: &Bound,
    latents: &Tensor,
    sigma: f64,
    inputs: &ConditioningTensors,
) -> Result<Tensor> {
    let timesteps = vec![network_timestep(sigma) as f32; latents.dim(0)?];
    let timesteps = Tensor::from_vec(timesteps, latents.dim(0)?, latents.device())?;
    let tape = Tape::off();
    let prediction = denoiser.forward(
        &tape,
        adapters,
        &Value::constant(latents.clone()),
        &timesteps,
        inputs,
    )?;
    Ok(prediction.into_tensor())
}

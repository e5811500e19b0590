//! The autoencoder of pictures, `AutoencoderKL` and FLUX.2's `AutoencoderKLFlux2`: pixels to latents and back. [`causal`] is
//! that of clips; [`autoencoder`] puts both behind one name.
//!
//! [`Encoder::encode`] gives mean and log-variance, never one frozen sample, and unscaled: [`LatentGeometry`] makes
//! the denoiser's latents of them. Convolutions work in tiles and attention in parts of the queries,
//! so a 1024 px picture needs memory for a few of its largest layers and nothing is cut at seams.
//!
//! Follows diffusers' `AutoencoderKL` (names, order of operations, epsilons); [`names`] maps other files' names.
//!
//! Legend of shape suffixes: b batch, c channels, h height, w width, n pixels of a level.

pub mod autoencoder;
mod blocks;
pub mod causal;
mod geometry;
pub mod names;
#[cfg(test)]
mod tests;

pub use autoencoder::{LatentDecoder, LatentEncoder};
pub use geometry::{Extents, Factors, LatentGeometry};

use candle_core::{Device, Result, Tensor, bail};

use crate::nn::weights::{self, Weights};
use crate::nn::{Conv2dOptions, Kernels};
use crate::recipe::latents::{VaeArchitecture, VaeEncoderArchitecture};
use blocks::{Conv, MidBlock, Norm, Parameters, ResNet};

/// What the encoder makes of pictures: a normal distribution over latents.
#[derive(Clone, Debug)]
pub struct Moments {
    /// The means, [b, latent_channels, h / factor, w / factor].
    pub mean: Tensor,
    /// The logarithms of the variances, same shape, within [-30, 20].
    pub logvar: Tensor,
}

/// Encoder and decoder of one VAE.
pub struct AutoencoderKl {
    encoder: Encoder,
    decoder: Decoder,
}

impl AutoencoderKl {
    /// Loads both halves from weights with canonical names, see [`names::canonical`].
    ///
    /// # Errors
    /// If a tensor is missing or does not fit the architecture.
    pub fn load(
        architecture: &VaeArchitecture,
        weights: &Weights,
    ) -> std::result::Result<Self, weights::Error> {
        Ok(Self {
            encoder: Encoder::load(&architecture.encoder, weights)?,
            decoder: Decoder::load(architecture, weights)?,
        })
    }

    /// As [`Encoder::encode`].
    ///
    /// # Errors
    /// As there.
    pub fn encode(&self, pixels_bchw: &Tensor) -> Result<Moments> {
        self.encoder.encode(pixels_bchw)
    }

    /// As [`Decoder::decode`].
    ///
    /// # Errors
    /// As there.
    pub fn decode(&self, latents_bchw: &Tensor) -> Result<Tensor> {
        self.decoder.decode(latents_bchw)
    }
}

/// The half that makes latents of pixels.
pub struct Encoder {
    architecture: VaeEncoderArchitecture,
    kernels: Kernels,
    conv_in: Conv,
    levels: Vec<(Vec<ResNet>, Option<Conv>)>,
    mid: MidBlock,
    norm_out: Norm,
    conv_out: Conv,
    quant: Option<Conv>,
}

impl Encoder {
    /// Loads the encoder from weights with canonical names, see [`names::canonical`].
    ///
    /// # Errors
    /// If a tensor is missing or does not fit the architecture.
    pub fn load(
        architecture: &VaeEncoderArchitecture,
        weights: &Weights,
    ) -> std::result::Result<Self, weights::Error> {
        Self::build(architecture, weights.kernels(), &|shape, name| {
            weights.get(shape, name)
        })
    }

    fn build<E>(
        a: &VaeEncoderArchitecture,
        kernels: &Kernels,
        get: Parameters<'_, E>,
    ) -> std::result::Result<Self, E> {
        let groups = a.norm_num_groups;
        let mut width = a.block_out_channels.first().copied().unwrap_or(0);
        let conv_in = Conv::load(get, "encoder.conv_in", a.in_channels, width, 3)?;
        let mut levels = Vec::new();
        for (level, &out) in a.block_out_channels.iter().enumerate() {
            let name = format!("encoder.down_blocks.{level}");
            let mut blocks = Vec::new();
            for block in 0..a.layers_per_block {
                let block = format!("{name}.resnets.{block}");
                blocks.push(ResNet::load(get, &block, width, out, groups)?);
                width = out;
            }
            // The innermost level keeps its size.
            let down = (level + 1 < a.block_out_channels.len())
                .then(|| Conv::load(get, &format!("{name}.downsamplers.0.conv"), out, out, 3));
            levels.push((blocks, down.transpose()?));
        }
        let moments = 2 * a.latent_channels;
        let quant = a
            .use_quant_conv
            .then(|| Conv::load(get, "quant_conv", moments, moments, 1));
        Ok(Self {
            architecture: a.clone(),
            kernels: kernels.clone(),
            conv_in,
            levels,
            mid: MidBlock::load(
                get,
                "encoder.mid_block",
                width,
                groups,
                a.mid_block_add_attention,
            )?,
            norm_out: Norm::load(get, "encoder.conv_norm_out", width, groups)?,
            conv_out: Conv::load(get, "encoder.conv_out", width, moments, 3)?,
            quant: quant.transpose()?,
        })
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        self.conv_out.device()
    }

    /// The distribution of latents of pictures in [-1, 1], [b, in_channels, h, w]. Pictures are computed one
    /// at a time: a row of a batch equals the row alone.
    ///
    /// # Errors
    /// If the shape does not fit, or the device fails.
    pub fn encode(&self, pixels_bchw: &Tensor) -> Result<Moments> {
        let (_, c, h, w) = pixels_bchw.dims4()?;
        let factor = self.architecture.factor();
        // A side of less than one latent would halve to nothing; what is left over beside whole latents is dropped.
        if c != self.architecture.in_channels || h < factor || w < factor {
            bail!(
                "the VAE expects pictures with {} channels of at least {factor} x {factor} pixels, found {:?}",
                self.architecture.in_channels,
                pixels_bchw.dims()
            );
        }
        let moments = per_picture(pixels_bchw, |picture| self.encode_picture(picture))?;
        let half = self.architecture.latent_channels;
        Ok(Moments {
            mean: moments.narrow(1, 0, half)?.contiguous()?,
            // The bounds of diffusers' `DiagonalGaussianDistribution`.
            logvar: moments.narrow(1, half, half)?.clamp(-30f32, 20f32)?,
        })
    }

    fn encode_picture(&self, pixels_1chw: &Tensor) -> Result<Tensor> {
        let kernels = &self.kernels;
        let mut x = self
            .conv_in
            .forward(kernels, pixels_1chw, Conv2dOptions::SAME)?;
        for (blocks, down) in &self.levels {
            for block in blocks {
                x = block.forward(kernels, &x)?;
            }
            if let Some(down) = down {
                x = down.forward(kernels, &x, Conv2dOptions::HALVE)?;
            }
        }
        x = self.mid.forward(kernels, &x)?;
        x = self.norm_out.forward_silu(kernels, &x)?;
        x = self.conv_out.forward(kernels, &x, Conv2dOptions::SAME)?;
        match &self.quant {
            Some(quant) => quant.forward(kernels, &x, Conv2dOptions::POINTWISE),
            None => Ok(x),
        }
    }
}

/// The half that makes pixels of latents.
pub struct Decoder {
    latent_channels: usize,
    kernels: Kernels,
    post_quant: Option<Conv>,
    conv_in: Conv,
    mid: MidBlock,
    levels: Vec<(Vec<ResNet>, Option<Conv>)>,
    norm_out: Norm,
    conv_out: Conv,
}

impl Decoder {
    /// Loads the decoder from weights with canonical names, see [`names::canonical`].
    ///
    /// # Errors
    /// If a tensor is missing or does not fit the architecture.
    pub fn load(
        architecture: &VaeArchitecture,
        weights: &Weights,
    ) -> std::result::Result<Self, weights::Error> {
        Self::build(architecture, weights.kernels(), &|shape, name| {
            weights.get(shape, name)
        })
    }

    fn build<E>(
        a: &VaeArchitecture,
        kernels: &Kernels,
        get: Parameters<'_, E>,
    ) -> std::result::Result<Self, E> {
        let (groups, latent) = (a.encoder.norm_num_groups, a.encoder.latent_channels);
        let channels = &a.decoder_block_out_channels;
        let mut width = channels.last().copied().unwrap_or(0);
        let post_quant = a
            .use_post_quant_conv
            .then(|| Conv::load(get, "post_quant_conv", latent, latent, 1));
        let conv_in = Conv::load(get, "decoder.conv_in", latent, width, 3)?;
        let attention = a.encoder.mid_block_add_attention;
        let mid = MidBlock::load(get, "decoder.mid_block", width, groups, attention)?;
        let mut levels = Vec::new();
        for (level, &out) in channels.iter().rev().enumerate() {
            let name = format!("decoder.up_blocks.{level}");
            let mut blocks = Vec::new();
            // One more than in the encoder: `layers_per_block + 1` in diffusers' `Decoder`.
            for block in 0..=a.encoder.layers_per_block {
                let block = format!("{name}.resnets.{block}");
                blocks.push(ResNet::load(get, &block, width, out, groups)?);
                width = out;
            }
            let up = (level + 1 < channels.len())
                .then(|| Conv::load(get, &format!("{name}.upsamplers.0.conv"), out, out, 3));
            levels.push((blocks, up.transpose()?));
        }
        Ok(Self {
            latent_channels: latent,
            kernels: kernels.clone(),
            post_quant: post_quant.transpose()?,
            conv_in,
            mid,
            levels,
            norm_out: Norm::load(get, "decoder.conv_norm_out", width, groups)?,
            conv_out: Conv::load(get, "decoder.conv_out", width, a.out_channels, 3)?,
        })
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        self.conv_out.device()
    }

    /// The pictures of unscaled latents, [b, latent_channels, h, w] to [b, out_channels, h * factor,
    /// w * factor]; nominally in [-1, 1], not clamped. Pictures are computed one at a time.
    ///
    /// # Errors
    /// If the shape does not fit, or the device fails.
    pub fn decode(&self, latents_bchw: &Tensor) -> Result<Tensor> {
        let (_, c, h, w) = latents_bchw.dims4()?;
        if c != self.latent_channels || h == 0 || w == 0 {
            bail!(
                "the VAE expects latents with {} channels, found {:?}",
                self.latent_channels,
                latents_bchw.dims()
            );
        }
        per_picture(latents_bchw, |picture| self.decode_latents(picture))
    }

    fn decode_latents(&self, latents_1chw: &Tensor) -> Result<Tensor> {
        let (kernels, mut x) = (&self.kernels, latents_1chw.clone());
        if let Some(post_quant) = &self.post_quant {
            x = post_quant.forward(kernels, &x, Conv2dOptions::POINTWISE)?;
        }
        x = self.conv_in.forward(kernels, &x, Conv2dOptions::SAME)?;
        x = self.mid.forward(kernels, &x)?;
        for (blocks, up) in &self.levels {
            for block in blocks {
                x = block.forward(kernels, &x)?;
            }
            if let Some(up) = up {
                x = up.forward(kernels, &x, Conv2dOptions::DOUBLE)?;
            }
        }
        x = self.norm_out.forward_silu(kernels, &x)?;
        self.conv_out.forward(kernels, &x, Conv2dOptions::SAME)
    }
}

/// `f` of each picture of a batch, alone: it then takes the memory of one, and its numbers do not depend on the others.
fn per_picture(batch: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let rows: Vec<_> = (0..batch.dim(0)?)
        .map(|n| f(&batch.narrow(0, n, 1)?))
        .collect::<Result<_>>()?;
    match rows.as_slice() {
        [] => bail!("the VAE was given no picture"),
        // `cat` would copy it.
        [single] => Ok(single.clone()),
        _ => Tensor::cat(&rows, 0),
    }
}

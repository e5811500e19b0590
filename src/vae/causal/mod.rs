//! The autoencoder of Wan's clips, `AutoencoderKLWan`: causal in time.
//!
//! Frames go in one at a time, in order, and latents come out: the first frame becomes the first latent frame, each four that follow one
//! more. That equals the chunks of 1, 4, 4, .. frames with a cache that diffusers and the authors compute by, as a frame's numbers depend
//! on itself and frames before; and the memory is that of a few frames, however long the clip.
//!
//! Follows diffusers' `AutoencoderKLWan` (names, order of operations) and `wan/modules/vae.py` of Wan 2.1; [`names`] maps the
//! latter's names.
//!
//! Legend of shape suffixes: b batch, c channels, t frames, h height, w width, n pixels of a level.

mod layers;
pub mod names;
#[cfg(test)]
mod tests;

use candle_core::{Device, Result, Tensor, bail};

use super::Moments;
use super::blocks::Parameters;
use crate::nn::Kernels;
use crate::nn::weights::{self, Weights};
use crate::recipe::latents::{WanArchitecture, WanEncoderArchitecture};
use layers::{Attention, Conv3, Down, Layer, ResNet, State, Up, check_channels, send, states};

/// The half that makes latents of frames.
pub struct Encoder {
    architecture: WanEncoderArchitecture,
    kernels: Kernels,
    device: Device,
    layers: Vec<Layer>,
}

impl Encoder {
    /// Loads the encoder from weights with canonical names, see [`names::canonical`].
    ///
    /// # Errors
    /// If a tensor is missing or does not fit the architecture.
    pub fn load(
        architecture: &WanEncoderArchitecture,
        weights: &Weights,
    ) -> std::result::Result<Self, weights::Error> {
        Self::build(architecture, weights.kernels(), &|shape, name| {
            weights.get(shape, name)
        })
    }

    fn build<E: From<candle_core::Error>>(
        a: &WanEncoderArchitecture,
        kernels: &Kernels,
        get: Parameters<'_, E>,
    ) -> std::result::Result<Self, E> {
        let mut width = a.base_dim;
        let first = Conv3::load(get, "encoder.conv_in", (a.in_channels, width), [3, 3])?;
        let device = first.device().clone();
        let mut layers = vec![Layer::Conv(first)];
        // The names count residual blocks and what halves in one row.
        for (level, mult) in a.dim_mult.iter().enumerate() {
            let next = |layers: &Vec<Layer>| format!("encoder.down_blocks.{}", layers.len() - 1);
            let out = a.base_dim * mult;
            for _ in 0..a.num_res_blocks {
                let block = ResNet::load(get, &next(&layers), width, out)?;
                layers.push(Layer::ResNet(Box::new(block)));
                width = out;
            }
            // The innermost level keeps its size.
            if let Some(&time) = a.temporal_downsample.get(level) {
                layers.push(Layer::Down(Down::load(get, &next(&layers), out, time)?));
            }
        }
        middle(get, "encoder", width, &mut layers)?;
        let moments = 2 * a.z_dim;
        layers.push(Layer::head(get, "encoder", width, moments)?);
        let quant = Conv3::load(get, "quant_conv", (moments, moments), [1, 1])?;
        layers.push(Layer::Conv(quant));
        Ok(Self {
            architecture: a.clone(),
            kernels: kernels.clone(),
            device,
            layers,
        })
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What it is.
    pub fn architecture(&self) -> &WanEncoderArchitecture {
        &self.architecture
    }

    /// A clip to be encoded, of which no frame was seen yet.
    pub fn begin(&self) -> Encoding<'_> {
        Encoding {
            encoder: self,
            states: states(&self.layers),
            frames: 0,
            moments: Vec::new(),
        }
    }
}

/// A clip that is being encoded.
pub struct Encoding<'a> {
    encoder: &'a Encoder,
    states: Vec<State>,
    frames: usize,
    moments: Vec<Tensor>,
}

impl Encoding<'_> {
    /// Takes the next frames, in order: pixels in [-1, 1], [t, in_channels, h, w]. How many at a time changes no number.
    ///
    /// # Errors
    /// If they have another shape than the first or are too small, or the device fails.
    pub fn push(&mut self, frames_tchw: &Tensor) -> Result<()> {
        let (t, _, h, w) = frames_tchw.dims4()?;
        let factor = self.encoder.architecture.factor();
        // A side of less than one latent would halve to nothing; what is left over beside whole latents is dropped.
        if h < factor || w < factor {
            bail!("the VAE expects frames of at least {factor} x {factor} pixels, found {w} x {h}");
        }
        let Encoder {
            architecture: a,
            kernels,
            layers,
            ..
        } = self.encoder;
        for n in 0..t {
            let frame = frames_tchw.narrow(0, n, 1)?.contiguous()?;
            check_channels(&frame, a.in_channels, "frames")?;
            let moments = &mut self.moments;
            send(kernels, layers, &mut self.states, frame, &mut |frame| {
                moments.push(frame);
                Ok(())
            })?;
            self.frames += 1;
        }
        Ok(())
    }

    /// The distribution of the latents of all frames, unscaled: [1, z_dim, t, h / factor, w / factor] each, with t = 1 + (frames - 1) / 4.
    ///
    /// # Errors
    /// If the number of frames is not one more than a multiple of four (what the temporal factor is), or the device fails.
    pub fn finish(self) -> Result<Moments> {
        let step = self.encoder.architecture.frames();
        if self.frames % step != 1 % step {
            bail!(
                "a clip of {} frames: the number of frames must be 1 more than a multiple of {step}",
                self.frames
            );
        }
        let moments = Tensor::stack(&self.moments, 2)?;
        let half = self.encoder.architecture.z_dim;
        Ok(Moments {
            mean: moments.narrow(1, 0, half)?.contiguous()?,
            // The bounds of diffusers' `DiagonalGaussianDistribution`.
            logvar: moments.narrow(1, half, half)?.clamp(-30f32, 20f32)?,
        })
    }
}

/// The half that makes frames of latents.
pub struct Decoder {
    latent_channels: usize,
    kernels: Kernels,
    device: Device,
    layers: Vec<Layer>,
}

impl Decoder {
    /// Loads the decoder from weights with canonical names, see [`names::canonical`].
    ///
    /// # Errors
    /// If a tensor is missing or does not fit the architecture.
    pub fn load(
        architecture: &WanArchitecture,
        weights: &Weights,
    ) -> std::result::Result<Self, weights::Error> {
        Self::build(architecture, weights.kernels(), &|shape, name| {
            weights.get(shape, name)
        })
    }

    fn build<E: From<candle_core::Error>>(
        a: &WanArchitecture,
        kernels: &Kernels,
        get: Parameters<'_, E>,
    ) -> std::result::Result<Self, E> {
        let e = &a.encoder;
        let post_quant = Conv3::load(get, "post_quant_conv", (e.z_dim, e.z_dim), [1, 1])?;
        let device = post_quant.device().clone();
        let mut layers = vec![Layer::Conv(post_quant)];
        let mut width = a.decoder_base_dim * e.dim_mult.last().copied().unwrap_or(1);
        let first = Conv3::load(get, "decoder.conv_in", (e.z_dim, width), [3, 3])?;
        layers.push(Layer::Conv(first));
        middle(get, "decoder", width, &mut layers)?;
        for (level, mult) in e.dim_mult.iter().rev().enumerate() {
            let name = format!("decoder.up_blocks.{level}");
            let out = a.decoder_base_dim * mult;
            // One more than in the encoder.
            for block in 0..=e.num_res_blocks {
                let block = format!("{name}.resnets.{block}");
                let block = ResNet::load(get, &block, width, out)?;
                layers.push(Layer::ResNet(Box::new(block)));
                width = out;
            }
            if let Some(&time) = e.temporal_downsample.iter().rev().nth(level) {
                let up = Up::load(get, &format!("{name}.upsamplers.0"), width, time)?;
                layers.push(Layer::Up(up));
                width /= 2;
            }
        }
        layers.push(Layer::head(get, "decoder", width, a.out_channels)?);
        Ok(Self {
            latent_channels: e.z_dim,
            kernels: kernels.clone(),
            device,
            layers,
        })
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Gives `out` the frames of unscaled latents, [1, z_dim, t, h, w], one after the other: [1, out_channels, h * factor,
    /// w * factor], in [-1, 1] as diffusers clamps them.
    ///
    /// # Errors
    /// If the shape does not fit, the device fails, or `out` does.
    pub fn decode(
        &self,
        latents_1cthw: &Tensor,
        out: &mut dyn FnMut(Tensor) -> Result<()>,
    ) -> Result<()> {
        let (_, _, t, h, w) = latents_1cthw.dims5()?;
        if h == 0 || w == 0 {
            bail!("the VAE was given latents without pixels");
        }
        let mut states = states(&self.layers);
        for n in 0..t {
            let frame = latents_1cthw.narrow(2, n, 1)?.squeeze(2)?.contiguous()?;
            check_channels(&frame, self.latent_channels, "latents")?;
            send(&self.kernels, &self.layers, &mut states, frame, &mut |x| {
                out(x.clamp(-1f32, 1f32)?)
            })?;
        }
        Ok(())
    }
}

/// The innermost level: a residual block, an attention within each frame, a residual block.
fn middle<E: From<candle_core::Error>>(
    get: Parameters<'_, E>,
    half: &str,
    width: usize,
    layers: &mut Vec<Layer>,
) -> std::result::Result<(), E> {
    let name = format!("{half}.mid_block");
    let block = |n: usize| ResNet::load(get, &format!("{name}.resnets.{n}"), width, width);
    let attention = Attention::load(get, &format!("{name}.attentions.0"), width)?;
    layers.push(Layer::ResNet(Box::new(block(0)?)));
    layers.push(Layer::Attention(Box::new(attention)));
    layers.push(Layer::ResNet(Box::new(block(1)?)));
    Ok(())
}

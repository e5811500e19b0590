//! The autoencoders there are, behind one name: of pictures ([`Encoder`], [`Decoder`]) and of clips ([`causal`]).

use candle_core::{Device, Result, Tensor, bail};

use super::{Decoder, Encoder, Moments, causal, names};
use crate::nn::weights::{self, Weights};
use crate::recipe::latents::{AutoencoderArchitecture, AutoencoderConfig, EncoderArchitecture};

/// The same weights under canonical names, whichever autoencoder's they are; as they are where they are none's.
pub fn canonical(weights: &Weights) -> Weights {
    causal::names::canonical(weights).unwrap_or_else(|| names::canonical(weights))
}

/// What canonical weights tell where there is no configuration. The statistics of Wan's are those of the released VAE; nothing tells
/// those of pictures.
pub fn config(weights: &Weights) -> Option<AutoencoderConfig> {
    if let Some(wan) = causal::names::architecture(weights) {
        return Some(wan.into());
    }
    Some(AutoencoderConfig {
        architecture: AutoencoderArchitecture::Pictures(names::architecture(weights)?),
        statistics: None,
    })
}

/// Canonical name and shape of every tensor of the half that makes latents: what a latent's weights digest is taken over.
pub fn encoder_tensors(architecture: &EncoderArchitecture) -> Vec<(String, Vec<usize>)> {
    match architecture {
        EncoderArchitecture::Pictures(vae) => names::encoder_tensors(vae),
        EncoderArchitecture::Wan(vae) => causal::names::encoder_tensors(vae),
    }
}

/// Canonical name and shape of every tensor of the other half.
pub fn decoder_tensors(architecture: &AutoencoderArchitecture) -> Vec<(String, Vec<usize>)> {
    match architecture {
        AutoencoderArchitecture::Pictures(vae) => names::decoder_tensors(vae),
        AutoencoderArchitecture::Wan(vae) => causal::names::decoder_tensors(vae),
    }
}

/// The half that makes latents.
pub enum LatentEncoder {
    /// Of pictures.
    Pictures(Box<Encoder>),
    /// Of clips, of which a picture is one with one frame.
    Wan(Box<causal::Encoder>),
}

impl LatentEncoder {
    /// Loads it from weights with canonical names, see [`canonical`].
    ///
    /// # Errors
    /// If a tensor is missing or does not fit the architecture.
    pub fn load(
        architecture: &EncoderArchitecture,
        weights: &Weights,
    ) -> std::result::Result<Self, weights::Error> {
        Ok(match architecture {
            EncoderArchitecture::Pictures(vae) => {
                Self::Pictures(Box::new(Encoder::load(vae, weights)?))
            }
            EncoderArchitecture::Wan(vae) => {
                Self::Wan(Box::new(causal::Encoder::load(vae, weights)?))
            }
        })
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        match self {
            Self::Pictures(encoder) => encoder.device(),
            Self::Wan(encoder) => encoder.device(),
        }
    }

    /// The distribution of latents of pictures in [-1, 1], [b, in_channels, h, w]; a row of a batch equals the row alone. The latents have
    /// an axis for frames where those of clips have one.
    ///
    /// # Errors
    /// If the shape does not fit, or the device fails.
    pub fn encode(&self, pixels_bchw: &Tensor) -> Result<Moments> {
        let encoder = match self {
            Self::Pictures(encoder) => return encoder.encode(pixels_bchw),
            Self::Wan(encoder) => encoder,
        };
        let mut rows = Vec::new();
        for row in 0..pixels_bchw.dim(0)? {
            let mut encoding = encoder.begin();
            encoding.push(&pixels_bchw.narrow(0, row, 1)?)?;
            rows.push(encoding.finish()?);
        }
        let all = |part: fn(&Moments) -> &Tensor| {
            Tensor::cat(&rows.iter().map(part).collect::<Vec<_>>(), 0)
        };
        Ok(Moments {
            mean: all(|row| &row.mean)?,
            logvar: all(|row| &row.logvar)?,
        })
    }

    /// A clip to be encoded, of which no frame was seen yet.
    ///
    /// # Errors
    /// If it makes latents of pictures alone.
    pub fn begin(&self) -> Result<causal::Encoding<'_>> {
        match self {
            Self::Pictures(_) => bail!("the VAE makes latents of pictures, not of clips"),
            Self::Wan(encoder) => Ok(encoder.begin()),
        }
    }
}

/// The half that makes pictures or frames.
pub enum LatentDecoder {
    /// Of pictures.
    Pictures(Box<Decoder>),
    /// Of clips.
    Wan(Box<causal::Decoder>),
}

impl LatentDecoder {
    /// Loads it from weights with canonical names, see [`canonical`].
    ///
    /// # Errors
    /// If a tensor is missing or does not fit the architecture.
    pub fn load(
        architecture: &AutoencoderArchitecture,
        weights: &Weights,
    ) -> std::result::Result<Self, weights::Error> {
        Ok(match architecture {
            AutoencoderArchitecture::Pictures(vae) => {
                Self::Pictures(Box::new(Decoder::load(vae, weights)?))
            }
            AutoencoderArchitecture::Wan(vae) => {
                Self::Wan(Box::new(causal::Decoder::load(vae, weights)?))
            }
        })
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        match self {
            Self::Pictures(decoder) => decoder.device(),
            Self::Wan(decoder) => decoder.device(),
        }
    }

    /// Gives `out` the frames of unscaled latents of one sample, a batch of one, in order: [1, out_channels, height, width], nominally
    /// in [-1, 1]. A picture is one frame.
    ///
    /// # Errors
    /// If the shape does not fit, the device fails, or `out` does.
    pub fn decode(
        &self,
        latents: &Tensor,
        out: &mut dyn FnMut(Tensor) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Pictures(decoder) => out(decoder.decode(latents)?),
            Self::Wan(decoder) => decoder.decode(latents, out),
        }
    }
}

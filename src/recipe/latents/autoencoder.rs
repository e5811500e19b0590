//! The autoencoders there are: of pictures and of clips.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::config::read_text;
use super::{
    ConfigError, LatentStatistics, VaeArchitecture, VaeConfig, VaeEncoderArchitecture,
    WanArchitecture, WanEncoderArchitecture,
};

/// The network of an autoencoder, both halves.
#[derive(Clone, Debug, PartialEq)]
pub enum AutoencoderArchitecture {
    /// `AutoencoderKL` or `AutoencoderKLFlux2`.
    Pictures(VaeArchitecture),
    /// `AutoencoderKLWan`.
    Wan(WanArchitecture),
}

/// The half that makes latents, as a spec has it. That of pictures has no tag, as the first specs had no other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EncoderArchitecture {
    /// Of an `AutoencoderKL` or `AutoencoderKLFlux2`.
    Pictures(VaeEncoderArchitecture),
    /// Of an `AutoencoderKLWan`.
    Wan(WanEncoderArchitecture),
}

impl AutoencoderArchitecture {
    /// The half that makes latents.
    pub fn encoder(&self) -> EncoderArchitecture {
        match self {
            Self::Pictures(vae) => EncoderArchitecture::Pictures(vae.encoder.clone()),
            Self::Wan(vae) => EncoderArchitecture::Wan(vae.encoder.clone()),
        }
    }

    /// Channels of the latents.
    pub fn latent_channels(&self) -> usize {
        match self {
            Self::Pictures(vae) => vae.encoder.latent_channels,
            Self::Wan(vae) => vae.encoder.z_dim,
        }
    }

    /// Pixels a latent, along one side.
    pub fn factor(&self) -> usize {
        match self {
            Self::Pictures(vae) => vae.encoder.factor(),
            Self::Wan(vae) => vae.encoder.factor(),
        }
    }

    /// Whether the mean stands for the latents, and no sample is ever drawn of them: `WanVAE.encode` of the authors' code returns it.
    pub fn takes_means(&self) -> bool {
        matches!(self, Self::Wan(_))
    }

    /// Frames a latent frame, where latents have an axis for them.
    pub fn frames(&self) -> Option<usize> {
        match self {
            Self::Pictures(_) => None,
            Self::Wan(vae) => Some(vae.encoder.frames()),
        }
    }
}

/// An autoencoder, and what brings its latents to the denoiser's where its configuration says so.
#[derive(Clone, Debug, PartialEq)]
pub struct AutoencoderConfig {
    /// The network.
    pub architecture: AutoencoderArchitecture,
    /// As [`VaeConfig::statistics`].
    pub statistics: Option<LatentStatistics>,
}

impl AutoencoderConfig {
    /// Reads diffusers' `vae/config.json`; its `_class_name` says which autoencoder it is of.
    ///
    /// # Errors
    /// If the file cannot be read, or is the configuration of none that this program implements.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let (text, name) = (read_text(file)?, file.display().to_string());
        if WanArchitecture::is_named_by(&text) {
            return Ok(WanArchitecture::parse(&text, &name)?.into());
        }
        let config = VaeConfig::parse(&text, &name)?;
        Ok(Self {
            architecture: AutoencoderArchitecture::Pictures(config.architecture),
            statistics: config.statistics,
        })
    }
}

impl From<WanArchitecture> for AutoencoderConfig {
    fn from(wan: WanArchitecture) -> Self {
        Self {
            statistics: Some(wan.encoder.statistics()),
            architecture: AutoencoderArchitecture::Wan(wan),
        }
    }
}

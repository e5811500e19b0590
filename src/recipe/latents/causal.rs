//! The configuration of Wan's VAE, diffusers' `AutoencoderKLWan`.

use serde::{Deserialize, Serialize};

use super::LatentStatistics;

/// diffusers' class of it.
pub(super) const CLASS: &str = "AutoencoderKLWan";

/// What the encoder of Wan's VAE depends on, and what brings its latents to the denoiser's: [`Self::statistics`] is in no weight, and
/// single files of it come without a configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WanEncoderArchitecture {
    /// Tells this architecture from others in a spec.
    pub class: WanClass,
    /// Channels of a picture.
    pub in_channels: usize,
    /// Channels of the level of the picture's size.
    pub base_dim: usize,
    /// Channels of each level, from the picture inwards, in multiples of `base_dim`; each level but the last halves the sides.
    pub dim_mult: Vec<usize>,
    /// Residual blocks of each level of the encoder (the decoder has one more).
    pub num_res_blocks: usize,
    /// Of each level but the last, whether it halves the number of frames as well.
    pub temporal_downsample: Vec<bool>,
    /// Channels of the latents.
    pub z_dim: usize,
    /// Subtracted from the latents, one a channel.
    pub latents_mean: Vec<f64>,
    /// What they are divided by then, one a channel, each above 0.
    pub latents_std: Vec<f64>,
}

/// The name of the architecture in a spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WanClass {
    /// Wan 2.1's.
    AutoencoderKLWan,
}

/// A whole `AutoencoderKLWan`.
#[derive(Clone, Debug, PartialEq)]
pub struct WanArchitecture {
    /// What the encoder and the decoder share.
    pub encoder: WanEncoderArchitecture,
    /// `base_dim` of the decoder.
    pub decoder_base_dim: usize,
    /// Channels of a decoded picture.
    pub out_channels: usize,
}

/// The released VAE's statistics: `latents_mean` and `latents_std` of `AutoencoderKLWan.__init__` in diffusers, `mean` and `std` of
/// `WanVAE` in `wan/modules/vae.py` of Wan 2.1.
pub const WAN_LATENTS: [(f64, f64); 16] = [
    (-0.7571, 2.8184),
    (-0.7089, 1.4541),
    (-0.9113, 2.3275),
    (0.1075, 2.6558),
    (-0.1745, 1.2196),
    (0.9653, 1.7708),
    (-0.1517, 2.6052),
    (1.5508, 2.0743),
    (0.4134, 3.2687),
    (-0.0715, 2.1526),
    (0.5517, 2.8652),
    (-0.3632, 1.5579),
    (-0.1922, 1.6382),
    (-0.9497, 1.1253),
    (0.2503, 2.8251),
    (-0.2921, 1.9160),
];

impl WanEncoderArchitecture {
    /// Pixels a latent, along one side.
    pub fn factor(&self) -> usize {
        1 << (self.dim_mult.len().max(1) - 1)
    }

    /// Frames a latent frame; the first latent frame is of one frame.
    pub fn frames(&self) -> usize {
        1 << self
            .temporal_downsample
            .iter()
            .filter(|down| **down)
            .count()
    }

    /// What brings its latents to the denoiser's.
    pub fn statistics(&self) -> LatentStatistics {
        LatentStatistics::PerChannel {
            scale: 1.0,
            mean: self.latents_mean.clone(),
            std: self.latents_std.clone(),
        }
    }
}

/// The fields of `AutoencoderKLWan.__init__`, with its defaults. (diffusers spells `temperal_downsample` so.)
#[derive(Deserialize)]
#[serde(default)]
pub(super) struct RawWan {
    base_dim: usize,
    decoder_base_dim: Option<usize>,
    z_dim: usize,
    dim_mult: Vec<usize>,
    num_res_blocks: usize,
    attn_scales: Vec<f64>,
    temperal_downsample: Vec<bool>,
    latents_mean: Vec<f64>,
    latents_std: Vec<f64>,
    is_residual: bool,
    in_channels: usize,
    out_channels: usize,
    patch_size: Option<usize>,
}

impl Default for RawWan {
    fn default() -> Self {
        Self {
            base_dim: 96,
            decoder_base_dim: None,
            z_dim: 16,
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            attn_scales: Vec::new(),
            temperal_downsample: vec![false, true, true],
            latents_mean: WAN_LATENTS.map(|(mean, _)| mean).to_vec(),
            latents_std: WAN_LATENTS.map(|(_, std)| std).to_vec(),
            is_residual: false,
            in_channels: 3,
            out_channels: 3,
            patch_size: None,
        }
    }
}

impl RawWan {
    /// The architecture that it describes.
    pub(super) fn architecture(self) -> Result<WanArchitecture, String> {
        self.check()?;
        // As for pictures: one refusal for statistics that do not fit, whatever the VAE.
        LatentStatistics::new(
            1.0,
            None,
            Some(self.latents_mean.clone()),
            Some(self.latents_std.clone()),
        )?
        .check(self.z_dim)?;
        Ok(WanArchitecture {
            decoder_base_dim: self.decoder_base_dim.unwrap_or(self.base_dim),
            out_channels: self.out_channels,
            encoder: WanEncoderArchitecture {
                class: WanClass::AutoencoderKLWan,
                in_channels: self.in_channels,
                base_dim: self.base_dim,
                dim_mult: self.dim_mult,
                num_res_blocks: self.num_res_blocks,
                temporal_downsample: self.temperal_downsample,
                z_dim: self.z_dim,
                latents_mean: self.latents_mean,
                latents_std: self.latents_std,
            },
        })
    }

    fn check(&self) -> Result<(), String> {
        // Wan 2.2 TI2V-5B's, with 48 channels.
        if self.is_residual || self.patch_size.is_some_and(|side| side != 1) {
            return Err(
                "`is_residual` or `patch_size` is set, as in the VAE of Wan 2.2 TI2V-5B: expected the VAE of Wan 2.1, \
                 which Wan 2.2's 14B models have too"
                    .to_owned(),
            );
        }
        if !self.attn_scales.is_empty() {
            return Err(
                "`attn_scales` is not empty, expected no attention in the levels".to_owned(),
            );
        }
        let levels = self.dim_mult.len();
        // `factor` shifts by their number.
        if !(1..=8).contains(&levels) {
            return Err(format!("`dim_mult` has {levels} levels, expected 1 to 8"));
        }
        if self.temperal_downsample.len() + 1 != levels {
            return Err(format!(
                "`temperal_downsample` has {} values, expected {}, one less than `dim_mult`",
                self.temperal_downsample.len(),
                levels - 1
            ));
        }
        self.check_counts()
    }

    fn check_counts(&self) -> Result<(), String> {
        let sizes = [
            ("base_dim", self.base_dim, 4096),
            ("decoder_base_dim", self.decoder_base_dim.unwrap_or(1), 4096),
            ("z_dim", self.z_dim, 4096),
            ("num_res_blocks", self.num_res_blocks, 64),
            ("in_channels", self.in_channels, 4096),
            ("out_channels", self.out_channels, 4096),
        ];
        let mults = self.dim_mult.iter().map(|&n| ("dim_mult", n, 64));
        for (name, count, most) in sizes.into_iter().chain(mults) {
            // Beyond any network, and small enough that no product overflows.
            if !(1..=most).contains(&count) {
                return Err(format!("`{name}` is {count}, expected 1 to {most}"));
            }
        }
        // The decoder's upsampling halves the channels, and what follows takes the half of the level's.
        let decoder = self.decoder_base_dim.unwrap_or(self.base_dim);
        let halved = self.dim_mult.iter().skip(1);
        if let Some(mult) = halved
            .clone()
            .find(|mult| !(decoder * *mult).is_multiple_of(2))
        {
            return Err(format!(
                "`dim_mult` has {mult}, which makes {} channels in the decoder: expected an even number",
                decoder * mult
            ));
        }
        Ok(())
    }
}

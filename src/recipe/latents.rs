//! [`LatentSpec`]: everything a picture's latents depend on, and nothing else; and the key of one picture's
//! latents under it.
//!
//! The architecture comes from the VAE's own `config.json`, the weights enter by digest (of the encoder half
//! only: the decoder does not change what is stored), and the rules by which a file becomes pixels are named
//! here. The store keeps mean and log-variance *unscaled*, so the scaling and shift of a model are not part of
//! a spec. The picture itself is known by the digest of its file's bytes: cheap, found again after a rename
//! or a move, and never after an edit. (Where an earlier version read other pixels from the same bytes, by a digest of these and the
//! version of reading.)

mod autoencoder;
mod causal;
mod config;
mod statistics;
mod window;

use serde::{Deserialize, Serialize};

pub use autoencoder::{AutoencoderArchitecture, AutoencoderConfig, EncoderArchitecture};
pub use causal::{WAN_LATENTS, WanArchitecture, WanClass, WanEncoderArchitecture};
pub use config::{ConfigError, VaeConfig};
pub use statistics::LatentStatistics;
pub use window::{Rate, Window};

use crate::digest::{Digest, Fingerprint};
use crate::text::spec::Precision;

/// The version of the canonical form of [`LatentSpec`] and of [`LatentKey`]. A change of meaning of any field,
/// or of any pixel that the rules give, bumps it.
pub const LATENT_SPEC_VERSION: u32 = 1;

/// One VAE encoder's full description; its [`Fingerprint`] keys the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentSpec {
    /// [`LATENT_SPEC_VERSION`].
    pub version: u32,
    /// The encoder half, from the checkpoint's configuration.
    pub architecture: EncoderArchitecture,
    /// The encoder's weights: over canonical name, shape, dtype and bytes of each.
    pub weights: Digest,
    /// How a file becomes pixels.
    pub picture: PictureRules,
    /// The precisions that decide the numbers.
    pub precision: Precision,
}

impl LatentSpec {
    /// The fingerprint of this spec.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self)
    }
}

/// The fields of the configuration of an `AutoencoderKL` or `AutoencoderKLFlux2` that its encoder depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeEncoderArchitecture {
    /// Channels of a picture.
    pub in_channels: usize,
    /// Channels of each level, from the picture inwards; each level but the last halves the size.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level of the encoder (the decoder has one more).
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of every group norm; invisible in the shapes.
    pub norm_num_groups: usize,
    /// Whether a 1 x 1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether the innermost level has a self-attention.
    pub mid_block_add_attention: bool,
    /// The batch norm of FLUX.2's VAE. Left out of the canonical form where there is none, as the first VAEs had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch_norm: Option<PatchNorm>,
}

/// A batch norm without weight and bias over patches of latents, by whose running statistics the denoiser's latents come from the
/// VAE's (`bn` in `src/flux2/autoencoder.py` of Black Forest Labs and in diffusers' `AutoencoderKLFlux2`). A patch's channels
/// are those of the latents one after another, each with the patch's places row by row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchNorm {
    /// Side of a patch, in latents.
    pub side: usize,
    /// Added to the variances.
    pub eps: f64,
}

impl VaeEncoderArchitecture {
    /// How many means and variances its batch norm has, if it has one.
    pub fn norm_channels(&self) -> Option<usize> {
        let norm = self.patch_norm?;
        Some(self.latent_channels * norm.side * norm.side)
    }

    /// Pixels per latent, along one side.
    pub fn factor(&self) -> usize {
        // Each level but the innermost halves.
        1 << (self.block_out_channels.len().max(1) - 1)
    }
}

/// A whole `AutoencoderKL` or `AutoencoderKLFlux2`.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeArchitecture {
    /// What the encoder and the decoder share.
    pub encoder: VaeEncoderArchitecture,
    /// Channels of a decoded picture.
    pub out_channels: usize,
    /// Channels of each level of the decoder, from the picture inwards: the encoder's, but in FLUX.2's small decoder.
    pub decoder_block_out_channels: Vec<usize>,
    /// Whether a 1 x 1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
}

/// How a file becomes the pixels that the VAE reads. Each rule has a name in the spec, so that another one
/// later is another spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PictureRules {
    /// What the samples mean.
    pub color: ColorRule,
    /// What becomes of transparency.
    pub alpha: AlphaRule,
    /// Whether the file's orientation is followed.
    pub orientation: OrientationRule,
    /// The filter where neither side grows.
    pub shrink: ShrinkFilter,
    /// The filter where a side grows.
    pub enlarge: EnlargeFilter,
    /// The numbers given to the VAE.
    pub range: RangeRule,
}

impl PictureRules {
    /// The rules this version follows.
    pub const CURRENT: Self = Self {
        color: ColorRule::Rgb8IgnoreIcc,
        alpha: AlphaRule::OverWhite,
        orientation: OrientationRule::Exif,
        shrink: ShrinkFilter::Area,
        enlarge: EnlargeFilter::Lanczos3,
        range: RangeRule::MinusOneToOne,
    };
}

/// What the samples of a picture mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColorRule {
    /// Red, green, blue, 8 bits each (16-bit samples rounded, grey repeated), colour profiles ignored.
    Rgb8IgnoreIcc,
}

/// What becomes of transparency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlphaRule {
    /// The picture is laid over white. (Trainers that drop the channel show whatever colour the editor left
    /// under transparent pixels, often black.)
    OverWhite,
}

/// Whether the file's orientation is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrientationRule {
    /// The EXIF orientation, or that of XMP where EXIF has none, is applied: the picture is as viewers show it.
    Exif,
}

/// The filter where neither side grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShrinkFilter {
    /// Each pixel is the mean of the area it covers, partly covered pixels by their share, rounded half up.
    Area,
}

/// The filter where a side grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnlargeFilter {
    /// Lanczos with three lobes.
    Lanczos3,
}

/// The numbers given to the VAE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RangeRule {
    /// `value / 127.5 - 1`.
    MinusOneToOne,
}

/// A size in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
}

/// What of a picture, or of each frame of a clip, is encoded: resized to `resized`, of which the box at (`left`, `top`) of the bucket's
/// size is kept, and mirrored if `flip`; and which frames of the clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// The size of the whole picture after resizing.
    pub resized: Size,
    /// Columns of the resized picture cut off on the left.
    pub left: u32,
    /// Rows of the resized picture cut off at the top.
    pub top: u32,
    /// The size that is kept: what the VAE sees.
    pub bucket: Size,
    /// Whether the kept part is then mirrored left to right.
    pub flip: bool,
    /// The filter, where it is not the spec's. Left out of the canonical form where it is, as the first views had no other.
    #[serde(default, skip_serializing_if = "Resampling::is_the_specs")]
    pub resampling: Resampling,
    /// The frames, of a clip; None for a picture, in whose canonical form it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

impl View {
    /// How many frames there are: 1 of a picture.
    pub fn frames(&self) -> u32 {
        self.window.map_or(1, |window| window.frames)
    }
}

/// The filter of a view.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Resampling {
    /// As [`PictureRules`] has it: one where no side grows, another where one does.
    #[default]
    Spec,
    /// Lanczos with three lobes, whichever sides grow: how the authors of FLUX.1 Kontext resize a reference picture
    /// (`prepare_kontext` in `src/flux/sampling.py`), and diffusers as well.
    Lanczos3,
    /// Pillow's `BICUBIC`, whichever sides grow. In no data set: `audit` looks whether a trainer resized so, as this and the next.
    Bicubic,
    /// Pillow's `BILINEAR`, whichever sides grow.
    Bilinear,
}

impl Resampling {
    fn is_the_specs(&self) -> bool {
        *self == Self::Spec
    }
}

/// What one entry of latents depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentKey {
    /// [`LATENT_SPEC_VERSION`].
    pub version: u32,
    /// The fingerprint of the [`LatentSpec`].
    pub spec: Fingerprint,
    /// What the picture is known by: the digest of its file, or of that and the version of reading. A clip is known by the digest of its
    /// files and of what decodes them.
    pub picture: Digest,
    /// What of it is encoded.
    pub view: View,
}

impl LatentKey {
    /// The key of `view` of the file with digest `picture` under `spec`.
    pub fn new(spec: Fingerprint, picture: Digest, view: View) -> Self {
        Self {
            version: LATENT_SPEC_VERSION,
            spec,
            picture,
            view,
        }
    }

    /// The fingerprint of the entry: of this key's canonical JSON.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self)
    }
}

#[cfg(test)]
#[path = "latents_tests.rs"]
mod tests;

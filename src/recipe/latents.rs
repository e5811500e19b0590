//! [`LatentSpec`]: everything a picture's latents depend on, and nothing else; and the key of one picture's
//! latents under it.
//!
//! The architecture comes from the VAE's own `config.json`, the weights enter by digest (of the encoder half
//! only: the decoder does not change what is stored), and the rules by which a file becomes pixels are named
//! here. The store keeps mean and log-variance *unscaled*, so the scaling and shift of a model are not part of
//! a spec. The picture itself is known by the digest of its file's bytes: cheap, found again after a rename
//! or a move, and never after an edit.

use serde::{Deserialize, Serialize};

use super::spec::Precision;
use crate::digest::{self, Digest, Fingerprint};

/// The version of the canonical form of [`LatentSpec`] and of [`LatentKey`]. A change of meaning of any field,
/// or of any pixel that the rules give, bumps it.
pub const LATENT_SPEC_VERSION: u32 = 1;

/// One VAE encoder's full description; its [`Fingerprint`] keys the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentSpec {
    /// [`LATENT_SPEC_VERSION`].
    pub version: u32,
    /// The network, from the checkpoint's configuration.
    pub architecture: VaeEncoderArchitecture,
    /// The encoder's weights: over canonical name, shape, dtype and bytes of each.
    pub weights: Digest,
    /// How a file becomes pixels.
    pub picture: PictureRules,
    /// The precisions that decide the numbers.
    pub precision: Precision,
}

impl LatentSpec {
    /// The fingerprint of this spec.
    ///
    /// # Errors
    /// Never in practice: it holds no number that JSON cannot.
    pub fn fingerprint(&self) -> Result<Fingerprint, digest::Error> {
        Fingerprint::of(self)
    }
}

/// The fields of an `AutoencoderKL` configuration that its encoder depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

impl VaeEncoderArchitecture {
    /// Pixels per latent, along one side.
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len().max(1) - 1)
    }
}

/// A whole `AutoencoderKL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaeArchitecture {
    /// What the encoder and the decoder share.
    pub encoder: VaeEncoderArchitecture,
    /// Channels of a decoded picture.
    pub out_channels: usize,
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
    /// The EXIF orientation is applied: the picture is as viewers show it.
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

/// What of a picture is encoded: resized to `resized`, of which the box at (`left`, `top`) of the bucket's
/// size is kept, and mirrored if `flip`.
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
}

/// What one entry of latents depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentKey {
    /// [`LATENT_SPEC_VERSION`].
    pub version: u32,
    /// The fingerprint of the [`LatentSpec`].
    pub spec: Fingerprint,
    /// The digest of the picture's file.
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
    ///
    /// # Errors
    /// Never in practice: it holds no number that JSON cannot.
    pub fn fingerprint(&self) -> Result<Fingerprint, digest::Error> {
        Fingerprint::of(self)
    }
}

/// A VAE's configuration: its architecture, and the numbers that bring its latents to the scale the denoiser
/// was trained with, `(latent - shift_factor) * scaling_factor`.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    /// The network.
    pub architecture: VaeArchitecture,
    /// The factor after the shift.
    pub scaling_factor: f64,
    /// What is subtracted first; 0 where the configuration has none.
    pub shift_factor: f64,
}

/// Why a VAE's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct ConfigError {
    file: String,
    problem: String,
}

impl VaeConfig {
    /// Reads diffusers' `vae/config.json`; `file` names it in errors. Fields that are absent have diffusers'
    /// defaults.
    ///
    /// # Errors
    /// If it is not the configuration of an `AutoencoderKL`, or of one this program does not implement.
    pub fn parse(json: &str, file: &str) -> Result<Self, ConfigError> {
        let fail = |problem: String| ConfigError {
            file: file.to_owned(),
            problem,
        };
        // Through a map, as serde would also take a list for a structure.
        let map: serde_json::Map<_, _> =
            serde_json::from_str(json).map_err(|e| fail(e.to_string()))?;
        let raw: RawConfig = serde_json::from_value(map.into()).map_err(|e| fail(e.to_string()))?;
        raw.check().map_err(fail)?;
        Ok(Self {
            architecture: VaeArchitecture {
                encoder: VaeEncoderArchitecture {
                    in_channels: raw.in_channels,
                    block_out_channels: raw.block_out_channels,
                    layers_per_block: raw.layers_per_block,
                    latent_channels: raw.latent_channels,
                    norm_num_groups: raw.norm_num_groups,
                    use_quant_conv: raw.use_quant_conv,
                    mid_block_add_attention: raw.mid_block_add_attention,
                },
                out_channels: raw.out_channels,
                use_post_quant_conv: raw.use_post_quant_conv,
            },
            scaling_factor: raw.scaling_factor,
            shift_factor: raw.shift_factor.unwrap_or(0.0),
        })
    }
}

/// The fields of `AutoencoderKL.__init__` that matter, with its defaults.
#[derive(Deserialize)]
#[serde(default)]
struct RawConfig {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    in_channels: usize,
    out_channels: usize,
    down_block_types: Option<Vec<String>>,
    up_block_types: Option<Vec<String>>,
    block_out_channels: Vec<usize>,
    layers_per_block: usize,
    act_fn: String,
    latent_channels: usize,
    norm_num_groups: usize,
    scaling_factor: f64,
    shift_factor: Option<f64>,
    latents_mean: Option<serde_json::Value>,
    latents_std: Option<serde_json::Value>,
    use_quant_conv: bool,
    use_post_quant_conv: bool,
    mid_block_add_attention: bool,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            class_name: None,
            in_channels: 3,
            out_channels: 3,
            down_block_types: None,
            up_block_types: None,
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: "silu".to_owned(),
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

impl RawConfig {
    fn check(&self) -> Result<(), String> {
        if let Some(class) = &self.class_name
            && class != "AutoencoderKL"
        {
            return Err(format!(
                "`_class_name` is `{class}`, expected `AutoencoderKL`"
            ));
        }
        if self.act_fn != "silu" && self.act_fn != "swish" {
            return Err(format!("`act_fn` is `{}`, expected `silu`", self.act_fn));
        }
        if self.latents_mean.is_some() || self.latents_std.is_some() {
            return Err("`latents_mean` and `latents_std` are not supported".to_owned());
        }
        let levels = self.block_out_channels.len();
        if !(1..=8).contains(&levels) {
            return Err(format!(
                "`block_out_channels` has {levels} levels, expected 1 to 8"
            ));
        }
        for (name, types, expected) in [
            (
                "down_block_types",
                &self.down_block_types,
                "DownEncoderBlock2D",
            ),
            ("up_block_types", &self.up_block_types, "UpDecoderBlock2D"),
        ] {
            let Some(types) = types else { continue };
            if types.len() != levels || types.iter().any(|kind| kind != expected) {
                return Err(format!(
                    "`{name}` is {types:?}, expected {levels} times `{expected}`"
                ));
            }
        }
        self.check_counts()
    }

    fn check_counts(&self) -> Result<(), String> {
        let sizes = [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("layers_per_block", self.layers_per_block),
            ("latent_channels", self.latent_channels),
            ("norm_num_groups", self.norm_num_groups),
        ];
        let levels = self
            .block_out_channels
            .iter()
            .map(|&n| ("block_out_channels", n));
        for (name, count) in sizes.into_iter().chain(levels) {
            if !(1..=65_536).contains(&count) {
                return Err(format!("`{name}` is {count}, expected 1 to 65536"));
            }
        }
        for channels in &self.block_out_channels {
            if channels % self.norm_num_groups != 0 {
                return Err(format!(
                    "`block_out_channels` has {channels}, which `norm_num_groups` {} does not divide",
                    self.norm_num_groups
                ));
            }
        }
        let shift = self.shift_factor.unwrap_or(0.0);
        if !(self.scaling_factor.is_finite() && self.scaling_factor != 0.0 && shift.is_finite()) {
            return Err(
                "`scaling_factor` must be finite and not 0, `shift_factor` finite".to_owned(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "latents_tests.rs"]
mod tests;

//! The numbers of a Z-Image transformer, from diffusers' config.json or from the shapes in a single file.

use std::path::Path;

use serde::Deserialize;

use crate::models::Error;
use crate::models::flux1::architecture::{MAX_DEPTH, MAX_DIMENSION, in_bounds, matrix};
use crate::models::layout::{Component, read_config};
use crate::nn::weights::Weights;

/// Side of a patch, in latent pixels: a token is a patch's channels.
pub(super) const PATCH: usize = 2;

/// Tokens of captions and of pictures are filled up to a multiple of this, with a learned token that is seen
/// (`SEQ_MULTI_OF`).
pub(super) const MULTIPLE: usize = 32;

/// The most channels of the vector that modulates (`ADALN_EMBED_DIM`).
const MAX_VECTOR: usize = 256;

/// What is needed to build the network.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Architecture {
    /// Channels of the latents.
    pub(super) channels: usize,
    /// Channels of the residual stream.
    pub(super) width: usize,
    /// Blocks over picture and caption together.
    pub(super) layers: usize,
    /// Blocks over each of the two alone, before.
    pub(super) refiners: usize,
    pub(super) heads: usize,
    /// Width of the context.
    pub(super) context_width: usize,
    /// Channels of a head that turn with a token's place in the caption, row and column.
    pub(super) axes: [usize; 3],
    /// The base of the rotary frequencies.
    pub(super) theta: f64,
    /// Of the norms of rows; those of heads have their own.
    pub(super) eps: f64,
    /// What the time of 0 to 1 is embedded in.
    pub(super) time_unit: f64,
}

/// `transformer/config.json`, with the defaults of diffusers' ZImageTransformer2DModel.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    all_patch_size: Vec<usize>,
    all_f_patch_size: Vec<usize>,
    in_channels: usize,
    dim: usize,
    n_layers: usize,
    n_refiner_layers: usize,
    n_heads: usize,
    n_kv_heads: usize,
    norm_eps: f64,
    qk_norm: bool,
    cap_feat_dim: usize,
    siglip_feat_dim: Option<usize>,
    rope_theta: f64,
    t_scale: f64,
    axes_dims: [usize; 3],
    // How far diffusers makes its tables of positions; here they are made as far as they are needed.
    #[serde(rename = "axes_lens")]
    _axes_lens: [usize; 3],
}

impl Default for Config {
    fn default() -> Self {
        Self {
            all_patch_size: vec![PATCH],
            all_f_patch_size: vec![1],
            in_channels: 16,
            dim: 3840,
            n_layers: 30,
            n_refiner_layers: 2,
            n_heads: 30,
            n_kv_heads: 30,
            norm_eps: 1e-5,
            qk_norm: true,
            cap_feat_dim: 2560,
            siglip_feat_dim: None,
            rope_theta: 256.0,
            t_scale: 1000.0,
            axes_dims: [32, 48, 48],
            _axes_lens: [1024, 512, 512],
        }
    }
}

impl Config {
    /// What the network has one of, here as in every released model.
    fn check_fixed(&self) -> Result<(), String> {
        if self.siglip_feat_dim.is_some() {
            return Err(
                "`siglip_feat_dim`: expected none, found a number (Z-Image Omni, which is given pictures as well; plumb does not train it)"
                    .to_owned(),
            );
        }
        for (field, found, expected) in [
            ("all_patch_size", &self.all_patch_size, PATCH),
            ("all_f_patch_size", &self.all_f_patch_size, 1),
        ] {
            if *found != [expected] {
                return Err(format!("`{field}`: expected [{expected}], found {found:?}"));
            }
        }
        if self.n_kv_heads != self.n_heads {
            return Err(format!(
                "`n_kv_heads`: expected as many as n_heads, {}, found {}",
                self.n_heads, self.n_kv_heads
            ));
        }
        if !self.qk_norm {
            return Err("`qk_norm`: expected true, found false".to_owned());
        }
        Ok(())
    }
}

impl Architecture {
    /// Of the denoiser in `component`; `weights` are its weights with canonical names.
    pub(super) fn of(component: &Component, weights: &Weights) -> Result<Self, Error> {
        component.told("zimage", weights, Self::from_config, Self::from_shapes)
    }

    pub(super) fn from_config(path: &Path) -> Result<Self, Error> {
        let config: Config = read_config(path, "ZImageTransformer2DModel")?;
        let own = Self {
            channels: config.in_channels,
            width: config.dim,
            layers: config.n_layers,
            refiners: config.n_refiner_layers,
            heads: config.n_heads,
            context_width: config.cap_feat_dim,
            axes: config.axes_dims,
            theta: config.rope_theta,
            eps: config.norm_eps,
            time_unit: config.t_scale,
        };
        let checked = config.check_fixed().and_then(|()| own.check());
        checked.map_err(|what| Error::Config {
            path: path.to_owned(),
            what,
        })?;
        Ok(own)
    }

    /// What shapes do not tell is as in all released models: the rotary axes have a quarter of a head's channels, and three eighths
    /// each.
    fn from_shapes(weights: &Weights) -> Result<Self, String> {
        for (name, what) in [
            (
                "siglip_embedder.1.weight",
                "Z-Image Omni, which is given pictures as well",
            ),
            (
                "siglip_pad_token",
                "Z-Image Omni, which is given pictures as well",
            ),
        ] {
            if weights.contains(name) {
                return Err(format!(
                    "it has `{name}`, so it is {what}; plumb does not train it"
                ));
            }
        }
        // Lumina 2 has its other names.
        matrix(weights, "cap_pad_token")?;
        let [width, token_channels] = matrix(weights, "all_x_embedder.2-1.weight")?;
        let depth = |kind: &str| {
            let there = |i: &usize| weights.contains(&format!("{kind}.{i}.attention_norm1.weight"));
            (0..).take_while(there).count()
        };
        let norm = "layers.0.attention.norm_q.weight";
        let head_channels: usize = weights
            .shape(norm)
            .ok_or_else(|| format!("it has no tensor for `{norm}`"))?
            .iter()
            .product();
        if head_channels == 0 || !width.is_multiple_of(head_channels) {
            return Err(format!(
                "{width} channels cannot be split into heads of {head_channels}"
            ));
        }
        let other = head_channels / 16 * 6;
        let defaults = Config::default();
        let own = Self {
            channels: token_channels / (PATCH * PATCH),
            width,
            layers: depth("layers"),
            refiners: depth("noise_refiner"),
            heads: width / head_channels,
            context_width: matrix(weights, "cap_embedder.1.weight")?[1],
            axes: [head_channels - 2 * other, other, other],
            theta: defaults.rope_theta,
            eps: defaults.norm_eps,
            time_unit: defaults.t_scale,
        };
        own.check()?;
        Ok(own)
    }

    fn check(&self) -> Result<(), String> {
        for (field, value, least, most) in [
            ("in_channels", self.channels, 1, MAX_DIMENSION / 4),
            ("dim", self.width, 1, MAX_DIMENSION),
            ("n_layers", self.layers, 1, MAX_DEPTH),
            ("n_refiner_layers", self.refiners, 0, MAX_DEPTH),
            ("n_heads", self.heads, 1, MAX_DIMENSION),
            ("cap_feat_dim", self.context_width, 1, MAX_DIMENSION),
        ] {
            in_bounds(field, value, least, most)?;
        }
        for (field, value) in [
            ("rope_theta", self.theta),
            ("norm_eps", self.eps),
            ("t_scale", self.time_unit),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!(
                    "`{field}`: expected a number above 0, found {value}"
                ));
            }
        }
        if !self.width.is_multiple_of(self.heads) {
            return Err(format!(
                "`dim`: expected a multiple of n_heads = {}, found {}",
                self.heads, self.width
            ));
        }
        // Channels turn in pairs.
        let fits = self.axes.iter().try_fold(0, |sum: usize, axis| {
            axis.is_multiple_of(2).then(|| sum.checked_add(*axis))?
        });
        if fits != Some(self.head_channels()) {
            return Err(format!(
                "`axes_dims`: expected three even numbers that add up to dim / n_heads = {}, found {:?}",
                self.head_channels(),
                self.axes
            ));
        }
        Ok(())
    }

    /// Channels of a head.
    pub(super) fn head_channels(&self) -> usize {
        self.width / self.heads
    }

    /// Channels of a patch.
    pub(super) fn token_channels(&self) -> usize {
        self.channels * PATCH * PATCH
    }

    /// Channels of the vector that modulates.
    pub(super) fn vector(&self) -> usize {
        self.width.min(MAX_VECTOR)
    }

    /// Channels inside the feed-forwards.
    pub(super) fn inner(&self) -> usize {
        // In floating point, as diffusers: `int(dim / 3 * 8)`.
        (self.width as f64 / 3.0 * 8.0) as usize
    }

    /// Tokens with those that fill them up.
    pub(super) fn filled(tokens: usize) -> usize {
        tokens.next_multiple_of(MULTIPLE)
    }
}

#[cfg(test)]
mod tests;

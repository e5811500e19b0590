//! The numbers of a Wan transformer, from diffusers' config.json or from the shapes in a single file.

use std::path::Path;

use serde::Deserialize;

use crate::models::Error;
use crate::models::flux1::architecture::{MAX_DEPTH, MAX_DIMENSION, in_bounds, matrix};
use crate::models::layout::{Component, read_config};
use crate::models::transformer::EPS;
use crate::nn::weights::Weights;

/// Sides of a patch, in latents: one frame, 2 rows, 2 columns.
pub(super) const PATCH: usize = 2;

/// Channels of a head in every released model: no tensor's shape tells them.
const HEAD_CHANNELS: usize = 128;

/// What is needed to build the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Architecture {
    /// Channels of the latents.
    pub(super) channels: usize,
    pub(super) num_blocks: usize,
    pub(super) heads: usize,
    pub(super) head_channels: usize,
    /// Width inside the feed-forwards.
    pub(super) feed_forward: usize,
    /// Width of the context.
    pub(super) context_width: usize,
    /// Channels of the timestep's sinusoid.
    pub(super) time_channels: usize,
    /// Whether what asks the context is normed before.
    pub(super) cross_attn_norm: bool,
    /// Frames, rows and columns of patches that there are positions for.
    pub(super) max_positions: usize,
}

/// `transformer/config.json`, with the defaults of diffusers' WanTransformer3DModel.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    patch_size: [usize; 3],
    num_attention_heads: usize,
    attention_head_dim: usize,
    in_channels: usize,
    out_channels: Option<usize>,
    text_dim: usize,
    freq_dim: usize,
    ffn_dim: usize,
    num_layers: usize,
    cross_attn_norm: bool,
    qk_norm: Option<String>,
    eps: f64,
    image_dim: Option<usize>,
    added_kv_proj_dim: Option<usize>,
    rope_max_seq_len: usize,
    pos_embed_seq_len: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            patch_size: [1, PATCH, PATCH],
            num_attention_heads: 40,
            attention_head_dim: 128,
            in_channels: 16,
            out_channels: Some(16),
            text_dim: 4096,
            freq_dim: 256,
            ffn_dim: 13824,
            num_layers: 40,
            cross_attn_norm: true,
            qk_norm: Some(QK_NORM.to_owned()),
            eps: EPS,
            image_dim: None,
            added_kv_proj_dim: None,
            rope_max_seq_len: 1024,
            pos_embed_seq_len: None,
        }
    }
}

const QK_NORM: &str = "rms_norm_across_heads";

impl Config {
    /// Refuses what is another network.
    fn check(&self) -> Result<(), String> {
        let expected = |field: &str, expected: &str, found: String| {
            Err(format!("`{field}`: expected {expected}, found {found}"))
        };
        if self.patch_size != [1, PATCH, PATCH] {
            return expected("patch_size", "[1, 2, 2]", format!("{:?}", self.patch_size));
        }
        if self.qk_norm.as_deref() != Some(QK_NORM) {
            return expected(
                "qk_norm",
                QK_NORM,
                self.qk_norm.clone().unwrap_or_else(|| "none".to_owned()),
            );
        }
        if self.eps != EPS {
            return expected("eps", "1e-6", self.eps.to_string());
        }
        for (field, value) in [
            ("image_dim", self.image_dim),
            ("added_kv_proj_dim", self.added_kv_proj_dim),
            ("pos_embed_seq_len", self.pos_embed_seq_len),
        ] {
            if let Some(found) = value {
                return expected(
                    field,
                    "none (text to video)",
                    format!("{found} (a model that is given a picture)"),
                );
            }
        }
        Ok(())
    }
}

impl Architecture {
    /// Of the denoiser in `component`; `weights` are its weights with canonical names.
    pub(super) fn of(component: &Component, weights: &Weights) -> Result<Self, Error> {
        component.told("wan", weights, Self::from_config, Self::from_shapes)
    }

    fn from_config(path: &Path) -> Result<Self, Error> {
        let wrong = |what: String| Error::Config {
            path: path.to_owned(),
            what,
        };
        let config: Config = read_config(path, "WanTransformer3DModel")?;
        let own = Self {
            channels: config.in_channels,
            num_blocks: config.num_layers,
            heads: config.num_attention_heads,
            head_channels: config.attention_head_dim,
            feed_forward: config.ffn_dim,
            context_width: config.text_dim,
            time_channels: config.freq_dim,
            cross_attn_norm: config.cross_attn_norm,
            max_positions: config.rope_max_seq_len,
        };
        let out_channels = config.out_channels.unwrap_or(config.in_channels);
        let checked = config.check().and_then(|()| own.check(out_channels));
        checked.map_err(wrong)?;
        Ok(own)
    }

    fn from_shapes(weights: &Weights) -> Result<Self, String> {
        let shape = |name: &str| {
            let shape = weights.shape(name);
            shape.ok_or_else(|| format!("it has no tensor for `{name}`"))
        };
        let patches = shape("patch_embedding.weight")?;
        let &[width, channels, 1, PATCH, PATCH] = patches.as_slice() else {
            return Err(format!(
                "`patch_embedding.weight`: expected the shape [width, channels, 1, 2, 2], found {patches:?}"
            ));
        };
        if !width.is_multiple_of(HEAD_CHANNELS) {
            return Err(format!(
                "{width} channels cannot be split into heads of {HEAD_CHANNELS}, which all released models have; give the folder with its config.json"
            ));
        }
        let there = |i: &usize| weights.contains(&format!("blocks.{i}.attn1.to_q.weight"));
        let own = Self {
            channels,
            num_blocks: (0..).take_while(there).count(),
            heads: width / HEAD_CHANNELS,
            head_channels: HEAD_CHANNELS,
            feed_forward: matrix(weights, "blocks.0.ffn.net.0.proj.weight")?[0],
            context_width: matrix(weights, "condition_embedder.text_embedder.linear_1.weight")?[1],
            time_channels: matrix(weights, "condition_embedder.time_embedder.linear_1.weight")?[1],
            cross_attn_norm: weights.contains("blocks.0.norm2.weight"),
            max_positions: 1024,
        };
        let outputs = matrix(weights, "proj_out.weight")?[0];
        own.check(outputs / (PATCH * PATCH))?;
        Ok(own)
    }

    fn check(&self, out_channels: usize) -> Result<(), String> {
        for (field, value, least, most) in [
            ("in_channels", self.channels, 1, MAX_DIMENSION),
            ("num_layers", self.num_blocks, 1, MAX_DEPTH),
            ("num_attention_heads", self.heads, 1, MAX_DIMENSION),
            ("attention_head_dim", self.head_channels, 1, MAX_DIMENSION),
            ("ffn_dim", self.feed_forward, 1, MAX_DIMENSION),
            ("text_dim", self.context_width, 1, MAX_DIMENSION),
            ("freq_dim", self.time_channels, 2, MAX_DIMENSION),
            ("rope_max_seq_len", self.max_positions, 1, MAX_DIMENSION),
        ] {
            in_bounds(field, value, least, most)?;
        }
        if self.channels != out_channels {
            return Err(format!(
                "`in_channels`: expected as many as go out, {out_channels}, found {} (a model that is given a picture or a video beside the noise: I2V, Fun, VACE)",
                self.channels
            ));
        }
        if self.channels == 48 {
            return Err("`in_channels`: expected 16, found 48: Wan 2.2 TI2V-5B, which has a timestep for each token and another VAE".to_owned());
        }
        for (field, value) in [
            ("attention_head_dim", self.head_channels),
            ("freq_dim", self.time_channels),
        ] {
            if !value.is_multiple_of(2) {
                return Err(format!("`{field}`: expected an even number, found {value}"));
            }
        }
        Ok(())
    }

    /// Channels of the residual stream.
    pub(super) fn width(&self) -> usize {
        self.heads * self.head_channels
    }

    /// Channels of a head that turn with frame, row and column.
    pub(super) fn axes(&self) -> [usize; 3] {
        let side = 2 * (self.head_channels / 6);
        [self.head_channels - 2 * side, side, side]
    }
}

#[cfg(test)]
mod tests;

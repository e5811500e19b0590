//! The numbers of an MMDiT, from diffusers' config.json or from the shapes in a single file, and the names and shapes
//! of all its tensors.

use std::path::Path;

use serde::Deserialize;

use crate::models::Error;
use crate::models::layout::{Component, read_config};
use crate::nn::weights::Weights;

/// Channels of a head in every released model; a single file does not say it where queries are not normed.
pub(super) const HEAD_CHANNELS: usize = 64;

/// No dimension of a network is larger; keeps hostile configs from overflowing.
const MAX_DIMENSION: usize = 1 << 20;

/// No network has more blocks; keeps the lists of their names small.
const MAX_DEPTH: usize = 1 << 10;

/// What is needed to build the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Architecture {
    /// Side of a patch, in latent pixels.
    pub(super) patch_size: usize,
    pub(super) in_channels: usize,
    pub(super) out_channels: usize,
    pub(super) depth: usize,
    pub(super) heads: usize,
    pub(super) head_channels: usize,
    /// Width of the context.
    pub(super) context_width: usize,
    /// Width of the pooled vector.
    pub(super) pooled_width: usize,
    /// Side of the position table, in patches.
    pub(super) max_patches: usize,
    /// Whether queries and keys are RMS-normed.
    pub(super) qk_norm: bool,
    /// Blocks with a second attention over the picture alone.
    pub(super) dual_attention: Vec<usize>,
}

/// `transformer/config.json`, with the defaults of diffusers' SD3Transformer2DModel.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Only the start of the base's training: does not change the network.
    #[serde(rename = "sample_size")]
    _sample_size: usize,
    patch_size: usize,
    in_channels: usize,
    num_layers: usize,
    attention_head_dim: usize,
    num_attention_heads: usize,
    joint_attention_dim: usize,
    caption_projection_dim: usize,
    pooled_projection_dim: usize,
    out_channels: Option<usize>,
    pos_embed_max_size: usize,
    dual_attention_layers: Vec<usize>,
    qk_norm: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            _sample_size: 128,
            patch_size: 2,
            in_channels: 16,
            num_layers: 18,
            attention_head_dim: 64,
            num_attention_heads: 18,
            joint_attention_dim: 4096,
            caption_projection_dim: 1152,
            pooled_projection_dim: 2048,
            out_channels: Some(16),
            pos_embed_max_size: 96,
            dual_attention_layers: Vec::new(),
            qk_norm: None,
        }
    }
}

impl Architecture {
    /// Of the denoiser in `component`; `weights` are its weights with canonical names.
    /// Heads have `head_channels` channels where neither a config nor a norm tells.
    pub(super) fn of(
        component: &Component,
        weights: &Weights,
        head_channels: usize,
    ) -> Result<Self, Error> {
        match &component.config {
            Some(config) => Self::from_config(config),
            None => {
                Self::from_shapes(weights, head_channels).map_err(|reason| Error::NotThisFamily {
                    path: component.weights.clone(),
                    family: "`sd3`".to_owned(),
                    reason,
                })
            }
        }
    }

    fn from_config(path: &Path) -> Result<Self, Error> {
        let wrong = |what: String| Error::Config {
            path: path.to_owned(),
            what,
        };
        let config: Config = read_config(path, "SD3Transformer2DModel")?;
        let qk_norm = match config.qk_norm.as_deref() {
            None => false,
            Some("rms_norm") => true,
            Some(other) => {
                return Err(wrong(format!(
                    "`qk_norm`: expected null or `rms_norm`, found `{other}`"
                )));
            }
        };
        let own = Self {
            patch_size: config.patch_size,
            in_channels: config.in_channels,
            out_channels: config.out_channels.unwrap_or(config.in_channels),
            depth: config.num_layers,
            heads: config.num_attention_heads,
            head_channels: config.attention_head_dim,
            context_width: config.joint_attention_dim,
            pooled_width: config.pooled_projection_dim,
            max_patches: config.pos_embed_max_size,
            qk_norm,
            dual_attention: config.dual_attention_layers,
        };
        own.check().map_err(wrong)?;
        if config.caption_projection_dim != own.width() {
            return Err(wrong(format!(
                "`caption_projection_dim`: expected num_attention_heads * attention_head_dim = {}, found {}",
                own.width(),
                config.caption_projection_dim
            )));
        }
        Ok(own)
    }

    fn check(&self) -> Result<(), String> {
        for (field, value, most) in [
            ("patch_size", self.patch_size, MAX_DIMENSION),
            ("in_channels", self.in_channels, MAX_DIMENSION),
            ("out_channels", self.out_channels, MAX_DIMENSION),
            ("num_layers", self.depth, MAX_DEPTH),
            ("num_attention_heads", self.heads, MAX_DIMENSION),
            ("attention_head_dim", self.head_channels, MAX_DIMENSION),
            ("joint_attention_dim", self.context_width, MAX_DIMENSION),
            ("pooled_projection_dim", self.pooled_width, MAX_DIMENSION),
            ("pos_embed_max_size", self.max_patches, MAX_DIMENSION),
        ] {
            if !(1..=most).contains(&value) {
                return Err(format!("`{field}`: expected 1 to {most}, found {value}"));
            }
        }
        match self
            .dual_attention
            .iter()
            .find(|&&block| block >= self.depth)
        {
            Some(block) => Err(format!(
                "`dual_attention_layers`: expected numbers below num_layers = {}, found {block}",
                self.depth
            )),
            None => Ok(()),
        }
    }

    /// From the shapes of weights with canonical names.
    fn from_shapes(weights: &Weights, head_channels: usize) -> Result<Self, String> {
        let shape = |name: &str| {
            weights
                .shape(name)
                .ok_or_else(|| format!("it has no tensor for `{name}`"))
        };
        let matrix = |name: &str| match *shape(name)? {
            [rows, columns] => Ok((rows, columns)),
            ref other => Err(format!(
                "`{name}`: expected two dimensions, found {other:?}"
            )),
        };
        let block = |i: usize, part: &str| format!("transformer_blocks.{i}.{part}");

        let depth = (0..)
            .take_while(|&i| weights.contains(&block(i, "attn.to_q.weight")))
            .count();
        let patches = shape("pos_embed.proj.weight")?;
        let &[width, in_channels, patch_size, _] = patches.as_slice() else {
            return Err(format!(
                "`pos_embed.proj.weight`: expected four dimensions, found {patches:?}"
            ));
        };
        let norm = weights.shape(&block(0, "attn.norm_q.weight"));
        let head_channels = norm
            .as_deref()
            .map_or(head_channels, |norm| norm.iter().product());
        if head_channels == 0 || !width.is_multiple_of(head_channels) || patch_size == 0 {
            return Err(format!(
                "{width} channels cannot be split into heads of {head_channels}"
            ));
        }
        let table = shape("pos_embed.pos_embed")?;
        let cells = table.get(1).copied().unwrap_or(0);
        if cells.isqrt().pow(2) != cells {
            return Err(format!(
                "`pos_embed.pos_embed`: expected a square table, found {table:?}"
            ));
        }
        let own = Self {
            patch_size,
            in_channels,
            out_channels: matrix("proj_out.weight")?.0 / (patch_size * patch_size),
            depth,
            heads: width / head_channels,
            head_channels,
            context_width: matrix("context_embedder.weight")?.1,
            pooled_width: matrix("time_text_embed.text_embedder.linear_1.weight")?.1,
            max_patches: cells.isqrt(),
            qk_norm: norm.is_some(),
            dual_attention: (0..depth)
                .filter(|&i| weights.contains(&block(i, "attn2.to_q.weight")))
                .collect(),
        };
        own.check()?;
        Ok(own)
    }

    /// Channels of the residual streams.
    pub(super) fn width(&self) -> usize {
        self.heads * self.head_channels
    }

    /// Whether block `i` is the last: its context is read but not passed on.
    pub(super) fn is_last(&self, i: usize) -> bool {
        i + 1 == self.depth
    }
}

#[cfg(test)]
mod tests;

//! The numbers of a FLUX.1 transformer, from diffusers' config.json or from the shapes in a single file, and the names
//! and shapes of all its tensors.

use std::path::Path;

use serde::Deserialize;

use crate::models::layout::{Component, read_config};
use crate::models::transformer::Loader;
use crate::models::{Error, Source};
use crate::nn::weights::Weights;

/// Side of a patch, in latent pixels: a token is a patch's channels.
pub(in crate::models) const PATCH: usize = 2;

/// No dimension of a network is larger; keeps hostile configs from overflowing.
pub(in crate::models) const MAX_DIMENSION: usize = 1 << 20;

/// No network has more blocks; keeps the lists of their names small.
pub(in crate::models) const MAX_DEPTH: usize = 1 << 10;

/// What is needed to build the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::models) struct Architecture {
    /// Channels of a token: those of the latents times a patch's pixels.
    pub(in crate::models) token_channels: usize,
    /// Blocks in which picture and caption have weights of their own.
    pub(in crate::models) num_double: usize,
    /// Blocks in which they share them.
    pub(in crate::models) num_single: usize,
    pub(in crate::models) heads: usize,
    pub(in crate::models) head_channels: usize,
    /// Width of the context.
    pub(in crate::models) context_width: usize,
    /// Width of the pooled vector; 0 for a network without one.
    pub(in crate::models) pooled_width: usize,
    /// Whether the network has a guidance embedding (dev).
    pub(in crate::models) guidance: bool,
    /// Channels of a head that turn with a token's first id (0 in text to picture), row and column.
    pub(in crate::models) axes: [usize; 3],
}

/// `transformer/config.json`, with the defaults of diffusers' FluxTransformer2DModel.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    patch_size: usize,
    in_channels: usize,
    out_channels: Option<usize>,
    num_layers: usize,
    num_single_layers: usize,
    attention_head_dim: usize,
    num_attention_heads: usize,
    joint_attention_dim: usize,
    pooled_projection_dim: usize,
    guidance_embeds: bool,
    axes_dims_rope: [usize; 3],
}

impl Default for Config {
    fn default() -> Self {
        Self {
            patch_size: 1,
            in_channels: 64,
            out_channels: None,
            num_layers: 19,
            num_single_layers: 38,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: false,
            axes_dims_rope: [16, 56, 56],
        }
    }
}

impl Architecture {
    /// Of the denoiser in `component`; `weights` are its weights with canonical names.
    pub(super) fn of(component: &Component, weights: &Weights) -> Result<Self, Error> {
        component.told("flux1", weights, Self::from_config, Self::from_shapes)
    }

    fn from_config(path: &Path) -> Result<Self, Error> {
        let wrong = |what: String| Error::Config {
            path: path.to_owned(),
            what,
        };
        let config: Config = read_config(path, "FluxTransformer2DModel")?;
        check_patch(config.patch_size).map_err(wrong)?;
        let own = Self {
            token_channels: config.in_channels,
            num_double: config.num_layers,
            num_single: config.num_single_layers,
            heads: config.num_attention_heads,
            head_channels: config.attention_head_dim,
            context_width: config.joint_attention_dim,
            pooled_width: config.pooled_projection_dim,
            guidance: config.guidance_embeds,
            axes: config.axes_dims_rope,
        };
        let out_channels = config.out_channels.unwrap_or(config.in_channels);
        own.check_pooled()
            .and_then(|()| own.check(out_channels))
            .map_err(wrong)?;
        Ok(own)
    }

    fn from_shapes(weights: &Weights) -> Result<Self, String> {
        let mut own = Self::of_blocks(weights)?;
        let [_, pooled_width] = matrix(weights, "time_text_embed.text_embedder.linear_1.weight")?;
        own.pooled_width = pooled_width;
        own.guidance = weights.contains("time_text_embed.guidance_embedder.linear_1.weight");
        own.check_pooled()?;
        Ok(own)
    }

    /// A network with neither pooled vector nor guidance, from the shapes of weights with canonical names. The rotary axes are in no tensor: as in all released models
    /// (16, 56 and 56 of 128), the first has an eighth of a head's channels (a multiple of four, so that all are even),
    /// and the others share the rest.
    pub(in crate::models) fn of_blocks(weights: &Weights) -> Result<Self, String> {
        let depth = |kind: &str| {
            let there = |i: &usize| weights.contains(&format!("{kind}.{i}.attn.to_q.weight"));
            (0..).take_while(there).count()
        };
        let [width, token_channels] = matrix(weights, "x_embedder.weight")?;
        let head_channels: usize = shape(weights, "transformer_blocks.0.attn.norm_q.weight")?
            .iter()
            .product();
        if head_channels == 0 || !width.is_multiple_of(head_channels) {
            return Err(format!(
                "{width} channels cannot be split into heads of {head_channels}"
            ));
        }
        let first = head_channels.div_ceil(32) * 4;
        let other = head_channels.saturating_sub(first) / 2;
        let own = Self {
            token_channels,
            num_double: depth("transformer_blocks"),
            num_single: depth("single_transformer_blocks"),
            heads: width / head_channels,
            head_channels,
            context_width: matrix(weights, "context_embedder.weight")?[1],
            pooled_width: 0,
            guidance: false,
            axes: [first, other, other],
        };
        own.check(matrix(weights, "proj_out.weight")?[0])?;
        Ok(own)
    }

    fn check_pooled(&self) -> Result<(), String> {
        in_bounds("pooled_projection_dim", self.pooled_width, 1, MAX_DIMENSION)
    }

    /// All but the pooled vector.
    pub(in crate::models) fn check(&self, out_channels: usize) -> Result<(), String> {
        let sizes = TokenSizes {
            channels: self.token_channels,
            num_double: self.num_double,
            num_single: self.num_single,
            heads: self.heads,
            head_channels: self.head_channels,
            context_width: self.context_width,
            axes: &self.axes,
        };
        sizes.check(
            out_channels,
            match self.token_channels.checked_div(out_channels.max(1)) {
                // 64 channels of a noisy picture's patch, 64 of a masked one's, and the mask of its 16 x 16 px.
                Some(6) => " (FLUX.1 Fill, which is given a masked picture and its mask beside the noisy one; plumb does not train it)",
                _ => " (a Canny or Depth model, which is given another picture in the same tokens; plumb does not train it)",
            },
        )
    }

    /// Makes modules of this network's tensors.
    pub(super) fn loader<'a>(&self, source: &'a dyn Source) -> Loader<'a> {
        Loader {
            source,
            width: self.width(),
            head_channels: self.head_channels,
            bias: true,
        }
    }

    /// Channels of the residual streams.
    pub(in crate::models) fn width(&self) -> usize {
        self.heads * self.head_channels
    }

    /// Channels of the latents.
    pub(in crate::models) fn latent_channels(&self) -> usize {
        self.token_channels / (PATCH * PATCH)
    }
}

/// That a configuration has patches made before the network, as all of FLUX.1 and what was made of it do.
pub(in crate::models) fn check_patch(patch_size: usize) -> Result<(), String> {
    match patch_size {
        1 => Ok(()),
        other => Err(format!(
            "`patch_size`: expected 1 (patches are made before this network), found {other}"
        )),
    }
}

/// What a network of double and single blocks is made of, in FLUX.1 and in FLUX.2.
pub(in crate::models) struct TokenSizes<'a> {
    /// Channels of a token: those of the latents times a patch's pixels.
    pub(in crate::models) channels: usize,
    pub(in crate::models) num_double: usize,
    pub(in crate::models) num_single: usize,
    pub(in crate::models) heads: usize,
    pub(in crate::models) head_channels: usize,
    pub(in crate::models) context_width: usize,
    /// Channels of a head that turn with each of a token's ids.
    pub(in crate::models) axes: &'a [usize],
}

impl TokenSizes<'_> {
    /// Whether they are within bounds and fit together; `often` says which models take in more than goes out.
    pub(in crate::models) fn check(&self, out_channels: usize, often: &str) -> Result<(), String> {
        for (field, value, least, most) in [
            ("in_channels", self.channels, 1, MAX_DIMENSION),
            ("num_layers", self.num_double, 1, MAX_DEPTH),
            ("num_single_layers", self.num_single, 0, MAX_DEPTH),
            ("num_attention_heads", self.heads, 1, MAX_DIMENSION),
            ("attention_head_dim", self.head_channels, 1, MAX_DIMENSION),
            ("joint_attention_dim", self.context_width, 1, MAX_DIMENSION),
        ] {
            in_bounds(field, value, least, most)?;
        }
        if self.channels != out_channels {
            return Err(format!(
                "`in_channels`: expected as many as go out, {out_channels}, found {}{often}",
                self.channels
            ));
        }
        if !self.channels.is_multiple_of(PATCH * PATCH) {
            return Err(format!(
                "`in_channels`: expected a multiple of {}, found {}",
                PATCH * PATCH,
                self.channels
            ));
        }
        // Channels turn in pairs.
        let fits = self.axes.iter().try_fold(0, |sum: usize, axis| {
            axis.is_multiple_of(2).then(|| sum.checked_add(*axis))?
        });
        if fits != Some(self.head_channels) {
            return Err(format!(
                "`axes_dims_rope`: expected {} even numbers that add up to attention_head_dim = {}, found {:?}",
                self.axes.len(),
                self.head_channels,
                self.axes
            ));
        }
        Ok(())
    }
}

/// The shape of a tensor, which must be there.
pub(in crate::models) fn shape(weights: &Weights, name: &str) -> Result<Vec<usize>, String> {
    weights
        .shape(name)
        .ok_or_else(|| format!("it has no tensor for `{name}`"))
}

/// Rows and columns of a matrix.
pub(in crate::models) fn matrix(weights: &Weights, name: &str) -> Result<[usize; 2], String> {
    let wrong = |found| format!("`{name}`: expected two dimensions, found {found:?}");
    shape(weights, name)?.try_into().map_err(wrong)
}

/// A config's number within its bounds.
pub(in crate::models) fn in_bounds(
    field: &str,
    value: usize,
    least: usize,
    most: usize,
) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(format!(
        "`{field}`: expected {least} to {most}, found {value}"
    ))
}

#[cfg(test)]
mod tests;

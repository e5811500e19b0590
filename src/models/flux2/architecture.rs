//! The numbers of a FLUX.2 transformer, from diffusers' config.json or from the shapes in a single file.

use std::path::Path;

use serde::Deserialize;

use crate::models::flux1::architecture::{
    MAX_DIMENSION, PATCH, TokenSizes, in_bounds, matrix, shape,
};
use crate::models::layout::{Component, read_config};
use crate::models::transformer::{EPS, Loader, TIME_CHANNELS};
use crate::models::{Error, Source};
use crate::nn::weights::Weights;

/// Ids of a token: which picture it is of, row, column, place in the caption.
pub(super) const AXES: usize = 4;

/// The base of the rotary frequencies of all released models, which is in no tensor.
const THETA: f64 = 2000.0;

/// What is said of a network with a guidance embedding.
const GUIDED: &str = "a model with a guidance embedding, as FLUX.2-dev is: its text encoder, Mistral, is not among those that this program knows; use one of FLUX.2 klein";

/// What is needed to build the network.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Architecture {
    /// Channels of a token: those of the latents times a patch's pixels.
    pub(super) token_channels: usize,
    /// Blocks in which picture and caption have weights of their own.
    pub(super) num_double: usize,
    /// Blocks in which they share them.
    pub(super) num_single: usize,
    pub(super) heads: usize,
    pub(super) head_channels: usize,
    /// Width of the context.
    pub(super) context_width: usize,
    /// Width of the feed-forwards inside.
    pub(super) inner: usize,
    /// Channels of a head that turn with each of a token's ids.
    pub(super) axes: [usize; AXES],
    /// The base of the rotary frequencies.
    pub(super) theta: f64,
}

/// `transformer/config.json`, with the defaults of diffusers' Flux2Transformer2DModel.
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
    timestep_guidance_channels: usize,
    mlp_ratio: f64,
    axes_dims_rope: [usize; AXES],
    rope_theta: f64,
    eps: f64,
    guidance_embeds: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            patch_size: 1,
            in_channels: 128,
            out_channels: None,
            num_layers: 8,
            num_single_layers: 48,
            attention_head_dim: 128,
            num_attention_heads: 48,
            joint_attention_dim: 15360,
            timestep_guidance_channels: TIME_CHANNELS,
            mlp_ratio: 3.0,
            axes_dims_rope: [32; AXES],
            rope_theta: THETA,
            eps: EPS,
            guidance_embeds: true,
        }
    }
}

impl Config {
    /// Fields with one value here.
    fn check(&self) -> Result<(), String> {
        if self.guidance_embeds {
            return Err(format!(
                "`guidance_embeds`: expected false, found true ({GUIDED})"
            ));
        }
        let fixed = [
            ("patch_size", self.patch_size as f64, 1.0),
            (
                "timestep_guidance_channels",
                self.timestep_guidance_channels as f64,
                TIME_CHANNELS as f64,
            ),
            ("eps", self.eps, EPS),
        ];
        for (field, found, expected) in fixed {
            if (found - expected).abs() > expected * 1e-9 {
                return Err(format!("`{field}`: expected {expected}, found {found}"));
            }
        }
        if !(1.0..=64.0).contains(&self.mlp_ratio) {
            return Err(format!(
                "`mlp_ratio`: expected 1 to 64, found {}",
                self.mlp_ratio
            ));
        }
        if !(self.rope_theta > 1.0 && self.rope_theta <= 1e9) {
            return Err(format!(
                "`rope_theta`: expected a number above 1, found {}",
                self.rope_theta
            ));
        }
        Ok(())
    }
}

impl Architecture {
    /// Of the denoiser in `component`; `weights` are its weights with canonical names.
    pub(super) fn of(component: &Component, weights: &Weights) -> Result<Self, Error> {
        component.told("flux2", weights, Self::from_config, Self::from_shapes)
    }

    fn from_config(path: &Path) -> Result<Self, Error> {
        let wrong = |what: String| Error::Config {
            path: path.to_owned(),
            what,
        };
        let config: Config = read_config(path, "Flux2Transformer2DModel")?;
        config.check().map_err(wrong)?;
        let own = Self {
            token_channels: config.in_channels,
            num_double: config.num_layers,
            num_single: config.num_single_layers,
            heads: config.num_attention_heads,
            head_channels: config.attention_head_dim,
            context_width: config.joint_attention_dim,
            inner: 0,
            axes: config.axes_dims_rope,
            theta: config.rope_theta,
        };
        own.check(config.out_channels.unwrap_or(config.in_channels))
            .map_err(wrong)?;
        // As diffusers rounds it: down. In bounds, as the width is.
        let inner = (own.width() as f64 * config.mlp_ratio) as usize;
        Ok(Self { inner, ..own })
    }

    /// The rotary axes are in no tensor: as in all released models, each has a quarter of a head's channels.
    fn from_shapes(weights: &Weights) -> Result<Self, String> {
        if weights.contains("time_guidance_embed.guidance_embedder.linear_1.weight") {
            return Err(GUIDED.to_owned());
        }
        let depth = |part: &str| {
            let there = |i: &usize| weights.contains(&part.replace("{}", &i.to_string()));
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
        let own = Self {
            token_channels,
            num_double: depth("transformer_blocks.{}.attn.to_q.weight"),
            num_single: depth("single_transformer_blocks.{}.attn.to_out.weight"),
            heads: width / head_channels,
            head_channels,
            context_width: matrix(weights, "context_embedder.weight")?[1],
            inner: matrix(weights, "transformer_blocks.0.ff.linear_out.weight")?[1],
            axes: [head_channels / AXES; AXES],
            theta: THETA,
        };
        own.check(matrix(weights, "proj_out.weight")?[0])?;
        in_bounds("mlp_ratio", own.inner, 1, 64 * MAX_DIMENSION)?;
        Ok(own)
    }

    fn check(&self, out_channels: usize) -> Result<(), String> {
        let sizes = TokenSizes {
            channels: self.token_channels,
            num_double: self.num_double,
            num_single: self.num_single,
            heads: self.heads,
            head_channels: self.head_channels,
            context_width: self.context_width,
            axes: &self.axes,
        };
        sizes.check(out_channels, "")
    }

    /// Makes modules of this network's tensors: none has a bias.
    pub(super) fn loader<'a>(&self, source: &'a dyn Source) -> Loader<'a> {
        Loader {
            source,
            width: self.width(),
            head_channels: self.head_channels,
            bias: false,
        }
    }

    /// Channels of the residual streams.
    pub(super) fn width(&self) -> usize {
        self.heads * self.head_channels
    }

    /// Channels of the latents.
    pub(super) fn latent_channels(&self) -> usize {
        self.token_channels / (PATCH * PATCH)
    }
}

#[cfg(test)]
mod tests;

//! The numbers of a Chroma transformer, from diffusers' config.json or from the shapes in a single file.

use std::path::Path;

use serde::Deserialize;

use crate::models::Error;
use crate::models::activations::{Activations, StepShape};
use crate::models::flux1::architecture::{
    Architecture as Trunk, MAX_DEPTH, MAX_DIMENSION, check_patch, in_bounds, matrix,
};
use crate::models::flux1::block::Modulator;
use crate::models::flux1::flux::Modulated;
use crate::models::layout::{Component, read_config};
use crate::nn::weights::Weights;

/// Vectors of a single block: shift, scale and gate.
const OF_SINGLE: usize = 3;

/// Vectors of a half of a double block: these of its attention, then of its feed-forward.
const OF_HALF: usize = 6;

/// Vectors of the last norm: shift and scale.
const OF_LAST: usize = 2;

/// What is needed to build the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Architecture {
    /// FLUX.1's part of it, without pooled vector and guidance.
    pub(super) trunk: Trunk,
    /// Channels of the approximator's input.
    pub(super) channels: usize,
    /// Its width inside.
    pub(super) inner: usize,
    /// Its layers.
    pub(super) layers: usize,
}

/// `transformer/config.json`, with the defaults of diffusers' ChromaTransformer2DModel.
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
    axes_dims_rope: [usize; 3],
    approximator_num_channels: usize,
    approximator_hidden_dim: usize,
    approximator_layers: usize,
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
            axes_dims_rope: [16, 56, 56],
            approximator_num_channels: 64,
            approximator_hidden_dim: 5120,
            approximator_layers: 5,
        }
    }
}

impl Architecture {
    /// Of the denoiser in `component`; `weights` are its weights with canonical names.
    pub(super) fn of(component: &Component, weights: &Weights) -> Result<Self, Error> {
        component.told("chroma", weights, Self::from_config, Self::from_shapes)
    }

    fn from_config(path: &Path) -> Result<Self, Error> {
        let wrong = |what: String| Error::Config {
            path: path.to_owned(),
            what,
        };
        let config: Config = read_config(path, "ChromaTransformer2DModel")?;
        check_patch(config.patch_size).map_err(wrong)?;
        let own = Self {
            trunk: Trunk {
                token_channels: config.in_channels,
                num_double: config.num_layers,
                num_single: config.num_single_layers,
                heads: config.num_attention_heads,
                head_channels: config.attention_head_dim,
                context_width: config.joint_attention_dim,
                pooled_width: 0,
                guidance: false,
                axes: config.axes_dims_rope,
            },
            channels: config.approximator_num_channels,
            inner: config.approximator_hidden_dim,
            layers: config.approximator_layers,
        };
        let out_channels = config.out_channels.unwrap_or(config.in_channels);
        let checked = own.trunk.check(out_channels).and_then(|()| own.check());
        checked.map_err(wrong)?;
        Ok(own)
    }

    fn from_shapes(weights: &Weights) -> Result<Self, String> {
        let [inner, channels] = matrix(weights, "distilled_guidance_layer.in_proj.weight")?;
        let there = |i: &usize| {
            weights.contains(&format!(
                "distilled_guidance_layer.layers.{i}.linear_1.weight"
            ))
        };
        let own = Self {
            trunk: Trunk::of_blocks(weights)?,
            channels,
            inner,
            layers: (0..).take_while(there).count(),
        };
        own.check()?;
        Ok(own)
    }

    fn check(&self) -> Result<(), String> {
        in_bounds("approximator_num_channels", self.channels, 8, MAX_DIMENSION)?;
        in_bounds("approximator_hidden_dim", self.inner, 1, MAX_DIMENSION)?;
        in_bounds("approximator_layers", self.layers, 1, MAX_DEPTH)?;
        // A quarter is cosines and sines of the timestep.
        if !self.channels.is_multiple_of(8) {
            return Err(format!(
                "`approximator_num_channels`: expected a multiple of 8, found {}",
                self.channels
            ));
        }
        Ok(())
    }

    /// How many vectors the approximator makes.
    pub(super) fn vectors(&self) -> usize {
        self.of_halves(2) + OF_LAST
    }

    /// Where the vectors of `halves` of all double blocks end: those of the single blocks come first.
    fn of_halves(&self, halves: usize) -> usize {
        OF_SINGLE * self.trunk.num_single + halves * OF_HALF * self.trunk.num_double
    }

    /// Which vectors a module takes: single blocks', pictures', contexts', the last norm's.
    pub(super) fn modulator(&self, of: Modulated) -> Modulator {
        let (first, count) = match of {
            Modulated::Single(i) => (OF_SINGLE * i, OF_SINGLE),
            Modulated::Picture(i) => (self.of_halves(0) + OF_HALF * i, OF_HALF),
            Modulated::Context(i) => (self.of_halves(1) + OF_HALF * i, OF_HALF),
            // (scale, shift), as FLUX.1's last norm takes them.
            Modulated::Last => {
                let shift = self.of_halves(2);
                return Modulator::Vectors(vec![shift + 1, shift]);
            }
        };
        Modulator::Vectors((first..first + count).collect())
    }

    /// What a training step keeps: as FLUX.1, and the vectors.
    pub(super) fn of_step(&self, step: &StepShape) -> Activations {
        let mut activations = self.trunk.of_step(step);
        activations.outside += (step.samples * self.vectors() * self.trunk.width()) as u64;
        let passing = (3 * step.samples * self.vectors() * self.inner) as u64;
        activations.passing = activations.passing.max(passing);
        activations
    }
}

#[cfg(test)]
mod tests;

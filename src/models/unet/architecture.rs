//! The numbers of a UNet, from diffusers' config.json or from the shapes in a single file.

mod config;

use std::path::Path;

use crate::models::Error;
use crate::models::layout::{Component, read_json};
use crate::nn::weights::Weights;
use config::Fields;

/// No dimension of a network is larger; keeps hostile configs from overflowing.
const MAX_DIMENSION: usize = 1 << 16;

/// No network has more levels, layers or transformer blocks at one place; keeps the lists of their names small.
const MAX_COUNT: usize = 64;

/// What is needed to build the network.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Architecture {
    pub(super) in_channels: usize,
    pub(super) out_channels: usize,
    /// Levels from the picture inwards; each but the last halves the picture's sides.
    pub(super) levels: Vec<Level>,
    /// Residual blocks of a level on the way down; one more on the way up.
    pub(super) layers: usize,
    /// Transformer blocks in the middle.
    pub(super) middle_depth: usize,
    /// Channels of the context.
    pub(super) context_width: usize,
    /// Whether transformers are entered and left by linears; else by convolutions of one pixel.
    pub(super) linear_projection: bool,
    /// What is added to the timestep's embedding, if anything.
    pub(super) addition: Option<Addition>,
    /// Groups of every group norm.
    pub(super) groups: usize,
    /// Epsilon of the group norms outside of transformers.
    pub(super) eps: f64,
}

/// One level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) width: usize,
    /// Transformer blocks beside each residual block; 0: none.
    pub(super) depth: usize,
    /// Heads of an attention (also of the middle's, at the last level).
    pub(super) heads: usize,
}

/// SDXL's embedding of the pooled vector and of six sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addition {
    /// Channels of the pooled vector.
    pub(super) pooled_width: usize,
    /// Channels of each size's sinusoid.
    pub(super) size_channels: usize,
}

/// Numbers of [`ConditioningTensors::time_ids`].
///
/// [`ConditioningTensors::time_ids`]: crate::models::ConditioningTensors::time_ids
pub(super) const SIZES: usize = 6;

/// The width of Stable Diffusion 2's context, that of OpenCLIP's ViT-H; Stable Diffusion 1 has 768.
const SD2_CONTEXT: usize = 1024;

/// How the channels of a level are split into heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heads {
    /// So many heads, whatever the channels (SD1).
    Count(usize),
    /// Heads of so many channels (SD2, SDXL).
    Channels(usize),
}

/// What a family expects, and what no shape tells: a single file has the released models' values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    pub(super) family: &'static str,
    /// Whether it has an embedding of the pooled vector and sizes.
    pub(super) size_embedding: bool,
    pub(super) heads: Heads,
    pub(super) groups: usize,
    pub(super) size_channels: usize,
}

impl Architecture {
    /// Of the denoiser in `component`; `weights` are its weights with canonical names.
    pub(super) fn of(
        component: &Component,
        weights: &Weights,
        variant: Variant,
    ) -> Result<Self, Error> {
        let not_this = |reason| Error::NotThisFamily {
            path: component.weights.clone(),
            family: format!("`{}`", variant.family),
            reason,
        };
        let own = match &component.config {
            Some(config) => Self::from_config(config)?,
            None => Self::from_shapes(weights, variant).map_err(not_this)?,
        };
        match (own.addition.is_some(), variant.size_embedding) {
            (false, true) => Err(not_this(
                "its UNet has no embedding of pooled vectors and sizes, so it is not an SDXL"
                    .into(),
            )),
            (true, false) => Err(not_this(
                "its UNet has an embedding of pooled vectors and sizes, as SDXL has".into(),
            )),
            // Its text encoder is another one with other pads, and a single file's heads are split otherwise.
            (false, false) if own.context_width == SD2_CONTEXT => Err(not_this(
                "its UNet takes a context of width 1024, so it is a Stable Diffusion 2, which there is no recipe for".into(),
            )),
            _ => Ok(own),
        }
    }

    /// Of diffusers' UNet2DConditionModel.
    pub(super) fn from_config(path: &Path) -> Result<Self, Error> {
        let fields = Fields(read_json(path)?);
        let found = fields.architecture().and_then(|own| {
            own.check()?;
            Ok(own)
        });
        found.map_err(|what| Error::Config {
            path: path.to_owned(),
            what,
        })
    }

    fn check(&self) -> Result<(), String> {
        let dimensions = [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("cross_attention_dim", self.context_width),
            ("norm_num_groups", self.groups),
        ];
        let counts = [
            ("layers_per_block", self.layers),
            ("block_out_channels", self.levels.len()),
            ("transformer_layers_per_block", self.middle_depth),
        ];
        let named = |list: &[(&'static str, usize)], most| {
            let one = |&(field, value)| (field, value, most);
            list.iter().map(one).collect::<Vec<_>>()
        };
        for (field, value, most) in
            [named(&dimensions, MAX_DIMENSION), named(&counts, MAX_COUNT)].concat()
        {
            if !(1..=most).contains(&value) {
                return Err(format!("`{field}`: expected 1 to {most}, found {value}"));
            }
        }
        if self.in_channels != self.out_channels {
            return Err(format!(
                "`in_channels`: expected out_channels = {}, found {}: models for inpainting are not supported",
                self.out_channels, self.in_channels
            ));
        }
        for level in &self.levels {
            let Level {
                width,
                depth,
                heads,
            } = *level;
            // Even, as the first width is that of the timestep's sinusoid: half cosines, half sines.
            if !(1..=MAX_DIMENSION).contains(&width) || width % self.groups != 0 || width % 2 != 0 {
                let groups = self.groups;
                return Err(format!(
                    "`block_out_channels`: expected even multiples of norm_num_groups = {groups}, found {width}"
                ));
            }
            if heads == 0 || !width.is_multiple_of(heads) {
                return Err(format!(
                    "`attention_head_dim`: {width} channels cannot be split into {heads} heads"
                ));
            }
            if depth > MAX_COUNT {
                return Err(format!(
                    "`transformer_layers_per_block`: expected at most {MAX_COUNT}, found {depth}"
                ));
            }
        }
        match self.addition {
            Some(added) if added.size_channels == 0 || added.size_channels % 2 != 0 => {
                Err(format!(
                    "`addition_time_embed_dim`: expected an even number above 0, found {}",
                    added.size_channels
                ))
            }
            _ => Ok(()),
        }
    }

    /// From the shapes of weights with canonical names.
    fn from_shapes(weights: &Weights, variant: Variant) -> Result<Self, String> {
        let shape = |name: &str| {
            weights
                .shape(name)
                .ok_or_else(|| format!("it has no tensor for `{name}`"))
        };
        let dim = |name: &str, axis: usize| {
            let shape = shape(name)?;
            let found = shape.get(axis).copied();
            found.ok_or_else(|| format!("`{name}`: expected more dimensions than {shape:?}"))
        };
        let count = |name: &dyn Fn(usize) -> String| {
            let there = |i: &usize| weights.contains(&name(*i));
            (0..MAX_COUNT).take_while(there).count()
        };
        let depth =
            |place: &str| count(&|k| format!("{place}.transformer_blocks.{k}.attn1.to_q.weight"));
        let resnet =
            |level: usize, i: usize| format!("down_blocks.{level}.resnets.{i}.conv1.weight");
        let levels = (0..count(&|level| resnet(level, 0))).map(|level| {
            let width = dim(&resnet(level, 0), 0)?;
            let heads = match variant.heads {
                Heads::Count(count) => count,
                Heads::Channels(channels) => width / channels,
            };
            let depth = depth(&format!("down_blocks.{level}.attentions.0"));
            Ok(Level {
                width,
                depth,
                heads,
            })
        });
        let middle = "mid_block.attentions.0";
        let added = weights.shape("add_embedding.linear_1.weight");
        let addition = added.map(|shape| {
            let inputs = shape.get(1).copied().unwrap_or(0);
            let pooled = inputs.checked_sub(SIZES * variant.size_channels);
            pooled.map(|pooled_width| Addition {
                pooled_width,
                size_channels: variant.size_channels,
            })
        });
        let own = Self {
            in_channels: dim("conv_in.weight", 1)?,
            out_channels: dim("conv_out.weight", 0)?,
            levels: levels.collect::<Result<_, String>>()?,
            layers: count(&|i| resnet(0, i)),
            middle_depth: depth(middle),
            context_width: dim(
                &format!("{middle}.transformer_blocks.0.attn2.to_k.weight"),
                1,
            )?,
            linear_projection: shape(&format!("{middle}.proj_in.weight"))?.len() == 2,
            addition: match addition {
                Some(None) => {
                    return Err("`add_embedding.linear_1.weight` has too few columns".to_owned());
                }
                Some(found) => found,
                None => None,
            },
            groups: variant.groups,
            // diffusers' default `norm_eps`, in no tensor either.
            eps: 1e-5,
        };
        own.check()?;
        Ok(own)
    }
}

#[cfg(test)]
mod tests;

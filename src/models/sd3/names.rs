//! Weights of an MMDiT under the names of diffusers, whichever of two namings the files have: that one, or the one of
//! Stability's single files, which fuses queries, keys and values, and stores two of the modulations as
//! (shift, scale) where diffusers has (scale, shift).

use candle_core::Tensor;

use crate::models::layout::Component;
use crate::models::{BaseWeights, Error};
use crate::nn::weights::{Stored, Weights};

use super::architecture::{Architecture, HEAD_CHANNELS};

/// Weights with canonical names.
pub(super) struct Named {
    pub(super) weights: Weights,
    pub(super) architecture: Architecture,
    single_file: bool,
}

impl Named {
    /// Opens the denoiser's files and checks by their headers that they hold this network and nothing else.
    pub(super) fn open(component: &Component) -> Result<Self, Error> {
        Self::open_with(component, HEAD_CHANNELS)
    }

    /// With another size of heads where neither a config nor a norm tells it.
    pub(super) fn open_with(component: &Component, head_channels: usize) -> Result<Self, Error> {
        let stored = component.open()?;
        let single_file = stored.contains("x_embedder.proj.weight");
        let weights = if single_file {
            stored.renamed(in_single_file)
        } else {
            stored
        };
        let architecture = Architecture::of(component, &weights, head_channels)?;
        let named = Self {
            weights,
            architecture,
            single_file,
        };
        named.check()?;
        Ok(named)
    }

    fn check(&self) -> Result<(), Error> {
        let tensors = self.architecture.tensors();
        self.weights.require(&tensors)?;
        let stored = |name: &String| {
            if self.single_file {
                in_single_file(name).name
            } else {
                name.clone()
            }
        };
        let known: std::collections::BTreeSet<_> =
            tensors.iter().map(|(name, _)| stored(name)).collect();
        let mut extra = self.weights.names();
        extra.retain(|name| !known.contains(name));
        match extra.first() {
            Some(first) => Err(Error::ExtraTensors {
                files: self.weights.describe(),
                count: extra.len(),
                first: first.clone(),
            }),
            None => Ok(()),
        }
    }

    pub(super) fn into_base(self) -> BaseWeights {
        BaseWeights {
            weights: self.weights,
            tensors: self.architecture.tensors(),
        }
    }

    /// A tensor by its canonical name.
    pub(super) fn get(&self, shape: &[usize], name: &str) -> Result<Tensor, Error> {
        let tensor = self.weights.get(shape, name)?;
        if self.single_file && self.is_swapped(name) {
            return swap_halves(&tensor).map_err(|source| Error::Device {
                what: format!("loading `{name}`"),
                source,
            });
        }
        Ok(tensor)
    }

    fn is_swapped(&self, name: &str) -> bool {
        let last = self.architecture.depth.saturating_sub(1);
        name.starts_with("norm_out.linear.")
            || name.starts_with(&format!("transformer_blocks.{last}.norm1_context.linear."))
    }
}

fn swap_halves(tensor: &Tensor) -> candle_core::Result<Tensor> {
    let half = tensor.dim(0)? / 2;
    Tensor::cat(
        &[tensor.narrow(0, half, half)?, tensor.narrow(0, 0, half)?],
        0,
    )
}

/// Modules in front of and behind the blocks: diffusers' name, Stability's.
const OUTER: &[(&str, &str)] = &[
    ("pos_embed.proj", "x_embedder.proj"),
    (
        "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.0",
    ),
    (
        "time_text_embed.timestep_embedder.linear_2",
        "t_embedder.mlp.2",
    ),
    ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
    ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
    ("context_embedder", "context_embedder"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
];

/// Modules in a block: diffusers' name, Stability's, and which third of a fused one it is.
const BLOCK: &[(&str, &str, Option<usize>)] = &[
    ("norm1.linear", "x_block.adaLN_modulation.1", None),
    (
        "norm1_context.linear",
        "context_block.adaLN_modulation.1",
        None,
    ),
    ("attn.to_q", "x_block.attn.qkv", Some(0)),
    ("attn.to_k", "x_block.attn.qkv", Some(1)),
    ("attn.to_v", "x_block.attn.qkv", Some(2)),
    ("attn.add_q_proj", "context_block.attn.qkv", Some(0)),
    ("attn.add_k_proj", "context_block.attn.qkv", Some(1)),
    ("attn.add_v_proj", "context_block.attn.qkv", Some(2)),
    ("attn.to_out.0", "x_block.attn.proj", None),
    ("attn.to_add_out", "context_block.attn.proj", None),
    ("attn.norm_q", "x_block.attn.ln_q", None),
    ("attn.norm_k", "x_block.attn.ln_k", None),
    ("attn.norm_added_q", "context_block.attn.ln_q", None),
    ("attn.norm_added_k", "context_block.attn.ln_k", None),
    ("attn2.to_q", "x_block.attn2.qkv", Some(0)),
    ("attn2.to_k", "x_block.attn2.qkv", Some(1)),
    ("attn2.to_v", "x_block.attn2.qkv", Some(2)),
    ("attn2.to_out.0", "x_block.attn2.proj", None),
    ("attn2.norm_q", "x_block.attn2.ln_q", None),
    ("attn2.norm_k", "x_block.attn2.ln_k", None),
    ("ff.net.0.proj", "x_block.mlp.fc1", None),
    ("ff.net.2", "x_block.mlp.fc2", None),
    ("ff_context.net.0.proj", "context_block.mlp.fc1", None),
    ("ff_context.net.2", "context_block.mlp.fc2", None),
];

/// Where a single file keeps a tensor of diffusers' name. A name that is unknown stays as it is, and will not be
/// found.
fn in_single_file(name: &str) -> Stored {
    if name == "pos_embed.pos_embed" {
        return "pos_embed".into();
    }
    let Some((module, kind)) = name.rsplit_once('.') else {
        return name.into();
    };
    if let Some((_, stored)) = OUTER.iter().find(|(ours, _)| *ours == module) {
        return format!("{stored}.{kind}").into();
    }
    let in_block = module
        .strip_prefix("transformer_blocks.")
        .and_then(|rest| rest.split_once('.'));
    let Some((block, part)) = in_block else {
        return name.into();
    };
    match BLOCK.iter().find(|(ours, ..)| *ours == part) {
        Some((_, stored, third)) => {
            let mut stored = Stored::from(format!("joint_blocks.{block}.{stored}.{kind}"));
            stored.part = third.map(|third| (third, 3));
            stored
        }
        None => name.into(),
    }
}

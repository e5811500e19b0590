//! Weights of an MMDiT under the names of diffusers, whichever of two namings the files have: that one, or the one of
//! Stability's single files, which fuses queries, keys and values, and stores two of the modulations as
//! (shift, scale) where diffusers has (scale, shift).

use crate::models::family::DescribedWeights;
use crate::models::{Component, Error};
use crate::nn::weights::{Stored, TensorSlice};

use super::architecture::{Architecture, HEAD_CHANNELS};

/// Reads what the denoiser's files and config say of it.
pub(super) fn open(component: &Component) -> Result<DescribedWeights, Error> {
    open_with(component, HEAD_CHANNELS)
}

/// With another size of heads where neither a config nor a norm tells it.
pub(super) fn open_with(
    component: &Component,
    head_channels: usize,
) -> Result<DescribedWeights, Error> {
    let stored = component.open()?;
    let single_file = stored.contains("x_embedder.proj.weight");
    let depth = (0..)
        .take_while(|i| stored.contains(&format!("joint_blocks.{i}.x_block.attn.qkv.weight")))
        .count();
    let place = move |name: &str| match single_file {
        true => in_single_file(name, depth),
        false => name.into(),
    };
    let weights = stored.renamed(place);
    Ok(DescribedWeights {
        architecture: Box::new(Architecture::of(component, &weights, head_channels)?),
        weights,
    })
}

/// Modules in front of and behind the blocks: diffusers' name, Stability's.
pub(in crate::models) const OUTER: &[(&str, &str)] = &[
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
pub(in crate::models) const BLOCK: &[(&str, &str, Option<usize>)] = &[
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

/// Where a single file of `depth` blocks keeps a tensor of diffusers' name. A name that is unknown stays as it is,
/// and will not be found.
fn in_single_file(name: &str, depth: usize) -> Stored {
    if name == "pos_embed.pos_embed" {
        return "pos_embed".into();
    }
    let Some((module, kind)) = name.rsplit_once('.') else {
        return name.into();
    };
    if let Some((_, stored)) = OUTER.iter().find(|(ours, _)| *ours == module) {
        return Stored {
            swapped: module == "norm_out.linear",
            ..format!("{stored}.{kind}").into()
        };
    }
    let in_block = module
        .strip_prefix("transformer_blocks.")
        .and_then(|rest| rest.split_once('.'));
    let Some((block, part)) = in_block else {
        return name.into();
    };
    let is_last = block.parse() == Ok(depth.wrapping_sub(1));
    match BLOCK.iter().find(|(ours, ..)| *ours == part) {
        Some((_, stored, third)) => Stored {
            part: third.map(|third| TensorSlice::nth(third, 3)),
            swapped: is_last && part == "norm1_context.linear",
            ..format!("joint_blocks.{block}.{stored}.{kind}").into()
        },
        None => name.into(),
    }
}

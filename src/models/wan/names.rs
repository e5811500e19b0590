//! Weights of a Wan transformer under the names of diffusers, whichever of two namings the files have: that one, or the one of
//! the authors' code, in which the norms before the context and the feed-forward are numbered the other way round.
//!
//! Source: `convert_wan_transformer_to_diffusers` in diffusers' `loaders/single_file_utils.py`.

use super::architecture::Architecture;
use super::others;
use crate::models::family::DescribedWeights;
use crate::models::{Component, Error};
use crate::nn::weights::Stored;

/// Reads what the denoiser's files and config say of it.
pub(super) fn open(component: &Component) -> Result<DescribedWeights, Error> {
    let stored = component.open()?;
    others::refuse(&component.weights, &stored)?;
    let native = stored.contains("head.modulation");
    DescribedWeights::named(component, &stored, native, in_single_file, Architecture::of)
}

/// Modules in front of and behind the blocks: diffusers' name, the authors'.
pub(super) const OUTER: &[(&str, &str)] = &[
    (
        "condition_embedder.time_embedder.linear_1",
        "time_embedding.0",
    ),
    (
        "condition_embedder.time_embedder.linear_2",
        "time_embedding.2",
    ),
    ("condition_embedder.time_proj", "time_projection.1"),
    (
        "condition_embedder.text_embedder.linear_1",
        "text_embedding.0",
    ),
    (
        "condition_embedder.text_embedder.linear_2",
        "text_embedding.2",
    ),
    ("proj_out", "head.head"),
];

/// Linears in a block.
pub(super) const BLOCK: &[(&str, &str)] = &[
    ("attn1.to_q", "self_attn.q"),
    ("attn1.to_k", "self_attn.k"),
    ("attn1.to_v", "self_attn.v"),
    ("attn1.to_out.0", "self_attn.o"),
    ("attn2.to_q", "cross_attn.q"),
    ("attn2.to_k", "cross_attn.k"),
    ("attn2.to_v", "cross_attn.v"),
    ("attn2.to_out.0", "cross_attn.o"),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
];

/// Norms in a block.
const NORMS: &[(&str, &str)] = &[
    ("attn1.norm_q", "self_attn.norm_q"),
    ("attn1.norm_k", "self_attn.norm_k"),
    ("attn2.norm_q", "cross_attn.norm_q"),
    ("attn2.norm_k", "cross_attn.norm_k"),
    ("norm2", "norm3"),
];

/// Where a single file keeps a tensor of diffusers' name. A name that is unknown stays as it is, and will not be found.
fn in_single_file(name: &str) -> Stored {
    if name == "scale_shift_table" {
        return "head.modulation".into();
    }
    in_outer(name)
        .or_else(|| in_block(name))
        .unwrap_or_else(|| name.to_owned())
        .into()
}

fn in_outer(name: &str) -> Option<String> {
    let (module, kind) = name.rsplit_once('.')?;
    let (_, stored) = OUTER.iter().find(|(ours, _)| *ours == module)?;
    Some(format!("{stored}.{kind}"))
}

fn in_block(name: &str) -> Option<String> {
    let (block, part) = name.strip_prefix("blocks.")?.split_once('.')?;
    if part == "scale_shift_table" {
        return Some(format!("blocks.{block}.modulation"));
    }
    let (module, kind) = part.rsplit_once('.')?;
    let mut all = BLOCK.iter().chain(NORMS);
    let (_, stored) = all.find(|(ours, _)| *ours == module)?;
    Some(format!("blocks.{block}.{stored}.{kind}"))
}

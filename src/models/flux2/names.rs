//! Weights of a FLUX.2 transformer under the names of diffusers, whichever of two namings the files have: that one, or the one of
//! the authors' single files, which fuses queries, keys and values of double blocks, and stores the last modulation as (shift,
//! scale) where diffusers has (scale, shift). What single blocks fuse is fused in both.

use super::architecture::Architecture;
use crate::models::family::DescribedWeights;
use crate::models::flux1::names::{Modules, Pieces};
use crate::models::{Component, Error};
use crate::nn::weights::Stored;

/// Reads what the denoiser's files and config say of it.
pub(super) fn open(component: &Component) -> Result<DescribedWeights, Error> {
    let stored = component.open()?;
    let single_file = stored.contains("img_in.weight");
    DescribedWeights::named(
        component,
        &stored,
        single_file,
        in_single_file,
        Architecture::of,
    )
}

/// Modules in front of and behind the blocks: diffusers' name, the authors'.
pub(super) const OUTER: &[(&str, &str)] = &[
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    (
        "time_guidance_embed.timestep_embedder.linear_1",
        "time_in.in_layer",
    ),
    (
        "time_guidance_embed.timestep_embedder.linear_2",
        "time_in.out_layer",
    ),
    (
        "time_guidance_embed.guidance_embedder.linear_1",
        "guidance_in.in_layer",
    ),
    (
        "time_guidance_embed.guidance_embedder.linear_2",
        "guidance_in.out_layer",
    ),
    (
        "double_stream_modulation_img.linear",
        "double_stream_modulation_img.lin",
    ),
    (
        "double_stream_modulation_txt.linear",
        "double_stream_modulation_txt.lin",
    ),
    (
        "single_stream_modulation.linear",
        "single_stream_modulation.lin",
    ),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
];

/// Modules in a double block: diffusers' name, the authors', and which pieces of it.
pub(super) const DOUBLE: &[(&str, &str, Pieces)] = &[
    ("attn.to_q", "img_attn.qkv", Some((0, 1, 3))),
    ("attn.to_k", "img_attn.qkv", Some((1, 1, 3))),
    ("attn.to_v", "img_attn.qkv", Some((2, 1, 3))),
    ("attn.add_q_proj", "txt_attn.qkv", Some((0, 1, 3))),
    ("attn.add_k_proj", "txt_attn.qkv", Some((1, 1, 3))),
    ("attn.add_v_proj", "txt_attn.qkv", Some((2, 1, 3))),
    ("attn.to_out.0", "img_attn.proj", None),
    ("attn.to_add_out", "txt_attn.proj", None),
    ("ff.linear_in", "img_mlp.0", None),
    ("ff.linear_out", "img_mlp.2", None),
    ("ff_context.linear_in", "txt_mlp.0", None),
    ("ff_context.linear_out", "txt_mlp.2", None),
];

/// Modules in a single block.
pub(super) const SINGLE: &[(&str, &str, Pieces)] = &[
    ("attn.to_qkv_mlp_proj", "linear1", None),
    ("attn.to_out", "linear2", None),
];

/// Where a single file keeps a tensor of diffusers' name.
fn in_single_file(name: &str) -> Stored {
    let modules = Modules {
        outer: OUTER,
        double: DOUBLE,
        single: SINGLE,
    };
    modules.in_single_file(name)
}

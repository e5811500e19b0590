//! Weights of a Z-Image transformer under the names of diffusers, which are the authors', whichever of two namings the files have: that
//! one, or ComfyUI's, which fuses queries, keys and values (`convert_z_image_transformer_checkpoint_to_diffusers` of diffusers;
//! `z_image_to_diffusers` in ComfyUI's `comfy/utils.py`).

use super::architecture::Architecture;
use crate::models::family::DescribedWeights;
use crate::models::{Component, Error};
use crate::nn::weights::{Stored, TensorSlice};

/// In ComfyUI's files, from another network of the same code; nothing reads it.
const UNREAD: &str = "norm_final.weight";

/// Reads what the denoiser's files and config say of it.
pub(super) fn open(component: &Component) -> Result<DescribedWeights, Error> {
    let stored = component.open()?;
    let comfy = stored.contains("x_embedder.weight");
    let stored = match comfy {
        true => stored.without(UNREAD),
        false => stored,
    };
    DescribedWeights::named(component, &stored, comfy, in_comfyui, Architecture::of)
}

/// Modules around the blocks: diffusers' name, ComfyUI's.
pub(super) const OUTER: &[(&str, &str)] = &[
    ("all_x_embedder.2-1", "x_embedder"),
    ("all_final_layer.2-1.linear", "final_layer.linear"),
    (
        "all_final_layer.2-1.adaLN_modulation.1",
        "final_layer.adaLN_modulation.1",
    ),
    ("cap_embedder.1", "cap_embedder.1"),
    ("t_embedder.mlp.0", "t_embedder.mlp.0"),
    ("t_embedder.mlp.2", "t_embedder.mlp.2"),
];

/// Lists of blocks, and whether these are modulated.
pub(super) const BLOCKS: &[(&str, bool)] = &[
    ("noise_refiner", true),
    ("context_refiner", false),
    ("layers", true),
];

/// Linears in a block: diffusers' name, ComfyUI's, and which third of it.
pub(super) const LINEARS: &[(&str, &str, Option<usize>)] = &[
    ("attention.to_q", "attention.qkv", Some(0)),
    ("attention.to_k", "attention.qkv", Some(1)),
    ("attention.to_v", "attention.qkv", Some(2)),
    ("attention.to_out.0", "attention.out", None),
    ("feed_forward.w1", "feed_forward.w1", None),
    ("feed_forward.w2", "feed_forward.w2", None),
    ("feed_forward.w3", "feed_forward.w3", None),
];

/// What modulates a block.
pub(super) const MODULATION: &str = "adaLN_modulation.0";

/// Where ComfyUI's files keep a tensor of diffusers' name. A name that is unknown stays as it is, and will not be found.
fn in_comfyui(name: &str) -> Stored {
    in_outer(name)
        .or_else(|| in_block(name))
        .unwrap_or_else(|| name.into())
}

fn in_outer(name: &str) -> Option<Stored> {
    let (module, kind) = name.rsplit_once('.')?;
    let (_, stored) = OUTER.iter().find(|(ours, _)| *ours == module)?;
    Some(format!("{stored}.{kind}").into())
}

fn in_block(name: &str) -> Option<Stored> {
    let (blocks, rest) = name.split_once('.')?;
    BLOCKS.iter().find(|(list, _)| *list == blocks)?;
    let (block, rest) = rest.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let norm = match part {
        "attention.norm_q" => Some("q_norm"),
        "attention.norm_k" => Some("k_norm"),
        _ => None,
    };
    if let Some(norm) = norm {
        return Some(format!("{blocks}.{block}.attention.{norm}.{kind}").into());
    }
    let (_, stored, third) = LINEARS.iter().find(|(ours, ..)| *ours == part)?;
    Some(Stored {
        part: third.map(|first| TensorSlice {
            first,
            count: 1,
            pieces: 3,
        }),
        ..format!("{blocks}.{block}.{stored}.{kind}").into()
    })
}

//! Weights of a FLUX.1 transformer under the names of diffusers, whichever of two namings the files have: that one, or
//! the one of the authors' single files, which fuses queries, keys and values (in single blocks also the
//! feed-forward), and stores the last modulation as (shift, scale) where diffusers has (scale, shift).

use crate::models::family::DescribedWeights;
use crate::models::{Component, Error};
use crate::nn::weights::{Stored, TensorSlice};

use super::architecture::Architecture;

/// Reads what the denoiser's files and config say of it.
pub(super) fn open(component: &Component) -> Result<DescribedWeights, Error> {
    let stored = component.open()?;
    // Its kin, which have double blocks of the same names.
    for (tensors, whose, family) in [
        ("distilled_guidance_layer", "Chroma", "chroma"),
        ("double_stream_modulation_img", "FLUX.2", "flux2"),
    ] {
        if component.config.is_none() && !stored.pp(format!("{tensors}.")).names().is_empty() {
            return Err(Error::NotThisFamily {
                path: component.weights.clone(),
                family: "`flux1`".to_owned(),
                reason: format!(
                    "it has tensors `{tensors}.*`, which {whose} has: family `{family}`"
                ),
            });
        }
    }
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
pub(in crate::models) const OUTER: &[(&str, &str)] = &[
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    (
        "time_text_embed.timestep_embedder.linear_1",
        "time_in.in_layer",
    ),
    (
        "time_text_embed.timestep_embedder.linear_2",
        "time_in.out_layer",
    ),
    (
        "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.in_layer",
    ),
    (
        "time_text_embed.guidance_embedder.linear_2",
        "guidance_in.out_layer",
    ),
    (
        "time_text_embed.text_embedder.linear_1",
        "vector_in.in_layer",
    ),
    (
        "time_text_embed.text_embedder.linear_2",
        "vector_in.out_layer",
    ),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
];

/// The pieces of a fused matrix that a module is: from which on, how many, of how many.
pub(in crate::models) type Pieces = Option<(usize, usize, usize)>;

/// Modules in a double block: diffusers' name, the authors', and which pieces of it.
pub(in crate::models) const DOUBLE: &[(&str, &str, Pieces)] = &[
    ("norm1.linear", "img_mod.lin", None),
    ("norm1_context.linear", "txt_mod.lin", None),
    ("attn.to_q", "img_attn.qkv", Some((0, 1, 3))),
    ("attn.to_k", "img_attn.qkv", Some((1, 1, 3))),
    ("attn.to_v", "img_attn.qkv", Some((2, 1, 3))),
    ("attn.add_q_proj", "txt_attn.qkv", Some((0, 1, 3))),
    ("attn.add_k_proj", "txt_attn.qkv", Some((1, 1, 3))),
    ("attn.add_v_proj", "txt_attn.qkv", Some((2, 1, 3))),
    ("attn.to_out.0", "img_attn.proj", None),
    ("attn.to_add_out", "txt_attn.proj", None),
    ("ff.net.0.proj", "img_mlp.0", None),
    ("ff.net.2", "img_mlp.2", None),
    ("ff_context.net.0.proj", "txt_mlp.0", None),
    ("ff_context.net.2", "txt_mlp.2", None),
];

/// Modules in a single block. `linear1` has the three of attention and the four times wider feed-forward.
pub(in crate::models) const SINGLE: &[(&str, &str, Pieces)] = &[
    ("norm.linear", "modulation.lin", None),
    ("attn.to_q", "linear1", Some((0, 1, 7))),
    ("attn.to_k", "linear1", Some((1, 1, 7))),
    ("attn.to_v", "linear1", Some((2, 1, 7))),
    ("proj_mlp", "linear1", Some((3, 4, 7))),
    ("proj_out", "linear2", None),
];

/// Norms in a block of either kind: their weight is called `scale` there.
const NORMS: &[(&str, &str, &str)] = &[
    ("attn.norm_q", "img_attn.norm.query_norm", "norm.query_norm"),
    ("attn.norm_k", "img_attn.norm.key_norm", "norm.key_norm"),
    ("attn.norm_added_q", "txt_attn.norm.query_norm", ""),
    ("attn.norm_added_k", "txt_attn.norm.key_norm", ""),
];

/// Where a single file keeps a tensor of diffusers' name.
pub(in crate::models) fn in_single_file(name: &str) -> Stored {
    let modules = Modules {
        outer: OUTER,
        double: DOUBLE,
        single: SINGLE,
    };
    modules.in_single_file(name)
}

/// The modules of a network of double and single blocks: those outside of blocks, and those of a block of each kind.
pub(in crate::models) struct Modules {
    pub(in crate::models) outer: &'static [(&'static str, &'static str)],
    pub(in crate::models) double: &'static [(&'static str, &'static str, Pieces)],
    pub(in crate::models) single: &'static [(&'static str, &'static str, Pieces)],
}

impl Modules {
    /// Where a single file of the authors keeps a tensor of diffusers' name. A name that is unknown stays as it is, and will not
    /// be found.
    pub(in crate::models) fn in_single_file(&self, name: &str) -> Stored {
        self.outside(name)
            .or_else(|| self.in_block(name))
            .unwrap_or_else(|| name.into())
    }

    fn outside(&self, name: &str) -> Option<Stored> {
        let (module, kind) = name.rsplit_once('.')?;
        let (_, stored) = self.outer.iter().find(|(ours, _)| *ours == module)?;
        Some(Stored {
            swapped: module == "norm_out.linear",
            ..format!("{stored}.{kind}").into()
        })
    }

    fn in_block(&self, name: &str) -> Option<Stored> {
        let (blocks, rest) = name.split_once('.')?;
        let (block, rest) = rest.split_once('.')?;
        let (part, kind) = rest.rsplit_once('.')?;
        let (blocks, table) = match blocks {
            "transformer_blocks" => ("double_blocks", self.double),
            "single_transformer_blocks" => ("single_blocks", self.single),
            _ => return None,
        };
        if let Some((_, double, single)) = NORMS.iter().find(|(ours, ..)| *ours == part) {
            let norm = if blocks == "double_blocks" {
                double
            } else {
                single
            };
            return Some(format!("{blocks}.{block}.{norm}.scale").into());
        }
        let (_, stored, pieces) = table.iter().find(|(ours, ..)| *ours == part)?;
        Some(Stored {
            part: pieces.map(|(first, count, pieces)| TensorSlice {
                first,
                count,
                pieces,
            }),
            ..format!("{blocks}.{block}.{stored}.{kind}").into()
        })
    }
}

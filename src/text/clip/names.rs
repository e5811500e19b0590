//! The tensors of a CLIP text tower, by canonical name, and where files keep them.
//!
//! Canonical are the names of `CLIPTextModelWithProjection` in transformers: `text_model....` and
//! `text_projection.weight`. Files also have them without `text_model.` (a bare `CLIPTextModel` since
//! transformers 5.6), below a prefix (`text_encoders.clip_l.transformer.` in a whole checkpoint), or under
//! OpenCLIP's names (`transformer.resblocks.0.attn.in_proj_weight`), which fuse queries, keys and values.
//!
//! # The orientation of `text_projection`
//!
//! OpenCLIP multiplies `x @ text_projection`; transformers has a linear layer whose weight is the transpose.
//! The name decides: `text_projection` (no `.weight`) is OpenCLIP's, `text_projection.weight` is the linear
//! layer's. Programs exist that write OpenCLIP's matrix under the other name. Then, if the matrix is not
//! square, its shape tells. If it is square, only its values can: they are known for OpenCLIP's ViT-bigG-14,
//! the CLIP-G of SDXL and SD3. For any other square matrix nothing can tell, and a note says so.

use crate::nn::weights::{Stored, TensorSlice, Weights};
use crate::text::names::{FoundEncoder, add, find};
use crate::text::{Error, TensorList};

use super::{ClipText, ClipTextArchitecture};

pub(super) const TABLE: &str = "text_model.embeddings.token_embedding.weight";
pub(super) const PROJECTION: &str = "text_projection.weight";
const HF_ANCHOR: &str = "embeddings.token_embedding.weight";
const OPEN_CLIP_ANCHOR: &str = "transformer.resblocks.0.attn.in_proj_weight";

/// How a file names a tower's tensors, below its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// Canonical.
    HuggingFace,
    /// Canonical without `text_model.`.
    Flat,
    /// OpenCLIP's own.
    OpenClip,
}

/// Finds the tower of this architecture's size.
pub(super) fn locate(
    weights: &Weights,
    architecture: &ClipTextArchitecture,
) -> Result<FoundEncoder<Naming>, Error> {
    // The table's shape tells CLIP-L from CLIP-G: the width differs.
    let size = [architecture.vocab_size, architecture.hidden_size];
    find(weights, &ClipText, HF_ANCHOR, recognise, |found| {
        let table = match found.naming {
            Naming::HuggingFace => TABLE,
            Naming::Flat => HF_ANCHOR,
            Naming::OpenClip => "token_embedding.weight",
        };
        weights
            .shape(&format!("{}{table}", found.prefix))
            .is_some_and(|shape| shape == size)
    })
}

fn recognise(name: &str) -> Option<FoundEncoder<Naming>> {
    let found = |prefix: &str, naming| {
        // A name that merely ends like the anchor is another tensor's.
        let whole = prefix.is_empty() || prefix.ends_with('.');
        whole.then(|| FoundEncoder {
            prefix: prefix.to_owned(),
            naming,
        })
    };
    if let Some(base) = name.strip_suffix(HF_ANCHOR) {
        return match base.strip_suffix("text_model.") {
            Some(prefix) => found(prefix, Naming::HuggingFace),
            None => found(base, Naming::Flat),
        };
    }
    // A whole OpenCLIP model has an image tower of the same form below `visual.`.
    let prefix = name.strip_suffix(OPEN_CLIP_ANCHOR)?;
    if prefix.ends_with("visual.") {
        return None;
    }
    found(prefix, Naming::OpenClip)
}

/// Where a file keeps the canonical tensor `name`. `raw_projection`: it has OpenCLIP's `text_projection`.
pub(super) fn stored(found: &FoundEncoder<Naming>, raw_projection: bool, name: &str) -> Stored {
    let mut stored: Stored = match found.naming {
        // Before the namings: it may have OpenCLIP's name in any of them.
        _ if name == PROJECTION && raw_projection => Stored {
            transposed: true,
            .."text_projection".into()
        },
        Naming::HuggingFace => name.into(),
        Naming::Flat => name.strip_prefix("text_model.").unwrap_or(name).into(),
        Naming::OpenClip => open_clip(name),
    };
    stored.name.insert_str(0, &found.prefix);
    stored
}

/// OpenCLIP's name of a canonical tensor. A name that is unknown stays as it is, and will not be found.
fn open_clip(name: &str) -> Stored {
    let plain = match name {
        TABLE => Some("token_embedding.weight"),
        "text_model.embeddings.position_embedding.weight" => Some("positional_embedding"),
        "text_model.final_layer_norm.weight" => Some("ln_final.weight"),
        "text_model.final_layer_norm.bias" => Some("ln_final.bias"),
        _ => None,
    };
    if let Some(plain) = plain {
        return plain.into();
    }
    let Some((layer, rest)) = name
        .strip_prefix("text_model.encoder.layers.")
        .and_then(|n| n.split_once('.'))
    else {
        return name.into();
    };
    let block = |rest: &str| format!("transformer.resblocks.{layer}.{rest}");
    for (k, projection) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
        if let Some(leaf) = rest.strip_prefix(&format!("self_attn.{projection}.")) {
            return Stored {
                part: Some(TensorSlice::nth(k, 3)),
                ..block(&format!("attn.in_proj_{leaf}")).into()
            };
        }
    }
    let renames = [
        ("self_attn.out_proj.", "attn.out_proj."),
        ("layer_norm1.", "ln_1."),
        ("layer_norm2.", "ln_2."),
        ("mlp.fc1.", "mlp.c_fc."),
        ("mlp.fc2.", "mlp.c_proj."),
    ];
    for (canonical, theirs) in renames {
        if let Some(leaf) = rest.strip_prefix(canonical) {
            return block(&format!("{theirs}{leaf}")).into();
        }
    }
    name.into()
}

/// Whether a tensor, by its name below the prefix, has no part in the numbers.
pub(super) fn is_inert(below: &str) -> bool {
    let below = below.strip_prefix("text_model.").unwrap_or(below);
    // Buffers that older transformers and OpenCLIP save beside the weights.
    // The projection is not inert where a recipe applies it; it is then among the expected names.
    matches!(
        below,
        "embeddings.position_ids" | "attn_mask" | "text_projection" | PROJECTION
    )
}

/// The tensors of the whole tower but its projection.
pub(in crate::text) fn tower(architecture: &ClipTextArchitecture) -> TensorList {
    let mut list = embeddings(architecture);
    for layer in 0..architecture.num_hidden_layers {
        list.extend(block(architecture, layer));
    }
    list.extend(final_norm(architecture));
    list
}

pub(super) fn embeddings(architecture: &ClipTextArchitecture) -> TensorList {
    let mut list = Vec::new();
    let width = architecture.hidden_size;
    let embeddings = "text_model.embeddings";
    let rows = [
        ("token_embedding", architecture.vocab_size),
        ("position_embedding", architecture.max_position_embeddings),
    ];
    for (name, rows) in rows {
        add(
            &mut list,
            format!("{embeddings}.{name}.weight"),
            &[rows, width],
        );
    }
    list
}

pub(super) fn block(architecture: &ClipTextArchitecture, layer: usize) -> TensorList {
    let (width, inner) = (architecture.hidden_size, architecture.intermediate_size);
    let mut list = Vec::new();
    let mut linear = |name: &str, out: usize, inputs: Option<usize>| {
        let name = format!("text_model.encoder.layers.{layer}.{name}");
        let shape: Vec<usize> = std::iter::once(out).chain(inputs).collect();
        add(&mut list, format!("{name}.weight"), &shape);
        add(&mut list, format!("{name}.bias"), &[out]);
    };
    for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
        linear(&format!("self_attn.{name}"), width, Some(width));
    }
    linear("layer_norm1", width, None);
    linear("layer_norm2", width, None);
    linear("mlp.fc1", inner, Some(width));
    linear("mlp.fc2", width, Some(inner));
    list
}

pub(super) fn final_norm(architecture: &ClipTextArchitecture) -> TensorList {
    let mut list = Vec::new();
    for leaf in ["weight", "bias"] {
        let name = format!("text_model.final_layer_norm.{leaf}");
        add(&mut list, name, &[architecture.hidden_size]);
    }
    list
}

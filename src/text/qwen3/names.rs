//! The tensors of a Qwen3, by canonical name, and where files keep them.
//!
//! Canonical are the names of `Qwen3Model` in transformers. A `Qwen3ForCausalLM` has them below `model.`, beside an
//! `lm_head` that no hidden state needs. Checkpoints that ComfyUI saved whole have them below `text_encoders.qwen3_4b.transformer.model.`
//! or `qwen3_8b` (the names of `clip_target` of `ZImage` and `Flux2` in `comfy/supported_models.py`), with a `logit_scale` of
//! `SDClipModel` above the `transformer`. GGUF files have llama.cpp's names (`blk.0.attn_q_norm.weight`).

use super::Qwen3;
use super::architecture::{self, Qwen3Architecture};
use crate::nn::weights::Weights;
use crate::text::names::{FoundEncoder, add, find};
use crate::text::{Error, TensorList};

pub(super) const EMBEDDING: &str = "embed_tokens.weight";
pub(super) const FINAL_NORM: &str = "norm.weight";
// The norms of queries and keys are what other language models with these names do not have.
const ANCHOR: &str = "layers.0.self_attn.q_norm.weight";
const LLAMA_CPP_ANCHOR: &str = "blk.0.attn_q_norm.weight";
/// A name that gives a Qwen3 away, in each naming.
pub(super) const ANCHORS: &[&str] = &[ANCHOR, LLAMA_CPP_ANCHOR];

/// How a file names the tensors, below its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// Canonical.
    HuggingFace,
    /// That of GGUF files.
    LlamaCpp,
}

/// llama.cpp's names of the parts of a layer: canonical, theirs. Queries and keys lie as they do here:
/// `Qwen3Model` of its `convert_hf_to_gguf.py` does not reorder them.
const LLAMA_CPP: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

fn recognise(name: &str) -> Option<FoundEncoder<Naming>> {
    let (prefix, naming) = match name.strip_suffix(ANCHOR) {
        Some(prefix) => (prefix, Naming::HuggingFace),
        None => (name.strip_suffix(LLAMA_CPP_ANCHOR)?, Naming::LlamaCpp),
    };
    (prefix.is_empty() || prefix.ends_with('.')).then(|| FoundEncoder {
        prefix: prefix.to_owned(),
        naming,
    })
}

/// Finds the model of this architecture's size.
pub(super) fn locate(
    weights: &Weights,
    architecture: &Qwen3Architecture,
) -> Result<FoundEncoder<Naming>, Error> {
    refuse_vision(weights)?;
    let size = [architecture.vocab_size, architecture.hidden_size];
    find(weights, &Qwen3, ANCHOR, recognise, |found| {
        let table = weights.shape(&stored(found, EMBEDDING));
        table.is_some_and(|shape| shape == size)
    })
}

/// The text half of a Qwen3-VL has these names and shapes, and positions of its own.
fn refuse_vision(weights: &Weights) -> Result<(), Error> {
    let names = weights.names();
    let is_vision = |name: &&String| {
        name.starts_with("visual.")
            || name.contains(".visual.")
            || name.contains("language_model.") && recognise(name).is_some()
    };
    match names.iter().find(is_vision) {
        None => Ok(()),
        Some(name) => Err(Error::OfKind(format!(
            "{} is a Qwen3-VL (it has `{name}`), whose positions are not those of a Qwen3: it is not supported",
            weights.describe()
        ))),
    }
}

/// The published architecture of a file's own width; that of the slot where none is found.
pub(super) fn published_for(slot: &str, weights: &Weights) -> Option<Qwen3Architecture> {
    let usual = architecture::published(slot)?;
    let names = weights.names();
    let widths = names.iter().filter_map(|name| {
        let found = recognise(name)?;
        weights.shape(&stored(&found, EMBEDDING))?.last().copied()
    });
    let mut fitting = widths.filter_map(architecture::of_width);
    Some(fitting.next().unwrap_or(usual))
}

/// Where a file keeps the canonical tensor `name`.
pub(super) fn stored(found: &FoundEncoder<Naming>, name: &str) -> String {
    let theirs = match found.naming {
        Naming::HuggingFace => name.to_owned(),
        Naming::LlamaCpp => llama_cpp(name),
    };
    format!("{}{theirs}", found.prefix)
}

/// A name that is unknown stays as it is, and will not be found.
fn llama_cpp(name: &str) -> String {
    match name {
        EMBEDDING => return "token_embd.weight".to_owned(),
        FINAL_NORM => return "output_norm.weight".to_owned(),
        _ => {}
    }
    let part = || {
        let (layer, part) = name.strip_prefix("layers.")?.split_once('.')?;
        let part = part.strip_suffix(".weight")?;
        let (_, theirs) = LLAMA_CPP.iter().find(|(ours, _)| *ours == part)?;
        Some(format!("blk.{layer}.{theirs}.weight"))
    };
    part().unwrap_or_else(|| name.to_owned())
}

/// Whether a tensor, by its name below the prefix, has no part in hidden states.
pub(super) fn is_inert(below: &str) -> bool {
    // The head of a language model in GGUF, and tables of positions, which follow from the configuration.
    matches!(below, "output.weight" | "rope_freqs.weight") || below.ends_with("rotary_emb.inv_freq")
}

/// All tensors of a layer.
pub(super) fn layer(a: &Qwen3Architecture, layer: usize) -> TensorList {
    let (queries, keys) = (
        a.num_attention_heads * a.head_dim,
        a.num_key_value_heads * a.head_dim,
    );
    let (c, f) = (a.hidden_size, a.intermediate_size);
    let mut list = Vec::new();
    for (name, shape) in [
        ("input_layernorm", &[c][..]),
        ("self_attn.q_proj", &[queries, c]),
        ("self_attn.k_proj", &[keys, c]),
        ("self_attn.v_proj", &[keys, c]),
        ("self_attn.q_norm", &[a.head_dim]),
        ("self_attn.k_norm", &[a.head_dim]),
        ("self_attn.o_proj", &[c, queries]),
        ("post_attention_layernorm", &[c]),
        ("mlp.gate_proj", &[f, c]),
        ("mlp.up_proj", &[f, c]),
        ("mlp.down_proj", &[c, f]),
    ] {
        add(&mut list, format!("layers.{layer}.{name}.weight"), shape);
    }
    list
}

/// The tensors that the first `depth` layers need, and the final norm where one is taken.
pub(super) fn tensors(a: &Qwen3Architecture, depth: usize, norm: bool) -> TensorList {
    let mut list = Vec::new();
    add(&mut list, EMBEDDING, &[a.vocab_size, a.hidden_size]);
    if norm {
        add(&mut list, FINAL_NORM, &[a.hidden_size]);
    }
    for at in 0..depth {
        list.extend(layer(a, at));
    }
    list
}

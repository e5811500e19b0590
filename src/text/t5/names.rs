//! The tensors of a T5 or UMT5 encoder, by canonical name, and where files keep them.
//!
//! Canonical are the names of `T5EncoderModel` and `UMT5EncoderModel` in transformers. Single files (`t5xxl_fp16.safetensors`) have the
//! same ones, whole checkpoints have them below a prefix (`text_encoders.t5xxl.transformer.`). The embedding is
//! `shared.weight`, or `encoder.embed_tokens.weight`, or both. GGUF files have llama.cpp's names
//! (`enc.blk.0.attn_q.weight`). Wan's own file of its UMT5 has the names of its own code (`blocks.0.attn.q.weight`).

use crate::nn::weights::Weights;
use crate::text::names::{FoundEncoder, add, find};
use crate::text::{Error, TensorList};

use super::{Stack, T5EncoderArchitecture};

pub(super) const EMBEDDING: &str = "shared.weight";
const OTHER_EMBEDDING: &str = "encoder.embed_tokens.weight";
const ANCHOR: &str = "encoder.block.0.layer.0.SelfAttention.q.weight";
const LLAMA_CPP_ANCHOR: &str = "enc.blk.0.attn_q.weight";
/// `WanModel`'s text encoder (`wan/modules/t5.py` of Wan-Video/Wan2.1), which has a table in every block.
const WAN_ANCHOR: &str = "blocks.0.pos_embedding.embedding.weight";
/// A name that gives an encoder away, in each naming.
pub(super) const ANCHORS: &[&str] = &[ANCHOR, LLAMA_CPP_ANCHOR];
/// A name that gives an encoder with a table in every block away, in each naming.
pub(super) const UMT5_ANCHORS: &[&str] = &[
    "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
    "enc.blk.1.attn_rel_b.weight",
    WAN_ANCHOR,
];

/// Which blocks have a relative position bias of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BiasTables {
    /// The first; its table serves all (T5).
    First,
    /// Every one (UMT5).
    EveryBlock,
}

impl BiasTables {
    /// Of an encoder of `blocks` blocks, how many have one: the first so many.
    pub(super) fn count(self, blocks: usize) -> usize {
        match self {
            Self::First => blocks.min(1),
            Self::EveryBlock => blocks,
        }
    }
}

/// The canonical name of a block's table.
pub(super) fn bias(block: usize) -> String {
    format!("encoder.block.{block}.layer.0.SelfAttention.relative_attention_bias.weight")
}

/// How a file names an encoder's tensors, below its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// Canonical, but for the name of the embedding table.
    HuggingFace {
        /// `shared.weight` or `encoder.embed_tokens.weight`.
        embedding: &'static str,
    },
    /// That of GGUF files.
    LlamaCpp,
    /// That of Wan's code.
    Wan,
}

/// llama.cpp's names of the parts of a block: canonical, theirs.
const LLAMA_CPP: &[(&str, &str)] = &[
    ("layer.0.layer_norm", "attn_norm"),
    ("layer.0.SelfAttention.q", "attn_q"),
    ("layer.0.SelfAttention.k", "attn_k"),
    ("layer.0.SelfAttention.v", "attn_v"),
    ("layer.0.SelfAttention.o", "attn_o"),
    (
        "layer.0.SelfAttention.relative_attention_bias",
        "attn_rel_b",
    ),
    ("layer.1.layer_norm", "ffn_norm"),
    ("layer.1.DenseReluDense.wi_0", "ffn_gate"),
    ("layer.1.DenseReluDense.wi_1", "ffn_up"),
    ("layer.1.DenseReluDense.wi", "ffn_up"),
    ("layer.1.DenseReluDense.wo", "ffn_down"),
];

/// Wan's names of the parts of a block: canonical, theirs.
const WAN: &[(&str, &str)] = &[
    ("layer.0.layer_norm", "norm1"),
    ("layer.0.SelfAttention.q", "attn.q"),
    ("layer.0.SelfAttention.k", "attn.k"),
    ("layer.0.SelfAttention.v", "attn.v"),
    ("layer.0.SelfAttention.o", "attn.o"),
    (
        "layer.0.SelfAttention.relative_attention_bias",
        "pos_embedding.embedding",
    ),
    ("layer.1.layer_norm", "norm2"),
    ("layer.1.DenseReluDense.wi_0", "ffn.gate.0"),
    ("layer.1.DenseReluDense.wi_1", "ffn.fc1"),
    ("layer.1.DenseReluDense.wo", "ffn.fc2"),
];

/// Finds the encoder of this architecture's size.
pub(super) fn locate(weights: &Weights, stack: &Stack) -> Result<FoundEncoder<Naming>, Error> {
    let architecture = &stack.architecture;
    let recognise = |name: &str| {
        let wan = name
            .strip_suffix(WAN_ANCHOR)
            .filter(|_| stack.tables == BiasTables::EveryBlock);
        let (prefix, naming) = match name.strip_suffix(ANCHOR) {
            Some(prefix) => (
                prefix,
                Naming::HuggingFace {
                    embedding: EMBEDDING,
                },
            ),
            None => match wan {
                Some(prefix) => (prefix, Naming::Wan),
                None => (name.strip_suffix(LLAMA_CPP_ANCHOR)?, Naming::LlamaCpp),
            },
        };
        (prefix.is_empty() || prefix.ends_with('.')).then(|| FoundEncoder {
            prefix: prefix.to_owned(),
            naming,
        })
    };
    // Not the embedding, which has either of two names.
    let size = [
        architecture.num_heads * architecture.d_kv,
        architecture.d_model,
    ];
    let mut found = find(weights, stack.kind, ANCHOR, recognise, |found| {
        weights
            .shape(&stored(found, ANCHOR))
            .is_some_and(|shape| shape == size)
    })?;
    check_tables(weights, stack, &found.prefix)?;
    let Naming::HuggingFace { .. } = found.naming else {
        return Ok(found);
    };
    let name = |leaf: &str| format!("{}{leaf}", found.prefix);
    let (first, second) = (name(EMBEDDING), name(OTHER_EMBEDDING));
    match (weights.contains(&first), weights.contains(&second)) {
        // The two are one tensor in T5: a file in which they differ is not of this network.
        (true, true) if !weights.same_bytes(&first, &second)? => {
            return Err(Error::Untied {
                files: weights.describe(),
                first,
                second,
            });
        }
        (false, true) => {
            found.naming = Naming::HuggingFace {
                embedding: OTHER_EMBEDDING,
            };
        }
        _ => {}
    }
    Ok(found)
}

/// T5 and UMT5 have the same names and shapes but for the bias tables: the other's file would give wrong numbers.
fn check_tables(weights: &Weights, stack: &Stack, prefix: &str) -> Result<(), Error> {
    let is_table = |name: &&String| {
        let Some(below) = name.strip_prefix(prefix) else {
            return false;
        };
        below.starts_with("encoder.block.") && below.ends_with("relative_attention_bias.weight")
            || below.starts_with("enc.blk.") && below.ends_with("attn_rel_b.weight")
    };
    let tables = weights.names().iter().filter(is_table).count();
    let other = match (stack.tables, tables) {
        (BiasTables::First, 2..) => {
            format!("is a UMT5 encoder ({tables} relative attention tables, T5 has 1)")
        }
        (BiasTables::EveryBlock, 1) if stack.architecture.num_layers > 1 => {
            "is a T5 encoder (1 relative attention table, UMT5 has one in every block)".to_owned()
        }
        _ => return Ok(()),
    };
    Err(Error::OfKind(format!(
        "{} {other}: the recipe wants a {}",
        weights.describe(),
        stack.kind.title()
    )))
}

/// Where a file keeps the canonical tensor `name`.
pub(super) fn stored(found: &FoundEncoder<Naming>, name: &str) -> String {
    let theirs = match found.naming {
        Naming::HuggingFace { embedding } if name == EMBEDDING => embedding.to_owned(),
        Naming::HuggingFace { .. } => name.to_owned(),
        Naming::LlamaCpp => translated(name, &LLAMA_CPP_NAMES),
        Naming::Wan => translated(name, &WAN_NAMES),
    };
    format!("{}{theirs}", found.prefix)
}

/// The names of another program.
struct Names {
    embedding: &'static str,
    final_norm: &'static str,
    /// What is before a block's number.
    block: &'static str,
    /// The parts of a block: canonical, theirs.
    parts: &'static [(&'static str, &'static str)],
}

const LLAMA_CPP_NAMES: Names = Names {
    embedding: "token_embd.weight",
    final_norm: "enc.output_norm.weight",
    block: "enc.blk",
    parts: LLAMA_CPP,
};

const WAN_NAMES: Names = Names {
    embedding: "token_embedding.weight",
    final_norm: "norm.weight",
    block: "blocks",
    parts: WAN,
};

/// A name that is unknown stays as it is, and will not be found.
fn translated(name: &str, names: &Names) -> String {
    match name {
        EMBEDDING => return names.embedding.to_owned(),
        "encoder.final_layer_norm.weight" => return names.final_norm.to_owned(),
        _ => {}
    }
    let part = || {
        let (block, part) = name.strip_prefix("encoder.block.")?.split_once('.')?;
        let part = part.strip_suffix(".weight")?;
        let (_, theirs) = names.parts.iter().find(|(ours, _)| *ours == part)?;
        Some(format!("{}.{block}.{theirs}.weight", names.block))
    };
    part().unwrap_or_else(|| name.to_owned())
}

/// Whether a tensor, by its name below the prefix, has no part in the numbers.
pub(super) fn is_inert(below: &str) -> bool {
    // Of the two names of the embedding one is read. A whole T5 in GGUF has its decoder below `dec.`. ComfyUI's file of UMT5 carries
    // its tokenizer's model as a tensor.
    matches!(below, EMBEDDING | OTHER_EMBEDDING | "spiece_model") || below.starts_with("dec.")
}

/// All tensors of the encoder.
pub(super) fn encoder(architecture: &T5EncoderArchitecture, tables: BiasTables) -> TensorList {
    let mut list = Vec::new();
    let a = architecture;
    add(&mut list, EMBEDDING, &[a.vocab_size, a.d_model]);
    for block in 0..tables.count(a.num_layers) {
        let shape = [a.relative_attention_num_buckets, a.num_heads];
        add(&mut list, bias(block), &shape);
    }
    add(&mut list, "encoder.final_layer_norm.weight", &[a.d_model]);
    let inner = a.num_heads * a.d_kv;
    for block in 0..a.num_layers {
        let mut tensor = |name: &str, shape: &[usize]| {
            add(
                &mut list,
                format!("encoder.block.{block}.layer.{name}.weight"),
                shape,
            );
        };
        tensor("0.layer_norm", &[a.d_model]);
        for name in ["q", "k", "v"] {
            tensor(&format!("0.SelfAttention.{name}"), &[inner, a.d_model]);
        }
        tensor("0.SelfAttention.o", &[a.d_model, inner]);
        tensor("1.layer_norm", &[a.d_model]);
        for name in inward(a) {
            tensor(&format!("1.DenseReluDense.{name}"), &[a.d_ff, a.d_model]);
        }
        tensor("1.DenseReluDense.wo", &[a.d_model, a.d_ff]);
    }
    list
}

/// The feed-forward's inward matrices: the activated one first, then the one it gates.
pub(super) fn inward(architecture: &T5EncoderArchitecture) -> &'static [&'static str] {
    if architecture.is_gated_act {
        &["wi_0", "wi_1"]
    } else {
        &["wi"]
    }
}

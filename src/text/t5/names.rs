//! The tensors of a T5 encoder, by canonical name, and where files keep them.
//!
//! Canonical are the names of `T5EncoderModel` in transformers. Single files (`t5xxl_fp16.safetensors`) have the
//! same ones, whole checkpoints have them below a prefix (`text_encoders.t5xxl.transformer.`). The embedding is
//! `shared.weight`, or `encoder.embed_tokens.weight`, or both. GGUF files have llama.cpp's names
//! (`enc.blk.0.attn_q.weight`).

use crate::nn::weights::Weights;
use crate::text::names::{FoundEncoder, add, find};
use crate::text::{Error, TensorList};

use super::{T5, T5EncoderArchitecture};

pub(super) const EMBEDDING: &str = "shared.weight";
const OTHER_EMBEDDING: &str = "encoder.embed_tokens.weight";
const ANCHOR: &str = "encoder.block.0.layer.0.SelfAttention.q.weight";
const LLAMA_CPP_ANCHOR: &str = "enc.blk.0.attn_q.weight";
pub(super) const BIAS: &str =
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
/// A name that gives an encoder away, in each naming.
pub(super) const ANCHORS: &[&str] = &[ANCHOR, LLAMA_CPP_ANCHOR];

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

/// Finds the encoder of this architecture's size.
pub(super) fn locate(
    weights: &Weights,
    architecture: &T5EncoderArchitecture,
) -> Result<FoundEncoder<Naming>, Error> {
    let recognise = |name: &str| {
        let (prefix, naming) = match name.strip_suffix(ANCHOR) {
            Some(prefix) => (
                prefix,
                Naming::HuggingFace {
                    embedding: EMBEDDING,
                },
            ),
            None => (name.strip_suffix(LLAMA_CPP_ANCHOR)?, Naming::LlamaCpp),
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
    let mut found = find(weights, &T5, ANCHOR, recognise, |found| {
        weights
            .shape(&stored(found, ANCHOR))
            .is_some_and(|shape| shape == size)
    })?;
    refuse_umt5(weights, &found.prefix)?;
    if found.naming == Naming::LlamaCpp {
        return Ok(found);
    }
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

/// UMT5 has T5's names and shapes, and a bias table in every block.
fn refuse_umt5(weights: &Weights, prefix: &str) -> Result<(), Error> {
    let is_table = |name: &&String| {
        let Some(below) = name.strip_prefix(prefix) else {
            return false;
        };
        below.starts_with("encoder.block.") && below.ends_with("relative_attention_bias.weight")
            || below.starts_with("enc.blk.") && below.ends_with("attn_rel_b.weight")
    };
    let tables = weights.names().iter().filter(is_table).count();
    if tables > 1 {
        return Err(Error::OfKind(format!(
            "{} is a UMT5 encoder ({tables} relative attention tables, T5 has 1): it is not supported",
            weights.describe()
        )));
    }
    Ok(())
}

/// Where a file keeps the canonical tensor `name`.
pub(super) fn stored(found: &FoundEncoder<Naming>, name: &str) -> String {
    let theirs = match found.naming {
        Naming::HuggingFace { embedding } if name == EMBEDDING => embedding.to_owned(),
        Naming::HuggingFace { .. } => name.to_owned(),
        Naming::LlamaCpp => llama_cpp(name),
    };
    format!("{}{theirs}", found.prefix)
}

/// A name that is unknown stays as it is, and will not be found.
fn llama_cpp(name: &str) -> String {
    match name {
        EMBEDDING => return "token_embd.weight".to_owned(),
        "encoder.final_layer_norm.weight" => return "enc.output_norm.weight".to_owned(),
        _ => {}
    }
    let part = || {
        let (block, part) = name.strip_prefix("encoder.block.")?.split_once('.')?;
        let part = part.strip_suffix(".weight")?;
        let (_, theirs) = LLAMA_CPP.iter().find(|(ours, _)| *ours == part)?;
        Some(format!("enc.blk.{block}.{theirs}.weight"))
    };
    part().unwrap_or_else(|| name.to_owned())
}

/// Whether a tensor, by its name below the prefix, has no part in the numbers.
pub(super) fn is_inert(below: &str) -> bool {
    // Of the two names of the embedding one is read. A whole T5 in GGUF has its decoder below `dec.`.
    matches!(below, EMBEDDING | OTHER_EMBEDDING) || below.starts_with("dec.")
}

/// All tensors of the encoder.
pub(super) fn encoder(architecture: &T5EncoderArchitecture) -> TensorList {
    let mut list = Vec::new();
    let a = architecture;
    add(&mut list, EMBEDDING, &[a.vocab_size, a.d_model]);
    add(
        &mut list,
        BIAS,
        &[a.relative_attention_num_buckets, a.num_heads],
    );
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

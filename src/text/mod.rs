//! Text encoders: captions to token ids, token ids to hidden states and pooled vectors, as an
//! [`EncoderSpec`](spec::EncoderSpec) says.
//!
//! All of a kind of encoder lies in its folder: architecture, rules, tokenizer, tensor names, network, and what is known
//! of its configuration. The rest of the program asks [`Kind`]. All that published recipes disagree about (which layer,
//! which norm, which row is pooled, what is masked) is data, so one network serves every recipe, and what a recipe does
//! not ask for is not computed.
//!
//! Adding a kind is one folder here and one line in [`KINDS`].
//!
//! - `kind`: what a kind is
//! - `spec`, `none`: what a spec says; how a recipe's data says "nothing"
//! - `config`: `config.json`
//! - `tokenizer`: captions to ids, by the vocabulary that a kind reads
//! - `encoder`: finding, loading, running; `spread`: by groups of captions at once
//! - `batch`, `names`, `activation`, `check`: what kinds share
//!
//! # Batches do not change numbers
//!
//! The sequences of a call are sorted by length and laid end to end as rows (`batch.rs`). Everything but
//! attention works on rows, and attention sees one sequence at a time; the kernels compute a row in the same
//! order whatever its neighbours are. So each caption's output is, on a CPU, bit for bit what it would be
//! alone, and no pad is computed that no row asked for.

pub mod activation;
mod batch;
mod check;
pub mod clip;
pub mod config;
mod encoder;
mod error;
mod kind;
mod names;
pub mod none;
pub mod qwen3;
pub mod spec;
mod spread;
pub mod t5;
pub mod tokenizer;

use std::sync::Arc;

use serde_json::{Value, json};

pub use config::ConfigError;
pub use encoder::{Encoded, LocatedEncoder, Residency, TensorList, TextEncoder, weights_digest};
pub use error::Error;
pub use kind::{Architecture, Contradiction, ForwardRecipe, Kind, LoadedNetwork, Misfit, Network};
pub use tokenizer::{Tokenizer, TokenizerIdentity, Tokens};

use crate::nn::weights::Weights;

/// Every kind of text encoder this program knows.
pub const KINDS: &[&dyn Kind] = &[&clip::ClipText, &t5::T5, &qwen3::Qwen3, &t5::Umt5];

/// The kind that recipes and specs call `name`.
///
/// # Errors
/// If there is none.
pub fn kind(name: &str) -> Result<&'static dyn Kind, String> {
    let found = KINDS.iter().find(|kind| kind.name() == name);
    found.copied().ok_or_else(|| {
        let known: Vec<&str> = KINDS.iter().map(|kind| kind.name()).collect();
        format!(
            "expected a kind of text encoder ({}), found `{name}`",
            known.join(", ")
        )
    })
}

/// The architecture that the base models' encoder of a recipe's slot was published with, for checkpoints in single
/// files (`clip_l.safetensors`), which carry no configuration; `None` for other slots.
pub fn published(slot: &str) -> Option<Box<dyn Architecture>> {
    KINDS.iter().find_map(|kind| kind.published(slot))
}

/// As [`published`], of the size that the file's `weights` are of where base models have several under one name.
pub fn published_for(slot: &str, weights: &Weights) -> Option<Box<dyn Architecture>> {
    KINDS
        .iter()
        .find_map(|kind| kind.published_for(slot, weights))
}

/// The network that the fields `architecture` and `forward` of a spec describe.
///
/// # Errors
/// If their kind is not known or not the same, or a field is missing, unknown or not what it must be.
pub fn network(architecture: Value, forward: Value) -> Result<Arc<dyn Network>, String> {
    let (kind, architecture) = untagged(architecture, "architecture")?;
    let (other, forward) = untagged(forward, "forward")?;
    if kind != other {
        return Err(format!(
            "the network is a {}, the forward rules are those of a {}",
            kind.title(),
            other.title()
        ));
    }
    kind.network(architecture, forward)
        .map_err(|e| format!("{}: {e}", kind.name()))
}

/// The fields `architecture` and `forward` of a network's spec.
fn network_json(network: &dyn Network) -> [Value; 2] {
    [network.architecture().to_json(), network.forward()].map(|mut fields| {
        if let Value::Object(fields) = &mut fields {
            fields.insert("kind".to_owned(), json!(network.kind()));
        }
        fields
    })
}

/// The kind that an object names, and its other fields.
fn untagged(mut value: Value, field: &str) -> Result<(&'static dyn Kind, Value), String> {
    let name = value
        .as_object_mut()
        .and_then(|object| object.remove("kind"));
    let name = name.as_ref().and_then(Value::as_str);
    let name = name.ok_or_else(|| format!("`{field}` does not say its `kind`"))?;
    Ok((kind(name)?, value))
}

#[cfg(test)]
mod tests;

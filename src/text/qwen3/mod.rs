//! The decoder-only language model Qwen3, of every size, as a text encoder: hidden states of chosen layers.
//!
//! - `architecture`: `config.json`, and what was published
//! - `rules`: which layers are taken, what becomes of the rows of pads, and the text around a caption
//! - `tokenizer`: byte-level BPE, whose special tokens lie beyond the vocabulary
//! - `chat`: what the checkpoint's own tokenizer would put around a caption
//! - `names`: where files keep the tensors
//! - `encoder`, `rotary`: the network, and its positions

mod architecture;
mod chat;
mod encoder;
mod names;
mod rotary;
mod rules;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::config::{ConfigError, ConfigFields};
use super::spec::{PadText, TokenRules};
use super::tokenizer::TokenizerFormat;
use super::{
    Architecture, Error, ForwardRecipe, Kind, LoadedNetwork, LocatedEncoder, Network, Residency,
    Tokenizer, Tokens,
};
use crate::nn::weights::Weights;

pub use architecture::Qwen3Architecture;
pub use rules::{Qwen3Forward, Qwen3PadRows};

/// The kind `qwen3`.
#[derive(Debug)]
pub struct Qwen3;

impl Kind for Qwen3 {
    fn name(&self) -> &'static str {
        "qwen3"
    }

    fn word(&self) -> &'static str {
        "qwen3"
    }

    fn title(&self) -> &'static str {
        "Qwen3 language model"
    }

    fn weights(&self) -> &'static str {
        "Qwen3 weights, a safetensors or GGUF file or a folder"
    }

    fn anchors(&self) -> &'static [&'static str] {
        names::ANCHORS
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3"]
    }

    fn fields(&self) -> &'static str {
        include_str!("fields.toml")
    }

    fn tokenizer(&self) -> &'static TokenizerFormat {
        &tokenizer::FORMAT
    }

    fn architecture(&self, config: ConfigFields<'_>) -> Result<Box<dyn Architecture>, ConfigError> {
        Ok(Box::new(architecture::read(config)?))
    }

    fn published(&self, slot: &str) -> Option<Box<dyn Architecture>> {
        Some(Box::new(architecture::published(slot)?))
    }

    fn published_for(&self, slot: &str, weights: &Weights) -> Option<Box<dyn Architecture>> {
        Some(Box::new(names::published_for(slot, weights)?))
    }

    fn check_tokens(&self, rules: &Map<String, Value>, _: PadText) -> Result<(), String> {
        rules::check_tokens(rules)
    }

    fn tokenizer_notes(
        &self,
        rules: &TokenRules,
        tokenizer: &Tokenizer,
        path: &Path,
    ) -> Vec<String> {
        chat::notes(rules, tokenizer, path)
    }

    fn forward_recipe(&self, forward: Value) -> serde_json::Result<Arc<dyn ForwardRecipe>> {
        let rules: rules::Qwen3ForwardRecipe = serde_json::from_value(forward)?;
        Ok(Arc::new(rules))
    }

    fn network(&self, architecture: Value, forward: Value) -> serde_json::Result<Arc<dyn Network>> {
        Ok(Arc::new(Qwen3Network {
            architecture: serde_json::from_value(architecture)?,
            forward: serde_json::from_value(forward)?,
        }))
    }
}

/// A language model, and what is taken from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Qwen3Network {
    /// Sizes and constants; all of them count.
    pub architecture: Qwen3Architecture,
    /// What is taken from it.
    pub forward: Qwen3Forward,
}

impl Network for Qwen3Network {
    fn architecture(&self) -> &dyn Architecture {
        &self.architecture
    }

    fn forward(&self) -> Value {
        serde_json::json!(self.forward)
    }

    fn rows(&self, tokens: &Tokens) -> usize {
        self.forward.pad_rows.of(tokens)
    }

    fn width(&self) -> usize {
        self.architecture.hidden_size * self.forward.hidden_layers.len()
    }

    fn locate(&self, weights: &Weights) -> Result<LocatedEncoder, Error> {
        encoder::locate(self, weights)
    }

    fn load(
        &self,
        located: &LocatedEncoder,
        residency: Residency,
    ) -> Result<Box<dyn LoadedNetwork>, Error> {
        Ok(Box::new(encoder::Qwen3Encoder::load(
            self,
            &located.weights,
            residency,
        )?))
    }
}

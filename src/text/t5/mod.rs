//! The encoder of T5 v1.1, of every size. UMT5's is the same but for its position bias and its tokenizer (`umt5`).
//!
//! - `architecture`: `config.json`, and what was published
//! - `rules`: what is masked, and what becomes of the rows of pads
//! - `tokenizer`: SentencePiece's unigram pieces; `sentencepiece`, `charsmap`: the two binary formats inside, distrusted
//! - `implementations`: what other programs make of its vocabulary
//! - `names`: where files keep the tensors
//! - `encoder`, `bias`: the network, and its relative position bias

mod architecture;
mod bias;
mod charsmap;
mod encoder;
mod implementations;
mod names;
mod rules;
mod sentencepiece;
mod tokenizer;
pub mod umt5;

use std::sync::Arc;

use serde_json::{Map, Value};

use super::config::{ConfigError, ConfigFields};
use super::spec::PadText;
use super::tokenizer::{TokenizerFormat, check_only_implementation, implementation_default};
use super::{
    Architecture, Error, ForwardRecipe, Kind, LoadedNetwork, LocatedEncoder, Network, Residency,
    Tokens,
};
use crate::nn::weights::Weights;

pub use architecture::T5EncoderArchitecture;
pub use rules::{T5Forward, T5Mask, T5PadRows};
pub use umt5::Umt5;

/// The kind `t5_encoder`.
#[derive(Debug)]
pub struct T5;

impl Kind for T5 {
    fn name(&self) -> &'static str {
        "t5_encoder"
    }

    fn word(&self) -> &'static str {
        "t5"
    }

    fn title(&self) -> &'static str {
        "T5 encoder"
    }

    fn weights(&self) -> &'static str {
        "T5 weights, a safetensors or GGUF file or a folder"
    }

    fn anchors(&self) -> &'static [&'static str] {
        names::ANCHORS
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["t5"]
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

    fn check_tokens(&self, rules: &Map<String, Value>, _: PadText) -> Result<(), String> {
        check_only_implementation(rules, &implementations::NAMES)
    }

    fn token_defaults(&self) -> Map<String, Value> {
        implementation_default()
    }

    fn forward_recipe(&self, forward: Value) -> serde_json::Result<Arc<dyn ForwardRecipe>> {
        Ok(Arc::new(serde_json::from_value::<T5Forward>(forward)?))
    }

    fn network(&self, architecture: Value, forward: Value) -> serde_json::Result<Arc<dyn Network>> {
        Ok(Arc::new(T5Network {
            architecture: serde_json::from_value(architecture)?,
            forward: serde_json::from_value(forward)?,
        }))
    }
}

/// An encoder, and what is taken from it.
#[derive(Clone, Debug, PartialEq)]
pub struct T5Network {
    /// Sizes and constants; all of them count.
    pub architecture: T5EncoderArchitecture,
    /// What is taken from it.
    pub forward: T5Forward,
}

impl T5Network {
    fn stack(&self) -> Stack {
        Stack {
            kind: &T5,
            architecture: self.architecture.clone(),
            forward: self.forward.clone(),
            tables: names::BiasTables::First,
        }
    }
}

/// An encoder of either kind, and what is taken from it.
#[derive(Clone, Debug)]
struct Stack {
    /// Its kind.
    kind: &'static dyn Kind,
    /// Sizes and constants.
    architecture: T5EncoderArchitecture,
    /// What is taken from it.
    forward: T5Forward,
    /// Which blocks have a position bias of their own.
    tables: names::BiasTables,
}

impl Network for T5Network {
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
        self.architecture.d_model
    }

    fn locate(&self, weights: &Weights) -> Result<LocatedEncoder, Error> {
        encoder::locate(&self.stack(), weights)
    }

    fn load(
        &self,
        located: &LocatedEncoder,
        residency: Residency,
    ) -> Result<Box<dyn LoadedNetwork>, Error> {
        Ok(Box::new(encoder::T5Encoder::load(
            self.stack(),
            &located.weights,
            residency,
        )?))
    }
}

//! The encoder of UMT5, of every size: T5's with a position bias of its own in every block, and another tokenizer.
//! The two have the same names and shapes of tensors otherwise, so that each kind refuses the other's files.
//!
//! - `architecture`: `config.json`, and what was published
//! - `rules`: what is masked, and what becomes of the rows of pads, as in T5
//! - `tokenizer`: UMT5's pieces, and what transformers 4 makes of them

mod architecture;
mod rules;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::sync::Arc;

use serde_json::{Map, Value};

use super::encoder::{self, T5Encoder};
use super::names::{BiasTables, UMT5_ANCHORS};
use super::{Stack, T5Forward};
use crate::nn::weights::Weights;
use crate::text::config::{ConfigError, ConfigFields};
use crate::text::spec::PadText;
use crate::text::tokenizer::{TokenizerFormat, check_only_implementation, implementation_default};
use crate::text::{
    Architecture, Error, ForwardRecipe, Kind, LoadedNetwork, LocatedEncoder, Network, Residency,
    Tokens,
};

pub use architecture::Umt5EncoderArchitecture;
pub use rules::Umt5ForwardRecipe;

/// The kind `umt5_encoder`.
#[derive(Debug)]
pub struct Umt5;

impl Kind for Umt5 {
    fn name(&self) -> &'static str {
        "umt5_encoder"
    }

    fn word(&self) -> &'static str {
        "umt5"
    }

    fn title(&self) -> &'static str {
        "UMT5 encoder"
    }

    fn weights(&self) -> &'static str {
        "UMT5 weights, a safetensors, GGUF or PyTorch (.pth) file or a folder"
    }

    fn anchors(&self) -> &'static [&'static str] {
        UMT5_ANCHORS
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["umt5"]
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
        check_only_implementation(rules, &[tokenizer::FAST])
    }

    fn token_defaults(&self) -> Map<String, Value> {
        implementation_default()
    }

    fn forward_recipe(&self, forward: Value) -> serde_json::Result<Arc<dyn ForwardRecipe>> {
        Ok(Arc::new(serde_json::from_value::<Umt5ForwardRecipe>(
            forward,
        )?))
    }

    fn network(&self, architecture: Value, forward: Value) -> serde_json::Result<Arc<dyn Network>> {
        Ok(Arc::new(Umt5Network {
            architecture: serde_json::from_value(architecture)?,
            forward: serde_json::from_value(forward)?,
        }))
    }
}

/// An encoder, and what is taken from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Umt5Network {
    /// Sizes and constants; all of them count.
    pub architecture: Umt5EncoderArchitecture,
    /// What is taken from it.
    pub forward: T5Forward,
}

impl Umt5Network {
    fn stack(&self) -> Stack {
        Stack {
            kind: &Umt5,
            architecture: self.architecture.0.clone(),
            forward: self.forward.clone(),
            tables: BiasTables::EveryBlock,
        }
    }
}

impl Network for Umt5Network {
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
        self.architecture.0.d_model
    }

    fn locate(&self, weights: &Weights) -> Result<LocatedEncoder, Error> {
        encoder::locate(&self.stack(), weights)
    }

    fn load(
        &self,
        located: &LocatedEncoder,
        residency: Residency,
    ) -> Result<Box<dyn LoadedNetwork>, Error> {
        let encoder = T5Encoder::load(self.stack(), &located.weights, residency)?;
        Ok(Box::new(encoder))
    }
}

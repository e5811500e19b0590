//! CLIP text towers: CLIP-L, OpenCLIP ViT-bigG-14 and every size of them.
//!
//! - `architecture`: `config.json`, and what was published
//! - `rules`: which layer, which norm, which row is pooled, what is masked
//! - `tokenizer`: byte-level BPE
//! - `chunks`: captions longer than a window
//! - `implementations`: what other programs make of its vocabulary
//! - `names`, `projection`: where files keep the tensors
//! - `plan`: what a spec asks of the tower, checked against the files
//! - `tower`: the network

mod architecture;
mod chunks;
mod implementations;
pub(super) mod names;
mod plan;
mod projection;
mod rules;
mod tokenizer;
mod tower;

use std::sync::Arc;

use serde_json::{Map, Value};

use super::config::{ConfigError, ConfigFields};
use super::spec::PadText;
use super::tokenizer::{TokenizerFormat, implementation_default};
use super::{
    Architecture, Error, ForwardRecipe, Kind, LoadedNetwork, LocatedEncoder, Network, Residency,
    Tokens,
};
use crate::nn::weights::Weights;

use tokenizer::{BOS, EOS};

pub use architecture::ClipTextArchitecture;
pub use chunks::Chunks;
pub use rules::{ClipForward, ClipForwardRecipe, PooledRule, ProjectionRule};

const MODEL_TYPES: &[&str] = &["clip_text_model", "clip"];

/// The kind `clip_text`.
#[derive(Debug)]
pub struct ClipText;

impl Kind for ClipText {
    fn name(&self) -> &'static str {
        "clip_text"
    }

    fn word(&self) -> &'static str {
        "clip"
    }

    fn title(&self) -> &'static str {
        "CLIP text encoder"
    }

    fn weights(&self) -> &'static str {
        "CLIP weights, a safetensors file or folder"
    }

    fn anchors(&self) -> &'static [&'static str] {
        &["token_embedding.weight"]
    }

    fn model_types(&self) -> &'static [&'static str] {
        MODEL_TYPES
    }

    fn nested(&self) -> &'static [&'static str] {
        architecture::NESTED
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

    fn check_tokens(&self, rules: &Map<String, Value>, pad_text: PadText) -> Result<(), String> {
        rules::check_tokens(rules, pad_text)
    }

    fn token_defaults(&self) -> Map<String, Value> {
        let mut defaults = implementation_default();
        defaults.insert(chunks::CHUNKS.to_owned(), 1.into());
        defaults
    }

    fn pads_are_last(&self, rules: &Map<String, Value>) -> bool {
        rules.get(chunks::CHUNKS).is_none_or(|chunks| *chunks == 1)
    }

    fn forward_recipe(&self, forward: Value) -> serde_json::Result<Arc<dyn ForwardRecipe>> {
        Ok(Arc::new(serde_json::from_value::<ClipForwardRecipe>(
            forward,
        )?))
    }

    fn network(&self, architecture: Value, forward: Value) -> serde_json::Result<Arc<dyn Network>> {
        Ok(Arc::new(ClipTextNetwork {
            architecture: serde_json::from_value(architecture)?,
            forward: serde_json::from_value(forward)?,
        }))
    }
}

/// A tower, and what is taken from it.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipTextNetwork {
    /// Sizes and constants; in a spec only those that the rules use.
    pub architecture: ClipTextArchitecture,
    /// What is taken from it.
    pub forward: ClipForward,
}

impl Network for ClipTextNetwork {
    fn architecture(&self) -> &dyn Architecture {
        &self.architecture
    }

    fn forward(&self) -> Value {
        serde_json::json!(self.forward)
    }

    fn rows(&self, tokens: &Tokens) -> usize {
        // The ids are of all windows.
        self.forward.hidden_layer.map_or(0, |_| tokens.ids.len())
    }

    fn width(&self) -> usize {
        self.architecture.hidden_size
    }

    fn pooled(&self) -> usize {
        let (a, rules) = (&self.architecture, &self.forward);
        match (rules.pooled, a.projection_dim) {
            (PooledRule::None, _) => 0,
            (_, Some(width)) if rules.projection => width,
            _ => a.hidden_size,
        }
    }

    fn locate(&self, weights: &Weights) -> Result<LocatedEncoder, Error> {
        plan::locate(self, weights)
    }

    fn load(
        &self,
        located: &LocatedEncoder,
        residency: Residency,
    ) -> Result<Box<dyn LoadedNetwork>, Error> {
        Ok(Box::new(tower::ClipTextTower::load(
            self,
            &located.weights,
            residency,
        )?))
    }
}

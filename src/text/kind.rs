//! What a kind of text encoder is: all that the rest of the program asks of one. Each kind's folder implements these
//! traits; nothing outside it names its types.
//!
//! An encoder goes through four of them. A checkpoint's `config.json` gives an [`Architecture`], a recipe's data a
//! [`ForwardRecipe`]; together they are a [`Network`], which stands in the spec; with weights, that is a
//! [`LoadedNetwork`].

use std::any::Any;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::config::{ConfigError, ConfigFields};
use super::spec::{PadText, TokenRules};
use super::tokenizer::{Tokenizer, TokenizerFormat, Tokens};
use super::{Encoded, Error, LocatedEncoder, Residency};
use crate::monitor::Stop;
use crate::nn::weights::Weights;

/// A kind of text encoder.
pub trait Kind: Sync {
    /// What recipes and specs call it: `clip_text`. Never changes, as fingerprints cover it.
    fn name(&self) -> &'static str;

    /// What a person calls it: `clip`.
    fn word(&self) -> &'static str;

    /// What it is: `CLIP text encoder`.
    fn title(&self) -> &'static str;

    /// What to name where its weights are missing: `CLIP weights, a safetensors file or folder`.
    fn weights(&self) -> &'static str;

    /// Ends of the names of tensors that files of this kind have, in every naming.
    fn anchors(&self) -> &'static [&'static str];

    /// The `model_type`s of the configurations that are to be explained as this kind's, whether it can use them or not.
    fn model_types(&self) -> &'static [&'static str];

    /// The objects in its configuration whose fields count as the configuration's own.
    fn nested(&self) -> &'static [&'static str] {
        &[]
    }

    /// What each field does to the numbers, as TOML: `[[config]]` for those of its `config.json`, `[[recipe]]` for the
    /// rules that are its own (`forward.mask`).
    fn fields(&self) -> &'static str;

    /// The files that its tokenizers are kept in, and how they are read.
    fn tokenizer(&self) -> &'static TokenizerFormat;

    /// The architecture that a configuration describes, with transformers' defaults.
    ///
    /// # Errors
    /// If it does not describe such a network.
    fn architecture(&self, config: ConfigFields<'_>) -> Result<Box<dyn Architecture>, ConfigError>;

    /// The architecture that base models were published with, for files without a configuration, by the recipes' name
    /// of the encoder; `None` for other names.
    fn published(&self, slot: &str) -> Option<Box<dyn Architecture>>;

    /// [`Self::published`], of the size that `weights` are of where base models have several under one name.
    fn published_for(&self, slot: &str, _weights: &Weights) -> Option<Box<dyn Architecture>> {
        self.published(slot)
    }

    /// Checks the token rules that are this kind's own; `pad_text` is one that all kinds have.
    ///
    /// # Errors
    /// If it has no such rule, or the rule cannot be.
    fn check_tokens(&self, rules: &Map<String, Value>, _pad_text: PadText) -> Result<(), String> {
        match rules.keys().next() {
            None => Ok(()),
            Some(name) => Err(format!("unknown field `{name}`")),
        }
    }

    /// The token rules of its own that came after recipes and specs were first written, each with the value that stands
    /// for what was before: a canonical form leaves it out.
    fn token_defaults(&self) -> Map<String, Value> {
        Map::new()
    }

    /// What a person should know of the tokenizer that was read from `path`, as sentences: where programs that ask it for
    /// more than ids get something else than `rules` say.
    fn tokenizer_notes(
        &self,
        _rules: &TokenRules,
        _tokenizer: &Tokenizer,
        _path: &Path,
    ) -> Vec<String> {
        Vec::new()
    }

    /// Whether the pads of a sequence are its last rows under these rules, as zeroing or masking them needs.
    fn pads_are_last(&self, _rules: &Map<String, Value>) -> bool {
        true
    }

    /// The forward rules of a recipe, from its data.
    ///
    /// # Errors
    /// If a field is missing, unknown or not what it must be.
    fn forward_recipe(&self, forward: Value) -> serde_json::Result<Arc<dyn ForwardRecipe>>;

    /// The network of a spec, from its JSON.
    ///
    /// # Errors
    /// If a field is missing, unknown or not what it must be.
    fn network(&self, architecture: Value, forward: Value) -> serde_json::Result<Arc<dyn Network>>;
}

impl dyn Kind {
    /// `rules` without those that have their default.
    pub(crate) fn without_defaults(&self, rules: &Map<String, Value>) -> Map<String, Value> {
        let defaults = self.token_defaults();
        let differ = rules
            .iter()
            .filter(|(name, value)| defaults.get(*name) != Some(value));
        differ
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }
}

impl fmt::Debug for dyn Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// By name: kinds are types without fields, whose addresses need not differ.
impl PartialEq for dyn Kind {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Serialize for dyn Kind {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

/// The sizes and constants of a network, as a configuration has them.
pub trait Architecture: Any + fmt::Debug + Send + Sync {
    /// Its kind.
    fn kind(&self) -> &'static dyn Kind;

    /// Its fields, as specs have them.
    fn to_json(&self) -> Value;

    /// Rows of the token embedding.
    fn vocab_size(&self) -> usize;

    /// Width of the residual stream.
    fn width(&self) -> usize;

    /// The end-of-text id that the tokenizers of such an encoder have, for where there is none to ask.
    fn end_id(&self) -> u32;
}

impl dyn Architecture {
    /// The architecture in the type of its kind.
    ///
    /// # Errors
    /// If it is another kind's than the one that the recipe wants.
    pub(super) fn of_kind<A: Architecture>(&self, wanted: &dyn Kind) -> Result<&A, Misfit> {
        // Only `dyn Any` itself can be downcast.
        let any: &dyn Any = self;
        any.downcast_ref().ok_or_else(|| Misfit {
            field: "network",
            why: format!(
                "the recipe wants a {}, the checkpoint has a {}",
                wanted.title(),
                self.kind().title()
            ),
        })
    }
}

// By the JSON that fingerprints cover: what they cannot tell apart is equal.
impl PartialEq for dyn Architecture {
    fn eq(&self, other: &Self) -> bool {
        self.kind() == other.kind() && self.to_json() == other.to_json()
    }
}

/// What a recipe takes from a network, before a checkpoint is known.
pub trait ForwardRecipe: fmt::Debug + Send + Sync {
    /// Its kind.
    fn kind(&self) -> &'static dyn Kind;

    /// Its fields, as the recipe's data has them.
    fn to_json(&self) -> Value;

    /// The rule by which no sequence is kept (`forward.hidden_layer = none`); `None`: one is.
    fn no_sequence(&self) -> Option<&'static str>;

    /// Whether there is a pooled vector.
    fn is_pooled(&self) -> bool;

    /// Whether rows of pads but the first are not kept, which only a denoiser that sees no other can do without.
    fn keeps_one_pad(&self) -> bool {
        false
    }

    /// Checks the rules against each other and the assembly; `slot` is the recipe's name of the encoder, `pads_kept`
    /// whether the assembly has rows of pads stay as the encoder made them.
    ///
    /// # Errors
    /// If two rules exclude each other.
    fn check(&self, slot: &str, pads_kept: bool) -> Result<(), Contradiction>;

    /// What a spec says of a network of `architecture` under these rules: nothing that has no effect. In `tokens`, what
    /// has none takes one fixed value. `end_id` is the tokenizer's end-of-text id.
    ///
    /// # Errors
    /// If the rules do not fit the architecture.
    fn network(
        &self,
        architecture: &dyn Architecture,
        tokens: &mut TokenRules,
        end_id: u32,
    ) -> Result<Arc<dyn Network>, Misfit>;
}

/// Rules that exclude each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// The fields, with their values.
    pub fields: String,
    /// Why that cannot be.
    pub why: String,
}

/// A rule that does not fit a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// The field, below its encoder: `tokens.max_tokens`.
    pub field: &'static str,
    /// Expected and found.
    pub why: String,
}

/// A network and what is taken from it, as a spec has them.
pub trait Network: fmt::Debug + Send + Sync {
    /// Its kind.
    fn kind(&self) -> &'static dyn Kind {
        self.architecture().kind()
    }

    /// The effective architecture.
    fn architecture(&self) -> &dyn Architecture;

    /// The forward rules' fields.
    fn forward(&self) -> Value;

    /// How many rows its sequence has for a caption's tokens; none where it keeps no sequence.
    fn rows(&self, tokens: &Tokens) -> usize;

    /// How many numbers a row of its sequence has.
    fn width(&self) -> usize;

    /// How many numbers its pooled vector has, none where it pools nothing.
    fn pooled(&self) -> usize {
        0
    }

    /// How many numbers its outputs for a caption's tokens have together.
    fn numbers(&self, tokens: &Tokens) -> usize {
        self.rows(tokens) * self.width() + self.pooled()
    }

    /// Finds the encoder among `weights` by its names (alone or below a prefix), and checks by the headers that all of
    /// it is there and nothing more.
    ///
    /// # Errors
    /// If architecture and rules do not fit each other or the files.
    fn locate(&self, weights: &Weights) -> Result<LocatedEncoder, Error>;

    /// Loads what the rules need of what [`Self::locate`] found.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    fn load(
        &self,
        located: &LocatedEncoder,
        residency: Residency,
    ) -> Result<Box<dyn LoadedNetwork>, Error>;
}

/// A network, ready to run.
pub trait LoadedNetwork: Send + Sync {
    /// One output a caption, in their order, whatever captions are encoded together. At least one token of each comes
    /// before its pads. A network whose layers are read from the file for many captions asks `stop` between them.
    ///
    /// # Errors
    /// If a caption's tokens do not fit the network, or the device fails; [`Error::Stopped`] where `stop` says so.
    fn encode(&self, captions: &[Tokens], stop: Stop) -> Result<Vec<Encoded>, Error>;

    /// How many rows are computed of a caption, or about so many.
    fn rows(&self, tokens: &Tokens) -> usize {
        tokens.ids.len()
    }
}

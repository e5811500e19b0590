//! One encoder of a recipe, and the [`EncoderSpec`] it becomes for a checkpoint.
//!
//! A spec holds only what can change the numbers. A rule that cannot, in the company of the others, takes one
//! fixed value (the truncation rule where nothing is ever cut, the pad id where nothing is padded), so
//! that recipes which differ in words only share their entries. What has an effect in a network, its kind knows.

use serde_json::Value;

use super::Error;
use super::rules::{EncoderRules, Pad, TokenRecipe};
use crate::digest::Digest;
use crate::text::spec::{ENCODER_SPEC_VERSION, EncoderSpec, TokenRules, Truncation};
use crate::text::{Architecture, Kind, TokenizerIdentity};

/// One encoder of a recipe.
#[derive(Clone, Debug)]
pub struct EncoderRecipe {
    /// What the recipe calls it: `clip_l`, `t5`.
    pub slot: String,
    /// The folder of its weights in a diffusers checkpoint: `text_encoder_3`.
    pub component: String,
    /// The folder of its tokenizer in a diffusers checkpoint: `tokenizer_3`.
    pub tokenizer_component: String,
    /// What it is given, what is taken from it, and in which precision.
    pub rules: EncoderRules,
}

impl EncoderRules {
    /// From the JSON of a recipe's fields.
    pub(crate) fn from_json(kind: &'static dyn Kind, mut rules: Value) -> Result<Self, String> {
        // A group that is missing is null, which none can be read from.
        let mut take = |key: &str| rules.get_mut(key).map_or(Value::Null, Value::take);
        let text = |e: serde_json::Error| e.to_string();
        let tokens: TokenRecipe = serde_json::from_value(take("tokens")).map_err(text)?;
        kind.check_tokens(&tokens.of_kind, tokens.pad_text)?;
        Ok(Self {
            network: kind,
            tokens,
            forward: kind.forward_recipe(take("forward")).map_err(text)?,
            precision: serde_json::from_value(take("precision")).map_err(text)?,
            absent: serde_json::from_value(take("absent")).map_err(text)?,
        })
    }
}

impl EncoderRecipe {
    /// The full description of this encoder for a checkpoint.
    ///
    /// `architecture` is as the checkpoint's configuration has it; the spec's keeps only what the rules use.
    ///
    /// # Errors
    /// If the rules do not fit the checkpoint: another kind of network, a layer it does not have, more tokens
    /// than positions, a token beyond the vocabulary, no `text_projection` where one is applied.
    pub fn spec(
        &self,
        architecture: &dyn Architecture,
        weights: Digest,
        tokenizer: TokenizerIdentity,
    ) -> Result<EncoderSpec, Error> {
        let mut tokens = self.tokens(tokenizer.end_id);
        let rules = &self.rules.forward;
        let network = rules
            .network(architecture, &mut tokens, tokenizer.end_id)
            .map_err(|misfit| self.does_not_fit(misfit.field, misfit.why))?;
        // After the network's rules, which may have set the pad id to 0 where it has no effect.
        self.check_vocabulary(architecture.vocab_size(), &tokens, tokenizer.end_id)?;
        Ok(EncoderSpec {
            version: ENCODER_SPEC_VERSION,
            network,
            weights,
            tokenizer: tokenizer.digest,
            tokens,
            precision: self.rules.precision,
        })
    }

    /// The token rules, for a tokenizer with that end-of-text id.
    pub fn tokens(&self, end_id: u32) -> TokenRules {
        let rules = &self.rules.tokens;
        TokenRules {
            cleanup: rules.cleanup.clone(),
            min_tokens: rules.min_tokens,
            max_tokens: rules.max_tokens,
            // Where nothing is ever cut, where it is cut has no effect.
            truncation: match rules.max_tokens {
                None => Truncation::Tokens,
                Some(_) => rules.truncation,
            },
            // `end` and its number are one rule, so that recipes that write it either way share entries.
            pad_id: match rules.pad {
                Pad::End => end_id,
                Pad::Id(id) => id,
            },
            pad_text: rules.pad_text,
            of_kind: self.rules.network.without_defaults(&rules.of_kind),
        }
    }

    /// The recipe's field behind a path in this encoder's spec, where it is a rule: `tokens.pad_id` is
    /// `clip_g.tokens.pad`. `None` for what the checkpoint decides (architecture, weights, tokenizer).
    pub fn field_behind(&self, spec_path: &str) -> Option<String> {
        let path = match spec_path {
            "tokens.pad_id" => "tokens.pad",
            // A spec names the kind twice, a recipe once.
            "forward.kind" | "architecture.kind" => "network",
            path if ["tokens.", "forward.", "precision."]
                .iter()
                .any(|p| path.starts_with(p)) =>
            {
                path
            }
            _ => return None,
        };
        Some(format!("{}.{path}", self.slot))
    }

    fn check_vocabulary(
        &self,
        vocab_size: usize,
        tokens: &TokenRules,
        end_id: u32,
    ) -> Result<(), Error> {
        let beyond = |id: u32| usize::try_from(id).map_or(true, |id| id >= vocab_size);
        if beyond(end_id) {
            return Err(self.does_not_fit(
                "tokens",
                format!(
                    "its tokenizer's end-of-text id is {end_id}, its embedding has {vocab_size} rows: \
                     they belong to different models"
                ),
            ));
        }
        if beyond(tokens.pad_id) {
            return Err(self.does_not_fit(
                "tokens.pad",
                format!(
                    "expected an id below vocab_size {vocab_size}, found {}",
                    tokens.pad_id
                ),
            ));
        }
        Ok(())
    }

    fn does_not_fit(&self, field: &str, why: String) -> Error {
        Error::DoesNotFit {
            slot: self.component.clone(),
            field: format!("{}.{field}", self.slot),
            why,
        }
    }
}

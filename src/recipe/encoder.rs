//! One encoder of a recipe, and the [`EncoderSpec`] it becomes for a checkpoint.
//!
//! A spec holds only what can change the numbers. A rule that cannot, in the company of the others, takes one
//! fixed value here (the truncation rule where nothing is ever cut, the pad id where nothing is padded), so
//! that recipes which differ in words only share their entries.

use serde_json::Value;

use crate::digest::Digest;

use super::Error;
use super::rules::{ClipForwardRecipe, EncoderRules, ForwardRecipe, Network, Pad, Projection};
use super::spec::{
    Architecture, ClipForward, ClipTextArchitecture, ENCODER_SPEC_VERSION, EncoderMask,
    EncoderSpec, ForwardRules, PadRows, PadText, PooledRule, T5Forward, TokenRules, Truncation,
};

/// One encoder of a recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderRecipe {
    /// What the recipe calls it: `clip_l`, `t5`.
    pub slot: String,
    /// The folder of its weights in a diffusers checkpoint: `text_encoder_3`.
    pub component: String,
    /// The folder of its tokenizer in a diffusers checkpoint: `tokenizer_3`.
    pub tokenizer_component: String,
    /// Its rules.
    pub rules: EncoderRules,
}

/// What a spec needs to know of a tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenizerIdentity {
    /// The digest of its canonical form.
    pub digest: Digest,
    /// Its end-of-text id.
    pub end_id: u32,
}

impl EncoderRules {
    /// From the JSON of a recipe's fields.
    pub(super) fn from_json(network: Network, mut rules: Value) -> serde_json::Result<Self> {
        let mut take = |key: &str| rules.get_mut(key).map_or(Value::Null, Value::take);
        let forward = take("forward");
        Ok(Self {
            network,
            tokens: serde_json::from_value(take("tokens"))?,
            forward: match network {
                Network::ClipText => ForwardRecipe::ClipText(serde_json::from_value(forward)?),
                Network::T5Encoder => ForwardRecipe::T5Encoder(serde_json::from_value(forward)?),
            },
            precision: serde_json::from_value(take("precision"))?,
            absent: serde_json::from_value(take("absent"))?,
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
        architecture: &Architecture,
        weights: Digest,
        tokenizer: TokenizerIdentity,
    ) -> Result<EncoderSpec, Error> {
        let mut tokens = self.tokens(tokenizer.end_id);
        let (architecture, forward) = match (architecture, &self.rules.forward) {
            (Architecture::ClipText(clip), ForwardRecipe::ClipText(rules)) => {
                self.check_clip(clip, rules)?;
                let (clip, forward) = effective_clip(clip, rules, tokenizer.end_id);
                let pads_unseen =
                    forward.hidden_layer.is_none() && tokens.pad_id <= tokenizer.end_id;
                forget_pads(&mut tokens, pads_unseen);
                (
                    Architecture::ClipText(clip),
                    ForwardRules::ClipText(forward),
                )
            }
            (Architecture::T5Encoder(t5), ForwardRecipe::T5Encoder(rules)) => {
                forget_pads(&mut tokens, rules.pad_rows == PadRows::Drop);
                let forward = T5Forward {
                    mask: rules.mask,
                    pad_rows: rules.pad_rows,
                };
                (
                    Architecture::T5Encoder(t5.clone()),
                    ForwardRules::T5Encoder(forward),
                )
            }
            (found, _) => {
                return Err(self.does_not_fit(
                    "network",
                    format!(
                        "the recipe wants a {}, the checkpoint has a {}",
                        self.rules.network,
                        found.network()
                    ),
                ));
            }
        };
        self.check_vocabulary(&architecture, &tokens, tokenizer.end_id)?;
        Ok(EncoderSpec {
            version: ENCODER_SPEC_VERSION,
            architecture,
            weights,
            tokenizer: tokenizer.digest,
            tokens,
            forward,
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
            truncation: match rules.max_tokens {
                None => Truncation::Tokens,
                Some(_) => rules.truncation,
            },
            pad_id: match rules.pad {
                Pad::End => end_id,
                Pad::Id(id) => id,
            },
            pad_text: rules.pad_text,
        }
    }

    /// The recipe's field behind a path in this encoder's spec, where it is a rule: `tokens.pad_id` is
    /// `clip_g.tokens.pad`. `None` for what the checkpoint decides (architecture, weights, tokenizer).
    pub fn field_behind(&self, spec_path: &str) -> Option<String> {
        let path = match spec_path {
            "tokens.pad_id" => "tokens.pad",
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

    fn check_clip(
        &self,
        clip: &ClipTextArchitecture,
        rules: &ClipForwardRecipe,
    ) -> Result<(), Error> {
        if let Some(layer) = rules.hidden_layer {
            let states = clip.num_hidden_layers + 1;
            if layer >= 0 || usize::try_from(layer.unsigned_abs()).is_ok_and(|l| l > states) {
                return Err(self.does_not_fit(
                    "forward.hidden_layer",
                    format!(
                        "expected -1 to -{states} ({} layers and their input), found {layer}",
                        clip.num_hidden_layers
                    ),
                ));
            }
        }
        let positions = clip.max_position_embeddings;
        match self.rules.tokens.max_tokens {
            Some(most) if most <= positions => {}
            most => {
                return Err(self.does_not_fit(
                    "tokens.max_tokens",
                    format!(
                        "expected at most {positions} (max_position_embeddings), found {}",
                        most.map_or("none".to_owned(), |n| n.to_string())
                    ),
                ));
            }
        }
        if rules.projection == Projection::Apply && clip.projection_dim.is_none() {
            return Err(self.does_not_fit(
                "forward.projection",
                "expected a text_projection (a CLIPTextModelWithProjection), found none".into(),
            ));
        }
        Ok(())
    }

    fn check_vocabulary(
        &self,
        architecture: &Architecture,
        tokens: &TokenRules,
        end_id: u32,
    ) -> Result<(), Error> {
        let vocab_size = architecture.vocab_size();
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

/// A CLIP's architecture and rules without what has no effect: no projection without a pooled row, no norm or
/// mask without a sequence, and the end-of-text id only where the pooled rule looks for it.
fn effective_clip(
    clip: &ClipTextArchitecture,
    rules: &ClipForwardRecipe,
    end_id: u32,
) -> (ClipTextArchitecture, ClipForward) {
    const LEGACY_EOS: u32 = 2;
    let pooled = match (rules.pooled, clip.eos_token_id) {
        (PooledRule::ConfigEos, Some(LEGACY_EOS)) => PooledRule::ArgmaxId,
        (rule, _) => rule,
    };
    let has_sequence = rules.hidden_layer.is_some();
    let forward = ClipForward {
        hidden_layer: rules.hidden_layer,
        final_norm: has_sequence && rules.final_norm,
        pooled,
        projection: pooled != PooledRule::None
            && rules.projection != Projection::Skip
            && clip.projection_dim.is_some(),
        mask: if has_sequence {
            rules.mask
        } else {
            EncoderMask::None
        },
    };
    let mut clip = clip.clone();
    clip.projection_dim = clip.projection_dim.filter(|_| forward.projection);
    clip.eos_token_id = match pooled {
        PooledRule::ConfigEos => clip.eos_token_id,
        PooledRule::FirstEos => Some(end_id),
        PooledRule::ArgmaxId | PooledRule::None => None,
    };
    (clip, forward)
}

/// Where no kept row depends on pads, none are made, and the pad id matters only inside captions.
fn forget_pads(tokens: &mut TokenRules, pads_unseen: bool) {
    if pads_unseen {
        tokens.min_tokens = 0;
        if tokens.pad_text == PadText::Ordinary {
            tokens.pad_id = 0;
        }
    }
}

//! What is taken from a CLIP text tower: as a recipe's data says it, and as it stands in a spec, where nothing is left
//! that has no effect.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use super::chunks::{self, Chunks};
use super::implementations::{self, Program};
use super::{ClipText, ClipTextArchitecture, ClipTextNetwork};
use crate::text::none::{NoneWord, none_or};
use crate::text::spec::{EncoderMask, PadText, TokenRules, Truncation};
use crate::text::tokenizer::{IMPLEMENTATION, Windows, check_implementation};
use crate::text::{Architecture, Contradiction, ForwardRecipe, Kind, Misfit, Network};

/// What is taken from a CLIP text tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipForward {
    /// The hidden state that becomes the sequence, as Hugging Face's `hidden_states` index counts from the
    /// end: -1 the last block's output, -2 the one before; `None`: no sequence is kept.
    pub hidden_layer: Option<i32>,
    /// Whether the final layer norm is applied to the sequence.
    pub final_norm: bool,
    /// Which row of the final-normed last layer is pooled.
    pub pooled: PooledRule,
    /// Whether the pooled row goes through `text_projection`.
    pub projection: bool,
    /// Whether pad ids are masked in the encoder's attention.
    pub mask: EncoderMask,
    /// How a sequence of several windows is encoded; `None`: it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunks: Option<Chunks>,
}

/// The row of CLIP's last hidden state that is pooled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PooledRule {
    /// None: there is no pooled output.
    None,
    /// At the first end-of-text id of the tokenizer (the spec's `eos_token_id`).
    FirstEos,
    /// At the first occurrence of the largest id (the rule of CLIP configurations with `eos_token_id` 2).
    ArgmaxId,
    /// As transformers decides: [`Self::ArgmaxId`] where the configuration's `eos_token_id` is 2 (a spec then
    /// says so), else at the first id equal to it, and at row 0 where there is none.
    ConfigEos,
}

/// Checks CLIP's own token rules.
pub(super) fn check_tokens(rules: &Map<String, Value>, pad_text: PadText) -> Result<(), String> {
    for (name, value) in rules {
        match name.as_str() {
            IMPLEMENTATION => {
                let names = implementations::NAMES.map(|(name, _)| name);
                check_implementation(value, &names)?;
                let reads_pads = |(name, program): &(&str, Program)| {
                    value != name || program.reads_added_tokens()
                };
                if pad_text == PadText::Special && !implementations::NAMES.iter().all(reads_pads) {
                    return Err(format!(
                        "`pad_text` = special and `{IMPLEMENTATION}` = {value}: that program reads no pad token's text as special"
                    ));
                }
            }
            chunks::CHUNKS => chunks::check(value)?,
            _ => return Err(format!("unknown field `{name}`")),
        }
    }
    Ok(())
}

/// What is taken from a CLIP text tower, before the checkpoint is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipForwardRecipe {
    /// The hidden state that becomes the sequence, counted from the end (-1: the last block's output);
    /// `None`: no sequence is kept.
    #[serde(serialize_with = "none_or", deserialize_with = "layer_or_none")]
    pub hidden_layer: Option<i32>,
    /// Whether the final layer norm is applied to the sequence.
    pub final_norm: bool,
    /// Which row is pooled.
    pub pooled: PooledRule,
    /// Whether the pooled row goes through `text_projection`.
    pub projection: ProjectionRule,
    /// Whether pad ids are masked in the encoder's attention.
    pub mask: EncoderMask,
}

/// Whether the pooled row goes through `text_projection`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectionRule {
    /// Never, even if the checkpoint has one.
    Skip,
    /// Always; a checkpoint without one is refused.
    Apply,
    /// If the checkpoint has one; a checkpoint without one stands for the identity.
    ApplyIfPresent,
}

impl ForwardRecipe for ClipForwardRecipe {
    fn kind(&self) -> &'static dyn Kind {
        &ClipText
    }

    fn to_json(&self) -> Value {
        json!(self)
    }

    fn no_sequence(&self) -> Option<&'static str> {
        self.hidden_layer
            .is_none()
            .then_some("forward.hidden_layer = none")
    }

    fn is_pooled(&self) -> bool {
        self.pooled != PooledRule::None
    }

    // Rows of pads are always computed here, so the assembly may keep them.
    fn check(&self, slot: &str, _pads_kept: bool) -> Result<(), Contradiction> {
        if let Some(layer) = self.hidden_layer.filter(|layer| *layer >= 0) {
            return Err(Contradiction {
                fields: format!("{slot}.forward.hidden_layer = {layer}"),
                why: "expected a negative number: layers are counted from the end".into(),
            });
        }
        if self.pooled == PooledRule::None && self.projection == ProjectionRule::Apply {
            return Err(Contradiction {
                fields: format!("{slot}.forward.projection and {slot}.forward.pooled"),
                why: "there is no pooled row to project".into(),
            });
        }
        Ok(())
    }

    fn network(
        &self,
        architecture: &dyn Architecture,
        tokens: &mut TokenRules,
        end_id: u32,
    ) -> Result<Arc<dyn Network>, Misfit> {
        let clip = architecture.of_kind::<ClipTextArchitecture>(&ClipText)?;
        self.check_layer(clip)?;
        check_positions(clip, tokens.max_tokens)?;
        if self.projection == ProjectionRule::Apply && clip.projection_dim.is_none() {
            return Err(Misfit {
                field: "forward.projection",
                why: "expected a text_projection (a CLIPTextModelWithProjection), found none"
                    .into(),
            });
        }
        let mut network = self.effective(clip, end_id);
        network.forward.chunks = self.chunks(tokens, end_id)?;
        // Pads come after the pooled row, unless the rule looks for the largest id and the pad's is larger.
        if network.forward.hidden_layer.is_none() && tokens.pad_id <= end_id {
            tokens.forget_pads();
        }
        Ok(Arc::new(network))
    }
}

impl ClipForwardRecipe {
    /// How captions of several windows are encoded. Where only the pooled row is kept, which is the first window's, there
    /// is one.
    fn chunks(&self, tokens: &mut TokenRules, end: u32) -> Result<Option<Chunks>, Misfit> {
        if self.hidden_layer.is_none() {
            tokens.of_kind.remove(chunks::CHUNKS);
        }
        let window = tokens.max_tokens.unwrap_or(0);
        let found = match chunks::windows(tokens) {
            Windows::One => return Ok(None),
            Windows::Whole => Chunks::Whole { window },
            Windows::Joined(_) => Chunks::Inner {
                window,
                pad: tokens.pad_id,
                end,
            },
        };
        let wrong = |why: &str| {
            Err(Misfit {
                field: "tokens.chunks",
                why: why.to_owned(),
            })
        };
        if self.mask != EncoderMask::None {
            return wrong(
                "expected forward.mask = none, as the pads of several windows are not the last ids",
            );
        }
        if window < 3 {
            return wrong(
                "expected a max_tokens of at least 3: each window has a start and an end token",
            );
        }
        if matches!(found, Chunks::Inner { .. }) {
            if tokens.truncation != Truncation::Tokens {
                return wrong(
                    "expected tokens.truncation = tokens where windows are joined; \"whole\" keeps words whole",
                );
            }
            if tokens.min_tokens != window {
                return wrong(
                    "expected min_tokens = max_tokens where windows are joined, as every one is encoded",
                );
            }
        }
        Ok(Some(found))
    }

    fn check_layer(&self, clip: &ClipTextArchitecture) -> Result<(), Misfit> {
        let states = clip.num_hidden_layers + 1;
        let is_there = |layer: i32| {
            layer < 0 && usize::try_from(layer.unsigned_abs()).is_ok_and(|l| l <= states)
        };
        match self.hidden_layer.filter(|layer| !is_there(*layer)) {
            None => Ok(()),
            Some(layer) => Err(Misfit {
                field: "forward.hidden_layer",
                why: format!(
                    "expected -1 to -{states} ({} layers and their input), found {layer}",
                    clip.num_hidden_layers
                ),
            }),
        }
    }

    /// Architecture and rules without what has no effect: no projection without a pooled row, no norm or mask without a
    /// sequence, and the end-of-text id only where the pooled rule looks for it.
    fn effective(&self, clip: &ClipTextArchitecture, end_id: u32) -> ClipTextNetwork {
        // Configurations had this wrong id before transformers' PR 24773; `CLIPTextTransformer` still pools at the
        // largest id then.
        const LEGACY_EOS: u32 = 2;
        let pooled = match (self.pooled, clip.eos_token_id) {
            (PooledRule::ConfigEos, Some(LEGACY_EOS)) => PooledRule::ArgmaxId,
            (rule, _) => rule,
        };
        let has_sequence = self.hidden_layer.is_some();
        let forward = ClipForward {
            hidden_layer: self.hidden_layer,
            final_norm: has_sequence && self.final_norm,
            pooled,
            projection: pooled != PooledRule::None
                && self.projection != ProjectionRule::Skip
                && clip.projection_dim.is_some(),
            // The pooled row sees only rows before it, and pads come after.
            mask: if has_sequence {
                self.mask
            } else {
                EncoderMask::None
            },
            chunks: None,
        };
        let architecture = ClipTextArchitecture {
            projection_dim: clip.projection_dim.filter(|_| forward.projection),
            eos_token_id: match pooled {
                PooledRule::ConfigEos => clip.eos_token_id,
                PooledRule::FirstEos => Some(end_id),
                PooledRule::ArgmaxId | PooledRule::None => None,
            },
            ..clip.clone()
        };
        ClipTextNetwork {
            architecture,
            forward,
        }
    }
}

// Positions are learned, so there is none beyond the table; "never cut" cannot be kept.
fn check_positions(clip: &ClipTextArchitecture, max_tokens: Option<usize>) -> Result<(), Misfit> {
    let positions = clip.max_position_embeddings;
    match max_tokens {
        Some(most) if most <= positions => Ok(()),
        most => Err(Misfit {
            field: "tokens.max_tokens",
            why: format!(
                "expected at most {positions} (max_position_embeddings), found {}",
                most.map_or("none".to_owned(), |n| n.to_string())
            ),
        }),
    }
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a layer counted from the end such as -2, or \"none\" for no sequence"
)]
enum LayerOrNone {
    Layer(i32),
    None(NoneWord),
}

fn layer_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i32>, D::Error> {
    Ok(match LayerOrNone::deserialize(from)? {
        LayerOrNone::Layer(layer) => Some(layer),
        LayerOrNone::None(NoneWord::None) => None,
    })
}

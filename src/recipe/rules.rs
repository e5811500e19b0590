//! The rules of a recipe, as they stand in its data: what becomes an [`EncoderSpec`] once a checkpoint's
//! architecture, weights and tokenizer are known, and how encoder outputs become the Conditioning.
//!
//! TOML has no null, so "nothing" is the word `none` there.
//!
//! [`EncoderSpec`]: crate::text::spec::EncoderSpec

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::text::none::{NoneWord, none_or};
use crate::text::spec::{Cleanup, PadText, Precision, Truncation};
use crate::text::tokenizer::is_shortened;
use crate::text::{ForwardRecipe, Kind};

/// How a caption becomes token ids; [`TokenRules`](crate::text::spec::TokenRules) before the tokenizer is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenRecipe {
    /// Changes to the text before the tokenizer, in order.
    pub cleanup: Vec<Cleanup>,
    /// Shorter sequences are padded up to this many ids (specials counted).
    pub min_tokens: usize,
    /// Longer sequences are cut to this many ids; `None`: never cut.
    #[serde(serialize_with = "none_or", deserialize_with = "count_or_none")]
    pub max_tokens: Option<usize>,
    /// Where a sequence of more than `max_tokens` is cut; without effect where there is none.
    pub truncation: Truncation,
    /// The id that fills a sequence up to `min_tokens`.
    pub pad: Pad,
    /// Whether the pad id's text inside a caption is read as that id.
    pub pad_text: PadText,
    /// Token rules that only this kind of encoder has, by name; in a recipe they stand beside the others.
    #[serde(flatten)]
    pub of_kind: Map<String, Value>,
}

impl TokenRecipe {
    /// Whether the clean-up drops text of a caption, before anything is counted in tokens.
    pub fn shortens(&self, caption: &str) -> bool {
        is_shortened(&self.cleanup, caption)
    }
}

/// The id that fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pad {
    /// The tokenizer's own end-of-text id, whatever its number.
    End,
    /// This id.
    Id(u32),
}

/// What stands in for an encoder that the user does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// Nothing: the encoder is needed.
    Refuse,
    /// This many rows of zeros, as wide as the denoiser's context.
    ZeroRows(usize),
}

/// All rules of one encoder.
#[derive(Clone, Debug, Serialize)]
pub struct EncoderRules {
    /// The kind of encoder.
    pub network: &'static dyn Kind,
    /// How a caption becomes token ids.
    pub tokens: TokenRecipe,
    /// What is taken from the network; of that kind.
    #[serde(serialize_with = "forward_json")]
    pub forward: Arc<dyn ForwardRecipe>,
    /// The precisions that decide the numbers.
    pub precision: Precision,
    /// What stands in when there is no such encoder.
    pub absent: Absent,
}

/// How encoder outputs become the Conditioning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assembly {
    /// The slots whose sequences make the context: inner lists are joined along channels, each is filled
    /// with zeros on the right up to the denoiser's context width (that of the widest), and the outer list
    /// is joined along rows.
    pub context: Vec<Vec<String>>,
    /// The slots whose pooled rows are joined, in order; empty: no pooled input.
    pub pooled: Vec<String>,
    /// What the denoiser masks.
    pub mask: DenoiserMask,
    /// What becomes of the pad rows of each slot in `context`; every one of them is here.
    pub pads: BTreeMap<String, AssembledPads>,
    /// What the unconditional branch and a dropped caption receive.
    pub unconditional: Unconditional,
    /// How caption dropout draws.
    pub dropout: Dropout,
}

/// The mask that reaches the denoiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenoiserMask {
    /// None: pads are attended like any token.
    None,
    /// No token of picture or caption attends to a pad.
    Pads,
    /// No token of picture or caption attends to a pad but the first.
    PadsButOne,
}

impl DenoiserMask {
    /// Of `rows` rows with `count` true tokens, how many are seen: the first so many. `None`: no mask.
    pub fn seen(self, count: usize, rows: usize) -> Option<usize> {
        match self {
            Self::None => None,
            Self::Pads => Some(count.min(rows)),
            Self::PadsButOne => Some((count + 1).min(rows)),
        }
    }
}

/// What becomes of an encoder's pad rows in the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AssembledPads {
    /// They stay as the encoder made them.
    Keep,
    /// They become zeros.
    Zero,
}

/// What stands for "no caption".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unconditional {
    /// The empty caption, encoded.
    EncodedEmpty,
    /// Zeros, in context and pooled.
    Zeros,
}

/// How caption dropout draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dropout {
    /// One draw a caption: all encoders or none.
    Together,
    /// One draw for each encoder.
    EachEncoder,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a whole number of tokens, or \"none\" for no limit"
)]
// Untagged, with a message of its own: serde's would be that no variant matches.
enum CountOrNone {
    Count(usize),
    None(NoneWord),
}

fn count_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    Ok(match CountOrNone::deserialize(from)? {
        CountOrNone::Count(count) => Some(count),
        CountOrNone::None(NoneWord::None) => None,
    })
}

fn forward_json<S: Serializer>(forward: &Arc<dyn ForwardRecipe>, to: S) -> Result<S::Ok, S::Error> {
    forward.to_json().serialize(to)
}

impl Serialize for Pad {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::End => to.serialize_str("end"),
            Self::Id(id) => id.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for Pad {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // An enum of one word, as a `String` would take any other.
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Word {
            End,
        }
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected a token id, or \"end\" for the tokenizer's end-of-text id"
        )]
        enum Form {
            Id(u32),
            End(Word),
        }
        Ok(match Form::deserialize(from)? {
            Form::Id(id) => Self::Id(id),
            Form::End(Word::End) => Self::End,
        })
    }
}

impl Serialize for Absent {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Refuse => to.serialize_str("refuse"),
            Self::ZeroRows(rows) => rows.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for Absent {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Word {
            Refuse,
        }
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected a number of rows of zeros, or \"refuse\""
        )]
        enum Form {
            Rows(usize),
            Refuse(Word),
        }
        Ok(match Form::deserialize(from)? {
            Form::Rows(rows) => Self::ZeroRows(rows),
            Form::Refuse(Word::Refuse) => Self::Refuse,
        })
    }
}

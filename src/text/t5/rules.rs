//! What is taken from a T5 encoder: the final-normed last hidden state, and what becomes of pads.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{T5, T5EncoderArchitecture, T5Network};
use crate::shown;
use crate::text::spec::TokenRules;
use crate::text::{Architecture, Contradiction, ForwardRecipe, Kind, Misfit, Network, Tokens};

/// What is taken from a T5 encoder, in a recipe as in a spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct T5Forward {
    /// What the encoder's attention does about pad ids.
    pub mask: T5Mask,
    /// Whether the rows of pad ids are kept.
    pub pad_rows: T5PadRows,
}

/// What attention does about pads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum T5Mask {
    /// Pads are attended like any token.
    None,
    /// No token attends to a pad; a pad attends to the true tokens.
    Pads,
    /// No token attends to a pad but the first.
    PadsButOne,
    /// No token attends to a pad; a pad attends to the whole sequence evenly, whatever its scores. So it is where
    /// all of a pad's scores are masked by a large negative number (`T5Stack.forward` of lodestone-rock/flow).
    PadsUniform,
}

/// What becomes of the rows of pad ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum T5PadRows {
    /// They are computed and kept: the denoiser will read them.
    Keep,
    /// That of the first is kept, for a denoiser that sees no other.
    One,
    /// They are neither computed nor kept; allowed only where the mask makes the other rows independent of them.
    Drop,
}

impl ForwardRecipe for T5Forward {
    fn kind(&self) -> &'static dyn Kind {
        &T5
    }

    fn to_json(&self) -> Value {
        json!(self)
    }

    fn no_sequence(&self) -> Option<&'static str> {
        None
    }

    fn is_pooled(&self) -> bool {
        false
    }

    fn keeps_one_pad(&self) -> bool {
        self.pad_rows == T5PadRows::One
    }

    fn check(&self, slot: &str, pads_kept: bool) -> Result<(), Contradiction> {
        if self.pad_rows != T5PadRows::Drop {
            return Ok(());
        }
        if !self.mask.hides_pads() {
            return Err(Contradiction {
                fields: format!(
                    "{slot}.forward.pad_rows = drop and {slot}.forward.mask = {}",
                    shown::word(&self.mask)
                ),
                why: "rows of pads may be dropped only where pads are masked, for else they change the others".into(),
            });
        }
        if pads_kept {
            return Err(Contradiction {
                fields: format!("{slot}.forward.pad_rows = drop and assembly.pads.{slot} = keep"),
                why: "the context wants rows that are not kept: set assembly.pads to zero".into(),
            });
        }
        Ok(())
    }

    fn network(
        &self,
        architecture: &dyn Architecture,
        tokens: &mut TokenRules,
        _end_id: u32,
    ) -> Result<Arc<dyn Network>, Misfit> {
        let architecture = architecture.of_kind::<T5EncoderArchitecture>(&T5)?.clone();
        Ok(Arc::new(T5Network {
            architecture,
            forward: self.effective(tokens),
        }))
    }
}

impl T5Forward {
    /// These rules as a spec has them; in `tokens`, what has no effect beside them takes one fixed value.
    pub(super) fn effective(&self, tokens: &mut TokenRules) -> Self {
        let mut forward = self.clone();
        if self.pad_rows == T5PadRows::Drop {
            tokens.forget_pads();
            // The two differ in rows of pads alone.
            forward.mask = T5Mask::Pads;
        }
        forward
    }
}

impl T5Mask {
    /// Whether the rows of true tokens are the same without any pad.
    pub(super) fn hides_pads(self) -> bool {
        matches!(self, Self::Pads | Self::PadsUniform)
    }

    /// Of `rows` rows with `count` true tokens, how many are attended by a true token: the first so many.
    pub(super) fn keys(self, count: usize, rows: usize) -> usize {
        match self {
            Self::None => rows,
            Self::Pads | Self::PadsUniform => count,
            Self::PadsButOne => rows.min(count + 1),
        }
    }
}

impl T5PadRows {
    /// How many rows of a caption are kept.
    pub(super) fn of(self, tokens: &Tokens) -> usize {
        let (count, rows) = (tokens.count, tokens.ids.len());
        match self {
            Self::Keep => rows,
            Self::One => rows.min(count + 1),
            Self::Drop => count,
        }
    }
}

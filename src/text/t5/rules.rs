//! What is taken from a T5 encoder: the final-normed last hidden state, and what becomes of pads.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{T5, T5EncoderArchitecture, T5Network, implementations};
use crate::text::spec::{EncoderMask, PadRows, TokenRules};
use crate::text::tokenizer::{IMPLEMENTATION, check_implementation};
use crate::text::{Architecture, Contradiction, ForwardRecipe, Kind, Misfit, Network};

/// What is taken from a T5 encoder, in a recipe as in a spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct T5Forward {
    /// Whether pad ids are masked in the encoder's attention.
    pub mask: EncoderMask,
    /// Whether the rows of pad ids are kept.
    pub pad_rows: PadRows,
}

/// Checks T5's own token rules.
pub(super) fn check_tokens(rules: &Map<String, Value>) -> Result<(), String> {
    for (name, value) in rules {
        match name.as_str() {
            IMPLEMENTATION => check_implementation(value, &implementations::NAMES)?,
            _ => return Err(format!("unknown field `{name}`")),
        }
    }
    Ok(())
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

    fn check(&self, slot: &str, pads_kept: bool) -> Result<(), Contradiction> {
        if self.pad_rows == PadRows::Keep {
            return Ok(());
        }
        if self.mask != EncoderMask::Pads {
            return Err(Contradiction {
                fields: format!("{slot}.forward.pad_rows = drop and {slot}.forward.mask = none"),
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
        if self.pad_rows == PadRows::Drop {
            tokens.forget_pads();
        }
        Ok(Arc::new(T5Network {
            architecture,
            forward: self.clone(),
        }))
    }
}

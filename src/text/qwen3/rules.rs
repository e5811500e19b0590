//! What is taken from a Qwen3, and the text it is given: as a recipe's data says it, and as it stands in a spec.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Qwen3, Qwen3Architecture, Qwen3Network};
use crate::text::spec::{EncoderMask, TokenRules};
use crate::text::{Architecture, Contradiction, ForwardRecipe, Kind, Misfit, Network, Tokens};

/// The name of the token rule that says what stands around a caption.
pub(super) const TEMPLATE: &str = "template";
/// What stands for the caption in it.
const CAPTION: &str = "{caption}";
/// The longest template, in bytes.
const MOST_TEMPLATE: usize = 16 << 10;
/// The most layers that are taken.
const MOST_LAYERS: usize = 128;

/// What becomes of the rows of pad ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Qwen3PadRows {
    /// They are computed and kept: the denoiser will read them.
    Keep,
    /// They are neither computed nor kept; allowed only where no other row depends on them.
    Drop,
}

impl Qwen3PadRows {
    /// How many rows of a caption are kept.
    pub(super) fn of(self, tokens: &Tokens) -> usize {
        match self {
            Self::Keep => tokens.ids.len(),
            Self::Drop => tokens.count,
        }
    }
}

/// What is taken from a Qwen3.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qwen3Forward {
    /// The hidden states that a row is made of, one after the other, by how many layers they come after: 0 the
    /// embeddings, as transformers' `hidden_states` has them.
    pub hidden_layers: Vec<usize>,
    /// Whether the final norm is applied to each of them. (The last of transformers' `hidden_states` has it, the others
    /// have not.)
    pub final_norm: bool,
    /// Whether pad ids are masked in the attention.
    pub mask: EncoderMask,
    /// Whether the rows of pad ids are kept.
    pub pad_rows: Qwen3PadRows,
}

/// What is taken from a Qwen3, before the checkpoint is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Qwen3ForwardRecipe {
    /// The hidden states, as transformers' `hidden_states` counts them: from the front, or with -1 from the back.
    hidden_layers: Vec<i32>,
    final_norm: bool,
    mask: EncoderMask,
    pad_rows: Qwen3PadRows,
}

/// Checks Qwen3's own token rules.
pub(super) fn check_tokens(rules: &Map<String, Value>) -> Result<(), String> {
    if let Some(name) = rules.keys().find(|name| *name != TEMPLATE) {
        return Err(format!("unknown field `{name}`"));
    }
    let template = rules.get(TEMPLATE);
    let template = template.ok_or_else(|| format!("missing field `{TEMPLATE}`"))?;
    let text = template.as_str().unwrap_or_default();
    if text.matches(CAPTION).count() != 1 || text.len() > MOST_TEMPLATE {
        return Err(format!(
            "`{TEMPLATE}`: expected a text of at most {MOST_TEMPLATE} bytes with {CAPTION} once in it, found {template}"
        ));
    }
    Ok(())
}

/// What stands before and behind a caption.
pub(super) fn around(rules: &TokenRules) -> Option<(&str, &str)> {
    let template = rules.of_kind.get(TEMPLATE)?.as_str()?;
    template.split_once(CAPTION)
}

impl ForwardRecipe for Qwen3ForwardRecipe {
    fn kind(&self) -> &'static dyn Kind {
        &Qwen3
    }

    fn to_json(&self) -> Value {
        json!(self)
    }

    fn no_sequence(&self) -> Option<&'static str> {
        self.hidden_layers
            .is_empty()
            .then_some("forward.hidden_layers = []")
    }

    fn is_pooled(&self) -> bool {
        false
    }

    fn check(&self, slot: &str, pads_kept: bool) -> Result<(), Contradiction> {
        if self.hidden_layers.len() > MOST_LAYERS {
            return Err(Contradiction {
                fields: format!("{slot}.forward.hidden_layers"),
                why: format!("expected at most {MOST_LAYERS} layers"),
            });
        }
        if self.pad_rows == Qwen3PadRows::Drop && pads_kept {
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
        let architecture = architecture.of_kind::<Qwen3Architecture>(&Qwen3)?.clone();
        let layers = architecture.num_hidden_layers;
        let index = |layer: &i32| {
            let from_front = usize::try_from(*layer).ok().filter(|at| *at <= layers);
            let from_back = || {
                let back = usize::try_from(layer.unsigned_abs()).ok()?;
                (*layer < 0).then(|| (layers + 1).checked_sub(back))?
            };
            from_front.or_else(from_back).ok_or_else(|| Misfit {
                field: "forward.hidden_layers",
                why: format!(
                    "expected 0 to {layers}, or -1 to -{} from the back ({layers} layers and their input), found {layer}",
                    layers + 1
                ),
            })
        };
        let hidden_layers = self
            .hidden_layers
            .iter()
            .map(index)
            .collect::<Result<_, _>>()?;
        let mut mask = self.mask;
        if self.pad_rows == Qwen3PadRows::Drop {
            // Pads come last, and no row sees what comes after it: masked or not, the others are the same.
            mask = EncoderMask::Pads;
            tokens.forget_pads();
        }
        Ok(Arc::new(Qwen3Network {
            architecture,
            forward: Qwen3Forward {
                hidden_layers,
                final_norm: self.final_norm,
                mask,
                pad_rows: self.pad_rows,
            },
        }))
    }
}

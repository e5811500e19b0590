//! The sizes and constants of a CLIP text tower: from a configuration, or as published.
//!
//! Published numbers: Stability-AI/sd3.5 `sd3_infer.py`, open_clip's `ViT-bigG-14.json`.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ClipText;
use crate::text::activation::Activation;
use crate::text::config::{ConfigError, ConfigFields};
use crate::text::{Architecture, Kind};

/// The objects of a whole CLIP's file that hold the text tower's fields; the second may repeat the first.
pub(super) const NESTED: &[&str] = &["text_config", "text_config_dict"];

/// The effective fields of a `CLIPTextConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipTextArchitecture {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of attention heads; invisible in the shapes.
    pub num_attention_heads: usize,
    /// Rows of the position embedding.
    pub max_position_embeddings: usize,
    /// The MLP's activation; invisible in the shapes.
    pub hidden_act: Activation,
    /// Epsilon of every layer norm; invisible in the shapes.
    pub layer_norm_eps: f64,
    /// Columns of `text_projection`; `None` where the network has none or the recipe does not apply it.
    pub projection_dim: Option<usize>,
    /// The token whose first occurrence is pooled. As read from a configuration it is `eos_token_id`; in a
    /// spec it is the token that the pooled rule looks for, and `None` where the rule looks for none.
    pub eos_token_id: Option<u32>,
}

impl Architecture for ClipTextArchitecture {
    fn kind(&self) -> &'static dyn Kind {
        &ClipText
    }

    fn to_json(&self) -> Value {
        json!(self)
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn width(&self) -> usize {
        self.hidden_size
    }

    fn end_id(&self) -> u32 {
        // `<|endoftext|>` is the last token of every CLIP vocabulary.
        u32::try_from(self.vocab_size.saturating_sub(1)).unwrap_or(u32::MAX)
    }
}

/// The architecture of a `CLIPTextConfig`, or of the text tower in a `CLIPConfig`.
pub(super) fn read(outer: ConfigFields<'_>) -> Result<ClipTextArchitecture, ConfigError> {
    let nested = NESTED.iter().any(|key| outer.get(key).is_some());
    outer.model_type(super::MODEL_TYPES)?;
    // Where no class is named, a projection is assumed: a recipe that applies it finds out by the weights.
    let projected = nested || !is_plain_text_model(&outer);
    let fields = if nested {
        outer.merged(NESTED[0], NESTED[1])?
    } else {
        outer
    };
    let hidden_size = fields.size("hidden_size", 512)?;
    let heads = fields.size("num_attention_heads", 8)?;
    if hidden_size % heads != 0 {
        return Err(fields.wrong(
            "num_attention_heads",
            format!("a divisor of hidden_size {hidden_size}"),
            heads.to_string(),
        ));
    }
    Ok(ClipTextArchitecture {
        // `CLIPTextConfig`'s defaults.
        vocab_size: fields.size("vocab_size", 49408)?,
        hidden_size,
        intermediate_size: fields.size("intermediate_size", 2048)?,
        num_hidden_layers: fields.size("num_hidden_layers", 12)?,
        num_attention_heads: heads,
        max_position_embeddings: fields.size("max_position_embeddings", 77)?,
        hidden_act: fields.activation("hidden_act", "quick_gelu")?,
        layer_norm_eps: fields.epsilon("layer_norm_eps", 1e-5)?,
        projection_dim: if projected {
            Some(fields.size("projection_dim", 512)?)
        } else {
            None
        },
        eos_token_id: Some(fields.id("eos_token_id", 49407)?),
    })
}

/// Whether `architectures` says that there is no `text_projection`.
fn is_plain_text_model(config: &ConfigFields<'_>) -> bool {
    let names = config.get("architectures").and_then(Value::as_array);
    names.is_some_and(|names| names.iter().any(|n| n.as_str() == Some("CLIPTextModel")))
}

/// CLIP-L (without `text_projection`, as its released file is) or CLIP-G.
pub(super) fn published(slot: &str) -> Option<ClipTextArchitecture> {
    let clip_g = ClipTextArchitecture {
        vocab_size: 49408,
        hidden_size: 1280,
        intermediate_size: 5120,
        num_hidden_layers: 32,
        num_attention_heads: 20,
        max_position_embeddings: 77,
        hidden_act: Activation::Gelu,
        layer_norm_eps: 1e-5,
        projection_dim: Some(1280),
        // As their configurations have it, which makes `config_eos` pool at the largest id.
        eos_token_id: Some(2),
    };
    match slot {
        "clip_g" => Some(clip_g),
        "clip_l" => Some(ClipTextArchitecture {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            hidden_act: Activation::QuickGelu,
            projection_dim: None,
            ..clip_g
        }),
        _ => None,
    }
}

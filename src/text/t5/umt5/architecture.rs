//! The sizes and constants of a UMT5 encoder: from a configuration, or as published.
//!
//! Published numbers: google/umt5-xxl's `config.json`, and `umt5_xxl` in `wan/modules/t5.py` of Wan-Video/Wan2.1.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::T5EncoderArchitecture;
use super::super::architecture::{Defaults, read_fields, xxl};
use super::Umt5;
use crate::text::config::{ConfigError, ConfigFields};
use crate::text::{Architecture, Kind};

/// The effective fields of a `UMT5Config`, for the encoder: T5's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Umt5EncoderArchitecture(pub T5EncoderArchitecture);

impl Architecture for Umt5EncoderArchitecture {
    fn kind(&self) -> &'static dyn Kind {
        &Umt5
    }

    fn to_json(&self) -> Value {
        json!(self)
    }

    fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    fn width(&self) -> usize {
        self.0.d_model
    }

    fn end_id(&self) -> u32 {
        // `<pad>` 0, `</s>` 1, `<s>` 2, `<unk>` 3 in its vocabulary (google/umt5-xxl's tokenizer.json).
        1
    }
}

/// `UMT5Config`'s defaults.
const DEFAULTS: Defaults = Defaults {
    vocab_size: 250_112,
    d_ff: 1024,
    num_layers: 8,
    num_heads: 6,
    feed_forward_proj: "gated-gelu",
};

/// The architecture of a `UMT5Config`.
pub(super) fn read(fields: ConfigFields<'_>) -> Result<Umt5EncoderArchitecture, ConfigError> {
    fields.model_type(&["umt5"])?;
    Ok(Umt5EncoderArchitecture(read_fields(fields, &DEFAULTS)?))
}

/// UMT5-XXL.
pub(super) fn published(slot: &str) -> Option<Umt5EncoderArchitecture> {
    (slot == "umt5").then(|| Umt5EncoderArchitecture(xxl(256_384)))
}

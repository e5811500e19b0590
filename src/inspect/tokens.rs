//! How a caption was cut into tokens, by the code that encodes it.

use serde::Serialize;

use super::Error;
use crate::base_model::{BaseModel, TextEncoderPart};
use crate::encode::{read_text, tokenize};
use crate::text::Tokens;

/// A caption's tokens under one encoder.
#[derive(Debug, Serialize)]
pub struct TokenReport {
    /// The encoder's slot in the recipe, such as `clip_l`.
    pub slot: String,
    /// What of the caption is turned into ids, where that is another text: after the recipe's clean-up and the
    /// implementation's.
    pub read_as: Option<String>,
    /// Every id, pads included.
    pub ids: Vec<u32>,
    /// Each id as the vocabulary writes it.
    pub tokens: Vec<String>,
    /// Ids before the pads.
    pub count: usize,
    /// What `count` would be had nothing been cut.
    pub total: usize,
    /// Whether something was cut.
    pub truncated: bool,
}

/// A caption's tokens under every encoder.
///
/// # Errors
/// If the caption cannot be tokenized.
pub fn tokens(base: &BaseModel, caption: &str) -> Result<Vec<TokenReport>, Error> {
    base.encoders
        .iter()
        .map(|encoder| {
            let read = read_text(encoder, caption)?;
            let read_as = (read != caption).then_some(read);
            Ok(report(encoder, tokenize(encoder, caption)?, read_as))
        })
        .collect()
}

fn report(encoder: &TextEncoderPart, tokens: Tokens, read_as: Option<String>) -> TokenReport {
    let text = |id: &u32| {
        encoder
            .tokenizer
            .token(*id)
            .unwrap_or_else(|| format!("<{id}>"))
    };
    TokenReport {
        slot: encoder.slot.clone(),
        read_as,
        tokens: tokens.ids.iter().map(text).collect(),
        ids: tokens.ids,
        count: tokens.count,
        total: tokens.total,
        truncated: tokens.truncated,
    }
}

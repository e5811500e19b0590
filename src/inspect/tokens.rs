//! How a caption was cut into tokens, by the code that encodes it.

use serde::Serialize;

use super::Error;
use crate::base_model::{BaseModel, TextEncoderPart};
use crate::encode::{lost_text, read_text, tokenize};
use crate::text::Tokens;
use crate::text::tokenizer::Lost;

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
    /// Ids behind those.
    pub pads: usize,
    /// What `count` would be had nothing been cut.
    pub total: usize,
    /// The most ids that the recipe gives this encoder; `None`: as many as a caption has.
    pub limit: Option<usize>,
    /// Whether something was cut.
    pub truncated: bool,
    /// Of the ids before the last of `count`, those that are the pad or the end token: the caption's text writes them, or they
    /// stand for what the vocabulary lacks. An encoder may take one for the end of the caption. 0 where a caption may fill several
    /// windows, each with an end of its own.
    pub specials_inside: usize,
    /// Other tokens that are read whole and that the caption's text writes, such as `<|im_end|>` of a chat: each once.
    pub specials_written: Vec<String>,
    /// What of the caption does not reach the encoder.
    pub lost: Lost,
}

/// A caption's tokens under every encoder.
///
/// # Errors
/// If the caption cannot be tokenized.
pub fn tokens(base: &BaseModel, caption: &str) -> Result<Vec<TokenReport>, Error> {
    let report = |encoder| report(encoder, caption);
    base.encoders.iter().map(report).collect()
}

fn report(encoder: &TextEncoderPart, caption: &str) -> Result<TokenReport, Error> {
    let read = read_text(encoder, caption)?;
    let Tokens {
        ids,
        count,
        truncated,
        total,
    } = tokenize(encoder, caption)?;
    let text = |id: &u32| {
        let token = encoder.tokenizer.token(*id);
        token.unwrap_or_else(|| format!("<{id}>"))
    };
    let (rules, tokenizer) = (&encoder.tokens, &encoder.tokenizer);
    let limit = tokenizer.limit(rules);
    let is_special = |id: &&u32| [rules.pad_id, tokenizer.eos_id()].contains(id);
    let written = tokenizer.written(rules, caption).into_iter();
    let written = written.filter(|(id, _)| !is_special(&id));
    let inside = ids.iter().take(count.saturating_sub(1));
    Ok(TokenReport {
        specials_inside: match limit == rules.max_tokens {
            true => inside.filter(is_special).count(),
            false => 0,
        },
        specials_written: written.map(|(_, token)| token).collect(),
        limit,
        slot: encoder.slot.clone(),
        read_as: (read != caption).then_some(read),
        tokens: ids.iter().map(text).collect(),
        pads: ids.len() - count,
        lost: lost_text(encoder, caption)?,
        ids,
        count,
        total,
        truncated,
    })
}

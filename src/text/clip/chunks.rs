//! Captions longer than a window: encoded window by window, whose rows are joined.
//!
//! Sources: `TokenizeStrategy._get_input_ids` and `SdxlTextEncodingStrategy` of kohya's sd-scripts
//! (`library/strategy_base.py`, `strategy_sdxl.py`, `strategy_sd.py`); `ClipTokenWeightEncoder` of ComfyUI
//! (`comfy/sd1_clip.py`).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::text::spec::TokenRules;
use crate::text::tokenizer::Windows;
use crate::text::{Encoded, Tokens};

/// The token rule that says how many windows a caption may fill.
pub(super) const CHUNKS: &str = "chunks";
/// Its word for as many as a caption needs.
const WHOLE: &str = "whole";
/// More than any program joins.
const MOST_JOINED: u64 = 8;

/// Checks the rule's value.
pub(super) fn check(value: &Value) -> Result<(), String> {
    let is_count = value
        .as_u64()
        .is_some_and(|n| (1..=MOST_JOINED).contains(&n));
    if is_count || value == WHOLE {
        return Ok(());
    }
    Err(format!(
        "`{CHUNKS}`: expected 1 to {MOST_JOINED}, or \"{WHOLE}\" for as many windows as a caption needs, found {value}"
    ))
}

/// What the rule says of a caption's windows.
pub(super) fn windows(rules: &TokenRules) -> Windows {
    match rules.of_kind.get(CHUNKS) {
        None => Windows::One,
        Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            None => Windows::Whole,
            Some(0 | 1) => Windows::One,
            Some(count) => Windows::Joined(count),
        },
    }
}

/// How a sequence is cut into windows, and the rows of theirs that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "join", rename_all = "snake_case", deny_unknown_fields)]
pub enum Chunks {
    /// kohya's: the sequence has one start and one end token. Each window borrows both; of its rows those between are
    /// kept, of the first also the start's, of the last also the end's.
    Inner {
        /// Ids of a window.
        window: usize,
        /// The id that fills.
        pad: u32,
        /// The id that ends.
        end: u32,
    },
    /// ComfyUI's: every window has its own start and end tokens, and all rows are kept.
    Whole {
        /// Ids of a window; the last may have fewer.
        window: usize,
    },
}

impl Chunks {
    /// The windows of a sequence, each a sequence of its own.
    pub(super) fn windows(&self, tokens: &Tokens) -> Vec<Tokens> {
        match *self {
            Self::Whole { window } => tokens
                .ids
                .chunks(window)
                .map(|ids| one(ids.to_vec()))
                .collect(),
            Self::Inner { window, pad, end } => {
                let inner = tokens.ids.get(1..tokens.ids.len() - 1).unwrap_or_default();
                let (first, last) = (tokens.ids[0], tokens.ids[tokens.ids.len() - 1]);
                // Ids of a window that are of the caption.
                let between = window.saturating_sub(2).max(1);
                let of_window = |inner: &[u32]| {
                    let ids: Vec<u32> = [&[first], inner, &[last]].concat();
                    one(if pad == end {
                        ids
                    } else {
                        ended(ids, pad, end)
                    })
                };
                inner.chunks(between).map(of_window).collect()
            }
        }
    }

    /// The outputs of a caption's windows as one; pooled is that of the first.
    pub(super) fn joined(&self, windows: &[Encoded]) -> candle_core::Result<Encoded> {
        let pooled = windows.first().and_then(|w| w.pooled.clone());
        let mut rows = Vec::new();
        for (at, window) in windows.iter().enumerate() {
            let Some(hidden) = &window.hidden else {
                continue;
            };
            let (count, is_last) = (hidden.dim(0)?, at + 1 == windows.len());
            rows.push(match self {
                Self::Whole { .. } => hidden.clone(),
                Self::Inner { .. } => {
                    let begin = usize::from(at > 0);
                    hidden.narrow(0, begin, count - begin - usize::from(!is_last))?
                }
            });
        }
        let hidden = match rows.is_empty() {
            true => None,
            false => Some(Tensor::cat(&rows, 0)?),
        };
        Ok(Encoded { hidden, pooled })
    }
}

fn one(ids: Vec<u32>) -> Tokens {
    let count = ids.len();
    Tokens {
        ids,
        count,
        truncated: false,
        total: count,
    }
}

/// A window of ids with its end token where kohya's scripts put it, who tell pads from others by their id alone.
fn ended(mut ids: Vec<u32>, pad: u32, end: u32) -> Vec<u32> {
    let last = ids.len() - 1;
    if ids[last - 1] != end && ids[last - 1] != pad {
        ids[last] = end;
    }
    if ids[1] == pad {
        ids[1] = end;
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(chunks: Chunks, ids: &[u32]) -> Vec<Vec<u32>> {
        let windows = chunks.windows(&one(ids.to_vec()));
        windows.into_iter().map(|w| w.ids).collect()
    }

    #[test]
    fn windows_are_ended_as_kohyas_scripts_end_them() {
        let inner = |pad| Chunks::Inner {
            window: 5,
            pad,
            end: 9,
        };
        // One start, contents of 1 to 7, one end, pads.
        assert_eq!(
            windows(inner(0), &[8, 1, 2, 3, 4, 5, 6, 7, 9, 0, 0]),
            [[8, 1, 2, 3, 9], [8, 4, 5, 6, 9], [8, 7, 9, 0, 0]]
        );
        assert_eq!(
            windows(inner(0), &[8, 1, 2, 3, 9, 0, 0, 0, 0, 0, 0]),
            [[8, 1, 2, 3, 9], [8, 9, 0, 0, 0], [8, 9, 0, 0, 0]]
        );
        assert_eq!(
            windows(inner(9), &[8, 1, 2, 9, 9, 9, 9, 9]),
            [[8, 1, 2, 9, 9], [8, 9, 9, 9, 9]]
        );
        assert_eq!(
            windows(Chunks::Whole { window: 5 }, &[8, 1, 2, 3, 9, 8, 4, 9]),
            [vec![8, 1, 2, 3, 9], vec![8, 4, 9]]
        );
    }
}

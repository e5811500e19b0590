//! Captions longer than what an encoder takes at once, cut into windows that are encoded one by one.

use super::implementation::Reader;
use super::{LONG_WORD_TOKENS, TokenRules, Tokens, Truncation};

/// More windows than any caption fills that a person wrote; what is behind them is cut.
pub(super) const MOST_WINDOWS: usize = 32;

/// How many windows a caption may fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// One: what does not fit is cut.
    One,
    /// This many, as one sequence between one start and one end token; all are encoded, however short the caption is.
    Joined(usize),
    /// As many as the caption needs, each between a start and an end token of its own.
    Whole,
}

/// What of a caption each window holds, and how many ids were cut behind the last.
pub(super) struct Contents {
    windows: Vec<Vec<u32>>,
    cut: usize,
}

/// Fills windows of `room` ids with the ids of `text`.
pub(super) fn contents(
    reader: &Reader<'_>,
    truncation: Truncation,
    text: &str,
    room: usize,
) -> Result<Contents, String> {
    let mut windows = vec![Vec::new()];
    match truncation {
        Truncation::Tokens => fill(&mut windows, &reader.encode(text)?, room, true),
        Truncation::WholeWords => {
            for word in text.split([' ', '\n']).filter(|word| !word.is_empty()) {
                let ids = reader.encode(word)?;
                fill(&mut windows, &ids, room, ids.len() >= LONG_WORD_TOKENS);
            }
        }
    }
    let behind = windows.split_off(windows.len().min(MOST_WINDOWS));
    Ok(Contents {
        windows,
        cut: behind.iter().map(Vec::len).sum(),
    })
}

/// Puts ids into the last window; what does not fit goes on in the next, whole unless `breaks`.
fn fill(windows: &mut Vec<Vec<u32>>, mut ids: &[u32], room: usize, breaks: bool) {
    let room = room.max(1);
    while let Some(last) = windows.last_mut() {
        let free = room - last.len();
        if ids.len() <= free {
            last.extend(ids);
            return;
        }
        // What no window holds is broken in any case.
        if breaks || last.is_empty() {
            last.extend(&ids[..free]);
            ids = &ids[free..];
        }
        windows.push(Vec::new());
    }
}

/// The windows between their specials, one behind the other. All but the last are of `most` ids.
pub(super) fn framed(
    contents: &Contents,
    most: usize,
    rules: &TokenRules,
    (before, after): (&[u32], &[u32]),
) -> Tokens {
    let (mut ids, mut count) = (Vec::new(), 0);
    for (at, content) in contents.windows.iter().enumerate() {
        let start = ids.len();
        ids.extend_from_slice(before);
        ids.extend_from_slice(content);
        ids.extend_from_slice(after);
        count = ids.len();
        let is_last = at + 1 == contents.windows.len();
        let least = if is_last { rules.min_tokens } else { most };
        ids.resize(count.max(start + least), rules.pad_id);
    }
    Tokens {
        ids,
        count,
        truncated: contents.cut > 0,
        total: count + contents.cut,
    }
}

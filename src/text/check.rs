//! Checks that several kinds of encoder make.

use super::{Error, Tokens};
use crate::monitor::Stop;

/// Checks that a spec's number is one that a network can be made of.
pub(super) fn positive(field: &str, value: usize) -> Result<usize, Error> {
    match value {
        0 => Err(Error::Spec(format!("{field} is 0"))),
        // Larger than any network, and small enough that no product of two sizes overflows.
        value if value > 1 << 28 => Err(Error::Spec(format!("{field} is {value}"))),
        value => Ok(value),
    }
}

/// Checks that ids are rows of the embedding table.
pub(super) fn check_vocabulary(captions: &[Tokens], vocab_size: usize) -> Result<(), Error> {
    for (caption, tokens) in captions.iter().enumerate() {
        if let Some(position) = tokens.ids.iter().position(|&id| id as usize >= vocab_size) {
            return Err(Error::Vocabulary {
                caption,
                position,
                id: tokens.ids[position],
                vocab_size,
            });
        }
    }
    Ok(())
}

/// Goes on unless the work is to end.
pub(super) fn go_on(stop: Stop) -> Result<(), Error> {
    stop().map_or(Ok(()), |signal| Err(Error::Stopped(signal)))
}

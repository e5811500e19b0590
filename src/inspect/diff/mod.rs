//! What differs between two ways to encode a caption, between two captions, or between two stores: first the parameters, then the
//! numbers, with true tokens, pads and pooled vectors apart.
//!
//! Everything is read from stores, with digests checked, or from another trainer's cache that was audited; nothing is encoded here.
//!
//! - `side`: the encoders of an Experiment, of a store by itself, or of a cache, and which of one side is which of the other
//! - [`caption_diff`]: one caption, row by row
//! - [`set_diff`]: many captions, summed up

mod caption;
mod set;
mod side;

use serde::Serialize;

pub use caption::{CaptionDiff, EncoderDiff, Received, caption_diff};
pub use set::{EncoderSetDiff, SetDiff, Spread, WorstCaption, set_diff};
pub use side::Side;

use crate::audit::Made;
use crate::digest::Fingerprint;
use crate::recipe::Diff;

/// An encoder of one side, and that of the other which it is compared with.
#[derive(Clone, Debug, Serialize)]
pub struct Pairing {
    /// What each side calls it; `None` where it has none.
    pub slots: [Option<String>; 2],
    /// Their specs.
    pub specs: [Option<Fingerprint>; 2],
    /// The parameters that differ, those first that come first on the way from a caption to numbers. `wanted` is what the first side
    /// has, `found` what the second has.
    pub parameters: Diff,
    /// Of a side that is another trainer's cache: what made it, as far as it can be told.
    #[serde(skip_serializing_if = "no_cache")]
    pub made: [Option<Made>; 2],
}

fn no_cache(made: &[Option<Made>; 2]) -> bool {
    made.iter().all(Option::is_none)
}

impl Pairing {
    /// What a person calls it.
    pub fn name(&self) -> String {
        match &self.slots {
            [Some(first), Some(second)] if first != second => format!("{first} | {second}"),
            [Some(slot), _] | [None, Some(slot)] => slot.clone(),
            [None, None] => String::new(),
        }
    }
}

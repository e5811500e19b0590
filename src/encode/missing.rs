//! What is to be encoded, counted before it is begun.

use std::collections::BTreeSet;
use std::iter::Sum;

use super::Error;
use super::captions::{CaptionPlan, EncoderPlan, amount};
use super::part::Part;
use super::pictures::PicturePlan;
use crate::base_model::TextEncoderPart;
use crate::dataset::{self, Item};
use crate::monitor::Monitor;
use crate::shown;
use crate::store::Store;

/// Entries that a store lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// How many.
    pub entries: u64,
    /// About what they take in the store, in bytes.
    pub bytes: u64,
}

impl Sum for Missing {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self {
            entries: a.entries + b.entries,
            bytes: a.bytes + b.bytes,
        })
    }
}

/// What a store lacks of an encoder's entries of some captions, each of them named once.
///
/// # Errors
/// If the store cannot be read, or a caption cannot be tokenized.
pub fn missing(
    encoder: &TextEncoderPart,
    store: &Store,
    captions: &[&str],
) -> Result<Missing, Error> {
    Ok(EncoderPlan::new(encoder, store, captions, Part::WHOLE)?.missing())
}

/// Tells how many captions there are, what of them is to be encoded, and of pictures and clips.
pub(super) fn tell(
    plan: &CaptionPlan<'_>,
    items: &[Item],
    latents: Option<&PicturePlan<'_>>,
    monitor: &dyn Monitor,
) {
    let missing = plan.missing();
    if missing.entries > 0 {
        monitor.note(&format!(
            "{}{}; to encode: {}, about {} in the store",
            shown::counted(plan.captions.len(), "different caption"),
            variants(items),
            shown::counted(missing.entries, "embedding"),
            amount(missing.bytes)
        ));
    }
    let missing = latents.map(PicturePlan::missing).unwrap_or_default();
    if missing.entries > 0 {
        monitor.note(&format!(
            "to encode: latents of {}, about {} in the store",
            shown::counted(missing.entries, "view"),
            amount(missing.bytes)
        ));
    }
}

/// How many of the captions are variants, in brackets; nothing where none are.
fn variants(items: &[Item]) -> String {
    let varied = items.iter().filter(|item| item.captions.len() > 1);
    let different: BTreeSet<_> = varied.clone().flat_map(|item| &item.captions).collect();
    match different.len() {
        0 => String::new(),
        count => format!(
            " ({count} of them variants for {})",
            dataset::items_in_words(varied)
        ),
    }
}

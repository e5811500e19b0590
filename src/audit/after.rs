//! What trainers do to an encoder's sequence before they store it.

use candle_core::{Result, Tensor};
use serde::Serialize;

/// What became of an encoder's sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum After {
    /// It is stored as the encoder gave it.
    Nothing,
    /// Rows of pads are zeros.
    PadsZeroed,
    /// Rows of pads are not there.
    PadsDropped,
    /// Rows are cut off behind the true tokens, as where captions are encoded in batches that are as long as their longest.
    Shortened,
    /// The same, and what is left of the pads is zeros.
    ShortenedZeroed,
    /// Rows of zeros are where the recipe drops pads and itself fills up with zeros, to its length.
    FilledUp,
    /// Rows of zeros follow, as where caches of different lengths are put into one batch.
    Lengthened,
    /// Rows of pads follow that the denoiser does not see, and the recipe does not keep.
    UnseenPads,
}

impl After {
    /// All, the simplest first.
    pub(super) const ALL: [Self; 8] = [
        Self::Nothing,
        Self::PadsZeroed,
        Self::PadsDropped,
        Self::Shortened,
        Self::ShortenedZeroed,
        Self::FilledUp,
        // Where rows of zeros are of pads that are not shown, these they are.
        Self::UnseenPads,
        Self::Lengthened,
    ];

    /// As a person reads it; nothing for nothing.
    pub fn words(self) -> Option<&'static str> {
        match self {
            Self::Nothing | Self::FilledUp => None,
            Self::PadsZeroed => Some("pads zeroed"),
            Self::PadsDropped => Some("pads dropped"),
            Self::Shortened => Some("pads cut to a shorter length"),
            Self::ShortenedZeroed => Some("pads zeroed and cut to a shorter length"),
            Self::Lengthened => Some("rows of zeros behind them"),
            Self::UnseenPads => {
                Some("pads that the denoiser does not see, which were not compared")
            }
        }
    }

    /// Whether the denoiser is shown what the recipe has it shown.
    pub fn is_the_recipes(self) -> bool {
        matches!(self, Self::Nothing | Self::FilledUp | Self::UnseenPads)
    }

    /// Whether `given` rows with `count` true tokens can have become `found` rows, of which the denoiser is shown `shown`, where an entry
    /// says so.
    pub(super) fn fits(
        self,
        given: usize,
        count: usize,
        found: usize,
        shown: Option<usize>,
    ) -> bool {
        match self {
            Self::Nothing => given == found,
            Self::PadsZeroed => given == found && count < given,
            Self::PadsDropped => count == found && count < given,
            Self::Shortened | Self::ShortenedZeroed => found < given && count <= found,
            Self::FilledUp | Self::Lengthened => found > given,
            // Of a recipe that keeps the first pad alone, or none where the entry itself says that no pad is shown.
            Self::UnseenPads => {
                found > given && (given == count + 1 || given == count && shown == Some(count))
            }
        }
    }

    /// From which row on there are zeros after it, of `given` rows with `count` true tokens; `None` where it makes none.
    pub(super) fn zeroed_from(self, given: usize, count: usize) -> Option<usize> {
        match self {
            Self::PadsZeroed | Self::ShortenedZeroed => Some(count),
            Self::FilledUp | Self::Lengthened => Some(given),
            Self::Nothing | Self::PadsDropped | Self::Shortened | Self::UnseenPads => None,
        }
    }

    /// The sequence, [rows, width], after it.
    pub(super) fn of(self, hidden: &Tensor, count: usize, found: usize) -> Result<Tensor> {
        let (rows, width) = hidden.dims2()?;
        let zeros = |rows: usize| Tensor::zeros((rows, width), hidden.dtype(), hidden.device());
        let true_rows = || hidden.narrow(0, 0, count.min(rows));
        match self {
            Self::Nothing | Self::UnseenPads => Ok(hidden.clone()),
            Self::PadsDropped => true_rows(),
            Self::PadsZeroed => Tensor::cat(&[&true_rows()?, &zeros(rows - count.min(rows))?], 0),
            Self::Shortened => hidden.narrow(0, 0, found.min(rows)),
            Self::ShortenedZeroed => {
                Tensor::cat(&[&true_rows()?, &zeros(found.saturating_sub(count))?], 0)
            }
            Self::FilledUp | Self::Lengthened => {
                Tensor::cat(&[hidden, &zeros(found.saturating_sub(rows))?], 0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn pads_that_a_recipe_does_not_keep_are_not_compared() {
        let fits = |given, count, found| After::UnseenPads.fits(given, count, found, None);
        // Three tokens and one pad of 512 rows; not where pads are dropped, kept, or not there.
        assert!(fits(4, 3, 512));
        assert!(!fits(3, 3, 512) && !fits(512, 3, 512) && !fits(4, 3, 4) && !fits(4, 3, 3));
        // Where pads are dropped, the entry must say that they are not shown.
        let shown = |shown| After::UnseenPads.fits(3, 3, 512, shown);
        assert!(shown(Some(3)) && !shown(Some(512)) && !shown(None));
        let rows = Tensor::ones((4, 2), DType::F32, &Device::Cpu).expect("made");
        let same = After::UnseenPads.of(&rows, 3, 512).expect("made");
        assert_eq!(same.dims(), [4, 2]);
    }
}

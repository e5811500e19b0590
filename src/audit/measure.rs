//! How near what a recipe gives is to what a cache has, and how near is the same.

use candle_core::Result;
use serde::Serialize;

use super::after::After;
use super::observe::Seen;
use crate::cache::EncoderOutput;
use crate::cache::difference::{Compared, RowsDifference, Sequence, compare_rows, compare_vectors};
use crate::text::spec::Dtype;

/// How far a cache is from what a recipe gives: the Euclidean norm of the difference as a part of what the recipe gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Errors {
    /// Over rows of true tokens.
    pub tokens: Option<f64>,
    /// Over rows of pads.
    pub pads: Option<f64>,
    /// Of the pooled vector.
    pub pooled: Option<f64>,
    /// The largest absolute difference of two numbers.
    pub max_abs: f64,
    /// The smallest cosine of two rows of true tokens, or of the pooled vectors where there are no rows.
    pub cosine: Option<f64>,
}

impl Errors {
    /// The largest of the relative differences.
    pub fn worst(&self) -> f64 {
        let parts = [self.tokens, self.pads, self.pooled];
        parts.into_iter().flatten().fold(0.0, f64::max)
    }

    /// Of several captions: the largest of each.
    pub(super) fn of_all<'a>(all: impl Iterator<Item = &'a Self>) -> Self {
        let larger = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        let smaller = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        all.fold(Self::default(), |sum, one| Self {
            tokens: larger(sum.tokens, one.tokens),
            pads: larger(sum.pads, one.pads),
            pooled: larger(sum.pooled, one.pooled),
            max_abs: sum.max_abs.max(one.max_abs),
            cosine: smaller(sum.cosine, one.cosine),
        })
    }
}

/// The largest relative difference that counts as the same, by the precision of the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tolerance {
    /// The precision of the numbers in the cache: bf16 stored as f32 is bf16.
    pub precision: Dtype,
    /// The largest relative difference.
    pub relative: f64,
}

impl Tolerance {
    /// Two programs that compute the same in the same precision differ by their order of summation: about ten times the rounding of one
    /// number, in a network of two dozen layers.
    pub(super) fn of(precision: Dtype) -> Self {
        let relative = match precision {
            Dtype::F32 => 1e-4,
            Dtype::F16 => 1e-2,
            Dtype::Bf16 => 5e-2,
        };
        Self {
            precision,
            relative,
        }
    }
}

/// How far `seen` is from `output` after `after`; `None` where they cannot be compared.
pub(super) fn errors(output: &EncoderOutput, after: After, seen: &Seen) -> Result<Option<Errors>> {
    let mut errors = Errors::default();
    let mut compared = false;
    if let (Some(given), Some(found)) = (&output.hidden, &seen.hidden) {
        let (rows, _) = given.dims2()?;
        let (found_rows, _) = found.dims2()?;
        if !after.fits(rows, output.token_count, found_rows, seen.shown_rows) {
            return Ok(None);
        }
        let given = after.of(given, output.token_count, found_rows)?;
        let found = match after {
            After::UnseenPads => &found.narrow(0, 0, rows)?,
            _ => found,
        };
        let side = |rows| Sequence {
            rows,
            token_count: output.token_count,
            ids: None,
        };
        let Compared::Both(difference) = compare_rows(side(&given), side(found))? else {
            return Ok(None);
        };
        errors.tokens = relative(&difference.tokens);
        errors.pads = relative(&difference.pads);
        errors.cosine = difference.tokens.min_cosine();
        for part in [&difference.tokens, &difference.pads] {
            errors.max_abs = errors.max_abs.max(part.max_abs().unwrap_or(0.0));
        }
        compared = true;
    }
    if let (Some(given), Some(found)) = (&output.pooled, &seen.pooled) {
        let Compared::Both(difference) = compare_vectors(given, found)? else {
            return Ok(None);
        };
        let apart = difference.distance.unwrap_or(f64::INFINITY);
        errors.pooled = Some(part_of(apart, difference.norms[0]));
        errors.max_abs = errors
            .max_abs
            .max(difference.max_abs.unwrap_or(f64::INFINITY));
        errors.cosine = errors.cosine.or(difference.cosine);
        compared = true;
    }
    Ok(compared.then_some(errors))
}

/// The same for rows, of which there may be none.
fn relative(rows: &RowsDifference) -> Option<f64> {
    let (mut apart, mut norm) = (0.0, 0.0);
    for row in &rows.rows {
        apart += row.difference.distance.unwrap_or(f64::INFINITY).powi(2);
        norm += row.difference.norms[0].powi(2);
    }
    (!rows.rows.is_empty()).then(|| part_of(apart.sqrt(), norm.sqrt()))
}

fn part_of(apart: f64, norm: f64) -> f64 {
    match (apart, norm) {
        (0.0, _) => 0.0,
        // Of zeros there is no part: as far as can be.
        (_, 0.0) => 1.0,
        (apart, norm) => apart / norm,
    }
}

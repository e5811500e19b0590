//! How much two outputs of text encoders differ: true tokens, pads and pooled vectors apart, row by row.
//!
//! Numbers only. What made the outputs, and why they differ, is the caller's to say.
//!
//! - [`compare_outputs`]: one encoder's output for one caption, twice
//! - [`compare_rows`], [`compare_vectors`]: their parts
//! - `align`: which token of one side is which of the other

mod align;

use candle_core::{DType, Result, Tensor};
use serde::Serialize;

use super::EncoderOutput;

pub use align::{Alignment, Pair, align};

/// A part that may be on both sides, on one, or of shapes that cannot be compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "found", content = "difference")]
pub enum Compared<T> {
    /// On neither side.
    Neither,
    /// Only on the first side.
    OnlyFirst,
    /// Only on the second side.
    OnlySecond,
    /// On both, with rows of other widths.
    Widths(usize, usize),
    /// On both.
    Both(T),
}

impl<T> Compared<T> {
    /// The difference, where there is one to tell.
    pub fn both(&self) -> Option<&T> {
        match self {
            Self::Both(difference) => Some(difference),
            _ => None,
        }
    }
}

/// How much two vectors differ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct VectorDifference {
    /// Their cosine; `None` where one is all zeros and the other is not, or a number is not finite. Two vectors of zeros: 1.
    pub cosine: Option<f64>,
    /// The largest absolute difference of two numbers in the same place; `None` where one is not finite.
    pub max_abs: Option<f64>,
    /// The Euclidean norms of both.
    pub norms: [f64; 2],
    /// The Euclidean norm of the difference; `None` where a number is not finite.
    pub distance: Option<f64>,
    /// Whether every number is the same, bit for bit but for the sign of zero.
    pub equal: bool,
    /// Numbers of either that are NaN or infinite.
    pub non_finite: usize,
}

/// How much a row of one side differs from the row of the other that it is aligned with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RowDifference {
    /// The rows' places, from 0.
    pub rows: [usize; 2],
    /// Whether both rows are of the same token; `None` where ids are not known.
    pub same_token: Option<bool>,
    /// How much they differ.
    #[serde(flatten)]
    pub difference: VectorDifference,
}

/// How much some rows differ.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RowsDifference {
    /// Those that both sides have, in order.
    pub rows: Vec<RowDifference>,
    /// Rows that only the first side has.
    pub only_first: Vec<usize>,
    /// Rows that only the second side has.
    pub only_second: Vec<usize>,
}

impl RowsDifference {
    /// Whether both sides have the same rows.
    pub fn equal(&self) -> bool {
        let one_sided = !self.only_first.is_empty() || !self.only_second.is_empty();
        !one_sided && self.rows.iter().all(|row| row.difference.equal)
    }

    /// The smallest cosine of two rows; `None` where no two rows have one.
    pub fn min_cosine(&self) -> Option<f64> {
        let cosines = self.rows.iter().filter_map(|r| r.difference.cosine);
        cosines.reduce(f64::min)
    }

    /// The mean cosine of the rows that have one.
    pub fn mean_cosine(&self) -> Option<f64> {
        let cosines = self.rows.iter().filter_map(|r| r.difference.cosine);
        let (sum, count) = cosines.fold((0.0, 0usize), |(sum, n), cosine| (sum + cosine, n + 1));
        (count > 0).then(|| sum / count as f64)
    }

    /// The largest absolute difference of two numbers.
    pub fn max_abs(&self) -> Option<f64> {
        let largest = self.rows.iter().filter_map(|r| r.difference.max_abs);
        largest.reduce(f64::max)
    }

    /// The distance of all rows from those of the first side, as a part of their norm; `None` where there is nothing to
    /// divide by, or a number is not finite.
    pub fn relative(&self) -> Option<f64> {
        let (mut apart, mut norm) = (0.0, 0.0);
        for row in &self.rows {
            apart += row.difference.distance?.powi(2);
            norm += row.difference.norms[0].powi(2);
        }
        (norm > 0.0).then(|| (apart / norm).sqrt())
    }

    /// Numbers of either side that are NaN or infinite.
    pub fn non_finite(&self) -> usize {
        self.rows.iter().map(|r| r.difference.non_finite).sum()
    }
}

/// How much two sequences differ.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SequenceDifference {
    /// Rows of true tokens: those before the pads, specials included.
    pub tokens: RowsDifference,
    /// Rows of pads, aligned by their places in the sequence.
    pub pads: RowsDifference,
}

/// How much two outputs of an encoder for a caption differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputDifference {
    /// The sequences.
    pub hidden: Compared<SequenceDifference>,
    /// The pooled vectors.
    pub pooled: Compared<VectorDifference>,
}

impl OutputDifference {
    /// Whether both sides have the same parts with the same numbers.
    pub fn equal(&self) -> bool {
        let hidden = match &self.hidden {
            Compared::Neither => true,
            Compared::Both(d) => d.tokens.equal() && d.pads.equal(),
            _ => false,
        };
        let pooled = match &self.pooled {
            Compared::Neither => true,
            Compared::Both(d) => d.equal,
            _ => false,
        };
        hidden && pooled
    }
}

/// A sequence to compare.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Shape [tokens, width]; any float type.
    pub rows: &'a Tensor,
    /// Rows before the pads.
    pub token_count: usize,
    /// The token of each row, by which rows are aligned; by their places where the ids are not known.
    pub ids: Option<&'a [u32]>,
}

/// Compares two outputs of one encoder. With the token ids of both, true tokens are aligned by them.
///
/// # Errors
/// If a sequence has not the shape [tokens, width], or a pooled vector not [width].
pub fn compare_outputs(
    (first, first_ids): (&EncoderOutput, Option<&[u32]>),
    (second, second_ids): (&EncoderOutput, Option<&[u32]>),
) -> Result<OutputDifference> {
    fn sequence<'a>(output: &'a EncoderOutput, ids: Option<&'a [u32]>) -> Option<Sequence<'a>> {
        Some(Sequence {
            rows: output.hidden.as_ref()?,
            token_count: output.token_count,
            ids,
        })
    }
    let hidden = match (sequence(first, first_ids), sequence(second, second_ids)) {
        (None, None) => Compared::Neither,
        (Some(_), None) => Compared::OnlyFirst,
        (None, Some(_)) => Compared::OnlySecond,
        (Some(first), Some(second)) => compare_rows(first, second)?,
    };
    let pooled = match (&first.pooled, &second.pooled) {
        (None, None) => Compared::Neither,
        (Some(_), None) => Compared::OnlyFirst,
        (None, Some(_)) => Compared::OnlySecond,
        (Some(first), Some(second)) => compare_vectors(first, second)?,
    };
    Ok(OutputDifference { hidden, pooled })
}

/// Compares two sequences: true tokens aligned by their ids where both are known, else by their places; pads by their places.
///
/// # Errors
/// If one has not the shape [tokens, width].
pub fn compare_rows(
    first: Sequence<'_>,
    second: Sequence<'_>,
) -> Result<Compared<SequenceDifference>> {
    let (a, b) = (values(first.rows)?, values(second.rows)?);
    let (wide, other) = (first.rows.dim(1)?, second.rows.dim(1)?);
    if wide != other {
        return Ok(Compared::Widths(wide, other));
    }
    let counts = [
        first.token_count.min(a.len()),
        second.token_count.min(b.len()),
    ];
    let ids = [
        first.ids.and_then(|ids| ids.get(..counts[0])),
        second.ids.and_then(|ids| ids.get(..counts[1])),
    ];
    let alignment = match ids {
        [Some(first), Some(second)] => align(first, second),
        _ => Alignment::by_place(0..counts[0], 0..counts[1]),
    };
    let pads = Alignment::by_place(counts[0]..a.len(), counts[1]..b.len());
    let compared = |alignment: Alignment| RowsDifference {
        rows: alignment
            .pairs
            .into_iter()
            .map(|Pair { rows, same_token }| RowDifference {
                rows,
                same_token,
                difference: difference(&a[rows[0]], &b[rows[1]]),
            })
            .collect(),
        only_first: alignment.only_first,
        only_second: alignment.only_second,
    };
    Ok(Compared::Both(SequenceDifference {
        tokens: compared(alignment),
        pads: compared(pads),
    }))
}

/// Compares two vectors, shape [width].
///
/// # Errors
/// If one has another shape.
pub fn compare_vectors(first: &Tensor, second: &Tensor) -> Result<Compared<VectorDifference>> {
    let (wide, other) = (first.dims1()?, second.dims1()?);
    if wide != other {
        return Ok(Compared::Widths(wide, other));
    }
    let vector = |t: &Tensor| t.to_dtype(DType::F32)?.to_vec1::<f32>();
    Ok(Compared::Both(difference(
        &vector(first)?,
        &vector(second)?,
    )))
}

fn values(rows: &Tensor) -> Result<Vec<Vec<f32>>> {
    rows.to_dtype(DType::F32)?.to_vec2::<f32>()
}

/// Of two vectors of one length.
fn difference(first: &[f32], second: &[f32]) -> VectorDifference {
    let (mut product, mut squares, mut apart, mut largest) = (0.0, [0.0; 2], 0.0, 0.0f64);
    let (mut equal, mut non_finite) = (true, 0);
    for (&a, &b) in first.iter().zip(second) {
        equal &= a == b;
        non_finite += usize::from(!a.is_finite()) + usize::from(!b.is_finite());
        // In f64: the squares of a T5's thousands of channels lose digits in f32.
        let (a, b) = (f64::from(a), f64::from(b));
        product += a * b;
        squares[0] += a * a;
        squares[1] += b * b;
        apart += (a - b).powi(2);
        largest = largest.max((a - b).abs());
    }
    let norms = squares.map(f64::sqrt);
    let cosine = match norms {
        [0.0, 0.0] => Some(1.0),
        // Rounding may lead beyond 1.
        [a, b] if a > 0.0 && b > 0.0 => Some((product / (a * b)).clamp(-1.0, 1.0)),
        _ => None,
    };
    let known = |x: f64| (non_finite == 0).then_some(x);
    VectorDifference {
        cosine: cosine.and_then(known),
        max_abs: known(largest),
        norms,
        distance: known(apart.sqrt()),
        equal: equal && non_finite == 0,
        non_finite,
    }
}

#[cfg(test)]
mod tests;

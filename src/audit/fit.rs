//! How near latents are to those of a view of the picture: in standard deviations of the VAE's distribution, and as correlation.

use candle_core::Tensor;

use super::latents::{Moment, Scaling};
use super::place::{Candidate, FILTERS};

/// Above this correlation with the mean, channel by channel, latents are of the picture.
const SAME_PICTURE: f64 = 0.95;
/// Below this one it is not, by whatever filter it was resized.
const FILTER_PICTURE: f64 = 0.5;
/// Above this one a sample is so near its mean that no other part of the picture can have given it.
const SURE_PICTURE: f64 = 0.999;
/// Up to this part of it, latents are a mean that was computed in f32 by another program.
const ROUNDING: f64 = 2e-3;
/// How much likelier latents must be of another candidate, as the logarithm.
const LIKELIER: f64 = 10.0;

/// How latents compare with a view of the picture.
#[derive(Clone, Copy)]
pub(super) struct Fit {
    pub(super) candidate: Candidate,
    pub(super) scaling: Scaling,
    /// By how much the VAE's latents are more spread than those of the cache if they are scaled so: the mean of the logarithms.
    pub(super) spread_by: f64,
    /// In standard deviations.
    pub(super) deviations: f64,
    /// As a part of the mean, where training takes means and the deviations say little.
    pub(super) part: Option<f64>,
    pub(super) correlation: f64,
    /// The deviation of `deviations` where the latents are a sample.
    pub(super) spread: f64,
    /// Which of the other filters it may be, where it is not the spec's: latents of some precision do not tell all of them apart.
    pub(super) filters: [bool; FILTERS.len()],
}

impl Fit {
    pub(super) fn moment(&self) -> Moment {
        match self.deviations {
            d if d <= 0.1 => Moment::Mean,
            _ if self.part.is_some_and(|part| part <= ROUNDING) => Moment::Mean,
            d if (d - 1.0).abs() <= 6.0 * self.spread + 0.02 => Moment::Sample,
            _ => Moment::Near,
        }
    }

    /// Whether the latents are of the picture at all.
    pub(super) fn is_its(&self) -> bool {
        self.correlation >= SAME_PICTURE || self.deviations <= 1.0 + 6.0 * self.spread
    }

    /// Whether no other candidate need be looked at.
    pub(super) fn is_sure(&self) -> bool {
        match self.moment() {
            Moment::Mean => true,
            Moment::Sample => self.correlation >= SURE_PICTURE,
            Moment::Near => false,
        }
    }

    /// Whether the picture may have been resized by another filter.
    pub(super) fn may_be_filtered(&self) -> bool {
        let off = (self.deviations - 1.0).abs();
        let is_exact = self.moment() == Moment::Mean || off <= 3.0 * self.spread;
        !is_exact && self.correlation >= FILTER_PICTURE
    }

    /// Whether the latents are likelier to be scaled as this one says, of the same candidate. What is less spread lies nearer to any mean:
    /// that is no sign of it.
    pub(super) fn is_likelier_scaled(&self, other: &Self) -> bool {
        let is_mean = self.moment() == Moment::Mean || other.moment() == Moment::Mean;
        let unlikely = |fit: &Self| fit.deviations.powi(2) / 2.0 - fit.spread_by;
        match is_mean {
            true => self.deviations < other.deviations,
            false => unlikely(self) < unlikely(other),
        }
    }

    /// Whether the latents are clearly likelier of this one.
    pub(super) fn beats(&self, other: &Self) -> bool {
        let numbers = 0.5 / self.spread.powi(2);
        let gain = numbers / 2.0 * (other.deviations.powi(2) - self.deviations.powi(2));
        // The means of a small picture are few numbers, but exact ones.
        gain > LIKELIER || other.deviations > 0.1 && self.deviations < other.deviations / 2.0
    }
}

/// Root mean square of the distance from the mean, in standard deviations.
pub(super) fn deviations(
    latents: &Tensor,
    mean: &Tensor,
    logvar: &Tensor,
) -> candle_core::Result<f64> {
    let std = logvar.affine(0.5, 0.0)?.exp()?;
    let z = ((latents - mean)? / std)?;
    Ok(f64::from(z.sqr()?.mean_all()?.to_scalar::<f32>()?).sqrt())
}

/// The Euclidean norm of the distance from the mean, as a part of the mean's.
pub(super) fn part_of_mean(latents: &Tensor, mean: &Tensor) -> candle_core::Result<f64> {
    let norm = |t: &Tensor| -> candle_core::Result<f64> {
        Ok(f64::from(t.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt())
    };
    Ok(norm(&(latents - mean)?)? / norm(mean)?)
}

/// Correlation over all numbers, each channel less its mean.
pub(super) fn correlation(a: &Tensor, b: &Tensor) -> candle_core::Result<f64> {
    let centered = |t: &Tensor| {
        t.flatten_from(1)?
            .broadcast_sub(&t.flatten_from(1)?.mean_keepdim(1)?)
    };
    let (a, b) = (centered(a)?, centered(b)?);
    let dot = |x: &Tensor, y: &Tensor| -> candle_core::Result<f64> {
        Ok(f64::from((x * y)?.sum_all()?.to_scalar::<f32>()?))
    };
    let norms = dot(&a, &a)? * dot(&b, &b)?;
    let product = dot(&a, &b)?;
    Ok(match norms > 0.0 {
        true => product / norms.sqrt(),
        false => 0.0,
    })
}

/// Where in latents of a larger picture, [channels, height, width] as well, a part is most like `latents`: the correlation, and the
/// first column and row. `None` where the picture is smaller.
pub(super) fn most_alike_part(
    whole: &Tensor,
    latents: &Tensor,
) -> candle_core::Result<Option<(f64, [u32; 2])>> {
    let ((_, rows, columns), (_, high, wide)) = (whole.dims3()?, latents.dims3()?);
    if rows < high || columns < wide {
        return Ok(None);
    }
    let mut best: Option<(f64, [u32; 2])> = None;
    for row in 0..=rows - high {
        for column in 0..=columns - wide {
            let part = whole.narrow(1, row, high)?.narrow(2, column, wide)?;
            let alike = correlation(&part, latents)?;
            if best.is_none_or(|(known, _)| alike > known) {
                best = Some((alike, [column as u32, row as u32]));
            }
        }
    }
    Ok(best)
}

//! A paired difference of two LoRAs' losses over pictures, by the statistics of [`crate::probe`].

use serde::Serialize;

use crate::probe::stats;

/// 1 less the confidence of intervals.
const ALPHA: f64 = 0.05;

/// B's loss less A's, over pictures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// The mean difference: below 0 where B's losses are lower.
    pub mean: f64,
    /// Its 95 % interval; None where fewer than [`stats::FEWEST_CHANGED`] pictures differ.
    pub interval: Option<[f64; 2]>,
    /// The probability of a difference this large, either way, if there were none; None where there is no interval.
    pub p: Option<f64>,
    /// Pictures for which B's loss is the lower one.
    pub b_is_lower: usize,
    /// Pictures that would tell, if the difference is as large as it seems; None where there is no interval.
    pub pictures_to_tell: Option<u64>,
}

impl Paired {
    /// Of the losses of A and B, picture by picture.
    pub fn of(a: &[f64], b: &[f64]) -> Self {
        let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
        let found = stats::Paired::of(&differences);
        let interval = found.interval(ALPHA).map(|(low, high)| [low, high]);
        Self {
            mean: found.mean,
            p: interval.map(|_| found.p),
            interval,
            b_is_lower: differences.iter().filter(|d| **d < 0.0).count(),
            pictures_to_tell: interval.and_then(|_| found.pictures_to_tell(ALPHA)),
        }
    }

    /// Whether the interval leaves 0 out.
    pub fn is_shown(&self) -> bool {
        self.interval
            .is_some_and(|[low, high]| low > 0.0 || high < 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_b_less_a() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let b = [1.5, 2.25, 3.75, 4.5, 5.25, 6.75];
        let found = Paired::of(&a, &b);
        assert_eq!((found.mean, found.b_is_lower), (0.5, 0));
        assert!(found.is_shown() && found.p.is_some_and(|p| p < 0.05));
        let [low, high] = found.interval.expect("six pictures");
        assert!((low + high - 1.0).abs() < 1e-12, "{low} {high}");
        let turned = Paired::of(&b, &a);
        assert_eq!((turned.mean, turned.b_is_lower), (-0.5, 6));
        assert_eq!(turned.p, found.p);
    }

    #[test]
    fn what_has_no_spread_or_too_few_pictures_claims_nothing() {
        let few = Paired::of(&[1.0, 2.0, 3.0], &[2.0, 3.5, 4.0]);
        assert_eq!((few.interval, few.p), (None, None));
        for same in [&[][..], &[1.0; 8]] {
            let found = Paired::of(same, same);
            assert_eq!((found.mean, found.is_shown()), (0.0, false));
        }
    }
}

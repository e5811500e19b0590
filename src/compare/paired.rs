//! Paired differences: a mean with an interval over pictures, by Student's t.

use serde::Serialize;

/// The confidence of intervals.
const CONFIDENCE: f64 = 0.95;

/// B's loss less A's, over pictures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// The mean difference: below 0 where B's losses are lower.
    pub mean: f64,
    /// Its 95 % interval; None of a single picture.
    pub interval: Option<[f64; 2]>,
    /// The probability of a difference this large, either way, if there were none; None where no two pictures differ in theirs.
    pub p: Option<f64>,
    /// Pictures for which B's loss is the lower one.
    pub b_is_lower: usize,
}

impl Paired {
    /// Of the losses of A and B, picture by picture.
    pub fn of(a: &[f64], b: &[f64]) -> Self {
        let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
        let count = differences.len() as f64;
        let mean = differences.iter().sum::<f64>() / count.max(1.0);
        let squares: f64 = differences.iter().map(|d| (d - mean).powi(2)).sum();
        let freedom = count - 1.0;
        let error = (squares / freedom / count).sqrt();
        let known = freedom >= 1.0;
        let half = || t_quantile(CONFIDENCE, freedom) * error;
        Self {
            mean,
            interval: known.then(|| [mean - half(), mean + half()]),
            p: (known && error > 0.0).then(|| t_outside(mean / error, freedom)),
            b_is_lower: differences.iter().filter(|d| **d < 0.0).count(),
        }
    }

    /// Whether the interval leaves 0 out, on which side.
    pub fn is_shown(&self) -> bool {
        self.interval
            .is_some_and(|[low, high]| low > 0.0 || high < 0.0)
    }
}

/// The probability that Student's t is farther from 0 than `t`.
fn t_outside(t: f64, freedom: f64) -> f64 {
    incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + t * t))
}

/// The t that a share `inside` of Student's distribution lies within, either way of 0.
fn t_quantile(inside: f64, freedom: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1e4);
    // To more digits than anybody reads.
    for _ in 0..80 {
        let middle = (low + high) / 2.0;
        if t_outside(middle, freedom) > 1.0 - inside {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// The regularized incomplete beta function I_x(a, b), by its continued fraction (Abramowitz and Stegun, 26.5.8), summed by Lentz's
/// method.
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    // The fraction converges fast on one side; the other is its mirror.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    let front = (a * x.ln() + b * (1.0 - x).ln() - ln_beta(a, b)).exp() / a;
    front * fraction(a, b, x)
}

fn fraction(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let away = |value: f64| if value.abs() < TINY { TINY } else { value };
    let (mut c, mut d) = (1.0, 1.0 / away(1.0 - (a + b) * x / (a + 1.0)));
    let mut sum = d;
    for m in 1..500 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for term in [even, odd] {
            d = 1.0 / away(1.0 + term * d);
            c = away(1.0 + term / c);
            change = c * d;
            sum *= change;
        }
        if (change - 1.0).abs() < 1e-15 {
            break;
        }
    }
    sum
}

fn ln_beta(a: f64, b: f64) -> f64 {
    ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b)
}

/// ln of the gamma function of a positive number, by Stirling's series (Abramowitz and Stegun, 6.1.41).
fn ln_gamma(mut x: f64) -> f64 {
    let mut shift = 0.0;
    while x < 10.0 {
        shift -= x.ln();
        x += 1.0;
    }
    let series = 1.0 / (12.0 * x) - 1.0 / (360.0 * x.powi(3)) + 1.0 / (1260.0 * x.powi(5))
        - 1.0 / (1680.0 * x.powi(7));
    shift + (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() <= 1e-8 * expected.abs(),
            "{found}, expected {expected}"
        );
    }

    #[test]
    fn students_t_is_that_of_scipy() {
        // scipy.stats: t.ppf(0.975, n) and 2 * t.sf(x, n).
        close(t_quantile(0.95, 1.0), 12.706_204_736_174_694);
        close(t_quantile(0.95, 9.0), 2.262_157_162_798_205);
        close(t_quantile(0.95, 127.0), 1.978_819_534_702_853_9);
        close(t_outside(2.5, 9.0), 0.033_861_827_682_985_735);
        close(t_outside(-0.3, 3.0), 0.783_763_292_039_919);
        close(t_outside(12.0, 63.0), 6.347_967_543_679_063e-18);
    }

    #[test]
    fn a_difference_is_b_less_a() {
        let a = [1.0, 2.0, 3.0, 4.0];
        let b = [1.5, 2.25, 3.75, 4.5];
        let found = Paired::of(&a, &b);
        assert_eq!((found.mean, found.b_is_lower), (0.5, 0));
        let [low, high] = found.interval.expect("four pictures");
        // scipy.stats.t.interval.
        close(low, 0.175_192_934_093_722_27);
        close(high, 0.824_807_065_906_277_8);
        assert!(found.is_shown() && found.p.is_some_and(|p| p < 0.05));
        let turned = Paired::of(&b, &a);
        assert_eq!((turned.mean, turned.p), (-0.5, found.p));
    }

    #[test]
    fn what_has_no_spread_claims_none() {
        assert_eq!(Paired::of(&[1.0], &[2.0]).interval, None);
        assert_eq!(Paired::of(&[1.0, 2.0], &[1.0, 2.0]).p, None);
        assert!(!Paired::of(&[1.0, 2.0], &[1.0, 2.0]).is_shown());
        assert!(!Paired::of(&[], &[]).is_shown());
    }
}

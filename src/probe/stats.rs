//! What a paired comparison says: means, intervals and p-values over pictures, and what looking several times costs.
//!
//! # The test
//!
//! The unit is the picture: its draws of noise are averaged first, and copies of a picture are one. The test is the paired t test over
//! the pictures whose conditioning differs; the others are exactly 0 under any hypothesis and would only make a few differences look
//! like many. Sign flips ask for less (a symmetric distribution), but a corrected p-value of 0.001 over thirty candidates and four looks
//! needs a hundred thousand of them a candidate and look; so they are what the t test is measured against (`cargo bench -- probe`), and
//! a bound: no p-value is below what the flips of so many pictures could give, `2^(1-n)`.
//!
//! # Looking several times
//!
//! Each planned look gets a share of alpha, as the spending function of Lan and DeMets (Biometrika 70, 1983) that approximates O'Brien
//! and Fleming's boundary spends it: little early, most at the end. A candidate's p-value is the smallest over the looks made of `p /
//! share`. By the union bound it is below alpha with at most that probability whenever the probe stops and however the looks depend on
//! each other, for a little power (the exact boundary of four looks ends at 0.043 instead of 0.026). Holm's procedure
//! (Scand. J. Statist. 6, 1979) over all candidates then holds for the whole sequence.

/// Fewer pictures that changed say nothing: six signs that agree have a p-value of 0.03.
pub const FEWEST_CHANGED: usize = 6;
/// The first look has at least as many pictures.
const FEWEST_AT_A_LOOK: usize = 12;
/// Looks that are planned where there are pictures enough.
const LOOKS: usize = 4;
/// The power for which a number of pictures is told.
const POWER: f64 = 0.8;

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// A paired comparison over pictures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paired {
    /// All pictures.
    pub pictures: usize,
    /// Those of which the difference is not exactly 0.
    pub changed: usize,
    /// The mean difference over all.
    pub mean: f64,
    /// The mean's standard error, over all.
    pub standard_error: f64,
    /// The mean of those that changed, in their standard deviations.
    pub effect_size: f64,
    /// Two-sided; 1 where fewer than [`FEWEST_CHANGED`] changed.
    pub p: f64,
}

impl Paired {
    /// Of the difference of each picture.
    pub fn of(differences: &[f64]) -> Self {
        let changed: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
        let n = changed.len() as f64;
        let share = n / differences.len().max(1) as f64;
        let mean = changed.iter().sum::<f64>() / n.max(1.0);
        let squares: f64 = changed.iter().map(|d| (d - mean).powi(2)).sum();
        let deviation = (squares / (n - 1.0).max(1.0)).sqrt();
        let error = deviation / n.max(1.0).sqrt();
        Self {
            pictures: differences.len(),
            changed: changed.len(),
            mean: mean * share,
            standard_error: error * share,
            effect_size: match deviation > 0.0 {
                true => mean / deviation,
                false => 0.0,
            },
            p: match changed.len() < FEWEST_CHANGED {
                true => 1.0,
                false => t_two_sided(mean / error, n - 1.0).max((1.0 - n).exp2()),
            },
        }
    }

    /// The interval that covers the mean with probability `1 - alpha`; None where too few changed.
    pub fn interval(&self, alpha: f64) -> Option<(f64, f64)> {
        let freedom = self
            .changed
            .checked_sub(1)
            .filter(|_| self.changed >= FEWEST_CHANGED)?;
        let half = t_quantile(alpha, freedom as f64) * self.standard_error;
        Some((self.mean - half, self.mean + half))
    }

    /// Pictures of the same kind that would tell a difference as large as this one at `alpha` in 4 of 5 probes.
    pub fn pictures_to_tell(&self, alpha: f64) -> Option<u64> {
        let effect = self.effect_size.abs();
        if self.changed < FEWEST_CHANGED || effect == 0.0 {
            return None;
        }
        let normal = |alpha| t_quantile(alpha, f64::INFINITY);
        let changed = ((normal(alpha) + normal(2.0 * (1.0 - POWER))) / effect).powi(2);
        Some((changed * self.pictures as f64 / self.changed as f64).ceil() as u64)
    }
}

/// The looks at `pictures` pictures, each with its part of alpha.
pub fn looks(pictures: usize, alpha: f64) -> Vec<(usize, f64)> {
    let at = |look: usize| (pictures * look).div_ceil(LOOKS);
    let mut sizes: Vec<usize> = (1..LOOKS).map(at).collect();
    sizes.retain(|&size| size >= FEWEST_AT_A_LOOK && size < pictures);
    sizes.push(pictures);
    sizes.dedup();
    let mut spent = 0.0;
    let look = |size: usize| {
        let by_then = spent_at(size as f64 / pictures.max(1) as f64, alpha);
        let share = (by_then - spent) / alpha;
        spent = by_then;
        (size, share)
    };
    sizes.into_iter().map(look).collect()
}

/// What the spending function has spent of `alpha` at a part of all pictures (Lan and DeMets 1983, their first one, two-sided).
fn spent_at(part: f64, alpha: f64) -> f64 {
    normal_two_sided(t_quantile(alpha, f64::INFINITY) / part.sqrt())
}

/// Holm's correction: each p-value as it counts among all of them.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut corrected = vec![1.0; p.len()];
    let mut largest: f64 = 0.0;
    for (rank, &at) in order.iter().enumerate() {
        largest = largest.max(p[at] * (p.len() - rank) as f64).min(1.0);
        corrected[at] = largest;
    }
    corrected
}

/// The probability that |z| is larger.
fn normal_two_sided(z: f64) -> f64 {
    libm::erfc(z.abs() / std::f64::consts::SQRT_2)
}

/// The probability that |t| with `freedom` degrees of freedom is larger.
pub fn t_two_sided(t: f64, freedom: f64) -> f64 {
    if t.is_infinite() {
        return 0.0;
    }
    if t.is_nan() {
        return 1.0;
    }
    if freedom.is_infinite() {
        return normal_two_sided(t);
    }
    incomplete_beta(
        freedom / (freedom + t * t),
        t * t / (freedom + t * t),
        freedom / 2.0,
        0.5,
    )
}

/// The t that |t| exceeds with probability `alpha`; infinitely many degrees of freedom are the normal distribution.
pub fn t_quantile(alpha: f64, freedom: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while t_two_sided(high, freedom) > alpha && high < 1e12 {
        high *= 2.0;
    }
    // The probability falls with t: halving finds it, to the last bit that a table would show.
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        match t_two_sided(middle, freedom) > alpha {
            true => low = middle,
            false => high = middle,
        }
    }
    0.5 * (low + high)
}

/// The regularized incomplete beta function I_x(a, b); `y` is 1 - x, which a difference would lose the digits of.
fn incomplete_beta(x: f64, y: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if y <= 0.0 {
        return 1.0;
    }
    let front = a * x.ln() + b * y.ln() + libm::lgamma(a + b) - libm::lgamma(a) - libm::lgamma(b);
    // The fraction converges fast on this side of the mean, and on the other by symmetry.
    match x < (a + 1.0) / (a + b + 2.0) {
        true => front.exp() * beta_fraction(x, a, b) / a,
        false => 1.0 - front.exp() * beta_fraction(y, b, a) / b,
    }
}

/// The continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method.
fn beta_fraction(x: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let away = |v: f64| if v.abs() < TINY { TINY } else { v };
    let mut c: f64 = 1.0;
    let mut d = 1.0 / away(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = d;
    for m in 1..10_000 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        for coefficient in [even, odd] {
            d = 1.0 / away(1.0 + coefficient * d);
            c = away(1.0 + coefficient / c);
            fraction *= c * d;
        }
        if (c * d - 1.0).abs() < 1e-15 {
            break;
        }
    }
    fraction
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;

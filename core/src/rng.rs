//! Randomness as data: every draw is a function of (seed, stream, step, sample), so a resumed run, another
//! thread count or another device draws the same numbers. There is no global generator and no device
//! generator.
//!
//! The generator is ChaCha8 keyed by BLAKE3 of the four coordinates; normals are Box-Muller in f64.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

/// What the numbers are for. Two streams never share numbers. The numbers of the variants are part of the
/// meaning of a seed: append, never reorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// The order of samples in an epoch (step = epoch).
    Shuffle = 1,
    /// The noise added to latents in training.
    Noise = 2,
    /// The timestep of a sample.
    Timestep = 3,
    /// The draw from the VAE's posterior.
    Posterior = 4,
    /// Whether a sample's caption is replaced by the empty one.
    CaptionDropout = 5,
    /// Dropout inside an adapter (sample = the adapter's number).
    AdapterDropout = 6,
    /// The start values of an adapter (sample = the adapter's number).
    AdapterInit = 7,
    /// The noise of validation.
    Validation = 8,
    /// The start noise of sampled pictures.
    Sample = 9,
    /// Which crop or flip of a picture a step uses.
    Augment = 10,
    /// The shift of a sample's noise, one number a channel.
    NoiseOffset = 11,
    /// The noise that a sampler adds on its way (step = the sampler's).
    SampleStep = 12,
    /// Which of a picture's captions a step uses.
    Caption = 13,
    /// A probe's noise and timesteps (step = the draw, sample = from the picture's digest), and its order of pictures (step =
    /// `u64::MAX`).
    Probe = 14,
}

/// The random numbers of one coordinate (seed, stream, step, sample), from its first on.
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// The generator of `stream` at (`seed`, `step`, `sample`).
    pub fn new(seed: u64, stream: Stream, step: u64, sample: u64) -> Self {
        Self::with_key(Self::key(seed, stream, step, sample))
    }

    /// The generator with the key.
    pub fn with_key(key: [u8; 32]) -> Self {
        Self(ChaCha8Rng::from_seed(key))
    }

    /// The key of the generator at a coordinate: for a GPU's kernel that makes the same numbers.
    pub fn key(seed: u64, stream: Stream, step: u64, sample: u64) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        // A prefix of our own, so that no other use of BLAKE3 makes the same key. The numbers are of fixed width, so no two
        // coordinates make the same bytes.
        hasher.update(b"plumb rng 1");
        hasher.update(&seed.to_le_bytes());
        hasher.update(&(stream as u32).to_le_bytes());
        hasher.update(&step.to_le_bytes());
        hasher.update(&sample.to_le_bytes());
        *hasher.finalize().as_bytes()
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        // 53 bits are what an f64's mantissa holds: every value is exact, and rounding never makes 1 of one.
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in 0..`bound` without bias. `bound` must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        debug_assert!(bound > 0, "an empty range has no number");
        // Taken modulo `bound`, the draws past the last whole multiple of it would make small numbers likelier: they are drawn
        // again.
        let limit = u64::MAX - u64::MAX % bound;
        loop {
            let draw = self.0.next_u64();
            if draw < limit {
                return draw % bound;
            }
        }
    }

    /// `count` standard normals, each pair from two draws.
    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(count + 1);
        while out.len() < count {
            // `1 - uniform` is in (0, 1], so the logarithm is finite.
            let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
            out.push((radius * cos) as f32);
            out.push((radius * sin) as f32);
        }
        out.truncate(count);
        out
    }

    /// One standard normal, from two draws; the pair's other one is not kept.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Shuffles in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_coordinate_gives_its_own_numbers_and_always_the_same() {
        let draw = |seed, stream, step, sample| Rng::new(seed, stream, step, sample).0.next_u64();
        let base = draw(1, Stream::Noise, 2, 3);
        assert_eq!(base, draw(1, Stream::Noise, 2, 3));
        for other in [
            draw(2, Stream::Noise, 2, 3),
            draw(1, Stream::Timestep, 2, 3),
            draw(1, Stream::Noise, 3, 3),
            draw(1, Stream::Noise, 2, 4),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_numbers_of_a_seed_never_change() {
        let mut rng = Rng::new(42, Stream::Noise, 0, 0);
        let drawn = rng.normals(3);
        expect_test::expect!["[1.7368574, 0.21591738, -0.72274107]"]
            .assert_eq(&format!("{drawn:?}"));
    }

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let n = 200_000;
        let xs = Rng::new(7, Stream::Noise, 0, 0).normals(n);
        let mean = xs.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let variance =
            xs.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n as f64 - mean * mean;
        assert!(
            mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02,
            "{mean} {variance}"
        );
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..1000).collect();
        Rng::new(1, Stream::Shuffle, 0, 0).shuffle(&mut items);
        assert_ne!(items, (0..1000).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..1000).collect::<Vec<_>>());
    }
}

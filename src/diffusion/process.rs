//! The two ways in which latents are mixed with noise: the straight line of rectified flow, and the 1000 steps of DDPM.
//!
//! In both, noisy latents are `alpha * latents + sigma * noise`. A [`Level`] is one such mixture: its two factors, and the timestep
//! that the network is told. Training and sampling are written in terms of levels, so there is one code for both ways.

use candle_core::{Result, Tensor, bail};

use super::timestep::{Band, LossWeighting, TimestepSpec};

/// Steps of DDPM's schedule. A flow's sigma in [0, 1] is told to the network times this.
pub(crate) const TRAINED_STEPS: usize = 1000;

/// Levels that are drawn for one of a band. Of a density that is worth training by, some lie in the band: one of a thousand is not
/// met in as many draws once in twenty thousand samples.
const MAX_DRAWS: usize = 10_000;

/// First and last beta of Stable Diffusion 1 and SDXL (diffusers' `scaled_linear`: between them the square roots of beta are evenly
/// spaced).
const BETAS: [f64; 2] = [0.00085, 0.012];

/// What a denoiser is trained to predict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// The velocity `noise - latents` of rectified flow (Liu et al., arXiv:2209.03003).
    Flow,
    /// The noise (DDPM: Ho et al., arXiv:2006.11239).
    Epsilon,
    /// `alpha * noise - sigma * latents` (Salimans and Ho, arXiv:2202.00512).
    Velocity,
}

/// How latents become noise, and what the denoiser predicts of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Decides the way too: [`Prediction::Flow`] goes with rectified flow, the others with DDPM.
    pub prediction: Prediction,
    /// Whether DDPM's last step is pure noise (Lin et al., arXiv:2305.08891); of no meaning for a flow.
    pub zero_terminal_snr: bool,
}

/// One mixture of latents and noise. On a flow `alpha = 1 - sigma`, on DDPM `alpha^2 + sigma^2 = 1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// The factor of the latents, in [0, 1].
    pub alpha: f64,
    /// The factor of the noise, in [0, 1].
    pub sigma: f64,
    /// The network's timestep input, 0 to 1000; whole only on DDPM.
    pub timestep: f64,
}

impl Level {
    /// The level at `sigma` of a flow; the timestep is `1000 * sigma`.
    pub fn of_flow(sigma: f64) -> Self {
        Self {
            alpha: 1.0 - sigma,
            sigma,
            timestep: sigma * TRAINED_STEPS as f64,
        }
    }

    /// The level of DDPM at `timestep`, where `alpha_cumprod` of the latents' variance is left.
    pub(super) fn of_variance(alpha_cumprod: f64, timestep: f64) -> Self {
        Self {
            alpha: alpha_cumprod.sqrt(),
            sigma: (1.0 - alpha_cumprod).sqrt(),
            timestep,
        }
    }

    /// Variance of the latents over that of the noise.
    fn signal_to_noise(self) -> f64 {
        (self.alpha / self.sigma).powi(2)
    }
}

impl Process {
    /// The usual process of this prediction, without zero terminal signal-to-noise.
    pub const fn new(prediction: Prediction) -> Self {
        Self {
            prediction,
            zero_terminal_snr: false,
        }
    }

    /// Whether it is rectified flow.
    pub fn is_flow(self) -> bool {
        self.prediction == Prediction::Flow
    }

    /// `alphas_cumprod`: the share of the latents' variance that is left after each step of DDPM.
    pub(super) fn alphas_cumprod(self) -> Vec<f64> {
        // In f64: a product of 1000 factors. diffusers forms it in f32, so its last digits differ.
        let [first, last] = BETAS.map(f64::sqrt);
        let slope = (last - first) / (TRAINED_STEPS - 1) as f64;
        let mut kept = 1.0;
        let mut all: Vec<f64> = (0..TRAINED_STEPS)
            .map(|t| {
                kept *= 1.0 - (first + slope * t as f64).powi(2);
                kept
            })
            .collect();
        if self.zero_terminal_snr {
            // Algorithm 1 of Lin et al.: the roots are moved and stretched so that the first stays and the last is 0.
            let (start, end) = (all[0].sqrt(), all[TRAINED_STEPS - 1].sqrt());
            for kept in &mut all {
                *kept = ((kept.sqrt() - end) * start / (start - end)).powi(2);
            }
        }
        all
    }

    /// The level at `share` (in [0, 1]) of the way from latents to noise: the sigma of a flow, or that share of DDPM's steps.
    pub fn level(self, share: f64) -> Level {
        if self.is_flow() {
            return Level::of_flow(share);
        }
        // A share of 1 would be the step after the last.
        let step = ((share * TRAINED_STEPS as f64) as usize).min(TRAINED_STEPS - 1);
        Level::of_variance(self.alphas_cumprod()[step], step as f64)
    }

    /// The level that one sample of a training step gets. `numbers` gives two random numbers, one uniform in [0, 1) and a standard
    /// normal; it is called once where `spec` is of all levels, and else until they give a level of its band.
    ///
    /// For a flow, `spec` says how levels are distributed, which may depend on how many `tokens` the latents have. DDPM uses
    /// neither: its steps are drawn evenly.
    ///
    /// # Errors
    /// If hardly any level lies in the band.
    pub fn draw(
        self,
        spec: &TimestepSpec,
        mut numbers: impl FnMut() -> (f64, f64),
        tokens: usize,
    ) -> Result<Level> {
        if !self.is_flow() {
            return Ok(self.level(numbers().0));
        }
        for _ in 0..MAX_DRAWS {
            let (uniform, normal) = numbers();
            let sigma = spec.sigma(uniform, normal, tokens);
            if spec.band.has(sigma) {
                return Ok(Level::of_flow(sigma));
            }
        }
        let Band { from, to } = spec.band;
        bail!(
            "of {MAX_DRAWS} noise levels drawn none lay from {from} to {to}, for which this model is: set `shift`, `timestep_sampling` or its parameters under [train] so that more do"
        )
    }

    /// What the network should have predicted for each sample.
    ///
    /// Shapes: `latents` and `noise` [B, ..], B levels; the result [B, ..].
    ///
    /// # Errors
    /// If the shapes disagree.
    pub fn target(self, latents: &Tensor, noise: &Tensor, levels: &[Level]) -> Result<Tensor> {
        match self.prediction {
            Prediction::Flow => noise - latents,
            Prediction::Epsilon => Ok(noise.clone()),
            Prediction::Velocity => {
                let (alpha, sigma) = factors(latents, levels)?;
                noise.broadcast_mul(&alpha)? - latents.broadcast_mul(&sigma)?
            }
        }
    }

    /// The factor of a level's loss.
    ///
    /// `weighting` applies without a `min_snr_gamma`. With one (DDPM only) it is the weight of Hang et al. (arXiv:2303.09556),
    /// min(SNR, gamma) of a prediction of the latents, written for what this network predicts.
    pub fn weight(self, level: Level, weighting: LossWeighting, min_snr_gamma: Option<f64>) -> f64 {
        let Some(gamma) = min_snr_gamma else {
            return weighting.weight(level.sigma);
        };
        // At a terminal signal-to-noise of 0 a velocity weighs 0. Noise would weigh 0 / 0; the Experiment refuses to predict it
        // there.
        let ratio = level.signal_to_noise();
        match self.prediction {
            Prediction::Velocity => ratio.min(gamma) / (ratio + 1.0),
            _ => ratio.min(gamma) / ratio,
        }
    }
}

/// `alpha * latents + sigma * noise`, per sample.
///
/// Shapes: `latents` and `noise` [B, ..], B levels; the result [B, ..].
///
/// # Errors
/// If the shapes disagree.
pub fn add_noise(latents: &Tensor, noise: &Tensor, levels: &[Level]) -> Result<Tensor> {
    let (alpha, sigma) = factors(latents, levels)?;
    latents.broadcast_mul(&alpha)? + noise.broadcast_mul(&sigma)?
}

/// Alpha and sigma of each sample, `[B, 1, ..]` to be broadcast over `like`.
fn factors(like: &Tensor, levels: &[Level]) -> Result<(Tensor, Tensor)> {
    let per_sample = |f: &dyn Fn(&Level) -> f64| {
        // Rounded to the latents' type only here: levels are f64 throughout.
        let values: Vec<f32> = levels.iter().map(|level| f(level) as f32).collect();
        let mut shape = vec![1; like.rank()];
        shape[0] = levels.len();
        Tensor::from_vec(values, shape, like.device())?.to_dtype(like.dtype())
    };
    Ok((per_sample(&|l| l.alpha)?, per_sample(&|l| l.sigma)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    const DDPM: Process = Process::new(Prediction::Epsilon);
    const V: Process = Process {
        prediction: Prediction::Velocity,
        zero_terminal_snr: true,
    };

    #[test]
    fn noise_is_mixed_per_sample_and_the_velocity_leads_from_noise_to_latents() {
        let device = Device::Cpu;
        let latents = Tensor::new(&[[[[1.0f32, 2.0]]], [[[3.0, 4.0]]]], &device).expect("latents");
        let noise = Tensor::new(&[[[[5.0f32, 5.0]]], [[[7.0, 0.0]]]], &device).expect("noise");
        let values = |t: Tensor| {
            t.flatten_all()
                .and_then(|t| t.to_vec1::<f32>())
                .expect("values")
        };
        let levels = [0.25, 1.0].map(Level::of_flow);
        let noisy = add_noise(&latents, &noise, &levels).expect("noisy");
        assert_eq!(values(noisy), [2.0, 2.75, 7.0, 0.0]);
        let target = |process: Process, levels: &[Level]| {
            values(process.target(&latents, &noise, levels).expect("target"))
        };
        let flow = Process::new(Prediction::Flow);
        assert_eq!(target(flow, &levels), [4.0, 3.0, 4.0, -4.0]);
        assert_eq!(target(DDPM, &levels), [5.0, 5.0, 7.0, 0.0]);
        let levels = [Level::of_variance(0.36, 0.0), Level::of_variance(0.0, 0.0)];
        assert_eq!(target(V, &levels), [2.2, 1.4, -3.0, -4.0]);
    }

    /// `DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod`, and the
    /// same with `rescale_betas_zero_snr=True`, diffusers 0.42.1.
    #[test]
    fn the_schedule_equals_that_of_diffusers() {
        let expected = [
            (
                DDPM,
                [(0, 0.999_15), (500, 0.276_332_47), (999, 0.004_660_095)],
            ),
            (V, [(0, 0.999_15), (500, 0.241_018_64), (999, 0.0)]),
        ];
        for (process, values) in expected {
            let kept = process.alphas_cumprod();
            for (step, value) in values {
                assert!(
                    (kept[step] - value).abs() < 1e-5,
                    "{step}: {} {value}",
                    kept[step]
                );
            }
        }
        assert_eq!(V.level(1.0).timestep, 999.0);
        assert_eq!(DDPM.level(0.0).timestep, 0.0);
        assert_eq!(DDPM.level(0.9999).timestep, 999.0);
    }

    #[test]
    fn min_snr_lets_no_level_count_more_than_gamma() {
        let weight = |process: Process, kept| {
            process.weight(
                Level::of_variance(kept, 0.0),
                LossWeighting::None,
                Some(5.0),
            )
        };
        // A ratio of 9, above gamma; one of 1, below; none at all.
        assert!((weight(DDPM, 0.9) - 5.0 / 9.0).abs() < 1e-12);
        assert!((weight(DDPM, 0.5) - 1.0).abs() < 1e-12);
        assert!((weight(V, 0.9) - 5.0 / 10.0).abs() < 1e-12);
        assert_eq!(weight(V, 0.0), 0.0);
    }
}

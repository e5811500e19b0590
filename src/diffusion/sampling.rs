//! The samplers: from noise to a picture, step by step.
//!
//! A DDPM's samplers follow the schedule configuration that Stable Diffusion 1.5 and SDXL base are published with, in
//! diffusers' reading: `beta_schedule = scaled_linear`, `timestep_spacing = leading`, `steps_offset = 1`,
//! `set_alpha_to_one = false`, `use_karras_sigmas` as the sampler's name says, `final_sigmas_type = zero`; with zero
//! terminal signal-to-noise `timestep_spacing = trailing`. They are written on pictures of constant variance
//! (`alpha^2 + sigma^2 = 1`), where Euler's scaled start and input are the picture itself.
//!
//! One thing is not as in diffusers: its DDIM goes down by 1000 / steps rounded down in every step, and with trailing spacing,
//! where the number of steps does not divide 1000, the next step begins at another level than the one reached. Here each step goes
//! to the level where the next begins; the two are equal where it divides 1000.

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use super::process::{Level, Prediction, Process, TRAINED_STEPS};
use super::sampler::{Spacing, euler_sigmas};
use super::unipc::{self, UniPc};

/// The method by which pictures are sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sampler {
    /// Steps of Euler's method; the one for a flow (Karras et al., arXiv:2206.00364, without noise).
    Euler,
    /// Euler's method with new noise in every step but the last.
    EulerAncestral,
    /// DDIM without noise (Song et al., arXiv:2010.02502).
    Ddim,
    /// DPM-Solver++ of second order, multistep (Lu et al., arXiv:2211.01095).
    Dpmpp2m,
    /// The same with the noise levels of Karras et al.
    Dpmpp2mKarras,
    /// UniPC of second order (Zhao et al., arXiv:2302.04867), for a flow.
    Unipc,
}

impl Sampler {
    /// Whether it samples models of this process: a flow has Euler's method and UniPC here, of which UniPC is for flows alone.
    pub fn fits(self, process: Process) -> bool {
        match self {
            Self::Euler => true,
            Self::Unipc => process.is_flow(),
            _ => !process.is_flow(),
        }
    }
}

/// The sampling of one picture (or one batch): its noise levels, and what a multistep method remembers between steps.
pub struct SamplerRun {
    sampler: Sampler,
    process: Process,
    /// From noise to picture: one more than there are steps.
    levels: Vec<Level>,
    /// The estimate of the picture in the step before; `None` in the first.
    earlier: Option<Tensor>,
    unipc: UniPc,
}

impl SamplerRun {
    /// A run of `steps` steps. `shift` and `spacing` are used for a flow alone.
    ///
    /// # Errors
    /// If the sampler is not for this process, or the schedule has not so many steps.
    pub fn new(
        sampler: Sampler,
        process: Process,
        steps: usize,
        shift: f64,
        spacing: Spacing,
    ) -> Result<Self> {
        if !sampler.fits(process) {
            bail!("the sampler is not for this model; a flow is sampled by `euler` or `unipc`");
        }
        let levels = if sampler == Sampler::Unipc {
            unipc::levels(steps, shift)
        } else if process.is_flow() {
            let sigmas = euler_sigmas(steps, shift, spacing).into_iter();
            sigmas.map(Level::of_flow).collect()
        } else {
            ddpm_levels(sampler, process, steps)?
        };
        Ok(Self {
            sampler,
            process,
            levels,
            earlier: None,
            unipc: UniPc::default(),
        })
    }

    /// The number of times that [`Self::step`] is to be called.
    pub fn num_steps(&self) -> usize {
        self.levels.len() - 1
    }

    /// The timestep input before step `i`, from 0.
    pub fn timestep(&self, i: usize) -> f64 {
        self.levels[i].timestep
    }

    /// The picture after step `i`, from the one before it and the network's prediction. `noise` draws standard
    /// normals in its shape.
    ///
    /// # Errors
    /// If the shapes disagree.
    pub fn step(
        &mut self,
        i: usize,
        x: &Tensor,
        prediction: &Tensor,
        noise: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (from, to) = (self.levels[i], self.levels[i + 1]);
        if self.sampler == Sampler::Unipc {
            return self.unipc.step(&self.levels, i, x, prediction);
        }
        if self.process.is_flow() {
            return x + (prediction * (to.sigma - from.sigma))?;
        }
        let (picture, direction) = self.split(from, x, prediction)?;
        match self.sampler {
            // On pictures of constant variance Euler's step and DDIM's without noise are one formula; they differ in their
            // levels.
            Sampler::Euler | Sampler::Ddim => (picture * to.alpha)? + (direction * to.sigma)?,
            Sampler::EulerAncestral => {
                let (up, down) = ancestral(from, to);
                let next = ((picture * to.alpha)? + (direction * (down * to.alpha))?)?;
                // The last step goes to the picture itself: no noise, and no numbers are drawn for it.
                if up == 0.0 {
                    return Ok(next);
                }
                next + (noise()? * (up * to.alpha))?
            }
            Sampler::Dpmpp2m | Sampler::Dpmpp2mKarras | Sampler::Unipc => {
                self.multistep(i, x, picture)
            }
        }
    }

    /// The picture and the noise that `x` is made of according to the prediction.
    fn split(&self, level: Level, x: &Tensor, prediction: &Tensor) -> Result<(Tensor, Tensor)> {
        let Level { alpha, sigma, .. } = level;
        // Solved for latents and noise; alpha^2 + sigma^2 = 1 (Salimans and Ho, appendix D).
        if self.process.prediction == Prediction::Velocity {
            let picture = ((x * alpha)? - (prediction * sigma)?)?;
            return Ok((picture, ((x * sigma)? + (prediction * alpha)?)?));
        }
        let picture = ((x - (prediction * sigma)?)? / alpha)?;
        Ok((picture, prediction.clone()))
    }

    /// Equations (first order) and algorithm 2 (second order, midpoint) of DPM-Solver++, for step `i`. The first
    /// step has nothing to look back to, and the last goes to a noise level of 0, where only the first order has a
    /// limit.
    fn multistep(&mut self, i: usize, x: &Tensor, picture: Tensor) -> Result<Tensor> {
        let (from, to) = (self.levels[i], self.levels[i + 1]);
        let earlier = self.earlier.replace(picture.clone());
        if to.sigma == 0.0 {
            return Ok(picture);
        }
        // The paper's lambda; `width` is its h, and `width_before / width` its r.
        let half_log_ratio = |level: Level| (level.alpha / level.sigma).ln();
        let width = half_log_ratio(to) - half_log_ratio(from);
        let mut next = (x * (to.sigma / from.sigma))?;
        // With many steps h is small, and exp(-h) - 1 would lose its digits.
        let gain = -to.alpha * (-width).exp_m1();
        next = (next + (&picture * gain)?)?;
        let Some(earlier) = earlier else {
            return Ok(next);
        };
        let width_before = half_log_ratio(from) - half_log_ratio(self.levels[i - 1]);
        let slope = ((picture - earlier)? * (width / width_before))?;
        next + (slope * (0.5 * gain))?
    }
}

/// The levels that DDPM's samplers visit. The last is the picture (Euler, DPM-Solver), or the schedule's first step (DDIM).
fn ddpm_levels(sampler: Sampler, process: Process, steps: usize) -> Result<Vec<Level>> {
    // All 1000 steps, each one late (`steps_offset`), would visit the last twice; DPM-Solver would have gaps of 0.
    if steps == 0 || steps >= TRAINED_STEPS {
        bail!(
            "expected 1 to {} sampler steps, found {steps}",
            TRAINED_STEPS - 1
        );
    }
    let mut kept = process.alphas_cumprod();
    if process.zero_terminal_snr && sampler != Sampler::Ddim {
        // As diffusers: an infinite ratio of noise to picture cannot be divided by.
        kept[TRAINED_STEPS - 1] = 0.5f64.powi(24);
    }
    let start = match sampler {
        Sampler::Dpmpp2mKarras => return Ok(karras_levels(&kept, steps)),
        _ if process.zero_terminal_snr => {
            // As numpy rounds in diffusers: a half to the even number.
            let gap = TRAINED_STEPS as f64 / steps as f64;
            let trailing =
                |i: usize| (TRAINED_STEPS as f64 - gap * i as f64).round_ties_even() as usize - 1;
            (0..steps).map(trailing).collect::<Vec<_>>()
        }
        // diffusers' DPM-Solver spaces one step more than is asked for and drops the lowest.
        Sampler::Dpmpp2m => leading(steps, TRAINED_STEPS / (steps + 1), 1),
        _ => leading(steps, TRAINED_STEPS / steps, 0),
    };
    let mut levels: Vec<Level> = start
        .into_iter()
        .map(|step| Level::of_variance(kept[step], step as f64))
        .collect();
    // `set_alpha_to_one = false`: DDIM ends at the schedule's first step.
    let end = if sampler == Sampler::Ddim {
        kept[0]
    } else {
        1.0
    };
    levels.push(Level::of_variance(end, 0.0));
    Ok(levels)
}

/// Every `gap`th step from `first` gaps on, one late (`steps_offset`), from noise to picture.
fn leading(steps: usize, gap: usize, first: usize) -> Vec<usize> {
    let places = (first..first + steps).rev();
    places
        .map(|i| (i * gap + 1).min(TRAINED_STEPS - 1))
        .collect()
}

/// Equation 5 of Karras et al. with rho 7, between the ends of the schedule; the timestep input is the nearest step.
fn karras_levels(kept: &[f64], steps: usize) -> Vec<Level> {
    // The value that the paper recommends, and diffusers' default.
    const RHO: f64 = 7.0;
    let sigma = |kept: f64| ((1.0 - kept) / kept).sqrt();
    let sigmas: Vec<f64> = kept.iter().map(|&kept| sigma(kept)).collect();
    let [low, high] = [sigmas[0], sigmas[sigmas.len() - 1]].map(|s| s.powf(1.0 / RHO));
    let gaps = steps.saturating_sub(1).max(1) as f64;
    let mut levels: Vec<Level> = (0..steps)
        .map(|i| {
            let sigma = (high + (low - high) * i as f64 / gaps).powf(RHO);
            let timestep = nearest_step(&sigmas, sigma);
            Level::of_variance(1.0 / (1.0 + sigma * sigma), timestep)
        })
        .collect();
    levels.push(Level::of_variance(1.0, 0.0));
    levels
}

/// The step whose noise level is nearest to `sigma` on a logarithmic scale. `sigmas` rises.
fn nearest_step(sigmas: &[f64], sigma: f64) -> f64 {
    let above = sigmas.partition_point(|&s| s <= sigma);
    // There is a step on both sides even at the ends, where `share` is clamped.
    let low = above.saturating_sub(1).min(sigmas.len() - 2);
    let (start, end) = (sigmas[low].ln(), sigmas[low + 1].ln());
    let share = ((sigma.ln() - start) / (end - start)).clamp(0.0, 1.0);
    (low as f64 + share).round_ties_even()
}

/// The new noise and the noise left in an ancestral step, both relative to the picture (k-diffusion's `get_ancestral_step` with
/// eta 1).
fn ancestral(from: Level, to: Level) -> (f64, f64) {
    let (from, to) = (from.sigma / from.alpha, to.sigma / to.alpha);
    let up = (to * to * (from * from - to * to) / (from * from)).sqrt();
    (up, (to * to - up * up).sqrt())
}

#[cfg(test)]
#[path = "sampling_tests.rs"]
mod tests;

//! UniPC for rectified flow (Zhao et al., arXiv:2302.04867), the sampler of Wan's authors: a multistep predictor of second order, and
//! in each step but the first a corrector of the step before, which costs no call of the network.
//!
//! As diffusers' `UniPCMultistepScheduler` with the configuration that Wan is published with (`use_flow_sigmas`, `solver_order = 2`,
//! `solver_type = bh2`, `predict_x0`, `lower_order_final`, `final_sigmas_type = zero`): its levels, the whole timesteps that the network is told, and
//! its first level a millionth below pure noise, where lambda is infinite.

use candle_core::{Result, Tensor};

use super::process::{Level, TRAINED_STEPS};
use super::shift_sigma;

/// How far the first level is below pure noise.
const BELOW_NOISE: f64 = 1e-6;

/// The levels of a run, from noise to picture: one more than there are steps.
pub(super) fn levels(steps: usize, shift: f64) -> Vec<Level> {
    let least = 1.0 / TRAINED_STEPS as f64;
    let mut levels: Vec<Level> = (0..steps)
        .map(|i| {
            let even = 1.0 + (least - 1.0) * i as f64 / steps as f64;
            let mut sigma = shift_sigma(even, shift);
            if (sigma - 1.0).abs() < BELOW_NOISE {
                sigma -= BELOW_NOISE;
            }
            // In f32 as there, and alpha from that: at the first level the last digits of sigma are all of alpha.
            let rounded = f64::from(sigma as f32);
            Level {
                timestep: (sigma * TRAINED_STEPS as f64).trunc(),
                ..Level::of_flow(rounded)
            }
        })
        .collect();
    levels.push(Level::of_flow(0.0));
    levels
}

/// What a run remembers between its steps.
#[derive(Default)]
pub(super) struct UniPc {
    /// The estimates of the picture in the last two steps, the later last.
    pictures: Vec<Tensor>,
    /// The noisy picture before the last prediction, and the order of that.
    last: Option<(Tensor, usize)>,
}

impl UniPc {
    /// The noisy picture after step `i` of a run along `levels`, from that before it, which is corrected first, and the network's
    /// velocity.
    pub(super) fn step(
        &mut self,
        levels: &[Level],
        i: usize,
        x: &Tensor,
        velocity: &Tensor,
    ) -> Result<Tensor> {
        let picture = (x - (velocity * levels[i].sigma)?)?;
        let x = match self.last.take() {
            None => x.clone(),
            Some((before, order)) => self.correct(levels, i, (&before, order), &picture)?,
        };
        self.pictures.push(picture);
        if self.pictures.len() > 2 {
            self.pictures.remove(0);
        }
        let left = levels.len() - 1 - i;
        let order = 2.min(left).min(self.pictures.len());
        let next = self.predict(levels, i, &x, order)?;
        self.last = Some((x, order));
        Ok(next)
    }

    /// UniP: from level `i` to the next.
    fn predict(&self, levels: &[Level], i: usize, x: &Tensor, order: usize) -> Result<Tensor> {
        let step = Step::between(levels[i], levels[i + 1]);
        let Some(picture) = self.pictures.last() else {
            return Ok(x.clone());
        };
        let next = step.first_order(x, picture)?;
        let [earlier, _] = self.pictures.as_slice() else {
            return Ok(next);
        };
        if order < 2 {
            return Ok(next);
        }
        let slope = ((earlier - picture)? / step.ratio(levels[i - 1], levels[i]))?;
        next - (slope * (0.5 * step.gain()))?
    }

    /// UniC: the picture at level `i` anew, now that it is known what the network makes of it.
    fn correct(
        &self,
        levels: &[Level],
        i: usize,
        (before, order): (&Tensor, usize),
        picture: &Tensor,
    ) -> Result<Tensor> {
        let step = Step::between(levels[i - 1], levels[i]);
        let Some(last) = self.pictures.last() else {
            return Ok(before.clone());
        };
        let corrected = step.first_order(before, last)?;
        let change = (picture - last)?;
        let gain = step.gain();
        let [earlier, _] = self.pictures.as_slice() else {
            return corrected - (change * (0.5 * gain))?;
        };
        if order < 2 {
            return corrected - (change * (0.5 * gain))?;
        }
        let ratio = step.ratio(levels[i - 2], levels[i - 1]);
        let [of_slope, of_change] = step.weights(ratio);
        let slope = ((earlier - last)? / ratio)?;
        corrected - (((slope * of_slope)? + (change * of_change)?)? * gain)?
    }
}

/// From one level to another, of which lambda = ln(alpha / sigma) tells the distance.
struct Step {
    from: Level,
    to: Level,
    /// The distance, the paper's h.
    width: f64,
}

impl Step {
    fn between(from: Level, to: Level) -> Self {
        Self {
            width: lambda(to) - lambda(from),
            from,
            to,
        }
    }

    /// The paper's B(h) of the second kind, with the sign of an estimate of the picture.
    fn shrink(&self) -> f64 {
        (-self.width).exp_m1()
    }

    /// The factor of what is added to the first order.
    fn gain(&self) -> f64 {
        self.to.alpha * self.shrink()
    }

    fn first_order(&self, x: &Tensor, picture: &Tensor) -> Result<Tensor> {
        (x * (self.to.sigma / self.from.sigma))? - (picture * self.gain())?
    }

    /// How far an earlier level is back, in widths of this step.
    fn ratio(&self, earlier: Level, from: Level) -> f64 {
        (lambda(earlier) - lambda(from)) / self.width
    }

    /// The corrector's weights of the earlier slope and of the change: the solution of the paper's two equations.
    fn weights(&self, ratio: f64) -> [f64; 2] {
        let h = -self.width;
        let first = self.shrink() / h - 1.0;
        let second = first / h - 0.5;
        let (sum, weighted) = (first / self.shrink(), second * 2.0 / self.shrink());
        let of_slope = (sum - weighted) / (1.0 - ratio);
        [of_slope, sum - of_slope]
    }
}

fn lambda(level: Level) -> f64 {
    level.alpha.ln() - level.sigma.ln()
}

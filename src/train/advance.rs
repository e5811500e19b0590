//! An optimizer step, alone or with other ranks.

use std::path::PathBuf;

use candle_core::Tensor;

use super::error::DIVERGED;
use super::inputs::{DenoiserBatch, HeldOut};
use super::parallel::{Bits, Made, same_norms};
use super::run::{RECENT_STEPS, Run};
use super::step::{Dump, Pass};
use super::{Error, VALIDATION_SIGMAS};
use crate::optim::clip_gradient_norm;
use crate::ranks::sum::Round;

/// The gradient of a step, and its loss.
struct Summed {
    gradient: Tensor,
    loss: f64,
}

impl Run<'_> {
    /// One optimizer step of this rank's micro-batches and those of the others; gives its loss and the gradient's norm before clipping.
    pub(super) fn advance(
        &mut self,
        micro_batches: &[Vec<DenoiserBatch>],
        dump: Option<&PathBuf>,
    ) -> Result<(f64, f64), Error> {
        let Summed { gradient, loss } = match self.ranks.is_alone() {
            true => self.sum_alone(micro_batches, dump)?,
            false => self.sum_with_ranks(micro_batches)?,
        };
        // 0 means no clipping, as in kohya's scripts.
        let max_norm = Some(self.base.settings.train.max_grad_norm).filter(|n| *n > 0.0);
        let kernels = self.denoiser.kernels();
        let norm = clip_gradient_norm(kernels, &gradient, max_norm)?;
        if !norm.is_finite() {
            return Err(Error::NotFinite {
                step: self.step + 1,
                what: "the loss is finite, but its gradient is".to_owned(),
            });
        }
        let rate = self.schedule.at(self.step);
        self.optimizer
            .step(kernels, &self.values, &gradient, rate)?;
        self.step += 1;
        if self.ranks.is_alone() {
            self.stopped = (self.stop)();
        }
        self.norm = norm;
        self.recent.push(loss);
        if self.recent.len() > RECENT_STEPS {
            self.recent.remove(0);
        }
        Ok((loss, norm))
    }

    fn sum_alone(
        &self,
        micro_batches: &[Vec<DenoiserBatch>],
        dump: Option<&PathBuf>,
    ) -> Result<Summed, Error> {
        let accumulation = micro_batches.len() as u64;
        let gradient = self.values.zeros_like()?;
        let mut record = dump.map(|_| Dump::default());
        let (mut loss, mut passes) = (0.0, 0);
        for (number, batches) in (self.step * accumulation..).zip(micro_batches) {
            for (index, batch) in batches.iter().enumerate() {
                let share = batch.share / accumulation as f64;
                let pass = pass_number(number, index);
                let of_pass = match &mut record {
                    // What is dumped is made as without graphs: a graph leaves no prediction.
                    Some(record) => {
                        let result = self.pass().backward(batch, pass, share, &gradient)?;
                        record.add(passes, batch, &result)?;
                        result.loss
                    }
                    None => self.backward(batch, pass, share, &gradient)?,
                };
                loss += of_pass * share;
                passes += 1;
            }
        }
        self.check_loss(loss)?;
        if let (Some(mut record), Some(path)) = (record, dump) {
            record.add_adapters(&self.adapters_now()?, &gradient.to_vec1()?)?;
            if let Some(beneath) = self.training_adapter {
                record.add_beneath(&beneath.adapters)?;
            }
            self.write_dump(&record, passes, path)?;
        }
        Ok(Summed { gradient, loss })
    }

    /// As [`Self::sum_alone`], in rounds: in each, every rank has one micro-batch or none, and what they make of them is added in their order.
    fn sum_with_ranks(&mut self, micro_batches: &[Vec<DenoiserBatch>]) -> Result<Summed, Error> {
        let accumulation = self.base.settings.train.gradient_accumulation;
        let (ranks, kernels) = (self.ranks, self.denoiser.kernels());
        let gradient = self.values.zeros_like()?;
        let mut loss = 0.0;
        for round in 0..accumulation.div_ceil(ranks.world()) {
            let place = round * ranks.world() + ranks.rank();
            let number = self.step * accumulation as u64 + place as u64;
            let mut made = Made {
                factors: Vec::new(),
                losses: Vec::new(),
                norm: self.norm.into(),
                stop: (self.stop)(),
            };
            let mut mine = Vec::new();
            for (index, batch) in micro_batches.get(round).into_iter().flatten().enumerate() {
                let share = batch.share / accumulation as f64;
                let apart = self.values.zeros_like()?;
                let pass = pass_number(number, index);
                // Multiplied where it is added, as it is by one process: a product that is rounded first is another sum on some devices.
                let of_pass = self.backward(batch, pass, 1.0, &apart)?;
                made.factors.push(share.into());
                made.losses.push((of_pass * share).into());
                mine.push(apart);
            }
            let all = ranks.exchange(made)?;
            same_norms(&all, self.step)?;
            self.stopped = (self.stopped).or_else(|| all.iter().find_map(|made| made.stop));
            loss = (all.iter().flat_map(|made| &made.losses))
                .fold(loss, |sum, loss| sum + f64::from(*loss));
            let numbers = |made: &Made| made.factors.iter().map(|f| f64::from(*f)).collect();
            let factors: Vec<Vec<f64>> = all.iter().map(numbers).collect();
            let round = Round {
                mine: &mine,
                factors: &factors,
            };
            self.sums.add(ranks, &round, kernels, &gradient)?;
        }
        self.check_loss(loss)?;
        self.sums.finish(ranks, &gradient)?;
        Ok(Summed { gradient, loss })
    }

    /// Before the update: the adapters and their last checkpoint stay usable.
    fn check_loss(&self, loss: f64) -> Result<(), Error> {
        match loss.is_finite() {
            true => Ok(()),
            false => Err(self.diverged(self.step + 1, format!("the loss is {loss}"))),
        }
    }

    /// What of this step, or after it, is not finite, with the likely reason.
    pub(super) fn diverged(&self, step: u64, what: String) -> Error {
        // The loss of step 1 is of the numbers that the training started from.
        let why = match self.step {
            0 => {
                let with_lora = !self.from.is_empty() || self.training_adapter.is_some();
                let why = (self.base).why_not_finite(self.denoiser.dtype(), with_lora);
                format!("nothing was learned before it: {why}")
            }
            _ => DIVERGED.to_owned(),
        };
        Error::Diverged { step, what, why }
    }

    /// The loss of a pass whose gradient is added, as a graph where there are graphs.
    fn backward(
        &self,
        batch: &DenoiserBatch,
        number: u64,
        factor: f64,
        gradient: &Tensor,
    ) -> Result<f64, Error> {
        let pass = self.pass();
        Ok(match &mut *self.graphs.borrow_mut() {
            Some(graphs) => graphs.backward(&pass, batch, number, factor, gradient)?,
            None => pass.backward(batch, number, factor, gradient)?.loss,
        })
    }

    pub(super) fn pass(&self) -> Pass<'_> {
        let settings = &self.base.settings;
        Pass {
            denoiser: self.trained,
            adapters: &self.adapters,
            values: &self.values,
            dropout: (settings.adapter.dropout, settings.train.seed),
            recompute: self.plan.recompute.clone(),
            offload: self.plan.offload,
        }
    }

    /// The mean loss over the held-out pairs at each of [`VALIDATION_SIGMAS`], with noise that never changes. Ranks take pairs in turn;
    /// rank 0 is given all losses, and adds them in the order of the pairs.
    pub(super) fn validate(&self) -> Result<Option<Vec<f64>>, Error> {
        let (source, held_out) = (self.set.source(), self.set.held_out());
        let mut mine: Vec<Vec<Bits>> = Vec::new();
        let own = held_out.iter().enumerate().skip(self.ranks.rank());
        for (number, item) in own.step_by(self.ranks.world()) {
            let picture = HeldOut::read(source, item)?;
            let mut losses = Vec::with_capacity(VALIDATION_SIGMAS.len());
            for level in (0..).zip(VALIDATION_SIGMAS) {
                let batch = picture.batch(number as u64, level, &self.draws)?;
                losses.push(self.pass().loss(&batch)?.into());
            }
            mine.push(losses);
        }
        let Some(all) = self.ranks.gather(mine)? else {
            return Ok(None);
        };
        let mut sums = vec![0.0; VALIDATION_SIGMAS.len()];
        let mut each: Vec<_> = all.into_iter().map(Vec::into_iter).collect();
        for number in 0..held_out.len() {
            let rank = number % self.ranks.world();
            let losses = each.get_mut(rank).and_then(Iterator::next);
            for (sum, loss) in sums.iter_mut().zip(losses.into_iter().flatten()) {
                *sum += f64::from(loss);
            }
        }
        let count = held_out.len() as f64;
        Ok(Some(sums.into_iter().map(|sum| sum / count).collect()))
    }
}

/// Unique in the run: a micro-batch has at most as many batches as samples, far below 2^16.
fn pass_number(micro_batch: u64, batch: usize) -> u64 {
    micro_batch << 16 | batch as u64
}

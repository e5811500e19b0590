//! The loss on the tape.

use candle_core::{Result, Tensor, bail};

use super::gradient::Gradient;
use super::tape::{Tape, Value};
use crate::nn::loss::{squared_error, squared_error_backward};

impl Tape {
    /// The mean over the batch of `weights[b]` times the mean square of row b of `prediction - target`:
    /// `prediction` and `target` `[B, ..]`, `weights` `[B]` (1 if absent), the result `[]` in f32 (f64 for f64).
    ///
    /// # Errors
    ///
    /// If the shapes do not fit, and those of the backend.
    pub fn mse(
        &self,
        prediction: &Value,
        target: &Tensor,
        weights: Option<&[f64]>,
    ) -> Result<Value> {
        let per_row = squared_error(prediction.tensor(), target)?;
        if let Some(weights) = weights
            && weights.len() != per_row.len()
        {
            bail!("{} weights for a batch of {}", weights.len(), per_row.len());
        }
        let count = per_row.len() as f64;
        let factors: Vec<f64> = match weights {
            Some(weights) => weights.iter().map(|weight| weight / count).collect(),
            None => vec![1.0 / count; per_row.len()],
        };
        // On the host in f64: the rows' sums are there already, and there are few.
        let total: f64 = per_row
            .iter()
            .zip(&factors)
            .map(|(error, factor)| error * factor)
            .sum();
        let device = prediction.tensor().device();
        let dtype = super::tape::scalar_dtype(prediction.tensor().dtype());
        let loss = Tensor::new(total, device)?.to_dtype(dtype)?;
        let (to, prediction_saved, target) =
            (prediction.id(), prediction.tensor().clone(), target.clone());
        Ok(
            self.record_one(&[prediction], loss, move |slots, gradient| {
                // 1 for the loss itself, something else where it is part of a larger value.
                let outer = gradient
                    .tensor()
                    .to_dtype(candle_core::DType::F64)?
                    .to_scalar::<f64>()?;
                let factors: Vec<f64> = factors.iter().map(|factor| factor * outer).collect();
                let found = squared_error_backward(&prediction_saved, &target, &factors)?;
                slots.add(to, Gradient::fresh(found))
            }),
        )
    }
}

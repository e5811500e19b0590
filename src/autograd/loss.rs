//! The loss on the tape.

use candle_core::{Result, Tensor};

use super::gradient::Gradient;
use super::tape::{Tape, Value};
use crate::nn::loss::{mean_squared_error, mean_squared_error_backward};

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
        weights: Option<&Tensor>,
    ) -> Result<Value> {
        let loss = mean_squared_error(self.kernels(), prediction.tensor(), target, weights)?;
        let (to, saved) = (prediction.id(), prediction.tensor().clone());
        let (target, weights) = (target.clone(), weights.cloned());
        Ok(
            self.record_one(&[prediction], loss, move |slots, gradient| {
                let found = mean_squared_error_backward(
                    slots.kernels(),
                    &saved,
                    &target,
                    weights.as_ref(),
                    gradient.tensor(),
                )?;
                slots.add(to, Gradient::fresh(found))
            }),
        )
    }
}

//! Convolutions on the tape. Their weights are frozen; an adapter's are not.

use candle_core::{Result, Tensor};

use super::gradient::Gradient;
use super::linear::LoraValues;
use super::tape::{Tape, Value};
use crate::nn::picture_backward::{conv2d_backward, conv2d_weight_backward};
use crate::nn::{Conv2dOptions, conv2d};

impl Tape {
    /// [`crate::nn::conv2d`], plus the update of an adapter: `x` `[B, I, H, W]`, `weight` `[O, I, K, K]`, `bias` `[O]`.
    ///
    /// The adapter adds `scale conv1x1(conv2d(dropout x, a), b)`, with `a` `[r, I, K, K]` and `b` `[O, r, 1, 1]`, as
    /// PEFT does.
    ///
    /// # Errors
    ///
    /// If the shapes do not fit, and those of the backend.
    pub fn conv2d(
        &self,
        x: &Value,
        weight: &Tensor,
        bias: Option<&Tensor>,
        options: Conv2dOptions,
        lora: Option<&LoraValues>,
    ) -> Result<Value> {
        let y = conv2d(self.kernels(), x.tensor(), weight, bias, options)?;
        let (_, _, height, width) = x.tensor().dims4()?;
        // `x` is not saved: its gradient is made of the frozen weight alone.
        let (to, weight) = (x.id(), weight.clone());
        let y = self.record_one(&[x], y, move |slots, gradient| {
            let dx = conv2d_backward(
                slots.kernels(),
                &weight,
                options,
                (height, width),
                gradient.tensor(),
            )?;
            slots.add(to, Gradient::fresh(dx))
        });
        let Some(lora) = lora else { return Ok(y) };
        let seen = match &lora.dropout {
            Some(mask) => self.mul(x, &Value::constant(mask.clone()))?,
            None => x.clone(),
        };
        let down = self.conv2d_trained(&seen, &lora.a, options)?;
        let up = self.conv2d_trained(&down, &lora.b, Conv2dOptions::POINTWISE)?;
        self.add(&y, &self.scale(&up, lora.scale)?)
    }

    /// A convolution whose weight has a gradient too.
    fn conv2d_trained(&self, x: &Value, weight: &Value, options: Conv2dOptions) -> Result<Value> {
        let y = conv2d(self.kernels(), x.tensor(), weight.tensor(), None, options)?;
        let (_, _, height, width) = x.tensor().dims4()?;
        let (_, _, kernel, _) = weight.tensor().dims4()?;
        let [to, to_weight] = [x.id(), weight.id()];
        // Only an adapter's weight has a gradient, which reads `x`.
        let saved_x = to_weight.map(|_| x.tensor().clone());
        let saved_weight = weight.tensor().clone();
        Ok(self.record_one(&[x, weight], y, move |slots, gradient| {
            if let Some(x) = &saved_x {
                let found =
                    conv2d_weight_backward(slots.kernels(), x, kernel, options, gradient.tensor())?;
                slots.add(to_weight, Gradient::fresh(found))?;
            }
            if to.is_none() {
                return Ok(());
            }
            let dx = conv2d_backward(
                slots.kernels(),
                &saved_weight,
                options,
                (height, width),
                gradient.tensor(),
            )?;
            slots.add(to, Gradient::fresh(dx))
        }))
    }
}

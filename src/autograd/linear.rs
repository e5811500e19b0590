//! Linear layers on the tape.

use candle_core::{Result, Tensor};

use super::gradient::Gradient;
use super::tape::{Tape, Value};
use crate::nn::Frozen;
use crate::nn::linear::{Adapted, LowRank, WantedGradients, adapted, backward};

/// A low-rank adapter on the tape: `y += scale (dropout x) a^T b^T`.
#[derive(Clone, Debug)]
pub struct LoraValues {
    /// `[r, in]`, of a convolution `[r, in, k, k]`.
    pub a: Value,
    /// `[out, r]`, of a convolution `[out, r, 1, 1]`.
    pub b: Value,
    /// The factor of the update: alpha / rank.
    pub scale: f64,
    /// In the shape of `x`: 0 where it is dropped, 1 / (1 - p) where it is kept. On the adapter's way only.
    pub dropout: Option<Tensor>,
}

impl Tape {
    /// `x w^T + bias`, plus the update of an adapter: `x` `[.., in]`, `w` `[out, in]`, `bias` `[out]`. `w` and
    /// `bias` are frozen; `w` is whole only while it is multiplied by.
    ///
    /// # Errors
    ///
    /// If the shapes or types do not fit, and those of the backend.
    pub fn linear(
        &self,
        x: &Value,
        w: &Frozen,
        bias: Option<&Tensor>,
        lora: Option<&LoraValues>,
    ) -> Result<Value> {
        let Some(lora) = lora else {
            let y = w.matrix()?.linear(self.kernels(), x.tensor(), bias)?;
            // `x` is not saved: its gradient is made of the frozen weight alone.
            let (w, to) = (w.clone(), x.id());
            let wanted = WantedGradients {
                x: true,
                a: false,
                b: false,
            };
            return Ok(self.record_one(&[x], y, move |slots, gradient| {
                // The product adds to what the value has already (beta 1), which saves a tensor of its size and a pass over it.
                let earlier = slots.take_editable(to);
                let w = &w.matrix()?;
                let [dx, ..] =
                    backward(slots.kernels(), gradient.tensor(), w, None, wanted, earlier)?;
                dx.map_or(Ok(()), |dx| slots.add(to, Gradient::fresh(dx)))
            }));
        };
        let low_rank = LowRank {
            a: lora.a.tensor().clone(),
            b: lora.b.tensor().clone(),
            scale: lora.scale,
            mask: lora.dropout.clone(),
        };
        let (y, down) = adapted(self.kernels(), x.tensor(), &w.matrix()?, bias, &low_rank)?;
        let inputs = [x, &lora.a, &lora.b];
        let targets = inputs.map(Value::id);
        let [x_id, a_id, b_id] = targets;
        let wanted = WantedGradients {
            x: x_id.is_some(),
            a: a_id.is_some(),
            b: b_id.is_some(),
        };
        // Each kept only if its gradient is wanted: b's is made of `down`, a's of `x`.
        let down = wanted.b.then_some(down);
        let seen = wanted.a.then(|| x.tensor().clone());
        let w = w.clone();
        Ok(self.record_one(&inputs, y, move |slots, gradient| {
            let earlier = if wanted.x {
                slots.take_editable(x_id)
            } else {
                None
            };
            let lora = Adapted {
                adapter: &low_rank,
                x: seen.as_ref(),
                down: down.as_ref(),
            };
            let w = &w.matrix()?;
            let found = backward(
                slots.kernels(),
                gradient.tensor(),
                w,
                Some(lora),
                wanted,
                earlier,
            )?;
            for (to, gradient) in targets.into_iter().zip(found) {
                if let Some(gradient) = gradient {
                    slots.add(to, Gradient::fresh(gradient))?;
                }
            }
            Ok(())
        }))
    }
}

//! Linear layers on the tape.

use candle_core::{Result, Tensor, bail};

use super::gradient::Gradient;
use super::tape::{Tape, Value};
use crate::nn::fused::{FusedLinears, SeenByAdapters, StackedAdapters};
use crate::nn::linear::{Adapted, LowRank, WantedGradients, backward, forward, with_gelu};
use crate::nn::{Activation, Frozen};

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

impl LoraValues {
    fn low_rank(&self) -> LowRank {
        LowRank {
            a: self.a.tensor().clone(),
            b: self.b.tensor().clone(),
            scale: self.scale,
            mask: self.dropout.clone(),
        }
    }
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
        let low_rank = lora.map(LoraValues::low_rank);
        let (kernels, matrix) = (self.kernels(), w.matrix()?);
        let (y, down) = forward(kernels, x.tensor(), &matrix, bias, low_rank.as_ref())?;
        Ok(self.record_linear(x, w, lora, y, down))
    }

    /// GELU by its tanh approximation of [`Self::linear`], on a GPU taken where the product is written.
    ///
    /// # Errors
    ///
    /// As [`Self::linear`].
    pub fn linear_gelu(
        &self,
        x: &Value,
        w: &Frozen,
        bias: Option<&Tensor>,
        lora: Option<&LoraValues>,
    ) -> Result<Value> {
        let low_rank = lora.map(LoraValues::low_rank);
        let (kernels, matrix) = (self.kernels(), w.matrix()?);
        let (y, before, down) = with_gelu(kernels, x.tensor(), &matrix, bias, low_rank.as_ref())?;
        let before = self.record_linear(x, w, lora, before, down);
        Ok(self.record_activation(Activation::GeluTanh, &before, y))
    }

    /// Puts `y`, which [`Self::linear`] gives of `x`, on the tape. `down` is what an adapter made of `x` on the way.
    fn record_linear(
        &self,
        x: &Value,
        w: &Frozen,
        lora: Option<&LoraValues>,
        y: Tensor,
        down: Option<Tensor>,
    ) -> Value {
        let w = w.clone();
        let Some(lora) = lora else {
            // `x` is not saved: its gradient is made of the frozen weight alone.
            let to = x.id();
            let wanted = WantedGradients {
                x: true,
                a: false,
                b: false,
            };
            return self.record_one(&[x], y, move |slots, gradient| {
                // The product adds to what the value has already (beta 1), which saves a tensor of its size and a pass over it.
                let earlier = slots.take_editable(to);
                let w = &w.matrix()?;
                let [dx, ..] =
                    backward(slots.kernels(), gradient.tensor(), w, None, wanted, earlier)?;
                dx.map_or(Ok(()), |dx| slots.add(to, Gradient::fresh(dx)))
            });
        };
        let inputs = [x, &lora.a, &lora.b];
        let targets = inputs.map(Value::id);
        let [x_id, a_id, b_id] = targets;
        let wanted = WantedGradients {
            x: x_id.is_some(),
            a: a_id.is_some(),
            b: b_id.is_some(),
        };
        // Each kept only if its gradient is wanted: b's is made of `down`, a's of `x`.
        let down = down.filter(|_| wanted.b);
        let seen = wanted.a.then(|| x.tensor().clone());
        let low_rank = lora.low_rank();
        self.record_one(&inputs, y, move |slots, gradient| {
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
        })
    }

    /// [`Self::linear`] of `x` by each of some linears, with its adapter if it has one. `stacked` are the adapters' `a`, `[sum of the ranks,
    /// in]`, if they lie in one piece. What one input gives is computed together, except where adapters drop parts of it, only some want
    /// a gradient, or no kernels serve it.
    ///
    /// # Errors
    ///
    /// As [`Self::linear`], and if there are not as many adapters as linears.
    pub fn linears(
        &self,
        x: &Value,
        linears: &FusedLinears,
        loras: &[Option<LoraValues>],
        stacked: Option<Tensor>,
    ) -> Result<Vec<Value>> {
        let layers = linears.layers();
        if layers.len() != loras.len() {
            bail!("{} adapters of {} linears", loras.len(), layers.len());
        }
        let factors: Vec<&Value> = (loras.iter().flatten())
            .flat_map(|lora| [&lora.a, &lora.b])
            .collect();
        let learned = factors.first().is_some_and(|first| self.needs(&[first]));
        let alike = factors.iter().all(|value| self.needs(&[value]) == learned);
        let dropped = loras.iter().flatten().any(|lora| lora.dropout.is_some());
        if dropped || !alike || !FusedLinears::serve(self.kernels(), x.tensor()) {
            let each = layers.iter().zip(loras);
            let each =
                each.map(|(layer, lora)| self.linear(x, &layer.w, layer.b.as_ref(), lora.as_ref()));
            return each.collect();
        }
        let low_ranks: Vec<Option<LowRank>> = (loras.iter())
            .map(|lora| lora.as_ref().map(LoraValues::low_rank))
            .collect();
        let (ys, down) = {
            let adapters = StackedAdapters::new(&low_ranks, stacked.clone())?;
            linears.forward(self.kernels(), x.tensor(), adapters.as_ref())?
        };
        let kept = down
            .filter(|_| learned)
            .map(|down| (x.tensor().clone(), down));
        let ids = loras
            .iter()
            .map(|lora| lora.as_ref().map(|lora| [lora.a.id(), lora.b.id()]));
        let (ids, x_id, linears) = (ids.collect::<Vec<_>>(), x.id(), linears.clone());
        let inputs: Vec<&Value> = [x].into_iter().chain(factors).collect();
        Ok(self.record(&inputs, ys, move |slots, gradients| {
            let gradients: Vec<Option<Tensor>> = gradients
                .into_iter()
                .map(|gradient| gradient.map(Gradient::into_tensor))
                .collect();
            let earlier = slots.take_editable(x_id);
            // Stacked once more rather than kept.
            let adapters = StackedAdapters::new(&low_ranks, stacked)?;
            let seen = adapters.as_ref().map(|adapters| SeenByAdapters {
                adapters,
                kept: kept.as_ref().map(|(x, down)| (x, down)),
            });
            let kernels = slots.kernels();
            let found = linears.backward(kernels, gradients, seen, x_id.is_some(), earlier)?;
            if let Some(dx) = found.x {
                slots.add(x_id, Gradient::fresh(dx))?;
            }
            for (ids, gradients) in ids.into_iter().zip(found.adapters) {
                if let (Some([a, b]), Some([da, db])) = (ids, gradients) {
                    // A part of that of all adapters.
                    slots.add(a, Gradient::shared(da))?;
                    slots.add(b, Gradient::fresh(db))?;
                }
            }
            Ok(())
        }))
    }
}

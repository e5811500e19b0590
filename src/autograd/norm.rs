//! Norms, modulation and gated residuals on the tape.

use candle_core::{Result, Tensor};

use super::gradient::Gradient;
use super::tape::{Tape, Value};
use crate::nn::norm::{
    Statistic, gate_gradient, gated_backward, gated_residual, layer_norm, modulate,
    modulate_backward, modulation_gradients, norm_backward, rms_norm,
};

impl Tape {
    /// [`crate::nn::layer_norm`] with frozen parameters.
    ///
    /// # Errors
    ///
    /// If the shapes do not fit, and those of the backend.
    pub fn layer_norm(
        &self,
        x: &Value,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<Value> {
        let y = layer_norm(self.kernels(), x.tensor(), weight, bias, eps)?;
        Ok(self.record_norm(Statistic::Deviation, x, y, weight, eps))
    }

    /// [`crate::nn::rms_norm`] with a frozen weight. On `[B, N, H, D]` it norms each head.
    ///
    /// # Errors
    ///
    /// If the shapes do not fit, and those of the backend.
    pub fn rms_norm(&self, x: &Value, weight: Option<&Tensor>, eps: f64) -> Result<Value> {
        let y = rms_norm(self.kernels(), x.tensor(), weight, eps)?;
        Ok(self.record_norm(Statistic::RootMeanSquare, x, y, weight, eps))
    }

    fn record_norm(
        &self,
        statistic: Statistic,
        x: &Value,
        y: Tensor,
        weight: Option<&Tensor>,
        eps: f64,
    ) -> Value {
        // `x` is saved and its mean and deviation are not: they are found again by a pass over the row.
        let (to, saved, weight) = (x.id(), x.tensor().clone(), weight.cloned());
        self.record_one(&[x], y, move |slots, gradient| {
            let kernels = slots.kernels();
            let gradient = gradient.into_editable(kernels)?;
            let dx = norm_backward(kernels, statistic, &saved, weight.as_ref(), eps, gradient)?;
            slots.add(to, Gradient::fresh(dx))
        })
    }

    /// `layer_norm(x) (1 + scale) + shift`, each row of the batch with its own `scale` and `shift`: `x`
    /// `[B, .., n]`, `scale` and `shift` `[B, n]`.
    ///
    /// # Errors
    ///
    /// If the shapes do not fit, and those of the backend.
    pub fn modulate(&self, x: &Value, scale: &Value, shift: &Value, eps: f64) -> Result<Value> {
        let y = modulate(
            self.kernels(),
            x.tensor(),
            scale.tensor(),
            shift.tensor(),
            eps,
        )?;
        let [to, to_scale, to_shift] = [x, scale, shift].map(Value::id);
        let (saved, saved_scale) = (x.tensor().clone(), scale.tensor().clone());
        Ok(
            self.record_one(&[x, scale, shift], y, move |slots, gradient| {
                if to_scale.is_some() || to_shift.is_some() {
                    let (scale, shift) = modulation_gradients(&saved, eps, gradient.tensor())?;
                    slots.add(to_scale, Gradient::fresh(scale))?;
                    slots.add(to_shift, Gradient::fresh(shift))?;
                }
                if to.is_none() {
                    return Ok(());
                }
                // Last: it overwrites the gradient, which the sums above had to read.
                let kernels = slots.kernels();
                let gradient = gradient.into_editable(kernels)?;
                let dx = modulate_backward(kernels, &saved, &saved_scale, eps, gradient)?;
                slots.add(to, Gradient::fresh(dx))
            }),
        )
    }

    /// `x + gate y`, each row of the batch with its own `gate`: `x` and `y` `[B, .., n]`, `gate` `[B, n]`.
    ///
    /// # Errors
    ///
    /// If the shapes do not fit, and those of the backend.
    pub fn gated_residual(&self, x: &Value, gate: &Value, y: &Value) -> Result<Value> {
        let out = gated_residual(self.kernels(), x.tensor(), gate.tensor(), y.tensor())?;
        let [to_x, to_gate, to_y] = [x, gate, y].map(Value::id);
        let saved_gate = gate.tensor().clone();
        let saved_y = to_gate.map(|_| y.tensor().clone());
        Ok(self.record_one(&[x, gate, y], out, move |slots, gradient| {
            if let Some(y) = &saved_y {
                let gate = gate_gradient(y, gradient.tensor())?;
                slots.add(to_gate, Gradient::fresh(gate))?;
            }
            if to_y.is_some() {
                let dy = gated_backward(slots.kernels(), &saved_gate, gradient.tensor())?;
                slots.add(to_y, Gradient::fresh(dy))?;
            }
            // Last: the residual's own gradient is this one, given on without a copy.
            slots.add(to_x, gradient)
        }))
    }
}

//! Activations, sums and products on the tape.

use candle_core::{Result, Tensor};

use super::gradient::{Gradient, Slots};
use super::tape::{Id, Tape, Value};
use crate::nn::Activation;
use crate::nn::pointwise::{add, mul, scale, sum_to, tanh};

impl Tape {
    /// An activation of every element.
    ///
    /// # Errors
    ///
    /// Those of the backend.
    pub fn activation(&self, kind: Activation, x: &Value) -> Result<Value> {
        let y = kind.apply(self.kernels(), x.tensor())?;
        Ok(self.record_activation(kind, x, y))
    }

    /// Puts `y`, the activation of `x`, on the tape.
    pub(super) fn record_activation(&self, kind: Activation, x: &Value, y: Tensor) -> Value {
        let (to, saved) = (x.id(), x.tensor().clone());
        self.record_one(&[x], y, move |slots, gradient| {
            let kernels = slots.kernels();
            let dx = kind.backward(kernels, &saved, gradient.into_editable(kernels)?)?;
            slots.add(to, Gradient::fresh(dx))
        })
    }

    /// `activation(gate) * x`, for two values of one shape (GEGLU, SwiGLU).
    ///
    /// # Errors
    ///
    /// If the shapes differ, and those of the backend.
    pub fn activation_gated(&self, kind: Activation, gate: &Value, x: &Value) -> Result<Value> {
        let y = kind.apply_gated(self.kernels(), gate.tensor(), x.tensor())?;
        let (to_gate, to_x) = (gate.id(), x.id());
        let (saved_gate, saved_x) = (gate.tensor().clone(), to_gate.map(|_| x.tensor().clone()));
        Ok(self.record_one(&[gate, x], y, move |slots, gradient| {
            if to_x.is_some() {
                let dx = kind.apply_gated(slots.kernels(), &saved_gate, gradient.tensor())?;
                slots.add(to_x, Gradient::fresh(dx))?;
            }
            let Some(x) = saved_x else { return Ok(()) };
            let along = mul(slots.kernels(), gradient.tensor(), &x)?;
            // Freed before the gate's gradient is made, so that one tensor less is alive at once.
            drop((gradient, x));
            let dx = kind.backward(slots.kernels(), &saved_gate, along)?;
            slots.add(to_gate, Gradient::fresh(dx))
        }))
    }

    /// GELU by its tanh approximation.
    ///
    /// # Errors
    ///
    /// Those of the backend.
    pub fn gelu_tanh(&self, x: &Value) -> Result<Value> {
        self.activation(Activation::GeluTanh, x)
    }

    /// Exact GELU.
    ///
    /// # Errors
    ///
    /// Those of the backend.
    pub fn gelu_erf(&self, x: &Value) -> Result<Value> {
        self.activation(Activation::GeluErf, x)
    }

    /// `x sigmoid(x)`.
    ///
    /// # Errors
    ///
    /// Those of the backend.
    pub fn silu(&self, x: &Value) -> Result<Value> {
        self.activation(Activation::Silu, x)
    }

    /// `tanh(x)`, for gates: of a vector, not of every token.
    ///
    /// # Errors
    ///
    /// Those of the backend.
    pub fn tanh(&self, x: &Value) -> Result<Value> {
        let y = tanh(x.tensor())?;
        let (to, saved) = (x.id(), y.clone());
        Ok(self.record_one(&[x], y, move |slots, gradient| {
            let slope = saved.sqr()?.affine(-1.0, 1.0)?;
            slots.add(
                to,
                Gradient::fresh(mul(slots.kernels(), gradient.tensor(), &slope)?),
            )
        }))
    }

    /// `x + y`; dimensions of 1 are spread.
    ///
    /// # Errors
    ///
    /// If the shapes do not fit, and those of the backend.
    pub fn add(&self, x: &Value, y: &Value) -> Result<Value> {
        let out = add(self.kernels(), x.tensor(), y.tensor())?;
        let (to_x, to_y) = (x.id(), y.id());
        let (x_dims, y_dims) = (x.dims().to_vec(), y.dims().to_vec());
        Ok(
            self.record_one(&[x, y], out, move |slots, gradient| match (to_x, to_y) {
                (Some(_), Some(_)) => {
                    // Both get the same storage, so neither may edit it.
                    let [for_x, for_y] = gradient.share();
                    add_spread(slots, to_x, for_x, &x_dims)?;
                    add_spread(slots, to_y, for_y, &y_dims)
                }
                (Some(_), None) => add_spread(slots, to_x, gradient, &x_dims),
                (None, _) => add_spread(slots, to_y, gradient, &y_dims),
            }),
        )
    }

    /// `x y`, element by element; dimensions of 1 are spread.
    ///
    /// # Errors
    ///
    /// If the shapes do not fit, and those of the backend.
    pub fn mul(&self, x: &Value, y: &Value) -> Result<Value> {
        let out = mul(self.kernels(), x.tensor(), y.tensor())?;
        let (to_x, to_y) = (x.id(), y.id());
        let (x_dims, y_dims) = (x.dims().to_vec(), y.dims().to_vec());
        let saved_x: Option<Tensor> = to_y.map(|_| x.tensor().clone());
        let saved_y: Option<Tensor> = to_x.map(|_| y.tensor().clone());
        Ok(self.record_one(&[x, y], out, move |slots, gradient| {
            if let Some(y) = saved_y {
                let dx = Gradient::fresh(mul(slots.kernels(), gradient.tensor(), &y)?);
                add_spread(slots, to_x, dx, &x_dims)?;
            }
            if let Some(x) = saved_x {
                let dy = Gradient::fresh(mul(slots.kernels(), gradient.tensor(), &x)?);
                add_spread(slots, to_y, dy, &y_dims)?;
            }
            Ok(())
        }))
    }

    /// `factor x`.
    ///
    /// # Errors
    ///
    /// Those of the backend.
    pub fn scale(&self, x: &Value, factor: f64) -> Result<Value> {
        let (y, to) = (scale(x.tensor(), factor)?, x.id());
        Ok(self.record_one(&[x], y, move |slots, gradient| {
            slots.add(to, Gradient::fresh(scale(gradient.tensor(), factor)?))
        }))
    }
}

/// Adds a gradient to a value of shape `dims` that was spread to the gradient's shape.
fn add_spread(slots: &mut Slots, to: Option<Id>, gradient: Gradient, dims: &[usize]) -> Result<()> {
    if gradient.tensor().dims() == dims {
        return slots.add(to, gradient);
    }
    let sums = sum_to(slots.kernels(), gradient.tensor(), dims)?;
    slots.add(to, Gradient::fresh(sums))
}

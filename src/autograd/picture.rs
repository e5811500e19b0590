//! Norms and resizing of pictures on the tape. Their weights are frozen.

use candle_core::{Result, Tensor};

use super::gradient::Gradient;
use super::tape::{Tape, Value};
use crate::nn::picture_backward::{group_norm_backward, upsample_nearest_2x_backward};
use crate::nn::{group_norm, group_norm_silu, upsample_nearest_2x};

impl Tape {
    /// [`crate::nn::group_norm`], followed by SiLU if `silu`: `x` `[B, C, ..]`, `weight` and `bias` `[C]`.
    ///
    /// # Errors
    ///
    /// If the shapes do not fit, and those of the backend.
    pub fn group_norm(
        &self,
        x: &Value,
        weight: &Tensor,
        bias: &Tensor,
        groups: usize,
        eps: f64,
        silu: bool,
    ) -> Result<Value> {
        let forward = if silu { group_norm_silu } else { group_norm };
        let y = forward(self.kernels(), x.tensor(), weight, bias, groups, eps)?;
        let (to, saved, weight, bias) = (x.id(), x.tensor().clone(), weight.clone(), bias.clone());
        Ok(self.record_one(&[x], y, move |slots, gradient| {
            let kernels = slots.kernels();
            let gradient = gradient.into_editable(kernels)?;
            let parameters = (&weight, &bias);
            let dx = group_norm_backward(kernels, &saved, parameters, groups, eps, silu, gradient)?;
            slots.add(to, Gradient::fresh(dx))
        }))
    }

    /// [`crate::nn::upsample_nearest_2x`]: `[B, C, H, W]` to `[B, C, 2H, 2W]`.
    ///
    /// # Errors
    ///
    /// If `x` has not four dimensions, and those of the backend.
    pub fn upsample_nearest_2x(&self, x: &Value) -> Result<Value> {
        let (y, to) = (upsample_nearest_2x(self.kernels(), x.tensor())?, x.id());
        Ok(self.record_one(&[x], y, move |slots, gradient| {
            let dx = upsample_nearest_2x_backward(slots.kernels(), gradient.tensor())?;
            slots.add(to, Gradient::fresh(dx))
        }))
    }
}

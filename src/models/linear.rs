//! A frozen linear that may carry an adapter: where adapters meet all linears of a network (a UNet's convolutions have theirs beside
//! them).

use candle_core::{Result, Tensor};

use crate::autograd::{Tape, Value};
use crate::lora::Bound;
use crate::nn::Frozen;

/// y = x W^T + b, plus its adapter's update if there is one.
pub(super) struct Linear {
    name: String,
    /// [outputs, inputs]
    weight: Frozen,
    /// [outputs]
    bias: Option<Tensor>,
}

impl Linear {
    /// `name` is the module's in the naming of diffusers: what adapters are looked up by.
    pub(super) fn new(name: String, weight: Frozen, bias: Option<Tensor>) -> Self {
        Self { name, weight, bias }
    }

    /// [.., inputs] to [.., outputs].
    pub(super) fn forward(&self, tape: &Tape, adapters: &Bound, x: &Value) -> Result<Value> {
        let lora = adapters.on(&self.name, x)?;
        tape.linear(x, &self.weight, self.bias.as_ref(), lora.as_ref())
    }
}

//! A frozen linear that may carry an adapter: where adapters meet all linears of a network (a UNet's convolutions have theirs beside
//! them).

use candle_core::Tensor;

use super::{Error, Source};
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
    pub(super) fn load(
        source: &dyn Source,
        name: &str,
        (outputs, inputs): (usize, usize),
        bias: bool,
    ) -> Result<Self, Error> {
        let bias = bias.then(|| source.tensor(&[outputs], &format!("{name}.bias")));
        Ok(Self {
            weight: source.matrix([outputs, inputs], &format!("{name}.weight"))?,
            bias: bias.transpose()?,
            name: name.to_owned(),
        })
    }

    /// One that never carries an adapter, with a bias.
    pub(super) fn untrained(
        source: &dyn Source,
        name: &str,
        (outputs, inputs): (usize, usize),
    ) -> Result<Self, Error> {
        Ok(Self {
            weight: source.untrained([outputs, inputs], &format!("{name}.weight"))?,
            bias: Some(source.tensor(&[outputs], &format!("{name}.bias"))?),
            name: name.to_owned(),
        })
    }

    /// [.., inputs] to [.., outputs].
    pub(super) fn forward(
        &self,
        tape: &Tape,
        adapters: &Bound,
        x: &Value,
    ) -> candle_core::Result<Value> {
        let lora = adapters.on(&self.name, x)?;
        let y = tape.linear(x, &self.weight, self.bias.as_ref(), lora.as_ref())?;
        adapters.beneath(tape, &self.name, x, y)
    }
}

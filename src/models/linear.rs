//! Frozen linears that may carry adapters: where adapters meet all linears of a network (a UNet's convolutions have theirs beside them).

use candle_core::Tensor;

use super::{Error, Source};
use crate::autograd::{Tape, Value};
use crate::lora::Bound;
use crate::nn::Frozen;
use crate::nn::fused::{FusedLinears, Layer};

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

    /// [`Self::forward`], then GELU by its tanh approximation.
    pub(super) fn gelu(
        &self,
        tape: &Tape,
        adapters: &Bound,
        x: &Value,
    ) -> candle_core::Result<Value> {
        // What lies beneath comes before the GELU.
        if adapters.has_beneath(&self.name) {
            return tape.gelu_tanh(&self.forward(tape, adapters, x)?);
        }
        let lora = adapters.on(&self.name, x)?;
        tape.linear_gelu(x, &self.weight, self.bias.as_ref(), lora.as_ref())
    }
}

/// Linears of one input, such as those to queries, keys and values: computed together.
pub(super) struct Fused<const N: usize> {
    names: [String; N],
    linears: FusedLinears,
}

impl<const N: usize> Fused<N> {
    /// Fastest where they are in the order of their names, in which adapters lie.
    pub(super) fn new(linears: [Linear; N]) -> Result<Self, Error> {
        let names = linears.each_ref().map(|linear| linear.name.clone());
        let layers = linears.map(|Linear { weight, bias, .. }| Layer { w: weight, b: bias });
        let linears = FusedLinears::new(layers.into()).map_err(|source| Error::Device {
            what: format!("laying out `{}`", names.join("`, `")),
            source,
        })?;
        Ok(Self { names, linears })
    }

    /// [.., inputs] to [.., outputs] of each.
    pub(super) fn forward(
        &self,
        tape: &Tape,
        adapters: &Bound,
        x: &Value,
    ) -> candle_core::Result<[Value; N]> {
        let (loras, stacked) = adapters.on_each(&self.names, x)?;
        let mut ys = tape.linears(x, &self.linears, &loras, stacked)?;
        for (name, y) in self.names.iter().zip(&mut ys) {
            *y = adapters.beneath(tape, name, x, y.clone())?;
        }
        let count = ys.len();
        let as_many = |_| candle_core::Error::Msg(format!("{count} results of {N} linears"));
        ys.try_into().map_err(as_many)
    }
}

/// Linears of one input to queries, keys and values. They lie in the order of their names: keys, queries, values.
pub(super) struct Qkv(Fused<3>);

impl Qkv {
    pub(super) fn new([q, k, v]: [Linear; 3]) -> Result<Self, Error> {
        Ok(Self(Fused::new([k, q, v])?))
    }

    /// Queries, keys and values of `x` [.., inputs].
    pub(super) fn forward(
        &self,
        tape: &Tape,
        adapters: &Bound,
        x: &Value,
    ) -> candle_core::Result<[Value; 3]> {
        let [k, q, v] = self.0.forward(tape, adapters, x)?;
        Ok([q, k, v])
    }
}

/// Linears to queries, keys and values, of one input or of two.
pub(super) enum Projections {
    OfOne(Qkv),
    /// Queries of what asks, keys and values of what is seen.
    OfTwo(Linear, Fused<2>),
}

impl Projections {
    pub(super) fn of_one(linears: [Linear; 3]) -> Result<Self, Error> {
        Ok(Self::OfOne(Qkv::new(linears)?))
    }

    pub(super) fn of_two([q, k, v]: [Linear; 3]) -> Result<Self, Error> {
        Ok(Self::OfTwo(q, Fused::new([k, v])?))
    }

    /// Queries, keys and values of `x` [.., inputs], or queries of it and keys and values of `seen`.
    pub(super) fn forward(
        &self,
        tape: &Tape,
        adapters: &Bound,
        x: &Value,
        seen: &Value,
    ) -> candle_core::Result<[Value; 3]> {
        match self {
            Self::OfOne(linears) => linears.forward(tape, adapters, x),
            Self::OfTwo(asking, linears) => {
                let q = asking.forward(tape, adapters, x)?;
                let [k, v] = linears.forward(tape, adapters, seen)?;
                Ok([q, k, v])
            }
        }
    }
}

//! What a UNet is made of: convolutions and norms, the residual block, the transformer.
//!
//! Shapes: b batch, c channels, h w height and width, n = h * w, m context tokens, d width of the timestep's vector.

use candle_core::{Result, Tensor};

use crate::autograd::{Tape, Value};
use crate::lora::Bound;
use crate::models::Source;
use crate::models::linear::{Linear, Projections};
use crate::models::transformer::Loaded;
use crate::nn::{Activation, AttentionMask, Conv2dOptions};

/// Epsilon of the group norm in front of a transformer (set in diffusers' `Transformer2DModel`).
const TRANSFORMER_EPS: f64 = 1e-6;
/// Epsilon of the layer norms inside, which `BasicTransformerBlock` leaves at torch's default.
const BLOCK_EPS: f64 = 1e-5;

/// What a pass through a layer goes along with.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) tape: &'a Tape,
    pub(super) adapters: &'a Bound,
    /// [b, m, context width]
    pub(super) context: &'a Value,
}

/// A frozen convolution that may carry an adapter.
pub(super) struct Conv {
    name: String,
    weight_oikk: Tensor,
    bias_o: Tensor,
    options: Conv2dOptions,
}

impl Conv {
    pub(super) fn load(
        source: &dyn Source,
        name: &str,
        (outputs, inputs, kernel): (usize, usize, usize),
        options: Conv2dOptions,
    ) -> Loaded<Self> {
        Ok(Self {
            weight_oikk: source
                .kernel([outputs, inputs, kernel, kernel], &format!("{name}.weight"))?,
            bias_o: source.tensor(&[outputs], &format!("{name}.bias"))?,
            name: name.to_owned(),
            options,
        })
    }

    pub(super) fn bias(&self) -> &Tensor {
        &self.bias_o
    }

    pub(super) fn forward(&self, tape: &Tape, adapters: &Bound, x: &Value) -> Result<Value> {
        let lora = adapters.on(&self.name, x)?;
        let (weight, bias) = (&self.weight_oikk, Some(&self.bias_o));
        tape.conv2d(x, weight, bias, self.options, lora.as_ref())
    }
}

/// A frozen group norm.
pub(super) struct GroupNorm {
    weight_c: Tensor,
    bias_c: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    pub(super) fn load(
        source: &dyn Source,
        name: &str,
        channels: usize,
        groups: usize,
        eps: f64,
    ) -> Loaded<Self> {
        Ok(Self {
            weight_c: source.tensor(&[channels], &format!("{name}.weight"))?,
            bias_c: source.tensor(&[channels], &format!("{name}.bias"))?,
            groups,
            eps,
        })
    }

    /// Normed, and through SiLU if asked.
    pub(super) fn forward(&self, tape: &Tape, x: &Value, silu: bool) -> Result<Value> {
        let (weight, bias) = (&self.weight_c, &self.bias_c);
        tape.group_norm(x, weight, bias, self.groups, self.eps, silu)
    }
}

/// Extents of a residual block.
#[derive(Clone, Copy)]
pub(super) struct ResNetSize {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Of the timestep's vector.
    pub(super) time: usize,
    pub(super) groups: usize,
    pub(super) eps: f64,
}

/// Two convolutions beside a shortcut; the timestep moves the channels between them.
pub(super) struct ResNet {
    norm1: GroupNorm,
    conv1: Conv,
    time: Linear,
    norm2: GroupNorm,
    conv2: Conv,
    /// Where the width changes.
    shortcut: Option<Conv>,
}

impl ResNet {
    pub(super) fn load(source: &dyn Source, name: &str, size: ResNetSize) -> Loaded<Self> {
        let ResNetSize {
            inputs,
            outputs,
            time,
            groups,
            eps,
        } = size;
        let part = |part: &str| format!("{name}.{part}");
        let (same, pointwise) = (Conv2dOptions::SAME, Conv2dOptions::POINTWISE);
        let shortcut = (inputs != outputs).then(|| {
            Conv::load(
                source,
                &part("conv_shortcut"),
                (outputs, inputs, 1),
                pointwise,
            )
        });
        Ok(Self {
            norm1: GroupNorm::load(source, &part("norm1"), inputs, groups, eps)?,
            conv1: Conv::load(source, &part("conv1"), (outputs, inputs, 3), same)?,
            time: Linear::load(source, &part("time_emb_proj"), (outputs, time), true)?,
            norm2: GroupNorm::load(source, &part("norm2"), outputs, groups, eps)?,
            conv2: Conv::load(source, &part("conv2"), (outputs, outputs, 3), same)?,
            shortcut: shortcut.transpose()?,
        })
    }

    /// `x` [b, c, h, w] and the timestep's activated vector [b, d].
    pub(super) fn forward(&self, pass: Pass<'_>, x: &Value, vector: &Value) -> Result<Value> {
        let Pass { tape, adapters, .. } = pass;
        let h = self.norm1.forward(tape, x, true)?;
        let h = self.conv1.forward(tape, adapters, &h)?;
        let time = self.time.forward(tape, adapters, vector)?;
        let (b, c) = time.tensor().dims2()?;
        let h = tape.add(&h, &tape.reshape(&time, &[b, c, 1, 1])?)?;
        let h = self.norm2.forward(tape, &h, true)?;
        let h = self.conv2.forward(tape, adapters, &h)?;
        match &self.shortcut {
            Some(shortcut) => tape.add(&shortcut.forward(tape, adapters, x)?, &h),
            None => tape.add(x, &h),
        }
    }
}

/// Extents of a transformer.
#[derive(Clone, Copy)]
pub(super) struct TransformerSize {
    pub(super) width: usize,
    pub(super) heads: usize,
    pub(super) depth: usize,
    pub(super) context: usize,
    pub(super) groups: usize,
    pub(super) linear_projection: bool,
}

/// The way between pictures and tokens.
enum Projection {
    Linear(Linear),
    Conv(Conv),
}

impl Projection {
    fn load(source: &dyn Source, name: &str, size: TransformerSize) -> Loaded<Self> {
        let width = size.width;
        Ok(match size.linear_projection {
            true => Self::Linear(Linear::load(source, name, (width, width), true)?),
            false => {
                let options = Conv2dOptions::POINTWISE;
                Self::Conv(Conv::load(source, name, (width, width, 1), options)?)
            }
        })
    }

    /// [b, c, h, w] to [b, n, c].
    fn enter(&self, pass: Pass<'_>, x: &Value) -> Result<Value> {
        let Pass { tape, adapters, .. } = pass;
        match self {
            Self::Linear(linear) => linear.forward(tape, adapters, &to_tokens(tape, x)?),
            Self::Conv(conv) => to_tokens(tape, &conv.forward(tape, adapters, x)?),
        }
    }

    /// [b, n, c] to the [b, c, h, w] of `like`.
    fn leave(&self, pass: Pass<'_>, x: &Value, like: &Value) -> Result<Value> {
        let Pass { tape, adapters, .. } = pass;
        match self {
            Self::Linear(linear) => {
                to_picture(tape, &linear.forward(tape, adapters, x)?, like.dims())
            }
            Self::Conv(conv) => conv.forward(tape, adapters, &to_picture(tape, x, like.dims())?),
        }
    }
}

fn to_tokens(tape: &Tape, x: &Value) -> Result<Value> {
    let (b, c, h, w) = x.tensor().dims4()?;
    let x_bcn = tape.reshape(x, &[b, c, h * w])?;
    tape.permute(&x_bcn, &[0, 2, 1])
}

fn to_picture(tape: &Tape, x: &Value, shape: &[usize]) -> Result<Value> {
    let x_bcn = tape.permute(x, &[0, 2, 1])?;
    tape.reshape(&x_bcn, shape)
}

/// Blocks of attention over the pixels of a level, beside the residual.
pub(super) struct Transformer {
    norm: GroupNorm,
    proj_in: Projection,
    blocks: Vec<Block>,
    proj_out: Projection,
}

impl Transformer {
    pub(super) fn load(source: &dyn Source, name: &str, size: TransformerSize) -> Loaded<Self> {
        let norm = format!("{name}.norm");
        let blocks = (0..size.depth)
            .map(|k| Block::load(source, &format!("{name}.transformer_blocks.{k}"), size));
        Ok(Self {
            norm: GroupNorm::load(source, &norm, size.width, size.groups, TRANSFORMER_EPS)?,
            proj_in: Projection::load(source, &format!("{name}.proj_in"), size)?,
            blocks: blocks.collect::<Loaded<_>>()?,
            proj_out: Projection::load(source, &format!("{name}.proj_out"), size)?,
        })
    }

    /// [b, c, h, w] to the same.
    pub(super) fn forward(&self, pass: Pass<'_>, x: &Value) -> Result<Value> {
        let normed = self.norm.forward(pass.tape, x, false)?;
        let mut tokens = self.proj_in.enter(pass, &normed)?;
        for block in &self.blocks {
            tokens = block.forward(pass, &tokens)?;
        }
        pass.tape.add(x, &self.proj_out.leave(pass, &tokens, x)?)
    }
}

/// Self-attention, attention to the context, and a gated feed-forward, each behind a norm and beside the residual.
struct Block {
    norms: [LayerNorm; 3],
    own: Attention,
    context: Attention,
    up: Linear,
    down: Linear,
}

impl Block {
    fn load(source: &dyn Source, name: &str, size: TransformerSize) -> Loaded<Self> {
        let width = size.width;
        let part = |part: &str| format!("{name}.{part}");
        let norm = |i: usize| LayerNorm::load(source, &format!("{name}.norm{i}"), width);
        let attention = |part: &str, context| {
            let name = format!("{name}.{part}");
            Attention::load(source, &name, width, context, size.heads)
        };
        Ok(Self {
            norms: [norm(1)?, norm(2)?, norm(3)?],
            own: attention("attn1", None)?,
            context: attention("attn2", Some(size.context))?,
            // GEGLU: one product gives values and gates, each four times the width.
            up: Linear::load(source, &part("ff.net.0.proj"), (8 * width, width), true)?,
            down: Linear::load(source, &part("ff.net.2"), (width, 4 * width), true)?,
        })
    }

    /// [b, n, c] to the same.
    fn forward(&self, pass: Pass<'_>, x: &Value) -> Result<Value> {
        let Pass { tape, adapters, .. } = pass;
        let [first, second, third] = &self.norms;
        let y = first.forward(tape, x)?;
        let x = tape.add(x, &self.own.forward(pass, &y, &y)?)?;
        let y = second.forward(tape, &x)?;
        let x = tape.add(&x, &self.context.forward(pass, &y, pass.context)?)?;
        let y = self.up.forward(tape, adapters, &third.forward(tape, &x)?)?;
        let half = y.tensor().dim(2)? / 2;
        let mut halves = tape.split(&y, 2, &[half, half])?.into_iter();
        // diffusers' GEGLU has the gate second; SwiGLU in language models has it first.
        let (Some(value), Some(gate)) = (halves.next(), halves.next()) else {
            candle_core::bail!("a feed-forward of odd width");
        };
        let y = tape.activation_gated(Activation::GeluErf, &gate, &value)?;
        tape.add(&x, &self.down.forward(tape, adapters, &y)?)
    }
}

struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    fn load(source: &dyn Source, name: &str, width: usize) -> Loaded<Self> {
        Ok(Self {
            weight: source.tensor(&[width], &format!("{name}.weight"))?,
            bias: source.tensor(&[width], &format!("{name}.bias"))?,
        })
    }

    fn forward(&self, tape: &Tape, x: &Value) -> Result<Value> {
        tape.layer_norm(x, Some(&self.weight), Some(&self.bias), BLOCK_EPS)
    }
}

struct Attention {
    into: Projections,
    out: Linear,
    heads: usize,
}

impl Attention {
    /// Over the pixels of `width` channels, or over a context of so many.
    fn load(
        source: &dyn Source,
        name: &str,
        width: usize,
        context: Option<usize>,
        heads: usize,
    ) -> Loaded<Self> {
        let linear = |part: &str, inputs: usize| {
            Linear::load(source, &format!("{name}.{part}"), (width, inputs), false)
        };
        let keys = context.unwrap_or(width);
        let into = [
            linear("to_q", width)?,
            linear("to_k", keys)?,
            linear("to_v", keys)?,
        ];
        Ok(Self {
            into: match context {
                Some(_) => Projections::of_two(into)?,
                None => Projections::of_one(into)?,
            },
            out: Linear::load(source, &format!("{name}.to_out.0"), (width, width), true)?,
            heads,
        })
    }

    fn forward(&self, pass: Pass<'_>, x: &Value, seen: &Value) -> Result<Value> {
        let Pass { tape, adapters, .. } = pass;
        let [q, k, v] = self.into.forward(tape, adapters, x, seen)?;
        let split = |y: &Value| {
            let (b, n, c) = y.tensor().dims3()?;
            tape.reshape(y, &[b, n, self.heads, c / self.heads])
        };
        let (q, k, v) = (split(&q)?, split(&k)?, split(&v)?);
        let scale = 1.0 / (q.tensor().dim(3)? as f64).sqrt();
        let attended = tape.attention(&q, &k, &v, scale, None, &AttentionMask::None)?;
        self.out.forward(tape, adapters, &attended)
    }
}

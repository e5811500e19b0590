//! A block: attention and a gated feed-forward one after the other, each between two norms, and modulated where the block sees the
//! picture (`ZImageTransformerBlock` of diffusers).
//!
//! Shapes: b batch, n tokens, h heads, e channels of a head, d = h * e, v channels of the vector that modulates.

use candle_core::{Result, Tensor};

use super::architecture::Architecture;
use super::embed::Rotary;
use super::names::MODULATION;
use crate::autograd::Value;
use crate::models::Source;
use crate::models::linear::{Fused, Linear, Qkv};
use crate::models::transformer::{Loaded, Pass};
use crate::nn::{Activation, AttentionMask};

/// Of the norms of queries and keys.
const HEAD_EPS: f64 = 1e-5;

/// One block.
pub(super) struct Block {
    eps: f64,
    modulation: Option<Linear>,
    attention: Attention,
    /// Before and behind the attention, [d].
    attention_norms: [Tensor; 2],
    /// Gate and value of the feed-forward.
    up: Fused<2>,
    down: Linear,
    /// Before and behind the feed-forward, [d].
    feed_forward_norms: [Tensor; 2],
}

struct Attention {
    qkv: Qkv,
    /// Of each head's queries and keys, [e].
    norms: [Tensor; 2],
    out: Linear,
}

/// The places of a block's tokens, and which are seen.
pub(super) struct Tokens {
    pub(super) rotary: Rotary,
    pub(super) mask: AttentionMask,
}

/// A half of a block's modulation, [b, d] each: what scales the input, less one, and what gates the result.
struct Half {
    scale: Value,
    gate: Value,
}

impl Block {
    /// The block of that name.
    pub(super) fn load(
        own: &Architecture,
        source: &dyn Source,
        name: &str,
        modulated: bool,
    ) -> Loaded<Self> {
        let (d, e) = (own.width, own.head_channels());
        let linear = |part: &str, outputs, inputs, bias| {
            Linear::load(source, &format!("{name}.{part}"), (outputs, inputs), bias)
        };
        let norm =
            |part: &str, width: usize| source.tensor(&[width], &format!("{name}.{part}.weight"));
        let modulation = modulated.then(|| linear(MODULATION, 4 * d, own.vector(), true));
        let square = |part: &str| linear(part, d, d, false);
        let attention = Attention {
            qkv: Qkv::new([
                square("attention.to_q")?,
                square("attention.to_k")?,
                square("attention.to_v")?,
            ])?,
            norms: [norm("attention.norm_q", e)?, norm("attention.norm_k", e)?],
            out: square("attention.to_out.0")?,
        };
        Ok(Self {
            eps: own.eps,
            modulation: modulation.transpose()?,
            attention,
            attention_norms: [norm("attention_norm1", d)?, norm("attention_norm2", d)?],
            up: Fused::new([
                linear("feed_forward.w1", own.inner(), d, false)?,
                linear("feed_forward.w3", own.inner(), d, false)?,
            ])?,
            down: linear("feed_forward.w2", d, own.inner(), false)?,
            feed_forward_norms: [norm("ffn_norm1", d)?, norm("ffn_norm2", d)?],
        })
    }

    /// `x` [b, n, d] and the vector [b, v] to the next `x`.
    pub(super) fn forward(
        &self,
        pass: Pass<'_>,
        tokens: &Tokens,
        x: &Value,
        vector: &Value,
    ) -> Result<Value> {
        let [of_attention, of_feed_forward] = self.modulation(pass, vector)?;
        let x = self.around(pass, x, &self.attention_norms, of_attention.as_ref(), |y| {
            self.attention.forward(pass, tokens, y)
        })?;
        self.around(
            pass,
            &x,
            &self.feed_forward_norms,
            of_feed_forward.as_ref(),
            |y| self.feed_forward(pass, y),
        )
    }

    /// The halves of the modulation: of the attention, of the feed-forward.
    fn modulation(&self, pass: Pass<'_>, vector: &Value) -> Result<[Option<Half>; 2]> {
        let Some(linear) = &self.modulation else {
            return Ok([None, None]);
        };
        let all = linear.forward(pass.tape, pass.adapters, vector)?;
        let half = |first: usize| {
            let width = all.tensor().dim(1)? / 4;
            let part = |at: usize| pass.tape.narrow(&all, 1, at * width, width);
            Ok::<_, candle_core::Error>(Half {
                scale: part(first)?,
                gate: pass.tape.tanh(&part(first + 1)?)?,
            })
        };
        Ok([Some(half(0)?), Some(half(2)?)])
    }

    /// `x` plus what `inside` makes of it, normed before and behind.
    fn around(
        &self,
        pass: Pass<'_>,
        x: &Value,
        norms: &[Tensor; 2],
        modulation: Option<&Half>,
        inside: impl Fn(&Value) -> Result<Value>,
    ) -> Result<Value> {
        let tape = pass.tape;
        let norm = |x: &Value, i: usize| tape.rms_norm(x, Some(&norms[i]), self.eps);
        let y = norm(x, 0)?;
        let y = match modulation {
            Some(half) => tape.gated_residual(&y, &half.scale, &y)?,
            None => y,
        };
        let y = norm(&inside(&y)?, 1)?;
        match modulation {
            Some(half) => tape.gated_residual(x, &half.gate, &y),
            None => tape.add(x, &y),
        }
    }

    fn feed_forward(&self, pass: Pass<'_>, x: &Value) -> Result<Value> {
        let (tape, adapters) = (pass.tape, pass.adapters);
        let [gate, value] = self.up.forward(tape, adapters, x)?;
        let inner = tape.activation_gated(Activation::Silu, &gate, &value)?;
        self.down.forward(tape, adapters, &inner)
    }
}

impl Attention {
    fn forward(&self, pass: Pass<'_>, tokens: &Tokens, x: &Value) -> Result<Value> {
        let (tape, adapters) = (pass.tape, pass.adapters);
        let (b, n, d) = x.tensor().dims3()?;
        let e = d / pass.heads;
        let [q, k, v] = self.qkv.forward(tape, adapters, x)?;
        let heads = |y: &Value| tape.reshape(y, &[b, n, pass.heads, e]);
        let turned = |y: &Value, norm: &Tensor| {
            let y = tape.rms_norm(&heads(y)?, Some(norm), HEAD_EPS)?;
            tokens.rotary.turn(tape, &y)
        };
        let (q, k) = (turned(&q, &self.norms[0])?, turned(&k, &self.norms[1])?);
        let scale = 1.0 / (e as f64).sqrt();
        let attended = tape.attention(&q, &k, &heads(&v)?, scale, None, &tokens.mask)?;
        self.out.forward(tape, adapters, &attended)
    }
}

//! The two kinds of blocks: double, in which picture and context have weights of their own and meet in one attention, and single, in
//! which they are one sequence and attention and feed-forward run side by side (ViT-22B, Dehghani et al., arXiv:2302.05442) between
//! two linears that both share. All blocks of a kind have the same shifts, scales and gates, made once for the whole network.
//!
//! Shapes: b batch, n patches, m context tokens, h heads, e channels of a head, d = h * e, f channels inside the feed-forward.

use candle_core::{Result, Tensor, bail};

use super::embed::Rotary;
use crate::autograd::Value;
use crate::models::flux1::block::{joint, scale_of};
use crate::models::linear::Linear;
use crate::models::transformer::{Heads, Modulation, Pass, split_heads};
use crate::nn::{Activation, AttentionMask};

/// Parts of a double block's modulation: 0 to 2 shift, scale and gate of the attention, 3 to 5 of the feed-forward.
pub(super) const OF_DOUBLE: usize = 6;

/// Parts of a single block's: shift, scale and gate.
pub(super) const OF_SINGLE: usize = 3;

/// What attention needs to know of the tokens, the picture's first, then those of its reference, then the context's.
pub(super) struct Tokens {
    pub(super) rotary: Rotary,
    /// The picture's and its reference's.
    pub(super) num_patches: usize,
    /// The context's.
    pub(super) num_context: usize,
    /// Which keys are seen: all, or none of the context's pads.
    pub(super) mask: AttentionMask,
}

/// The parts of a modulation [b, k, d].
fn parts(pass: Pass<'_>, vectors_bkd: &Value, count: usize) -> Result<Modulation> {
    Modulation::among(pass, vectors_bkd, &(0..count).collect::<Vec<_>>())
}

/// `silu(first half) * second half` of the last dimension (SwiGLU, Shazeer, arXiv:2002.05202).
fn swiglu(pass: Pass<'_>, gate: &Value, x: &Value) -> Result<Value> {
    pass.tape.activation_gated(Activation::Silu, gate, x)
}

/// One half of a double block.
pub(super) struct Half {
    pub(super) heads: Heads,
    pub(super) out: Linear,
    /// [2 f, d]: gates, then what they gate.
    pub(super) up: Linear,
    pub(super) down: Linear,
}

impl Half {
    /// Queries, keys and values [b, n, h, e], the first two turned.
    fn turned_heads(&self, pass: Pass<'_>, rotary: &Rotary, x: &Value) -> Result<[Value; 3]> {
        let turn = |x: &Value| pass.tape.rope(x, &rotary.cos, &rotary.sin);
        let [q, k, v] = self.heads.forward(pass, x)?;
        Ok([turn(&q)?, turn(&k)?, v])
    }

    /// What attention found, and the feed-forward, added to `x` [b, n, d].
    fn residual(
        &self,
        pass: Pass<'_>,
        mods: &Modulation,
        x: &Value,
        attended: &Value,
    ) -> Result<Value> {
        let y = self.out.forward(pass.tape, pass.adapters, attended)?;
        let x = mods.gate(pass, x, 2, &y)?;
        let y = mods.norm(pass, &x, 3, 4)?;
        let y = self.up.forward(pass.tape, pass.adapters, &y)?;
        let inner = y.tensor().dim(2)? / 2;
        let [gate, y] = split(pass, &y, [inner, inner])?;
        let y = swiglu(pass, &gate, &y)?;
        let y = self.down.forward(pass.tape, pass.adapters, &y)?;
        mods.gate(pass, &x, 5, &y)
    }
}

/// A double block.
pub(super) struct DoubleBlock {
    pub(super) picture: Half,
    pub(super) context: Half,
}

impl DoubleBlock {
    /// Picture [b, n, d], context [b, m, d] and the modulation of each, [b, 6, d], to the next picture and context.
    pub(super) fn forward(
        &self,
        pass: Pass<'_>,
        tokens: &Tokens,
        [x, context]: [&Value; 2],
        [mods, context_mods]: [&Value; 2],
    ) -> Result<[Value; 2]> {
        let mods = parts(pass, mods, OF_DOUBLE)?;
        let context_mods = parts(pass, context_mods, OF_DOUBLE)?;
        let (n, m) = (tokens.num_patches, tokens.num_context);
        let turns = [tokens.rotary.narrow(0, n)?, tokens.rotary.narrow(n, m)?];
        let normed = mods.norm(pass, x, 0, 1)?;
        let of_picture = self.picture.turned_heads(pass, &turns[0], &normed)?;
        let normed = context_mods.norm(pass, context, 0, 1)?;
        let of_context = self.context.turned_heads(pass, &turns[1], &normed)?;
        let [attended, context_attended] = joint(pass, &tokens.mask, &of_picture, &of_context)?;
        Ok([
            self.picture.residual(pass, &mods, x, &attended)?,
            self.context
                .residual(pass, &context_mods, context, &context_attended)?,
        ])
    }
}

/// A single block.
pub(super) struct SingleBlock {
    /// [3 d + 2 f, d]: queries, keys, values, the feed-forward's gates, then what they gate.
    pub(super) into: Linear,
    /// [e]
    pub(super) norm_q: Tensor,
    /// [e]
    pub(super) norm_k: Tensor,
    /// [d, d + f]: from attention and feed-forward together.
    pub(super) out: Linear,
}

impl SingleBlock {
    /// Picture and context [b, n + m, d] and the modulation [b, 3, d] to the next picture and context.
    pub(super) fn forward(
        &self,
        pass: Pass<'_>,
        tokens: &Tokens,
        x: &Value,
        mods: &Value,
    ) -> Result<Value> {
        let (tape, rotary) = (pass.tape, &tokens.rotary);
        let mods = parts(pass, mods, OF_SINGLE)?;
        let (b, n, d) = x.tensor().dims3()?;
        let normed = mods.norm(pass, x, 0, 1)?;
        let all = self.into.forward(tape, pass.adapters, &normed)?;
        let Some(f) = all.tensor().dim(2)?.checked_sub(3 * d).map(|both| both / 2) else {
            bail!(
                "a single block of width {d} whose first linear gives {:?}",
                all.dims()
            );
        };
        let [q, k, v, gate, up] = split(pass, &all, [d, d, d, f, f])?;
        let turn = |x: &Value, norm| {
            let heads = split_heads(pass, x, Some(norm))?;
            tape.rope(&heads, &rotary.cos, &rotary.sin)
        };
        let (q, k) = (turn(&q, &self.norm_q)?, turn(&k, &self.norm_k)?);
        let v = split_heads(pass, &v, None)?;
        let attended = tape.attention(&q, &k, &v, scale_of(&q)?, None, &tokens.mask)?;
        let inner = swiglu(pass, &alone(pass, &gate)?, &alone(pass, &up)?)?;
        drop((gate, up));
        let inner = tape.reshape(&inner, &[b, n, f])?;
        let both = tape.cat(&[&attended, &inner], 2)?;
        mods.gate(pass, x, 2, &self.out.forward(tape, pass.adapters, &both)?)
    }
}

/// A part of a wider tensor as one of its own, [b * n, f]: what the tape keeps of the part would else keep the whole alive, and the
/// queries, keys and values in it twice.
fn alone(pass: Pass<'_>, part: &Value) -> Result<Value> {
    let (b, n, f) = part.tensor().dims3()?;
    pass.tape.reshape(part, &[b * n, f])
}

/// The last dimension of `x` [b, n, sum of lengths] cut into parts.
fn split<const N: usize>(pass: Pass<'_>, x: &Value, lengths: [usize; N]) -> Result<[Value; N]> {
    match pass.tape.split(x, 2, &lengths)?.try_into() {
        Ok(parts) => Ok(parts),
        Err(other) => bail!("{N} parts were asked for, found {}", Vec::len(&other)),
    }
}

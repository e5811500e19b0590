//! The two kinds of blocks: double, in which picture and context have weights of their own and meet in one attention,
//! and single, in which they are one sequence and attention and feed-forward run side by side.
//!
//! Shapes: b batch, n patches (a reference's among them), m context tokens, h heads, e channels of a head, d = h * e.

use candle_core::{Result, bail};

use super::embed::Rotary;
use crate::autograd::{AttentionPart, Value};
use crate::models::linear::Linear;
use crate::models::transformer::{FeedForward, Heads, Modulation, Pass};
use crate::nn::AttentionMask;

/// Where a block's shifts, scales and gates come from.
pub(in crate::models) enum Modulator {
    /// A linear of the conditioning vector [b, d].
    Linear(Linear),
    /// The vectors of these numbers among those that were made for the whole network, [b, k, d].
    Vectors(Vec<usize>),
}

impl Modulator {
    /// The parts, of the conditioning vector or of the vectors.
    pub(super) fn parts(&self, pass: Pass<'_>, vector: &Value) -> Result<Modulation> {
        match self {
            Self::Linear(linear) => Modulation::new(pass, linear, vector),
            Self::Vectors(numbers) => Modulation::among(pass, vector, numbers),
        }
    }
}

/// What attention needs to know of the tokens, the picture's first, then the context's.
pub(super) struct Tokens {
    pub(super) rotary: Rotary,
    /// The picture's, and behind them its reference's.
    pub(super) num_patches: usize,
    /// Which keys are seen: all, or none of the context's pads.
    pub(super) mask: AttentionMask,
}

/// One half of a double block.
pub(super) struct Half {
    pub(super) modulation: Modulator,
    pub(super) heads: Heads,
    pub(super) out: Linear,
    pub(super) feed_forward: FeedForward,
}

impl Half {
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
        self.feed_forward.residual(pass, mods, &x)
    }
}

/// A double block. Parts of a modulation: 0 to 2 shift, scale and gate of the attention, 3 to 5 of the feed-forward.
pub(super) struct DoubleBlock {
    pub(super) picture: Half,
    pub(super) context: Half,
}

impl DoubleBlock {
    /// Picture [b, n, d], context [b, m, d] and what its modulators take of `vector` to the next picture and context.
    pub(super) fn forward(
        &self,
        pass: Pass<'_>,
        tokens: &Tokens,
        x: &Value,
        context: &Value,
        vector: &Value,
    ) -> Result<[Value; 2]> {
        let mods = self.picture.modulation.parts(pass, vector)?;
        let context_mods = self.context.modulation.parts(pass, vector)?;
        let normed = mods.norm(pass, x, 0, 1)?;
        let [q, k, v] = self.picture.heads.forward(pass, &normed)?;
        let normed = context_mods.norm(pass, context, 0, 1)?;
        let of_context = self.context.heads.forward(pass, &normed)?;
        // The context's ids are 0: it does not turn.
        let turned = tokens.rotary.narrow(0, tokens.num_patches)?;
        let turn = |x: &Value| pass.tape.rope(x, &turned.cos, &turned.sin);
        let of_picture = [turn(&q)?, turn(&k)?, v];
        let [attended, context_attended] = joint(pass, &tokens.mask, &of_picture, &of_context)?;
        Ok([
            self.picture.residual(pass, &mods, x, &attended)?,
            self.context
                .residual(pass, &context_mods, context, &context_attended)?,
        ])
    }
}

/// Attention of queries, keys and values of picture and context as one sequence: [b, n, d] and [b, m, d].
pub(in crate::models) fn joint(
    pass: Pass<'_>,
    mask: &AttentionMask,
    picture: &[Value; 3],
    context: &[Value; 3],
) -> Result<[Value; 2]> {
    let (tape, scale) = (pass.tape, scale_of(&picture[0])?);
    if *mask == AttentionMask::None {
        let part = |[q, k, v]: &'_ [Value; 3]| (q.clone(), k.clone(), v.clone());
        let (picture, context) = (part(picture), part(context));
        let parts = [&picture, &context].map(|(q, k, v)| AttentionPart { q: Some(q), k, v });
        let attended = tape.joint_attention(&parts, scale)?;
        return match <[Value; 2]>::try_from(attended) {
            Ok(attended) => Ok(attended),
            Err(other) => bail!("attention gave {} parts", other.len()),
        };
    }
    // Attention in parts takes no mask, so the two are copied into one here only.
    let whole = |part: usize| tape.cat(&[&picture[part], &context[part]], 1);
    let (q, k, v) = (whole(0)?, whole(1)?, whole(2)?);
    let attended = tape.attention(&q, &k, &v, scale, None, mask)?;
    let (n, m) = (picture[0].tensor().dim(1)?, context[0].tensor().dim(1)?);
    Ok([
        tape.narrow(&attended, 1, 0, n)?,
        tape.narrow(&attended, 1, n, m)?,
    ])
}

/// 1 over the root of a head's channels.
pub(in crate::models) fn scale_of(q_bnhe: &Value) -> Result<f64> {
    Ok(1.0 / (q_bnhe.tensor().dim(3)? as f64).sqrt())
}

/// A single block. Parts of its modulation: shift, scale and gate.
pub(super) struct SingleBlock {
    pub(super) modulation: Modulator,
    pub(super) heads: Heads,
    pub(super) up: Linear,
    /// From attention and feed-forward together.
    pub(super) out: Linear,
}

impl SingleBlock {
    /// Picture and context [b, n + m, d] and what its modulator takes of `vector` to the next picture and context.
    pub(super) fn forward(
        &self,
        pass: Pass<'_>,
        tokens: &Tokens,
        x: &Value,
        vector: &Value,
    ) -> Result<Value> {
        let (tape, rotary) = (pass.tape, &tokens.rotary);
        let mods = self.modulation.parts(pass, vector)?;
        let y = mods.norm(pass, x, 0, 1)?;
        let turn = |x: &Value| tape.rope(x, &rotary.cos, &rotary.sin);
        let [q, k, v] = self.heads.forward(pass, &y)?;
        let (q, k) = (turn(&q)?, turn(&k)?);
        let attended = tape.attention(&q, &k, &v, scale_of(&q)?, None, &tokens.mask)?;
        let inner = self.up.gelu(tape, pass.adapters, &y)?;
        let both = tape.cat(&[&attended, &inner], 2)?;
        mods.gate(pass, x, 2, &self.out.forward(tape, pass.adapters, &both)?)
    }
}

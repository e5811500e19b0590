//! One joint block: picture and context have weights of their own and meet in one attention.
//!
//! Shapes: b batch, n patches, m context tokens, h heads, e channels of a head, d = h * e.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use crate::autograd::{AttentionPart, Value};
use crate::models::linear::{Fused, Linear};
use crate::models::transformer::{FeedForward, Heads, Modulation, Pass, split_heads};
use crate::nn::AttentionMask;

/// Heads of queries, keys and values, and the linear behind the attention.
pub(super) struct Attention {
    pub(super) heads: Heads,
    pub(super) out: Linear,
}

/// The context's half of a block.
pub(super) struct ContextHalf {
    pub(super) modulation: Linear,
    pub(super) then: Then,
}

/// What becomes of the context.
pub(super) enum Then {
    /// It asks as well, and becomes the next block's context.
    Next(Box<NextContext>),
    /// In the last block it is only looked at: linears to keys and values, and the norm [e] of each head's keys.
    LookedAt {
        linears: Fused<2>,
        norm: Option<Tensor>,
    },
}

/// What makes the next block's context.
pub(super) struct NextContext {
    pub(super) attention: Attention,
    pub(super) feed_forward: FeedForward,
}

impl Then {
    /// Queries, keys and values of the context [b, m, d]: [b, m, h, e].
    fn heads(&self, pass: Pass<'_>, context: &Value) -> Result<(Option<Value>, [Value; 2])> {
        match self {
            Self::Next(next) => {
                let [q, k, v] = next.attention.heads.forward(pass, context)?;
                Ok((Some(q), [k, v]))
            }
            Self::LookedAt { linears, norm } => {
                let [k, v] = linears.forward(pass.tape, pass.adapters, context)?;
                let k = split_heads(pass, &k, norm.as_ref())?;
                Ok((None, [k, split_heads(pass, &v, None)?]))
            }
        }
    }
}

/// One block.
pub(super) struct JointBlock {
    pub(super) modulation: Linear,
    pub(super) attention: Attention,
    /// A second attention, over the picture alone.
    pub(super) dual: Option<Attention>,
    pub(super) feed_forward: FeedForward,
    pub(super) context: ContextHalf,
}

impl JointBlock {
    /// Picture [b, n, d], context [b, m, d] and the activated conditioning vector [b, d] to the next picture, and the
    /// next context unless this is the last block.
    ///
    /// Parts of a modulation: 0 to 2 shift, scale and gate of the attention, 3 to 5 of the feed-forward, 6 to 8 of
    /// the second attention. That of the last context has scale and shift only, in this order.
    pub(super) fn forward(
        &self,
        pass: Pass<'_>,
        x: &Value,
        context: &Value,
        vector: &Value,
    ) -> Result<(Value, Option<Value>)> {
        let mods = Modulation::new(pass, &self.modulation, vector)?;
        let context_mods = Modulation::new(pass, &self.context.modulation, vector)?;
        let x_in = mods.norm(pass, x, 0, 1)?;
        // The last context has diffusers' `AdaLayerNormContinuous`, which begins with the scale.
        let (shift, scale) = match self.context.then {
            Then::Next(_) => (0, 1),
            Then::LookedAt { .. } => (1, 0),
        };
        let context_in = context_mods.norm(pass, context, shift, scale)?;
        // Of x as it came in: `SD35AdaLayerNormZeroX` modulates one norm for both attentions.
        let dual_in = match &self.dual {
            Some(_) => Some(mods.norm(pass, x, 6, 7)?),
            None => None,
        };

        let (attended, context_attended) = self.joint_attention(pass, &x_in, &context_in)?;
        let mut x = mods.gate(pass, x, 2, &attended)?;
        if let (Some(dual), Some(dual_in)) = (&self.dual, dual_in) {
            x = mods.gate(pass, &x, 8, &dual.alone(pass, &dual_in)?)?;
        }
        let x = self.feed_forward.residual(pass, &mods, &x)?;

        let (Then::Next(next), Some(attended)) = (&self.context.then, context_attended) else {
            return Ok((x, None));
        };
        let context = context_mods.gate(pass, context, 2, &attended)?;
        let context = next.feed_forward.residual(pass, &context_mods, &context)?;
        Ok((x, Some(context)))
    }

    /// [`Self::forward`], keeping the inputs only: the block is run again for its gradients.
    pub(super) fn checkpointed(
        self: &Arc<Self>,
        pass: Pass<'_>,
        x: &Value,
        context: &Value,
        vector: &Value,
    ) -> Result<(Value, Option<Value>)> {
        let block = Arc::clone(self);
        let run = move |pass: Pass<'_>, inputs: &[Value]| {
            let [x, context, vector] = inputs else {
                bail!("a block has three inputs, found {}", inputs.len());
            };
            let (x, context) = block.forward(pass, x, context, vector)?;
            Ok([Some(x), context].into_iter().flatten().collect())
        };
        let mut outputs = pass.checkpoint(&[x, context, vector], run)?.into_iter();
        match outputs.next() {
            Some(x) => Ok((x, outputs.next())),
            None => bail!("a block gave nothing"),
        }
    }

    /// Queries of both on keys and values of both, and each half's output linear. The last block's context asks
    /// nothing, since nobody would read the answer.
    fn joint_attention(
        &self,
        pass: Pass<'_>,
        x: &Value,
        context: &Value,
    ) -> Result<(Value, Option<Value>)> {
        let [q, k, v] = self.attention.heads.forward(pass, x)?;
        let (context_q, [context_k, context_v]) = self.context.then.heads(pass, context)?;
        let of_x = AttentionPart {
            q: Some(&q),
            k: &k,
            v: &v,
        };
        let of_context = AttentionPart {
            q: context_q.as_ref(),
            k: &context_k,
            v: &context_v,
        };
        let scale = 1.0 / (q.tensor().dim(3)? as f64).sqrt();
        let attended = pass.tape.joint_attention(&[of_x, of_context], scale)?;
        let out = |linear: &Linear, part: usize| match attended.get(part) {
            Some(part) => linear.forward(pass.tape, pass.adapters, part),
            None => bail!("attention gave {} parts", attended.len()),
        };
        let of_x = out(&self.attention.out, 0)?;
        let of_context = match &self.context.then {
            Then::Next(next) => Some(out(&next.attention.out, 1)?),
            Then::LookedAt { .. } => None,
        };
        Ok((of_x, of_context))
    }
}

impl Attention {
    /// [b, n, d] to [b, n, d].
    fn alone(&self, pass: Pass<'_>, x: &Value) -> Result<Value> {
        let [q, k, v] = self.heads.forward(pass, x)?;
        let scale = 1.0 / (q.tensor().dim(3)? as f64).sqrt();
        let attended = pass
            .tape
            .attention(&q, &k, &v, scale, None, &AttentionMask::None)?;
        self.out.forward(pass.tape, pass.adapters, &attended)
    }
}

//! Attention and rotary positions on the tape.

use candle_core::{Result, Tensor};

use super::gradient::Gradient;
use super::tape::{Tape, Value};
use crate::nn::attention::{Parts, joint_attention, joint_attention_backward};
use crate::nn::rope::rope_backward;
use crate::nn::{AttentionMask, rope};

/// Queries, keys and values of one part of a joint attention: `[B, N, H, D]` each.
#[derive(Clone, Copy, Debug)]
pub struct AttentionPart<'a> {
    /// None if nobody asks for this part's result: its keys and values are still seen.
    pub q: Option<&'a Value>,
    /// Its keys, which every part's queries see.
    pub k: &'a Value,
    /// Its values, one for each key.
    pub v: &'a Value,
}

impl Tape {
    /// [`crate::nn::attention`]: `q` `[B, N, H, D]`, `k` and `v` `[B, M, H, D]` to `[B, N, H * D]`. The bias is
    /// frozen.
    ///
    /// # Errors
    ///
    /// If the shapes, types or the mask do not fit, and those of the backend.
    pub fn attention(
        &self,
        q: &Value,
        k: &Value,
        v: &Value,
        scale: f64,
        bias: Option<&Tensor>,
        mask: &AttentionMask,
    ) -> Result<Value> {
        let parts = AttentionPart { q: Some(q), k, v };
        Ok(self.attend(&[parts], scale, bias, mask)?.remove(0))
    }

    /// Attention of several sequences as if they were one: every query sees the keys of all parts. The result
    /// `[B, N, H * D]` of each part that has queries, in order. Nothing is copied together.
    ///
    /// # Errors
    ///
    /// If the shapes or types do not fit, and those of the backend.
    pub fn joint_attention(&self, parts: &[AttentionPart<'_>], scale: f64) -> Result<Vec<Value>> {
        self.attend(parts, scale, None, &AttentionMask::None)
    }

    fn attend(
        &self,
        parts: &[AttentionPart<'_>],
        scale: f64,
        bias: Option<&Tensor>,
        mask: &AttentionMask,
    ) -> Result<Vec<Value>> {
        let q: Vec<&Value> = parts.iter().filter_map(|part| part.q).collect();
        let k: Vec<&Value> = parts.iter().map(|part| part.k).collect();
        let v: Vec<&Value> = parts.iter().map(|part| part.v).collect();
        let tensors = |values: &[&Value]| values.iter().map(|v| v.tensor().clone()).collect();
        let saved = Parts {
            q: tensors(&q),
            k: tensors(&k),
            v: tensors(&v),
        };
        let (outs, kept) = joint_attention(self.kernels(), &saved, scale, bias, mask)?;
        let inputs = [q, k, v].concat();
        // In the order in which the gradients come back below.
        let targets: Vec<_> = inputs.iter().map(|value| value.id()).collect();
        let shapes: Vec<_> = outs
            .iter()
            .map(|out| (out.shape().clone(), out.dtype()))
            .collect();
        let (bias, mask) = (bias.cloned(), mask.clone());
        Ok(self.record(&inputs, outs, move |slots, gradients| {
            let device = saved.k[0].device();
            // Where the loss depends on some parts only, the others have no gradient; attention's backward needs one of each.
            let dense = |(gradient, (shape, dtype)): (Option<Gradient>, &(_, _))| match gradient {
                Some(gradient) => Ok(gradient.tensor().clone()),
                None => Tensor::zeros(shape, *dtype, device),
            };
            let gradients = gradients
                .into_iter()
                .zip(&shapes)
                .map(dense)
                .collect::<Result<Vec<_>>>()?;
            let bias = bias.as_ref();
            let kernels = slots.kernels();
            let found =
                joint_attention_backward(kernels, &saved, scale, bias, &mask, &kept, &gradients)?;
            let found = found.q.into_iter().chain(found.k).chain(found.v);
            targets
                .iter()
                .zip(found)
                .try_for_each(|(&to, g)| slots.add(to, Gradient::fresh(g)))
        }))
    }

    /// [`crate::nn::rope`]: `x` `[B, N, H, D]`, `cos` and `sin` `[N, D / 2]`.
    ///
    /// # Errors
    ///
    /// If the shapes do not fit, and those of the backend.
    pub fn rope(&self, x: &Value, cos: &Tensor, sin: &Tensor) -> Result<Value> {
        let y = rope(self.kernels(), x.tensor(), cos, sin)?;
        let (to, cos, sin) = (x.id(), cos.clone(), sin.clone());
        Ok(self.record_one(&[x], y, move |slots, gradient| {
            let dx = rope_backward(slots.kernels(), gradient.tensor(), &cos, &sin)?;
            slots.add(to, Gradient::fresh(dx))
        }))
    }
}

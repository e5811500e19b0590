//! Attention by tensor operations, for devices and types without kernels: chunked over queries, softmax in f32
//! at least.

use candle_core::{Result, Tensor};

use super::{AttentionMask, Extents, Parts};
use crate::nn::compose::{softmax, wide};

/// Queries whose scores exist at the same time, for all heads.
const QUERY_CHUNK: usize = 512;

/// The parts put together, heads first, with what the scores depend on.
pub(super) struct Composed<'a> {
    pub(super) extents: &'a Extents,
    /// `[B, H, N, D]`
    pub(super) q: Tensor,
    /// `[B, H, M, D]`
    pub(super) k: Tensor,
    /// `[B, H, M, E]`
    pub(super) v: Tensor,
    pub(super) scale: f64,
    pub(super) bias: Option<&'a Tensor>,
    pub(super) mask: &'a AttentionMask,
}

/// `[B, N, H, D]` parts as one `[B, H, N, D]`.
pub(super) fn heads_first(parts: &[Tensor]) -> Result<Tensor> {
    Tensor::cat(parts, 1)?.transpose(1, 2)?.contiguous()
}

impl<'a> Composed<'a> {
    pub(super) fn new(
        extents: &'a Extents,
        parts: &Parts,
        scale: f64,
        bias: Option<&'a Tensor>,
        mask: &'a AttentionMask,
    ) -> Result<Self> {
        let (q, k, v) = (
            heads_first(&parts.q)?,
            heads_first(&parts.k)?,
            heads_first(&parts.v)?,
        );
        Ok(Self {
            extents,
            q,
            k,
            v,
            scale,
            bias,
            mask,
        })
    }

    /// The (start, rows) of all chunks of the queries.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let queries = self.extents.all_queries();
        (0..queries)
            .step_by(QUERY_CHUNK)
            .map(move |start| (start, QUERY_CHUNK.min(queries - start)))
    }

    /// The attention weights of the queries from `start` on, `[B, H, rows, M]`, in f32 at least.
    pub(super) fn weights(&self, (start, rows): (usize, usize)) -> Result<Tensor> {
        let q = self.q.narrow(2, start, rows)?.contiguous()?;
        let mut scores = (wide(&q.matmul(&self.k.transpose(2, 3)?)?)? * self.scale)?;
        if let Some(bias) = self.bias {
            let bias = bias.narrow(2, start, rows)?.to_dtype(scores.dtype())?;
            scores = scores.broadcast_add(&bias)?;
        }
        if let Some(hidden) = self.hidden(start, rows)? {
            scores = scores.broadcast_add(&hidden.to_dtype(scores.dtype())?)?;
        }
        softmax(&scores)
    }

    /// What hides keys from the queries from `start` on, to be added to their scores.
    fn hidden(&self, start: usize, rows: usize) -> Result<Option<Tensor>> {
        // No mask makes both rows of the batch and queries differ.
        let (batch, rows) = match self.mask {
            AttentionMask::None => return Ok(None),
            AttentionMask::Causal => (1, rows),
            AttentionMask::KeyCounts(counts) => (counts.len(), 1),
        };
        let keys = self.extents.all_keys();
        let mut hidden = Vec::with_capacity(batch * rows * keys);
        for b in 0..batch {
            for query in start..start + rows {
                let reach = self.extents.reach(self.mask, b, query);
                hidden.extend((0..keys).map(|j| if j < reach { 0f32 } else { f32::NEG_INFINITY }));
            }
        }
        Tensor::from_vec(hidden, (batch, 1, rows, keys), self.q.device()).map(Some)
    }
}

pub(super) fn forward(
    extents: &Extents,
    parts: &Parts,
    scale: f64,
    bias: Option<&Tensor>,
    mask: &AttentionMask,
) -> Result<Vec<Tensor>> {
    let joined = Composed::new(extents, parts, scale, bias, mask)?;
    let mut outs = Vec::new();
    for chunk in joined.chunks() {
        let p = joined.weights(chunk)?.to_dtype(joined.v.dtype())?;
        outs.push(p.matmul(&joined.v)?.transpose(1, 2)?);
    }
    let out = Tensor::cat(&outs, 1)?.flatten_from(2)?;
    split(&out, &extents.queries)
}

/// `[B, sum of lengths, ..]` cut into `[B, length, ..]`.
pub(super) fn split(tensor: &Tensor, lengths: &[usize]) -> Result<Vec<Tensor>> {
    let mut start = 0;
    let mut next_part = |&length: &usize| {
        let part = tensor.narrow(1, start, length)?.contiguous();
        start += length;
        part
    };
    lengths.iter().map(&mut next_part).collect()
}

//! Attention on CPU slices: one head's chunk of queries at a time, two products and a softmax.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{AttentionMask, Extents, Parts};
use crate::nn::cpu::{self, Elements, Strided, elements, strided};
use crate::nn::gemm::{ALONE, Matrix, MatrixMut, Shared, Write, matmul};
use crate::nn::real::{Real, vectorised};

/// Queries whose scores exist at the same time, for one head.
const QUERY_CHUNK: usize = 64;
/// As many queries as a caption of CLIP's has are one chunk: the keys are packed once, and no chunk has few rows.
const MOST_QUERIES: usize = 112;

/// One part of packed heads: row (b, i) of head h starts at `b * s[0] + i * s[1] + h * s[2]`.
pub(super) struct Heads<'t, T> {
    elements: Strided<'t, T>,
    width: usize,
}

impl<'t, T: Real> Heads<'t, T> {
    /// Of tensors whose last dimension is in order (`dense`).
    pub(super) fn all(tensors: &'t [Tensor]) -> Result<Vec<Self>> {
        tensors
            .iter()
            .map(|t| {
                Ok(Self {
                    elements: strided(t)?,
                    width: t.dim(3)?,
                })
            })
            .collect()
    }

    /// The rows `start .. start + count` of head `h` in batch row `b`.
    pub(super) fn rows(&self, b: usize, h: usize, start: usize, count: usize) -> Matrix<'_, T> {
        let strides = self.elements.strides();
        let first = b * strides[0] + start * strides[1] + h * strides[2];
        let data = self.elements.data();
        Matrix::new(
            &data[first.min(data.len())..],
            count,
            self.width,
            strides[1],
        )
    }
}

/// The tensors, copied where their last dimension is not in order.
pub(super) fn dense(tensors: &[Tensor]) -> Result<Vec<Tensor>> {
    let in_order = |t: &Tensor| {
        if t.stride().last() == Some(&1) {
            Ok(t.clone())
        } else {
            cpu::contiguous(t)
        }
    };
    tensors.iter().map(in_order).collect()
}

/// A contiguous `[1 or B, H, N, M]` bias.
pub(super) struct Bias<'t, T> {
    elements: Elements<'t, T>,
    batch_stride: usize,
    queries: usize,
    keys: usize,
}

impl<'t, T: Real> Bias<'t, T> {
    pub(super) fn new(tensor: &'t Tensor) -> Result<Self> {
        let (batch, heads, queries, keys) = tensor.dims4()?;
        // One bias for the whole batch: every batch row reads it from the start.
        let batch_stride = if batch > 1 { heads * queries * keys } else { 0 };
        Ok(Self {
            elements: elements(tensor)?,
            batch_stride,
            queries,
            keys,
        })
    }

    fn row(&self, b: usize, h: usize, query: usize, reach: usize) -> &[T] {
        let start = b * self.batch_stride + (h * self.queries + query) * self.keys;
        &self.elements[start..start + reach]
    }
}

/// All that the scores depend on.
pub(super) struct Scoring<'a, T> {
    pub(super) extents: &'a Extents,
    pub(super) q: &'a [Heads<'a, T>],
    pub(super) k: &'a [Heads<'a, T>],
    pub(super) scale: f64,
    pub(super) bias: Option<Bias<'a, T>>,
    pub(super) mask: &'a AttentionMask,
}

/// A chunk of one part's queries, for one head of one batch row.
#[derive(Clone, Copy)]
pub(super) struct Chunk {
    pub(super) b: usize,
    pub(super) h: usize,
    pub(super) part: usize,
    pub(super) start: usize,
    pub(super) rows: usize,
}

/// The queries of a chunk going forward.
fn chunk_size(queries: &[usize]) -> usize {
    match queries.iter().all(|&length| length <= MOST_QUERIES) {
        true => MOST_QUERIES,
        false => QUERY_CHUNK,
    }
}

/// The (part, start, rows) of all chunks of the queries.
pub(super) fn chunks(queries: &[usize], size: usize) -> Vec<(usize, usize, usize)> {
    let of_part = |(part, &length): (usize, &usize)| {
        (0..length)
            .step_by(size)
            .map(move |start| (part, start, size.min(length - start)))
    };
    queries.iter().enumerate().flat_map(of_part).collect()
}

impl<T: Real> Scoring<'_, T> {
    /// The keys that any query of the chunk sees.
    pub(super) fn reach(&self, chunk: &Chunk) -> usize {
        self.extents
            .reach(self.mask, chunk.b, chunk.start + chunk.rows - 1)
    }

    /// How many keys of each part the first `reach` are.
    pub(super) fn key_parts(&self, reach: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let mut start = 0;
        self.extents
            .keys
            .iter()
            .enumerate()
            .map(move |(part, &length)| {
                let first = start;
                start += length;
                (part, first, length.min(reach.saturating_sub(first)))
            })
    }

    /// The exponentials of the chunk's scores less each row's largest, a row of `reach` per query, 0 where a
    /// query sees nothing; `factors[i]` brings row i's sum to 1.
    pub(super) fn exponentials(
        &self,
        chunk: &Chunk,
        reach: usize,
        scores: &mut [T],
        factors: &mut [T],
        threads: gemm::Parallelism,
    ) {
        let Chunk {
            b,
            h,
            part,
            start,
            rows,
        } = *chunk;
        let q = self.q[part].rows(b, h, start, rows);
        for (part, first, count) in self.key_parts(reach) {
            let k = self.k[part].rows(b, h, 0, count);
            let columns = &mut scores[first.min(rows * reach)..];
            let mut target = MatrixMut::new(columns, rows, count, reach);
            matmul(
                &mut target,
                Write::Replace,
                T::from_f64(self.scale),
                q,
                k.t(),
                threads,
            );
        }
        for (i, row) in scores.chunks_exact_mut(reach).enumerate() {
            if let Some(bias) = &self.bias {
                let bias = bias.row(b, h, start + i, reach);
                cpu::edit_piece(&cpu::Sum, row, bias);
            }
            let seen = self.extents.reach(self.mask, b, start + i).min(reach);
            let (seen, hidden) = row.split_at_mut(seen);
            hidden.fill(T::zero());
            let total = exponentials(seen);
            factors[i] = if total == T::zero() {
                total
            } else {
                T::one() / total
            };
        }
    }
}

vectorised! {
    /// Replaces scores by their exponentials less the largest and gives their sum.
    fn exponentials<T: Real>(row: &mut [T]) -> T {
        let lowest = T::from_f64(f64::NEG_INFINITY);
        let largest = cpu::max(row, lowest);
        // A row that sees nothing (all scores -inf): -inf less -inf would be NaN.
        let shift = if largest == lowest { T::zero() } else { largest };
        for x in row.iter_mut() {
            *x = (*x - shift).exp();
        }
        cpu::sum(row, |x| x)
    }
}

/// The first `len` of `scratch`, which only grows: tasks of a thread reuse it. They are not cleared.
pub(super) fn at_least<T: Real>(scratch: &mut Vec<T>, len: usize) -> &mut [T] {
    if scratch.len() < len {
        scratch.resize(len, T::zero());
    }
    &mut scratch[..len]
}

pub(super) fn forward<T: Real>(
    extents: &Extents,
    parts: &Parts,
    scale: f64,
    bias: Option<&Tensor>,
    mask: &AttentionMask,
) -> Result<Vec<Tensor>> {
    let Extents {
        batch,
        heads,
        value_width,
        ..
    } = *extents;
    let (q, k, v) = (dense(&parts.q)?, dense(&parts.k)?, dense(&parts.v)?);
    let (q, k, v) = (
        Heads::<T>::all(&q)?,
        Heads::<T>::all(&k)?,
        Heads::<T>::all(&v)?,
    );
    let bias = bias.map(cpu::contiguous).transpose()?;
    let bias = bias.as_ref().map(Bias::new).transpose()?;
    let scoring = Scoring {
        extents,
        q: &q,
        k: &k,
        scale,
        bias,
        mask,
    };
    let row = heads * value_width;
    let mut outs: Vec<Vec<T>> = extents
        .queries
        .iter()
        .map(|length| vec![T::zero(); batch * length * row])
        .collect();
    let targets: Vec<_> = outs.iter_mut().map(|out| Shared::new(out)).collect();
    let chunks = chunks(&extents.queries, chunk_size(&extents.queries));
    (0..batch * heads * chunks.len())
        .into_par_iter()
        .for_each_init(Vec::new, |scratch, index| {
            let (part, start, rows) = chunks[index % chunks.len()];
            let (b, h) = (index / chunks.len() / heads, index / chunks.len() % heads);
            let chunk = Chunk {
                b,
                h,
                part,
                start,
                rows,
            };
            let reach = scoring.reach(&chunk);
            let scores = at_least(scratch, rows * reach);
            let mut factors = [T::zero(); MOST_QUERIES];
            scoring.exponentials(&chunk, reach, scores, &mut factors, ALONE);
            let offset = (b * extents.queries[part] + start) * row + h * value_width;
            // SAFETY: each (b, h, chunk) is visited once and owns these rows of its head.
            let mut out = unsafe { targets[part].matrix(offset, rows, value_width, row) };
            let mut write = Write::Replace;
            for (part, first, count) in scoring.key_parts(reach) {
                let p = Matrix::new(&scores[first.min(rows * reach)..], rows, count, reach);
                matmul(
                    &mut out,
                    write,
                    T::one(),
                    p,
                    v[part].rows(b, h, 0, count),
                    ALONE,
                );
                write = Write::Add;
            }
            // The results are divided, not the weights: a row of results is D numbers, one of weights as many as there are keys.
            for (i, &factor) in factors[..rows].iter().enumerate() {
                out.row(i).iter_mut().for_each(|x| *x *= factor);
            }
        });
    let shaped = outs.into_iter().zip(&extents.queries);
    shaped
        .map(|(out, &length)| cpu::tensor(out, &[batch, length, row]))
        .collect()
}

//! The gradients of attention. With P the weights, O the result, S the scores:
//! `dV = P^T dO`, `dP = dO V^T`, `dS = P (dP - rowsum(P dP))`, `dQ = scale dS K`, `dK = scale dS^T Q`.
//! P is made again, a chunk of queries at a time; nothing of it is saved from the forward pass.

use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

use super::composed::{Composed, heads_first, split};
use super::kernel::{Bias, Chunk, Heads, Scoring, at_least, chunks, dense};
use super::{AttentionMask, Extents, Parts, SavedForBackward};
use crate::nn::Kernels;
use crate::nn::compose::wide;
use crate::nn::cpu::{self, by_kernel};
use crate::nn::gemm::{ALL, ALONE, Matrix, MatrixMut, Shared, Write, matmul};
use crate::nn::real::{Real, vectorised};

/// Queries whose scores exist at the same time, for one head: more than forward, because keys and values
/// receive a sum over each chunk.
const QUERY_CHUNK: usize = 128;

/// The gradients of all parts of q, k and v (in their shapes), of those of the results.
pub fn joint_attention_backward(
    kernels: &Kernels,
    parts: &Parts,
    scale: f64,
    bias: Option<&Tensor>,
    mask: &AttentionMask,
    saved: &SavedForBackward,
    gradients: &[Tensor],
) -> Result<Parts> {
    let extents = Extents::of(parts)?;
    let heads = |g: &Tensor, &length: &usize| {
        kernels
            .contiguous(g)?
            .reshape((extents.batch, length, extents.heads, extents.value_width))
    };
    let gradients: Vec<Tensor> = gradients
        .iter()
        .zip(&extents.queries)
        .map(|(g, n)| heads(g, n))
        .collect::<Result<_>>()?;
    #[cfg(feature = "cuda")]
    if let Some(saved) = &saved.by_cuda
        && bias.is_none()
        && *mask != AttentionMask::Causal
        && let Some(k) = kernels.serving(&parts.q[0])
    {
        let given = (parts, &gradients[..]);
        return crate::nn::cuda::attention::backward(k, &extents, given, scale, saved);
    }
    #[cfg(not(feature = "cuda"))]
    let _ = saved;
    by_kernel!(
        &parts.q[0],
        T => kernel::<T>(&extents, parts, scale, bias, mask, &gradients),
        composed(&extents, parts, scale, bias, mask, &gradients)
    )
}

/// Zeros in the shape of each part.
fn zeros<T: Real>(tensors: &[Tensor]) -> Vec<Vec<T>> {
    tensors
        .iter()
        .map(|t| vec![T::zero(); t.elem_count()])
        .collect()
}

fn tensors<T: Real>(data: Vec<Vec<T>>, like: &[Tensor]) -> Result<Vec<Tensor>> {
    data.into_iter()
        .zip(like)
        .map(|(data, like)| cpu::tensor(data, like.dims()))
        .collect()
}

/// Gradients of one kind (q, k or v), written head by head.
struct Targets<'a, T> {
    parts: Vec<Shared<'a, T>>,
    lengths: &'a [usize],
    heads: usize,
    width: usize,
}

impl<'a, T: Real> Targets<'a, T> {
    fn new(data: &'a mut [Vec<T>], lengths: &'a [usize], heads: usize, width: usize) -> Self {
        let parts = data.iter_mut().map(|data| Shared::new(data)).collect();
        Self {
            parts,
            lengths,
            heads,
            width,
        }
    }

    /// Rows of one head.
    ///
    /// # Safety
    ///
    /// A head of a batch row may be written by one thread only.
    unsafe fn rows(
        &self,
        part: usize,
        (b, h): (usize, usize),
        start: usize,
        rows: usize,
    ) -> MatrixMut<'a, T> {
        let row = self.heads * self.width;
        let offset = (b * self.lengths[part] + start) * row + h * self.width;
        // SAFETY: heads do not overlap; the caller keeps each to one thread.
        unsafe { self.parts[part].matrix(offset, rows, self.width, row) }
    }
}

fn kernel<T: Real>(
    extents: &Extents,
    parts: &Parts,
    scale: f64,
    bias: Option<&Tensor>,
    mask: &AttentionMask,
    gradients: &[Tensor],
) -> Result<Parts> {
    let Extents {
        batch,
        heads,
        width,
        value_width,
        ..
    } = *extents;
    let (mut dq, mut dk, mut dv) = (
        zeros::<T>(&parts.q),
        zeros::<T>(&parts.k),
        zeros::<T>(&parts.v),
    );
    {
        let (q, k, v) = (dense(&parts.q)?, dense(&parts.k)?, dense(&parts.v)?);
        let (q, k, v) = (
            Heads::<T>::all(&q)?,
            Heads::<T>::all(&k)?,
            Heads::<T>::all(&v)?,
        );
        let bias = bias.map(cpu::contiguous).transpose()?;
        let bias = bias.as_ref().map(Bias::new).transpose()?;
        let work = Work {
            scoring: Scoring {
                extents,
                q: &q,
                k: &k,
                scale,
                bias,
                mask,
            },
            v: &v,
            out: Heads::<T>::all(gradients)?,
            dq: Targets::new(&mut dq, &extents.queries, heads, width),
            dk: Targets::new(&mut dk, &extents.keys, heads, width),
            dv: Targets::new(&mut dv, &extents.keys, heads, value_width),
        };
        let tasks = batch * heads;
        // A head is never split between threads: its keys' gradients are sums over all of its queries. Where there are fewer heads
        // than threads, the products themselves are shared. Either way a number is summed in one order.
        if tasks >= rayon::current_num_threads() {
            (0..tasks)
                .into_par_iter()
                .for_each_init(Vec::new, |scratch, i| {
                    work.one_head(i / heads, i % heads, scratch, ALONE);
                });
        } else {
            let mut scratch = Vec::new();
            for i in 0..tasks {
                work.one_head(i / heads, i % heads, &mut scratch, ALL);
            }
        }
    }
    Ok(Parts {
        q: tensors(dq, &parts.q)?,
        k: tensors(dk, &parts.k)?,
        v: tensors(dv, &parts.v)?,
    })
}

struct Work<'a, T> {
    scoring: Scoring<'a, T>,
    v: &'a [Heads<'a, T>],
    /// The gradients of the results.
    out: Vec<Heads<'a, T>>,
    dq: Targets<'a, T>,
    dk: Targets<'a, T>,
    dv: Targets<'a, T>,
}

impl<T: Real> Work<'_, T> {
    /// All gradients of one head of one batch row. Called once for each.
    fn one_head(&self, b: usize, h: usize, scratch: &mut Vec<T>, threads: gemm::Parallelism) {
        for (part, start, rows) in chunks(&self.scoring.extents.queries, QUERY_CHUNK) {
            self.one_chunk(
                &Chunk {
                    b,
                    h,
                    part,
                    start,
                    rows,
                },
                scratch,
                threads,
            );
        }
    }

    fn one_chunk(&self, chunk: &Chunk, scratch: &mut Vec<T>, threads: gemm::Parallelism) {
        let Chunk {
            b,
            h,
            part,
            start,
            rows,
        } = *chunk;
        let scoring = &self.scoring;
        let reach = scoring.reach(chunk);
        let (p, ds) = at_least(scratch, 2 * rows * reach).split_at_mut(rows * reach);
        let mut factors = [T::zero(); QUERY_CHUNK];
        scoring.exponentials(chunk, reach, p, &mut factors, threads);
        let out = self.out[part].rows(b, h, start, rows);
        for (part, first, count) in scoring.key_parts(reach) {
            let mut target = MatrixMut::new(&mut ds[first.min(rows * reach)..], rows, count, reach);
            let v = self.v[part].rows(b, h, 0, count);
            matmul(&mut target, Write::Replace, T::one(), out, v.t(), threads);
        }
        let scale = T::from_f64(scoring.scale);
        let pairs = p.chunks_exact_mut(reach).zip(ds.chunks_exact_mut(reach));
        for ((p, ds), &factor) in pairs.zip(&factors) {
            score_gradients(p, ds, factor, scale);
        }
        let (p, ds) = (&*p, &*ds);
        let q = scoring.q[part].rows(b, h, start, rows);
        // SAFETY: `one_head` runs once per (b, h), on one thread.
        let mut dq = unsafe { self.dq.rows(part, (b, h), start, rows) };
        let mut write = Write::Replace;
        for (part, first, count) in scoring.key_parts(reach) {
            let first = first.min(rows * reach);
            let (p, ds) = (
                Matrix::new(&p[first..], rows, count, reach),
                Matrix::new(&ds[first..], rows, count, reach),
            );
            // SAFETY: as above.
            let (mut dk, mut dv) = unsafe {
                (
                    self.dk.rows(part, (b, h), 0, count),
                    self.dv.rows(part, (b, h), 0, count),
                )
            };
            // Added: every chunk of queries has its share. dq belongs to this chunk alone.
            matmul(&mut dv, Write::Add, T::one(), p.t(), out, threads);
            matmul(
                &mut dq,
                write,
                T::one(),
                ds,
                scoring.k[part].rows(b, h, 0, count),
                threads,
            );
            matmul(&mut dk, Write::Add, T::one(), ds.t(), q, threads);
            write = Write::Add;
        }
    }
}

vectorised! {
    /// Makes weights of the exponentials `p`, and gradients of the scores of those of the weights, `ds`.
    fn score_gradients<T: Real>(p: &mut [T], ds: &mut [T], factor: T, scale: T) {
        for p in p.iter_mut() {
            *p *= factor;
        }
        let mean = cpu::sum2(p, ds, |p, dp| p * dp);
        for (ds, &p) in ds.iter_mut().zip(&*p) {
            *ds = scale * p * (*ds - mean);
        }
    }
}

fn composed(
    extents: &Extents,
    parts: &Parts,
    scale: f64,
    bias: Option<&Tensor>,
    mask: &AttentionMask,
    gradients: &[Tensor],
) -> Result<Parts> {
    let joined = Composed::new(extents, parts, scale, bias, mask)?;
    let dtype = joined.q.dtype();
    let gradients = heads_first(gradients)?;
    let (mut dq, mut dk, mut dv) = (
        Vec::new(),
        // Sums over chunks, in f32 at least.
        wide(&joined.k.zeros_like()?)?,
        wide(&joined.v.zeros_like()?)?,
    );
    for (start, rows) in joined.chunks() {
        let p = joined.weights((start, rows))?;
        let out = gradients.narrow(2, start, rows)?.contiguous()?;
        let q = joined.q.narrow(2, start, rows)?.contiguous()?;
        dv = (dv + wide(&p.transpose(2, 3)?.to_dtype(dtype)?.matmul(&out)?)?)?;
        let dp = wide(&out.matmul(&joined.v.transpose(2, 3)?)?)?;
        let mean = (&p * &dp)?.sum_keepdim(D::Minus1)?;
        let ds = ((&p * dp.broadcast_sub(&mean)?)? * scale)?.to_dtype(dtype)?;
        dq.push(ds.matmul(&joined.k)?);
        dk = (dk + wide(&ds.transpose(2, 3)?.matmul(&q)?)?)?;
    }
    let packed =
        |t: Tensor, lengths: &[usize]| split(&t.to_dtype(dtype)?.transpose(1, 2)?, lengths);
    Ok(Parts {
        q: packed(Tensor::cat(&dq, 2)?, &extents.queries)?,
        k: packed(dk, &extents.keys)?,
        v: packed(dv, &extents.keys)?,
    })
}

//! Scaled dot-product attention on heads packed as the linear layers give them (`[B, N, H, D]`): no head is
//! ever transposed or copied, and only a chunk of queries' scores exist at a time. Queries and keys may come in
//! several parts (a picture's and a caption's): they attend as if they were one sequence, without being put
//! together.
//!
//! Shapes: b batch, n queries, m keys, h heads, d width of a head, e width of a value head.

mod backward;
mod composed;
mod kernel;

use candle_core::{Result, Tensor, bail};

pub use backward::joint_attention_backward;

use super::Kernels;
use super::cpu::by_kernel;
#[cfg(feature = "cuda")]
use super::cuda::attention as cuda;

/// Which keys a query may see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AttentionMask {
    /// All of them.
    #[default]
    None,
    /// Those at or before its own place, counted from the end (the last query sees all keys).
    Causal,
    /// Per row of the batch, the first so many; the others are not even computed.
    KeyCounts(Vec<usize>),
}

/// Attention `softmax(scale q k^T + bias) v` of every head, heads packed: `q` `[B, N, H, D]`, `k` `[B, M, H, D]`,
/// `v` `[B, M, H, E]`, `bias` `[1 or B, H, N, M]`, the result `[B, N, H * E]`.
///
/// On a CPU, a row of the batch gives the same numbers bit for bit alone and in any batch, and with key counts
/// also the same as without the keys that are left out.
///
/// # Errors
///
/// If the shapes, types or the mask do not fit, and those of the backend.
pub fn attention(
    kernels: &Kernels,
    q_bnhd: &Tensor,
    k_bmhd: &Tensor,
    v_bmhe: &Tensor,
    scale: f64,
    bias: Option<&Tensor>,
    mask: &AttentionMask,
) -> Result<Tensor> {
    let parts = Parts {
        q: vec![q_bnhd.clone()],
        k: vec![k_bmhd.clone()],
        v: vec![v_bmhe.clone()],
    };
    Ok(joint_attention(kernels, &parts, scale, bias, mask)?
        .0
        .remove(0))
}

/// Queries, keys and values, each in one or more parts; keys and values in the same.
#[derive(Clone)]
pub struct Parts {
    /// Each `[batch, queries, heads, d]`.
    pub q: Vec<Tensor>,
    /// Each `[batch, keys, heads, d]`.
    pub k: Vec<Tensor>,
    /// As the keys.
    pub v: Vec<Tensor>,
}

/// What the forward pass saves for the backward pass beside its inputs: nothing, but by our kernels on GPUs, which save results and
/// the logarithms of the rows' sums.
#[derive(Clone, Default)]
pub struct SavedForBackward {
    #[cfg(feature = "cuda")]
    by_cuda: Option<cuda::SavedForBackward>,
}

/// `attention` over the parts put together; a result `[B, N, H * E]` for each part of the queries. Bias and
/// masks other than `None` are for single parts.
pub fn joint_attention(
    kernels: &Kernels,
    parts: &Parts,
    scale: f64,
    bias: Option<&Tensor>,
    mask: &AttentionMask,
) -> Result<(Vec<Tensor>, SavedForBackward)> {
    let extents = Extents::of(parts)?;
    extents.check(bias, mask)?;
    let nothing = |outs| (outs, SavedForBackward::default());
    by_kernel!(
        &parts.q[0],
        T => kernel::forward::<T>(&extents, parts, scale, bias, mask).map(nothing),
        cuda k in kernels => match cuda::serves(&extents, parts) {
            true => {
                let (outs, saved) = cuda::forward(k, &extents, parts, scale, bias, mask)?;
                Ok((outs, SavedForBackward { by_cuda: Some(saved) }))
            }
            false => composed::forward(&extents, parts, scale, bias, mask).map(nothing),
        },
        composed::forward(&extents, parts, scale, bias, mask).map(nothing)
    )
}

/// The extents of one attention.
#[derive(Clone, Debug)]
pub(crate) struct Extents {
    batch: usize,
    heads: usize,
    width: usize,
    value_width: usize,
    /// Of each part.
    queries: Vec<usize>,
    /// Of each part.
    keys: Vec<usize>,
}

impl Extents {
    pub(crate) fn of(parts: &Parts) -> Result<Self> {
        let (Some(q), Some(v)) = (parts.q.first(), parts.v.first()) else {
            bail!("attention of no queries, keys or values");
        };
        let (batch, _, heads, width) = q.dims4()?;
        let value_width = v.dims4()?.3;
        let length = |t: &Tensor, name: &str, width: usize| -> Result<usize> {
            match t.dims() {
                &[b, length, h, w]
                    if (b, h, w) == (batch, heads, width) && t.dtype() == q.dtype() =>
                {
                    Ok(length)
                }
                dims => bail!(
                    "attention: {name} is {:?} {dims:?}, expected {:?} [{batch}, .., {heads}, {width}]",
                    t.dtype(),
                    q.dtype()
                ),
            }
        };
        let lengths = |ts: &[Tensor], name, width| -> Result<Vec<usize>> {
            ts.iter().map(|t| length(t, name, width)).collect()
        };
        let queries = lengths(&parts.q, "q", width)?;
        let keys = lengths(&parts.k, "k", width)?;
        let values = lengths(&parts.v, "v", value_width)?;
        if keys != values || keys.iter().sum::<usize>() == 0 {
            bail!("attention of {keys:?} keys on {values:?} values");
        }
        Ok(Self {
            batch,
            heads,
            width,
            value_width,
            queries,
            keys,
        })
    }

    fn check(&self, bias: Option<&Tensor>, mask: &AttentionMask) -> Result<()> {
        let (batch, queries, keys) = (self.batch, self.all_queries(), self.all_keys());
        let single = self.queries.len() == 1 && self.keys.len() == 1;
        if !single && (bias.is_some() || *mask != AttentionMask::None) {
            bail!("attention in parts takes neither bias nor mask");
        }
        match mask {
            AttentionMask::Causal if queries > keys => {
                bail!("causal attention of {queries} queries on {keys} keys")
            }
            AttentionMask::KeyCounts(counts) if counts.len() != batch => {
                bail!("{} key counts for a batch of {batch}", counts.len())
            }
            AttentionMask::KeyCounts(counts) => {
                // 0 is refused: a softmax over no keys has no value.
                if let Some(count) = counts.iter().find(|&&count| count == 0 || count > keys) {
                    bail!("a key count of {count}, of {keys} keys");
                }
            }
            _ => {}
        }
        let Some(bias) = bias else { return Ok(()) };
        match bias.dims() {
            &[first, h, n, m]
                if (h, n, m) == (self.heads, queries, keys) && (first == 1 || first == batch) =>
            {
                Ok(())
            }
            dims => bail!(
                "attention bias {dims:?}, expected [1 or {batch}, {}, {queries}, {keys}]",
                self.heads
            ),
        }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn batch_and_heads(&self) -> (usize, usize) {
        (self.batch, self.heads)
    }

    /// Of a head of the queries and keys, and of the values.
    #[cfg(feature = "cuda")]
    pub(crate) fn widths(&self) -> (usize, usize) {
        (self.width, self.value_width)
    }

    pub(crate) fn all_queries(&self) -> usize {
        self.queries.iter().sum()
    }

    pub(crate) fn all_keys(&self) -> usize {
        self.keys.iter().sum()
    }

    /// How many keys query `query` of batch row `b` sees.
    fn reach(&self, mask: &AttentionMask, b: usize, query: usize) -> usize {
        match mask {
            AttentionMask::None => self.all_keys(),
            // Counted from the end: with fewer queries than keys, the queries are the last tokens.
            AttentionMask::Causal => query + 1 + self.all_keys() - self.all_queries(),
            AttentionMask::KeyCounts(counts) => counts[b],
        }
    }
}

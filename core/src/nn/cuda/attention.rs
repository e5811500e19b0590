//! Attention without a matrix of scores, forward and backward, on bf16.

use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{DType, Result, Tensor, bail};

use super::Argument::{Address, Float, Int, Long};
use super::cudnn::Cudnn;
use super::views::{aligned, dense};
use super::{Argument, Kernels, config, grant};
use crate::nn::AttentionMask;
use crate::nn::attention::{Extents, Parts};

// As in `attention.cu`: change both.
const THREADS: u32 = 128;
/// Queries of a block forward, and keys it sees at a time.
const QUERIES: usize = 128;
const KEYS: usize = 64;
/// Rows of every tile backward.
const ROWS: usize = 64;
/// The widest head whose sums a thread can hold in registers.
const MOST_WIDTH: usize = 128;

/// Heads packed, `[B, N, H, D]`, in one or two parts that count as one sequence.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Tokens {
    first: u64,
    second: u64,
    split: i32,
    total: i32,
    row: i32,
}
// SAFETY: plain numbers, laid out as the kernels declare them.
unsafe impl DeviceRepr for Tokens {}

/// Whether an attention is served.
pub(crate) fn serves(extents: &Extents, parts: &Parts) -> bool {
    let (width, value_width) = extents.widths();
    parts.q[0].dtype() == DType::BF16
        && width == value_width
        // The depth of a tensor core's product on bf16 (`mma.m16n8k16`).
        && width % 16 == 0
        && width <= MOST_WIDTH
        && parts.q.len() <= 2
        && parts.k.len() <= 2
}

/// What the forward pass saves for the backward pass.
#[derive(Clone)]
pub(crate) struct SavedForBackward {
    /// The results, `[B, N, H, D]` of each part.
    outs: Vec<Tensor>,
    /// Logarithms of the sums of every row's exponentials, `[B, H, N]`: base 2, or cuDNN's.
    logsum: Tensor,
    /// How many keys each row of the batch sees.
    counts: Option<Tensor>,
    by_cudnn: bool,
}

/// The results, `[B, N, H * D]` of each part of the queries, and what backward needs.
pub(crate) fn forward(
    kernels: &Kernels,
    extents: &Extents,
    parts: &Parts,
    scale: f64,
    bias: Option<&Tensor>,
    mask: &AttentionMask,
) -> Result<(Vec<Tensor>, SavedForBackward)> {
    let counts = counts_of(kernels, mask)?;
    if let Some(cudnn) = &kernels.cudnn
        && bias.is_none()
        && *mask != AttentionMask::Causal
    {
        return forward_by_cudnn((kernels, cudnn), parts, scale, counts);
    }
    let call = Call::new(kernels, extents);
    let parts = [&parts.q, &parts.k, &parts.v].map(|all| call.dense(all));
    let [q, k, v] = parts;
    let (q, k, v) = (q?, k?, v?);
    let (queries, (batch, heads)) = (extents.all_queries(), extents.batch_and_heads());
    let outs = call.room_like(&q)?;
    let logsum = kernels.room((batch, heads, queries), DType::F32)?;
    let bias = match bias {
        Some(bias) => Some(bias.to_dtype(DType::BF16)?.contiguous()?),
        None => None,
    };
    let batch_apart = match &bias {
        Some(bias) if bias.dim(0)? > 1 => bias.elem_count() / bias.dim(0)?,
        _ => 0,
    };
    let arguments = [
        call.tokens(&q)?,
        call.tokens(&k)?,
        call.tokens(&v)?,
        call.tokens(&outs)?,
        Address(kernels.address(&logsum)?),
        Address(call.optional(bias.as_ref())?),
        Long(batch_apart as i64),
        Address(call.optional(counts.as_ref())?),
        Int(i32::from(*mask == AttentionMask::Causal)),
        // Exponentials are powers of two there: a GPU has an instruction for 2^x and none for e^x.
        Float((scale * std::f64::consts::LOG2_E) as f32),
    ];
    call.run(
        "attention_forward",
        QUERIES + 2 * KEYS,
        queries.div_ceil(QUERIES),
        &arguments,
    )?;
    let flat = outs
        .iter()
        .map(|out| out.flatten_from(2))
        .collect::<Result<_>>()?;
    let saved = SavedForBackward {
        outs,
        logsum,
        counts,
        by_cudnn: false,
    };
    Ok((flat, saved))
}

/// How many keys each row of the batch sees, where the mask says so.
fn counts_of(kernels: &Kernels, mask: &AttentionMask) -> Result<Option<Tensor>> {
    let AttentionMask::KeyCounts(counts) = mask else {
        return Ok(None);
    };
    let counts = counts.iter().map(|&count| count as u32).collect();
    kernels.short_table(counts).map(Some)
}

/// Parts as one sequence, which is what cuDNN takes.
fn joint(parts: &[Tensor]) -> Result<Tensor> {
    match parts {
        [part] => Ok(part.clone()),
        parts => Tensor::cat(parts, 1),
    }
}

/// One sequence in parts as long as `like`, each in one piece.
fn apart(kernels: &Kernels, whole: &Tensor, like: &[Tensor]) -> Result<Vec<Tensor>> {
    let mut start = 0;
    let mut parts = Vec::with_capacity(like.len());
    for part in like {
        let length = part.dim(1)?;
        parts.push(dense(kernels, &whole.narrow(1, start, length)?)?);
        start += length;
    }
    Ok(parts)
}

fn forward_by_cudnn(
    (kernels, cudnn): (&Kernels, &Cudnn),
    parts: &Parts,
    scale: f64,
    counts: Option<Tensor>,
) -> Result<(Vec<Tensor>, SavedForBackward)> {
    let (q, k, v) = (joint(&parts.q)?, joint(&parts.k)?, joint(&parts.v)?);
    let (out, logsum) = cudnn.forward(kernels, (&q, &k, &v), scale, counts.as_ref())?;
    let flat = apart(kernels, &out, &parts.q)?;
    let flat = flat.iter().map(|out| out.flatten_from(2));
    let saved = SavedForBackward {
        outs: vec![out],
        logsum,
        counts,
        by_cudnn: true,
    };
    Ok((flat.collect::<Result<_>>()?, saved))
}

fn backward_by_cudnn(
    (kernels, cudnn): (&Kernels, &Cudnn),
    (parts, gradients): (&Parts, &[Tensor]),
    scale: f64,
    saved: &SavedForBackward,
) -> Result<Parts> {
    let (q, k, v) = (joint(&parts.q)?, joint(&parts.k)?, joint(&parts.v)?);
    let (made, gradient) = ((&saved.outs[0], &saved.logsum), joint(gradients)?);
    let counts = saved.counts.as_ref();
    let [dq, dk, dv] = cudnn.backward(kernels, (&q, &k, &v), made, &gradient, scale, counts)?;
    Ok(Parts {
        q: apart(kernels, &dq, &parts.q)?,
        k: apart(kernels, &dk, &parts.k)?,
        v: apart(kernels, &dv, &parts.v)?,
    })
}

/// The gradients of all parts of q, k and v, of those of the results (`[B, N, H, D]` each). For no bias, and no
/// causal mask.
pub(crate) fn backward(
    kernels: &Kernels,
    extents: &Extents,
    (parts, gradients): (&Parts, &[Tensor]),
    scale: f64,
    saved: &SavedForBackward,
) -> Result<Parts> {
    // cuDNN's logarithms are natural, ours base 2: the backward pass must be by whoever made them.
    if saved.by_cudnn {
        let Some(cudnn) = &kernels.cudnn else {
            bail!(
                "attention was computed by cuDNN, and its gradients are asked of kernels without it"
            );
        };
        return backward_by_cudnn((kernels, cudnn), (parts, gradients), scale, saved);
    }
    let call = Call::new(kernels, extents);
    let [q, k, v] = [&parts.q, &parts.k, &parts.v].map(|all| call.dense(all));
    let (q, k, v, gradients) = (q?, k?, v?, call.dense(gradients)?);
    let queries = extents.all_queries();
    let inner = kernels.room(saved.logsum.shape(), DType::F32)?;
    let (dq, dk, dv) = (
        call.room_like(&q)?,
        call.room_like(&k)?,
        call.room_like(&v)?,
    );
    let (at_inner, at_gradients) = (Address(kernels.address(&inner)?), call.tokens(&gradients)?);
    let first = [call.tokens(&saved.outs)?, at_gradients, at_inner];
    call.run(
        "attention_inner",
        0,
        queries.div_ceil(THREADS as usize / 32),
        &first,
    )?;
    let given = [
        call.tokens(&q)?,
        call.tokens(&k)?,
        call.tokens(&v)?,
        at_gradients,
        Address(kernels.address(&saved.logsum)?),
        at_inner,
        Address(call.optional(saved.counts.as_ref())?),
    ];
    let scales = [
        Float((scale * std::f64::consts::LOG2_E) as f32),
        Float(scale as f32),
    ];
    let of_keys = [&given[..], &[call.tokens(&dk)?, call.tokens(&dv)?], &scales].concat();
    let keys = extents.all_keys();
    call.run(
        "attention_backward_keys",
        4 * ROWS,
        keys.div_ceil(ROWS),
        &of_keys,
    )?;
    let of_queries = [&given[..], &[call.tokens(&dq)?], &scales].concat();
    call.run(
        "attention_backward_queries",
        4 * ROWS,
        queries.div_ceil(ROWS),
        &of_queries,
    )?;
    Ok(Parts {
        q: dq,
        k: dk,
        v: dv,
    })
}

/// The calls of one attention.
struct Call<'a> {
    kernels: &'a Kernels,
    extents: &'a Extents,
}

impl<'a> Call<'a> {
    fn new(kernels: &'a Kernels, extents: &'a Extents) -> Self {
        Self { kernels, extents }
    }

    /// Parts as they may be read 16 bytes at a time.
    fn dense(&self, parts: &[Tensor]) -> Result<Vec<Tensor>> {
        let aligned_part = |part: &Tensor| aligned(self.kernels, part, 16);
        parts.iter().map(aligned_part).collect()
    }

    fn room_like(&self, parts: &[Tensor]) -> Result<Vec<Tensor>> {
        let room = |part: &Tensor| self.kernels.room(part.shape(), DType::BF16);
        parts.iter().map(room).collect()
    }

    /// Where a tensor begins, 0 for none.
    fn optional(&self, tensor: Option<&Tensor>) -> Result<u64> {
        tensor.map_or(Ok(0), |t| self.kernels.address(t))
    }

    fn tokens(&self, parts: &[Tensor]) -> Result<Argument> {
        let Some(first) = parts.first() else {
            bail!("attention of no tokens");
        };
        let (_, split, heads, width) = first.dims4()?;
        // Never read where there is one part: `split` is then `total`.
        let second = parts.get(1).unwrap_or(first);
        let more = parts.get(1).map_or(Ok(0), |part| part.dim(1))?;
        Ok(Argument::Tokens(Tokens {
            first: self.kernels.address(first)?,
            second: self.kernels.address(second)?,
            split: split as i32,
            total: (split + more) as i32,
            row: (heads * width) as i32,
        }))
    }

    /// Runs a function that keeps `rows` rows of heads in shared memory, in `blocks` blocks a head.
    fn run(
        &self,
        name: &'static str,
        rows: usize,
        blocks: usize,
        arguments: &[Argument],
    ) -> Result<()> {
        let (width, _) = self.extents.widths();
        let function = self.kernels.compiled(
            &format!("attention-{width}"),
            name,
            include_str!("attention.cu"),
            // Compiled for each width: tiles and sums are arrays of known size, which must stay in registers.
            &format!("-DD={width}"),
        )?;
        // 8 numbers more a row: `STRIDE` of `attention.cu`.
        let shared = (rows * (width + 8) * DType::BF16.size_in_bytes()) as u32;
        grant(&function, shared)?;
        let (batch, heads) = self.extents.batch_and_heads();
        let grid = config((blocks as u32, heads as u32, batch as u32), THREADS, shared);
        // SAFETY: `forward` and `backward` give each function its signature and tensors of the extents.
        unsafe { self.kernels.launch(&function, grid, arguments) }
    }
}

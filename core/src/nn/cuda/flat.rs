//! The adapters' numbers and gradients, each one flat f32 tensor: sums into a part of it, its norm, AdamW.

use std::ops::Range;

use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{DType, Result, Tensor, bail};

use super::Argument::{Address, Float, Long};
use super::views::dense;
use super::{Argument, Kernels, blocks_for, config};
use crate::nn::flat::AdamWUpdate;

/// Pieces of a launch, each a row of blocks: half of what a launch may have; few in tests, which have few.
const MOST_PIECES: usize = if cfg!(test) { 3 } else { 1 << 15 };

/// As [`AdamWUpdate`] has them, in its order.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Update([f32; 8]);
// SAFETY: plain numbers, laid out as the kernels declare them.
unsafe impl DeviceRepr for Update {}

/// Adds `factor source` to the numbers of the flat f32 tensor `target` from `start` on, in place.
pub(crate) fn accumulate(
    kernels: &Kernels,
    target: &Tensor,
    start: usize,
    source: &Tensor,
    factor: f64,
) -> Result<()> {
    if target.dtype() != DType::F32 {
        bail!("sums are kept in f32, not in {:?}", target.dtype());
    }
    let source = dense(kernels, source)?;
    let count = source.elem_count();
    let part = target.narrow(0, start, count)?;
    let arguments = [
        Address(kernels.address(&source)?),
        Address(kernels.address(&part)?),
        Long(count as i64),
        Float(factor as f32),
    ];
    let function = kernels.function("rows", source.dtype(), "accumulate")?;
    // SAFETY: the signature of `accumulate`; both have as many numbers.
    unsafe { kernels.launch(&function, blocks_for(count), &arguments) }
}

/// `accumulate` for many f32 tensors and the places they go to, none of which overlap, in one launch.
pub(crate) fn accumulate_pieces(
    kernels: &Kernels,
    target: &Tensor,
    sources: &[(usize, Tensor)],
    factor: f64,
) -> Result<()> {
    if sources.len() > MOST_PIECES {
        let (first, rest) = sources.split_at(MOST_PIECES);
        accumulate_pieces(kernels, target, first, factor)?;
        return accumulate_pieces(kernels, target, rest, factor);
    }
    if sources.is_empty() {
        return Ok(());
    }
    let (mut words, mut most) = (Vec::with_capacity(3 * sources.len()), 0);
    for (start, source) in sources {
        let count = source.elem_count();
        if source.dtype() != DType::F32 || start + count > target.elem_count() {
            let (dtype, dims) = (source.dtype(), target.dims());
            bail!("{count} numbers in {dtype:?} from {start} on, added to {dims:?} in f32");
        }
        words.extend([kernels.address(source)? as i64, *start as i64, count as i64]);
        most = most.max(count);
    }
    let pieces = kernels.table(words)?;
    let arguments = [
        Address(kernels.address(&pieces)?),
        Address(kernels.address(target)?),
        Float(factor as f32),
    ];
    let function = kernels.function("rows", DType::F32, "accumulate_pieces")?;
    let grid = (most.div_ceil(1024).max(1) as u32, sources.len() as u32, 1);
    // SAFETY: the signature of `accumulate_pieces`; every piece is alive, and within the target.
    unsafe { kernels.launch(&function, config(grid, 256, 0), &arguments) }
}

/// The numbers of the flat f32 tensor `values` in these ranges, which are there, one behind the other in bf16 or f32, in one launch.
pub(crate) fn gather(
    kernels: &Kernels,
    values: &Tensor,
    ranges: &[Range<usize>],
    dtype: DType,
) -> Result<Tensor> {
    let (mut words, mut count, mut most) = (Vec::with_capacity(3 * ranges.len()), 0, 0);
    for range in ranges {
        words.extend([range.start as i64, count as i64, range.len() as i64]);
        count += range.len();
        most = most.max(range.len());
    }
    let out = kernels.room(count, dtype)?;
    if count == 0 {
        return Ok(out);
    }
    let values = dense(kernels, values)?;
    let function = kernels.function("rows", dtype, "gather_pieces")?;
    for words in words.chunks(3 * MOST_PIECES) {
        let pieces = kernels.table(words.to_vec())?;
        let arguments = [
            Address(kernels.address(&pieces)?),
            Address(kernels.address(&values)?),
            Address(kernels.address(&out)?),
        ];
        let grid = (most.div_ceil(1024) as u32, (words.len() / 3) as u32, 1);
        // SAFETY: the signature of `gather_pieces`; the ranges are within `values`, and `out` has all their numbers.
        unsafe { kernels.launch(&function, config(grid, 256, 0), &arguments)? };
    }
    Ok(out)
}

/// The sum of squares of all numbers, in f32 by blocks and in f64 over them.
pub(crate) fn sum_of_squares(kernels: &Kernels, x: &Tensor) -> Result<f64> {
    /// What each block sums at most, unless there are more numbers than that.
    const SHARE: usize = 1 << 14;
    let x = dense(kernels, x)?;
    let count = x.elem_count();
    let blocks = count.div_ceil(SHARE).clamp(1, 1024);
    let sums = kernels.room(blocks, DType::F32)?;
    let arguments = [
        Address(kernels.address(&x)?),
        Address(kernels.address(&sums)?),
        Long(count as i64),
    ];
    let function = kernels.function("rows", x.dtype(), "squares")?;
    let grid = config((blocks as u32, 1, 1), 256, 0);
    // SAFETY: the signature of `squares`; there is a sum for each block.
    unsafe { kernels.launch(&function, grid, &arguments)? };
    Ok(sums.to_vec1::<f32>()?.into_iter().map(f64::from).sum())
}

/// One step of AdamW, in place.
pub(crate) fn adamw(
    kernels: &Kernels,
    parameters: &Tensor,
    gradient: &Tensor,
    (first, second): (&Tensor, &Tensor),
    update: AdamWUpdate,
) -> Result<()> {
    let update = Update([
        update.keep1,
        update.take1,
        update.keep2,
        update.take2,
        update.shrink,
        update.step_size,
        update.root_correction,
        update.epsilon,
    ]);
    let arguments = [
        Address(kernels.address(parameters)?),
        Address(kernels.address(gradient)?),
        Address(kernels.address(first)?),
        Address(kernels.address(second)?),
        Long(parameters.elem_count() as i64),
        Argument::Update(update),
    ];
    let function = kernels.function("rows", DType::F32, "adamw")?;
    // SAFETY: the signature of `adamw`; all have as many numbers, which the caller checked.
    unsafe { kernels.launch(&function, blocks_for(parameters.elem_count()), &arguments) }
}

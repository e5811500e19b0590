//! 8-bit floats on a GPU: rounding with the tensor's own scale, which the host never sees, and products by cuBLASLt.

use candle_core::{DType, Result, Tensor, bail};

use super::Argument::{Address, Double, Int, Long};
use super::rows::{by_width, spread, widest};
use super::views::dense;
use super::{Kernels, biased, blocks_for, config};
use crate::nn::cpu;
use crate::nn::fp8::{Float8, Fp8Matrix, LEAST, Rounded};

/// Blocks that look for the largest number, and as many that round: each reads what all of the first found.
const MOST_BLOCKS: u32 = 512;

/// As [`Rounded::new`].
pub(crate) fn rounded(kernels: &Kernels, x: &Tensor, format: Float8) -> Result<Rounded> {
    let extents = cpu::rows_of(x)?;
    let x = dense(kernels, x)?;
    let (dtype, count) = (x.dtype(), x.elem_count());
    let (codes, scale) = (
        kernels.room(extents, DType::U8)?,
        kernels.room(1, DType::F32)?,
    );
    let (from, to) = (kernels.address(&x)?, kernels.address(&codes)?);
    let each = widest(dtype, count, &[from]);
    let mut blocks = blocks_for(count.div_ceil(each));
    blocks.grid_dim.0 = blocks.grid_dim.0.min(MOST_BLOCKS);
    let parts = blocks.grid_dim.0;
    let largest = kernels.room(parts as usize, DType::F32)?;
    let arguments = [
        Address(from),
        Address(kernels.address(&largest)?),
        Long(count as i64),
    ];
    let name = by_width(each, ["largest_by_8", "largest_by_4", "largest_by_1"]);
    let function = kernels.function("rows", dtype, name)?;
    // SAFETY: the signature of `largest_by_*`; there is a number for each block.
    unsafe { kernels.launch(&function, blocks, &arguments)? };
    let arguments = [
        Address(from),
        Address(kernels.address(&largest)?),
        Int(parts as i32),
        Address(to),
        Address(kernels.address(&scale)?),
        Long(count as i64),
        Int(i32::from(format == Float8::E5M2)),
        Double(format.largest()),
        Double(LEAST),
    ];
    let name = by_width(each, ["float8_by_8", "float8_by_4", "float8_by_1"]);
    let function = kernels.function("rows", dtype, name)?;
    // SAFETY: the signature of `float8_by_*`; there is a code for each number.
    unsafe { kernels.launch(&function, blocks, &arguments)? };
    Ok(Rounded {
        format,
        codes,
        scale,
    })
}

/// The codes of a matrix of a shape that [`Fp8Matrix::fits`], columns first.
pub(crate) fn transposed(kernels: &Kernels, codes: &Tensor) -> Result<Tensor> {
    /// Rows and columns of a tile.
    const TILE: usize = 64;
    let (rows, columns) = codes.dims2()?;
    let fits = Fp8Matrix::fits([rows, columns]);
    if codes.dtype() != DType::U8 || !fits {
        bail!("{:?} {:?} turned as codes", codes.dtype(), codes.dims());
    }
    let out = kernels.room((columns, rows), DType::U8)?;
    let arguments = [
        Address(kernels.address(codes)?),
        Address(kernels.address(&out)?),
        Int(rows as i32),
        Int(columns as i32),
    ];
    let function = kernels.function("rows", DType::F32, "turned_codes")?;
    let tiles = |n: usize| n.div_ceil(TILE) as u32;
    let grid = config((tiles(columns), tiles(rows), 1), 256, 0);
    // SAFETY: the signature of `turned_codes`; both matrices have the extents given.
    unsafe { kernels.launch(&function, grid, &arguments)? };
    Ok(out)
}

/// `x w^T + b`, of `w` `[n, k]` in e4m3 with its scale, in `dtype`; or that added to a tensor of `[.., n]` which lies in one piece, in place.
pub(crate) fn product(
    kernels: &Kernels,
    x: &Rounded,
    w: (&Tensor, &Tensor),
    b: Option<&Tensor>,
    (dtype, earlier): (DType, Option<&Tensor>),
) -> Result<Tensor> {
    let ((rows, _), (n, _)) = (x.codes.dims2()?, w.0.dims2()?);
    // cuBLASLt adds no bias in f32 to such a product.
    let bias = b.filter(|b| b.dtype() == DType::BF16 && dtype == DType::BF16);
    let sum = match (earlier, b) {
        (Some(earlier), _) => Some(dense(kernels, earlier)?.reshape((rows, n))?),
        (None, Some(b)) if bias.is_none() => {
            let b = dense(kernels, &b.to_dtype(dtype)?)?;
            Some(spread(kernels, &b, rows)?)
        }
        _ => None,
    };
    let (bias, added) = (bias.map(|b| dense(kernels, b)).transpose()?, sum.is_some());
    let y = match sum {
        Some(sum) => sum,
        None => kernels.room((rows, n), dtype)?,
    };
    biased::in_fp8(kernels, (x, w), bias.as_ref(), &y, added)?;
    Ok(y)
}

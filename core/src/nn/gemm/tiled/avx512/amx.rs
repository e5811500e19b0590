//! The kernel of matrix registers (AMX, for bf16): an instruction multiplies 16 rows of 16 pairs with 16 rows of pairs of 16 columns.
//!
//! Of an element, each instruction adds up the products of the first ones of its 16 pairs, and those of the second ones, by chains of fused
//! multiply-adds from zero; then both are added, and their sum to the element. Numbers below 2^-126 are 0 to it. ("Intel 64 and IA-32
//! Architectures Software Developer's Manual", TDPBF16PS; `bf16.rs` holds it to the last bit in a test.)
//!
//! It computes sixteen times as fast as vectors, and so waits for memory sooner: rows of the left factor are rounded once and stay in the
//! L2 cache beside columns of the right one, blocks are long, so that an element is written once or a few times, and what is read and
//! written next is fetched meanwhile. The left factor lies in squares of a tile's rows and a step's pairs, one after the other down the
//! inner dimension, as the right one does.

mod split;
mod sums;

use std::arch::asm;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::tile::Tile;
use super::super::{
    CacheLine, Division, Factor, PACKED, Product, Right, Rounding, SIDE_OF_SQUARE, block_of, places,
};
use super::{packing, single, vectors};
use crate::nn::instructions::TILES;
pub(in super::super) use split::SPLIT;
use sums::{Soon, Sums, sum};
use vectors::LANES;

/// Rows of a register, and the pairs of the inner dimension of an instruction.
const SIDE: usize = 16;
/// Two registers' rows: with two registers' columns the result takes four of eight, and each of the factors' is used twice.
const ROWS: usize = 2 * SIDE;
const COLUMNS: usize = 2 * LANES;
/// Pairs of a square of the packed left factor, which are as many as of a step of the right one: [`ROWS`] rows of [`SIDE`].
const SQUARE: usize = ROWS * SIDE;
const _: () =
    assert!(ROWS == SIDE_OF_SQUARE && 2 * SIDE == SIDE_OF_SQUARE && COLUMNS == SIDE_OF_SQUARE);
/// Pairs of each factor that stay in the L2 cache, which is of 2 MiB.
const LEFT_NEAR: usize = 256 * 1024;
const RIGHT_NEAR: usize = 208 * 1024;
/// Columns of a right factor that lies in a tensor which are packed at a time, by each thread for all its rows.
const PACKED_COLUMNS: usize = 1024;

/// How this kernel divides a product.
pub(in super::super) const MATRIX_REGISTERS: Division = Division {
    tile_rows: ROWS,
    tile_columns: COLUMNS,
    near: usize::MAX,
    longest: 2048,
    step: 2 * SIDE,
    by_rows: true,
    piece,
    pack_right,
};

/// As the other kernels' `pack_right`.
unsafe fn pack_right(factor: Factor, at: (usize, usize), size: (usize, usize), to: *mut f32) {
    // SAFETY: the caller's promises.
    unsafe { packing::pack(factor, at, size, (to, COLUMNS)) }
}

/// As the other kernels' `piece`.
unsafe fn piece(p: &Product, rows: Range<usize>, columns: Range<usize>) {
    // SAFETY: the caller's promises.
    unsafe { configured(|packed| tiles(p, rows, columns, packed)) }
}

/// Computes with configured registers, and what this thread packs factors into.
///
/// # Safety
///
/// The processor must have matrix registers.
unsafe fn configured(compute: impl FnOnce(&mut Vec<CacheLine>)) {
    // SAFETY: the caller's promise; the configuration is one that the processor accepts. (Compilers never use these registers.)
    unsafe {
        asm!(
            "ldtilecfg [{configuration}]",
            configuration = in(reg) &raw const TILES,
            options(nostack, readonly),
        );
    }
    let mut packed = PACKED.take();
    compute(&mut packed);
    PACKED.set(packed);
    // SAFETY: nobody needs the registers any more.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// Goes through the tiles of the product in `rows` and `columns`, with factors packed into `packed`.
///
/// # Safety
///
/// As [`piece`], and the registers must be configured.
unsafe fn tiles(
    p: &Product,
    rows: Range<usize>,
    columns: Range<usize>,
    packed: &mut Vec<CacheLine>,
) {
    let block = block_of(p.kernel, p.inner);
    // From one tile's packed rows to the next one's.
    let stride = block.div_ceil(SIDE) * SQUARE;
    let down = (LEFT_NEAR / stride).max(1) * ROWS;
    let down = down.min(rows.len().next_multiple_of(ROWS));
    let across = (RIGHT_NEAR / block / COLUMNS).max(1) * COLUMNS;
    let (wide, strided) = match p.right {
        Right::Packed(_) => (columns.len(), None),
        Right::Strided(factor) => (PACKED_COLUMNS.min(columns.len()), Some(factor)),
        Right::Transpose(_) => unreachable!("only single numbers are packed from a transpose"),
    };
    let left_lines = match p.is_rounded {
        true => 0,
        false => down / ROWS * stride / CacheLine::NUMBERS,
    };
    let right_lines = match strided {
        None => 0,
        Some(_) => block * wide.next_multiple_of(COLUMNS) / CacheLine::NUMBERS,
    };
    let [left, right] = places(packed, [left_lines, right_lines]);
    for (first, at) in columns
        .clone()
        .step_by(wide)
        .flat_map(|first| (0..p.inner).step_by(block).map(move |at| (first, at)))
    {
        let columns = first..(first + wide).min(columns.end);
        let inner = block.min(p.inner - at);
        if let Some(factor) = strided {
            for column in columns.clone().step_by(COLUMNS) {
                let to = right.wrapping_add((column - first) * inner);
                let size = (inner, COLUMNS.min(columns.end - column));
                // SAFETY: the panel lies inside the factor and, packed, inside `right`.
                unsafe { pack_right(factor, (at, column), size, to) };
            }
        }
        let panel = |column: usize| match p.right {
            Right::Packed(panels) => panels.at(at, column),
            _ => right.wrapping_add((column - first) * inner).cast_const(),
        };
        for top in rows.clone().step_by(down) {
            let rows = top..(top + down).min(rows.end);
            let packed = match p.is_rounded {
                true => (p.left.at(top / ROWS, at / SIDE * SQUARE), p.left.row_stride),
                // SAFETY: the rows lie inside the factor and, packed, inside `left`.
                false => unsafe { pack_left(p.left, (rows.clone(), at), inner, (left, stride)) },
            };
            for near in columns.clone().step_by(across) {
                let near = near..(near + across).min(columns.end);
                for row in rows.clone().step_by(ROWS) {
                    let left = packed.0.wrapping_add((row - top) / ROWS * packed.1);
                    let band = Band {
                        p,
                        at,
                        rows: row..(row + ROWS).min(rows.end),
                        left,
                        is_last: at + inner == p.inner,
                    };
                    // SAFETY: both factors were packed; the elements lie inside target, base and bias.
                    unsafe { band.tiles(inner, near.clone(), panel) };
                }
            }
        }
    }
}

/// Packs rows of the left factor from column `at` on, each tile's `stride` after the one before; gives where they are.
///
/// # Safety
///
/// As [`packing::round_to`].
unsafe fn pack_left(
    factor: Factor,
    (rows, at): (Range<usize>, usize),
    inner: usize,
    (to, stride): (*mut f32, usize),
) -> (*const f32, usize) {
    for (tile, row) in rows.clone().step_by(ROWS).enumerate() {
        let to = to.wrapping_add(tile * stride);
        let size = (ROWS.min(rows.end - row), inner);
        // SAFETY: the caller's promises.
        unsafe { packing::round_to(factor, (row, at), size, (to, [SIDE, SQUARE])) };
    }
    (to, stride)
}

/// Rows of the result, at most [`ROWS`], in a block of the inner dimension.
struct Band<'a> {
    p: &'a Product<'a>,
    /// The block's start.
    at: usize,
    rows: Range<usize>,
    /// The packed left factor's rows.
    left: *const f32,
    /// Whether sums are complete with this block.
    is_last: bool,
}

impl Band<'_> {
    /// The tiles of these columns; `panel` gives the right factor's from a column on.
    ///
    /// # Safety
    ///
    /// As [`Tile`]'s, whose elements these are.
    unsafe fn tiles(
        &self,
        inner: usize,
        columns: Range<usize>,
        panel: impl Fn(usize) -> *const f32,
    ) {
        let &Self {
            p,
            at,
            ref rows,
            left,
            is_last,
        } = self;
        for column in columns.clone().step_by(COLUMNS) {
            let tile = Tile {
                inner,
                left,
                right: panel(column),
                columns: COLUMNS.min(columns.end - column),
                ..Tile::at(p, rows.start, column, at == 0)
            };
            // SAFETY: the caller's promises.
            unsafe {
                match &p.rounding {
                    None => compute(&tile, rows.len()),
                    Some(rounding) => {
                        let square = rows.start / ROWS * p.stride + column / COLUMNS * SQUARE;
                        let to = p.target.wrapping_add(square);
                        compute_rounded(rounding, &tile, (at, column), rows.len(), to);
                    }
                }
            }
        }
        if let Some(finish) = p.finish.filter(|_| is_last) {
            // SAFETY: the rows lie inside the target, and this part of them is this thread's.
            unsafe { p.finish(finish, rows.clone(), &columns) };
        }
    }
}

/// Computes a tile of `rows` rows, at most [`ROWS`].
///
/// # Safety
///
/// The processor must have matrix registers for bf16, which are configured, and the tile's elements must lie inside what its pointers
/// point to; of the packed left factor there are whole squares, with zeros for what the last one lacks of its pairs.
#[target_feature(enable = "avx512f")]
unsafe fn compute(t: &Tile, rows: usize) {
    // SAFETY: the caller's promises.
    unsafe { compute_by(sum, t, rows) }
}

/// As [`compute`], whose sums come by this function.
///
/// # Safety
///
/// As [`compute`], and the function's.
#[target_feature(enable = "avx512f")]
unsafe fn compute_by(sum: unsafe fn(&Tile, usize, *mut Sums, Soon), t: &Tile, rows: usize) {
    let mut sums = MaybeUninit::<Sums>::uninit();
    let base = if t.base.is_null() { t.target } else { t.base };
    let soon = Soon {
        to: t.target,
        stride: t.stride,
        base,
        base_stride: t.base_stride,
    };
    // SAFETY: the caller's promises; as many sums are written as are read.
    unsafe {
        sum(t, rows, sums.as_mut_ptr(), soon);
        write(t, rows, sums.as_ptr());
    }
}

/// As [`compute`], but of elements that are changed, rounded, and written as a square of pairs to `to`.
///
/// # Safety
///
/// As [`compute`]; the gate, if there is one, is of the right factor's shape, and its row and column `at` are those of the tile.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn compute_rounded(
    rounding: &Rounding<'_>,
    t: &Tile,
    at: (usize, usize),
    rows: usize,
    to: *mut f32,
) {
    let mut sums = MaybeUninit::<Sums>::uninit();
    let mut gates = MaybeUninit::<Sums>::uninit();
    let soon = Soon {
        to,
        stride: SIDE,
        base: to,
        base_stride: SIDE,
    };
    let with_bias = |t: &Tile, sums: &mut MaybeUninit<Sums>| {
        let target = sums.as_mut_ptr().cast();
        let t = Tile {
            target,
            stride: COLUMNS,
            base: std::ptr::null(),
            ..*t
        };
        // SAFETY: the caller's promises; as many sums are written as are read.
        unsafe {
            sum(&t, rows, sums.as_mut_ptr(), soon);
            write(&t, rows, sums.as_ptr());
        }
    };
    with_bias(t, &mut sums);
    // SAFETY: at least these rows were written.
    let sums = unsafe { &mut (&mut (*sums.as_mut_ptr()).0)[..rows] };
    let gates = match rounding.gate {
        None => &[][..],
        Some(gate) => {
            let right = gate.at(at.0, at.1);
            let bias = std::ptr::null();
            with_bias(&Tile { right, bias, ..*t }, &mut gates);
            // SAFETY: as above.
            unsafe { &(&(*gates.as_ptr()).0)[..rows] }
        }
    };
    (rounding.edit)(sums.as_flattened_mut(), gates.as_flattened());
    // Rows beyond the last one are multiplied too, though nobody looks at what comes of it.
    let nothing = [0.0; COLUMNS];
    for row in 0..ROWS {
        let sums = sums.get(row).unwrap_or(&nothing);
        // SAFETY: the square lies in the target; what fills up its pairs are zeros.
        unsafe {
            let part =
                |at: usize| vectors::load_some(sums[at..].as_ptr(), t.columns.saturating_sub(at));
            packing::store_rounded(to.wrapping_add(row * SIDE), part(0), part(LANES));
        }
    }
}

/// `target = scale * sums + bias + base`; the target may be the sums themselves.
///
/// # Safety
///
/// As [`compute`]; the sums of its rows were written.
#[target_feature(enable = "avx512f")]
unsafe fn write(t: &Tile, rows: usize, sums: *const Sums) {
    let scale = vectors::splat(t.scale);
    for at in (0..t.columns).step_by(LANES) {
        // SAFETY: the caller's promises.
        unsafe {
            let bias = single::bias(t, at);
            for row in 0..rows {
                let sum = vectors::right((&raw const (*sums).0[row][at]).cast(), 0);
                single::write(t, (row, at), sum, (scale, bias));
            }
        }
    }
}

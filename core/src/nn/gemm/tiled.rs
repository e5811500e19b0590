//! Products of f32 matrices, and of f32 with bf16 ones, on processors with AVX2 or AVX-512, where the `gemm` crate reaches three
//! quarters to nine tenths of what MKL does. The scheme is that of BLIS (Van Zee & van de Geijn 2015, doi:10.1145/2764454): a tile of the result
//! stays in registers, a block of the right factor in the L2 cache, the rows of a tile in the L1 cache.
//!
//! An element is one chain of fused multiply-adds over a block of the inner dimension, from zero; the sums of
//! blocks are added in order. Blocks depend on the inner dimension alone: so a row of the result depends
//! neither on the other rows, nor on the threads, nor on the instructions, but for matrix registers (`avx512/amx.rs`), which add up
//! otherwise. They are made for bf16: a product of f32 is six of theirs there, to the same accuracy (`avx512/amx/split.rs`).
//!
//! Where the right factor is bf16 the left one is rounded to bf16 as it is packed, and what is a number above is two
//! neighbours of the inner dimension: `vdpbf16ps` adds the product of the second ones to a sum, rounds, adds that of the first
//! ones, and rounds. (Measured on Zen 5; the documentation of Intel's processors says the same.) Without the instruction the
//! pairs are widened in registers, and added in that order: products of bf16 are exact in f32.

mod avx2;
mod avx512;
mod packing;
mod panels;
mod room;
mod tile;

use std::ops::Range;

use rayon::prelude::*;

use crate::nn::instructions::Instructions;
pub(super) use panels::{Panels, panels};
pub(super) use room::CacheLine;
use room::{PACKED, places};
use tile::{Tile, TileOf};

/// The longest block of the inner dimension.
const INNER: usize = 384;
/// From one packed row of the left factor to the next: an odd number of cache lines, so that the rows of a
/// tile do not compete for the same lines of the cache; known here, so that it costs no arithmetic.
const ROW: usize = INNER + CacheLine::NUMBERS;
/// Rows, and numbers of each, of a square of a left factor that a product has rounded.
pub(super) const SIDE_OF_SQUARE: usize = 32;
/// The fewest columns, and numbers of the inner dimension, of products whose numbers are split, as those of an attention's heads. (Measured:
/// 1.1 to 2.6 times as fast at 64. A low-rank product would fill a quarter of the registers.)
const FEWEST_SPLIT: usize = 64;
/// Columns and tiles of rows below which a product is not divided further among threads.
const FEWEST_COLUMNS: usize = 256;
const FEWEST_TILES: usize = 4;

/// Elements with one stride of 1: (i, j) is at `data + i * row_stride + j * column_stride`.
#[derive(Clone, Copy)]
pub(super) struct Factor {
    pub(super) data: *const f32,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

impl Factor {
    fn at(&self, row: usize, column: usize) -> *const f32 {
        self.data
            .wrapping_add(row * self.row_stride + column * self.column_stride)
    }
}

/// The right factor.
#[derive(Clone, Copy)]
pub(super) enum Right {
    /// As it lies in a tensor: packed anew in every product.
    Strided(Factor),
    /// Packed once, for these operands and instructions.
    Packed(Panels),
    /// The transpose of what was packed once, of single numbers: packed anew from there.
    Transpose(Panels),
}

impl Right {
    /// How many numbers are gone through at a time, where a core's own cache has room for `near`. (Measured on Zen 4: of panels that lie
    /// side by side twice as many are no slower, and the left factor is packed half as often.)
    fn near(&self, near: usize) -> usize {
        match self {
            Self::Strided(_) | Self::Transpose(_) => near,
            Self::Packed(_) => near.saturating_mul(2),
        }
    }
}

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operands {
    /// f32 with f32.
    Single,
    /// f32, rounded to bf16, with bf16. Pairs of the right factor along the inner dimension, which is even, are
    /// read as one number: its `data` and strides count pairs. The left factor has a column stride of 1.
    Bf16,
}

/// A kernel that this processor can run: the only way to one is [`Kernel::best`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    operands: Operands,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Avx2,
    Avx2Pairs,
    Avx512,
    Avx512Pairs,
    Avx512Bf16,
    AmxBf16,
    AmxSingle,
}

impl Kernel {
    /// For these operands and a right factor of this shape, with nothing beyond `most`; None if there is none.
    pub(super) fn best(
        operands: Operands,
        (inner, columns): (usize, usize),
        most: Instructions,
    ) -> Option<Self> {
        let least = inner.min(columns);
        let form = match (operands, most.min(Instructions::available())) {
            (_, Instructions::Base) => return None,
            (Operands::Single, Instructions::Avx2) => Form::Avx2,
            (Operands::Single, Instructions::AmxBf16) if least >= FEWEST_SPLIT => Form::AmxSingle,
            (Operands::Single, _) => Form::Avx512,
            (Operands::Bf16, Instructions::Avx2) => Form::Avx2Pairs,
            (Operands::Bf16, Instructions::Avx512) => Form::Avx512Pairs,
            (Operands::Bf16, Instructions::Avx512Bf16) => Form::Avx512Bf16,
            (Operands::Bf16, Instructions::AmxBf16) => Form::AmxBf16,
        };
        Some(Self { operands, form })
    }

    pub(super) fn operands(self) -> Operands {
        self.operands
    }

    /// Whether its products round what they give, where the inner dimension is one block, and take what they gave.
    pub(super) fn rounds(self) -> bool {
        self.form == Form::AmxBf16
    }

    fn divided(self) -> Division {
        match self.form {
            Form::Avx2 => Division::of::<avx2::Single>(),
            Form::Avx2Pairs => Division::of::<avx2::Pairs>(),
            Form::Avx512 => Division::of::<avx512::Single>(),
            Form::Avx512Pairs => Division::of::<avx512::Pairs>(),
            Form::Avx512Bf16 => Division::of::<avx512::Bf16>(),
            Form::AmxBf16 => avx512::MATRIX_REGISTERS,
            Form::AmxSingle => avx512::SPLIT,
        }
    }
}

/// How a kernel divides a product.
struct Division {
    tile_rows: usize,
    tile_columns: usize,
    near: usize,
    /// The longest block of the inner dimension, in numbers, and what a block is a multiple of.
    longest: usize,
    step: usize,
    /// Whether threads share out rows, and columns where there are few rows; else the other way round.
    by_rows: bool,
    piece: unsafe fn(&Product, Range<usize>, Range<usize>),
    pack_right: PackRight,
}

impl Division {
    fn of<V: Vectors>() -> Self {
        Self {
            tile_rows: V::TILES.len(),
            tile_columns: V::TILE_COLUMNS,
            near: V::NEAR,
            longest: INNER,
            step: CacheLine::NUMBERS,
            by_rows: false,
            piece: piece::<V>,
            pack_right: V::pack_right,
        }
    }
}

/// Packs the factor's elements from (row, column) on, of which there are (rows, columns), as rows of `TILE_COLUMNS`.
type PackRight = unsafe fn(Factor, (usize, usize), (usize, usize), *mut f32);

/// A kernel's instructions.
trait Vectors {
    /// Columns of a tile: two vectors.
    const TILE_COLUMNS: usize;
    /// The most numbers, or pairs, of the right factor that are gone through at a time, for all rows: as many as the L2 cache of a core
    /// has room for.
    const NEAR: usize;
    /// The functions for tiles of 1, 2, .. rows, each of one and of two vectors: both must be known to the compiler for sums to stay in
    /// registers.
    const TILES: &'static [[TileOf; 2]];

    /// Packs the left factor's elements from (row, column) on, of which there are (rows, columns), as rows, `ROW` apart. Pairs of
    /// bf16 are counted as one column.
    ///
    /// # Safety
    ///
    /// The processor must have the instructions, the elements must be readable, and `to` writable in whole cache lines.
    unsafe fn pack_left(factor: Factor, at: (usize, usize), size: (usize, usize), to: *mut f32);

    /// [`PackRight`].
    ///
    /// # Safety
    ///
    /// As [`Self::pack_left`].
    unsafe fn pack_right(factor: Factor, at: (usize, usize), size: (usize, usize), to: *mut f32);
}

/// What is done to the elements of a result as soon as their sums are complete, part of a row at a time, while they are near.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    /// Changes the elements, given those of `beside` in the same places; nothing of it if it is empty.
    pub(crate) edit: &'a (dyn Fn(&mut [f32], &[f32]) + Sync),
    /// As rows without a gap, in the shape of the result; or empty.
    pub(crate) beside: &'a [f32],
}

/// What elements become that are only multiplied again: changed as soon as their sums are complete, and rounded to bf16. By matrix
/// registers alone, and where the inner dimension is one block.
#[derive(Clone, Copy)]
pub(super) struct Rounding<'a> {
    /// Changes elements with their bias, given those of the product with `gate` in the same places; nothing of it without one.
    pub(super) edit: &'a (dyn Fn(&mut [f32], &[f32]) + Sync),
    /// Another right factor of the same shape.
    pub(super) gate: Option<Panels>,
}

/// `target = scale * left right + bias + base`: `target` is `rows` x `columns`, its rows `stride` apart; `left`
/// has `inner` columns, or pairs of columns.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) kernel: Kernel,
    pub(super) rows: usize,
    pub(super) inner: usize,
    pub(super) columns: usize,
    pub(super) scale: f32,
    pub(super) left: Factor,
    /// Whether the left factor was rounded by a product before: it lies in squares then, its `row_stride` is from those of some rows to those
    /// below, and it counts pairs.
    pub(super) is_rounded: bool,
    pub(super) right: Right,
    /// A row that is added to all, or null.
    pub(super) bias: *const f32,
    /// Rows, `base_stride` apart, or null. May be the target itself.
    pub(super) base: *const f32,
    pub(super) base_stride: usize,
    pub(super) target: *mut f32,
    pub(super) stride: usize,
    pub(super) finish: Option<Finish<'a>>,
    /// Instead of a base and `finish`; the target is as a rounded left factor then, and so is its stride.
    pub(super) rounding: Option<Rounding<'a>>,
}

impl Product<'_> {
    /// A product of `[rows, inner, columns]` without a target.
    pub(super) fn new(
        kernel: Kernel,
        [rows, inner, columns]: [usize; 3],
        left: Factor,
        right: Right,
    ) -> Self {
        Self {
            kernel,
            rows,
            inner,
            columns,
            scale: 1.0,
            left,
            is_rounded: false,
            right,
            bias: std::ptr::null(),
            base: std::ptr::null(),
            base_stride: 0,
            target: std::ptr::null_mut(),
            stride: 0,
            finish: None,
            rounding: None,
        }
    }

    /// Finishes elements whose sums are complete.
    ///
    /// # Safety
    ///
    /// As `run`, and no other thread may read or write these elements.
    unsafe fn finish(&self, finish: Finish<'_>, rows: Range<usize>, columns: &Range<usize>) {
        for row in rows {
            let elements = self.target.wrapping_add(row * self.stride + columns.start);
            // SAFETY: the caller's promise.
            let elements = unsafe { std::slice::from_raw_parts_mut(elements, columns.len()) };
            let beside = match finish.beside {
                [] => &[],
                all => &all[row * self.columns..][columns.clone()],
            };
            (finish.edit)(elements, beside);
        }
    }
}

// SAFETY: the pointers are only read and written inside `run`, whose caller vouches for them.
unsafe impl Send for Product<'_> {}
// SAFETY: as above; two threads never write to the same elements.
unsafe impl Sync for Product<'_> {}

/// The numbers, or pairs, of the blocks that an inner dimension is summed in: the same numbers in a block, whether they come one by one
/// or in pairs.
fn block_of(kernel: Kernel, inner: usize) -> usize {
    let Division { longest, step, .. } = kernel.divided();
    let each = match kernel.operands {
        Operands::Single => 1,
        Operands::Bf16 => 2,
    };
    let numbers = each * inner;
    let block = numbers.div_ceil(numbers.div_ceil(longest));
    block.next_multiple_of(step) / each
}

/// Computes the product, on as many threads.
///
/// # Safety
///
/// All elements of the factors, bias and base must be readable, those of
/// the target writable, and nothing but the base may overlap the target. `inner` must not be 0.
pub(super) unsafe fn run(product: &Product, threads: usize) {
    assert!(
        product.kernel.rounds() || !product.is_rounded && product.rounding.is_none(),
        "a kernel that does not round"
    );
    let division = product.kernel.divided();
    let block = block_of(product.kernel, product.inner);
    let near = product.right.near(division.near);
    let most_columns = (near / block).max(division.tile_columns);
    let (row_pieces, column_pieces) = pieces(&division, product, most_columns, threads);
    let height = product
        .rows
        .div_ceil(row_pieces)
        .next_multiple_of(division.tile_rows);
    // Pieces of a packed factor are whole panels.
    let width = product
        .columns
        .div_ceil(column_pieces)
        .next_multiple_of(division.tile_columns);
    let piece = |index: usize| {
        let (row, column) = (
            index / column_pieces * height,
            index % column_pieces * width,
        );
        if row >= product.rows || column >= product.columns {
            return;
        }
        let rows = row..(row + height).min(product.rows);
        let columns = column..(column + width).min(product.columns);
        // SAFETY: the caller's promises; pieces do not overlap.
        unsafe { (division.piece)(product, rows, columns) };
    };
    let num_pieces = row_pieces * column_pieces;
    if threads == 1 {
        (0..num_pieces).for_each(piece);
    } else {
        // One at a time: a piece is long enough, and rayon would hand out several to a thread.
        (0..num_pieces)
            .into_par_iter()
            .with_max_len(1)
            .for_each(piece);
    }
}

/// Into how many pieces rows and columns are divided. Each piece packs the right factor's columns and copies
/// the left one's rows for itself: long rows cost less than many columns.
fn pieces(
    division: &Division,
    &Product { rows, columns, .. }: &Product,
    most_columns: usize,
    threads: usize,
) -> (usize, usize) {
    let fewest = columns.div_ceil(most_columns).max(1);
    if threads == 1 {
        return (1, fewest);
    }
    if division.by_rows {
        let down = (rows / (2 * division.tile_rows)).clamp(1, 2 * threads);
        let across = (2 * threads).div_ceil(down);
        let most = columns.div_ceil(division.tile_columns);
        return (down, across.min(most).max(fewest));
    }
    let across = (columns / FEWEST_COLUMNS).clamp(1, 4 * threads).max(fewest);
    if across < threads {
        let fewest_rows = FEWEST_TILES * division.tile_rows;
        let down = (2 * threads).div_ceil(across).min(rows / fewest_rows);
        return (down.max(1), across);
    }
    // The same number for each thread.
    let even = across / threads * threads;
    (1, even.max(fewest.next_multiple_of(threads)))
}

/// The part of the product in `rows` and `columns`.
///
/// # Safety
///
/// As `run`, with a kernel of these vectors, and no other thread may write to this part.
unsafe fn piece<V: Vectors>(p: &Product, rows: Range<usize>, columns: Range<usize>) {
    let panels = columns.len().div_ceil(V::TILE_COLUMNS);
    let width = panels * V::TILE_COLUMNS;
    let block = block_of(p.kernel, p.inner);
    // As many blocks at a time as fit, so that an element is changed while it is near.
    let depth = block * (p.right.near(V::NEAR) / (block * width)).max(1);
    let mut packed = PACKED.take();
    let left_lines = V::TILES.len() * ROW / CacheLine::NUMBERS;
    let right_lines = match p.right {
        Right::Packed(_) => 0,
        Right::Strided(_) | Right::Transpose(_) => {
            depth.min(p.inner + CacheLine::NUMBERS) * width / CacheLine::NUMBERS
        }
    };
    let [left, right] = places(&mut packed, [left_lines, right_lines]);
    for start in (0..p.inner).step_by(depth) {
        let end = (start + depth).min(p.inner);
        let panel = |panel: usize, at: usize| {
            let column = columns.start + panel * V::TILE_COLUMNS;
            let count = V::TILE_COLUMNS.min(columns.end - column);
            let rows = block.min(end - at);
            let packed = match p.right {
                Right::Packed(factor) => factor.at(at, column).cast_mut(),
                Right::Strided(_) | Right::Transpose(_) => {
                    right.wrapping_add((at - start) * width + panel * rows * V::TILE_COLUMNS)
                }
            };
            (column, count, rows, packed)
        };
        for at in (start..end).step_by(block) {
            match p.right {
                Right::Packed(_) => {}
                Right::Strided(factor) => {
                    for (column, count, inner, to) in (0..panels).map(|i| panel(i, at)) {
                        // SAFETY: the panel lies inside the factor and, packed, inside `right`.
                        unsafe { V::pack_right(factor, (at, column), (inner, count), to) };
                    }
                }
                Right::Transpose(factor) => {
                    let rows = at..end.min(at + block);
                    let to = right.wrapping_add((at - start) * width);
                    // SAFETY: as above; pieces begin with a panel's first column.
                    unsafe { factor.pack_transpose(V::pack_right, rows, columns.clone(), to) };
                }
            }
        }
        for row in rows.clone().step_by(V::TILES.len()) {
            let count = V::TILES.len().min(rows.end - row);
            for at in (start..end).step_by(block) {
                let size = (count, block.min(end - at));
                // SAFETY: the tile's rows lie inside the factor and, packed, inside `left`.
                unsafe { V::pack_left(p.left, (row, at), size, left) };
                for (column, columns, inner, right) in (0..panels).map(|i| panel(i, at)) {
                    let tile = Tile {
                        inner,
                        left,
                        right,
                        columns,
                        ..Tile::at(p, row, column, at == 0)
                    };
                    // A low-rank product fills one vector.
                    let second = usize::from(columns > V::TILE_COLUMNS / 2);
                    // SAFETY: both factors were packed; the tile's elements lie inside target, base and bias.
                    unsafe { V::TILES[count - 1][second](&tile) };
                }
            }
            if let Some(finish) = p.finish.filter(|_| end == p.inner) {
                // SAFETY: the rows lie inside the target, and this part of them is this thread's.
                unsafe { p.finish(finish, row..row + count, &columns) };
            }
        }
    }
    PACKED.set(packed);
}

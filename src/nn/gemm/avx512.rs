//! Products of f32 matrices, and of f32 with bf16 ones, on processors with AVX-512, where the `gemm` crate reaches three
//! quarters to nine tenths of what MKL does. The scheme is that of BLIS (Van Zee & van de Geijn 2015, doi:10.1145/2764454): a tile of the result
//! stays in registers, a block of the right factor in the L2 cache, the rows of a tile in the L1 cache.
//!
//! An element is one chain of fused multiply-adds over a block of the inner dimension, from zero; the sums of
//! blocks are added in order. Blocks depend on the inner dimension alone: so a row of the result depends
//! neither on the other rows nor on the threads.
//!
//! Where the right factor is bf16 the left one is rounded to bf16 as it is packed, and what is a number above is two
//! neighbours of the inner dimension: `vdpbf16ps` adds the product of the second ones to a sum, rounds, adds that of the first
//! ones, and rounds. (Measured on Zen 5; the documentation of Intel's processors says the same.)

mod packing;

use std::arch::x86_64::{
    __m512, __m512bh, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps,
    _mm512_load_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_ps,
    _mm512_setzero_ps,
};
use std::cell::Cell;
use std::mem::transmute;
use std::ops::Range;

use rayon::prelude::*;

pub(super) use packing::panels;
use packing::{lanes, pack, round};

/// Numbers of a vector.
const LANES: usize = 16;
/// Rows of a tile: with two vectors each, 28 of the 32 registers.
const TILE_ROWS: usize = 14;
/// Columns of a tile.
const TILE_COLUMNS: usize = 2 * LANES;
/// The longest block of the inner dimension.
const INNER: usize = 384;
/// From one packed row of the left factor to the next: an odd number of cache lines, so that the rows of a
/// tile do not compete for the same lines of the cache; known here, so that it costs no arithmetic.
const ROW: usize = INNER + LANES;
/// The most columns of the right factor packed at a time: with `INNER` rows, the L2 cache of a core.
const COLUMNS: usize = 640;
/// Rows of the packed right factor that are asked for before they are needed.
const PREFETCHED: usize = 8;
/// Steps before a tile is done at which its elements are asked for; earlier, they would be gone again.
const LATE: usize = 32;
/// Columns and rows below which a product is not divided further among threads.
const FEWEST_COLUMNS: usize = 256;
const FEWEST_ROWS: usize = 8 * TILE_ROWS;

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
    /// The first line of `Panels`.
    Packed(*const f32),
}

/// What is multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Operands {
    /// f32 with f32.
    Single,
    /// f32, rounded to bf16, with bf16. Pairs of the right factor along the inner dimension, which is even, are
    /// read as one number: its `data` and strides count pairs. The left factor has a column stride of 1.
    Bf16,
}

/// `target = scale * left right + bias + base`: `target` is `rows` x `columns`, its rows `stride` apart; `left`
/// has `inner` columns, or pairs of columns.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) operands: Operands,
    pub(super) rows: usize,
    pub(super) inner: usize,
    pub(super) columns: usize,
    pub(super) scale: f32,
    pub(super) left: Factor,
    pub(super) right: Right,
    /// A row that is added to all, or null.
    pub(super) bias: *const f32,
    /// Rows, `base_stride` apart, or null. May be the target itself.
    pub(super) base: *const f32,
    pub(super) base_stride: usize,
    pub(super) target: *mut f32,
    pub(super) stride: usize,
}

impl Product {
    /// A product of `[rows, inner, columns]` without a target.
    pub(super) fn new(
        operands: Operands,
        [rows, inner, columns]: [usize; 3],
        left: Factor,
        right: Right,
    ) -> Self {
        Self {
            operands,
            rows,
            inner,
            columns,
            scale: 1.0,
            left,
            right,
            bias: std::ptr::null(),
            base: std::ptr::null(),
            base_stride: 0,
            target: std::ptr::null_mut(),
            stride: 0,
        }
    }
}

// SAFETY: the pointers are only read and written inside `run`, whose caller vouches for them.
unsafe impl Send for Product {}
// SAFETY: as above; two threads never write to the same elements.
unsafe impl Sync for Product {}

/// Whether this processor can.
pub(super) fn available(operands: Operands) -> bool {
    is_x86_feature_detected!("avx512f")
        && (operands == Operands::Single || is_x86_feature_detected!("avx512bf16"))
}

/// The length of the blocks that an inner dimension of so many numbers is summed in.
pub(super) fn inner_block(inner: usize) -> usize {
    inner
        .div_ceil(inner.div_ceil(INNER))
        .next_multiple_of(LANES)
}

/// Computes the product, on as many threads.
///
/// # Safety
///
/// The processor must be `available`. All elements of the factors, bias and base must be readable, those of
/// the target writable, and nothing but the base may overlap the target. `inner` must not be 0.
pub(super) unsafe fn run(product: &Product, threads: usize) {
    let (row_pieces, column_pieces) = pieces(product.rows, product.columns, threads);
    let height = product
        .rows
        .div_ceil(row_pieces)
        .next_multiple_of(TILE_ROWS);
    // Pieces of a packed factor are whole panels.
    let unit = match product.right {
        Right::Strided(_) => LANES,
        Right::Packed(_) => TILE_COLUMNS,
    };
    let width = product
        .columns
        .div_ceil(column_pieces)
        .next_multiple_of(unit);
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
        unsafe { piece(product, rows, columns) };
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
fn pieces(rows: usize, columns: usize, threads: usize) -> (usize, usize) {
    let fewest = columns.div_ceil(COLUMNS).max(1);
    if threads == 1 {
        return (1, fewest);
    }
    let across = (columns / FEWEST_COLUMNS).clamp(1, 4 * threads).max(fewest);
    if across < threads {
        let down = (2 * threads).div_ceil(across).min(rows / FEWEST_ROWS);
        return (down.max(1), across);
    }
    // The same number for each thread.
    let even = across / threads * threads;
    (1, even.max(fewest.next_multiple_of(threads)))
}

/// Numbers that start at a cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(super) struct CacheLine([f32; LANES]);

/// The numbers, or pairs, of a block of the inner dimension: the same numbers in a block, whether they come one by one or in pairs.
fn block_of(operands: Operands, inner: usize) -> usize {
    match operands {
        Operands::Single => inner_block(inner),
        Operands::Bf16 => inner_block(2 * inner) / 2,
    }
}

thread_local! {
    /// What this thread packs factors into: `TILE_ROWS` rows of the left one, then a block of the right one.
    static PACKED: Cell<Vec<CacheLine>> = const { Cell::new(Vec::new()) };
}

/// The part of the product in `rows` and `columns`.
///
/// # Safety
///
/// As `run`, and no other thread may write to this part.
#[target_feature(enable = "avx512f")]
unsafe fn piece(p: &Product, rows: Range<usize>, columns: Range<usize>) {
    let panels = columns.len().div_ceil(TILE_COLUMNS);
    let width = panels * TILE_COLUMNS;
    let block = block_of(p.operands, p.inner);
    let all = p.columns.next_multiple_of(TILE_COLUMNS);
    let tiles = match p.operands {
        Operands::Single => SINGLE_TILES,
        Operands::Bf16 => BF16_TILES,
    };
    // As many blocks at a time as fit, so that an element is changed while it is near.
    let depth = block * (INNER * COLUMNS / (block * width)).max(1);
    let mut packed = PACKED.take();
    let lines = TILE_ROWS * ROW / LANES;
    let needed = lines
        + match p.right {
            Right::Strided(_) => depth.min(p.inner + LANES) * width / LANES,
            Right::Packed(_) => 0,
        };
    // Kept by the thread and only grown: the factors of one product after the other are packed into the same pages.
    if packed.len() < needed {
        packed.resize(needed, CacheLine([0.0; LANES]));
    }
    let (left, right) = packed.split_at_mut(lines);
    let (left, right) = (
        left.as_mut_ptr().cast::<f32>(),
        right.as_mut_ptr().cast::<f32>(),
    );
    for start in (0..p.inner).step_by(depth) {
        let end = (start + depth).min(p.inner);
        let panel = |panel: usize, at: usize| {
            let column = columns.start + panel * TILE_COLUMNS;
            let count = TILE_COLUMNS.min(columns.end - column);
            let rows = block.min(end - at);
            let packed = match p.right {
                Right::Strided(_) => {
                    right.wrapping_add((at - start) * width + panel * rows * TILE_COLUMNS)
                }
                Right::Packed(right) => right.wrapping_add(at * all + column * rows).cast_mut(),
            };
            (column, count, rows, packed)
        };
        if let Right::Strided(factor) = p.right {
            for at in (start..end).step_by(block) {
                for (column, count, inner, to) in (0..panels).map(|i| panel(i, at)) {
                    // SAFETY: the panel lies inside the factor and, packed, inside `right`.
                    unsafe { pack(factor, (at, column), (inner, count), (to, TILE_COLUMNS)) };
                }
            }
        }
        for row in rows.clone().step_by(TILE_ROWS) {
            let count = TILE_ROWS.min(rows.end - row);
            for at in (start..end).step_by(block) {
                let size = (count, block.min(end - at));
                // SAFETY: the tile's rows lie inside the factor and, packed, inside `left`.
                unsafe {
                    match p.operands {
                        Operands::Single => pack(p.left, (row, at), size, (left, ROW)),
                        Operands::Bf16 => round(p.left, (row, 2 * at), size, left),
                    }
                }
                for (column, columns, inner, right) in (0..panels).map(|i| panel(i, at)) {
                    let tile = Tile {
                        inner,
                        left,
                        right,
                        columns,
                        ..Tile::at(p, row, column, at == 0)
                    };
                    // SAFETY: both factors were packed; the tile's elements lie inside target, base and bias.
                    unsafe { tiles[count - 1](&tile) };
                }
            }
        }
    }
    PACKED.set(packed);
}

/// A tile of the result: `target = scale * left right + bias + base`, with packed factors.
struct Tile {
    inner: usize,
    /// Rows, `ROW` apart.
    left: *const f32,
    /// Rows of `TILE_COLUMNS`.
    right: *const f32,
    scale: f32,
    /// At most `TILE_COLUMNS`.
    columns: usize,
    target: *mut f32,
    stride: usize,
    /// Or null.
    base: *const f32,
    base_stride: usize,
    /// Or null.
    bias: *const f32,
}

impl Tile {
    /// The tile of the product at an element, without its factors. `first` is what starts the sum: bias and base
    /// are added to it, and the sums of later inner blocks to what is there.
    fn at(p: &Product, row: usize, column: usize, first: bool) -> Self {
        let target = p.target.wrapping_add(row * p.stride + column);
        let or_null = |pointer: *const f32, offset: usize| {
            if pointer.is_null() {
                pointer
            } else {
                pointer.wrapping_add(offset)
            }
        };
        let (base, base_stride, bias) = if first {
            let base = or_null(p.base, row * p.base_stride + column);
            (base, p.base_stride, or_null(p.bias, column))
        } else {
            (target.cast_const(), p.stride, std::ptr::null())
        };
        Self {
            inner: 0,
            left: std::ptr::null(),
            right: std::ptr::null(),
            scale: p.scale,
            columns: 0,
            target,
            stride: p.stride,
            base,
            base_stride,
            bias,
        }
    }
}

/// The functions for tiles of 1, 2, .. rows: the number of rows must be known to the compiler for sums to stay in registers.
type Tiles = [unsafe fn(&Tile); TILE_ROWS];

/// Declares `$tiles`, whose sums grow by `$add_product(sum, left, right)`. Code for these features is inlined nowhere else.
macro_rules! tiles {
    ($tiles:ident, $module:ident, $features:literal, $add_product:path) => {
        const $tiles: Tiles = {
            use $module::tile;
            [
                tile::<1>, tile::<2>, tile::<3>, tile::<4>, tile::<5>, tile::<6>, tile::<7>,
                tile::<8>, tile::<9>, tile::<10>, tile::<11>, tile::<12>, tile::<13>, tile::<14>,
            ]
        };

        mod $module {
            use super::*;
            use $add_product as add_product;

            /// A tile of `R` rows.
            ///
            /// # Safety
            ///
            /// The processor must have the features, and the tile's elements must lie inside what its pointers point to.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn tile<const R: usize>(t: &Tile) {
                let mut sums = [[_mm512_setzero_ps(); 2]; R];
                let early = t.inner.saturating_sub(LATE);
                // SAFETY: both packed factors have `inner` columns or rows.
                unsafe { add_products(&mut sums, t, 0..early) };
                for row in 0..R {
                    for at in [0, t.columns - 1] {
                        let element = t.target.wrapping_add(row * t.stride + at);
                        _mm_prefetch(element.cast(), _MM_HINT_T0);
                    }
                }
                // SAFETY: as above.
                unsafe { add_products(&mut sums, t, early..t.inner) };
                let scale = _mm512_set1_ps(t.scale);
                for half in 0..2 {
                    let (at, mask) = (half * LANES, lanes(t.columns.saturating_sub(half * LANES)));
                    // SAFETY: lanes outside the columns are neither read nor written.
                    unsafe {
                        let bias = if t.bias.is_null() {
                            _mm512_setzero_ps()
                        } else {
                            _mm512_maskz_loadu_ps(mask, t.bias.wrapping_add(at))
                        };
                        for (row, sum) in sums.iter().enumerate() {
                            let sum = _mm512_fmadd_ps(scale, sum[half], bias);
                            let sum = if t.base.is_null() {
                                sum
                            } else {
                                let base = t.base.wrapping_add(row * t.base_stride + at);
                                _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, base))
                            };
                            let target = t.target.wrapping_add(row * t.stride + at);
                            _mm512_mask_storeu_ps(target, mask, sum);
                        }
                    }
                }
            }

            /// Adds the products of the left factor's columns in `inner` with the right one's rows.
            ///
            /// # Safety
            ///
            /// The processor must have the features, and the tile must have those columns and rows.
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn add_products<const R: usize>(
                sums: &mut [[__m512; 2]; R],
                t: &Tile,
                inner: Range<usize>,
            ) {
                let mut right = t.right.wrapping_add(inner.start * TILE_COLUMNS);
                for k in inner {
                    // SAFETY: the caller's promise; a prefetch may be given any address.
                    unsafe {
                        let b = [_mm512_load_ps(right), _mm512_load_ps(right.add(LANES))];
                        let ahead = right.wrapping_add(PREFETCHED * TILE_COLUMNS);
                        _mm_prefetch(ahead.cast(), _MM_HINT_T0);
                        _mm_prefetch(ahead.wrapping_add(LANES).cast(), _MM_HINT_T0);
                        for (row, sum) in sums.iter_mut().enumerate() {
                            let a = _mm512_set1_ps(*t.left.add(row * ROW + k));
                            sum[0] = add_product(sum[0], a, b[0]);
                            sum[1] = add_product(sum[1], a, b[1]);
                        }
                    }
                    right = right.wrapping_add(TILE_COLUMNS);
                }
            }
        }
    };
}

/// Adds the products of 16 numbers each.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_single(sum: __m512, a: __m512, b: __m512) -> __m512 {
    _mm512_fmadd_ps(a, b, sum)
}

/// Adds the products of 16 pairs of bf16 each.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn add_bf16(sum: __m512, a: __m512, b: __m512) -> __m512 {
    // SAFETY: 64 bytes that are read as 32 bf16.
    unsafe {
        _mm512_dpbf16_ps(
            sum,
            transmute::<__m512, __m512bh>(a),
            transmute::<__m512, __m512bh>(b),
        )
    }
}

tiles!(SINGLE_TILES, single, "avx512f", super::add_single);
tiles!(BF16_TILES, bf16, "avx512f,avx512bf16", super::add_bf16);

//! Products of f32 by the matrix registers for bf16: each number is the sum of three of bf16, exactly, and of the nine products of two such
//! sums the six are added up that f32 would see, the smallest first. (Henry, Tang & Heinecke 2019, doi:10.1109/ARITH.2019.00019, where three
//! of bf16 are as exact as f32. Here an element's sum is rounded more seldom than in a chain of multiply-adds: of numbers of about one size the
//! errors are half as large, and where one product is far larger than all others up to twice as large.)
//!
//! What is not finite gives what is not finite, though not always what f32 gives: infinity may give NaN. Parts below 2^-126 are 0.
//!
//! A row alone takes five times as long as by vectors, since the right factor is split for it; but what it comes to must not depend on how many
//! rows there are.
//!
//! Both factors are split as they are needed, a group of rows and a group of columns that the L2 cache has room for: what is kept of a
//! frozen matrix takes as much memory as for vectors.

use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_or_si512, _mm512_set1_epi32, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_sub_ps,
};
use std::ops::Range;

use super::super::super::tile::Tile;
use super::super::super::{CacheLine, Division, Factor, Product, Right};
use super::super::packing;
use super::super::vectors::{LANES, Vector, load_some, zero};
use super::sums::sum_of_parts;
use super::{COLUMNS, ROWS, SIDE, compute_by, configured, pack_right};
use crate::nn::gemm::tiled::{block_of, places};

/// Numbers of the inner dimension of an instruction: two in each lane, [`LANES`] apart, of both factors.
const STEP: usize = 2 * LANES;
/// Of a number.
const PARTS: usize = 3;
/// Cache lines of a step of a packed factor: of each part two registers.
const LINES: usize = PARTS * 2 * SIDE;
/// Cache lines of the left factor that stay in the L2 cache, which is of 2 MiB, and columns of the right one.
const LEFT_NEAR: usize = 24 * 1024;
const COLUMNS_NEAR: usize = 64;

/// How this kernel divides a product.
pub(in super::super::super) const SPLIT: Division = Division {
    tile_rows: ROWS,
    tile_columns: COLUMNS,
    near: usize::MAX,
    longest: 768,
    step: STEP,
    by_rows: false,
    piece,
    pack_right,
};

/// As the other kernels' `piece`.
unsafe fn piece(p: &Product, rows: Range<usize>, columns: Range<usize>) {
    // SAFETY: the caller's promises.
    unsafe { configured(|packed| groups(p, rows, columns, packed)) }
}

/// Where a thread keeps what it splits.
struct Room {
    left: *mut f32,
    right: *mut f32,
    /// For as many numbers of either factor as a tile has.
    whole: *mut f32,
}

/// Goes through groups of rows and columns.
///
/// # Safety
///
/// As [`piece`], and the registers must be configured.
unsafe fn groups(
    p: &Product,
    rows: Range<usize>,
    columns: Range<usize>,
    packed: &mut Vec<CacheLine>,
) {
    let block = block_of(p.kernel, p.inner);
    let band = block / STEP * LINES;
    let down = (LEFT_NEAR / band).max(1) * ROWS;
    let down = down.min(rows.len().next_multiple_of(ROWS));
    let across = COLUMNS_NEAR.min(columns.len().next_multiple_of(COLUMNS));
    let whole = ROWS * (block + CacheLine::NUMBERS) / CacheLine::NUMBERS;
    let lines = [down / ROWS * band, across / COLUMNS * band, whole];
    let [left, right, whole] = places(packed, lines);
    let room = Room { left, right, whole };
    let stride = band * CacheLine::NUMBERS;
    for at in (0..p.inner).step_by(block) {
        let inner = at..(at + block).min(p.inner);
        for top in rows.clone().step_by(down) {
            let group = top..(top + down).min(rows.end);
            for (band, row) in group.clone().step_by(ROWS).enumerate() {
                let count = ROWS.min(group.end - row);
                // SAFETY: the rows lie inside the factor and, split, inside `left`.
                unsafe { room.split_rows(p.left, (row, count), &inner, band * stride) };
            }
            for first in columns.clone().step_by(across) {
                let near = first..(first + across).min(columns.end);
                for (panel, column) in near.clone().step_by(COLUMNS).enumerate() {
                    let count = COLUMNS.min(near.end - column);
                    // SAFETY: as above, of the right factor.
                    unsafe { room.split_columns(p.right, (column, count), &inner, panel * stride) };
                }
                // SAFETY: both were split; the elements lie inside target, base and bias.
                unsafe { room.tiles(p, &inner, group.clone(), near, stride) };
            }
        }
    }
}

impl Room {
    /// Splits `count` rows of the left factor from `row` on, at most [`ROWS`], to `to` of the left room.
    ///
    /// # Safety
    ///
    /// They must be readable, and there must be room.
    unsafe fn split_rows(
        &self,
        factor: Factor,
        (row, count): (usize, usize),
        inner: &Range<usize>,
        to: usize,
    ) {
        let mut stride = factor.row_stride;
        let mut from = factor.at(row, inner.start);
        // SAFETY: the caller's promises.
        unsafe {
            if factor.column_stride != 1 {
                stride = inner.len().next_multiple_of(CacheLine::NUMBERS);
                let size = (count, inner.len());
                packing::pack(factor, (row, inner.start), size, (self.whole, stride));
                from = self.whole;
            }
            split_rows(
                (from, stride),
                (count, inner.len()),
                self.left.wrapping_add(to),
            );
        }
    }

    /// Splits `count` columns of the right factor from `column` on, at most [`COLUMNS`], to `to` of the right room.
    ///
    /// # Safety
    ///
    /// As [`Self::split_rows`].
    unsafe fn split_columns(
        &self,
        factor: Right,
        (column, count): (usize, usize),
        inner: &Range<usize>,
        to: usize,
    ) {
        let from = match factor {
            Right::Packed(panels) => panels.at(inner.start, column),
            Right::Strided(factor) => {
                let size = (inner.len(), count);
                // SAFETY: the caller's promises.
                unsafe { pack_right(factor, (inner.start, column), size, self.whole) };
                self.whole
            }
            Right::Transpose(panels) => {
                let columns = column..column + count;
                // SAFETY: the caller's promises; a group begins with a panel's first column.
                unsafe { panels.pack_transpose(pack_right, inner.clone(), columns, self.whole) };
                self.whole
            }
        };
        // SAFETY: the caller's promises; panels are whole.
        unsafe { split_columns(from, inner.len(), self.right.wrapping_add(to)) };
    }

    /// The tiles of rows and columns that were split, whose bands and panels are `stride` apart.
    ///
    /// # Safety
    ///
    /// As [`Tile`]'s, whose elements these are.
    unsafe fn tiles(
        &self,
        p: &Product,
        inner: &Range<usize>,
        rows: Range<usize>,
        columns: Range<usize>,
        stride: usize,
    ) {
        for (band, row) in rows.clone().step_by(ROWS).enumerate() {
            let count = ROWS.min(rows.end - row);
            for (panel, column) in columns.clone().step_by(COLUMNS).enumerate() {
                let tile = Tile {
                    inner: inner.len(),
                    left: self.left.wrapping_add(band * stride),
                    right: self.right.wrapping_add(panel * stride),
                    columns: COLUMNS.min(columns.end - column),
                    ..Tile::at(p, row, column, inner.start == 0)
                };
                // SAFETY: the caller's promises.
                unsafe { compute_by(sum_of_parts, &tile, count) };
            }
            if let Some(finish) = p.finish.filter(|_| inner.end == p.inner) {
                // SAFETY: the rows lie inside the target, and this part of them is this thread's.
                unsafe { p.finish(finish, row..row + count, &columns) };
            }
        }
    }
}

/// Splits rows that are `stride` apart; numbers that the last step lacks are zeros.
///
/// # Safety
///
/// The processor must have AVX-512, `rows` of `inner` numbers must be readable, and `to` writable in whole steps.
#[target_feature(enable = "avx512f")]
unsafe fn split_rows(
    (from, stride): (*const f32, usize),
    (rows, inner): (usize, usize),
    to: *mut f32,
) {
    for (step, at) in (0..inner).step_by(STEP).enumerate() {
        let to = to.wrapping_add(step * LINES * CacheLine::NUMBERS);
        let rest = inner - at;
        for row in 0..rows {
            let from = from.wrapping_add(row * stride + at);
            // SAFETY: lanes beyond the numbers are not read; the lines are the step's.
            unsafe {
                let first = load_some(from, rest);
                let second = load_some(from.wrapping_add(LANES), rest.saturating_sub(LANES));
                store_parts(first, second, to.wrapping_add(row * LANES));
            }
        }
    }
}

/// Splits a panel of [`COLUMNS`] columns; rows that the last step lacks are zeros.
///
/// # Safety
///
/// As [`split_rows`], of `inner` rows of the panel.
#[target_feature(enable = "avx512f")]
unsafe fn split_columns(from: *const f32, inner: usize, to: *mut f32) {
    for (step, at) in (0..inner).step_by(STEP).enumerate() {
        let to = to.wrapping_add(step * LINES * CacheLine::NUMBERS);
        for lane in 0..LANES {
            for side in 0..2 {
                let part = |row: usize| match row < inner {
                    // SAFETY: the panel has the row, whole.
                    true => unsafe {
                        load_some(from.wrapping_add(row * COLUMNS + side * LANES), LANES)
                    },
                    false => zero(),
                };
                let (first, second) = (part(at + lane), part(at + LANES + lane));
                // SAFETY: the lines are the step's.
                unsafe {
                    store_parts(first, second, to.wrapping_add((side * SIDE + lane) * LANES));
                }
            }
        }
    }
}

/// Writes the parts of two numbers in each lane as pairs of bf16, each part two registers after the one before.
///
/// The first part is a number's sign, exponent and upper bits; of what is left the second one is rounded, so that it can have either sign and
/// what is left then fits in the third.
///
/// # Safety
///
/// The processor must have AVX-512, and the three lines must be writable.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn store_parts(first: Vector, second: Vector, to: *mut f32) {
    let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
    let half = _mm512_set1_epi32(0x8000);
    let pairs = |first: __m512i, second: __m512i| {
        _mm512_or_si512(
            _mm512_srli_epi32::<16>(first),
            _mm512_and_si512(second, upper),
        )
    };
    let upper_of = |x: __m512i| _mm512_castsi512_ps(_mm512_and_si512(x, upper));
    let bits = |x: Vector| _mm512_castps_si512(x);
    let x = [first, second];
    let rest = x.map(|x| _mm512_sub_ps(x, upper_of(bits(x))));
    let rounded = rest.map(|rest| _mm512_add_epi32(bits(rest), half));
    let last = [0, 1].map(|i| bits(_mm512_sub_ps(rest[i], upper_of(rounded[i]))));
    let parts = [
        pairs(bits(first), bits(second)),
        pairs(rounded[0], rounded[1]),
        pairs(last[0], last[1]),
    ];
    for (part, pairs) in parts.into_iter().enumerate() {
        let to = to.wrapping_add(part * 2 * SIDE * LANES);
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.cast(), pairs) };
    }
}

#[cfg(test)]
mod tests {
    use super::{LANES, SPLIT, STEP};
    use crate::nn::gemm::tests::numbers;
    use crate::nn::gemm::{Matrix, Plus, matmul_plus_within};
    use crate::nn::instructions::Instructions;

    /// Three numbers of bf16 whose sum is `x`, the largest one first.
    fn parts(x: f32) -> [f32; 3] {
        let upper = |bits: u32| f32::from_bits(bits & 0xffff_0000);
        let first = upper(x.to_bits());
        let rest = x - first;
        let second = upper(rest.to_bits() + 0x8000);
        [first, second, rest - second]
    }

    /// Element (i, j) of a product of rows and columns, as matrix registers add it up from parts.
    fn by_parts((a, b): (&[f32], &[f32]), inner: usize, at: (usize, usize)) -> f32 {
        let block = inner
            .div_ceil(inner.div_ceil(SPLIT.longest))
            .next_multiple_of(STEP);
        let (a, b) = (&a[at.0 * inner..][..inner], &b[at.1 * inner..][..inner]);
        let blocks = (0..inner).step_by(block).map(|start| {
            let end = inner.min(start + block);
            let steps = (start..end).step_by(STEP).flat_map(|first| {
                [(2, 0), (1, 0), (1, 1), (0, 1), (0, 2), (0, 0)].map(|(left, right)| {
                    let chain = |from: usize| {
                        (from.min(end)..(from + LANES).min(end)).fold(0.0, |sum, k| {
                            parts(a[k])[left].mul_add(parts(b[k])[right], sum)
                        })
                    };
                    chain(first) + chain(first + LANES)
                })
            });
            steps.fold(0.0, |sum, step| sum + step)
        });
        blocks.fold(0.0, |sum, block| sum + block)
    }

    /// What matrix registers give for rows and columns, or nothing on other machines.
    fn by_matrix_registers(
        (a, b): (&[f32], &[f32]),
        (rows, inner, columns): (usize, usize, usize),
    ) -> Option<Vec<f32>> {
        if Instructions::available() < Instructions::AmxBf16 {
            eprintln!("not tested: this machine has no matrix registers for bf16");
            return None;
        }
        let left = Matrix::new(a, rows, inner, inner);
        let right = Matrix::new(b, columns, inner, inner).t();
        let plus = Plus {
            row: None,
            all: None,
        };
        let most = Instructions::AmxBf16;
        Some(matmul_plus_within(most, 1.0, left, right, plus))
    }

    #[test]
    fn numbers_are_split_for_matrix_registers_and_their_products_added_in_order() {
        for (rows, inner, columns) in [(1, 64, 64), (77, 64, 77), (40, 790, 145), (420, 769, 130)] {
            let (a, b) = (numbers(rows * inner, 1), numbers(inner * columns, 2));
            let Some(found) = by_matrix_registers((&a, &b), (rows, inner, columns)) else {
                return;
            };
            for (index, &found) in found.iter().enumerate() {
                let at = (index / columns, index % columns);
                let want = by_parts((&a, &b), inner, at);
                assert_eq!(found, want, "{rows}x{inner}x{columns} at {at:?}");
            }
        }
    }

    /// Of numbers of one size more exact, and of sizes from 2^-40 to 2^40 nearly as exact.
    #[test]
    fn matrix_registers_are_as_exact_as_vectors() {
        let (rows, columns) = (32, 128);
        let spread = |x: &mut f32| *x *= 2f32.powi((x.to_bits() % 81).cast_signed() - 40);
        for (inner, sizes_differ) in [(128, false), (768, false), (3072, false), (768, true)] {
            let (mut a, mut b) = (numbers(rows * inner, 1), numbers(inner * columns, 2));
            if sizes_differ {
                a.iter_mut().chain(&mut b).for_each(spread);
            }
            let Some(found) = by_matrix_registers((&a, &b), (rows, inner, columns)) else {
                return;
            };
            let left = Matrix::new(&a, rows, inner, inner);
            let right = Matrix::new(&b, columns, inner, inner).t();
            let plus = Plus {
                row: None,
                all: None,
            };
            let vectors = matmul_plus_within(Instructions::Avx512, 1.0, left, right, plus);
            let error = |found: &[f32]| -> f64 {
                let each = found.iter().enumerate().map(|(index, &found)| {
                    let at = (index / columns, index % columns);
                    let products = || {
                        (0..inner).map(|k| {
                            f64::from(a[at.0 * inner + k]) * f64::from(b[at.1 * inner + k])
                        })
                    };
                    let size: f64 = products().map(f64::abs).sum();
                    ((f64::from(found) - products().sum::<f64>()) / size).powi(2)
                });
                (each.sum::<f64>() / found.len() as f64).sqrt()
            };
            let (found, vectors) = (error(&found), error(&vectors));
            // Where few products are far larger than all others, what is left out of them weighs more.
            let most = if sizes_differ { 2.0 } else { 0.75 };
            assert!(
                found <= most * vectors,
                "{inner}: {found:e}, vectors {vectors:e}"
            );
        }
    }
}

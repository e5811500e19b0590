//! Products of f32 activations with bf16 weights: both factors bf16, sums f32, the result f32. The left factor is rounded
//! on the way.
//!
//! An element is a chain of additions, each rounded to f32, in the order of the processor's instruction for bf16 (`tiled.rs`).
//! Without the instruction both factors are widened to f32 and multiplied in that order: products of bf16 are exact in f32, so
//! with AVX-512 or AVX2 the result is the same bit for bit (weights below 2^-126 apart, which the instruction takes for 0).
//! Matrix registers add up in another order (`tiled/avx512/amx.rs`), and so does the `gemm` crate, on other processors: their results differ
//! from these in the last bits, as those of a GPU do.

use half::bf16;
use rayon::prelude::*;

use super::{ALONE, Matrix, Plus, Shared, Write, check_sum, matmul_with_row};
use crate::nn::cpu::rows_per_piece;
use crate::nn::instructions::Instructions;

/// Columns of the result whose weights are widened at a time: more than `gemm`'s shortcut for narrow products takes, and few
/// enough for the cache.
const WIDENED_COLUMNS: usize = 128;

/// `a b + plus` as rows, by all threads, with `a` rounded to bf16.
pub(crate) fn matmul_plus_bf16(
    a: Matrix<'_, f32>,
    b: Matrix<'_, bf16>,
    plus: Plus<'_, f32>,
) -> Vec<f32> {
    within(Instructions::used(), a, b, plus)
}

/// `matmul_plus_bf16` by nothing beyond these instructions.
pub(super) fn within(
    most: Instructions,
    a: Matrix<'_, f32>,
    b: Matrix<'_, bf16>,
    plus: Plus<'_, f32>,
) -> Vec<f32> {
    check_sum([a.rows, a.columns], [b.rows, b.columns], plus);
    #[cfg(target_arch = "x86_64")]
    if let Some(out) = by_kernel(most, a, b, plus) {
        return out;
    }
    by_widening(most, a, b, plus)
}

/// The product by our kernel for nothing beyond these instructions, if it has one for these factors.
#[cfg(target_arch = "x86_64")]
fn by_kernel(
    most: Instructions,
    a: Matrix<'_, f32>,
    b: Matrix<'_, bf16>,
    plus: Plus<'_, f32>,
) -> Option<Vec<f32>> {
    use super::tiled::{Factor, Kernel, Operands, Product, Right};
    if a.column_stride != 1 {
        return None;
    }
    let kernel = Kernel::best(Operands::Bf16, (a.columns, b.columns), most)?;
    let right = Right::Strided(pairs(&b)?);
    let left = Factor {
        data: a.data.as_ptr(),
        row_stride: a.row_stride,
        column_stride: 1,
    };
    let shape = [a.rows, a.columns / 2, b.columns];
    let product = Product::new(kernel, shape, left, right);
    // SAFETY: the views were checked against their slices when made, and the shapes agree. Pairs are read without regard to alignment.
    Some(unsafe { super::made(product, plus) })
}

/// The right factor as pairs along the inner dimension, where they lie side by side, in rows of pairs.
#[cfg(target_arch = "x86_64")]
pub(super) fn pairs(b: &Matrix<'_, bf16>) -> Option<super::tiled::Factor> {
    let inner = b.rows;
    let in_pairs = b.row_stride == 1
        && inner.is_multiple_of(2)
        && (b.column_stride.is_multiple_of(2) || b.columns == 1);
    (inner > 0 && in_pairs).then(|| super::tiled::Factor {
        data: b.data.as_ptr().cast(),
        row_stride: 1,
        column_stride: b.column_stride / 2,
    })
}

/// The product of the widened factors.
fn by_widening(
    most: Instructions,
    a: Matrix<'_, f32>,
    b: Matrix<'_, bf16>,
    plus: Plus<'_, f32>,
) -> Vec<f32> {
    // Matrix registers would take widened numbers apart again.
    let most = most.min(Instructions::Avx512);
    let (rows, columns, inner) = (a.rows, b.columns, a.columns);
    let (mut out, write) = match plus.all {
        Some(all) => (all.to_vec(), Write::Add),
        None => (vec![0.0; rows * columns], Write::Replace),
    };
    if out.is_empty() {
        return out;
    }
    let mut rounded = vec![0.0; rows * inner];
    let together = rows_per_piece(inner);
    rounded
        .par_chunks_mut((inner * together).max(1))
        .enumerate()
        .for_each(|(piece, out)| {
            for (i, out) in out.chunks_exact_mut(inner.max(1)).enumerate() {
                for (k, x) in out.iter_mut().enumerate() {
                    *x = as_bf16(a.at(piece * together + i, swapped(k, inner)));
                }
            }
        });
    let left = Matrix::new(&rounded, rows, inner, inner);
    let target = Shared::new(&mut out);
    (0..columns.div_ceil(WIDENED_COLUMNS))
        .into_par_iter()
        .for_each(|piece| {
            let start = piece * WIDENED_COLUMNS;
            let width = WIDENED_COLUMNS.min(columns - start);
            let mut wide = Vec::with_capacity(width * inner);
            for column in start..start + width {
                wide.extend((0..inner).map(|k| b.at(swapped(k, inner), column).to_f32()));
            }
            let right = Matrix::new(&wide, width, inner, inner).t();
            // SAFETY: pieces are different columns.
            let mut target = unsafe { target.matrix(start, rows, width, columns) };
            let row = plus.row.map(|row| &row[start..start + width]);
            let target = &mut target;
            matmul_with_row(most, target, write, 1.0, (left, right), row, ALONE);
        });
    out
}

/// The place that the instruction takes at step `k`: of each pair the second number, then the first.
fn swapped(k: usize, inner: usize) -> usize {
    if (k ^ 1) < inner { k ^ 1 } else { k }
}

/// A number rounded to bf16 as processors' instructions do it: numbers below the smallest normal one are 0 to them.
#[inline(always)]
pub(super) fn as_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let bits = if magnitude > 0x7f80_0000 {
        // The first bit of its fraction is set, or what is not a number could become infinite.
        bits | 0x0040_0000
    } else if magnitude < 0x0080_0000 {
        bits & 0x8000_0000
    } else {
        bits + 0x7fff + (bits >> 16 & 1)
    };
    f32::from_bits(bits & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use super::super::tests::numbers;
    use super::*;
    use std::iter::StepBy;
    use std::ops::Range;

    fn halves(count: usize, salt: u32) -> Vec<bf16> {
        numbers(count, salt)
            .into_iter()
            .map(bf16::from_f32)
            .collect()
    }

    const NOTHING: Plus<'_, f32> = Plus {
        row: None,
        all: None,
    };

    type Product = fn(Matrix<'_, f32>, Matrix<'_, bf16>, Plus<'_, f32>) -> Vec<f32>;

    /// What serves this machine, machines with fewer instructions, and factors whose pairs are apart.
    const PRODUCTS: [Product; 6] = [
        matmul_plus_bf16,
        |a, b, plus| within(Instructions::Avx512Bf16, a, b, plus),
        |a, b, plus| within(Instructions::Avx512, a, b, plus),
        |a, b, plus| within(Instructions::Avx2, a, b, plus),
        |a, b, plus| by_widening(Instructions::used(), a, b, plus),
        |a, b, plus| by_widening(Instructions::Base, a, b, plus),
    ];

    /// Element (i, j) of the product of rows, as matrix registers add it up.
    fn by_registers((a, b): (&[f32], &[bf16]), inner: usize, at: (usize, usize)) -> f32 {
        const STEP: usize = 32;
        const BLOCK: usize = 2048;
        let block = inner.div_ceil(inner.div_ceil(BLOCK)).next_multiple_of(STEP);
        let chain = |ks: StepBy<Range<usize>>| {
            ks.fold(0.0, |sum, k| {
                let b = b[at.1 * inner + k].to_f32();
                as_bf16(a[at.0 * inner + k]).mul_add(b, sum)
            })
        };
        let blocks = (0..inner).step_by(block).map(|start| {
            let end = inner.min(start + block);
            let steps = (start..end).step_by(STEP).map(|first| {
                let end = end.min(first + STEP);
                chain((first..end).step_by(2)) + chain((first + 1..end).step_by(2))
            });
            steps.fold(0.0, |sum, step| sum + step)
        });
        blocks.fold(0.0, |sum, block| sum + block)
    }

    const SHAPES: [(usize, usize, usize); 8] = [
        (1, 1, 1),
        (3, 6, 7),
        (1, 700, 64),
        (65, 1030, 33),
        (7, 2, 300),
        (15, 386, 16),
        (29, 800, 257),
        (230, 16, 1300),
    ];

    #[test]
    fn a_product_is_that_of_rounded_factors_on_every_machine() {
        for (rows, inner, columns) in SHAPES {
            let (a, b) = (numbers(rows * inner, 1), halves(inner * columns, 2));
            let (row, all) = (numbers(columns, 3), numbers(rows * columns, 4));
            let left = Matrix::new(&a, rows, inner, inner);
            let right = Matrix::new(&b, columns, inner, inner).t();
            for (row, all) in [
                (None, None),
                (Some(&*row), None),
                (Some(&*row), Some(&*all)),
            ] {
                let plus = || Plus { row, all };
                let found = PRODUCTS.map(|product| product(left, right, plus()));
                for (index, &found) in found.iter().flat_map(|f| f.iter().enumerate()) {
                    let (i, j) = (index / columns, index % columns);
                    let product = |k: usize| {
                        f64::from(bf16::from_f32(a[i * inner + k])) * f64::from(b[j * inner + k])
                    };
                    let want = (0..inner).map(product).sum::<f64>()
                        + row.map_or(0.0, |row| f64::from(row[j]))
                        + all.map_or(0.0, |all| f64::from(all[index]));
                    assert!((f64::from(found) - want).abs() < 1e-4, "{found} {want}");
                }
                // All but the `gemm` crate's.
                if Instructions::available() >= Instructions::Avx2 {
                    for other in &found[2..5] {
                        assert!(found[1] == *other, "{rows}x{inner}x{columns}");
                    }
                }
            }
        }
    }

    #[test]
    fn matrix_registers_add_up_in_the_order_that_is_documented() {
        if Instructions::available() < Instructions::AmxBf16 {
            eprintln!("not tested: this machine has no matrix registers for bf16");
            return;
        }
        for (rows, inner, columns) in SHAPES.into_iter().chain([(33, 2080, 40), (300, 2048, 230)]) {
            let (a, b) = (numbers(rows * inner, 1), halves(inner * columns, 2));
            let left = Matrix::new(&a, rows, inner, inner);
            let right = Matrix::new(&b, columns, inner, inner).t();
            let Some(found) = by_kernel(Instructions::AmxBf16, left, right, NOTHING) else {
                // An odd number has no pairs.
                assert!(inner % 2 == 1);
                continue;
            };
            for (index, &found) in found.iter().enumerate() {
                let at = (index / columns, index % columns);
                let want = by_registers((&a, &b), inner, at);
                assert_eq!(found, want, "{rows}x{inner}x{columns} at {at:?}");
            }
        }
    }

    #[test]
    fn a_row_depends_neither_on_the_others_nor_on_threads() {
        for (inner, columns) in [(1, 3), (2, 64), (3, 65), (384, 129), (770, 321), (4096, 70)] {
            let most = 97;
            let (a, b) = (numbers(most * inner, 3), halves(inner * columns, 4));
            let right = Matrix::new(&b, columns, inner, inner).t();
            for product in PRODUCTS {
                let with = |rows: usize, threads| {
                    let pool = rayon::ThreadPoolBuilder::new()
                        .num_threads(threads)
                        .build()
                        .unwrap();
                    let left = Matrix::new(&a[..rows * inner], rows, inner, inner);
                    pool.install(|| product(left, right, NOTHING))
                };
                let all = with(most, 1);
                for (rows, threads) in [(1, 1), (13, 2), (15, 3), (64, 5), (most, 4)] {
                    assert!(
                        with(rows, threads) == all[..rows * columns],
                        "{rows} rows by {threads} threads, inner {inner}, {columns} columns"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for product in PRODUCTS {
            for (x, is_right) in [
                (f32::NAN, f32::is_nan as fn(f32) -> bool),
                (f32::from_bits(0x7fff_ffff), f32::is_nan),
                (f32::INFINITY, f32::is_infinite),
                (f32::MAX, f32::is_infinite),
            ] {
                let (a, b) = ([1.0, x, 0.5, 2.0], [bf16::ONE; 4]);
                let (left, right) = (Matrix::new(&a, 1, 4, 4), Matrix::new(&b, 1, 4, 4).t());
                let found = product(left, right, NOTHING);
                assert!(is_right(found[0]), "{x} gave {}", found[0]);
            }
        }
    }

    #[test]
    fn nothing_and_strides_that_split_pairs_are_served() {
        let none: [f32; 0] = [];
        let plus = Plus {
            row: Some(&[1.0, 2.0][..]),
            all: None,
        };
        let (a, b) = (Matrix::new(&none, 2, 0, 0), Matrix::new(&[], 2, 0, 0).t());
        assert_eq!(matmul_plus_bf16(a, b, plus), [1.0, 2.0, 1.0, 2.0]);
        // Rows that are an odd number apart, and a right factor that is not transposed.
        let (a, b) = (numbers(12, 1), halves(15, 2));
        let left = Matrix::new(&a, 3, 4, 4);
        let apart = matmul_plus_bf16(left, Matrix::new(&b, 3, 4, 5).t(), NOTHING);
        let turned: Vec<bf16> = (0..12).map(|i| b[i % 3 * 5 + i / 3]).collect();
        assert_eq!(
            apart,
            matmul_plus_bf16(left, Matrix::new(&turned, 4, 3, 3), NOTHING)
        );
    }
}

//! A right factor that many products have, packed once.

use half::bf16;

use super::tiled::{self, CacheLine, Factor, Kernel, Operands, Product, Right};
use super::{Matrix, Plus, bf16 as halves, check_sum, made};
use crate::nn::instructions::Instructions;

/// A right factor [inner, columns] in the order in which this processor's products read it: the same results, bit for bit, as of the
/// matrix that it was made of, without packing it again.
pub(crate) struct Prepacked {
    kernel: Kernel,
    inner: usize,
    columns: usize,
    panels: Vec<CacheLine>,
}

impl Prepacked {
    /// Of a matrix of f32; None if this processor's products do not pack.
    pub(crate) fn of_f32(matrix: Matrix<'_, f32>) -> Option<Self> {
        Self::of_f32_within(Instructions::used(), matrix)
    }

    fn of_f32_within(most: Instructions, matrix: Matrix<'_, f32>) -> Option<Self> {
        let kernel = Kernel::best(Operands::Single, most)?;
        let right = Factor {
            data: matrix.data.as_ptr(),
            row_stride: matrix.row_stride,
            column_stride: matrix.column_stride,
        };
        (matrix.rows > 0).then(|| Self::pack(kernel, right, matrix.rows, matrix.columns))
    }

    /// Of a matrix of bf16; None if this processor's products do not pack, or its pairs do not lie side by side.
    pub(crate) fn of_bf16(matrix: Matrix<'_, bf16>) -> Option<Self> {
        Self::of_bf16_within(Instructions::used(), matrix)
    }

    fn of_bf16_within(most: Instructions, matrix: Matrix<'_, bf16>) -> Option<Self> {
        let kernel = Kernel::best(Operands::Bf16, most)?;
        let right = halves::pairs(&matrix)?;
        let pairs = matrix.rows / 2;
        Some(Self::pack(kernel, right, pairs, matrix.columns))
    }

    /// `inner` counts pairs where the factor does.
    fn pack(kernel: Kernel, right: Factor, inner: usize, columns: usize) -> Self {
        Self {
            kernel,
            inner,
            columns,
            // SAFETY: the view was checked against its slice when made.
            panels: unsafe { tiled::panels(kernel, right, (inner, columns)) },
        }
    }

    /// `a b + plus` as rows, by all threads; for a matrix of bf16 `a` is rounded.
    pub(crate) fn product(&self, a: Matrix<'_, f32>, plus: Plus<'_, f32>) -> Vec<f32> {
        let inner = match self.kernel.operands() {
            Operands::Single => self.inner,
            Operands::Bf16 => 2 * self.inner,
        };
        check_sum([a.rows, a.columns], [inner, self.columns], plus);
        assert!(a.column_stride == 1, "rows that do not lie in order");
        let left = Factor {
            data: a.data.as_ptr(),
            row_stride: a.row_stride,
            column_stride: 1,
        };
        let shape = [a.rows, self.inner, self.columns];
        let right = Right::Packed(self.panels.as_ptr().cast());
        let product = Product::new(self.kernel, shape, left, right);
        // SAFETY: the left view was checked against its slice when made, and the panels are those of a matrix of this shape.
        unsafe { made(product, plus) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::numbers;
    use super::super::{matmul_plus, matmul_plus_bf16};
    use super::*;

    #[test]
    fn a_packed_factor_gives_the_same_bits() {
        for (rows, inner, columns) in [
            (1, 2, 1),
            (77, 768, 96),
            (13, 770, 33),
            (15, 386, 16),
            (29, 800, 700),
            (230, 16, 1300),
        ] {
            let (a, b) = (numbers(rows * inner, 1), numbers(inner * columns, 2));
            let half: Vec<bf16> = b.iter().map(|&x| bf16::from_f32(x)).collect();
            let (row, all) = (numbers(columns, 3), numbers(rows * columns, 4));
            let left = Matrix::new(&a, rows, inner, inner);
            let single = Matrix::new(&b, columns, inner, inner).t();
            let turned = Matrix::new(&b, inner, columns, columns);
            let half = Matrix::new(&half, columns, inner, inner).t();
            let plus = || Plus {
                row: Some(&*row),
                all: Some(&*all),
            };
            for most in [
                Instructions::Avx2,
                Instructions::Avx512,
                Instructions::Avx512Bf16,
            ] {
                for matrix in [single, turned] {
                    let Some(packed) = Prepacked::of_f32_within(most, matrix) else {
                        continue;
                    };
                    let found = packed.product(left, plus());
                    assert!(found == matmul_plus(1.0, left, matrix, plus()), "{inner}");
                }
                if let Some(packed) = Prepacked::of_bf16_within(most, half) {
                    let found = packed.product(left, plus());
                    assert!(found == matmul_plus_bf16(left, half, plus()), "{inner}");
                }
            }
        }
    }
}

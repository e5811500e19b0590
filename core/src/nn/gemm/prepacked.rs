//! A right factor that many products have, packed once.

use std::mem::MaybeUninit;

use half::bf16;

pub(crate) use super::tiled::Finish;
use super::tiled::{
    self, CacheLine, Factor, Kernel, Operands, Panels, Product, Right, Rounding, SIDE_OF_SQUARE,
};
use super::{ALL, Matrix, MatrixMut, Plus, bf16 as halves, check_sum, made, threads_for};
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
        let kernel = Kernel::best(Operands::Single, (matrix.rows, matrix.columns), most)?;
        let right = Factor {
            data: matrix.data.as_ptr(),
            row_stride: matrix.row_stride,
            column_stride: matrix.column_stride,
        };
        let any = matrix.rows > 0 && matrix.columns > 0;
        any.then(|| Self::pack(kernel, right, matrix.rows, matrix.columns))
    }

    /// Of a matrix of bf16; None if this processor's products do not pack, or its pairs do not lie side by side.
    pub(crate) fn of_bf16(matrix: Matrix<'_, bf16>) -> Option<Self> {
        Self::of_bf16_within(Instructions::used(), matrix)
    }

    fn of_bf16_within(most: Instructions, matrix: Matrix<'_, bf16>) -> Option<Self> {
        let kernel = Kernel::best(Operands::Bf16, (matrix.rows, matrix.columns), most)?;
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

    fn panels(&self) -> Panels {
        Panels::new(self.kernel, &self.panels, (self.inner, self.columns))
    }

    /// `a b + plus` as rows, finished, by all threads; for a matrix of bf16 `a` is rounded.
    pub(crate) fn product(
        &self,
        a: Matrix<'_, f32>,
        plus: Plus<'_, f32>,
        finish: Option<Finish<'_>>,
    ) -> Vec<f32> {
        let inner = match self.kernel.operands() {
            Operands::Single => self.inner,
            Operands::Bf16 => 2 * self.inner,
        };
        check_sum([a.rows, a.columns], [inner, self.columns], plus);
        let shape = [a.rows, self.inner, self.columns];
        let beside = finish.map_or(0, |finish| finish.beside.len());
        assert!(
            beside == 0 || beside == a.rows * self.columns,
            "{beside} numbers beside {}x{}",
            a.rows,
            self.columns
        );
        let product = Product {
            finish,
            ..self.times(a, shape, Right::Packed(self.panels()))
        };
        // SAFETY: the left view was checked against its slice when made, and the panels are those of a matrix of this shape.
        unsafe { made(product, plus) }
    }

    /// Whether [`Self::product_of_rounded`] can be had.
    pub(crate) fn takes_rounded(&self) -> bool {
        self.kernel.rounds()
    }

    /// `edit(a b + row)` as rows rounded to bf16, by all threads; what is edited stands beside `a gate`, if there is a gate, which has
    /// the shape of `b`. None if the processor's products cannot.
    pub(crate) fn rounded(
        &self,
        a: Matrix<'_, f32>,
        row: Option<&[f32]>,
        gate: Option<&Self>,
        edit: &(dyn Fn(&mut [f32], &[f32]) + Sync),
    ) -> Option<Rounded> {
        let of = |b: &Self| (b.kernel, b.inner, b.columns);
        let fits = gate.is_none_or(|gate| of(gate) == of(self));
        if !(self.kernel.rounds() && self.panels().are_one_block() && fits) {
            return None;
        }
        let plus = Plus { row, all: None };
        check_sum([a.rows, a.columns], [2 * self.inner, self.columns], plus);
        let mut rounded = Rounded::with_room(a.rows, self.columns);
        let shape = [a.rows, self.inner, self.columns];
        let product = Product {
            bias: row.map_or(std::ptr::null(), <[f32]>::as_ptr),
            target: rounded.lines.as_mut_ptr().cast(),
            stride: rounded.stride(),
            rounding: Some(Rounding {
                edit,
                gate: gate.map(Self::panels),
            }),
            ..self.times(a, shape, Right::Packed(self.panels()))
        };
        // SAFETY: the left view was checked against its slice when made, the panels are those of matrices of this shape, and there is room
        // for whole squares.
        unsafe { tiled::run(&product, threads_for(&product, ALL)) };
        Some(rounded)
    }

    /// `a b + plus` as rows, by all threads.
    pub(crate) fn product_of_rounded(&self, a: &Rounded, plus: Plus<'_, f32>) -> Vec<f32> {
        check_sum([a.rows, a.columns], [2 * self.inner, self.columns], plus);
        assert!(self.takes_rounded(), "a product of what was rounded");
        let left = Factor {
            data: a.lines.as_ptr().cast(),
            row_stride: a.stride(),
            column_stride: 1,
        };
        let shape = [a.rows, self.inner, self.columns];
        let right = Right::Packed(self.panels());
        let product = Product {
            is_rounded: true,
            ..Product::new(self.kernel, shape, left, right)
        };
        // SAFETY: `a` has these rows, and is filled up as the kernel wants it; a kernel that made it is this one.
        unsafe { made(product, plus) }
    }

    /// `a b^T` as rows, by all threads, of a matrix of f32.
    pub(crate) fn product_with_transpose(&self, a: Matrix<'_, f32>) -> Vec<f32> {
        let plus = Plus {
            row: None,
            all: None,
        };
        // SAFETY: as in `product`.
        unsafe { made(self.times_transpose(a), plus) }
    }

    /// `target += a b^T`, by all threads, of a matrix of f32.
    pub(crate) fn add_product_with_transpose(
        &self,
        target: &mut MatrixMut<'_, f32>,
        a: Matrix<'_, f32>,
    ) {
        let product = self.times_transpose(a);
        let (rows, columns) = (product.rows, product.columns);
        assert!(
            target.rows == rows && target.columns == columns,
            "{rows}x{columns} added to {}x{}",
            target.rows,
            target.columns
        );
        let product = Product {
            base: target.data,
            base_stride: target.row_stride,
            target: target.data,
            stride: target.row_stride,
            ..product
        };
        // SAFETY: as in `product`; the target was checked when made and is borrowed mutably, so it overlaps nothing.
        unsafe { tiled::run(&product, threads_for(&product, ALL)) };
    }

    fn times_transpose(&self, a: Matrix<'_, f32>) -> Product<'_> {
        assert!(
            self.kernel.operands() == Operands::Single && a.columns == self.columns,
            "{}x{} times the transpose of {}x{}",
            a.rows,
            a.columns,
            self.inner,
            self.columns
        );
        let shape = [a.rows, self.columns, self.inner];
        self.times(a, shape, Right::Transpose(self.panels()))
    }

    /// The product without a target.
    fn times(&self, a: Matrix<'_, f32>, shape: [usize; 3], right: Right) -> Product<'_> {
        assert!(a.column_stride == 1, "rows that do not lie in order");
        let left = Factor {
            data: a.data.as_ptr(),
            row_stride: a.row_stride,
            column_stride: 1,
        };
        Product::new(self.kernel, shape, left, right)
    }

    /// The matrix's transpose, [columns, inner], as rows, if it is one of f32.
    pub(crate) fn transpose(&self) -> Option<Vec<f32>> {
        // SAFETY: they are borrowed with `self`.
        (self.kernel.operands() == Operands::Single).then(|| unsafe { self.panels().transpose() })
    }
}

/// Rows of bf16 in the squares that the kernel which makes and reads them has for a left factor, filled up with zeros.
pub(crate) struct Rounded {
    rows: usize,
    columns: usize,
    lines: Vec<MaybeUninit<CacheLine>>,
}

impl Rounded {
    /// Squares that nobody has written yet.
    fn with_room(rows: usize, columns: usize) -> Self {
        let mut new = Self {
            rows,
            columns,
            lines: Vec::new(),
        };
        let all = rows.div_ceil(SIDE_OF_SQUARE) * new.lines_of_band();
        new.lines.resize_with(all, MaybeUninit::uninit);
        new
    }

    /// Of the squares that have the same rows: each row of a square is a line.
    fn lines_of_band(&self) -> usize {
        self.columns.div_ceil(SIDE_OF_SQUARE) * SIDE_OF_SQUARE
    }

    /// From the squares of some rows to those of the rows below, in pairs.
    fn stride(&self) -> usize {
        self.lines_of_band() * CacheLine::NUMBERS
    }
}

#[cfg(test)]
mod tests {
    use super::super::matmul_plus_within;
    use super::super::tests::numbers;
    use super::*;

    /// That each element is finished once, when its sum is complete, with what is beside it.
    fn finished(
        packed: &Prepacked,
        (left, plus): (Matrix<'_, f32>, Plus<'_, f32>),
        found: &[f32],
        beside: &[f32],
    ) {
        let with = |beside| Finish {
            edit: &|x: &mut [f32], beside: &[f32]| {
                for (i, x) in x.iter_mut().enumerate() {
                    *x = x.mul_add(3.0, beside.get(i).map_or(1.0, |y| y * 7.0));
                }
            },
            beside,
        };
        for beside in [&[], beside] {
            let want: Vec<f32> = found
                .iter()
                .enumerate()
                .map(|(i, x)| x.mul_add(3.0, beside.get(i).map_or(1.0, |y| y * 7.0)))
                .collect();
            assert!(packed.product(left, plus, Some(with(beside))) == want);
        }
    }

    #[test]
    fn a_packed_factor_gives_the_same_bits() {
        for (rows, inner, columns) in [
            (1, 2, 1),
            (77, 768, 96),
            (13, 770, 33),
            (15, 386, 16),
            (29, 800, 700),
            (230, 16, 1300),
            (300, 2048, 230),
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
                Instructions::AmxBf16,
            ] {
                for matrix in [single, turned] {
                    let Some(packed) = Prepacked::of_f32_within(most, matrix) else {
                        continue;
                    };
                    let found = packed.product(left, plus(), None);
                    let whole = matmul_plus_within(most, 1.0, left, matrix, plus());
                    assert!(found == whole, "{inner}");
                    finished(&packed, (left, plus()), &found, &all);
                    let turned = packed.transpose().unwrap();
                    let rows = Matrix::new(&turned, columns, inner, inner);
                    for (i, j) in [(0, 0), (inner - 1, columns - 1), (inner / 2, columns / 3)] {
                        assert!(rows.at(j, i) == matrix.at(i, j), "{inner}: {i}, {j}");
                    }
                }
                if let Some(packed) = Prepacked::of_bf16_within(most, half) {
                    let found = packed.product(left, plus(), None);
                    assert!(found == halves::within(most, left, half, plus()), "{inner}");
                    finished(&packed, (left, plus()), &found, &all);
                }
            }
        }
    }

    #[test]
    fn a_packed_factor_gives_the_same_bits_for_its_transpose() {
        for (rows, inner, columns) in [
            (1, 1, 1),
            (3, 16, 200),
            (154, 768, 96),
            (13, 770, 33),
            (29, 400, 800),
            (230, 1300, 17),
        ] {
            let (a, b) = (numbers(rows * columns, 1), numbers(inner * columns, 2));
            let left = Matrix::new(&a, rows, columns, columns);
            let earlier = numbers(rows * inner, 3);
            for most in [
                Instructions::Avx2,
                Instructions::Avx512,
                Instructions::AmxBf16,
            ] {
                for matrix in [
                    Matrix::new(&b, columns, inner, inner).t(),
                    Matrix::new(&b, inner, columns, columns),
                ] {
                    let Some(packed) = Prepacked::of_f32_within(most, matrix) else {
                        continue;
                    };
                    let plus = |all| Plus { row: None, all };
                    let found = packed.product_with_transpose(left);
                    let by = |all| matmul_plus_within(most, 1.0, left, matrix.t(), plus(all));
                    let want = by(None);
                    assert!(found == want, "{rows}, {inner}, {columns}");
                    let mut sum = earlier.clone();
                    let target = &mut MatrixMut::new(&mut sum, rows, inner, inner);
                    packed.add_product_with_transpose(target, left);
                    let want = by(Some(&*earlier));
                    assert!(sum == want, "{rows}, {inner}, {columns}, added");
                }
            }
        }
    }
}

//! Matrix products on slices: the `gemm` crate behind checked views, with one promise added: a row of the
//! result does not depend on how many rows the product has, nor on the number of threads. So a caption gives
//! the same numbers alone and in a batch.
//!
//! gemm keeps one accumulator per element and walks the inner dimension in order, in blocks whose length
//! depends on that dimension alone, except on three shortcuts for small products: a matrix times a vector, at
//! most 256 results, and both sides at most 64. They are walked round here: few rows are padded with zeros,
//! and narrow products are cut into their inner blocks by us.

use std::marker::PhantomData;

use gemm::Parallelism;

use super::real::Real;

/// At most this many results take gemm's dot-product shortcut.
const SHORTCUT_RESULTS: usize = 256;
/// Products at most this wide take gemm's small-product blocking.
const NARROW: usize = 64;
/// The inner block of small products; gemm never uses a smaller one.
const INNER_BLOCK: usize = 512;

/// A matrix inside a slice: element (i, j) is at `i * row_stride + j * column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T: Real> Matrix<'a, T> {
    /// Rows of `columns` elements, `row_stride` apart.
    pub(crate) fn new(data: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        check(data.len(), rows, columns, row_stride);
        Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride: 1,
        }
    }

    /// The same elements seen as columns.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// `columns` columns from `start` on.
    fn columns(self, start: usize, columns: usize) -> Self {
        let skip = (start * self.column_stride).min(self.data.len());
        Self {
            data: &self.data[skip..],
            columns,
            ..self
        }
    }

    fn at(&self, row: usize, column: usize) -> T {
        self.data[row * self.row_stride + column * self.column_stride]
    }
}

/// A matrix of rows that a product is written to.
pub(crate) struct MatrixMut<'a, T> {
    data: *mut T,
    rows: usize,
    columns: usize,
    row_stride: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

impl<'a, T: Real> MatrixMut<'a, T> {
    /// Rows of `columns` elements, `row_stride` apart.
    pub(crate) fn new(data: &'a mut [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        check(data.len(), rows, columns, row_stride);
        Self {
            data: data.as_mut_ptr(),
            rows,
            columns,
            row_stride,
            lifetime: PhantomData,
        }
    }

    /// Elements of a row.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Row `i`.
    pub(crate) fn row(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: `check` saw that all rows lie inside the slice, which this view alone may touch.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(i * self.row_stride), self.columns) }
    }
}

/// Panics unless `rows` rows of `columns` elements, `row_stride` apart, lie inside `len` elements and apart.
fn check(len: usize, rows: usize, columns: usize, row_stride: usize) {
    let end = if rows == 0 || columns == 0 {
        0
    } else {
        (rows - 1) * row_stride + columns
    };
    assert!(
        end <= len,
        "{rows} rows of {columns}, {row_stride} apart, do not fit in {len} elements"
    );
}

/// A slice whose disjoint parts several threads write at once.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    data: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: the only way to the data is `Shared::matrix`, whose caller promises that no two views overlap.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T: Real> Shared<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self {
            data: data.as_mut_ptr(),
            len: data.len(),
            lifetime: PhantomData,
        }
    }

    /// Rows of `columns` elements, `row_stride` apart, from `offset` on.
    ///
    /// # Safety
    ///
    /// No element of the view may be part of another view in use at the same time.
    pub(crate) unsafe fn matrix(
        &self,
        offset: usize,
        rows: usize,
        columns: usize,
        row_stride: usize,
    ) -> MatrixMut<'a, T> {
        assert!(offset <= self.len, "offset {offset} of {}", self.len);
        check(self.len - offset, rows, columns, row_stride);
        assert!(
            row_stride >= columns || rows <= 1,
            "rows {row_stride} apart overlap"
        );
        // SAFETY: `offset` is inside the slice.
        let data = unsafe { self.data.add(offset) };
        MatrixMut {
            data,
            rows,
            columns,
            row_stride,
            lifetime: PhantomData,
        }
    }
}

/// Whether a product replaces what is there or is added to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    Replace,
    Add,
}

/// One thread, for products inside a parallel loop.
pub(crate) const ALONE: Parallelism = Parallelism::None;
/// All threads.
pub(crate) const ALL: Parallelism = Parallelism::Rayon(0);

/// `c = scale * a b`, or `c += scale * a b`.
pub(crate) fn matmul<T: Real>(
    c: &mut MatrixMut<'_, T>,
    write: Write,
    scale: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    threads: Parallelism,
) {
    assert!(
        a.columns == b.rows && c.rows == a.rows && c.columns == b.columns,
        "{}x{} = {}x{} times {}x{}",
        c.rows,
        c.columns,
        a.rows,
        a.columns,
        b.rows,
        b.columns
    );
    if c.rows == 0 || c.columns == 0 {
        return;
    }
    let fewest = (SHORTCUT_RESULTS / c.columns + 1).max(2);
    if c.rows < fewest {
        return matmul_padded(c, write, scale, (a, b), fewest, threads);
    }
    let inner = a.columns;
    if c.columns > NARROW || inner <= INNER_BLOCK {
        return call(c, write, scale, a, b, threads);
    }
    let blocks = inner.div_ceil(INNER_BLOCK);
    let length = inner.div_ceil(blocks);
    for start in (0..inner).step_by(length) {
        let length = length.min(inner - start);
        let (a, b) = (a.columns(start, length), b.t().columns(start, length).t());
        let write = if start == 0 { write } else { Write::Add };
        call(c, write, scale, a, b, threads);
    }
}

/// The product with `rows` rows, of which those beyond `c`'s are zero.
fn matmul_padded<T: Real>(
    c: &mut MatrixMut<'_, T>,
    write: Write,
    scale: T,
    (a, b): (Matrix<'_, T>, Matrix<'_, T>),
    rows: usize,
    threads: Parallelism,
) {
    let mut wide = vec![T::zero(); rows * a.columns];
    for (i, row) in wide
        .chunks_exact_mut(a.columns.max(1))
        .take(a.rows)
        .enumerate()
    {
        for (j, x) in row.iter_mut().enumerate() {
            *x = a.at(i, j);
        }
    }
    let (columns, filled) = (c.columns, c.rows);
    let mut result = vec![T::zero(); rows * columns];
    if write == Write::Add {
        for i in 0..filled {
            result[i * columns..(i + 1) * columns].copy_from_slice(c.row(i));
        }
    }
    let wide = Matrix::new(&wide, rows, a.columns, a.columns);
    let mut target = MatrixMut::new(&mut result, rows, columns, columns);
    matmul(&mut target, write, scale, wide, b, threads);
    for i in 0..filled {
        c.row(i)
            .copy_from_slice(&result[i * columns..(i + 1) * columns]);
    }
}

fn call<T: Real>(
    c: &mut MatrixMut<'_, T>,
    write: Write,
    scale: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    threads: Parallelism,
) {
    let keep = if write == Write::Add {
        T::one()
    } else {
        T::zero()
    };
    // SAFETY: the views were checked against their slices when made, the shapes agree (`matmul`), and `c` is
    // borrowed mutably, so it overlaps neither `a` nor `b`.
    unsafe {
        gemm::gemm(
            c.rows,
            c.columns,
            a.columns,
            c.data,
            1,
            // A lone column must still be seen as rows.
            c.row_stride.max(1) as isize,
            write == Write::Add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            keep,
            scale,
            false,
            false,
            false,
            threads,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, salt: u32) -> Vec<f32> {
        let mut state = 12345u32.wrapping_add(salt);
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn product(
        a: &[f32],
        b: &[f32],
        rows: usize,
        inner: usize,
        columns: usize,
        by_row: bool,
    ) -> Vec<f32> {
        let mut c = vec![0.5f32; rows * columns];
        let a = Matrix::new(a, rows, inner, inner);
        let b = if by_row {
            Matrix::new(b, inner, columns, columns)
        } else {
            Matrix::new(b, columns, inner, inner).t()
        };
        matmul(
            &mut MatrixMut::new(&mut c, rows, columns, columns),
            Write::Add,
            0.5,
            a,
            b,
            ALL,
        );
        c
    }

    #[test]
    fn a_product_equals_the_sum_of_products() {
        for (rows, inner, columns) in [
            (1, 1, 1),
            (3, 5, 7),
            (1, 700, 64),
            (65, 1030, 33),
            (7, 3, 300),
        ] {
            let (a, b) = (numbers(rows * inner, 1), numbers(inner * columns, 2));
            for by_row in [true, false] {
                let c = product(&a, &b, rows, inner, columns, by_row);
                for i in 0..rows {
                    for j in 0..columns {
                        let want: f64 = (0..inner)
                            .map(|k| {
                                let b = if by_row {
                                    b[k * columns + j]
                                } else {
                                    b[j * inner + k]
                                };
                                f64::from(a[i * inner + k]) * f64::from(b)
                            })
                            .sum();
                        let found = f64::from(c[i * columns + j]);
                        assert!((found - (0.5 + 0.5 * want)).abs() < 1e-4, "{found} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_number_of_rows() {
        for inner in [1, 2, 3, 64, 511, 513, 768, 1500, 4096] {
            for columns in [1, 3, 16, 63, 64, 65, 128, 200, 321] {
                for by_row in [true, false] {
                    let most = 97;
                    let (a, b) = (numbers(most * inner, 3), numbers(inner * columns, 4));
                    let all = product(&a, &b, most, inner, columns, by_row);
                    for rows in [1, 2, 3, 5, 17, 64, 65, 90] {
                        let some = product(&a[..rows * inner], &b, rows, inner, columns, by_row);
                        assert!(
                            some == all[..rows * columns],
                            "{rows} rows, inner {inner}, {columns} columns, by row {by_row}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let (rows, inner, columns) = (331, 777, 130);
        let (a, b) = (numbers(rows * inner, 5), numbers(inner * columns, 6));
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| product(&a, &b, rows, inner, columns, false))
        };
        let one = with(1);
        for threads in [2, 3, 5, 8] {
            assert!(with(threads) == one, "{threads} threads");
        }
    }
}

//! Matrix products on slices, behind checked views: a kernel of ours (`tiled.rs`) or the `gemm` crate. Both keep one promise: a row of the
//! result does not depend on how many rows the product has, nor on the number of threads. So a caption gives the same numbers alone and in a batch.
//!
//! gemm keeps one accumulator per element and walks the inner dimension in order, in blocks whose length depends on that dimension
//! alone, except on three shortcuts for small products: a matrix times a vector, at most 256 results, and both sides at most 64. They are
//! walked round here: few rows are padded with zeros, and narrow products are cut into their inner blocks by us.

mod bf16;
#[cfg(target_arch = "x86_64")]
mod prepacked;
#[cfg(target_arch = "x86_64")]
mod tiled;

use std::marker::PhantomData;

use candle_core::DType;
use gemm::Parallelism;
use rayon::prelude::*;

use super::cpu::rows_per_piece;
use super::instructions::Instructions;
use super::real::Real;

pub(crate) use bf16::matmul_plus_bf16;
#[cfg(target_arch = "x86_64")]
pub(crate) use prepacked::{Finish, Prepacked};

/// At most this many results take gemm's dot-product shortcut.
const SHORTCUT_RESULTS: usize = 256;
/// Products at most this wide take gemm's small-product blocking.
const NARROW: usize = 64;
/// The inner block of small products; gemm never uses a smaller one.
const INNER_BLOCK: usize = 512;
/// Products of numbers that are not worth a second thread.
#[cfg(target_arch = "x86_64")]
const LITTLE: usize = 512 * 1024;

/// A matrix inside a slice: element (i, j) is at `i * row_stride + j * column_stride`.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T: Copy> Matrix<'a, T> {
    /// Rows of `columns` elements, `row_stride` apart.
    pub fn new(data: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
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
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// `columns` columns from `start` on.
    pub fn columns(self, start: usize, columns: usize) -> Self {
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
pub struct MatrixMut<'a, T> {
    data: *mut T,
    rows: usize,
    columns: usize,
    row_stride: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

impl<'a, T: Real> MatrixMut<'a, T> {
    /// Rows of `columns` elements, `row_stride` apart.
    pub fn new(data: &'a mut [T], rows: usize, columns: usize, row_stride: usize) -> Self {
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

/// What becomes of what is where a product is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// It is not read.
    Replace,
    /// The product is added to it.
    Add,
}

/// What is added to a product.
#[derive(Clone, Copy)]
pub(crate) struct Plus<'a, T> {
    /// Added to every row.
    pub(crate) row: Option<&'a [T]>,
    /// In the shape of the result.
    pub(crate) all: Option<&'a [T]>,
}

/// One thread, for products inside a parallel loop.
pub const ALONE: Parallelism = Parallelism::None;
/// All threads.
pub const ALL: Parallelism = Parallelism::Rayon(0);

/// `c = scale * a b`, or `c += scale * a b`.
pub fn matmul<T: Real>(
    c: &mut MatrixMut<'_, T>,
    write: Write,
    scale: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    threads: Parallelism,
) {
    let used = Instructions::used();
    matmul_with_row(used, c, write, scale, (a, b), None, threads);
}

/// `matmul` by nothing beyond these instructions, and `row` added to every row.
fn matmul_with_row<T: Real>(
    most: Instructions,
    c: &mut MatrixMut<'_, T>,
    write: Write,
    scale: T,
    (a, b): (Matrix<'_, T>, Matrix<'_, T>),
    row: Option<&[T]>,
    threads: Parallelism,
) {
    assert!(
        a.columns == b.rows
            && c.rows == a.rows
            && c.columns == b.columns
            && row.is_none_or(|row| row.len() == c.columns),
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
    #[cfg(target_arch = "x86_64")]
    if let Some(product) = own(most, scale, a, b) {
        let target = c.data.cast::<f32>();
        let product = tiled::Product {
            base: match write {
                Write::Replace => std::ptr::null(),
                Write::Add => target.cast_const(),
            },
            base_stride: c.row_stride,
            bias: row.map_or(std::ptr::null(), <[T]>::as_ptr).cast(),
            target,
            stride: c.row_stride,
            ..product
        };
        // SAFETY: the views were checked against their slices when made, the shapes agree, and `c` is borrowed
        // mutably, so it overlaps neither `a` nor `b`.
        unsafe { tiled::run(&product, threads_for(&product, threads)) };
        return;
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _: Instructions = most;
    matmul_by_crate(c, write, scale, a, b, threads);
    if let Some(row) = row {
        for i in 0..c.rows {
            c.row(i).iter_mut().zip(row).for_each(|(x, &b)| *x += b);
        }
    }
}

/// `scale * a b + plus`, as rows, by all threads.
pub(crate) fn matmul_plus<T: Real>(
    scale: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    plus: Plus<'_, T>,
) -> Vec<T> {
    matmul_plus_within(Instructions::used(), scale, a, b, plus)
}

/// `matmul_plus` by nothing beyond these instructions.
fn matmul_plus_within<T: Real>(
    most: Instructions,
    scale: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    plus: Plus<'_, T>,
) -> Vec<T> {
    let (rows, columns) = (a.rows, b.columns);
    check_sum([a.rows, a.columns], [b.rows, b.columns], plus);
    #[cfg(target_arch = "x86_64")]
    if let Some(product) = own(most, scale, a, b) {
        // SAFETY: the views were checked against their slices when made, and the shapes agree.
        return unsafe { made(product, plus) };
    }
    let mut out = match plus.all {
        Some(all) => all.to_vec(),
        None => vec![T::zero(); rows * columns],
    };
    if let Some(row) = plus.row.filter(|row| !row.is_empty()) {
        out.par_chunks_mut(columns * rows_per_piece(columns))
            .flat_map_iter(|piece| piece.chunks_exact_mut(columns))
            .for_each(|out| out.iter_mut().zip(row).for_each(|(x, &b)| *x += b));
    }
    let write = if plus.row.is_some() || plus.all.is_some() {
        Write::Add
    } else {
        Write::Replace
    };
    let mut target = MatrixMut::new(&mut out, rows, columns, columns);
    matmul_with_row(most, &mut target, write, scale, (a, b), None, ALL);
    out
}

/// What our kernel makes of `product` and `plus`, as rows, by all threads.
///
/// # Safety
///
/// As `tiled::run`, but for target, bias and base, which are given here: `plus` must fit.
#[cfg(target_arch = "x86_64")]
unsafe fn made<T: Real>(product: tiled::Product, plus: Plus<'_, T>) -> Vec<T> {
    let (rows, columns) = (product.rows, product.columns);
    let mut out: Vec<T> = Vec::with_capacity(rows * columns);
    let product = tiled::Product {
        bias: plus.row.map_or(std::ptr::null(), <[T]>::as_ptr).cast(),
        base: plus.all.map_or(std::ptr::null(), <[T]>::as_ptr).cast(),
        base_stride: columns,
        target: out.as_mut_ptr().cast(),
        stride: columns,
        ..product
    };
    // SAFETY: the caller's promises; `out` is new and has room for all elements, every one of which is written.
    unsafe {
        tiled::run(&product, threads_for(&product, ALL));
        out.set_len(rows * columns);
    }
    out
}

/// Panics unless a matrix of `[rows, inner]` can be multiplied with one of `[b_rows, columns]` and `plus` added.
fn check_sum<T>([rows, inner]: [usize; 2], [b_rows, columns]: [usize; 2], plus: Plus<'_, T>) {
    assert!(
        inner == b_rows
            && plus.row.is_none_or(|row| row.len() == columns)
            && plus.all.is_none_or(|all| all.len() == rows * columns),
        "{rows}x{inner} times {b_rows}x{columns} plus {:?}, {:?}",
        plus.row.map(<[T]>::len),
        plus.all.map(<[T]>::len)
    );
}

/// The product for our kernel, without a target, where the machine, the type and the shape are its.
#[cfg(target_arch = "x86_64")]
fn own<T: Real>(
    most: Instructions,
    scale: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
) -> Option<tiled::Product<'static>> {
    if T::DTYPE != DType::F32 || a.columns == 0 {
        return None;
    }
    let kernel = tiled::Kernel::best(tiled::Operands::Single, (a.columns, b.columns), most)?;
    let factor = |m: Matrix<'_, T>| tiled::Factor {
        data: m.data.as_ptr().cast(),
        row_stride: m.row_stride,
        column_stride: m.column_stride,
    };
    let right = tiled::Right::Strided(factor(b));
    let shape = [a.rows, a.columns, b.columns];
    Some(tiled::Product {
        scale: scale.to_f64() as f32,
        ..tiled::Product::new(kernel, shape, factor(a), right)
    })
}

/// One thread for what takes a few microseconds.
#[cfg(target_arch = "x86_64")]
fn threads_for(product: &tiled::Product, threads: Parallelism) -> usize {
    let work = product.rows * product.inner * product.columns;
    match threads {
        Parallelism::Rayon(_) if work > LITTLE => rayon::current_num_threads(),
        _ => 1,
    }
}

/// `matmul`, by the `gemm` crate.
fn matmul_by_crate<T: Real>(
    c: &mut MatrixMut<'_, T>,
    write: Write,
    scale: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    threads: Parallelism,
) {
    // One row more than the shortcut takes; two at least, since a lone row is gemm's matrix times a vector.
    let fewest = (SHORTCUT_RESULTS / c.columns + 1).max(2);
    if c.rows < fewest {
        return matmul_padded(c, write, scale, (a, b), fewest, threads);
    }
    let inner = a.columns;
    if c.columns > NARROW || inner <= INNER_BLOCK {
        return call(c, write, scale, a, b, threads);
    }
    let blocks = inner.div_ceil(INNER_BLOCK);
    // Of a length that depends on the inner dimension alone, so that a row is summed alike in every product.
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
    matmul_by_crate(&mut target, write, scale, wide, b, threads);
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
mod tests;

//! How factors lie in the cache: in the order in which tiles read them.

/// Declares `pack`, which packs a factor as it is, by the vectors of `super::vectors` and the `transpose_square` of where it is declared. Code
/// for these features is inlined nowhere else.
macro_rules! packing {
    ($features:literal) => {
        /// Packs the factor's elements from (row, column) on as rows, `ROW` apart.
        ///
        /// # Safety
        ///
        /// As [`pack`].
        #[target_feature(enable = $features)]
        pub(super) unsafe fn pack_left(
            factor: Factor,
            at: (usize, usize),
            size: (usize, usize),
            to: *mut f32,
        ) {
            // SAFETY: the caller's promises.
            unsafe { pack(factor, at, size, (to, ROW)) }
        }

        /// Packs the factor's elements from (row, column) on as rows of another stride.
        ///
        /// # Safety
        ///
        /// The processor must have the features, as many rows and columns must be readable there, and `to` writable in whole
        /// vectors of rows.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn pack(
            factor: Factor,
            (row, column): (usize, usize),
            (rows, columns): (usize, usize),
            to: (*mut f32, usize),
        ) {
            let from = factor.at(row, column);
            // SAFETY: the caller's promise.
            unsafe {
                if factor.column_stride == 1 {
                    copy((from, factor.row_stride), (rows, columns), to);
                } else {
                    transpose((from, factor.column_stride), (columns, rows), to);
                }
            }
        }

        /// Copies a matrix between rows of different strides.
        ///
        /// # Safety
        ///
        /// As [`pack`].
        #[target_feature(enable = $features)]
        unsafe fn copy(
            (from, from_stride): (*const f32, usize),
            (rows, columns): (usize, usize),
            (to, to_stride): (*mut f32, usize),
        ) {
            // Down the rows first: they are far apart in memory, and so are read side by side.
            for column in (0..columns).step_by(LANES) {
                for row in 0..rows {
                    // SAFETY: the lanes are elements of the row, which the caller vouches for.
                    unsafe {
                        let from = from.wrapping_add(row * from_stride + column);
                        let x = load_some(from, columns - column);
                        store_some(to.wrapping_add(row * to_stride + column), LANES, x);
                    }
                }
            }
        }

        /// Writes a matrix of `rows` x `columns` as one of `columns` x `rows`.
        ///
        /// # Safety
        ///
        /// As [`pack`].
        #[target_feature(enable = $features)]
        unsafe fn transpose(
            (from, from_stride): (*const f32, usize),
            (rows, columns): (usize, usize),
            (to, to_stride): (*mut f32, usize),
        ) {
            for row in (0..rows).step_by(LANES) {
                for column in (0..columns).step_by(LANES) {
                    let mut square = [zero(); LANES];
                    for (i, x) in square.iter_mut().enumerate().take(rows - row) {
                        let from = from.wrapping_add((row + i) * from_stride + column);
                        // SAFETY: the lanes are elements of row `row + i`.
                        *x = unsafe { load_some(from, columns - column) };
                    }
                    let square = transpose_square(square);
                    for (i, &x) in square.iter().enumerate().take(columns - column) {
                        let to = to.wrapping_add((column + i) * to_stride + row);
                        // SAFETY: the caller's promise.
                        unsafe { store_some(to, LANES, x) };
                    }
                }
            }
        }
    };
}
pub(super) use packing;

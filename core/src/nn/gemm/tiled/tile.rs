//! A tile of a result, from packed factors, and the kernels that go through tiles.

use super::Product;

/// Rows of the packed right factor that are asked for before they are needed.
pub(super) const PREFETCHED: usize = 8;
/// Steps before a tile is done at which its elements are asked for; earlier, they would be gone again.
pub(super) const LATE: usize = 32;

/// `target = scale * left right + bias + base`.
pub(super) struct Tile {
    pub(super) inner: usize,
    /// Rows, `ROW` apart.
    pub(super) left: *const f32,
    /// Rows as wide as the tile.
    pub(super) right: *const f32,
    pub(super) scale: f32,
    /// Those that are written.
    pub(super) columns: usize,
    pub(super) target: *mut f32,
    pub(super) stride: usize,
    /// Or null.
    pub(super) base: *const f32,
    pub(super) base_stride: usize,
    /// Or null.
    pub(super) bias: *const f32,
}

impl Tile {
    /// The tile of the product at an element, without its factors. `first` is what starts the sum: bias and base
    /// are added to it, and the sums of later inner blocks to what is there.
    pub(super) fn at(p: &Product, row: usize, column: usize, first: bool) -> Self {
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

/// Declares `$module::tile`, a tile of `R` rows of `V` vectors of `$vectors`, whose sums grow in `STEPS` steps for each row of the right
/// factor: in step s by `$add_product(sum, left, $right_of(right, s))`. Code for these features is inlined
/// nowhere else.
macro_rules! tile {
    ($module:ident, $vectors:ident, $features:literal, $steps:literal, $right_of:ident, $add_product:ident) => {
        mod $module {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            use std::ops::Range;

            use super::super::tile::{LATE, PREFETCHED, Tile};
            use super::super::{CacheLine, ROW};
            use super::$vectors as vectors;
            use vectors::{LANES, Vector, $add_product as add_product, $right_of as right_of};

            const STEPS: usize = $steps;
            const TILE_COLUMNS: usize = 2 * LANES;

            /// A tile of `R` rows of `V` vectors, of the two that the packed right factor has.
            ///
            /// # Safety
            ///
            /// The processor must have the features, and the tile's elements must lie inside what its pointers point to.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn tile<const R: usize, const V: usize>(t: &Tile) {
                let mut sums = [[vectors::zero(); V]; R];
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
                let scale = vectors::splat(t.scale);
                for vector in 0..V {
                    let at = vector * LANES;
                    // SAFETY: the caller's promises.
                    unsafe {
                        let bias = bias(t, at);
                        for (row, sum) in sums.iter().enumerate() {
                            write(t, (row, at), sum[vector], (scale, bias));
                        }
                    }
                }
            }

            /// What is added to the columns of a vector from `at` on.
            ///
            /// # Safety
            ///
            /// As [`tile`].
            #[target_feature(enable = $features)]
            #[inline]
            pub(super) unsafe fn bias(t: &Tile, at: usize) -> Vector {
                if t.bias.is_null() {
                    return vectors::zero();
                }
                // SAFETY: lanes outside the columns are not read.
                unsafe { vectors::load_some(t.bias.wrapping_add(at), t.columns.saturating_sub(at)) }
            }

            /// Writes a vector of a row's elements from column `at` on: `scale * sum + bias + base`.
            ///
            /// # Safety
            ///
            /// As [`tile`].
            #[target_feature(enable = $features)]
            #[inline]
            pub(super) unsafe fn write(
                t: &Tile,
                (row, at): (usize, usize),
                sum: Vector,
                (scale, bias): (Vector, Vector),
            ) {
                let count = t.columns.saturating_sub(at);
                // SAFETY: lanes outside the columns are neither read nor written.
                unsafe {
                    let sum = vectors::multiply_add(scale, sum, bias);
                    let sum = if t.base.is_null() {
                        sum
                    } else {
                        let base = t.base.wrapping_add(row * t.base_stride + at);
                        vectors::add(sum, vectors::load_some(base, count))
                    };
                    let target = t.target.wrapping_add(row * t.stride + at);
                    vectors::store_some(target, count, sum);
                }
            }

            /// Adds the products of the left factor's columns in `inner` with the right one's rows.
            ///
            /// # Safety
            ///
            /// The processor must have the features, and the tile must have those columns and rows.
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn add_products<const R: usize, const V: usize>(
                sums: &mut [[Vector; V]; R],
                t: &Tile,
                inner: Range<usize>,
            ) {
                let mut right = t.right.wrapping_add(inner.start * TILE_COLUMNS);
                for k in inner {
                    let ahead = right.wrapping_add(PREFETCHED * TILE_COLUMNS);
                    for line in (0..TILE_COLUMNS).step_by(CacheLine::NUMBERS) {
                        _mm_prefetch(ahead.wrapping_add(line).cast(), _MM_HINT_T0);
                    }
                    for step in 0..STEPS {
                        // SAFETY: the caller's promise.
                        unsafe {
                            let mut b = [vectors::zero(); V];
                            for (vector, b) in b.iter_mut().enumerate() {
                                *b = right_of(right.add(vector * LANES), step);
                            }
                            for (row, sums) in sums.iter_mut().enumerate() {
                                let a = vectors::splat(*t.left.add(row * ROW + STEPS * k + step));
                                for (sum, &b) in sums.iter_mut().zip(&b) {
                                    *sum = add_product(*sum, a, b);
                                }
                            }
                        }
                    }
                    right = right.wrapping_add(TILE_COLUMNS);
                }
            }
        }
    };
}
pub(super) use tile;

/// Computes a tile of as many rows and vectors as it was made for.
pub(super) type TileOf = unsafe fn(&Tile);

/// The tiles of so many rows: of one vector, and of two.
macro_rules! tiles {
    ($module:ident: $($rows:literal)*) => {
        &[$([$module::tile::<$rows, 1>, $module::tile::<$rows, 2>]),*]
    };
}
pub(super) use tiles;

/// Declares a kernel of `vectors` and `packing` where it is declared: its tiles, and how it packs the left factor.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $tiles:expr, $pack_left:path) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Vectors for $name {
            const TILE_COLUMNS: usize = 2 * vectors::LANES;
            const NEAR: usize = NEAR;
            const TILES: &'static [[TileOf; 2]] = $tiles;

            unsafe fn pack_left(
                factor: Factor,
                at: (usize, usize),
                size: (usize, usize),
                to: *mut f32,
            ) {
                // SAFETY: the caller's promises.
                unsafe { $pack_left(factor, at, size, to) }
            }

            unsafe fn pack_right(
                factor: Factor,
                at: (usize, usize),
                size: (usize, usize),
                to: *mut f32,
            ) {
                // SAFETY: the caller's promises.
                unsafe { packing::pack(factor, at, size, (to, Self::TILE_COLUMNS)) }
            }
        }
    };
}
pub(super) use kernel;

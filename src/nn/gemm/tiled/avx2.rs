//! Kernels of 8 lanes: AVX2 and FMA.

mod packing;
mod vectors;

use super::tile::{Tile, tile};
use super::{Factor, INNER, ROW, Vectors};

tile!(single, vectors, "avx2,fma", 1, right, multiply_add_to);
tile!(pairs, vectors, "avx2,fma", 2, widened, multiply_add_to);

/// With two vectors each, rows of a tile take 12 of the 16 registers.
macro_rules! six {
    ($module:ident) => {
        &[
            $module::tile::<1>,
            $module::tile::<2>,
            $module::tile::<3>,
            $module::tile::<4>,
            $module::tile::<5>,
            $module::tile::<6>,
        ]
    };
}

/// The L2 cache of a core, from Zen 2 and Alder Lake on, has 512 KiB or more.
const NEAR: usize = 256 * INNER;

/// f32 with f32.
pub(super) struct Single;

impl Vectors for Single {
    const TILE_COLUMNS: usize = 2 * vectors::LANES;
    const NEAR: usize = NEAR;
    const TILES: &'static [unsafe fn(&Tile)] = six!(single);

    unsafe fn pack_left(factor: Factor, at: (usize, usize), size: (usize, usize), to: *mut f32) {
        // SAFETY: the caller's promises.
        unsafe { packing::pack(factor, at, size, (to, ROW)) }
    }

    unsafe fn pack_right(factor: Factor, at: (usize, usize), size: (usize, usize), to: *mut f32) {
        // SAFETY: the caller's promises.
        unsafe { packing::pack(factor, at, size, (to, Self::TILE_COLUMNS)) }
    }
}

/// Pairs of bf16, widened.
pub(super) struct Pairs;

impl Vectors for Pairs {
    const TILE_COLUMNS: usize = Single::TILE_COLUMNS;
    const NEAR: usize = NEAR;
    const TILES: &'static [unsafe fn(&Tile)] = six!(pairs);

    unsafe fn pack_left(factor: Factor, at: (usize, usize), size: (usize, usize), to: *mut f32) {
        // SAFETY: the caller's promises.
        unsafe { packing::round(factor, at, size, to) }
    }

    unsafe fn pack_right(factor: Factor, at: (usize, usize), size: (usize, usize), to: *mut f32) {
        // SAFETY: the caller's promises.
        unsafe { Single::pack_right(factor, at, size, to) }
    }
}

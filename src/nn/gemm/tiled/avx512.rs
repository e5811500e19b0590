//! Kernels of 16 lanes: AVX-512, and its dot products of pairs of bf16.

mod packing;
mod vectors;

use super::tile::{Tile, tile};
use super::{Factor, INNER, ROW, Vectors, avx2};

tile!(single, vectors, "avx512f", 1, right, multiply_add_to);
tile!(bf16, vectors, "avx512f,avx512bf16", 1, right, add_pairs);
tile!(pairs, vectors, "avx512f", 2, widened, multiply_add_to);

/// With two vectors each, rows of a tile take 28 of the 32 registers.
macro_rules! fourteen {
    ($module:ident) => {
        &[
            $module::tile::<1>,
            $module::tile::<2>,
            $module::tile::<3>,
            $module::tile::<4>,
            $module::tile::<5>,
            $module::tile::<6>,
            $module::tile::<7>,
            $module::tile::<8>,
            $module::tile::<9>,
            $module::tile::<10>,
            $module::tile::<11>,
            $module::tile::<12>,
            $module::tile::<13>,
            $module::tile::<14>,
        ]
    };
}

/// The L2 cache of a core, from Skylake-X and Zen 4 on, has 1 MiB or more.
const NEAR: usize = 640 * INNER;

/// f32 with f32.
pub(super) struct Single;

impl Vectors for Single {
    const TILE_COLUMNS: usize = 2 * vectors::LANES;
    const NEAR: usize = NEAR;
    const TILES: &'static [unsafe fn(&Tile)] = fourteen!(single);

    unsafe fn pack_left(factor: Factor, at: (usize, usize), size: (usize, usize), to: *mut f32) {
        // SAFETY: the caller's promises.
        unsafe { packing::pack(factor, at, size, (to, ROW)) }
    }

    unsafe fn pack_right(factor: Factor, at: (usize, usize), size: (usize, usize), to: *mut f32) {
        // SAFETY: the caller's promises.
        unsafe { packing::pack(factor, at, size, (to, Self::TILE_COLUMNS)) }
    }
}

/// Pairs of bf16 by the processor's own instruction.
pub(super) struct Bf16;

impl Vectors for Bf16 {
    const TILE_COLUMNS: usize = Single::TILE_COLUMNS;
    const NEAR: usize = NEAR;
    const TILES: &'static [unsafe fn(&Tile)] = fourteen!(bf16);

    unsafe fn pack_left(factor: Factor, at: (usize, usize), size: (usize, usize), to: *mut f32) {
        // SAFETY: the caller's promises.
        unsafe { packing::round(factor, at, size, to) }
    }

    unsafe fn pack_right(factor: Factor, at: (usize, usize), size: (usize, usize), to: *mut f32) {
        // SAFETY: the caller's promises.
        unsafe { Single::pack_right(factor, at, size, to) }
    }
}

/// Pairs of bf16, widened.
pub(super) struct Pairs;

impl Vectors for Pairs {
    const TILE_COLUMNS: usize = Single::TILE_COLUMNS;
    const NEAR: usize = NEAR;
    // A row less: what is widened takes registers too.
    const TILES: &'static [unsafe fn(&Tile)] = fourteen!(pairs).split_at(13).0;

    unsafe fn pack_left(factor: Factor, at: (usize, usize), size: (usize, usize), to: *mut f32) {
        // SAFETY: the caller's promises.
        unsafe { avx2::Pairs::pack_left(factor, at, size, to) }
    }

    unsafe fn pack_right(factor: Factor, at: (usize, usize), size: (usize, usize), to: *mut f32) {
        // SAFETY: the caller's promises.
        unsafe { Single::pack_right(factor, at, size, to) }
    }
}

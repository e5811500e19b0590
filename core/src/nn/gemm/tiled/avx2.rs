//! Kernels of 8 lanes: AVX2 and FMA.

pub(super) mod packing;
mod vectors;

use super::tile::{TileOf, kernel, tile, tiles};
use super::{Factor, INNER, Vectors};

tile!(single, vectors, "avx2,fma", 1, right, multiply_add_to);
tile!(pairs, vectors, "avx2,fma", 2, widened, multiply_add_to);

/// With two vectors each, rows of a tile take 12 of the 16 registers.
macro_rules! six {
    ($module:ident) => {
        tiles!($module: 1 2 3 4 5 6)
    };
}

/// The L2 cache of a core, from Zen 2 and Alder Lake on, has 512 KiB or more.
const NEAR: usize = 256 * INNER;

kernel!(
    /// f32 with f32.
    Single,
    six!(single),
    packing::pack_left
);
kernel!(
    /// Pairs of bf16, widened.
    Pairs,
    six!(pairs),
    packing::round
);

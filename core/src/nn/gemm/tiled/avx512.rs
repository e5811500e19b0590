//! Kernels of 16 lanes: AVX-512, and its dot products of pairs of bf16.

mod amx;
mod packing;
mod vectors;

use super::tile::{TileOf, kernel, tile, tiles};
use super::{Factor, INNER, Vectors, avx2};

pub(super) use amx::{MATRIX_REGISTERS, SPLIT};

tile!(single, vectors, "avx512f", 1, right, multiply_add_to);
tile!(bf16, vectors, "avx512f,avx512bf16", 1, right, add_pairs);
tile!(pairs, vectors, "avx512f", 2, widened, multiply_add_to);

/// With two vectors each, rows of a tile take 28 of the 32 registers.
macro_rules! fourteen {
    ($module:ident) => {
        tiles!($module: 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    };
}

/// The L2 cache of a core, from Skylake-X and Zen 4 on, has 1 MiB or more.
const NEAR: usize = 640 * INNER;

kernel!(
    /// f32 with f32.
    Single,
    fourteen!(single),
    packing::pack_left
);
kernel!(
    /// Pairs of bf16 by the processor's own instruction.
    Bf16,
    fourteen!(bf16),
    packing::round
);
kernel!(
    /// Pairs of bf16, widened: a row less, since what is widened takes registers too.
    Pairs,
    fourteen!(pairs).split_at(13).0,
    avx2::packing::round
);

//! How factors lie in the cache: in the order in which tiles read them.

use std::arch::x86_64::{
    __m256, _mm256_permute2f128_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_unpackhi_ps,
    _mm256_unpacklo_ps,
};

use super::super::super::bf16::as_bf16;
use super::super::packing::packing;
use super::super::{CacheLine, Factor, ROW};
use super::vectors::{LANES, load_some, store_some, zero};

packing!("avx2");

/// 8 x 8 numbers, transposed.
#[target_feature(enable = "avx2")]
fn transpose_square(r: [__m256; LANES]) -> [__m256; LANES] {
    let mut fours = [_mm256_setzero_ps(); LANES];
    for i in (0..LANES).step_by(4) {
        let low = (
            _mm256_unpacklo_ps(r[i], r[i + 1]),
            _mm256_unpacklo_ps(r[i + 2], r[i + 3]),
        );
        let high = (
            _mm256_unpackhi_ps(r[i], r[i + 1]),
            _mm256_unpackhi_ps(r[i + 2], r[i + 3]),
        );
        // Half h of `fours[i + j]` is column 4 h + j of the rows i .. i + 4.
        fours[i] = _mm256_shuffle_ps::<0x44>(low.0, low.1);
        fours[i + 1] = _mm256_shuffle_ps::<0xee>(low.0, low.1);
        fours[i + 2] = _mm256_shuffle_ps::<0x44>(high.0, high.1);
        fours[i + 3] = _mm256_shuffle_ps::<0xee>(high.0, high.1);
    }
    let mut out = [_mm256_setzero_ps(); LANES];
    for j in 0..4 {
        out[j] = _mm256_permute2f128_ps::<0x20>(fours[j], fours[4 + j]);
        out[4 + j] = _mm256_permute2f128_ps::<0x31>(fours[j], fours[4 + j]);
    }
    out
}

/// Packs the factor's elements from (row, column) on as rows of f32, `ROW` apart, rounded to bf16, of each pair the second number
/// first. Columns count pairs.
///
/// # Safety
///
/// The processor must have AVX2, as many rows of pairs of columns must be readable there, side by side, and `to` writable.
#[target_feature(enable = "avx2")]
pub(in super::super) unsafe fn round(
    factor: Factor,
    (row, column): (usize, usize),
    (rows, pairs): (usize, usize),
    to: *mut f32,
) {
    // Down the rows first, as `copy`.
    for pair in (0..pairs).step_by(CacheLine::NUMBERS) {
        let numbers = 2 * CacheLine::NUMBERS.min(pairs - pair);
        for row_index in 0..rows {
            let from = factor.at(row + row_index, 2 * (column + pair));
            let to = to.wrapping_add(row_index * ROW + 2 * pair);
            // SAFETY: the caller's promise; the factor is no part of what is packed.
            let (from, to) = unsafe {
                (
                    std::slice::from_raw_parts(from, numbers),
                    std::slice::from_raw_parts_mut(to, numbers),
                )
            };
            for (to, from) in to.chunks_exact_mut(2).zip(from.chunks_exact(2)) {
                to[0] = as_bf16(from[1]);
                to[1] = as_bf16(from[0]);
            }
        }
    }
}

//! How factors lie in the cache: in the order in which tiles read them.

use std::arch::x86_64::{
    __m512, _mm512_castpd_ps, _mm512_castps_pd, _mm512_cvtne2ps_pbh, _mm512_maskz_loadu_ps,
    _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_storeu_ps, _mm512_unpackhi_pd,
    _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};
use std::mem::transmute;

use super::super::packing::packing;
use super::super::{Factor, ROW};
use super::vectors::{LANES, lanes, load_some, store_some, zero};

packing!("avx512f");

/// Packs the factor's elements from (row, column) on as rows of pairs of bf16, `ROW` apart. Columns count
/// pairs.
///
/// # Safety
///
/// As [`round_to`].
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn round(factor: Factor, at: (usize, usize), size: (usize, usize), to: *mut f32) {
    // SAFETY: the caller's promises.
    unsafe { round_to(factor, at, size, (to, [ROW, LANES])) }
}

/// As [`round`], of another distance from one row to the next, and from one vector of a row to the next.
///
/// # Safety
///
/// The processor must have AVX-512 with bf16, as many rows of pairs of columns must be readable there, side by side, and `to`
/// writable in whole vectors of rows.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
pub(super) unsafe fn round_to(
    factor: Factor,
    (row, column): (usize, usize),
    (rows, pairs): (usize, usize),
    (to, [row_stride, vector_stride]): (*mut f32, [usize; 2]),
) {
    // Down the rows first, as `copy`: 1.04 times as fast, the product as a whole.
    let from = factor.at(row, 2 * column);
    for (vector, pair) in (0..pairs).step_by(LANES).enumerate() {
        let to = to.wrapping_add(vector * vector_stride);
        let rest = 2 * (pairs - pair);
        for row in 0..rows {
            // SAFETY: the lanes are elements of the row, which the caller vouches for.
            unsafe {
                let from = from.wrapping_add(row * factor.row_stride + 2 * pair);
                let low = _mm512_maskz_loadu_ps(lanes(rest), from);
                let high = lanes(rest.saturating_sub(LANES));
                let high = _mm512_maskz_loadu_ps(high, from.wrapping_add(LANES));
                store_rounded(to.wrapping_add(row * row_stride), low, high);
            }
        }
    }
}

/// Writes 32 numbers as 16 pairs of bf16.
///
/// # Safety
///
/// The processor must have AVX-512 with bf16, and a vector must be writable there.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
pub(super) unsafe fn store_rounded(to: *mut f32, low: __m512, high: __m512) {
    // SAFETY: the caller's promise; 64 bytes that are read as 16 numbers.
    unsafe {
        let rounded: __m512 = transmute(_mm512_cvtne2ps_pbh(high, low));
        _mm512_storeu_ps(to, rounded);
    }
}

/// 16 x 16 numbers, transposed.
#[target_feature(enable = "avx512f")]
fn transpose_square(r: [__m512; LANES]) -> [__m512; LANES] {
    let pair = |x, y, high: bool| {
        let (x, y) = (_mm512_castps_pd(x), _mm512_castps_pd(y));
        _mm512_castpd_ps(if high {
            _mm512_unpackhi_pd(x, y)
        } else {
            _mm512_unpacklo_pd(x, y)
        })
    };
    let mut fours = [_mm512_setzero_ps(); LANES];
    for i in (0..LANES).step_by(4) {
        let (low0, high0) = (
            _mm512_unpacklo_ps(r[i], r[i + 1]),
            _mm512_unpackhi_ps(r[i], r[i + 1]),
        );
        let (low1, high1) = (
            _mm512_unpacklo_ps(r[i + 2], r[i + 3]),
            _mm512_unpackhi_ps(r[i + 2], r[i + 3]),
        );
        // Quarter q of `fours[i + j]` is column 4 q + j of the rows i .. i + 4.
        fours[i] = pair(low0, low1, false);
        fours[i + 1] = pair(low0, low1, true);
        fours[i + 2] = pair(high0, high1, false);
        fours[i + 3] = pair(high0, high1, true);
    }
    let mut out = [_mm512_setzero_ps(); LANES];
    for j in 0..4 {
        let (a, b, c, d) = (fours[j], fours[4 + j], fours[8 + j], fours[12 + j]);
        let even = (
            _mm512_shuffle_f32x4::<0x88>(a, b),
            _mm512_shuffle_f32x4::<0x88>(c, d),
        );
        let odd = (
            _mm512_shuffle_f32x4::<0xdd>(a, b),
            _mm512_shuffle_f32x4::<0xdd>(c, d),
        );
        out[j] = _mm512_shuffle_f32x4::<0x88>(even.0, even.1);
        out[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd.0, odd.1);
        out[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even.0, even.1);
        out[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd.0, odd.1);
    }
    out
}

//! Vectors of 16 numbers.

use std::arch::x86_64::{
    __m512, __m512bh, __mmask16, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_load_ps, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32,
};
use std::mem::transmute;

pub(super) type Vector = __m512;
/// Numbers of a vector.
pub(super) const LANES: usize = 16;

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn zero() -> Vector {
    _mm512_setzero_ps()
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn splat(x: f32) -> Vector {
    _mm512_set1_ps(x)
}

/// `a b + sum`.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn multiply_add(a: Vector, b: Vector, sum: Vector) -> Vector {
    _mm512_fmadd_ps(a, b, sum)
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn multiply_add_to(sum: Vector, a: Vector, b: Vector) -> Vector {
    _mm512_fmadd_ps(a, b, sum)
}

/// Adds the products of 16 pairs of bf16 each.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
pub(super) fn add_pairs(sum: Vector, a: Vector, b: Vector) -> Vector {
    // SAFETY: 64 bytes that are read as 32 bf16.
    unsafe {
        _mm512_dpbf16_ps(
            sum,
            transmute::<__m512, __m512bh>(a),
            transmute::<__m512, __m512bh>(b),
        )
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn add(a: Vector, b: Vector) -> Vector {
    _mm512_add_ps(a, b)
}

/// # Safety
///
/// A vector must lie there, at a cache line.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) unsafe fn right(from: *const f32, _step: usize) -> Vector {
    // SAFETY: the caller's promise.
    unsafe { _mm512_load_ps(from) }
}

/// The second number of each pair of bf16 in step 0, the first one in step 1.
///
/// # Safety
///
/// As [`right`].
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) unsafe fn widened(from: *const f32, step: usize) -> Vector {
    // SAFETY: the caller's promise.
    let pairs = _mm512_castps_si512(unsafe { _mm512_load_ps(from) });
    _mm512_castsi512_ps(match step {
        0 => _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed())),
        _ => _mm512_slli_epi32::<16>(pairs),
    })
}

/// The first `count` lanes.
pub(super) fn lanes(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
}

/// The first `count` lanes, or all; the others are 0.
///
/// # Safety
///
/// They must be readable.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) unsafe fn load_some(from: *const f32, count: usize) -> Vector {
    // SAFETY: the caller's promise; other lanes are not read.
    unsafe { _mm512_maskz_loadu_ps(lanes(count), from) }
}

/// Writes the first `count` lanes, or all.
///
/// # Safety
///
/// They must be writable.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) unsafe fn store_some(to: *mut f32, count: usize, x: Vector) {
    // SAFETY: the caller's promise; other lanes are not written.
    unsafe { _mm512_mask_storeu_ps(to, lanes(count), x) }
}

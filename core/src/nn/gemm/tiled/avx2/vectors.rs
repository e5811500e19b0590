//! Vectors of 8 numbers.

use std::arch::x86_64::{
    __m256, __m256i, _mm256_add_ps, _mm256_and_si256, _mm256_castps_si256, _mm256_castsi256_ps,
    _mm256_fmadd_ps, _mm256_load_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_maskload_ps,
    _mm256_maskstore_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_slli_epi32,
    _mm256_storeu_ps,
};

pub(super) type Vector = __m256;
/// Numbers of a vector.
pub(super) const LANES: usize = 8;

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn zero() -> Vector {
    _mm256_setzero_ps()
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn splat(x: f32) -> Vector {
    _mm256_set1_ps(x)
}

/// `a b + sum`.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn multiply_add(a: Vector, b: Vector, sum: Vector) -> Vector {
    _mm256_fmadd_ps(a, b, sum)
}

#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn multiply_add_to(sum: Vector, a: Vector, b: Vector) -> Vector {
    _mm256_fmadd_ps(a, b, sum)
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn add(a: Vector, b: Vector) -> Vector {
    _mm256_add_ps(a, b)
}

/// # Safety
///
/// A vector must lie there, at half a cache line.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn right(from: *const f32, _step: usize) -> Vector {
    // SAFETY: the caller's promise.
    unsafe { _mm256_load_ps(from) }
}

/// The second number of each pair of bf16 in step 0, the first one in step 1.
///
/// # Safety
///
/// As [`right`].
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn widened(from: *const f32, step: usize) -> Vector {
    // SAFETY: the caller's promise.
    let pairs = _mm256_castps_si256(unsafe { _mm256_load_ps(from) });
    _mm256_castsi256_ps(match step {
        0 => _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32.cast_signed())),
        _ => _mm256_slli_epi32::<16>(pairs),
    })
}

/// The first `count` lanes, of fewer than all.
#[target_feature(enable = "avx2")]
#[inline]
fn lanes(count: usize) -> __m256i {
    const ONES_THEN_ZEROS: [i32; 2 * LANES] = {
        let mut numbers = [0; 2 * LANES];
        let mut i = 0;
        while i < LANES {
            numbers[i] = -1;
            i += 1;
        }
        numbers
    };
    let numbers = &ONES_THEN_ZEROS[LANES - count..][..LANES];
    // SAFETY: a slice of as many numbers.
    unsafe { _mm256_loadu_si256(numbers.as_ptr().cast()) }
}

/// The first `count` lanes, or all; the others are 0.
///
/// # Safety
///
/// They must be readable.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn load_some(from: *const f32, count: usize) -> Vector {
    // SAFETY: the caller's promise; other lanes are not read.
    unsafe {
        if count >= LANES {
            _mm256_loadu_ps(from)
        } else {
            _mm256_maskload_ps(from, lanes(count))
        }
    }
}

/// Writes the first `count` lanes, or all.
///
/// # Safety
///
/// They must be writable.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn store_some(to: *mut f32, count: usize, x: Vector) {
    // SAFETY: the caller's promise; other lanes are not written.
    unsafe {
        if count >= LANES {
            _mm256_storeu_ps(to, x);
        } else {
            _mm256_maskstore_ps(to, lanes(count), x);
        }
    }
}

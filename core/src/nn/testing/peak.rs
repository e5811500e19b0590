//! What a core's units for multiply-adds do where nothing else holds them up: the bound of every product.

use candle_core::DType;

use crate::nn::Instructions;

/// Does multiply-adds that depend on nothing but those before them in one of a few chains, by the widest instructions within `most`, and
/// gives how many floating-point operations they were: of f32, or of pairs of bf16 where the processor has them. `None` where there
/// are no kernels for it.
pub fn multiply_adds(most: Instructions, dtype: DType, steps: usize) -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    {
        use Instructions::{Avx2, Avx512, Avx512Bf16, Base};
        // SAFETY: the processor has what is available, and `most` is no more.
        let each = match (dtype, most.min(Instructions::available())) {
            (DType::F32, Avx2) => unsafe { x86::avx2(steps) },
            (DType::F32, Avx512 | Avx512Bf16) => unsafe { x86::avx512(steps) },
            (DType::BF16, Avx512Bf16) => unsafe { x86::bf16(steps) },
            (_, Base | Avx2 | Avx512 | Avx512Bf16) => return None,
        };
        Some(each * steps)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (most, dtype, steps);
        None
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512bh, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps,
        _mm512_set1_ps,
    };
    use std::hint::black_box;
    use std::mem::transmute;

    /// Chains: enough for two units of a latency of six cycles, and no more than there are registers.
    const CHAINS: usize = 14;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(steps: usize) -> usize {
        let (a, b) = black_box((_mm256_set1_ps(0.999), _mm256_set1_ps(0.001)));
        let mut sums = [b; CHAINS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(a, *sum, b);
            }
        }
        black_box(sums);
        2 * 8 * CHAINS
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(steps: usize) -> usize {
        let (a, b) = black_box((_mm512_set1_ps(0.999), _mm512_set1_ps(0.001)));
        let mut sums = [b; CHAINS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(a, *sum, b);
            }
        }
        black_box(sums);
        2 * 16 * CHAINS
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn bf16(steps: usize) -> usize {
        let a = black_box(_mm512_set1_ps(0.001));
        // SAFETY: 64 bytes that are read as 32 bf16.
        let pairs: __m512bh = unsafe { transmute(a) };
        let mut sums = [a; CHAINS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, pairs, pairs);
            }
        }
        black_box(sums);
        2 * 32 * CHAINS
    }
}

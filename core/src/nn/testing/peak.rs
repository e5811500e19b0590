//! What a core's units for multiply-adds do where nothing else holds them up: the bound of every product.

use candle_core::DType;

use crate::nn::Instructions;

/// Does multiply-adds that depend on nothing but those before them in one of a few chains, by the widest instructions within `most`, and
/// gives how many floating-point operations they were: of f32, or of pairs of bf16 where the processor has them. `None` where there
/// are no kernels for it.
pub fn multiply_adds(most: Instructions, dtype: DType, steps: usize) -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    {
        use Instructions::{AmxBf16, Avx2, Avx512, Avx512Bf16};
        // SAFETY: the processor has what is available, and `most` is no more.
        let each = match (dtype, most.min(Instructions::available())) {
            (DType::F32, Avx2) => unsafe { x86::avx2(steps) },
            (DType::F32, Avx512 | Avx512Bf16) => unsafe { x86::avx512(steps) },
            // Each takes six of bf16 there.
            (DType::F32, AmxBf16) => unsafe { x86::tiles(steps) / 6 },
            (DType::BF16, Avx512Bf16) => unsafe { x86::bf16(steps) },
            (DType::BF16, AmxBf16) => unsafe { x86::tiles(steps) },
            _ => return None,
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
    use std::arch::asm;
    use std::arch::x86_64::{
        __m512bh, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps,
        _mm512_set1_ps,
    };
    use std::hint::black_box;

    use crate::nn::instructions::TILES;
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

    /// By matrix registers: four independent sums, 16 x 16 x 32 each.
    ///
    /// # Safety
    ///
    /// The processor must have them, and the system must allow them.
    pub(super) unsafe fn tiles(steps: usize) -> usize {
        // SAFETY: the configuration is one that the processor accepts; nothing is read or written.
        unsafe {
            asm!(
                "ldtilecfg [{configuration}]",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {steps}",
                "jnz 2b",
                "tilerelease",
                configuration = in(reg) &raw const TILES,
                steps = inout(reg) steps.max(1) => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
        4 * 2 * 16 * 16 * 32
    }
}

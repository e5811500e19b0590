//! The scalar type of the CPU kernels: f32 for work, f64 as its oracle. The transcendental functions of f32 are
//! short polynomials without branches, so that a loop over a slice becomes vector code; the coefficients are
//! minimax fits made for this file (relative error of the fits below 5e-9, so the f32 rounding dominates).

use candle_core::{CpuStorage, Result, WithDType, bail};

/// A scalar the CPU kernels can be compiled for.
pub trait Real: WithDType {
    fn exp(self) -> Self;
    fn erf(self) -> Self;
    fn sqrt(self) -> Self;
    /// `self * a + b`, rounded once where the machine can.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// The elements of a storage of this scalar, to write to.
    fn storage_slice_mut(storage: &mut CpuStorage) -> Result<&mut [Self]>;
}

/// The function `storage_slice_mut` of the scalar whose storage is this variant.
macro_rules! storage_slice_mut {
    ($variant:ident) => {
        fn storage_slice_mut(storage: &mut CpuStorage) -> Result<&mut [Self]> {
            match storage {
                CpuStorage::$variant(data) => Ok(data),
                _ => bail!("a kernel was given a tensor of another type of scalar"),
            }
        }
    };
}

/// Declares a function that is compiled three times, for any machine, for one with AVX2 and FMA, and for one with AVX-512, and picks at
/// run time. Only what is inlined into it is compiled so: its own loops and `#[inline(always)]` functions.
macro_rules! vectorised {
    (
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident<$($generic:ident: $bound:path),*>(
            $($argument:ident: $type:ty),* $(,)?
        ) $(-> $result:ty)? $body:block
    ) => {
        $(#[$attribute])*
        $visibility fn $name<$($generic: $bound),*>($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn plain<$($generic: $bound),*>($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn wide<$($generic: $bound),*>($($argument: $type),*) $(-> $result)? {
                    plain::<$($generic),*>($($argument),*)
                }
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                fn widest<$($generic: $bound),*>($($argument: $type),*) $(-> $result)? {
                    plain::<$($generic),*>($($argument),*)
                }
                let used = $crate::nn::instructions::Instructions::used();
                if used >= $crate::nn::instructions::Instructions::Avx512 {
                    // SAFETY: the machine has what `widest` is compiled for.
                    return unsafe { widest::<$($generic),*>($($argument),*) };
                }
                if used >= $crate::nn::instructions::Instructions::Avx2 {
                    // SAFETY: the machine has what `wide` is compiled for.
                    return unsafe { wide::<$($generic),*>($($argument),*) };
                }
            }
            plain::<$($generic),*>($($argument),*)
        }
    };
}
pub(crate) use vectorised;

impl Real for f64 {
    storage_slice_mut!(F64);

    fn exp(self) -> Self {
        self.exp()
    }
    fn erf(self) -> Self {
        candle_core::cpu::erf::erf_f64(self)
    }
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn mul_add(self, a: Self, b: Self) -> Self {
        self.mul_add(a, b)
    }
}

/// The polynomial with `coefficients` in rising order, at `x`.
#[inline(always)]
fn horner<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum.mul_add(x, coefficients[i]);
    }
    sum
}

impl Real for f32 {
    storage_slice_mut!(F32);

    /// e^x within 1 ulp; below -87.3 (where the result would be subnormal) it is 0. NaN stays NaN.
    #[inline(always)]
    fn exp(self) -> Self {
        const LOW: f32 = -87.336_54;
        const HIGH: f32 = 88.722_83;
        // Adding and taking away 1.5 * 2^23 rounds to the nearest integer, which then sits in the low bits.
        const ROUND: f32 = 12_582_912.0;
        // Comparisons, not `min` and `max`: those would turn a NaN into a number.
        let x = if self > HIGH { HIGH } else { self };
        let x = if x < LOW { LOW } else { x };
        let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
        let whole = shifted - ROUND;
        // ln 2 in two parts (Cody and Waite): the first has few digits, so that its product with `whole` is exact.
        let rest = whole.mul_add(-0.693_145_75, x);
        let rest = whole.mul_add(-1.428_606_8e-6, rest);
        let tail = horner(
            rest,
            [
                0.499_999_94,
                0.166_665_2,
                0.041_668_393,
                0.008_368_781,
                0.001_381_446_5,
            ],
        );
        let value = (rest * rest).mul_add(tail, rest) + 1.0;
        // 2^whole in two factors: at the top end one alone would be infinite.
        let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        let half = exponent >> 1;
        let first = Self::from_bits((half.wrapping_add(127) as u32) << 23);
        let second = Self::from_bits((exponent.wrapping_sub(half).wrapping_add(127) as u32) << 23);
        let value = value * first * second;
        let value = if self > HIGH { Self::INFINITY } else { value };
        if self < LOW { 0.0 } else { value }
    }

    /// The error function within 2 ulp.
    #[inline(always)]
    fn erf(self) -> Self {
        let size = self.abs();
        // 2 / sqrt(pi) = 1 + 0.128...: the whole part is added last, with one rounding.
        let near = self.mul_add(
            horner(
                self * self,
                [
                    0.128_379_17,
                    -0.376_126_26,
                    0.112_835_854,
                    -0.026_853_817,
                    0.005_188_334_3,
                    -0.000_801_024_4,
                    7.854_011e-5,
                ],
            ),
            self,
        );
        // 1 - erf(x) = exp(-Q(x)); from 4 on, erf is 1 in f32.
        let capped = if size > 4.0 { 4.0 } else { size };
        let log = horner(
            capped,
            [
                -0.000_188_040_04,
                1.129_578_5,
                0.633_219_9,
                0.108_418_58,
                -0.025_208_255,
                0.004_204_561_5,
                -4.413_363e-4,
                2.168_684_7e-5,
            ],
        );
        let far = 1.0 - Real::exp(-log);
        // Both are computed and one is picked: a branch would keep a loop from becoming vector code.
        if size < 1.0 { near } else { far.copysign(self) }
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        self.mul_add(a, b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest error of `ours` over `range`, in units of the last place of the true value.
    fn worst_ulp(range: (f32, f32), ours: impl Fn(f32) -> f32, truth: impl Fn(f64) -> f64) -> f64 {
        let mut worst = 0f64;
        for i in 0..=400_000 {
            let x = range.0 + (range.1 - range.0) * i as f32 / 400_000.0;
            let want = truth(f64::from(x));
            let rounded = want as f32;
            let ulp = f64::from(f32::from_bits(rounded.abs().to_bits() + 1) - rounded.abs());
            worst = worst.max((f64::from(ours(x)) - want).abs() / ulp);
        }
        worst
    }

    #[test]
    fn the_short_polynomials_stay_within_two_units_of_the_last_place() {
        let exp = worst_ulp((-87.3, 88.7), Real::exp, f64::exp);
        assert!(exp < 1.1, "exp: {exp} ulp");
        let exp = worst_ulp((-1.0, 1.0), Real::exp, f64::exp);
        assert!(exp < 1.1, "exp near 0: {exp} ulp");
        let erf = worst_ulp((-6.0, 6.0), Real::erf, Real::erf);
        assert!(erf < 2.0, "erf: {erf} ulp");
        let erf = worst_ulp((1e-4, 1.1), Real::erf, Real::erf);
        assert!(erf < 2.0, "erf near 0: {erf} ulp");
    }

    #[test]
    fn extremes_keep_their_meaning() {
        assert_eq!(Real::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Real::exp(-1e30f32), 0.0);
        assert_eq!(Real::exp(0f32), 1.0);
        assert_eq!(Real::exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(Real::exp(89f32), f32::INFINITY);
        assert_eq!(Real::erf(f32::NEG_INFINITY), -1.0);
        for f in [<f32 as Real>::exp, <f32 as Real>::erf] {
            assert!(f(f32::NAN).is_nan(), "NaN must not be hidden");
        }
    }
}

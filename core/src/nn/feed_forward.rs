//! The feed-forward half of a layer: two linears and what is between them.

use candle_core::{Result, Tensor};

#[cfg(target_arch = "x86_64")]
use super::cpu::{self, elements};
#[cfg(target_arch = "x86_64")]
use super::gemm::{Matrix, Prepacked};
#[cfg(target_arch = "x86_64")]
use super::linear::{check, check_base, with_plus};
use super::{Activation, Kernels, Packed};

/// What the activation is of. Matrices are `[inner, in]`.
#[derive(Clone, Copy)]
pub enum Inward<'a> {
    /// `activation(x w^T + b)`, with `b` `[inner]`.
    Plain(&'a Packed, Option<&'a Tensor>),
    /// `activation(x gate^T) * (x up^T)`.
    Gated {
        /// What is activated.
        gate: &'a Packed,
        /// What is multiplied by it.
        up: &'a Packed,
    },
}

impl Inward<'_> {
    /// The activated result `[.., inner]` of `x` `[.., in]`.
    ///
    /// # Errors
    ///
    /// As [`Packed::activated`] and [`Packed::gated`].
    pub fn activated(
        self,
        kernels: &Kernels,
        x: &Tensor,
        activation: Activation,
    ) -> Result<Tensor> {
        match self {
            Self::Plain(w, b) => w.activated(kernels, x, b, activation),
            Self::Gated { gate, up } => {
                up.gated(kernels, x, activation, &gate.linear(kernels, x, None)?)
            }
        }
    }
}

/// Two linear layers with an activation between them.
pub struct FeedForward<'a> {
    /// The first one.
    pub inward: Inward<'a>,
    /// Between them.
    pub activation: Activation,
    /// The second one's matrix `[out, inner]`, and its bias `[out]`.
    pub outward: (&'a Packed, Option<&'a Tensor>),
}

impl FeedForward<'_> {
    /// `base` plus the second linear of the activated first one of `x`: `x` is `[.., in]`, `base` `[.., out]`. As by the operations one
    /// after the other, bit for bit.
    ///
    /// # Errors
    ///
    /// As [`Packed::linear_onto`].
    pub fn onto(&self, kernels: &Kernels, base: &Tensor, x: &Tensor) -> Result<Tensor> {
        #[cfg(target_arch = "x86_64")]
        if let Some(y) = self.by_rounding(base, x)? {
            return Ok(y);
        }
        let inner = self.inward.activated(kernels, x, self.activation)?;
        let (w, b) = self.outward;
        w.linear_onto(kernels, base, &inner, b)
    }

    /// By products that give what is between the linears as the second one reads it, in bf16, where the processor has them: half as much
    /// goes to memory and comes from there.
    #[cfg(target_arch = "x86_64")]
    fn by_rounding(&self, base: &Tensor, x: &Tensor) -> Result<Option<Tensor>> {
        let (outward, outward_bias) = self.outward;
        let (up, bias, gate) = match self.inward {
            Inward::Plain(w, b) => (w, b, None),
            Inward::Gated { gate, up } => (up, None, Some(gate)),
        };
        /// What products read of the matrix, if they round and take what was rounded.
        fn rounding<'a>(w: &'a Packed, x: &Tensor) -> Option<&'a Prepacked> {
            w.packed_for(x).filter(|w| w.takes_rounded())
        }

        let (Some(first), Some(second)) = (rounding(up, x), rounding(outward, x)) else {
            return Ok(None);
        };
        let beside = match gate.map(|gate| rounding(gate, x)) {
            Some(None) => return Ok(None),
            beside => beside.flatten(),
        };
        let [hidden, width] = up.shape();
        let [out, taken] = outward.shape();
        if taken != hidden || outward_bias.is_some_and(|b| b.dims() != [out]) {
            // Told by the operations one after the other.
            return Ok(None);
        }
        check(x, [hidden, width], bias)?;
        check_base(x, [out, width], Some(base))?;
        let edit = |y: &mut [f32], gate: &[f32]| match gate {
            [] => self.activation.edit(y),
            gate => self.activation.edit_gated(y, gate),
        };
        let (rows, _) = cpu::rows_of(x)?;
        let x_dense = cpu::contiguous(x)?;
        let numbers = elements::<f32>(&x_dense)?;
        let left = Matrix::new(&numbers, rows, width, width);
        let inner = with_plus(bias, None, |plus| {
            Ok(first.rounded(left, plus.row, beside, &edit))
        })?;
        let Some(inner) = inner else {
            return Ok(None);
        };
        let y = with_plus(outward_bias, Some(base), |plus| {
            Ok(second.product_of_rounded(&inner, plus))
        })?;
        cpu::tensor(y, base.dims()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    #[cfg(target_arch = "x86_64")]
    use crate::nn::Instructions;
    use crate::nn::testing::normal;

    fn numbers(salt: u64, shape: &[usize], dtype: DType) -> Tensor {
        normal(salt, shape).to_dtype(dtype).unwrap()
    }

    fn bits(t: &Tensor) -> Vec<u32> {
        let numbers = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        numbers.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn it_is_its_operations_one_after_the_other() {
        let kernels = &Kernels::NONE;
        for (rows, width, hidden, out) in [
            (1, 2, 2, 1),
            (77, 64, 96, 40),
            (33, 66, 34, 70),
            (130, 768, 1030, 33),
            // More than one block of the inner dimension, of the first linear and of the second.
            (3, 2080, 64, 16),
            (40, 64, 6200, 16),
        ] {
            for dtype in [DType::F32, DType::BF16] {
                let matrix = |salt, shape: &[usize]| {
                    let w = (numbers(salt, shape, DType::F32) * 0.2).unwrap();
                    Packed::new(&w.to_dtype(dtype).unwrap()).unwrap()
                };
                let (up, gate) = (matrix(1, &[hidden, width]), matrix(2, &[hidden, width]));
                let down = matrix(3, &[out, hidden]);
                let [up_bias, down_bias] =
                    [(4, hidden), (5, out)].map(|(s, n)| numbers(s, &[n], dtype));
                let x = numbers(6, &[rows, width], DType::F32);
                let base = numbers(7, &[rows, out], DType::F32);
                for activation in [
                    Activation::GeluErf,
                    Activation::GeluTanh,
                    Activation::QuickGelu,
                    Activation::Silu,
                ] {
                    for (inward, bias) in [
                        (Inward::Plain(&up, Some(&up_bias)), Some(&down_bias)),
                        (Inward::Plain(&up, None), None),
                        (
                            Inward::Gated {
                                gate: &gate,
                                up: &up,
                            },
                            None,
                        ),
                    ] {
                        let inner = match inward {
                            Inward::Plain(w, b) => w.activated(kernels, &x, b, activation),
                            Inward::Gated { gate, up } => {
                                let gate = gate.linear(kernels, &x, None).unwrap();
                                up.gated(kernels, &x, activation, &gate)
                            }
                        };
                        let want = down
                            .linear_onto(kernels, &base, &inner.unwrap(), bias)
                            .unwrap();
                        let feed_forward = FeedForward {
                            inward,
                            activation,
                            outward: (&down, bias),
                        };
                        #[cfg(target_arch = "x86_64")]
                        assert_eq!(
                            feed_forward.by_rounding(&base, &x).unwrap().is_some(),
                            Instructions::used() == Instructions::AmxBf16
                                && dtype == DType::BF16
                                && width <= 2048,
                        );
                        let found = feed_forward.onto(kernels, &base, &x).unwrap();
                        assert_eq!(found.dims(), want.dims());
                        assert!(
                            bits(&found) == bits(&want),
                            "{rows}, {width}, {hidden}, {dtype:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let dtype = DType::BF16;
        let matrix = |shape: &[usize]| Packed::new(&numbers(1, shape, dtype)).unwrap();
        let (up, narrow, down) = (matrix(&[8, 4]), matrix(&[6, 4]), matrix(&[2, 8]));
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let of = |inward, outward, base: &[usize], x: &[usize]| {
            let activation = Activation::Silu;
            let feed_forward = FeedForward {
                inward,
                activation,
                outward,
            };
            feed_forward.onto(&Kernels::NONE, &zeros(base), &zeros(x))
        };
        let (plain, none) = (Inward::Plain(&up, None), (&down, None));
        let bias = zeros(&[3]);
        assert!(of(plain, none, &[5, 2], &[5, 4]).is_ok());
        assert!(of(plain, none, &[4, 2], &[5, 4]).is_err());
        assert!(of(plain, none, &[5, 2], &[5, 6]).is_err());
        assert!(of(plain, (&down, Some(&bias)), &[5, 2], &[5, 4]).is_err());
        assert!(of(plain, (&narrow, None), &[5, 6], &[5, 4]).is_err());
        let biased = Inward::Plain(&up, Some(&bias));
        assert!(of(biased, none, &[5, 2], &[5, 4]).is_err());
        let gated = Inward::Gated {
            gate: &narrow,
            up: &up,
        };
        assert!(of(gated, none, &[5, 2], &[5, 4]).is_err());
    }
}

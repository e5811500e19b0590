//! Products of frozen linear layers in 8-bit floats: a scale for each tensor, found anew for every input and gradient.
//!
//! As torchao trains them (its `Float8Linear`, scaled by tensor): inputs and weights are rounded to e4m3, which is the more exact, gradients
//! to e5m2, which reaches further. Sums are in f32, results in the type of the input. A GPU multiplies the 8-bit numbers themselves; a CPU the
//! same numbers made wide, so that both round the same. It refuses a GPU without kernels of ours, and extents that are no
//! multiples of 16.

use candle_core::{DType, Device, Result, Tensor, bail};
use float8::{F8E4M3, F8E5M2};
use rayon::prelude::*;

use super::Kernels;
use super::cpu::{self, GRAIN, elements};
#[cfg(feature = "cuda")]
use super::cuda::fp8 as cuda;
use super::linear::{check, product_plus, shape_with_last};
use super::real::Real;
use super::weights;

/// Inputs and outputs are multiples of this: GPUs multiply no other matrices of 8-bit floats.
const MULTIPLE: usize = 16;

/// A type of 8-bit floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Float8 {
    /// `float8_e4m3fn`: up to 448, 3 bits behind the point.
    E4M3,
    /// `float8_e5m2`: up to 57344, 2 bits behind the point.
    E5M2,
}

impl Float8 {
    pub(super) const fn largest(self) -> f64 {
        match self {
            Self::E4M3 => 448.0,
            Self::E5M2 => 57344.0,
        }
    }

    fn code(self, x: f32) -> u8 {
        match self {
            Self::E4M3 => F8E4M3::from_f32(x).to_bits(),
            Self::E5M2 => F8E5M2::from_f32(x).to_bits(),
        }
    }

    /// The number of a code.
    fn number(self, code: u8) -> f32 {
        match self {
            Self::E4M3 => weights::e4m3(code),
            Self::E5M2 => weights::e5m2(code),
        }
    }

    /// What numbers of which `largest` is the largest are multiplied by before they are rounded, and what their codes' numbers are
    /// multiplied by. No number is too small to divide by; where one is none, the scale is none, and so is all that is computed by it.
    fn scales(self, largest: f32) -> (f32, f32) {
        if !largest.is_finite() {
            return (0.0, f32::NAN);
        }
        let over = (self.largest() / f64::from(largest).max(LEAST)) as f32;
        (over, 1.0 / over)
    }
}

/// A tensor whose numbers are all smaller is scaled as if this were its largest, as in torchao.
pub(super) const LEAST: f64 = 1e-12;

/// A tensor in 8-bit floats.
pub(super) struct Rounded {
    pub(super) format: Float8,
    /// `[rows, width]` u8
    pub(super) codes: Tensor,
    /// `[1]` f32: what the codes' numbers are multiplied by.
    pub(super) scale: Tensor,
}

impl Rounded {
    /// `x` `[.., width]`, as rows.
    pub(super) fn new(kernels: &Kernels, x: &Tensor, format: Float8) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Some(k) = kernels.serving(x) {
            return cuda::rounded(k, x, format);
        }
        let _ = kernels;
        if !x.device().is_cpu() {
            return not_served();
        }
        let extents = cpu::rows_of(x)?;
        let x = cpu::dense::<f32>(x)?;
        let x = elements::<f32>(&x)?;
        // As bits, by which what is no number is larger than all that are.
        let magnitudes = x.par_iter().map(|x| x.abs().to_bits());
        let (over, scale) = format.scales(f32::from_bits(magnitudes.reduce(|| 0, u32::max)));
        let mut codes = vec![0; x.len()];
        let pieces = codes.par_chunks_mut(GRAIN).zip(x.par_chunks(GRAIN));
        pieces.for_each(|(codes, x)| {
            for (code, x) in codes.iter_mut().zip(x) {
                *code = format.code(x * over);
            }
        });
        Ok(Self {
            format,
            codes: Tensor::from_vec(codes, extents, &Device::Cpu)?,
            scale: Tensor::new(&[scale], &Device::Cpu)?,
        })
    }

    /// The codes' numbers on a CPU, before the scale.
    fn numbers<T: Real>(&self) -> Result<Tensor> {
        let codes = elements::<u8>(&self.codes)?;
        let mut out = vec![T::zero(); codes.len()];
        let pieces = out.par_chunks_mut(GRAIN).zip(codes.par_chunks(GRAIN));
        pieces.for_each(|(out, codes)| {
            for (x, &code) in out.iter_mut().zip(codes) {
                *x = T::from_f64(f64::from(self.format.number(code)));
            }
        });
        cpu::tensor(out, self.codes.dims())
    }

    fn scale_on_cpu(&self) -> Result<f64> {
        Ok(f64::from(self.scale.to_vec1::<f32>()?[0]))
    }
}

fn not_served<T>() -> Result<T> {
    bail!("products in fp8 on a GPU are computed by own kernels alone (`--own-kernels`)")
}

/// The frozen matrix `[out, in]` of a linear layer in e4m3.
pub(super) struct Fp8Matrix {
    rounded: Rounded,
    /// `[in, out]` u8: a GPU multiplies gradients by codes in this order. Made for each of them where it is not kept.
    #[cfg(feature = "cuda")]
    turned: Option<Tensor>,
}

impl Fp8Matrix {
    /// Whether a matrix of this shape can be one.
    pub(super) fn fits(shape: [usize; 2]) -> bool {
        shape.iter().all(|n| *n > 0 && n.is_multiple_of(MULTIPLE))
    }

    /// `matrix`, rounded from f32 on the device that computes: the codes are the same on all. `in_both_orders` takes twice the memory on a GPU,
    /// and the time of a copy less in each backward pass.
    pub(super) fn new(
        kernels: &Kernels,
        matrix: &Tensor,
        device: &Device,
        in_both_orders: bool,
    ) -> Result<Self> {
        let shape = matrix.dims2()?;
        if !Self::fits(shape.into()) {
            bail!("a matrix {shape:?} does not come in multiples of {MULTIPLE}");
        }
        let wide = matrix.to_device(device)?.to_dtype(DType::F32)?;
        let rounded = Rounded::new(kernels, &wide, Float8::E4M3)?;
        #[cfg(feature = "cuda")]
        if let Some(k) = kernels.for_fp8(device) {
            let turned = in_both_orders.then(|| cuda::transposed(k, &rounded.codes));
            return Ok(Self {
                turned: turned.transpose()?,
                rounded,
            });
        }
        let _ = (in_both_orders, kernels);
        if !device.is_cpu() {
            return not_served();
        }
        Ok(Self {
            rounded,
            #[cfg(feature = "cuda")]
            turned: None,
        })
    }

    /// Outputs and inputs.
    pub(super) fn shape(&self) -> Result<[usize; 2]> {
        Ok(self.rounded.codes.dims2()?.into())
    }

    /// `x w^T + b`, of `x` `[.., in]` and `b` `[out]`, in the type of `x`.
    pub(super) fn linear(
        &self,
        kernels: &Kernels,
        x: &Tensor,
        b: Option<&Tensor>,
    ) -> Result<Tensor> {
        check(x, self.shape()?, b)?;
        let rounded = Rounded::new(kernels, x, Float8::E4M3)?;
        self.linear_of(kernels, x, &rounded, b)
    }

    /// The same of `x` that was rounded before: for several linear layers of one input.
    pub(super) fn linear_of(
        &self,
        kernels: &Kernels,
        x: &Tensor,
        rounded: &Rounded,
        b: Option<&Tensor>,
    ) -> Result<Tensor> {
        let [out, _] = self.shape()?;
        let shape = shape_with_last(x, out);
        #[cfg(feature = "cuda")]
        if let Some(k) = kernels.serving(x) {
            let w = (&self.rounded.codes, &self.rounded.scale);
            let y = cuda::product(k, rounded, w, b, (x.dtype(), None))?;
            return y.reshape(shape);
        }
        let _ = kernels;
        let y = self.product_on_cpu(rounded, false, x.dtype(), (b, None))?;
        y.reshape(shape)
    }

    /// `gradient w`, of a gradient `[.., out]`, added to `earlier` if there is one, which is edited.
    pub(super) fn input_gradient(
        &self,
        kernels: &Kernels,
        gradient: &Tensor,
        earlier: Option<Tensor>,
    ) -> Result<Tensor> {
        let [out, inputs] = self.shape()?;
        let (_, width) = cpu::rows_of(gradient)?;
        if width != out {
            bail!("a gradient of {width} numbers a row for a linear of {out} outputs");
        }
        let shape = shape_with_last(gradient, inputs);
        if let Some(earlier) = &earlier
            && earlier.dims() != shape
        {
            let found = earlier.dims();
            bail!("a gradient of {shape:?} added to one of {found:?}");
        }
        let rounded = Rounded::new(kernels, gradient, Float8::E5M2)?;
        #[cfg(feature = "cuda")]
        if let Some(k) = kernels.serving(gradient) {
            let turned = match &self.turned {
                Some(turned) => turned.clone(),
                None => cuda::transposed(k, &self.rounded.codes)?,
            };
            let w = (&turned, &self.rounded.scale);
            let dx = cuda::product(k, &rounded, w, None, (gradient.dtype(), earlier.as_ref()))?;
            return dx.reshape(shape);
        }
        let dtype = gradient.dtype();
        let dx = self.product_on_cpu(&rounded, true, dtype, (None, earlier.as_ref()))?;
        dx.reshape(shape)
    }

    /// `x w^T + b + base`, or `x w` where the product is `by_columns`.
    fn product_on_cpu(
        &self,
        x: &Rounded,
        by_columns: bool,
        dtype: DType,
        plus: (Option<&Tensor>, Option<&Tensor>),
    ) -> Result<Tensor> {
        match dtype {
            DType::F64 => self.product::<f64>(x, by_columns, plus),
            _ => self.product::<f32>(x, by_columns, plus)?.to_dtype(dtype),
        }
    }

    fn product<T: Real>(
        &self,
        x: &Rounded,
        by_columns: bool,
        (b, base): (Option<&Tensor>, Option<&Tensor>),
    ) -> Result<Tensor> {
        let [out, inputs] = self.shape()?;
        let columns = if by_columns { inputs } else { out };
        let scale = x.scale_on_cpu()? * self.rounded.scale_on_cpu()?;
        let base = base.map(|base| base.to_dtype(T::DTYPE)).transpose()?;
        let shape = [x.codes.dim(0)?, columns];
        let (left, right) = (x.numbers::<T>()?, self.rounded.numbers::<T>()?);
        let factors = ((&left, false), (&right, !by_columns));
        product_plus::<T>(&shape, scale, factors, (b, base.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::safetensors::load;

    use super::*;
    use crate::nn::testing::{difference, normal};

    fn values(t: &Tensor) -> Vec<f32> {
        t.flatten_all()
            .and_then(|t| t.to_vec1())
            .expect("f32 values")
    }

    fn on_cpu(w: &Tensor) -> Fp8Matrix {
        Fp8Matrix::new(&Kernels::NONE, w, &Device::Cpu, true).expect("a matrix")
    }

    /// tools/goldens/fp8.py
    #[test]
    fn rounded_numbers_and_products_are_those_of_torchao() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/golden/fp8.safetensors"
        );
        let golden = load(path, &Device::Cpu).expect("a golden file");
        let none = &Kernels::NONE;
        for name in ["normal", "one_row", "outliers", "coarse", "tiny", "zeros"] {
            let get = |what: &str| &golden[&format!("{name}.{what}")];
            for (what, format) in [
                ("x", Float8::E4M3),
                ("w", Float8::E4M3),
                ("g", Float8::E5M2),
            ] {
                let found = Rounded::new(none, get(what), format).expect("rounded");
                let codes = |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<u8>());
                let want = codes(get(&format!("{what}.codes"))).expect("bytes");
                assert_eq!(codes(&found.codes).expect("bytes"), want, "{name} {what}");
                let want = values(get(&format!("{what}.scale")));
                assert_eq!(values(&found.scale), want, "{name} {what}");
            }
            let w = on_cpu(get("w"));
            let y = w.linear(none, get("x"), Some(get("b"))).expect("a product");
            let dx = w.input_gradient(none, get("g"), None).expect("a product");
            for (found, want) in [(y, "y"), (dx, "dx")] {
                let off = difference(&found, get(want));
                assert!(off < 2e-6, "{name} {want}: {off}");
            }
        }
    }

    #[test]
    fn each_number_becomes_the_nearest_and_of_two_the_even() {
        for format in [Float8::E4M3, Float8::E5M2] {
            let positive: Vec<(u8, f32)> = (0..128)
                .map(|code| (code, format.number(code)))
                .filter(|(_, x)| x.is_finite())
                .collect();
            assert_eq!(positive.last().expect("some").1 as f64, format.largest());
            for pair in positive.windows(2) {
                let ((low, below), (high, above)) = (pair[0], pair[1]);
                let middle = (below + above) / 2.0;
                let even = if low % 2 == 0 { low } else { high };
                for (x, want) in [
                    (below, low),
                    (middle.next_down(), low),
                    (middle, even),
                    (middle.next_up(), high),
                ] {
                    assert_eq!(format.code(x), want, "{format:?} {x}");
                    assert_eq!(format.code(-x), want | 128, "{format:?} -{x}");
                }
            }
            // Never infinite: a largest number that rounding carried beyond is the largest there is.
            let beyond = (format.largest() as f32).next_up();
            assert_eq!(
                f64::from(format.number(format.code(beyond))),
                format.largest()
            );
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let w = on_cpu(&normal(1, &[16, 32]));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1f32; 64];
            x[40] = bad;
            let x = Tensor::from_vec(x, (2, 32), &Device::Cpu).expect("x");
            let y = w.linear(&Kernels::NONE, &x, None).expect("a product");
            assert!(values(&y).iter().any(|y| y.is_nan()), "{bad}");
        }
    }

    #[test]
    fn gradients_are_added_to_earlier_ones_and_types_kept() {
        let (none, w) = (&Kernels::NONE, on_cpu(&normal(1, &[32, 48])));
        let (g, earlier) = (normal(2, &[2, 3, 32]), normal(3, &[2, 3, 48]));
        let alone = w.input_gradient(none, &g, None).expect("a product");
        assert_eq!(alone.dims(), [2, 3, 48]);
        let sum = w.input_gradient(none, &g, Some(earlier.copy().expect("a copy")));
        let want = (&alone + &earlier).expect("a sum");
        assert!(difference(&sum.expect("a product"), &want) < 1e-12);
        let single = g.to_dtype(DType::BF16).expect("bf16");
        let found = w.input_gradient(none, &single, None).expect("a product");
        assert_eq!(found.dtype(), DType::BF16);
        let wide = single.to_dtype(DType::F64).expect("f64");
        let want = w.input_gradient(none, &wide, None).expect("a product");
        assert!(difference(&found, &want) < 4e-3);
        for wrong in [&[2, 31][..], &[2, 48]] {
            assert!(w.input_gradient(none, &normal(4, wrong), None).is_err());
        }
        let odd = normal(5, &[16, 24]);
        assert!(Fp8Matrix::new(none, &odd, &Device::Cpu, false).is_err());
    }
}

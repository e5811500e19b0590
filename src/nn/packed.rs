//! Matrices of linear layers in the order of the processor's products.

#[cfg(target_arch = "x86_64")]
use std::sync::Arc;

use candle_core::{DType, Result, Tensor};
#[cfg(target_arch = "x86_64")]
use half::bf16;

use super::Kernels;
#[cfg(target_arch = "x86_64")]
use super::cpu::elements;
#[cfg(target_arch = "x86_64")]
use super::gemm::{Matrix, Prepacked};
#[cfg(target_arch = "x86_64")]
use super::linear::{check, check_base, single_product};
use super::linear::{linear, linear_onto};

/// The matrix `[out, in]` of a frozen linear layer, on a CPU in the order in which its products read it: so it is not brought into that
/// order in each product. Results are those of [`linear`] and [`linear_onto`], bit for bit.
#[derive(Clone)]
pub struct Packed {
    shape: [usize; 2],
    dtype: DType,
    form: Form,
}

#[derive(Clone)]
enum Form {
    Whole(Tensor),
    #[cfg(target_arch = "x86_64")]
    Packed(Arc<Prepacked>),
}

impl Packed {
    /// Packs `w`, where the device and its products do.
    ///
    /// # Errors
    ///
    /// If `w` is no matrix, and those of the backend.
    pub fn new(w: &Tensor) -> Result<Self> {
        Ok(Self {
            shape: w.dims2()?.into(),
            dtype: w.dtype(),
            form: Form::of(w)?,
        })
    }

    /// `w` as it is: for a few products, packing all of it first gains nothing.
    ///
    /// # Errors
    ///
    /// If `w` is no matrix.
    pub fn whole(w: &Tensor) -> Result<Self> {
        Ok(Self {
            shape: w.dims2()?.into(),
            dtype: w.dtype(),
            form: Form::Whole(w.clone()),
        })
    }

    /// The type of its numbers.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// [`linear`] by this matrix.
    ///
    /// # Errors
    ///
    /// As [`linear`].
    pub fn linear(&self, kernels: &Kernels, x: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
        match &self.form {
            Form::Whole(w) => linear(kernels, x, w, b),
            #[cfg(target_arch = "x86_64")]
            Form::Packed(w) => self.product(w, x, b, None),
        }
    }

    /// [`linear_onto`] by this matrix.
    ///
    /// # Errors
    ///
    /// As [`linear_onto`].
    pub fn linear_onto(
        &self,
        kernels: &Kernels,
        base: &Tensor,
        x: &Tensor,
        b: Option<&Tensor>,
    ) -> Result<Tensor> {
        match &self.form {
            Form::Whole(w) => linear_onto(kernels, base, x, w, b),
            #[cfg(target_arch = "x86_64")]
            Form::Packed(w) => self.product(w, x, b, Some(base)),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn product(
        &self,
        w: &Prepacked,
        x: &Tensor,
        b: Option<&Tensor>,
        base: Option<&Tensor>,
    ) -> Result<Tensor> {
        check(x, self.shape, b)?;
        check_base(x, self.shape, base)?;
        single_product(x, self.shape, b, base, |x, plus| Ok(w.product(x, plus)))
    }
}

impl Form {
    #[cfg(target_arch = "x86_64")]
    fn of(w: &Tensor) -> Result<Self> {
        let (out, inner) = w.dims2()?;
        let packed = match w.dtype() {
            _ if !w.device().is_cpu() => None,
            DType::F32 => {
                let dense = w.contiguous()?;
                let numbers = elements::<f32>(&dense)?;
                Prepacked::of_f32(Matrix::new(&numbers, out, inner, inner).t())
            }
            DType::BF16 => {
                let dense = w.contiguous()?;
                let numbers = elements::<bf16>(&dense)?;
                Prepacked::of_bf16(Matrix::new(&numbers, out, inner, inner).t())
            }
            _ => None,
        };
        Ok(packed.map_or_else(
            || Self::Whole(w.clone()),
            |packed| Self::Packed(Arc::new(packed)),
        ))
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn of(w: &Tensor) -> Result<Self> {
        Ok(Self::Whole(w.clone()))
    }
}

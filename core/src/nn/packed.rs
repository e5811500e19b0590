//! Matrices of linear layers in the order of the processor's products.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};
#[cfg(target_arch = "x86_64")]
use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::cpu::{self, elements, kernel_scalar};
use super::fp8::Fp8Matrix;
#[cfg(target_arch = "x86_64")]
use super::gemm::{Finish, Matrix, MatrixMut, Prepacked};
#[cfg(target_arch = "x86_64")]
use super::linear::{check, check_base, shape_with_last, single_product};
use super::linear::{input_gradient, linear, linear_onto};
use super::real::Real;
use super::{Activation, Kernels};

/// The matrix `[out, in]` of a frozen linear layer, on a CPU in the order in which its products read it: so it is not brought into that
/// order in each product. Results are those of [`linear`] and [`linear_onto`], bit for bit. Or the matrix in 8-bit floats, by which products
/// are other ones. Cheap to clone.
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
    Fp8(Arc<Fp8Matrix>),
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

    /// A matrix in 8-bit floats; `dtype` is what goes in and comes out of products.
    pub(super) fn fp8(matrix: Arc<Fp8Matrix>, dtype: DType) -> Result<Self> {
        Ok(Self {
            shape: matrix.shape()?,
            dtype,
            form: Form::Fp8(matrix),
        })
    }

    /// The matrix in 8-bit floats, if it is one.
    pub(super) fn in_fp8(&self) -> Option<&Fp8Matrix> {
        match &self.form {
            Form::Fp8(matrix) => Some(matrix),
            _ => None,
        }
    }

    /// Outputs and inputs.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
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
        #[cfg(target_arch = "x86_64")]
        if let Some(w) = self.packed_for(x) {
            return self.product(w, x, (b, None), None);
        }
        if let Some(w) = self.in_fp8() {
            return w.linear(kernels, x, b);
        }
        linear(kernels, x, &self.tensor()?, b)
    }

    /// `activation(x w^T + b)`: as [`Self::linear`], then [`Activation::apply`], bit for bit.
    ///
    /// # Errors
    ///
    /// As [`linear`].
    pub fn activated(
        &self,
        kernels: &Kernels,
        x: &Tensor,
        b: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        #[cfg(target_arch = "x86_64")]
        if let Some(w) = self.packed_for(x) {
            let finish = Finish {
                edit: &|y, _| activation.edit(y),
                beside: &[],
            };
            return self.product(w, x, (b, None), Some(finish));
        }
        activation.apply_in_place(kernels, self.linear(kernels, x, b)?)
    }

    /// `activation(gate) * (x w^T)`, with `gate` in the shape of the result: as [`Self::linear`], then [`Activation::apply_gated`],
    /// bit for bit.
    ///
    /// # Errors
    ///
    /// As [`linear`], and if `gate` does not fit.
    pub fn gated(
        &self,
        kernels: &Kernels,
        x: &Tensor,
        activation: Activation,
        gate: &Tensor,
    ) -> Result<Tensor> {
        #[cfg(target_arch = "x86_64")]
        if let Some(w) = self.packed_for(x) {
            check_base(x, self.shape, Some(gate))?;
            let gate = cpu::contiguous(gate)?;
            let finish = Finish {
                edit: &|y, gate| activation.edit_gated(y, gate),
                beside: &elements::<f32>(&gate)?,
            };
            return self.product(w, x, (None, None), Some(finish));
        }
        activation.gate_in_place(kernels, gate, self.linear(kernels, x, None)?)
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
        #[cfg(target_arch = "x86_64")]
        if let Some(w) = self.packed_for(x) {
            return self.product(w, x, (b, Some(base)), None);
        }
        if let Some(w) = self.in_fp8() {
            return base + w.linear(kernels, x, b)?;
        }
        linear_onto(kernels, base, x, &self.tensor()?, b)
    }

    /// The gradient towards `x` of one towards [`Self::linear`]'s result, which is contiguous; added to `earlier` in place if there
    /// is one. By kernels of the CPU.
    pub(super) fn input_gradient<T: Real>(
        &self,
        gradient: &Tensor,
        earlier: Option<Tensor>,
    ) -> Result<Tensor> {
        #[cfg(target_arch = "x86_64")]
        if let Some(w) = self.packed_for(gradient)
            && self.dtype == DType::F32
        {
            return self.gradient_by(w, gradient, earlier);
        }
        if let Some(w) = self.in_fp8() {
            return w.input_gradient(&Kernels::NONE, gradient, earlier);
        }
        input_gradient::<T>(gradient, &self.tensor()?, earlier)
    }

    /// The matrix as a tensor; made anew where it is packed.
    ///
    /// # Errors
    ///
    /// If it is in 8-bit floats or packed in pairs of bf16, which only products read.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        match &self.form {
            Form::Whole(w) => Ok(w.clone()),
            #[cfg(target_arch = "x86_64")]
            Form::Packed(w) => match w.transpose() {
                Some(rows) => cpu::tensor(rows, &self.shape),
                None => candle_core::bail!("a matrix of pairs of bf16 is read by products alone"),
            },
            Form::Fp8(_) => candle_core::bail!("a matrix in fp8 is read by products alone"),
        }
    }

    /// What products with `x` read, where the matrix is packed.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn packed_for(&self, x: &Tensor) -> Option<&Prepacked> {
        let served = kernel_scalar(x) == Some(DType::F32) || self.dtype == DType::BF16;
        match &self.form {
            Form::Packed(w) if served => Some(w),
            _ => None,
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn product(
        &self,
        w: &Prepacked,
        x: &Tensor,
        (b, base): (Option<&Tensor>, Option<&Tensor>),
        finish: Option<Finish<'_>>,
    ) -> Result<Tensor> {
        check(x, self.shape, b)?;
        check_base(x, self.shape, base)?;
        single_product(x, self.shape, b, base, |x, plus| {
            Ok(w.product(x, plus, finish))
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn gradient_by(
        &self,
        w: &Prepacked,
        gradient: &Tensor,
        earlier: Option<Tensor>,
    ) -> Result<Tensor> {
        let (rows, out) = cpu::rows_of(gradient)?;
        let [expected, inner] = self.shape;
        if out != expected {
            candle_core::bail!(
                "a gradient of {out} numbers a row for a linear of {expected} outputs"
            );
        }
        let numbers = elements::<f32>(gradient)?;
        let rows_of_gradient = Matrix::new(&numbers, rows, out, out);
        let shape = shape_with_last(gradient, inner);
        let Some(earlier) = earlier else {
            return cpu::tensor(w.product_with_transpose(rows_of_gradient), &shape);
        };
        if earlier.dims() != shape {
            candle_core::bail!(
                "a gradient of {shape:?} added to one of {:?}",
                earlier.dims()
            );
        }
        cpu::edit::<f32>(&earlier, |sum| {
            let target = &mut MatrixMut::new(sum, rows, inner, inner);
            w.add_product_with_transpose(target, rows_of_gradient);
        })?;
        Ok(earlier)
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

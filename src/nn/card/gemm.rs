//! Products of matrices by cuBLAS that candle does not offer: added to what is there, or with the sums in f32 kept.

use std::ffi::c_void;

use candle_core::cuda_backend::WrapErr as _;
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::{DType, Result, Tensor, bail};

use super::Kernels;

/// A matrix as a factor of a product: as it lies, or its transpose.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    matrix: &'a Tensor,
    turned: bool,
}

impl<'a> Factor<'a> {
    pub(crate) fn of(matrix: &'a Tensor) -> Self {
        Self {
            matrix,
            turned: false,
        }
    }

    pub(crate) fn turned(matrix: &'a Tensor) -> Self {
        Self {
            matrix,
            turned: true,
        }
    }

    /// Rows and columns, as a factor.
    fn dims(self) -> Result<(usize, usize)> {
        let (rows, columns) = self.matrix.dims2()?;
        Ok(match self.turned {
            true => (columns, rows),
            false => (rows, columns),
        })
    }

    /// cuBLAS counts columns first, so that it sees the transpose of what lies there.
    fn seen(self) -> Result<(sys::cublasOperation_t, i32)> {
        let operation = match self.turned {
            true => sys::cublasOperation_t::CUBLAS_OP_T,
            false => sys::cublasOperation_t::CUBLAS_OP_N,
        };
        Ok((operation, self.matrix.dim(1)? as i32))
    }
}

/// `target += factor a b`, in place. `target` must be nobody else's.
pub(crate) fn add_product(
    kernels: &Kernels,
    target: &Tensor,
    factor: f64,
    a: Factor<'_>,
    b: Factor<'_>,
) -> Result<()> {
    product(kernels, target, (factor, 1.0), a, b)
}

/// `factor a b` in f32, whatever the type of `a` and `b`.
pub(crate) fn wide_product(
    kernels: &Kernels,
    factor: f64,
    a: Factor<'_>,
    b: Factor<'_>,
) -> Result<Tensor> {
    let out = kernels.room((a.dims()?.0, b.dims()?.1), DType::F32)?;
    product(kernels, &out, (factor, 0.0), a, b)?;
    Ok(out)
}

/// `target = alpha a b + beta target`, summed in f32.
fn product(
    kernels: &Kernels,
    target: &Tensor,
    (alpha, beta): (f64, f64),
    a: Factor<'_>,
    b: Factor<'_>,
) -> Result<()> {
    let ((m, k), (inner, n)) = (a.dims()?, b.dims()?);
    if k != inner || target.dims() != [m, n] || a.matrix.dtype() != b.matrix.dtype() {
        bail!(
            "{:?} = {:?} {:?} ({:?}, {:?})",
            target.dims(),
            [m, k],
            [inner, n],
            a.matrix.dtype(),
            b.matrix.dtype()
        );
    }
    let kind = |t: &Tensor| match t.dtype() {
        DType::BF16 => Ok(sys::cudaDataType_t::CUDA_R_16BF),
        DType::F32 => Ok(sys::cudaDataType_t::CUDA_R_32F),
        other => bail!("no product of {other:?}"),
    };
    let at = |t: &Tensor| kernels.address(t).map(|address| address as *const c_void);
    let (alpha, beta) = (alpha as f32, beta as f32);
    let number = |x: &f32| std::ptr::from_ref(x).cast::<c_void>();
    let ((turn_a, row_a), (turn_b, row_b)) = (a.seen()?, b.seen()?);
    // The transpose of the product is the product of the transposes, the second first.
    // SAFETY: the extents were checked, the rows lie in one piece, and all three live until the product is asked for.
    unsafe {
        result::gemm_ex(
            *kernels.0.device.cublas_handle().handle(),
            turn_b,
            turn_a,
            n as i32,
            m as i32,
            k as i32,
            number(&alpha),
            at(b.matrix)?,
            kind(b.matrix)?,
            row_b,
            at(a.matrix)?,
            kind(a.matrix)?,
            row_a,
            number(&beta),
            at(target)?.cast_mut(),
            kind(target)?,
            n as i32,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
        .w()
    }
}

//! Products of matrices by cuBLAS that candle does not offer: added to what is there, into a part of it, or with the sums
//! in f32 kept.

use std::ffi::c_void;

use candle_core::cuda_backend::WrapErr as _;
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::{DType, Result, Tensor, bail};

use super::Kernels;

/// Some columns of a matrix that lies in one piece, or all.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    matrix: &'a Tensor,
    start: usize,
    count: usize,
}

impl<'a> Columns<'a> {
    pub(crate) fn all(matrix: &'a Tensor) -> Result<Self> {
        let count = matrix.dims2()?.1;
        Self::of(matrix, 0, count)
    }

    pub(crate) fn of(matrix: &'a Tensor, start: usize, count: usize) -> Result<Self> {
        let width = matrix.dims2()?.1;
        if start + count > width {
            bail!("columns {start} to {} of {width}", start + count);
        }
        Ok(Self {
            matrix,
            start,
            count,
        })
    }

    fn rows(self) -> Result<usize> {
        self.matrix.dim(0)
    }

    fn place(self, kernels: &Kernels) -> Result<Matrices> {
        let width = self.matrix.dim(1)?;
        Ok(Matrices::rows(kernels, self.matrix, width)?.from(self.start))
    }
}

/// A matrix as a factor of a product: as it lies, or its transpose.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    columns: Columns<'a>,
    turned: bool,
}

impl<'a> Factor<'a> {
    pub(crate) fn of(matrix: &'a Tensor) -> Result<Self> {
        Ok(Self::of_columns(Columns::all(matrix)?))
    }

    pub(crate) fn of_columns(columns: Columns<'a>) -> Self {
        Self {
            columns,
            turned: false,
        }
    }

    pub(crate) fn turned(matrix: &'a Tensor) -> Result<Self> {
        Ok(Self {
            turned: true,
            ..Self::of(matrix)?
        })
    }

    /// Rows and columns, as a factor.
    fn dims(self) -> Result<(usize, usize)> {
        let (rows, columns) = (self.columns.rows()?, self.columns.count);
        Ok(match self.turned {
            true => (columns, rows),
            false => (rows, columns),
        })
    }

    fn place(self, kernels: &Kernels) -> Result<Matrices> {
        Ok(Matrices {
            turned: self.turned,
            ..self.columns.place(kernels)?
        })
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
    product(kernels, Columns::all(target)?, (factor, 1.0), a, b)
}

/// `target = factor a b`, in place. `target` must be nobody else's.
pub(crate) fn write_product(
    kernels: &Kernels,
    target: Columns<'_>,
    factor: f64,
    a: Factor<'_>,
    b: Factor<'_>,
) -> Result<()> {
    product(kernels, target, (factor, 0.0), a, b)
}

/// `factor a b`, in the type of `a` and `b` or in f32.
pub(crate) fn scaled_product(
    kernels: &Kernels,
    dtype: DType,
    factor: f64,
    a: Factor<'_>,
    b: Factor<'_>,
) -> Result<Tensor> {
    let out = kernels.room((a.dims()?.0, b.dims()?.1), dtype)?;
    write_product(kernels, Columns::all(&out)?, factor, a, b)?;
    Ok(out)
}

fn product(
    kernels: &Kernels,
    target: Columns<'_>,
    scales: (f64, f64),
    a: Factor<'_>,
    b: Factor<'_>,
) -> Result<()> {
    let ((m, k), (inner, n)) = (a.dims()?, b.dims()?);
    let into = [target.rows()?, target.count];
    if k != inner || into != [m, n] {
        bail!("{into:?} = {:?} {:?}", [m, k], [inner, n]);
    }
    let of = |factor: Factor<'_>| factor.columns.matrix.dtype();
    if of(a) != of(b) {
        bail!("a product of {:?} and {:?}", of(a), of(b));
    }
    let extents = Extents { m, k, n, batch: 1 };
    let into = target.place(kernels)?;
    let (a, b) = (a.place(kernels)?, b.place(kernels)?);
    // SAFETY: the extents were checked, and all three lie in one piece and live until the product is asked for.
    unsafe { multiply(kernels, extents, scales, (a, b), into) }
}

/// Rows, inner extent and columns of a product, and how many products there are.
#[derive(Clone, Copy)]
pub(super) struct Extents {
    pub(super) m: usize,
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) batch: usize,
}

/// One matrix after the other on the GPU.
#[derive(Clone, Copy)]
pub(super) struct Matrices {
    address: u64,
    kind: sys::cudaDataType_t,
    /// Numbers from a row to the next.
    row: usize,
    /// Numbers from a matrix to the next; 0 if there is one for all.
    apart: usize,
    turned: bool,
}

impl Matrices {
    /// Of a tensor that lies in one piece, in rows of `row` numbers.
    pub(super) fn rows(kernels: &Kernels, tensor: &Tensor, row: usize) -> Result<Self> {
        Ok(Self {
            address: kernels.address(tensor)?,
            kind: match tensor.dtype() {
                DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
                DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
                other => bail!("no product of {other:?}"),
            },
            row,
            apart: 0,
            turned: false,
        })
    }

    pub(super) fn apart(self, apart: usize) -> Self {
        Self { apart, ..self }
    }

    pub(super) fn turned(self) -> Self {
        Self {
            turned: true,
            ..self
        }
    }

    /// The same, some numbers further on.
    pub(super) fn from(self, start: usize) -> Self {
        let size = match self.kind {
            sys::cudaDataType_t::CUDA_R_16BF => 2,
            _ => 4,
        };
        Self {
            address: self.address + (start * size) as u64,
            ..self
        }
    }

    fn operation(self) -> sys::cublasOperation_t {
        match self.turned {
            true => sys::cublasOperation_t::CUBLAS_OP_T,
            false => sys::cublasOperation_t::CUBLAS_OP_N,
        }
    }
}

/// `into = alpha a b + beta into` for each matrix, summed in f32.
///
/// # Safety
///
/// All matrices are on the GPU, as large as the extents and the rows say, and nobody else uses `into`.
pub(super) unsafe fn multiply(
    kernels: &Kernels,
    extents: Extents,
    (alpha, beta): (f64, f64),
    (a, b): (Matrices, Matrices),
    into: Matrices,
) -> Result<()> {
    let Extents { m, k, n, batch } = extents;
    let (alpha, beta) = (alpha as f32, beta as f32);
    let number = |x: &f32| std::ptr::from_ref(x).cast::<c_void>();
    let at = |matrices: Matrices| matrices.address as *mut c_void;
    // cuBLAS counts columns first, so that it sees transposes: the product's is the product of the factors', the second
    // first.
    // SAFETY: the caller's promise.
    unsafe {
        result::gemm_strided_batched_ex(
            *kernels.inner.device.cublas_handle().handle(),
            b.operation(),
            a.operation(),
            n as i32,
            m as i32,
            k as i32,
            number(&alpha),
            at(b),
            b.kind,
            b.row as i32,
            b.apart as i64,
            at(a),
            a.kind,
            a.row as i32,
            a.apart as i64,
            number(&beta),
            at(into),
            into.kind,
            into.row as i32,
            into.apart as i64,
            batch as i32,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
        .w()
    }
}

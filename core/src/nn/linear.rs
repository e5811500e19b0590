//! Linear layers, frozen, with or without a low-rank adapter: one matrix product over all leading dimensions.

mod backward;

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use super::cpu::{self, by_kernel, elements};
#[cfg(feature = "cuda")]
use super::cuda::linear as cuda;
use super::gemm::{ALL, Matrix, MatrixMut, Plus, Write, matmul, matmul_plus, matmul_plus_bf16};
use super::real::Real;
use super::{Activation, Kernels, Packed};
pub(super) use backward::input_gradient;
pub use backward::{Adapted, WantedGradients, backward};

/// `y = x w^T + b`, with `x` `[.., in]`, `w` `[out, in]`, `b` `[out]`, `y` `[.., out]`.
///
/// On a CPU, each row of `y` is the same bit for bit whatever the other rows are; and `w` and `b` may be bf16 where `x` is f32:
/// then `x` is rounded to bf16 for the product, and sums and result are f32.
///
/// # Errors
///
/// If the shapes or types do not fit, and those of the backend.
pub fn linear(kernels: &Kernels, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    check(x, w.dims2()?.into(), b)?;
    by_kernel!(
        x,
        T => product::<T>(x, w, b, None),
        cuda k in kernels => cuda::product(k, x, w, b),
        composed(x, w, b)
    )
}

/// `base + x w^T + b`, with `base` in the shape of the result: a residual connection around `linear`.
///
/// # Errors
///
/// As `linear`.
pub fn linear_onto(
    kernels: &Kernels,
    base: &Tensor,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
) -> Result<Tensor> {
    let shape = w.dims2()?.into();
    check(x, shape, b)?;
    check_base(x, shape, Some(base))?;
    by_kernel!(
        x,
        T => product::<T>(x, w, b, Some(base)),
        base + linear(kernels, x, w, b)?
    )
}

/// A low-rank update of a linear layer (Hu et al. 2021): `y += scale (mask x) a^T b^T`.
#[derive(Clone)]
pub struct LowRank {
    /// `[r, in]`
    pub a: Tensor,
    /// `[out, r]`
    pub b: Tensor,
    /// Of the update.
    pub scale: f64,
    /// What `x` is multiplied by on its way into `a`, in the shape of `x`.
    pub mask: Option<Tensor>,
}

impl LowRank {
    fn check(&self, x: &Tensor, [out, inner]: [usize; 2]) -> Result<()> {
        let rank = self.a.dim(0)?;
        if self.a.dims() != [rank, inner] || self.b.dims() != [out, rank] {
            bail!(
                "an adapter of {:?} and {:?} on a linear of [{out}, {inner}]",
                self.a.dims(),
                self.b.dims()
            );
        }
        match &self.mask {
            Some(mask) if mask.dims() != x.dims() => {
                bail!("a dropout mask of {:?} for {:?}", mask.dims(), x.dims())
            }
            _ => Ok(()),
        }
    }

    /// What the adapter sees of `x`.
    pub(super) fn input(&self, x: &Tensor) -> Result<Tensor> {
        match &self.mask {
            None => Ok(x.clone()),
            Some(mask) => by_kernel!(
                x,
                T => cpu::map2::<T>(x, mask, cpu::Product),
                x * mask.to_dtype(x.dtype())?
            ),
        }
    }
}

/// The shape of the result is that of `base`.
pub(super) fn check_base(x: &Tensor, [out, _]: [usize; 2], base: Option<&Tensor>) -> Result<()> {
    match base {
        Some(base) if base.dims() != shape_with_last(x, out) => bail!(
            "the result of a linear layer on {:?} cannot be added to {:?}",
            x.dims(),
            base.dims()
        ),
        _ => Ok(()),
    }
}

pub(super) fn check(x: &Tensor, [out, inner]: [usize; 2], b: Option<&Tensor>) -> Result<()> {
    let (_, width) = cpu::rows_of(x)?;
    if width != inner {
        bail!(
            "a linear layer of {inner} inputs was given {width} ({:?})",
            x.dims()
        );
    }
    if let Some(b) = b
        && b.dims() != [out]
    {
        bail!(
            "a linear layer of {out} outputs was given a bias of shape {:?}",
            b.dims()
        );
    }
    Ok(())
}

/// `x w^T + b` with an adapter's update; and `(mask x) a^T`, `[.., r]`, which the backward pass needs.
pub fn adapted(
    kernels: &Kernels,
    x: &Tensor,
    w: &Packed,
    b: Option<&Tensor>,
    lora: &LowRank,
) -> Result<(Tensor, Tensor)> {
    check(x, w.shape(), b)?;
    lora.check(x, w.shape())?;
    let input = lora.input(x)?;
    by_kernel!(
        x,
        T => {
            // By way of r numbers a row: the product b a would be a matrix as large as w.
            let down = product::<T>(&input, &lora.a, None, None)?;
            let y = w.linear(kernels, x, b)?;
            add_product::<T>(&y, lora.scale, (&down, false), (&lora.b, true))?;
            Ok((y, down))
        },
        cuda k in kernels => cuda::adapted(k, &input, w.linear(kernels, x, b)?, lora),
        {
            let down = composed(&input, &lora.a.to_dtype(x.dtype())?, None)?;
            // Scaled here, where a row has r numbers and not `out`.
            let up = composed(&(&down * lora.scale)?, &lora.b.to_dtype(x.dtype())?, None)?;
            Ok(((w.linear(kernels, x, b)? + up)?, down))
        }
    )
}

/// `x w^T + b`, plus the update of an adapter if there is one; then as [`adapted`].
pub fn forward(
    kernels: &Kernels,
    x: &Tensor,
    w: &Packed,
    b: Option<&Tensor>,
    lora: Option<&LowRank>,
) -> Result<(Tensor, Option<Tensor>)> {
    match lora {
        Some(lora) => {
            let (y, down) = adapted(kernels, x, w, b, lora)?;
            Ok((y, Some(down)))
        }
        None => Ok((w.linear(kernels, x, b)?, None)),
    }
}

/// `gelu(x w^T + b)`, in GELU's tanh form and with an adapter's update inside it if there is one; what the GELU was taken of; and
/// `(mask x) a^T` of the adapter.
pub fn with_gelu(
    kernels: &Kernels,
    x: &Tensor,
    w: &Packed,
    b: Option<&Tensor>,
    lora: Option<&LowRank>,
) -> Result<(Tensor, Tensor, Option<Tensor>)> {
    check(x, w.shape(), b)?;
    if let Some(lora) = lora {
        lora.check(x, w.shape())?;
    }
    #[cfg(feature = "cuda")]
    if let (Some(k), Some(b), None) = (kernels.serving(x), b, w.in_fp8()) {
        let input = lora.map(|lora| lora.input(x)).transpose()?;
        let found = cuda::with_gelu(k, (x, input.as_ref()), &w.tensor()?, b, lora)?;
        if let Some(found) = found {
            return Ok(found);
        }
    }
    let (before, down) = forward(kernels, x, w, b, lora)?;
    let y = Activation::GeluTanh.apply(kernels, &before)?;
    Ok((y, before, down))
}

/// `x w^T + b` by tensor operations.
pub(super) fn composed(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let (rows, inner) = cpu::rows_of(x)?;
    let y = cpu::contiguous(x)?
        .reshape((rows, inner))?
        .matmul(&w.t()?)?;
    let y = if let Some(b) = b {
        y.broadcast_add(b)?
    } else {
        y
    };
    y.reshape(shape_with_last(x, w.dim(0)?))
}

pub(super) fn shape_with_last(x: &Tensor, last: usize) -> Vec<usize> {
    let lead = x.dims().len().saturating_sub(1);
    [&x.dims()[..lead], &[last]].concat()
}

/// `x w^T + b + base`. A weight of bf16 under activations of f32 is a product in bf16.
fn product<T: Real>(
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    base: Option<&Tensor>,
) -> Result<Tensor> {
    if T::DTYPE == DType::F32 && w.dtype() == DType::BF16 {
        return product_in_bf16(x, w, b, base);
    }
    let shape = shape_with_last(x, w.dim(0)?);
    product_plus::<T>(&shape, 1.0, ((x, false), (w, true)), (b, base))
}

/// `scale left right`, plus a row and all that are given, in `shape`.
pub(super) fn product_plus<T: Real>(
    shape: &[usize],
    scale: f64,
    (left, right): (Operand<'_>, Operand<'_>),
    (b, base): (Option<&Tensor>, Option<&Tensor>),
) -> Result<Tensor> {
    with_plus::<T, _>(b, base, |plus| {
        with_matrices::<T, _>(left, right, |left, right| {
            cpu::tensor(matmul_plus(T::from_f64(scale), left, right, plus), shape)
        })
    })
}

/// `x w^T + b + base` with `x` f32, rounded to bf16 on the way, and `w` bf16; sums and result are f32.
fn product_in_bf16(
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    base: Option<&Tensor>,
) -> Result<Tensor> {
    let (out, inner) = w.dims2()?;
    let dense = w.contiguous()?;
    single_product(x, [out, inner], b, base, |x, plus| {
        let w = elements::<bf16>(&dense)?;
        let w = Matrix::new(&w, out, inner, inner).t();
        Ok(matmul_plus_bf16(x, w, plus))
    })
}

/// What `product` makes of `x` in f32 by a matrix of this shape, `b` and `base` added.
pub(super) fn single_product(
    x: &Tensor,
    [out, inner]: [usize; 2],
    b: Option<&Tensor>,
    base: Option<&Tensor>,
    product: impl FnOnce(Matrix<'_, f32>, Plus<'_, f32>) -> Result<Vec<f32>>,
) -> Result<Tensor> {
    let (rows, _) = cpu::rows_of(x)?;
    let x_dense = cpu::contiguous(x)?;
    let x_data = elements::<f32>(&x_dense)?;
    let x_rows = Matrix::new(&x_data, rows, inner, inner);
    let y = with_plus(b, base, |plus| product(x_rows, plus))?;
    cpu::tensor(y, &shape_with_last(x, out))
}

/// Calls `f` with what is added to a product.
pub(super) fn with_plus<T: Real, R>(
    b: Option<&Tensor>,
    base: Option<&Tensor>,
    f: impl FnOnce(Plus<'_, T>) -> Result<R>,
) -> Result<R> {
    let b = b.map(cpu::dense::<T>).transpose()?;
    let base = base.map(cpu::contiguous).transpose()?;
    let b = b.as_ref().map(elements::<T>).transpose()?;
    let base = base.as_ref().map(elements::<T>).transpose()?;
    f(Plus {
        row: b.as_deref(),
        all: base.as_deref(),
    })
}

/// A factor of a product: a tensor as rows of its last dimension, and whether it is transposed.
pub(super) type Operand<'a> = (&'a Tensor, bool);

/// Calls `f` with both tensors as rows of their last dimension, transposed where asked for.
fn with_matrices<T: Real, R>(
    left: Operand<'_>,
    right: Operand<'_>,
    f: impl FnOnce(Matrix<'_, T>, Matrix<'_, T>) -> Result<R>,
) -> Result<R> {
    let (left_dense, right_dense) = (cpu::dense::<T>(left.0)?, cpu::dense::<T>(right.0)?);
    let (left_data, right_data) = (elements::<T>(&left_dense)?, elements::<T>(&right_dense)?);
    let matrix = |data, (tensor, transposed): Operand<'_>| -> Result<_> {
        let (rows, columns) = cpu::rows_of(tensor)?;
        let matrix = Matrix::new(data, rows, columns, columns);
        Ok(if transposed { matrix.t() } else { matrix })
    };
    f(matrix(&left_data, left)?, matrix(&right_data, right)?)
}

/// `scale left right`, in `shape`.
pub(super) fn new_product<T: Real>(
    shape: &[usize],
    scale: f64,
    left: Operand<'_>,
    right: Operand<'_>,
) -> Result<Tensor> {
    product_plus::<T>(shape, scale, (left, right), (None, None))
}

/// `target += scale left right`, in place.
pub(super) fn add_product<T: Real>(
    target: &Tensor,
    scale: f64,
    left: Operand<'_>,
    right: Operand<'_>,
) -> Result<()> {
    let (rows, columns) = cpu::rows_of(target)?;
    with_matrices::<T, _>(left, right, |left, right| {
        cpu::edit::<T>(target, |target| {
            let mut target = MatrixMut::new(target, rows, columns, columns);
            let scale = T::from_f64(scale);
            matmul(&mut target, Write::Add, scale, left, right, ALL);
        })
    })
}

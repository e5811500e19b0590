//! Linear layers of one input on a GPU: their frozen products are one, and their adapters' are one where they read the same.

use candle_core::{DType, Result, Tensor};

use super::gemm::{
    Columns, Extents, Factor, Matrices, add_product, multiply, scaled_product, write_product,
};
use super::linear::matrix;
use super::views::dense;
use super::{Kernels, biased};
use crate::nn::cpu;
use crate::nn::fused::Part;
use crate::nn::linear::shape_with_last;

/// `x w^T + b` of each layer, of `w` `[layers, out, in]` and `b` `[layers, out]`, which lie in one piece. None where there is no such
/// product.
pub(crate) fn products(
    kernels: &Kernels,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
) -> Result<Option<Vec<Tensor>>> {
    if w.dtype() != x.dtype() {
        return Ok(None);
    }
    let (layers, out, inner) = w.dims3()?;
    let x_rows = matrix(kernels, x)?;
    let rows = x_rows.dim(0)?;
    let y = match b {
        Some(b) => match biased::linears(kernels, &x_rows, w, b)? {
            Some(y) => y,
            None => return Ok(None),
        },
        None => {
            let y = kernels.room((layers, rows, out), x.dtype())?;
            let extents = Extents {
                m: rows,
                k: inner,
                n: out,
                batch: layers,
            };
            let of_w = Matrices::rows(kernels, w, inner)?.turned();
            let factors = (
                Matrices::rows(kernels, &x_rows, inner)?,
                of_w.apart(out * inner),
            );
            let into = Matrices::rows(kernels, &y, out)?.apart(rows * out);
            // SAFETY: the extents are those of the tensors, which live until the product is asked for; `y` is new.
            unsafe { multiply(kernels, extents, (1.0, 0.0), factors, into)? };
            y
        }
    };
    let shape = shape_with_last(x, out);
    let each = (0..layers).map(|i| y.get(i)?.reshape(&shape[..]));
    each.collect::<Result<Vec<_>>>().map(Some)
}

/// `y += scale down b^T` with an adapter's columns of `down`, in place.
pub(crate) fn add_update(kernels: &Kernels, y: &Tensor, down: &Tensor, part: &Part) -> Result<()> {
    let (y_rows, down) = (y.reshape(cpu::rows_of(y)?)?, matrix(kernels, down)?);
    let b = dense(kernels, &part.b.to_dtype(y.dtype())?)?;
    let left = Factor::of_columns(Columns::of(&down, part.start, part.rank)?);
    add_product(kernels, &y_rows, part.scale, left, Factor::turned(&b)?)
}

/// Writes `scale g b` to an adapter's columns of `t`, whose shapes the caller checked.
pub(crate) fn write_columns(
    kernels: &Kernels,
    t: &Tensor,
    gradient: &Tensor,
    part: &Part,
) -> Result<()> {
    let g = matrix(kernels, gradient)?;
    let b = dense(kernels, &part.b.to_dtype(g.dtype())?)?;
    let columns = Columns::of(t, part.start, part.rank)?;
    let (left, right) = (Factor::of(&g)?, Factor::of(&b)?);
    write_product(kernels, columns, part.scale, left, right)
}

/// `t^T x` in f32.
pub(crate) fn transposed_product(kernels: &Kernels, t: &Tensor, x: &Tensor) -> Result<Tensor> {
    let x = matrix(kernels, x)?;
    scaled_product(
        kernels,
        DType::F32,
        1.0,
        Factor::turned(t)?,
        Factor::of(&x)?,
    )
}

/// `scale g^T down` in f32, with an adapter's columns of `down`.
pub(crate) fn second_factor(
    kernels: &Kernels,
    gradient: &Tensor,
    down: &Tensor,
    part: &Part,
) -> Result<Tensor> {
    let (g, down) = (matrix(kernels, gradient)?, matrix(kernels, down)?);
    let right = Factor::of_columns(Columns::of(&down, part.start, part.rank)?);
    scaled_product(kernels, DType::F32, part.scale, Factor::turned(&g)?, right)
}

/// `dx += t a`, in place.
pub(crate) fn add_rows(kernels: &Kernels, dx: &Tensor, t: &Tensor, a: &Tensor) -> Result<()> {
    let a = dense(kernels, &a.to_dtype(t.dtype())?)?;
    let rows = dx.reshape(cpu::rows_of(dx)?)?;
    add_product(kernels, &rows, 1.0, Factor::of(t)?, Factor::of(&a)?)
}

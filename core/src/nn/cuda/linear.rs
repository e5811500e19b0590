//! Linear layers on a GPU: as composed of candle's operations, but what is added is added by the product itself, and the
//! gradients of an adapter keep their f32 sums.

use candle_core::{DType, Result, Tensor};

use super::Kernels;
use super::gemm::{Factor, add_product, scaled_product};
use super::views::dense;
use super::{biased, rows};
use crate::nn::cpu;
use crate::nn::linear::{Adapted, LowRank, WantedGradients, composed, shape_with_last};

/// `x w^T + b`.
pub(crate) fn product(
    kernels: &Kernels,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
) -> Result<Tensor> {
    // cuBLASLt wants the bias in the type of the product.
    let Some(b) = b.filter(|b| b.dtype() == x.dtype()) else {
        return composed(&dense(kernels, x)?, w, b);
    };
    let x_rows = matrix(kernels, x)?;
    let (w, b) = (dense(kernels, w)?, dense(kernels, b)?);
    let y = match biased::linears(kernels, &x_rows, &w.unsqueeze(0)?, &b.unsqueeze(0)?)? {
        Some(y) => y.squeeze(0)?,
        None => {
            let y = rows::spread(kernels, &b, x_rows.dim(0)?)?;
            add_product(kernels, &y, 1.0, Factor::of(&x_rows)?, Factor::turned(&w)?)?;
            y
        }
    };
    y.reshape(shape_with_last(x, w.dim(0)?))
}

/// `y`, what a linear layer gives, plus the update of an adapter that sees `input`, in place; and `input a^T`, `[.., r]`, as
/// [`crate::nn::linear::adapted`] gives it.
pub(crate) fn adapted(
    kernels: &Kernels,
    input: &Tensor,
    y: Tensor,
    lora: &LowRank,
) -> Result<(Tensor, Tensor)> {
    let fit = |t: &Tensor| t.to_dtype(y.dtype());
    let down = composed(&dense(kernels, input)?, &fit(&lora.a)?, None)?;
    let up = dense(kernels, &fit(&lora.b)?)?;
    let (y_rows, down_rows) = (y.reshape(cpu::rows_of(&y)?)?, matrix(kernels, &down)?);
    let (left, right) = (Factor::of(&down_rows)?, Factor::turned(&up)?);
    add_product(kernels, &y_rows, lora.scale, left, right)?;
    Ok((y, down))
}

/// As [`crate::nn::linear::with_gelu`]: the update of the adapter, which sees `input` of `x`, is what the product is added to, so that the
/// GELU is taken of their sum where that is written. None where cuBLASLt does not serve it.
pub(crate) fn with_gelu(
    kernels: &Kernels,
    (x, input): (&Tensor, Option<&Tensor>),
    w: &Tensor,
    b: &Tensor,
    lora: Option<&LowRank>,
) -> Result<Option<(Tensor, Tensor, Option<Tensor>)>> {
    if b.dtype() != x.dtype() || w.dtype() != x.dtype() {
        return Ok(None);
    }
    let (x_rows, w, b) = (matrix(kernels, x)?, dense(kernels, w)?, dense(kernels, b)?);
    // Before the update is computed: what would be made of it elsewhere is another one.
    if !biased::serves_gelu(kernels, &x_rows, &w, &b)? {
        return Ok(None);
    }
    let fit = |t: &Tensor| dense(kernels, &t.to_dtype(x.dtype())?);
    let (update, down) = match (lora, input) {
        (Some(lora), Some(input)) => {
            let down = composed(&dense(kernels, input)?, &fit(&lora.a)?, None)?;
            let (down_rows, up) = (matrix(kernels, &down)?, fit(&lora.b)?);
            let (left, right) = (Factor::of(&down_rows)?, Factor::turned(&up)?);
            let update = scaled_product(kernels, x.dtype(), lora.scale, left, right)?;
            (Some(update), Some(down))
        }
        _ => (None, None),
    };
    let found = biased::with_gelu(kernels, &x_rows, &w, &b, update.as_ref())?;
    let shape = shape_with_last(x, w.dim(0)?);
    let shaped = |(y, before): (Tensor, Tensor)| {
        Ok((y.reshape(&shape[..])?, before.reshape(&shape[..])?, down))
    };
    found.map(shaped).transpose()
}

/// All leading dimensions as one.
pub(super) fn matrix(kernels: &Kernels, t: &Tensor) -> Result<Tensor> {
    let extents = cpu::rows_of(t)?;
    dense(kernels, t)?.reshape(extents)
}

/// `gradient w`, added to `earlier` in place if there is one.
pub(crate) fn input_gradient(
    kernels: &Kernels,
    gradient: &Tensor,
    w: &Tensor,
    earlier: Option<Tensor>,
) -> Result<Tensor> {
    let g = matrix(kernels, gradient)?;
    let dx = match earlier {
        Some(earlier) => {
            let (dx, w) = (matrix(kernels, &earlier)?, dense(kernels, w)?);
            add_product(kernels, &dx, 1.0, Factor::of(&g)?, Factor::of(&w)?)?;
            dx
        }
        None => g.matmul(w)?,
    };
    dx.reshape(shape_with_last(gradient, w.dim(1)?))
}

/// As [`crate::nn::linear::backward`], where `dx` is the frozen layer's part of the gradient towards its input, to which the adapter's is added.
pub(crate) fn backward(
    kernels: &Kernels,
    gradient: &Tensor,
    dx: Option<Tensor>,
    lora: Option<Adapted<'_>>,
    wanted: WantedGradients,
) -> Result<[Option<Tensor>; 3]> {
    let rows = |t: &Tensor| matrix(kernels, t);
    let g = rows(gradient)?;
    let (mut da, mut db) = (None, None);
    if let Some(Adapted {
        adapter: lora,
        x,
        down,
    }) = lora
    {
        let fit = |t: &Tensor| dense(kernels, &t.to_dtype(g.dtype())?);
        let (a, b) = (fit(&lora.a)?, fit(&lora.b)?);
        if let Some(down) = down.filter(|_| wanted.b) {
            let (g, down) = (Factor::turned(&g)?, rows(down)?);
            // In f32, as the adapters are trained: a gradient rounded to bf16 would lose small updates.
            let (down, wide) = (Factor::of(&down)?, DType::F32);
            db = Some(scaled_product(kernels, wide, lora.scale, g, down)?);
        }
        let (left, right) = (Factor::of(&g)?, Factor::of(&b)?);
        let t = scaled_product(kernels, g.dtype(), lora.scale, left, right)?;
        if let Some(x) = x.filter(|_| wanted.a) {
            let (t, x) = (Factor::turned(&t)?, rows(&lora.input(x)?)?);
            let (x, wide) = (Factor::of(&x)?, DType::F32);
            da = Some(scaled_product(kernels, wide, 1.0, t, x)?);
        }
        match (&dx, &lora.mask) {
            (Some(dx), None) => {
                let sum = dx.reshape(cpu::rows_of(dx)?)?;
                add_product(kernels, &sum, 1.0, Factor::of(&t)?, Factor::of(&a)?)?;
            }
            (Some(dx), Some(mask)) => {
                let seen = (t.matmul(&a)? * rows(&fit(mask)?)?)?;
                let sum = (dx + seen.reshape(dx.shape())?)?;
                return Ok([Some(sum), da, db]);
            }
            _ => {}
        }
    }
    Ok([dx, da, db])
}

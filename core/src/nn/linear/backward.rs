//! The gradients of linear layers, frozen, with or without a low-rank adapter.

use candle_core::{Result, Tensor};

use super::{LowRank, add_product, new_product, shape_with_last};
use crate::nn::cpu::{self, by_kernel};
#[cfg(feature = "cuda")]
use crate::nn::cuda::linear as cuda;
use crate::nn::real::Real;
use crate::nn::{Kernels, Packed};

/// Which gradients of a linear layer are computed: nobody reads the others.
#[derive(Clone, Copy)]
pub struct WantedGradients {
    /// Towards the input.
    pub x: bool,
    /// Towards the adapter's `a`.
    pub a: bool,
    /// Towards the adapter's `b`.
    pub b: bool,
}

/// What the backward pass reads of an adapter.
#[derive(Clone, Copy)]
pub struct Adapted<'a> {
    /// Its numbers.
    pub adapter: &'a LowRank,
    /// Read for the gradient of a.
    pub x: Option<&'a Tensor>,
    /// `(mask x) a^T`, read for the gradient of b.
    pub down: Option<&'a Tensor>,
}

/// The gradients towards x, a and b. `earlier` is a gradient towards x that is already there, for us to edit:
/// the one towards x is added to it. There is never one towards the frozen weight.
///
/// With g the gradient of y, h = (mask x) a^T and t = scale g b:
/// `dx = g w + mask (t a)`, `da = t^T (mask x)`, `db = scale g^T h`.
pub fn backward(
    kernels: &Kernels,
    gradient: &Tensor,
    w: &Packed,
    lora: Option<Adapted<'_>>,
    wanted: WantedGradients,
    earlier: Option<Tensor>,
) -> Result<[Option<Tensor>; 3]> {
    by_kernel!(
        gradient,
        T => backward_kernel::<T>(gradient, w, lora, wanted, earlier),
        cuda k in kernels => {
            let dx = match (wanted.x, w.in_fp8()) {
                (false, _) => None,
                (true, Some(w)) => Some(w.input_gradient(kernels, gradient, earlier)?),
                (true, None) => Some(cuda::input_gradient(k, gradient, &w.tensor()?, earlier)?),
            };
            cuda::backward(k, gradient, dx, lora, wanted)
        },
        backward_composed(kernels, gradient, w, lora, wanted, earlier)
    )
}

/// `gradient w`, added to `earlier` in place if there is one.
pub(in crate::nn) fn input_gradient<T: Real>(
    gradient: &Tensor,
    w: &Tensor,
    earlier: Option<Tensor>,
) -> Result<Tensor> {
    match earlier {
        // Several linears read one x (q, k and v): their gradients are summed by the products, without a tensor each.
        Some(earlier) => {
            add_product::<T>(&earlier, 1.0, (gradient, false), (w, false))?;
            Ok(earlier)
        }
        None => {
            let shape = shape_with_last(gradient, w.dim(1)?);
            new_product::<T>(&shape, 1.0, (gradient, false), (w, false))
        }
    }
}

fn backward_kernel<T: Real>(
    gradient: &Tensor,
    w: &Packed,
    lora: Option<Adapted<'_>>,
    wanted: WantedGradients,
    earlier: Option<Tensor>,
) -> Result<[Option<Tensor>; 3]> {
    let gradient = &cpu::contiguous(gradient)?;
    let [_, inner] = w.shape();
    let shape = shape_with_last(gradient, inner);
    let dx = match wanted.x {
        true => Some(w.input_gradient::<T>(gradient, earlier)?),
        false => None,
    };
    let (mut da, mut db) = (None, None);
    if let Some(Adapted {
        adapter: lora,
        x,
        down,
    }) = lora
    {
        let scale = lora.scale;
        if let Some(down) = down.filter(|_| wanted.b) {
            let (g, down) = ((gradient, true), (down, false));
            db = Some(new_product::<T>(lora.b.dims(), scale, g, down)?);
        }
        if wanted.x || wanted.a {
            let narrow = shape_with_last(gradient, lora.a.dim(0)?);
            let t = new_product::<T>(&narrow, scale, (gradient, false), (&lora.b, false))?;
            if let Some(x) = x.filter(|_| wanted.a) {
                let (t, x) = ((&t, true), (&lora.input(x)?, false));
                da = Some(new_product::<T>(lora.a.dims(), 1.0, t, x)?);
            }
            match (&dx, &lora.mask) {
                (Some(dx), None) => add_product::<T>(dx, 1.0, (&t, false), (&lora.a, false))?,
                // The mask multiplies t a alone: its product cannot be added straight to dx.
                (Some(dx), Some(mask)) => {
                    let seen = new_product::<T>(&shape, 1.0, (&t, false), (&lora.a, false))?;
                    cpu::edit_with::<T>(&seen, mask, cpu::Product)?;
                    cpu::edit_with::<T>(dx, &seen, cpu::Sum)?;
                }
                (None, _) => {}
            }
        }
    }
    Ok([dx, da, db])
}

fn backward_composed(
    kernels: &Kernels,
    gradient: &Tensor,
    w: &Packed,
    lora: Option<Adapted<'_>>,
    wanted: WantedGradients,
    earlier: Option<Tensor>,
) -> Result<[Option<Tensor>; 3]> {
    let rows = |t: &Tensor| {
        let (rows, width) = cpu::rows_of(t)?;
        t.contiguous()?.reshape((rows, width))
    };
    let g = rows(gradient)?;
    let mut dx = match (wanted.x, w.in_fp8()) {
        (false, _) => None,
        (true, Some(w)) => Some(w.input_gradient(kernels, &g, None)?),
        (true, None) => Some(g.matmul(&w.tensor()?)?),
    };
    let (mut da, mut db) = (None, None);
    if let Some(Adapted {
        adapter: lora,
        x,
        down,
    }) = lora
    {
        let (a, b) = (lora.a.to_dtype(g.dtype())?, lora.b.to_dtype(g.dtype())?);
        if let Some(down) = down.filter(|_| wanted.b) {
            let out = (g.t()?.matmul(&rows(down)?)? * lora.scale)?;
            db = Some(out.to_dtype(lora.b.dtype())?);
        }
        let t = (g.matmul(&b)? * lora.scale)?;
        if let Some(x) = x.filter(|_| wanted.a) {
            let out = t.t()?.matmul(&rows(&lora.input(x)?)?)?;
            da = Some(out.to_dtype(lora.a.dtype())?);
        }
        if let Some(so_far) = dx {
            let seen = t.matmul(&a)?;
            let seen = match &lora.mask {
                Some(mask) => (seen * rows(&mask.to_dtype(g.dtype())?)?)?,
                None => seen,
            };
            dx = Some((so_far + seen)?);
        }
    }
    let shape = shape_with_last(gradient, w.shape()[1]);
    let dx = match (dx, earlier) {
        (Some(dx), Some(earlier)) => Some((dx.reshape(shape)? + earlier)?),
        (dx, _) => dx.map(|dx| dx.reshape(shape)).transpose()?,
    };
    Ok([dx, da, db])
}

//! Linear layers, frozen, with or without a low-rank adapter: one matrix product over all leading dimensions.

#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::card::{
    self,
    gemm::{self, Factor},
};
use super::cpu::{self, by_kernel, elements};
use super::gemm::{ALL, Matrix, MatrixMut, Write, matmul};
use super::real::Real;

/// `y = x w^T + b`, with `x` `[.., in]`, `w` `[out, in]`, `b` `[out]`, `y` `[.., out]`.
///
/// On a CPU, each row of `y` is the same bit for bit whatever the other rows are.
///
/// # Errors
///
/// If the shapes or types do not fit, and those of the backend.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    Ok(forward(x, w, b, None)?.0)
}

/// A low-rank update of a linear layer (Hu et al. 2021): `y += scale (mask x) a^T b^T`.
#[derive(Clone)]
pub(crate) struct LowRank {
    /// `[r, in]`
    pub(crate) a: Tensor,
    /// `[out, r]`
    pub(crate) b: Tensor,
    pub(crate) scale: f64,
    /// What `x` is multiplied by on its way into `a`, in the shape of `x`.
    pub(crate) mask: Option<Tensor>,
}

impl LowRank {
    fn check(&self, x: &Tensor, w: &Tensor) -> Result<()> {
        let (out, inner) = w.dims2()?;
        let rank = self.a.dim(0)?;
        if self.a.dims() != [rank, inner] || self.b.dims() != [out, rank] {
            bail!(
                "an adapter of {:?} and {:?} on a linear of {:?}",
                self.a.dims(),
                self.b.dims(),
                w.dims()
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
    fn input(&self, x: &Tensor) -> Result<Tensor> {
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

/// The result, and with an adapter also `(mask x) a^T`, `[.., r]`, which the backward pass needs.
pub(crate) fn forward(
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    lora: Option<&LowRank>,
) -> Result<(Tensor, Option<Tensor>)> {
    let (_, width) = cpu::rows_of(x)?;
    let (out, inner) = w.dims2()?;
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
    let Some(lora) = lora else {
        let y = by_kernel!(
            x,
            T => product::<T>(x, w, b)?,
            card k => product_on_card(k, x, w, b)?,
            composed(x, w, b)?
        );
        return Ok((y, None));
    };
    lora.check(x, w)?;
    let input = lora.input(x)?;
    by_kernel!(
        x,
        T => {
            let down = product::<T>(&input, &lora.a, None)?;
            let y = product::<T>(x, w, b)?;
            add_product::<T>(&y, lora.scale, (&down, false), (&lora.b, true))?;
            Ok((y, Some(down)))
        },
        card k => {
            let down = composed(&input, &lora.a.to_dtype(x.dtype())?, None)?;
            let y = product_on_card(k, x, w, b)?;
            let up = lora.b.to_dtype(x.dtype())?.contiguous()?;
            add_product_on_card(k, &y, lora.scale, (&down, &up))?;
            Ok((y, Some(down)))
        },
        {
            let down = composed(&input, &lora.a.to_dtype(x.dtype())?, None)?;
            // Scaled where there are fewer numbers.
            let up = composed(&(&down * lora.scale)?, &lora.b.to_dtype(x.dtype())?, None)?;
            Ok(((composed(x, w, b)? + up)?, Some(down)))
        }
    )
}

/// `x w^T + b`, added up by the product itself.
#[cfg(feature = "cuda")]
fn product_on_card(
    kernels: &card::Kernels,
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
) -> Result<Tensor> {
    let Some(b) = b.filter(|b| b.dtype() == x.dtype()) else {
        return composed(x, w, b);
    };
    let (rows, inner) = cpu::rows_of(x)?;
    let (x_rows, w) = (x.contiguous()?.reshape((rows, inner))?, w.contiguous()?);
    let y = card::rows::spread(kernels, b, rows)?;
    gemm::add_product(kernels, &y, 1.0, Factor::of(&x_rows), Factor::turned(&w))?;
    y.reshape(shape_with_last(x, w.dim(0)?))
}

/// `y += scale down up^T`, in place: `y` `[.., out]`, `down` `[.., r]`, `up` `[out, r]`.
#[cfg(feature = "cuda")]
fn add_product_on_card(
    kernels: &card::Kernels,
    y: &Tensor,
    scale: f64,
    (down, up): (&Tensor, &Tensor),
) -> Result<()> {
    let rows = |t: &Tensor| cpu::rows_of(t).and_then(|extents| t.reshape(extents));
    let (y, down) = (rows(y)?, rows(&down.contiguous()?)?);
    gemm::add_product(kernels, &y, scale, Factor::of(&down), Factor::turned(up))
}

fn composed(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let (rows, inner) = cpu::rows_of(x)?;
    let y = x.contiguous()?.reshape((rows, inner))?.matmul(&w.t()?)?;
    let y = if let Some(b) = b {
        y.broadcast_add(b)?
    } else {
        y
    };
    y.reshape(shape_with_last(x, w.dim(0)?))
}

fn shape_with_last(x: &Tensor, last: usize) -> Vec<usize> {
    let lead = x.dims().len().saturating_sub(1);
    [&x.dims()[..lead], &[last]].concat()
}

/// `x w^T + b`.
fn product<T: Real>(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let (rows, inner) = cpu::rows_of(x)?;
    let (out, _) = w.dims2()?;
    let (dense, w) = (cpu::contiguous(x)?, cpu::contiguous(w)?);
    let (data, w) = (elements::<T>(&dense)?, elements::<T>(&w)?);
    let mut y = vec![T::zero(); rows * out];
    let write = match b {
        Some(b) => {
            let b = cpu::contiguous(b)?;
            fill_rows(&mut y, &elements::<T>(&b)?);
            Write::Add
        }
        None => Write::Replace,
    };
    let (left, w) = (
        Matrix::new(&data, rows, inner, inner),
        Matrix::new(&w, out, inner, inner),
    );
    matmul(
        &mut MatrixMut::new(&mut y, rows, out, out),
        write,
        T::one(),
        left,
        w.t(),
        ALL,
    );
    cpu::tensor(y, &shape_with_last(x, out))
}

/// Copies `row` into every row of `data`.
fn fill_rows<T: Real>(data: &mut [T], row: &[T]) {
    if row.is_empty() {
        return;
    }
    data.par_chunks_mut(row.len() * cpu::rows_per_piece(row.len()))
        .for_each(|piece| {
            for target in piece.chunks_exact_mut(row.len()) {
                target.copy_from_slice(row);
            }
        });
}

/// `target += scale left right`, each tensor as rows of its last dimension, left and right transposed where
/// asked for; in place.
fn add_product<T: Real>(
    target: &Tensor,
    scale: f64,
    left: (&Tensor, bool),
    right: (&Tensor, bool),
) -> Result<()> {
    let (rows, columns) = cpu::rows_of(target)?;
    let (left_dense, right_dense) = (cpu::contiguous(left.0)?, cpu::contiguous(right.0)?);
    let (left_data, right_data) = (elements::<T>(&left_dense)?, elements::<T>(&right_dense)?);
    let matrix = |data, (tensor, transposed): (&Tensor, bool)| -> Result<_> {
        let (rows, columns) = cpu::rows_of(tensor)?;
        let matrix = Matrix::new(data, rows, columns, columns);
        Ok(if transposed { matrix.t() } else { matrix })
    };
    let (left, right) = (matrix(&*left_data, left)?, matrix(&*right_data, right)?);
    cpu::edit::<T>(target, |target| {
        let mut target = MatrixMut::new(target, rows, columns, columns);
        matmul(
            &mut target,
            Write::Add,
            T::from_f64(scale),
            left,
            right,
            ALL,
        );
    })
}

/// Which gradients of a linear layer are wanted.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) x: bool,
    pub(crate) a: bool,
    pub(crate) b: bool,
}

/// An adapter on its way back.
#[derive(Clone, Copy)]
pub(crate) struct Adapted<'a> {
    pub(crate) adapter: &'a LowRank,
    /// Read for the gradient of a.
    pub(crate) x: Option<&'a Tensor>,
    /// `(mask x) a^T`, read for the gradient of b.
    pub(crate) down: Option<&'a Tensor>,
}

/// The gradients towards x, a and b. `earlier` is a gradient towards x that is already there, for us to edit:
/// the one towards x is added to it. There is never one towards the frozen weight.
///
/// With g the gradient of y, h = (mask x) a^T and t = scale g b:
/// `dx = g w + mask (t a)`, `da = t^T (mask x)`, `db = scale g^T h`.
pub(crate) fn backward(
    gradient: &Tensor,
    w: &Tensor,
    lora: Option<Adapted<'_>>,
    wanted: Wanted,
    earlier: Option<Tensor>,
) -> Result<[Option<Tensor>; 3]> {
    by_kernel!(
        gradient,
        T => backward_kernel::<T>(gradient, w, lora, wanted, earlier),
        card k => backward_on_card(k, gradient, w, lora, wanted, earlier),
        backward_composed(gradient, w, lora, wanted, earlier)
    )
}

fn zeros<T: Real>(shape: &[usize]) -> Result<Tensor> {
    cpu::tensor(vec![T::zero(); shape.iter().product()], shape)
}

fn backward_kernel<T: Real>(
    gradient: &Tensor,
    w: &Tensor,
    lora: Option<Adapted<'_>>,
    wanted: Wanted,
    earlier: Option<Tensor>,
) -> Result<[Option<Tensor>; 3]> {
    let gradient = &cpu::contiguous(gradient)?;
    let shape = shape_with_last(gradient, w.dim(1)?);
    let dx = match earlier {
        _ if !wanted.x => None,
        Some(earlier) => Some(earlier),
        None => Some(zeros::<T>(&shape)?),
    };
    if let Some(dx) = &dx {
        add_product::<T>(dx, 1.0, (gradient, false), (w, false))?;
    }
    let (mut da, mut db) = (None, None);
    if let Some(Adapted {
        adapter: lora,
        x,
        down,
    }) = lora
    {
        let scale = lora.scale;
        if let Some(down) = down.filter(|_| wanted.b) {
            let out = zeros::<T>(lora.b.dims())?;
            add_product::<T>(&out, scale, (gradient, true), (down, false))?;
            db = Some(out);
        }
        if wanted.x || wanted.a {
            let t = zeros::<T>(&shape_with_last(gradient, lora.a.dim(0)?))?;
            add_product::<T>(&t, scale, (gradient, false), (&lora.b, false))?;
            if let Some(x) = x.filter(|_| wanted.a) {
                let out = zeros::<T>(lora.a.dims())?;
                add_product::<T>(&out, 1.0, (&t, true), (&lora.input(x)?, false))?;
                da = Some(out);
            }
            match (&dx, &lora.mask) {
                (Some(dx), None) => add_product::<T>(dx, 1.0, (&t, false), (&lora.a, false))?,
                (Some(dx), Some(mask)) => {
                    let seen = zeros::<T>(&shape)?;
                    add_product::<T>(&seen, 1.0, (&t, false), (&lora.a, false))?;
                    cpu::edit_with::<T>(&seen, mask, cpu::Product)?;
                    cpu::edit_with::<T>(dx, &seen, cpu::Sum)?;
                }
                (None, _) => {}
            }
        }
    }
    Ok([dx, da, db])
}

/// As composed, but what is added is added by the product itself, and gradients of the adapter keep their f32 sums.
#[cfg(feature = "cuda")]
fn backward_on_card(
    kernels: &card::Kernels,
    gradient: &Tensor,
    w: &Tensor,
    lora: Option<Adapted<'_>>,
    wanted: Wanted,
    earlier: Option<Tensor>,
) -> Result<[Option<Tensor>; 3]> {
    let rows = |t: &Tensor| {
        let extents = cpu::rows_of(t)?;
        t.contiguous()?.reshape(extents)
    };
    let shape = shape_with_last(gradient, w.dim(1)?);
    let g = rows(gradient)?;
    let dx = match earlier {
        _ if !wanted.x => None,
        Some(earlier) => {
            let dx = rows(&earlier)?;
            gemm::add_product(
                kernels,
                &dx,
                1.0,
                Factor::of(&g),
                Factor::of(&w.contiguous()?),
            )?;
            Some(dx)
        }
        None => Some(g.matmul(w)?),
    };
    let (mut da, mut db) = (None, None);
    if let Some(Adapted {
        adapter: lora,
        x,
        down,
    }) = lora
    {
        let fit = |t: &Tensor| t.to_dtype(g.dtype())?.contiguous();
        let (a, b) = (fit(&lora.a)?, fit(&lora.b)?);
        if let Some(down) = down.filter(|_| wanted.b) {
            let (g, down) = (Factor::turned(&g), rows(down)?);
            let (down, wide) = (Factor::of(&down), DType::F32);
            db = Some(gemm::scaled_product(kernels, wide, lora.scale, g, down)?);
        }
        let (left, right) = (Factor::of(&g), Factor::of(&b));
        let t = gemm::scaled_product(kernels, g.dtype(), lora.scale, left, right)?;
        if let Some(x) = x.filter(|_| wanted.a) {
            let (t, x) = (Factor::turned(&t), rows(&lora.input(x)?)?);
            let (x, wide) = (Factor::of(&x), DType::F32);
            da = Some(gemm::scaled_product(kernels, wide, 1.0, t, x)?);
        }
        match (&dx, &lora.mask) {
            (Some(dx), None) => {
                gemm::add_product(kernels, dx, 1.0, Factor::of(&t), Factor::of(&a))?;
            }
            (Some(dx), Some(mask)) => {
                let seen = (t.matmul(&a)? * rows(&fit(mask)?)?)?;
                let sum = (dx + seen)?.reshape(shape)?;
                return Ok([Some(sum), da, db]);
            }
            _ => {}
        }
    }
    let dx = dx.map(|dx| dx.reshape(shape)).transpose()?;
    Ok([dx, da, db])
}

fn backward_composed(
    gradient: &Tensor,
    w: &Tensor,
    lora: Option<Adapted<'_>>,
    wanted: Wanted,
    earlier: Option<Tensor>,
) -> Result<[Option<Tensor>; 3]> {
    let rows = |t: &Tensor| {
        let (rows, width) = cpu::rows_of(t)?;
        t.contiguous()?.reshape((rows, width))
    };
    let g = rows(gradient)?;
    let mut dx = if wanted.x { Some(g.matmul(w)?) } else { None };
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
    let shape = shape_with_last(gradient, w.dim(1)?);
    let dx = match (dx, earlier) {
        (Some(dx), Some(earlier)) => Some((dx.reshape(shape)? + earlier)?),
        (dx, _) => dx.map(|dx| dx.reshape(shape)).transpose()?,
    };
    Ok([dx, da, db])
}

//! Linear layers by cuBLASLt, which adds their bias where the product is written, takes GELU there, and multiplies 8-bit floats.

use candle_core::{DType, Result, Tensor};

use super::Kernels;
use super::matmul::{End, Numbers, Ready, Shape, aligned, opened};
use crate::nn::fp8::{Float8, Rounded};

/// What a product reads, each in one piece and in the type of `x`.
#[derive(Clone, Copy)]
struct Factors<'a> {
    /// `[m, k]`
    x: &'a Tensor,
    /// `[layers, n, k]`
    w: &'a Tensor,
    /// `[layers, n]`
    b: &'a Tensor,
    /// `[layers, m, n]`, added before anything else is done.
    added: Option<&'a Tensor>,
}

/// Where they begin on the GPU.
struct Places {
    x: u64,
    w: u64,
    b: u64,
    added: Option<u64>,
}

impl Factors<'_> {
    /// An error if they do not fit.
    fn shape(&self, end: End) -> Result<Shape> {
        let Self { x, w, b, added } = *self;
        let ((m, k), (layers, n, inner)) = (x.dims2()?, w.dims3()?);
        let dtype = x.dtype();
        let fit = |t: &Tensor, dims: &[usize]| t.dims() == dims && t.dtype() == dtype;
        let added_fits = added.is_none_or(|added| fit(added, &[layers, m, n]));
        if inner != k || w.dtype() != dtype || !fit(b, &[layers, n]) || !added_fits {
            candle_core::bail!("{:?} {:?} + {:?}", x.dims(), w.dims(), b.dims());
        }
        Ok(Shape {
            layers,
            m,
            k,
            n,
            numbers: match dtype {
                DType::BF16 => Numbers::Bf16,
                _ => Numbers::F32,
            },
            end,
        })
    }

    /// None if one does not begin where the library was promised, nor its rows; if there is nothing to multiply; or for GELU in f32, where the
    /// library's would be as exact as its tanh is.
    fn places(&self, kernels: &Kernels, shape: Shape) -> Result<Option<Places>> {
        let Shape {
            layers, m, k, n, ..
        } = shape;
        let size = self.x.dtype().size_in_bytes();
        let in_rows = [k, n].map(|width| (width * size) as u64);
        let rounded_gelu = shape.end == End::BiasAndGelu && shape.numbers == Numbers::F32;
        let at = |t: &Tensor| kernels.address(t);
        let (x, w, b) = (at(self.x)?, at(self.w)?, at(self.b)?);
        let added = self.added.map(at).transpose()?;
        let all = [x, w, b].into_iter().chain(added).chain(in_rows);
        let served = all.into_iter().all(aligned) && layers * m * k * n > 0 && !rounded_gelu;
        Ok(served.then_some(Places { x, w, b, added }))
    }
}

/// `x w^T + b` of each layer, `[layers, m, n]`, of `x` `[m, k]`, `w` `[layers, n, k]`, `b` `[layers, n]` in one type, each in one piece.
/// None where the library does not serve them.
pub(crate) fn linears(
    kernels: &Kernels,
    x: &Tensor,
    w: &Tensor,
    b: &Tensor,
) -> Result<Option<Tensor>> {
    let factors = Factors {
        x,
        w,
        b,
        added: None,
    };
    Ok(product(kernels, factors, End::Bias)?.map(|(y, _)| y))
}

/// Whether [`with_gelu`] gives something.
pub(crate) fn serves_gelu(kernels: &Kernels, x: &Tensor, w: &Tensor, b: &Tensor) -> Result<bool> {
    let factors = Factors {
        x,
        w: &w.unsqueeze(0)?,
        b: &b.unsqueeze(0)?,
        added: None,
    };
    let shape = factors.shape(End::BiasAndGelu)?;
    let Some(places) = factors.places(kernels, shape)? else {
        return Ok(false);
    };
    let mut guard = opened(kernels)?;
    Ok(Ready::of(kernels, &mut guard, shape, places.b)?.is_some())
}

/// GELU of `x w^T + b`, or of that plus `added` `[m, n]`; and what it was taken of, `[m, n]` both. Else as [`linears`], of one layer.
pub(crate) fn with_gelu(
    kernels: &Kernels,
    x: &Tensor,
    w: &Tensor,
    b: &Tensor,
    added: Option<&Tensor>,
) -> Result<Option<(Tensor, Tensor)>> {
    let added = added.map(|added| added.unsqueeze(0)).transpose()?;
    let factors = Factors {
        x,
        w: &w.unsqueeze(0)?,
        b: &b.unsqueeze(0)?,
        added: added.as_ref(),
    };
    match product(kernels, factors, End::BiasAndGelu)? {
        Some((y, Some(before))) => Ok(Some((y.squeeze(0)?, before.squeeze(0)?))),
        _ => Ok(None),
    }
}

/// The product, and what GELU was taken of if it was taken.
fn product(
    kernels: &Kernels,
    factors: Factors<'_>,
    end: End,
) -> Result<Option<(Tensor, Option<Tensor>)>> {
    let shape = factors.shape(end)?;
    let Shape { layers, m, n, .. } = shape;
    let dtype = factors.x.dtype();
    let Some(Places { x, w, b, added }) = factors.places(kernels, shape)? else {
        return Ok(None);
    };
    let mut guard = opened(kernels)?;
    let Some(ready) = Ready::of(kernels, &mut guard, shape, b)? else {
        return Ok(None);
    };
    let y = kernels.room((layers, m, n), dtype)?;
    let to = kernels.address(&y)?;
    ready.plan.describe_bias(b)?;
    let mut before = None;
    if end == End::BiasAndGelu {
        let room = kernels.room((layers, m, n), dtype)?;
        ready.plan.describe_kept(kernels.address(&room)?)?;
        before = Some(room);
    }
    // SAFETY: the plan is that of these extents, and all matrices are on the GPU, as large as they say and alive until the product is asked for.
    unsafe { ready.multiply(kernels, (w, x), added, to)? };
    Ok(Some((y, before)))
}

/// `y = x w^T + b`, or `y += x w^T` where it is `added`, of `w` `[n, k]` in e4m3 with its scale, into `y` `[m, n]`, which lies in one piece and is
/// nobody else's. A bias is in bf16, as `y` is.
///
/// An error where the library does not serve it: there is no other way to multiply these.
pub(super) fn in_fp8(
    kernels: &Kernels,
    (x, (w, scale)): (&Rounded, (&Tensor, &Tensor)),
    b: Option<&Tensor>,
    y: &Tensor,
    added: bool,
) -> Result<()> {
    let ((m, k), (n, inner)) = (x.codes.dims2()?, w.dims2()?);
    let half = y.dtype() == DType::BF16;
    let bias_fits = b.is_none_or(|b| b.dims() == [n] && half && b.dtype() == DType::BF16);
    let codes = [&x.codes, w].iter().all(|t| t.dtype() == DType::U8);
    if inner != k || y.dims() != [m, n] || !codes || !bias_fits || (added && b.is_some()) {
        let (x, w, y) = (x.codes.dims(), w.dims(), y.dims());
        candle_core::bail!("{x:?} {w:?} in fp8 into {y:?}");
    }
    if m == 0 {
        return Ok(());
    }
    let shape = Shape {
        layers: 1,
        m,
        k,
        n,
        numbers: Numbers::Fp8 {
            five: x.format == Float8::E5M2,
            half,
        },
        end: match b {
            Some(_) => End::Bias,
            None => End::Nothing,
        },
    };
    let at = |t: &Tensor| kernels.address(t);
    let (from, to) = ((at(w)?, at(&x.codes)?), at(y)?);
    let mut guard = opened(kernels)?;
    let ready = Ready::of(kernels, &mut guard, shape, from.0)?;
    let Some(ready) = ready.filter(|_| [from.0, from.1, to].into_iter().all(aligned)) else {
        candle_core::bail!("cuBLASLt multiplies no [{m}, {k}] by [{k}, {n}] in fp8 on this GPU");
    };
    ready.plan.describe_scales([at(scale)?, at(&x.scale)?])?;
    if let Some(b) = b {
        ready.plan.describe_bias(at(b)?)?;
    }
    // SAFETY: as in `product`; the scales are numbers on the GPU.
    unsafe { ready.multiply(kernels, from, added.then_some(to), to) }
}

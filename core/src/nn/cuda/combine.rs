//! Sums and products of two tensors, one of which may be spread over the other, and the way back.

use candle_core::{Result, Tensor, bail};

use super::Argument::{Address, Int, Long};
use super::rows::{by_width, fit, widest};
use super::views::dense;
use super::{Argument, Kernels, blocks_for, config};
use crate::nn::pointwise::Combine;

impl Combine {
    fn argument(self) -> Argument {
        Int(match self {
            Self::Sum => 0,
            Self::Product => 1,
        })
    }
}

/// Of `x` and `y`, of one shape and type.
pub(crate) fn combine(kernels: &Kernels, how: Combine, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.dims() != y.dims() {
        bail!("{:?} numbers beside {:?}", y.dims(), x.dims());
    }
    let x = dense(kernels, x)?;
    let y = fit(kernels, y, &x)?;
    let out = kernels.room(x.shape(), x.dtype())?;
    let at = |t: &Tensor| kernels.address(t);
    let (places, count) = ([at(&x)?, at(&y)?, at(&out)?], x.elem_count());
    let each = widest(x.dtype(), count, &places);
    let name = by_width(each, ["combine_by_8", "combine_by_4", "combine_by_1"]);
    let function = kernels.function("rows", x.dtype(), name)?;
    let [x_at, y_at, to] = places.map(Address);
    let arguments = [x_at, y_at, to, Long(count as i64), how.argument()];
    let blocks = blocks_for(count.div_ceil(each));
    // SAFETY: the signature of `combine_by_*`; all have the numbers of `x`.
    unsafe { kernels.launch(&function, blocks, &arguments)? };
    Ok(out)
}

/// How the numbers of a vector are spread over a tensor: each over `span` neighbours, over and over.
fn lain(x: &Tensor, vectors: usize, span: usize) -> Result<[Argument; 3]> {
    let count = x.elem_count();
    // The kernels divide by numbers of 32 bits.
    let small = |number: usize| i32::try_from(number).ok().filter(|&number| number > 0);
    let fits = |_: &_| count.is_multiple_of(span * vectors);
    let Some((span, vectors)) = small(span).zip(small(vectors)).filter(fits) else {
        bail!("{vectors} numbers, each {span} times, over {:?}", x.dims());
    };
    Ok([Long(count as i64), Int(span), Int(vectors)])
}

/// Of `x` and `vector`, whose numbers are each for `span` neighbours, over and over.
pub(crate) fn combine_spread(
    kernels: &Kernels,
    how: Combine,
    x: &Tensor,
    (vector, span): (&Tensor, usize),
) -> Result<Tensor> {
    let x = dense(kernels, x)?;
    let out = kernels.room(x.shape(), x.dtype())?;
    write_spread(kernels, how, &x, (vector, span), &out)?;
    Ok(out)
}

/// As [`combine_spread`] with a sum, in place of `x`, which lies in one piece and is nobody else's.
pub(crate) fn add_spread_in_place(
    kernels: &Kernels,
    x: &Tensor,
    vector: &Tensor,
    span: usize,
) -> Result<()> {
    write_spread(kernels, Combine::Sum, x, (vector, span), x)
}

/// `out` may be `x`: each number is read before it is written, and by one thread.
fn write_spread(
    kernels: &Kernels,
    how: Combine,
    x: &Tensor,
    (vector, span): (&Tensor, usize),
    out: &Tensor,
) -> Result<()> {
    let vector = fit(kernels, vector, x)?;
    let [count, each_over, vectors] = lain(x, vector.elem_count(), span)?;
    let at = |t: &Tensor| kernels.address(t);
    let places = [at(x)?, at(&vector)?, at(out)?];
    // What is taken at once has one number of the vector, or as many.
    let each = match span {
        1 => widest(x.dtype(), vector.elem_count(), &places),
        _ => widest(x.dtype(), span, &[places[0], places[2]]),
    };
    let names = [
        "combine_spread_by_8",
        "combine_spread_by_4",
        "combine_spread_by_1",
    ];
    let function = kernels.function("rows", x.dtype(), by_width(each, names))?;
    let [x_at, vector, to] = places.map(Address);
    let product = how.argument();
    let arguments = [x_at, vector, to, count, each_over, vectors, product];
    let blocks = blocks_for(x.elem_count().div_ceil(each));
    // SAFETY: the signature of `combine_spread_by_*`; `out` has the numbers of `x`.
    unsafe { kernels.launch(&function, blocks, &arguments) }
}

/// The sums of the numbers of `x` over which each of `vectors` was spread, `[vectors]`.
pub(crate) fn spread_sums(
    kernels: &Kernels,
    x: &Tensor,
    vectors: usize,
    span: usize,
) -> Result<Tensor> {
    let x = dense(kernels, x)?;
    let [count, span, all] = lain(&x, vectors, span)?;
    let out = kernels.room(vectors, x.dtype())?;
    let arguments = [
        Address(kernels.address(&x)?),
        Address(kernels.address(&out)?),
        count,
        span,
        all,
    ];
    let function = kernels.function("rows", x.dtype(), "spread_sums")?;
    let grid = config((vectors as u32, 1, 1), 256, 0);
    // SAFETY: the signature of `spread_sums`; there is a block for each of the sums.
    unsafe { kernels.launch(&function, grid, &arguments)? };
    Ok(out)
}

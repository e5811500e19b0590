//! Rows and single numbers: norms, modulation, gates, rotary positions, activations, AdamW.

use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{D, DType, Result, Tensor, bail};

use super::Argument::{Address, Float, Int, Long};
use super::{Argument, Kernels, blocks_for, config};
use crate::nn::Activation;
use crate::nn::norm::Statistic;

/// Rows that a block works on, a warp each.
const WARPS: usize = 4;

/// A vector for each of consecutive `span` rows (none: address 0), with `more` added to it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PerRow {
    data: u64,
    span: i64,
    more: f32,
}
// SAFETY: plain numbers, laid out as the kernels declare them.
unsafe impl DeviceRepr for PerRow {}

impl PerRow {
    const NONE: Self = Self {
        data: 0,
        span: 1,
        more: 0.0,
    };
}

/// What AdamW does to every number: what is kept and taken of the first and of the second moment, the shrinkage, the step's
/// size, the correction of the root, and epsilon.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Update(pub(crate) [f32; 8]);
// SAFETY: as above.
unsafe impl DeviceRepr for Update {}

/// A key of ChaCha8.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Key([u32; 8]);
// SAFETY: as above.
unsafe impl DeviceRepr for Key {}

/// Tensors of one type over the rows of `x`, and how many numbers a thread takes at a time.
struct Rows {
    rows: usize,
    width: usize,
    by_4: bool,
}

impl Rows {
    fn new(x: &Tensor) -> Result<Self> {
        let width = x.dim(D::Minus1)?;
        Ok(Self {
            rows: x.elem_count() / width,
            width,
            by_4: width % 4 == 0,
        })
    }

    /// The place of a contiguous tensor, which may not be one from which four numbers at a time can be read.
    fn address(&mut self, kernels: &Kernels, x: &Tensor) -> Result<u64> {
        let address = kernels.address(x)?;
        self.by_4 &= address % (4 * x.dtype().size_in_bytes() as u64) == 0;
        Ok(address)
    }

    /// A vector for all rows `[n]`, or one for each row of the batch `[B, n]`.
    fn vectors(&mut self, kernels: &Kernels, x: Option<&Tensor>, more: f32) -> Result<PerRow> {
        let Some(x) = x else {
            return Ok(PerRow::NONE);
        };
        let vectors = x.elem_count() / self.width;
        Ok(PerRow {
            data: self.address(kernels, x)?,
            span: self.rows.div_ceil(vectors).max(1) as i64,
            more,
        })
    }
}

/// One tensor, contiguous and of the type of `like`.
fn fit(x: &Tensor, like: &Tensor) -> Result<Tensor> {
    x.to_dtype(like.dtype())?.contiguous()
}

/// A norm with its gain (plus `more`) and bias, each `[n]` or `[B, n]`.
pub(crate) fn norm(
    kernels: &Kernels,
    statistic: Statistic,
    x: &Tensor,
    (gain, more): (Option<&Tensor>, f32),
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let gain = gain.map(|t| fit(t, &x)).transpose()?;
    let bias = bias.map(|t| fit(t, &x)).transpose()?;
    let out = kernels.room(x.shape(), x.dtype())?;
    let mut rows = Rows::new(&x)?;
    let (from, to) = (rows.address(kernels, &x)?, rows.address(kernels, &out)?);
    let gain = rows.vectors(kernels, gain.as_ref(), more)?;
    let bias = rows.vectors(kernels, bias.as_ref(), 0.0)?;
    let name = if rows.by_4 { "norm_by_4" } else { "norm_by_1" };
    let function = kernels.function("rows", x.dtype(), name)?;
    let arguments = [
        Address(from),
        Address(to),
        Argument::PerRow(gain),
        Argument::PerRow(bias),
        Long(rows.rows as i64),
        Int(rows.width as i32),
        Int(i32::from(statistic == Statistic::Deviation)),
        Float(eps as f32),
    ];
    let blocks = config(
        (rows.rows.div_ceil(WARPS) as u32, 1, 1),
        32 * WARPS as u32,
        0,
    );
    // SAFETY: the signature of `norm_by_*`; all have the rows of `x`, the vectors as many as `PerRow` says.
    unsafe { kernels.launch(&function, blocks, &arguments)? };
    Ok(out)
}

/// The gradient towards `x` of `norm`, of that of its result.
pub(crate) fn norm_backward(
    kernels: &Kernels,
    statistic: Statistic,
    x: &Tensor,
    (gain, more): (Option<&Tensor>, f32),
    eps: f64,
    gradient: &Tensor,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let gradient = fit(gradient, &x)?;
    let gain = gain.map(|t| fit(t, &x)).transpose()?;
    let out = kernels.room(x.shape(), x.dtype())?;
    let mut rows = Rows::new(&x)?;
    let places = [&x, &gradient, &out].map(|t| rows.address(kernels, t));
    let [from, along, to] = places;
    let gain = rows.vectors(kernels, gain.as_ref(), more)?;
    let name = match rows.by_4 {
        true => "norm_backward_by_4",
        false => "norm_backward_by_1",
    };
    let function = kernels.function("rows", x.dtype(), name)?;
    let arguments = [
        Address(from?),
        Address(along?),
        Address(to?),
        Argument::PerRow(gain),
        Long(rows.rows as i64),
        Int(rows.width as i32),
        Int(i32::from(statistic == Statistic::Deviation)),
        Float(eps as f32),
    ];
    let blocks = config(
        (rows.rows.div_ceil(WARPS) as u32, 1, 1),
        32 * WARPS as u32,
        0,
    );
    // SAFETY: the signature of `norm_backward_by_*`; as above.
    unsafe { kernels.launch(&function, blocks, &arguments)? };
    Ok(out)
}

/// `gate y`, plus `x` if there is one: `y` `[B, .., n]`, `gate` `[B, n]`.
pub(crate) fn gated(
    kernels: &Kernels,
    x: Option<&Tensor>,
    gate: &Tensor,
    y: &Tensor,
) -> Result<Tensor> {
    let y = y.contiguous()?;
    let (x, gate) = (x.map(|t| fit(t, &y)).transpose()?, fit(gate, &y)?);
    let out = kernels.room(y.shape(), y.dtype())?;
    let mut rows = Rows::new(&y)?;
    let old = match &x {
        Some(x) => rows.address(kernels, x)?,
        None => 0,
    };
    let (from, to) = (rows.address(kernels, &y)?, rows.address(kernels, &out)?);
    let gate = rows.vectors(kernels, Some(&gate), 0.0)?;
    let (name, each) = match rows.by_4 {
        true => ("gated_by_4", 4),
        false => ("gated_by_1", 1),
    };
    let function = kernels.function("rows", y.dtype(), name)?;
    let arguments = [
        Address(old),
        Argument::PerRow(gate),
        Address(from),
        Address(to),
        Long(rows.rows as i64),
        Int(rows.width as i32),
    ];
    let blocks = blocks_for(y.elem_count().div_ceil(each));
    // SAFETY: the signature of `gated_by_*`; as above.
    unsafe { kernels.launch(&function, blocks, &arguments)? };
    Ok(out)
}

/// The vector `[n]` in every one of `rows` rows, `[rows, n]`.
pub(crate) fn spread(kernels: &Kernels, vector: &Tensor, rows: usize) -> Result<Tensor> {
    let vector = vector.contiguous()?;
    let width = vector.dim(0)?;
    let out = kernels.room((rows, width), vector.dtype())?;
    let mut shape = Rows::new(&out)?;
    let from = Address(shape.address(kernels, &vector)?);
    let to = Address(shape.address(kernels, &out)?);
    let (name, each) = match shape.by_4 {
        true => ("spread_by_4", 4),
        false => ("spread_by_1", 1),
    };
    let function = kernels.function("rows", out.dtype(), name)?;
    let arguments = [from, to, Long(rows as i64), Int(width as i32)];
    let blocks = blocks_for(out.elem_count().div_ceil(each));
    // SAFETY: the signature of `spread_by_*`; `out` has `rows` rows like `vector`.
    unsafe { kernels.launch(&function, blocks, &arguments)? };
    Ok(out)
}

/// Adds `factor source` to the numbers of the flat f32 tensor `target` from `start` on, in place.
pub(crate) fn accumulate(
    kernels: &Kernels,
    target: &Tensor,
    start: usize,
    source: &Tensor,
    factor: f64,
) -> Result<()> {
    if target.dtype() != DType::F32 {
        bail!("sums are kept in f32, not in {:?}", target.dtype());
    }
    let source = source.contiguous()?;
    let count = source.elem_count();
    let part = target.narrow(0, start, count)?;
    let arguments = [
        Address(kernels.address(&source)?),
        Address(kernels.address(&part)?),
        Long(count as i64),
        Float(factor as f32),
    ];
    let function = kernels.function("rows", source.dtype(), "accumulate")?;
    // SAFETY: the signature of `accumulate`; both have as many numbers.
    unsafe { kernels.launch(&function, blocks_for(count), &arguments) }
}

/// Pairs of `x` `[B, N, H, D]` turned by the angles of `cos` and `sin`, `[N, D / 2]`, or turned back.
pub(crate) fn rope(
    kernels: &Kernels,
    x: &Tensor,
    (cos, sin): (&Tensor, &Tensor),
    back: bool,
) -> Result<Tensor> {
    let (_, length, heads, width) = x.dims4()?;
    let x = x.contiguous()?;
    let table = |t: &Tensor| t.to_dtype(DType::F32)?.contiguous();
    let (cos, sin) = (table(cos)?, table(sin)?);
    let out = kernels.room(x.shape(), x.dtype())?;
    let pairs = x.elem_count() / 2;
    let arguments = [
        Address(kernels.address(&x)?),
        Address(kernels.address(&cos)?),
        Address(kernels.address(&sin)?),
        Address(kernels.address(&out)?),
        Long(pairs as i64),
        Int(length as i32),
        Int(heads as i32),
        Int((width / 2) as i32),
        Float(if back { -1.0 } else { 1.0 }),
    ];
    let function = kernels.function("rows", x.dtype(), "rope")?;
    // SAFETY: the signature of `rope`; the tables were checked against `x`.
    unsafe { kernels.launch(&function, blocks_for(pairs), &arguments)? };
    Ok(out)
}

/// What becomes of an activation.
#[derive(Clone, Copy)]
pub(crate) enum Mode<'a> {
    /// Its value.
    Value,
    /// Its value times another number.
    ValueTimes(&'a Tensor),
    /// Its slope times another number.
    SlopeTimes(&'a Tensor),
}

/// An activation of every number of `x`.
pub(crate) fn activate(
    kernels: &Kernels,
    activation: Activation,
    x: &Tensor,
    mode: Mode<'_>,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (number, other) = match mode {
        Mode::Value => (0, None),
        Mode::ValueTimes(other) => (1, Some(other)),
        Mode::SlopeTimes(other) => (2, Some(other)),
    };
    if let Some(other) = other
        && other.dims() != x.dims()
    {
        candle_core::bail!("{:?} numbers for {:?}", other.dims(), x.dims());
    }
    let other = other.map(|t| fit(t, &x)).transpose()?;
    let out = kernels.room(x.shape(), x.dtype())?;
    let arguments = [
        Address(kernels.address(&x)?),
        Address(match &other {
            Some(other) => kernels.address(other)?,
            None => 0,
        }),
        Address(kernels.address(&out)?),
        Long(x.elem_count() as i64),
        Int(match activation {
            Activation::GeluErf => 0,
            Activation::GeluTanh => 1,
            Activation::QuickGelu => 2,
            Activation::Silu => 3,
        }),
        Int(number),
    ];
    let function = kernels.function("rows", x.dtype(), "activate")?;
    // SAFETY: the signature of `activate`; all have the numbers of `x`.
    unsafe { kernels.launch(&function, blocks_for(x.elem_count()), &arguments)? };
    Ok(out)
}

/// A mask like `like`, 0 with a probability, else what keeps the mean: from the numbers of ChaCha8 under `key`, of which each
/// takes the next 64 bits.
pub(crate) fn dropout(
    kernels: &Kernels,
    key: [u8; 32],
    probability: f64,
    like: &Tensor,
) -> Result<Tensor> {
    /// Numbers of a thread.
    const EACH: usize = 8;
    let word = |i| u32::from_le_bytes([key[i], key[i + 1], key[i + 2], key[i + 3]]);
    let words = std::array::from_fn(|i| word(4 * i));
    let out = kernels.room(like.shape(), like.dtype())?;
    let arguments = [
        Argument::Key(Key(words)),
        Argument::Double(probability),
        Float((1.0 / (1.0 - probability)) as f32),
        Address(kernels.address(&out)?),
        Long(out.elem_count() as i64),
    ];
    let function = kernels.function("rows", out.dtype(), "dropout")?;
    let blocks = blocks_for(out.elem_count().div_ceil(EACH));
    // SAFETY: the signature of `dropout`.
    unsafe { kernels.launch(&function, blocks, &arguments)? };
    Ok(out)
}

/// One step of AdamW, in place.
pub(crate) fn adamw(
    kernels: &Kernels,
    parameters: &Tensor,
    gradient: &Tensor,
    (first, second): (&Tensor, &Tensor),
    update: [f32; 8],
) -> Result<()> {
    let arguments = [
        Address(kernels.address(parameters)?),
        Address(kernels.address(gradient)?),
        Address(kernels.address(first)?),
        Address(kernels.address(second)?),
        Long(parameters.elem_count() as i64),
        Argument::Update(Update(update)),
    ];
    let function = kernels.function("rows", DType::F32, "adamw")?;
    // SAFETY: the signature of `adamw`; all have as many numbers, which the caller checked.
    unsafe { kernels.launch(&function, blocks_for(parameters.elem_count()), &arguments) }
}

//! Rows and single numbers: norms, modulation, gates, rotary positions, activations.

use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, LaunchConfig};
use candle_core::{D, DType, Result, Tensor};

use super::Argument::{Address, Float, Int, Long};
use super::views::dense;
use super::{Argument, Kernels, blocks_for, config};
use crate::nn::Activation;
use crate::nn::norm::Statistic;

/// Rows that a block works on, a warp each; as in `rows.cu`.
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

/// A key of ChaCha8.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Key([u32; 8]);
// SAFETY: as above.
unsafe impl DeviceRepr for Key {}

/// How many numbers a thread takes at a time, of rows of `width` that begin at these addresses: 8, 4 or 1.
pub(super) fn widest(dtype: DType, width: usize, addresses: &[u64]) -> usize {
    let size = dtype.size_in_bytes();
    let fits = |each: &usize| {
        // No access is of more than 16 bytes.
        let bytes = (each * size).min(16) as u64;
        width.is_multiple_of(*each) && addresses.iter().all(|a| a.is_multiple_of(bytes))
    };
    [8, 4].into_iter().find(fits).unwrap_or(1)
}

/// The name, of those by 8, 4 and 1.
pub(super) fn by_width(each: usize, [by_8, by_4, by_1]: [&'static str; 3]) -> &'static str {
    match each {
        8 => by_8,
        4 => by_4,
        _ => by_1,
    }
}

/// Tensors of one type over the rows of `x`, and how many numbers a thread takes at a time.
struct RowLaunch {
    rows: usize,
    width: usize,
    each: usize,
}

impl RowLaunch {
    fn new(x: &Tensor) -> Result<Self> {
        let width = x.dim(D::Minus1)?;
        Ok(Self {
            rows: x.elem_count() / width,
            width,
            each: widest(x.dtype(), width, &[]),
        })
    }

    /// All numbers as one row.
    fn flat(x: &Tensor) -> Self {
        let width = x.elem_count();
        Self {
            rows: 1,
            width,
            each: widest(x.dtype(), width, &[]),
        }
    }

    /// The place of a contiguous tensor, which may not be one from which many numbers at a time can be read.
    fn address(&mut self, kernels: &Kernels, x: &Tensor) -> Result<u64> {
        let address = kernels.address(x)?;
        self.each = self.each.min(widest(x.dtype(), self.width, &[address]));
        Ok(address)
    }

    /// The name, of those by 8, 4 and 1, and the threads for all numbers.
    fn named(&self, names: [&'static str; 3]) -> (&'static str, LaunchConfig) {
        let threads = (self.rows * self.width).div_ceil(self.each);
        (by_width(self.each, names), blocks_for(threads))
    }

    /// The name and blocks of a norm: wide rows have a block each, which holds them in registers.
    fn norm(
        &self,
        wide: [&'static str; 4],
        narrow: [&'static str; 3],
    ) -> (&'static str, LaunchConfig) {
        /// Numbers of a block of a wide row that all its threads read at once.
        const AT_ONCE: usize = 8 * 32 * WARPS;
        // How many times 8 numbers a thread holds: each is a kernel of its own, whose array stays in registers.
        let held = self.width.div_ceil(AT_ONCE);
        // Narrower rows would leave more than half of a block idle: a warp each does them.
        if self.each == 8 && self.width >= AT_ONCE / 2 && held <= wide.len() {
            let grid = (self.rows as u32, 1, 1);
            return (wide[held - 1], config(grid, 32 * WARPS as u32, 0));
        }
        let (name, _) = self.named(narrow);
        let grid = (self.rows.div_ceil(WARPS) as u32, 1, 1);
        (name, config(grid, 32 * WARPS as u32, 0))
    }

    /// What every norm is told last: how many rows of which width, and how they are normed.
    fn normed(&self, statistic: Statistic, eps: f64) -> [Argument; 4] {
        [
            Long(self.rows as i64),
            Int(self.width as i32),
            Int(i32::from(statistic == Statistic::Deviation)),
            Float(eps as f32),
        ]
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
pub(super) fn fit(kernels: &Kernels, x: &Tensor, like: &Tensor) -> Result<Tensor> {
    dense(kernels, &x.to_dtype(like.dtype())?)
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
    let x = dense(kernels, x)?;
    let gain = gain.map(|t| fit(kernels, t, &x)).transpose()?;
    let bias = bias.map(|t| fit(kernels, t, &x)).transpose()?;
    let out = kernels.room(x.shape(), x.dtype())?;
    let mut rows = RowLaunch::new(&x)?;
    let (from, to) = (rows.address(kernels, &x)?, rows.address(kernels, &out)?);
    let gain = rows.vectors(kernels, gain.as_ref(), more)?;
    let bias = rows.vectors(kernels, bias.as_ref(), 0.0)?;
    let (name, blocks) = rows.norm(
        ["norm_wide_1", "norm_wide_2", "norm_wide_3", "norm_wide_4"],
        // Rows of a head are too short for a warp to take eight at a time.
        ["norm_by_4", "norm_by_4", "norm_by_1"],
    );
    let function = kernels.function("rows", x.dtype(), name)?;
    let arguments = [
        &[Address(from), Address(to)][..],
        &[Argument::PerRow(gain), Argument::PerRow(bias)],
        &rows.normed(statistic, eps),
    ]
    .concat();
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
    let x = dense(kernels, x)?;
    let gradient = fit(kernels, gradient, &x)?;
    let gain = gain.map(|t| fit(kernels, t, &x)).transpose()?;
    let out = kernels.room(x.shape(), x.dtype())?;
    let mut rows = RowLaunch::new(&x)?;
    let places = [&x, &gradient, &out].map(|t| rows.address(kernels, t));
    let [from, along, to] = places;
    let gain = rows.vectors(kernels, gain.as_ref(), more)?;
    let (name, blocks) = rows.norm(
        [
            "norm_backward_wide_1",
            "norm_backward_wide_2",
            "norm_backward_wide_3",
            "norm_backward_wide_4",
        ],
        [
            "norm_backward_by_4",
            "norm_backward_by_4",
            "norm_backward_by_1",
        ],
    );
    let function = kernels.function("rows", x.dtype(), name)?;
    let arguments = [
        &[Address(from?), Address(along?), Address(to?)][..],
        &[Argument::PerRow(gain)],
        &rows.normed(statistic, eps),
    ]
    .concat();
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
    let y = dense(kernels, y)?;
    let (x, gate) = (
        x.map(|t| fit(kernels, t, &y)).transpose()?,
        fit(kernels, gate, &y)?,
    );
    let out = kernels.room(y.shape(), y.dtype())?;
    let mut rows = RowLaunch::new(&y)?;
    let old = match &x {
        Some(x) => rows.address(kernels, x)?,
        None => 0,
    };
    let (from, to) = (rows.address(kernels, &y)?, rows.address(kernels, &out)?);
    let gate = rows.vectors(kernels, Some(&gate), 0.0)?;
    let (name, blocks) = rows.named(["gated_by_8", "gated_by_4", "gated_by_1"]);
    let function = kernels.function("rows", y.dtype(), name)?;
    let arguments = [
        Address(old),
        Argument::PerRow(gate),
        Address(from),
        Address(to),
        Long(rows.rows as i64),
        Int(rows.width as i32),
    ];
    // SAFETY: the signature of `gated_by_*`; as above.
    unsafe { kernels.launch(&function, blocks, &arguments)? };
    Ok(out)
}

/// The vector `[n]` in every one of `rows` rows, `[rows, n]`.
pub(crate) fn spread(kernels: &Kernels, vector: &Tensor, rows: usize) -> Result<Tensor> {
    let vector = dense(kernels, vector)?;
    let width = vector.dim(0)?;
    let out = kernels.room((rows, width), vector.dtype())?;
    let mut shape = RowLaunch::new(&out)?;
    let from = Address(shape.address(kernels, &vector)?);
    let to = Address(shape.address(kernels, &out)?);
    let (name, blocks) = shape.named(["spread_by_8", "spread_by_4", "spread_by_1"]);
    let function = kernels.function("rows", out.dtype(), name)?;
    let arguments = [from, to, Long(rows as i64), Int(width as i32)];
    // SAFETY: the signature of `spread_by_*`; `out` has `rows` rows like `vector`.
    unsafe { kernels.launch(&function, blocks, &arguments)? };
    Ok(out)
}

/// Pairs of `x` `[B, N, H, D]` turned by the angles of `cos` and `sin`, `[N, D / 2]`, or turned back.
pub(crate) fn rope(
    kernels: &Kernels,
    x: &Tensor,
    (cos, sin): (&Tensor, &Tensor),
    back: bool,
) -> Result<Tensor> {
    let (_, length, heads, width) = x.dims4()?;
    let x = dense(kernels, x)?;
    // In f32 whatever `x` is: cosines of far positions in bf16 would turn by another angle.
    let table = |t: &Tensor| t.to_dtype(DType::F32)?.contiguous();
    let (cos, sin) = (table(cos)?, table(sin)?);
    let out = kernels.room(x.shape(), x.dtype())?;
    let (from, to) = (kernels.address(&x)?, kernels.address(&out)?);
    // At least 2: a pair is turned by one thread.
    let (name, each) = match widest(x.dtype(), width, &[from, to]) {
        8 => ("rope_by_8", 8),
        _ => ("rope_by_2", 2),
    };
    let arguments = [
        Address(from),
        Address(kernels.address(&cos)?),
        Address(kernels.address(&sin)?),
        Address(to),
        Long(x.elem_count() as i64),
        Int(length as i32),
        Int(heads as i32),
        Int((width / 2) as i32),
        Float(if back { -1.0 } else { 1.0 }),
    ];
    let function = kernels.function("rows", x.dtype(), name)?;
    let blocks = blocks_for(x.elem_count().div_ceil(each));
    // SAFETY: the signature of `rope_by_*`; the tables were checked against `x`.
    unsafe { kernels.launch(&function, blocks, &arguments)? };
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
    let x = dense(kernels, x)?;
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
    let other = other.map(|t| fit(kernels, t, &x)).transpose()?;
    let out = kernels.room(x.shape(), x.dtype())?;
    let mut rows = RowLaunch::flat(&x);
    let (from, to) = (rows.address(kernels, &x)?, rows.address(kernels, &out)?);
    let other = match &other {
        Some(other) => rows.address(kernels, other)?,
        None => 0,
    };
    let (name, blocks) = rows.named(["activate_by_8", "activate_by_4", "activate_by_1"]);
    let arguments = [
        Address(from),
        Address(other),
        Address(to),
        Long(x.elem_count() as i64),
        Int(match activation {
            Activation::GeluErf => 0,
            Activation::GeluTanh => 1,
            Activation::QuickGelu => 2,
            Activation::Silu => 3,
        }),
        Int(number),
    ];
    let function = kernels.function("rows", x.dtype(), name)?;
    // SAFETY: the signature of `activate_by_*`; all have the numbers of `x`.
    unsafe { kernels.launch(&function, blocks, &arguments)? };
    Ok(out)
}

/// Numbers `[k]` in f32 to `[k, 2 half]`: cosines, then sines, of the number times `exp(step i / half)`.
pub(crate) fn sinusoids(
    kernels: &Kernels,
    numbers: &Tensor,
    half: usize,
    step: f32,
    dtype: DType,
) -> Result<Tensor> {
    let numbers = dense(kernels, numbers)?;
    let out = kernels.room((numbers.elem_count(), 2 * half), dtype)?;
    let count = out.elem_count();
    let arguments = [
        Address(kernels.address(&numbers)?),
        Address(kernels.address(&out)?),
        Long(count as i64),
        Int(half as i32),
        Float(step),
    ];
    let function = kernels.function("rows", dtype, "sinusoids")?;
    // SAFETY: the signature of `sinusoids`; `out` has as many rows as there are numbers.
    unsafe { kernels.launch(&function, blocks_for(count), &arguments)? };
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
    /// Numbers of a thread: a block of ChaCha8 is 64 bytes, eight numbers of 64 bits.
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

//! Group norms of pictures, with an optional SiLU in the same pass.

use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{DType, Result, Tensor};

use super::Argument::{Address, Int};
use super::rows::{by_width, widest};
use super::{Argument, Kernels, config};

/// Numbers that a block reads, about: a group of a large picture is shared by several.
const PIECE: usize = 8 * 1024;
/// Every block adds up the sums of all pieces of its group.
const MOST_PIECES: usize = 64;
const THREADS: u32 = 256;

const MOMENTS: [&str; 3] = [
    "group_moments_by_8",
    "group_moments_by_4",
    "group_moments_by_1",
];
const NORM: [&str; 3] = ["group_norm_by_8", "group_norm_by_4", "group_norm_by_1"];
const SUMS: [&str; 3] = ["group_sums_by_8", "group_sums_by_4", "group_sums_by_1"];
const BACKWARD: [&str; 3] = [
    "group_norm_backward_by_8",
    "group_norm_backward_by_4",
    "group_norm_backward_by_1",
];

/// How the groups of a picture lie.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Groups {
    size: i64,
    pixels: i32,
    channels: i32,
    groups: i32,
    pieces: i32,
    eps: f32,
}
// SAFETY: plain numbers, laid out as the kernels declare them.
unsafe impl DeviceRepr for Groups {}

/// A picture with what norms it: `x` `[B, C, ..]`, `weight` and `bias` `[C]`.
pub(crate) struct Normed {
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: Groups,
    grid: (u32, u32, u32),
}

impl Normed {
    pub(crate) fn new(
        x: &Tensor,
        (weight, bias): (&Tensor, &Tensor),
        groups: usize,
        eps: f64,
    ) -> Result<Self> {
        let (batch, channels) = (x.dim(0)?, x.dim(1)?);
        let size = x.elem_count() / (batch * groups).max(1);
        let pieces = size.div_ceil(PIECE).clamp(1, MOST_PIECES);
        let fit = |t: &Tensor| t.to_dtype(x.dtype())?.contiguous();
        Ok(Self {
            x: x.contiguous()?,
            weight: fit(weight)?,
            bias: fit(bias)?,
            groups: Groups {
                size: size as i64,
                pixels: (size * groups / channels) as i32,
                channels: (channels / groups) as i32,
                groups: groups as i32,
                pieces: pieces as i32,
                eps: eps as f32,
            },
            grid: (pieces as u32, (batch * groups) as u32, 1),
        })
    }

    /// Runs one of the kernels for 8, 4 and 1 numbers at once, of tensors like `x` that begin at these addresses.
    fn run(
        &self,
        kernels: &Kernels,
        (names, places): ([&'static str; 3], &[u64]),
        arguments: &[Argument],
    ) -> Result<()> {
        // What is taken at once is of one channel.
        let each = widest(self.x.dtype(), self.groups.pixels as usize, places);
        let function = kernels.function("rows", self.x.dtype(), by_width(each, names))?;
        // SAFETY: the callers below give each function its signature, tensors of the shape of `x`, `[C]`, or two sums for
        // each piece.
        unsafe { kernels.launch(&function, config(self.grid, THREADS, 0), arguments) }
    }

    /// Room for two f32 sums of every piece.
    fn sums(&self, kernels: &Kernels) -> Result<Tensor> {
        let (pieces, groups, _) = self.grid;
        kernels.room((groups as usize, pieces as usize, 2), DType::F32)
    }

    fn moments(&self, kernels: &Kernels) -> Result<Tensor> {
        let moments = self.sums(kernels)?;
        let x = kernels.address(&self.x)?;
        let arguments = [
            Address(x),
            Address(kernels.address(&moments)?),
            Argument::Groups(self.groups),
        ];
        self.run(kernels, (MOMENTS, &[x]), &arguments)?;
        Ok(moments)
    }

    /// The normed picture.
    pub(crate) fn forward(&self, kernels: &Kernels, silu: bool) -> Result<Tensor> {
        let moments = self.moments(kernels)?;
        let out = kernels.room(self.x.shape(), self.x.dtype())?;
        let (x, to) = (kernels.address(&self.x)?, kernels.address(&out)?);
        let arguments = [
            Address(x),
            Address(kernels.address(&moments)?),
            Address(kernels.address(&self.weight)?),
            Address(kernels.address(&self.bias)?),
            Address(to),
            Argument::Groups(self.groups),
            Int(silu.into()),
        ];
        self.run(kernels, (NORM, &[x, to]), &arguments)?;
        Ok(out)
    }

    /// The gradient towards the picture, of that of the normed one.
    pub(crate) fn backward(
        &self,
        kernels: &Kernels,
        gradient: &Tensor,
        silu: bool,
    ) -> Result<Tensor> {
        let gradient = gradient.to_dtype(self.x.dtype())?.contiguous()?;
        let (moments, sums) = (self.moments(kernels)?, self.sums(kernels)?);
        let out = kernels.room(self.x.shape(), self.x.dtype())?;
        let at = |t: &Tensor| kernels.address(t);
        let places = [at(&self.x)?, at(&gradient)?, at(&out)?];
        let [x, gradient, to] = places.map(Address);
        let (moments, sums) = (Address(at(&moments)?), Address(at(&sums)?));
        let (weight, bias) = (Address(at(&self.weight)?), Address(at(&self.bias)?));
        let (groups, silu) = (Argument::Groups(self.groups), Int(silu.into()));
        let first = [x, gradient, moments, weight, bias, sums, groups, silu];
        self.run(kernels, (SUMS, &places[..2]), &first)?;
        let second = [x, gradient, moments, sums, weight, bias, to, groups, silu];
        self.run(kernels, (BACKWARD, &places), &second)?;
        Ok(out)
    }
}

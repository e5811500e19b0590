//! Group norms of pictures, with an optional SiLU in the same pass.

use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{DType, Result, Tensor};

use super::Argument::{Address, Int};
use super::{Argument, Kernels, config};

/// Numbers that a block reads, about: a group of a large picture is shared by several.
const PIECE: usize = 16 * 1024;
/// Every block adds up the sums of all pieces of its group.
const MOST_PIECES: usize = 64;
const THREADS: u32 = 256;

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

    fn run(&self, kernels: &Kernels, name: &'static str, arguments: &[Argument]) -> Result<()> {
        let function = kernels.function("rows", self.x.dtype(), name)?;
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
        let arguments = [
            Address(kernels.address(&self.x)?),
            Address(kernels.address(&moments)?),
            Argument::Groups(self.groups),
        ];
        self.run(kernels, "group_moments", &arguments)?;
        Ok(moments)
    }

    /// The normed picture.
    pub(crate) fn forward(&self, kernels: &Kernels, silu: bool) -> Result<Tensor> {
        let moments = self.moments(kernels)?;
        let out = kernels.room(self.x.shape(), self.x.dtype())?;
        let arguments = [
            Address(kernels.address(&self.x)?),
            Address(kernels.address(&moments)?),
            Address(kernels.address(&self.weight)?),
            Address(kernels.address(&self.bias)?),
            Address(kernels.address(&out)?),
            Argument::Groups(self.groups),
            Int(silu.into()),
        ];
        self.run(kernels, "group_norm", &arguments)?;
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
        let given = [&self.x, &gradient, &moments].map(|t| kernels.address(t));
        let [x, gradient, moments] = given;
        let (x, gradient, moments) = (Address(x?), Address(gradient?), Address(moments?));
        let (weight, bias) = (
            Address(kernels.address(&self.weight)?),
            Address(kernels.address(&self.bias)?),
        );
        let sums = Address(kernels.address(&sums)?);
        let (groups, silu) = (Argument::Groups(self.groups), Int(silu.into()));
        let first = [x, gradient, moments, weight, bias, sums, groups, silu];
        self.run(kernels, "group_sums", &first)?;
        let to = Address(kernels.address(&out)?);
        let second = [x, gradient, moments, sums, weight, bias, to, groups, silu];
        self.run(kernels, "group_norm_backward", &second)?;
        Ok(out)
    }
}

//! Convolutions as products of matrices: the windows of a picture are written side by side, channel by channel, so that
//! the product is the picture that follows, and back. Or by cuDNN, where that was opened: in bf16, of windows larger than a pixel, of pictures
//! that are not doubled first.

use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{DType, Result, Tensor};

use super::Argument::{Address, Int, Long};
use super::combine::add_spread_in_place;
use super::cudnn::{Convolution, Direction};
use super::gemm::{Extents, Matrices, multiply};
use super::views::dense;
use super::{Argument, Kernels, blocks_for, config};
use crate::nn::Conv2dOptions;

/// Bytes of windows that are written at a time; few in tests, which have small pictures.
const STRIP_BYTES: usize = if cfg!(test) { 1 << 12 } else { 1 << 29 };
const THREADS: u32 = 256;

/// How windows lie on a picture.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Windows {
    channels: i32,
    height: i32,
    width: i32,
    /// 2 where the picture is doubled first.
    grown: i32,
    kernel_h: i32,
    kernel_w: i32,
    stride: i32,
    top: i32,
    left: i32,
    out_w: i32,
    /// Rows of windows, and the first of them.
    first: i32,
    rows: i32,
}
// SAFETY: plain numbers, laid out as the kernels declare them.
unsafe impl DeviceRepr for Windows {}

/// A convolution of pictures `[B, I, H, W]` by a weight `[O, I, KH, KW]`.
pub(crate) struct Conv<'a> {
    kernels: &'a Kernels,
    /// Of the weight.
    shape: (usize, usize, usize, usize),
    options: Conv2dOptions,
    batch: usize,
    /// Rows and columns of the picture, and of the one that follows.
    size: (usize, usize),
    out: (usize, usize),
}

impl<'a> Conv<'a> {
    /// By a weight of `shape`, of pictures of `size`; they were checked.
    pub(crate) fn new(
        kernels: &'a Kernels,
        shape: (usize, usize, usize, usize),
        options: Conv2dOptions,
        batch: usize,
        size: (usize, usize),
    ) -> Self {
        let (_, _, kh, kw) = shape;
        let grown = if options.upsample { 2 } else { 1 };
        let p = options.padding;
        let extent = |length: usize, around: usize, kernel: usize| {
            (length * grown + around - kernel) / options.stride + 1
        };
        Self {
            kernels,
            shape,
            options,
            batch,
            size,
            out: (
                extent(size.0, p.top + p.bottom, kh),
                extent(size.1, p.left + p.right, kw),
            ),
        }
    }

    /// Channels that come in and go out, and numbers in a window.
    fn extents(&self) -> (usize, usize, usize) {
        let (outputs, inputs, kh, kw) = self.shape;
        (inputs, outputs, inputs * kh * kw)
    }

    /// Whether a window is a pixel, so that the picture is its windows.
    fn is_pointwise(&self) -> bool {
        let (_, _, kh, kw) = self.shape;
        let p = self.options.padding;
        let padded = p.top + p.bottom + p.left + p.right;
        let plain = self.options.stride == 1 && !self.options.upsample;
        (kh, kw, padded) == (1, 1, 0) && plain
    }

    fn windows(&self, first: usize, rows: usize) -> Argument {
        let (_, channels, kernel_h, kernel_w) = self.shape;
        let p = self.options.padding;
        Argument::Windows(Windows {
            channels: channels as i32,
            height: self.size.0 as i32,
            width: self.size.1 as i32,
            grown: if self.options.upsample { 2 } else { 1 },
            kernel_h: kernel_h as i32,
            kernel_w: kernel_w as i32,
            stride: self.options.stride as i32,
            top: p.top as i32,
            left: p.left as i32,
            out_w: self.out.1 as i32,
            first: first as i32,
            rows: rows as i32,
        })
    }

    /// The windows of some rows, `[B, I KH KW, pixels]`.
    fn spread(&self, x: &Tensor, (first, rows): (usize, usize)) -> Result<Tensor> {
        let (_, _, window) = self.extents();
        let pixels = rows * self.out.1;
        let out = self.kernels.room((self.batch, window, pixels), x.dtype())?;
        let arguments = [
            Address(self.kernels.address(x)?),
            Address(self.kernels.address(&out)?),
            self.windows(first, rows),
        ];
        let blocks = pixels.div_ceil(THREADS as usize) as u32;
        let grid = config((blocks, window as u32, self.batch as u32), THREADS, 0);
        let function = self.kernels.function("rows", x.dtype(), "windows")?;
        // SAFETY: the signature of `windows`; `x` has the batch and size that this was made for.
        unsafe { self.kernels.launch(&function, grid, &arguments)? };
        Ok(out)
    }

    /// (first, count) of rows whose windows are written at a time.
    fn strips(&self, dtype: DType) -> Vec<(usize, usize)> {
        if self.is_pointwise() {
            return vec![(0, self.out.0)];
        }
        let (_, _, window) = self.extents();
        let row_bytes = self.batch * window * self.out.1 * dtype.size_in_bytes();
        let height = self.out.0;
        let rows = (STRIP_BYTES / row_bytes.max(1)).clamp(1, height);
        let strips = (0..height).step_by(rows);
        strips
            .map(|first| (first, rows.min(height - first)))
            .collect()
    }

    /// The picture that follows.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (kernels, x) = (self.kernels, dense(self.kernels, x)?);
        let weight = dense(kernels, &weight.to_dtype(x.dtype())?)?;
        if let Some(y) = self.by_cudnn(Direction::Forward, &x, &weight)? {
            if let Some(bias) = bias {
                add_channels(kernels, &y, &bias.to_dtype(x.dtype())?)?;
            }
            return Ok(y);
        }
        let (_, outputs, window) = self.extents();
        let shape = (self.batch, outputs, self.out.0, self.out.1);
        let (y, beta) = match bias {
            Some(bias) => (self.biased(&bias.to_dtype(x.dtype())?, shape)?, 1.0),
            None => (kernels.room(shape, x.dtype())?, 0.0),
        };
        let all = self.out.0 * self.out.1;
        let weight = Matrices::rows(kernels, &weight, window)?;
        let into = Matrices::rows(kernels, &y, all)?.apart(outputs * all);
        for (first, rows) in self.strips(x.dtype()) {
            let windows = match self.is_pointwise() {
                true => x.clone(),
                false => self.spread(&x, (first, rows))?,
            };
            let pixels = rows * self.out.1;
            let seen = Matrices::rows(kernels, &windows, pixels)?.apart(window * pixels);
            let extents = Extents {
                m: outputs,
                k: window,
                n: pixels,
                batch: self.batch,
            };
            let into = into.from(first * self.out.1);
            // SAFETY: `windows` has `window` rows of `pixels` for each picture, `y` rows of which these are a part.
            unsafe { multiply(kernels, extents, (1.0, beta), (weight, seen), into)? };
        }
        Ok(y)
    }

    /// None where cuDNN does not serve it.
    fn by_cudnn(
        &self,
        direction: Direction,
        given: &Tensor,
        weight: &Tensor,
    ) -> Result<Option<Tensor>> {
        let Some(cudnn) = &self.kernels.cudnn else {
            return Ok(None);
        };
        // A window of a pixel is one product already.
        if given.dtype() != DType::BF16 || self.options.upsample || self.is_pointwise() {
            return Ok(None);
        }
        let convolution = Convolution {
            batch: self.batch,
            weight: self.shape,
            size: self.size,
            out: self.out,
            stride: self.options.stride,
            padding: self.options.padding,
        };
        cudnn.convolve(self.kernels, &convolution, direction, given, weight)
    }

    /// A picture of the bias of every channel.
    fn biased(&self, bias: &Tensor, shape: (usize, usize, usize, usize)) -> Result<Tensor> {
        let bias = dense(self.kernels, bias)?;
        let y = self.kernels.room(shape, bias.dtype())?;
        let arguments = [
            Address(self.kernels.address(&bias)?),
            Address(self.kernels.address(&y)?),
            Long(y.elem_count() as i64),
            Int((shape.2 * shape.3) as i32),
            Int(shape.1 as i32),
        ];
        let function = self
            .kernels
            .function("rows", y.dtype(), "spread_channels")?;
        // SAFETY: the signature of `spread_channels`.
        unsafe {
            self.kernels
                .launch(&function, blocks_for(y.elem_count()), &arguments)?;
        }
        Ok(y)
    }

    /// The gradient towards the pictures, of that of those that follow.
    pub(crate) fn backward(&self, weight: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let kernels = self.kernels;
        let gradient = dense(kernels, gradient)?;
        let weight = dense(kernels, &weight.to_dtype(gradient.dtype())?)?;
        if let Some(dx) = self.by_cudnn(Direction::TowardsPicture, &gradient, &weight)? {
            return Ok(dx);
        }
        let (inputs, outputs, window) = self.extents();
        let all = self.out.0 * self.out.1;
        // Not in strips, as forward: a pixel's gradient is a sum over windows of several rows, gathered by one thread.
        let windows = kernels.room((self.batch, window, all), gradient.dtype())?;
        let extents = Extents {
            m: window,
            k: outputs,
            n: all,
            batch: self.batch,
        };
        let weight = Matrices::rows(kernels, &weight, window)?.turned();
        let seen = Matrices::rows(kernels, &gradient, all)?.apart(outputs * all);
        let into = Matrices::rows(kernels, &windows, all)?.apart(window * all);
        // SAFETY: the gradient has `outputs` rows of `all` for each picture, `windows` `window` of them.
        unsafe { multiply(kernels, extents, (1.0, 0.0), (weight, seen), into)? };
        if self.is_pointwise() {
            return windows.reshape((self.batch, inputs, self.size.0, self.size.1));
        }
        self.gathered(&windows)
    }

    /// The sums over all windows that see a pixel, of each pixel.
    fn gathered(&self, windows: &Tensor) -> Result<Tensor> {
        let (kernels, (_, inputs, _, _)) = (self.kernels, self.shape);
        let shape = (self.batch, inputs, self.size.0, self.size.1);
        let dx = kernels.room(shape, windows.dtype())?;
        let arguments = [
            Address(kernels.address(windows)?),
            Address(kernels.address(&dx)?),
            Long(dx.elem_count() as i64),
            self.windows(0, self.out.0),
        ];
        let function = kernels.function("rows", dx.dtype(), "gather")?;
        // SAFETY: the signature of `gather`; there are all windows of the batch.
        unsafe { kernels.launch(&function, blocks_for(dx.elem_count()), &arguments)? };
        Ok(dx)
    }

    /// The gradient towards the weight, in f32, of that of the pictures that follow `x`.
    pub(crate) fn weight_backward(&self, x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let (kernels, x) = (self.kernels, dense(self.kernels, x)?);
        let gradient = dense(kernels, &gradient.to_dtype(x.dtype())?)?;
        let (_, outputs, window) = self.extents();
        let all = self.out.0 * self.out.1;
        let windows = match self.is_pointwise() {
            true => x,
            false => self.spread(&x, (0, self.out.0))?,
        };
        let found = kernels.room(self.shape, DType::F32)?;
        let extents = Extents {
            m: outputs,
            k: all,
            n: window,
            batch: 1,
        };
        let into = Matrices::rows(kernels, &found, window)?;
        let left = Matrices::rows(kernels, &gradient, all)?;
        let right = Matrices::rows(kernels, &windows, all)?.turned();
        for b in 0..self.batch {
            let factors = (left.from(b * outputs * all), right.from(b * window * all));
            // One picture after the other: the sum over the batch has one order.
            let beta = if b == 0 { 0.0 } else { 1.0 };
            // SAFETY: as in `forward`, one picture at a time.
            unsafe { multiply(kernels, extents, (1.0, beta), factors, into)? };
        }
        Ok(found)
    }
}

/// Windows of a pixel, on pictures `[B, C, H, W]` that are doubled first.
fn of_doubled(kernels: &Kernels, (b, c, h, w): (usize, usize, usize, usize)) -> Conv<'_> {
    let options = Conv2dOptions {
        upsample: true,
        ..Conv2dOptions::POINTWISE
    };
    Conv::new(kernels, (c, c, 1, 1), options, b, (h, w))
}

/// Each pixel of pictures `[B, C, H, W]` repeated to 2 x 2.
pub(crate) fn doubled(kernels: &Kernels, x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let doubled = of_doubled(kernels, (b, c, h, w)).spread(&dense(kernels, x)?, (0, 2 * h))?;
    doubled.reshape((b, c, 2 * h, 2 * w))
}

/// The sums over 2 x 2 pixels of pictures `[B, C, 2H, 2W]`.
pub(crate) fn summed_2x2(kernels: &Kernels, x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    of_doubled(kernels, (b, c, h / 2, w / 2)).gathered(&dense(kernels, x)?)
}

/// Adds a number for each channel, `[C]`, to pictures `[B, C, H, W]` in place, both of one type.
pub(crate) fn add_channels(kernels: &Kernels, pictures: &Tensor, bias: &Tensor) -> Result<()> {
    let (_, channels, h, w) = pictures.dims4()?;
    if bias.dims() != [channels] || bias.dtype() != pictures.dtype() {
        candle_core::bail!("{:?} added to {:?}", bias.dims(), pictures.dims());
    }
    add_spread_in_place(kernels, pictures, bias, h * w)
}

//! Views in one piece: candle copies them by a kernel that finds each number's place anew and uploads the extents first.

use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{Result, Tensor};

use super::Argument::{Address, Long};
use super::rows::{by_width, widest};
use super::{Argument, Kernels, blocks_for};

/// Dimensions that a view may have beside its runs: as many as the patches of pictures have.
const DIMENSIONS: usize = 6;

/// Rows of `run` numbers that lie apart.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct View {
    strides: [i64; DIMENSIONS],
    extents: [i32; DIMENSIONS],
    /// The first dimension of more than one number, or the last one.
    first: i32,
    run: i32,
}
// SAFETY: plain numbers, laid out as the kernels declare them.
unsafe impl DeviceRepr for View {}

impl View {
    /// None if it takes more dimensions than [`DIMENSIONS`] and a run.
    fn of(x: &Tensor) -> Option<Self> {
        // From the last dimension on, those that continue one another are one.
        let mut merged: Vec<(usize, usize)> = Vec::new();
        for (&extent, &stride) in x.dims().iter().zip(x.stride()).rev() {
            match merged.last_mut() {
                _ if extent == 1 => {}
                Some((inner, apart)) if stride == *inner * *apart => *inner *= extent,
                _ => merged.push((extent, stride)),
            }
        }
        let run = match merged.first() {
            Some(&(extent, 1)) => {
                merged.remove(0);
                extent
            }
            _ => 1,
        };
        if merged.len() > DIMENSIONS || x.elem_count() == 0 {
            return None;
        }
        // The kernel divides by extents of 32 bits; larger ones are left to candle.
        let small = |extent: usize| i32::try_from(extent).ok();
        let (mut strides, mut extents) = ([0; DIMENSIONS], [1; DIMENSIONS]);
        for (i, &(extent, stride)) in (1..).zip(&merged) {
            extents[DIMENSIONS - i] = small(extent)?;
            strides[DIMENSIONS - i] = stride as i64;
        }
        Some(Self {
            strides,
            extents,
            first: (DIMENSIONS - merged.len().max(1)) as i32,
            run: small(run)?,
        })
    }
}

/// `x` with its numbers in order: itself where they are already.
pub(crate) fn dense(kernels: &Kernels, x: &Tensor) -> Result<Tensor> {
    if x.is_contiguous() {
        return Ok(x.clone());
    }
    let Some(view) = View::of(x) else {
        return x.contiguous();
    };
    let out = kernels.room(x.shape(), x.dtype())?;
    let (from, to) = (kernels.start(x)?, kernels.address(&out)?);
    let apart = view.strides.iter().map(|&stride| stride as usize);
    // Each row must begin where that many numbers can be read at once.
    let each = apart.fold(
        widest(x.dtype(), view.run as usize, &[from, to]),
        |each, stride| widest(x.dtype(), stride, &[]).min(each),
    );
    let name = by_width(each, ["dense_by_8", "dense_by_4", "dense_by_1"]);
    let function = kernels.function("rows", x.dtype(), name)?;
    let count = x.elem_count();
    let arguments = [
        Address(from),
        Address(to),
        Argument::View(view),
        Long(count as i64),
    ];
    // SAFETY: the signature of `dense_by_*`; `out` has the numbers of `x`, and the view is that of its layout.
    unsafe { kernels.launch(&function, blocks_for(count.div_ceil(each)), &arguments)? };
    Ok(out)
}

/// The same, beginning at an address that is a multiple of `bytes`, which new memory always is.
pub(crate) fn aligned(kernels: &Kernels, x: &Tensor, bytes: u64) -> Result<Tensor> {
    let x = dense(kernels, x)?;
    match kernels.address(&x)? % bytes {
        0 => Ok(x),
        _ => x.copy(),
    }
}

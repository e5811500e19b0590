//! What comes before and after the blocks: patches, positions, and back to pixels.
//!
//! Shapes: b batch, c channels, h w latent height and width, i j patches down and across, p side of a patch,
//! n = i * j, d width of the network.

use candle_core::{Result, Tensor, bail};

use super::architecture::Architecture;
use crate::autograd::{Tape, Value};
use crate::nn::{Frozen, Kernels};

/// Patches to vectors: a convolution whose stride is its kernel is a linear on flattened patches.
pub(super) struct PatchEmbed {
    /// [d, c * p * p]
    weight: Frozen,
    /// [d]
    bias: Tensor,
    /// [1, s * s, d], s the side of the table
    positions: Tensor,
    side: usize,
    patch: usize,
}

impl PatchEmbed {
    /// `weight` [d, c, p, p], `bias` [d], `positions` [1, s * s, d].
    pub(super) fn new(
        architecture: &Architecture,
        weight: &Tensor,
        bias: Tensor,
        positions: Tensor,
    ) -> Result<Self> {
        Ok(Self {
            weight: weight.flatten_from(1)?.into(),
            bias,
            positions,
            side: architecture.max_patches,
            patch: architecture.patch_size,
        })
    }

    /// [b, c, h, w] to [b, n, d], with the middle of the position table added.
    pub(super) fn forward(&self, tape: &Tape, latents: &Value) -> Result<Value> {
        let (b, c, h, w) = latents.tensor().dims4()?;
        let p = self.patch;
        let (i, j) = self.patches(h, w)?;
        let x_bcipjp = tape.reshape(latents, &[b, c, i, p, j, p])?;
        let x_bijcpp = tape.permute(&x_bcipjp, &[0, 2, 4, 1, 3, 5])?;
        let x_bnk = tape.reshape(&x_bijcpp, &[b, i * j, c * p * p])?;
        let x_bnd = tape.linear(&x_bnk, &self.weight, Some(&self.bias), None)?;
        tape.add(&x_bnd, &Value::constant(self.crop(tape.kernels(), i, j)?))
    }

    /// The table of positions, of the network's type on its device.
    pub(super) fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// Patches down and across a latent of `h` by `w`.
    pub(super) fn patches(&self, h: usize, w: usize) -> Result<(usize, usize)> {
        let p = self.patch;
        if h == 0 || w == 0 || !h.is_multiple_of(p) || !w.is_multiple_of(p) {
            bail!("latents of {h} x {w}: expected a height and a width that are multiples of {p}");
        }
        if h / p > self.side || w / p > self.side {
            let most = self.side * p;
            bail!("latents of {h} x {w}: the position table of this model ends at {most} x {most}");
        }
        Ok((h / p, w / p))
    }

    /// The middle `i` by `j` cells of the table, [n, d].
    fn crop(&self, kernels: &Kernels, i: usize, j: usize) -> Result<Tensor> {
        // As diffusers' `cropped_pos_embed`: positions are those around the middle, whatever the picture's size.
        let (top, left) = ((self.side - i) / 2, (self.side - j) / 2);
        let width = self.positions.dim(2)?;
        let positions_ssd = self.positions.reshape((self.side, self.side, width))?;
        let cells = positions_ssd.narrow(0, top, i)?.narrow(1, left, j)?;
        kernels.contiguous(&cells)?.flatten(0, 1)
    }
}

/// [b, n, p * p * c] back to [b, c, h, w].
pub(super) fn unpatchify(
    tape: &Tape,
    x: &Value,
    (i, j): (usize, usize),
    p: usize,
    c: usize,
) -> Result<Value> {
    let b = x.tensor().dim(0)?;
    let x_bijppc = tape.reshape(x, &[b, i, j, p, p, c])?;
    let x_bcipjp = tape.permute(&x_bijppc, &[0, 5, 1, 3, 2, 4])?;
    tape.reshape(&x_bcipjp, &[b, c, i * p, j * p])
}

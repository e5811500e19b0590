//! Around the blocks: patches to tokens and back, and the positions of tokens.
//!
//! Shapes: b batch, c channels, h w latent height and width, i j patches down and across, p side of a patch,
//! n = i * j, r the reference's patches, m context tokens, e channels of a head.

use candle_core::{Device, Result, Tensor, bail};

use super::architecture::PATCH;
use crate::autograd::{Tape, Value};
use crate::models::tables::Tables;

/// The base of the rotary frequencies.
const THETA: f64 = 10000.0;

/// Patches down and across a latent of `h` by `w`.
pub(in crate::models) fn patches(h: usize, w: usize) -> Result<(usize, usize)> {
    if h == 0 || w == 0 || !h.is_multiple_of(PATCH) || !w.is_multiple_of(PATCH) {
        bail!("latents of {h} x {w}: expected a height and a width that are multiples of {PATCH}");
    }
    Ok((h / PATCH, w / PATCH))
}

/// [b, c, h, w] to [b, n, c * p * p]: a token has a patch's channels one after another, each with its pixels row by
/// row.
pub(in crate::models) fn pack(tape: &Tape, latents: &Value) -> Result<Value> {
    let (b, c, h, w) = latents.tensor().dims4()?;
    let (i, j) = patches(h, w)?;
    let x_bcipjp = tape.reshape(latents, &[b, c, i, PATCH, j, PATCH])?;
    let x_bijcpp = tape.permute(&x_bcipjp, &[0, 2, 4, 1, 3, 5])?;
    tape.reshape(&x_bijcpp, &[b, i * j, c * PATCH * PATCH])
}

/// [b, n, c * p * p] back to [b, c, h, w].
pub(in crate::models) fn unpack(
    tape: &Tape,
    x: &Value,
    (i, j): (usize, usize),
    c: usize,
) -> Result<Value> {
    let b = x.tensor().dim(0)?;
    let x_bijcpp = tape.reshape(x, &[b, i, j, c, PATCH, PATCH])?;
    let x_bcipjp = tape.permute(&x_bijcpp, &[0, 3, 1, 4, 2, 5])?;
    tape.reshape(&x_bcipjp, &[b, c, i * PATCH, j * PATCH])
}

/// Cosines and sines by which pairs of a head's channels turn, [n + r + m, e / 2] each in f32: for the patches row by row,
/// then for those of a reference, then for the context.
#[derive(Clone)]
pub(super) struct Rotary {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

impl Tables for Rotary {
    fn tensors(&self) -> Vec<&Tensor> {
        vec![&self.cos, &self.sin]
    }
}

impl Rotary {
    /// Angles in f64, as the authors and diffusers compute them. A patch's ids are (0, row, column), a reference's (1, row,
    /// column) (`prepare_kontext` in `src/flux/sampling.py`), the context's (0, 0, 0), so it does not turn. `pictures` are rows and
    /// columns of the picture and of its references.
    pub(super) fn new(
        axes: [usize; 3],
        pictures: &[(usize, usize)],
        context: usize,
        device: &Device,
    ) -> Result<Self> {
        let half = axes.iter().sum::<usize>() / 2;
        let patches = pictures.iter().map(|(rows, columns)| rows * columns);
        let tokens = patches.sum::<usize>() + context;
        let mut cos = Vec::with_capacity(tokens * half);
        let mut sin = Vec::with_capacity(tokens * half);
        for (picture, &(rows, columns)) in pictures.iter().enumerate() {
            let [of_rows, of_columns] = [(axes[1], rows), (axes[2], columns)]
                .map(|(axis, count)| (0..count).map(|at| turns(axis, at)).collect::<Vec<_>>());
            let first = turns(axes[0], picture.min(1));
            for row in &of_rows {
                for column in &of_columns {
                    for part in [&first, row, column] {
                        cos.extend(part.iter().map(|turn| turn.0));
                        sin.extend(part.iter().map(|turn| turn.1));
                    }
                }
            }
        }
        // The context, at angle 0.
        cos.resize(tokens * half, 1.0);
        sin.resize(tokens * half, 0.0);
        Ok(Self {
            cos: Tensor::from_vec(cos, (tokens, half), device)?,
            sin: Tensor::from_vec(sin, (tokens, half), device)?,
        })
    }

    /// Those of the tokens from `start` on.
    pub(super) fn narrow(&self, start: usize, count: usize) -> Result<Self> {
        Ok(Self {
            cos: self.cos.narrow(0, start, count)?,
            sin: self.sin.narrow(0, start, count)?,
        })
    }
}

/// Cosine and sine of each pair of an axis of `channels` at position `at`.
fn turns(channels: usize, at: usize) -> Vec<(f32, f32)> {
    let turn = |pair: usize| {
        let frequency = THETA.powf(-((2 * pair) as f64) / channels as f64);
        let angle = at as f64 * frequency;
        (angle.cos() as f32, angle.sin() as f32)
    };
    (0..channels / 2).map(turn).collect()
}

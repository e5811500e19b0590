//! Around the blocks: patches to tokens and back, and the places of tokens.
//!
//! Shapes: b batch, c channels, h w latent height and width, i j patches down and across, p side of a patch, n the picture's tokens
//! and m the caption's, with those that fill them up; e channels of a head.

use candle_core::{Device, Result, Tensor, bail};

use super::architecture::{Architecture, PATCH};
use crate::autograd::{Tape, Value};
use crate::models::tables::Tables;

/// Patches down and across a latent of `h` by `w`.
pub(super) fn patches(h: usize, w: usize) -> Result<(usize, usize)> {
    if h == 0 || w == 0 || !h.is_multiple_of(PATCH) || !w.is_multiple_of(PATCH) {
        bail!("latents of {h} x {w}: expected a height and a width that are multiples of {PATCH}");
    }
    Ok((h / PATCH, w / PATCH))
}

/// [b, c, h, w] to [b, i * j, p * p * c]: a token has a patch's pixels row by row, each with its channels.
pub(super) fn pack(tape: &Tape, latents: &Value) -> Result<Value> {
    let (b, c, h, w) = latents.tensor().dims4()?;
    let (i, j) = patches(h, w)?;
    let x_bcipjp = tape.reshape(latents, &[b, c, i, PATCH, j, PATCH])?;
    let x_bijppc = tape.permute(&x_bcipjp, &[0, 2, 4, 3, 5, 1])?;
    tape.reshape(&x_bijppc, &[b, i * j, PATCH * PATCH * c])
}

/// [b, i * j, p * p * c] back to [b, c, h, w].
pub(super) fn unpack(tape: &Tape, x: &Value, (i, j): (usize, usize), c: usize) -> Result<Value> {
    let b = x.tensor().dim(0)?;
    let x_bijppc = tape.reshape(x, &[b, i, j, PATCH, PATCH, c])?;
    let x_bcipjp = tape.permute(&x_bijppc, &[0, 5, 1, 3, 2, 4])?;
    tape.reshape(&x_bcipjp, &[b, c, i * PATCH, j * PATCH])
}

/// How many tokens there are, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extents {
    /// Patches down and across.
    pub(super) patches: (usize, usize),
    /// Of each caption of the batch, its own tokens.
    pub(super) captions: Vec<usize>,
}

impl Extents {
    /// n.
    pub(super) fn picture(&self) -> usize {
        Architecture::filled(self.patches.0 * self.patches.1)
    }

    /// Of each caption, its tokens with those that fill it up.
    pub(super) fn filled(&self) -> impl Iterator<Item = usize> {
        self.captions.iter().map(|&own| Architecture::filled(own))
    }

    /// m: of the longest.
    pub(super) fn caption(&self) -> usize {
        self.filled().max().unwrap_or(0)
    }
}

/// Cosines and sines by which pairs of a head's channels turn, [tokens, e / 2] each in f32: all of the first sample's tokens, then the
/// next one's.
#[derive(Clone)]
pub(super) struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// `x` [b, tokens, heads, e], turned.
    pub(super) fn turn(&self, tape: &Tape, x: &Value) -> Result<Value> {
        let (b, n, h, e) = x.tensor().dims4()?;
        // Samples have places of their own: to the kernel they are one.
        let x = tape.reshape(x, &[1, b * n, h, e])?;
        tape.reshape(&tape.rope(&x, &self.cos, &self.sin)?, &[b, n, h, e])
    }
}

/// The tables of a picture, of a caption, and of both, picture first; for all samples of a batch.
#[derive(Clone)]
pub(super) struct Positions {
    pub(super) picture: Rotary,
    pub(super) caption: Rotary,
    pub(super) both: Rotary,
}

impl Tables for Positions {
    fn tensors(&self) -> Vec<&Tensor> {
        let each = [&self.picture, &self.caption, &self.both];
        each.iter()
            .flat_map(|rotary| [&rotary.cos, &rotary.sin])
            .collect()
    }
}

impl Positions {
    /// A caption's tokens, those that fill it up among them, are at (1, 0, 0), (2, 0, 0) and so on; a patch is at (1 + their number, row,
    /// column), and what fills up the patches at (0, 0, 0) (`patchify_and_embed` of diffusers). Angles in f64, as there.
    pub(super) fn new(own: &Architecture, extents: &Extents, device: &Device) -> Result<Self> {
        let (mut picture, mut caption, mut both) = (Angles(vec![]), Angles(vec![]), Angles(vec![]));
        let (rows, columns) = extents.patches;
        let unplaced = extents.picture() - rows * columns;
        for length in extents.filled() {
            let mut patches = Angles(vec![]);
            for row in 0..rows {
                for column in 0..columns {
                    patches.push(own, [length + 1, row, column]);
                }
            }
            (0..unplaced).for_each(|_| patches.push(own, [0; 3]));
            // Beyond its own length, a caption's tokens are seen by none.
            let mut tokens = Angles(vec![]);
            (0..extents.caption()).for_each(|place| tokens.push(own, [place + 1, 0, 0]));
            both.0.extend(patches.0.iter().chain(&tokens.0));
            picture.0.extend(patches.0);
            caption.0.extend(tokens.0);
        }
        let half = own.head_channels() / 2;
        Ok(Self {
            picture: picture.rotary(half, device)?,
            caption: caption.rotary(half, device)?,
            both: both.rotary(half, device)?,
        })
    }
}

/// Angles of tokens, one after another.
struct Angles(Vec<f64>);

impl Angles {
    /// Adds those of a token.
    fn push(&mut self, own: &Architecture, place: [usize; 3]) {
        for (channels, at) in own.axes.into_iter().zip(place) {
            let angle =
                |pair: usize| at as f64 / own.theta.powf((2 * pair) as f64 / channels as f64);
            self.0.extend((0..channels / 2).map(angle));
        }
    }

    fn rotary(&self, half: usize, device: &Device) -> Result<Rotary> {
        let table = |of: fn(f64) -> f64| {
            let numbers: Vec<f32> = self.0.iter().map(|&angle| of(angle) as f32).collect();
            let tokens = numbers.len() / half;
            Tensor::from_vec(numbers, (tokens, half), device)
        };
        Ok(Rotary {
            cos: table(f64::cos)?,
            sin: table(f64::sin)?,
        })
    }
}

//! The positions of tokens.
//!
//! Shapes: n patches, r a reference's patches, m context tokens, e channels of a head.

use candle_core::{Device, Result, Tensor};

use super::architecture::{AXES, Architecture};
use crate::models::tables::Tables;

/// The first id of a reference's patches (`prc_img` of the authors' `encode_image_refs`; `_prepare_image_ids` of diffusers' pipeline).
const REFERENCE: usize = 10;

/// Cosines and sines by which pairs of a head's channels turn, [n + r + m, e / 2] each in f32: for the patches row by row, then for
/// those of a reference, then for the context.
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
    /// Angles in f64, as the authors and diffusers compute them. A patch's ids are (0, row, column, 0), a reference's (10, row,
    /// column, 0); `pictures` are rows and columns of the picture and of its reference, if it has one. Those of a token of the
    /// context (0, 0, 0, place) (`prc_img` and `prc_txt` in `src/flux2/sampling.py`): unlike FLUX.1's, captions turn, the rows of
    /// pads too.
    pub(super) fn new(
        architecture: &Architecture,
        pictures: &[(usize, usize)],
        context: usize,
        device: &Device,
    ) -> Result<Self> {
        let (axes, theta) = (architecture.axes, architecture.theta);
        let half = architecture.head_channels / 2;
        let patches: usize = pictures.iter().map(|(rows, columns)| rows * columns).sum();
        let tokens = patches + context;
        let most =
            |side: fn(&(usize, usize)) -> usize| pictures.iter().map(side).max().unwrap_or(0);
        let table = |axis: usize, count: usize| -> Vec<Vec<(f32, f32)>> {
            (0..count.max(1))
                .map(|at| turns(axes[axis], theta, at))
                .collect()
        };
        let tables = [
            table(0, REFERENCE + 1),
            table(1, most(|picture| picture.0)),
            table(2, most(|picture| picture.1)),
            table(3, context),
        ];
        let of_pictures = pictures.iter().enumerate();
        let patches = of_pictures.flat_map(|(picture, &(rows, columns))| {
            let first = REFERENCE * picture.min(1);
            (0..rows * columns).map(move |n| [first, n / columns, n % columns, 0])
        });
        let words = (0..context).map(|place| [0, 0, 0, place]);
        let mut cos = Vec::with_capacity(tokens * half);
        let mut sin = Vec::with_capacity(tokens * half);
        for ids in patches.chain(words) {
            for axis in 0..AXES {
                let turns = &tables[axis][ids[axis]];
                cos.extend(turns.iter().map(|turn| turn.0));
                sin.extend(turns.iter().map(|turn| turn.1));
            }
        }
        Ok(Self {
            cos: Tensor::from_vec(cos, (tokens, half), device)?,
            sin: Tensor::from_vec(sin, (tokens, half), device)?,
        })
    }

    /// Those of `count` tokens from `start` on.
    pub(super) fn narrow(&self, start: usize, count: usize) -> Result<Self> {
        Ok(Self {
            cos: self.cos.narrow(0, start, count)?,
            sin: self.sin.narrow(0, start, count)?,
        })
    }
}

/// Cosine and sine of each pair of an axis of `channels` at position `at`.
fn turns(channels: usize, theta: f64, at: usize) -> Vec<(f32, f32)> {
    let turn = |pair: usize| {
        let frequency = theta.powf(-((2 * pair) as f64) / channels as f64);
        let angle = at as f64 * frequency;
        (angle.cos() as f32, angle.sin() as f32)
    };
    (0..channels / 2).map(turn).collect()
}

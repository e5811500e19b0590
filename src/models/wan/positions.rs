//! Where a patch is: rotary positions along frames, rows and columns.

use candle_core::{Device, Result, Tensor};

use crate::models::tables::Tables;

/// The longest wavelength, over 2 pi.
const THETA: f64 = 10000.0;

/// Cosines and sines by which pairs of a head's channels turn, [n, e / 2] each in f32: frame by frame, row by row.
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
    /// `axes` are the channels that turn with frame, row and column. Angles in f64, as diffusers' `WanRotaryPosEmbed`.
    pub(super) fn new(axes: [usize; 3], extents: [usize; 3], device: &Device) -> Result<Self> {
        let [of_frames, of_rows, of_columns] = [0, 1, 2].map(|axis| {
            let turns = |at| turns(axes[axis], at);
            (0..extents[axis]).map(turns).collect::<Vec<_>>()
        });
        let half = axes.iter().map(|axis| axis / 2).sum::<usize>();
        let patches = extents.iter().product::<usize>();
        let mut cos = Vec::with_capacity(patches * half);
        let mut sin = Vec::with_capacity(patches * half);
        for frame in &of_frames {
            for row in &of_rows {
                for column in &of_columns {
                    for part in [frame, row, column] {
                        cos.extend(part.iter().map(|turn| turn.0));
                        sin.extend(part.iter().map(|turn| turn.1));
                    }
                }
            }
        }
        Ok(Self {
            cos: Tensor::from_vec(cos, (patches, half), device)?,
            sin: Tensor::from_vec(sin, (patches, half), device)?,
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

//! Rotary positions (Su et al. 2021) as language models have them: the pairs of a head are its dimensions i and i + d/2.

use candle_core::{Result, Tensor};

use super::Qwen3Architecture;
use crate::nn::{Kernels, rope};

/// The order of a head's dimensions in which its pairs are neighbours, as the kernel turns them. Queries and keys in this
/// order give the same products.
pub(super) fn neighbours(head_dim: usize) -> Vec<u32> {
    let half = head_dim / 2;
    let pair = |i: usize| [i as u32, (i + half) as u32];
    (0..half).flat_map(pair).collect()
}

/// The rows of `heads` heads in that order.
pub(super) fn rows_of_neighbours(heads: usize, head_dim: usize) -> Vec<u32> {
    let order = neighbours(head_dim);
    let head = |at: usize| order.iter().map(move |i| (at * head_dim) as u32 + i);
    (0..heads).flat_map(head).collect()
}

/// Cosines and sines of the angles of some rows, `[r, d/2]` in f32.
pub(super) struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    /// Of rows at these positions, on the device of `like`. Frequencies and angles are f32, as in
    /// `Qwen3RotaryEmbedding`, whatever is computed in.
    pub(super) fn new(
        architecture: &Qwen3Architecture,
        positions: &[u32],
        like: &Tensor,
    ) -> Result<Self> {
        let d = architecture.head_dim;
        let frequency = |i: usize| {
            let exponent = (2 * i) as f32 / d as f32;
            1.0 / architecture.rope_theta.powf(f64::from(exponent)) as f32
        };
        let frequencies: Vec<f32> = (0..d / 2).map(frequency).collect();
        let angles = positions
            .iter()
            .flat_map(|&at| frequencies.iter().map(move |f| f64::from(at as f32 * f)));
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
        let table = |values| Tensor::from_vec(values, (positions.len(), d / 2), like.device());
        Ok(Self {
            cos: table(cos)?,
            sin: table(sin)?,
        })
    }

    /// Turns the heads of `x` `[r, h, d]`.
    pub(super) fn turn(&self, kernels: &Kernels, x_rhd: &Tensor) -> Result<Tensor> {
        rope(kernels, &x_rhd.unsqueeze(0)?, &self.cos, &self.sin)?.squeeze(0)
    }
}

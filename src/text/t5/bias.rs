//! The relative position bias: what a key's distance adds to its score, per head.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::T5EncoderArchitecture;

/// What an encoder keeps of past lengths, at most. One table of T5-XXL for 512 tokens has 67 MB.
const CACHE_BYTES: usize = 512 << 20;

/// The bucket of a key at `distance` (key minus query).
///
/// As `T5Attention._relative_position_bucket` of transformers, both directions: half of the buckets for each,
/// and of these the first half for single distances, the others logarithmic up to `max_distance`. In f32, as
/// there.
pub(super) fn bucket(distance: isize, buckets: usize, max_distance: usize) -> usize {
    let half = buckets / 2;
    let exact = half / 2;
    let behind = if distance > 0 { half } else { 0 };
    let distance = distance.unsigned_abs();
    if distance < exact {
        return behind + distance;
    }
    let ratio = (distance as f32 / exact as f32).ln();
    // transformers takes this logarithm in Python's f64 and that of the distance in the tensor's f32.
    let scale = (max_distance as f64 / exact as f64).ln() as f32;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "floor of a positive"
    )]
    let beyond = (ratio / scale * (half - exact) as f32) as usize;
    behind + (exact + beyond).min(half - 1)
}

/// The biases of one table, by number of queries and keys.
pub(super) struct PositionBias {
    cache_bytes: usize,
    buckets: usize,
    max_distance: usize,
    /// Per bucket, per head.
    table: Vec<Vec<f32>>,
    /// The embedding itself, for its type and device.
    like: Tensor,
    cache: Mutex<HashMap<(usize, usize), Tensor>>,
}

impl PositionBias {
    /// From the embedding `[buckets, heads]`, one of the encoder's `tables`; results are in its type, on its device.
    pub(super) fn new(
        architecture: &T5EncoderArchitecture,
        table: &Tensor,
        tables: usize,
    ) -> Result<Self> {
        let host = table
            .to_dtype(candle_core::DType::F32)?
            .to_device(&candle_core::Device::Cpu)?;
        Ok(Self {
            cache_bytes: CACHE_BYTES / tables.max(1),
            buckets: architecture.relative_attention_num_buckets,
            max_distance: architecture.relative_attention_max_distance,
            table: host.to_vec2()?,
            like: table.clone(),
            cache: Mutex::default(),
        })
    }

    /// `[1, heads, queries, keys]`.
    pub(super) fn get(&self, queries: usize, keys: usize) -> Result<Tensor> {
        // A panic of another thread leaves the map usable: tables go in whole.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = cache.get(&(queries, keys)) {
            return Ok(known.clone());
        }
        let made = self.make(queries, keys)?;
        let bytes = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
        if cache.values().map(bytes).sum::<usize>() + bytes(&made) > self.cache_bytes {
            cache.clear();
        }
        if bytes(&made) <= self.cache_bytes {
            cache.insert((queries, keys), made.clone());
        }
        Ok(made)
    }

    fn make(&self, queries: usize, keys: usize) -> Result<Tensor> {
        let heads = self.table.first().map_or(0, Vec::len);
        // All distances from -(queries - 1) to keys - 1; a query's row is a window of it.
        let first = 1 - isize::try_from(queries).unwrap_or(0);
        let buckets: Vec<usize> = (first..)
            .take(queries + keys - 1)
            .map(|distance| bucket(distance, self.buckets, self.max_distance))
            .collect();
        let mut bias = vec![0f32; heads * queries * keys];
        bias.par_chunks_mut(queries * keys)
            .enumerate()
            .for_each(|(head, bias)| {
                let by_distance: Vec<f32> = buckets.iter().map(|&b| self.table[b][head]).collect();
                for (query, row) in bias.chunks_exact_mut(keys).enumerate() {
                    let start = queries - 1 - query;
                    row.copy_from_slice(&by_distance[start..start + keys]);
                }
            });
        let bias = Tensor::from_vec(bias, (1, heads, queries, keys), &candle_core::Device::Cpu)?;
        // The table's own numbers came from that type: the way through f32 loses nothing.
        bias.to_device(self.like.device())?
            .to_dtype(self.like.dtype())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published table for 32 buckets and distance 128.
    #[test]
    fn buckets_are_those_of_the_reference() {
        let expected = |d: usize| match d {
            0..=7 => d,
            8..=11 => 8,
            12..=15 => 9,
            16..=22 => 10,
            23..=31 => 11,
            32..=45 => 12,
            46..=63 => 13,
            64..=90 => 14,
            _ => 15,
        };
        for distance in 0..2000usize {
            let signed = isize::try_from(distance).expect("small");
            assert_eq!(bucket(-signed, 32, 128), expected(distance), "-{distance}");
            let ahead = if distance == 0 {
                0
            } else {
                16 + expected(distance)
            };
            assert_eq!(bucket(signed, 32, 128), ahead, "{distance}");
        }
    }
}

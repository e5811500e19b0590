//! Sequences of different lengths, laid end to end as rows, and their attention.
//!
//! A linear layer, a norm or an activation does not care where one sequence ends, so a batch is computed as
//! one matrix of exactly the rows that are needed. Attention is done per [`Group`], a run of sequences of
//! equal length.
//!
//! Shapes: r rows of a batch, b sequences of a group, n queries, m keys, h heads, d width of a head.

use std::collections::HashMap;

use candle_core::{Result, Tensor, bail};

use crate::nn::{AttentionMask, Kernels, attention};

/// Rows that are computed together: many, as each batch reads all weights again; few enough that the widest
/// activations of T5-XXL stay below 200 MB.
const ROWS_PER_BATCH: usize = 2048;

/// One sequence to compute.
#[derive(Clone, Debug)]
pub(super) struct Sequence {
    /// Its index in the call.
    pub(super) caption: usize,
    /// The ids to compute, as many as rows.
    pub(super) ids: Vec<u32>,
    /// Keys beyond this many are attended by nobody.
    pub(super) keys: usize,
}

/// A run of sequences of equal length and number of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// The first one's first row.
    pub(super) start: usize,
    pub(super) sequences: usize,
    pub(super) length: usize,
    pub(super) keys: usize,
}

/// Sequences computed together.
#[derive(Debug)]
pub(super) struct Batch {
    /// The sequences in order of their rows.
    pub(super) sequences: Vec<Sequence>,
    pub(super) groups: Vec<Group>,
}

/// Sorts sequences into batches of about the same size.
pub(super) fn batches_of(mut sequences: Vec<Sequence>) -> Vec<Batch> {
    // Equal lengths next to each other are one group of attention.
    sequences.sort_by_key(|s| (s.ids.len(), s.keys, s.caption));
    let total: usize = sequences.iter().map(|s| s.ids.len()).sum();
    // Equal shares, not full batches and a rest: a small batch reads all weights for few rows.
    let enough = total.div_ceil(total.div_ceil(ROWS_PER_BATCH).max(1));
    let mut batches: Vec<Batch> = Vec::new();
    // Full, so that the first sequence opens a batch.
    let mut rows = usize::MAX;
    for sequence in sequences {
        if rows >= enough || rows + sequence.ids.len() > ROWS_PER_BATCH {
            batches.push(Batch {
                sequences: Vec::new(),
                groups: Vec::new(),
            });
            rows = 0;
        }
        if let Some(batch) = batches.last_mut() {
            batch.push(sequence, &mut rows);
        }
    }
    batches
}

impl Batch {
    fn push(&mut self, sequence: Sequence, rows: &mut usize) {
        let (length, keys) = (sequence.ids.len(), sequence.keys);
        match self.groups.last_mut() {
            Some(group) if (group.length, group.keys) == (length, keys) => group.sequences += 1,
            _ => self.groups.push(Group {
                start: *rows,
                sequences: 1,
                length,
                keys,
            }),
        }
        *rows += length;
        self.sequences.push(sequence);
    }

    /// The ids of all rows.
    pub(super) fn ids(&self) -> Vec<u32> {
        self.sequences
            .iter()
            .flat_map(|s| s.ids.iter().copied())
            .collect()
    }

    /// The position of each row in its sequence.
    pub(super) fn positions(&self) -> Vec<u32> {
        self.sequences
            .iter()
            .flat_map(|s| (0..).take(s.ids.len()))
            .collect()
    }

    /// Each sequence with its first row.
    pub(super) fn starts(&self) -> impl Iterator<Item = (usize, &Sequence)> {
        self.sequences.iter().scan(0, |next, sequence| {
            let start = *next;
            *next += sequence.ids.len();
            Some((start, sequence))
        })
    }

    /// Attention of every sequence to itself: `attend(group, q_bnhd, k_bmhd, v_bmhd)` gives `[b, n, h*d]` for
    /// one group, `qkv_r3hd` holds queries, keys and values of all rows.
    ///
    /// Returns `[r, h*d]`.
    pub(super) fn attention(
        &self,
        qkv_r3hd: &Tensor,
        attend: impl Fn(&Group, &Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (_, _, heads, width) = qkv_r3hd.dims4()?;
        self.by_group(|group| {
            let (b, n) = (group.sequences, group.length);
            let rows = qkv_r3hd.narrow(0, group.start, b * n)?;
            let rows = rows.reshape((b, n, 3, heads, width))?;
            let [q, k, v] = [0, 1, 2].map(|i| rows.narrow(2, i, 1).and_then(|t| t.squeeze(2)));
            let keys = |t: Result<Tensor>| t?.narrow(1, 0, group.keys);
            let y = attend(group, &q?, &keys(k)?, &keys(v)?)?;
            y.reshape((b * n, heads * width))
        })
    }

    /// The same where each of `groups` heads of keys and values, `[r, groups, d]`, serves as many neighbouring heads of
    /// the queries, `[r, h, d]` (grouped-query attention, Ainslie et al. 2023).
    pub(super) fn grouped_attention(
        &self,
        q_rhd: &Tensor,
        [k_rgd, v_rgd]: [&Tensor; 2],
        attend: impl Fn(&Group, &Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (_, heads, width) = q_rhd.dims3()?;
        let groups = k_rgd.dim(1)?;
        self.by_group(|group| {
            let (b, n) = (group.sequences, group.length);
            let rows = |t: &Tensor, heads| {
                let rows = t.narrow(0, group.start, b * n)?;
                rows.reshape((b, n, heads, width))
            };
            let keys = |t: &Tensor| {
                let shape = (b, group.keys, groups, heads / groups, width);
                let once = rows(t, groups)?.narrow(1, 0, group.keys)?.unsqueeze(3)?;
                once.broadcast_as(shape)?
                    .reshape((b, group.keys, heads, width))
            };
            let y = attend(group, &rows(q_rhd, heads)?, &keys(k_rgd)?, &keys(v_rgd)?)?;
            y.reshape((b * n, heads * width))
        })
    }

    /// The rows that `of` gives for each group, one below the other.
    fn by_group(&self, of: impl Fn(&Group) -> Result<Tensor>) -> Result<Tensor> {
        let outputs = self.groups.iter().map(of).collect::<Result<Vec<_>>>()?;
        match outputs.as_slice() {
            // `cat` would copy it.
            [single] => Ok(single.clone()),
            several => Tensor::cat(several, 0),
        }
    }
}

/// Attention of a group's rows to themselves and what came before, of the first `keys` rows. As those after
/// see all of the first `keys`, there are two plain cases and no mask tensor.
pub(super) fn causal(
    kernels: &Kernels,
    group: &Group,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<Tensor> {
    let scale = 1.0 / (q.dim(3)? as f64).sqrt();
    let first = q.narrow(1, 0, group.keys)?;
    let first = attention(kernels, &first, k, v, scale, None, &AttentionMask::Causal)?;
    if group.keys == group.length {
        return Ok(first);
    }
    let rest = q.narrow(1, group.keys, group.length - group.keys)?;
    let rest = attention(kernels, &rest, k, v, scale, None, &AttentionMask::None)?;
    Tensor::cat(&[first, rest], 1)
}

/// The states of `from`, `[r, c]` for each batch, as those of `to`, whose sequences are as long or shorter.
pub(super) fn regroup(from: &[Batch], states: &[Tensor], to: &[Batch]) -> Result<Vec<Tensor>> {
    let rows_of_all = match states {
        [single] => single.clone(),
        several => Tensor::cat(several, 0)?,
    };
    let mut starts = HashMap::new();
    let mut first = 0;
    for (batch, state) in from.iter().zip(states) {
        starts.extend(batch.starts().map(|(start, s)| (s.caption, first + start)));
        first += state.dim(0)?;
    }
    let of_batch = |batch: &Batch| {
        let mut rows = Vec::new();
        for sequence in &batch.sequences {
            let Some(start) = starts.get(&sequence.caption) else {
                bail!("caption {} is in no batch", sequence.caption)
            };
            let start = u32::try_from(*start)?;
            // Its first rows: attention was causal, so none of them saw a row that is left out.
            rows.extend((start..).take(sequence.ids.len()));
        }
        rows_of_all.index_select(&Tensor::new(rows, rows_of_all.device())?, 0)
    };
    to.iter().map(of_batch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_grouped_by_length_and_nothing_is_lost() {
        let sequence = |caption, length: usize, keys| Sequence {
            caption,
            ids: vec![u32::try_from(caption).expect("small"); length],
            keys,
        };
        let batches = batches_of(vec![
            sequence(0, 5, 5),
            sequence(1, 2, 2),
            sequence(2, 5, 5),
            sequence(3, 5, 3),
            sequence(4, 3000, 3000),
            sequence(5, 1000, 1000),
        ]);
        let captions: Vec<Vec<_>> = batches
            .iter()
            .map(|p| p.sequences.iter().map(|s| s.caption).collect())
            .collect();
        assert_eq!(captions, [vec![1, 3, 0, 2, 5], vec![4]]);
        let group = |start, sequences, length, keys| Group {
            start,
            sequences,
            length,
            keys,
        };
        assert_eq!(
            batches[0].groups,
            [
                group(0, 1, 2, 2),
                group(2, 1, 5, 3),
                group(7, 2, 5, 5),
                group(17, 1, 1000, 1000)
            ]
        );
        assert_eq!(batches[0].ids()[..12], [1, 1, 3, 3, 3, 3, 3, 0, 0, 0, 0, 0]);
        assert_eq!(batches[0].positions()[..8], [0, 1, 0, 1, 2, 3, 4, 0]);
        let starts: Vec<_> = batches[0]
            .starts()
            .map(|(start, s)| (start, s.caption))
            .collect();
        assert_eq!(starts, [(0, 1), (2, 3), (7, 0), (12, 2), (17, 5)]);
        assert!(batches_of(Vec::new()).is_empty());
    }

    #[test]
    fn regrouped_states_follow_their_captions() {
        let sequence = |caption, length: usize| Sequence {
            caption,
            ids: vec![0; length],
            keys: length,
        };
        let from = batches_of(vec![sequence(0, 1500), sequence(1, 1000), sequence(2, 3)]);
        let to = batches_of(vec![sequence(0, 2), sequence(1, 1), sequence(2, 3)]);
        assert_eq!((from.len(), to.len()), (2, 1));
        // Row i of caption c holds 10000 c + i.
        let states: Vec<Tensor> = from
            .iter()
            .map(|batch| {
                let rows: Vec<f32> = batch
                    .sequences
                    .iter()
                    .flat_map(|s| (0..s.ids.len()).map(|i| (10_000 * s.caption + i) as f32))
                    .collect();
                Tensor::from_vec(rows.clone(), (rows.len(), 1), &candle_core::Device::Cpu)
                    .expect("made")
            })
            .collect();
        let found = regroup(&from, &states, &to).expect("regroups");
        let found: Vec<f32> = found[0]
            .flatten_all()
            .and_then(|t| t.to_vec1())
            .expect("f32");
        assert_eq!(found, [10_000.0, 0.0, 1.0, 20_000.0, 20_001.0, 20_002.0]);
    }
}

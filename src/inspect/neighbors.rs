//! Which captions an encoder takes for nearly the same, and which pictures and captions contradict each other.
//!
//! Nearness is the cosine of the captions' vectors ([`super::vectors`]). Vectors are compared block by block, so that of 100,000
//! captions no matrix of all pairs is ever there: what is kept is bounded by the number of captions.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use serde::Serialize;

use super::Error;
use super::captions::Captions;
use super::vectors::{CaptionVectors, Rows, VectorKind, Without};
use crate::digest::Digest;
use crate::monitor::Monitor;

/// Rows of a block: a product of two has 16 MiB.
const BLOCK_ROWS: usize = 2048;

/// Captions that are looked at to tell how near any two are.
const SAMPLED: usize = 2000;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct NeighborOptions {
    /// Captions with at least this cosine are near-duplicates.
    pub above: f32,
    /// So many neighbours of each caption.
    pub nearest: usize,
    /// So many near-duplicates are kept, those of the largest cosine; all are counted.
    pub most_pairs: usize,
}

/// Neighbours under one encoder.
#[derive(Debug, Serialize)]
pub struct Neighbors {
    /// The encoder's slot in the recipe.
    pub slot: String,
    /// What was compared; `None` where no caption has a vector.
    pub vectors: Option<VectorKind>,
    /// Captions that have one.
    pub captions: usize,
    /// Captions that have none, and why.
    pub without: Vec<Without>,
    /// The median cosine of two captions of the set, to measure the others by.
    pub typical_cosine: Option<f32>,
    /// The nearest captions of each, in their order.
    pub nearest: Vec<NearestCaptions>,
    /// Pairs of captions with at least the cosine that was asked for.
    pub near_duplicates: u64,
    /// Of these, those that have pictures, and no picture in common.
    pub with_other_pictures: u64,
    /// The pairs, the nearest first; those with other pictures before the others.
    pub pairs: Vec<NearPair>,
}

/// The captions nearest to one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NearestCaptions {
    /// The caption, by its place.
    pub caption: usize,
    /// Its neighbours, the nearest first.
    pub neighbors: Vec<Neighbor>,
}

/// A neighbour of a caption.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Neighbor {
    /// By its place.
    pub caption: usize,
    /// The cosine of both vectors.
    pub cosine: f32,
}

/// Two captions that are nearly the same to an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct NearPair {
    /// Whether both have pictures, and none in common.
    pub other_pictures: bool,
    /// The cosine of both vectors.
    pub cosine: f32,
    /// The captions by their places, the smaller first.
    pub captions: [usize; 2],
}

impl Eq for NearPair {}

impl Ord for NearPair {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |pair: &Self| (pair.other_pictures, std::cmp::Reverse(pair.captions));
        // What matters most is largest.
        self.other_pictures
            .cmp(&other.other_pictures)
            .then(self.cosine.total_cmp(&other.cosine))
            .then_with(|| key(self).cmp(&key(other)))
    }
}

impl PartialOrd for NearPair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Captions and pictures that contradict each other, whatever an encoder makes of them.
#[derive(Debug, Default, Serialize)]
pub struct Contradictions {
    /// Captions on several different pictures.
    pub same_caption: Vec<SameCaption>,
    /// Pictures that are there several times, with different captions.
    pub same_picture: Vec<SamePicture>,
}

/// A caption on several different pictures.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct SameCaption {
    /// The caption.
    pub caption: String,
    /// One file of each picture.
    pub pictures: Vec<PathBuf>,
}

/// A picture with several captions.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct SamePicture {
    /// The digest of the picture's file.
    pub digest: Digest,
    /// Each caption, with a file that has it.
    pub captions: Vec<(String, PathBuf)>,
}

/// Captions on different pictures, and pictures with different captions; those that are there most often first.
pub fn contradictions(captions: &Captions) -> Contradictions {
    let mut found = Contradictions::default();
    let mut of_picture: BTreeMap<Digest, BTreeMap<&str, PathBuf>> = BTreeMap::new();
    for caption in &captions.all {
        let mut pictures: BTreeMap<Digest, PathBuf> = BTreeMap::new();
        for &item in &caption.items {
            let item = &captions.items[item];
            let file = || item.picture.clone();
            pictures.entry(item.digest).or_insert_with(file);
            let captions = of_picture.entry(item.digest).or_default();
            captions.entry(&caption.text).or_insert_with(file);
        }
        if pictures.len() > 1 {
            found.same_caption.push(SameCaption {
                caption: caption.text.clone(),
                pictures: pictures.into_values().collect(),
            });
        }
    }
    let several = of_picture
        .into_iter()
        .filter(|(_, captions)| captions.len() > 1);
    found.same_picture.extend(several.map(|(digest, captions)| {
        SamePicture {
            digest,
            captions: (captions.into_iter())
                .map(|(caption, file)| (caption.to_owned(), file))
                .collect(),
        }
    }));
    let (same_caption, same_picture) = (&mut found.same_caption, &mut found.same_picture);
    same_caption.sort_by_key(|same| std::cmp::Reverse(same.pictures.len()));
    same_picture.sort_by_key(|same| std::cmp::Reverse(same.captions.len()));
    found
}

/// The captions nearest to the one in the place `caption`, which must have a vector; `None` if it has none.
///
/// # Errors
/// If the vectors cannot be read back.
pub fn nearest_to(
    vectors: &mut CaptionVectors,
    caption: usize,
    count: usize,
) -> Result<Option<NearestCaptions>, Error> {
    let Some(row) = vectors.of.iter().position(|of| of.caption == caption) else {
        return Ok(None);
    };
    let norms: Vec<f32> = vectors.of.iter().map(|of| of.norm).collect();
    let query = block(&mut vectors.rows, &norms, row, 1)?;
    let mut best = Best::new(1, count);
    for start in (0..norms.len()).step_by(BLOCK_ROWS) {
        let some = block(&mut vectors.rows, &norms, start, BLOCK_ROWS)?;
        let cosines = query.matmul(&some.t()?)?.flatten_all()?.to_vec1::<f32>()?;
        for (at, cosine) in cosines.into_iter().enumerate() {
            if start + at != row {
                best.add(0, cosine, start + at);
            }
        }
    }
    Ok(best
        .finish(vectors)
        .pop()
        .map(|found| NearestCaptions { caption, ..found }))
}

/// The nearest captions of each, and the near-duplicates.
///
/// # Errors
/// If the vectors cannot be read back.
pub fn neighbors(
    vectors: &mut CaptionVectors,
    captions: &Captions,
    options: &NeighborOptions,
    monitor: &dyn Monitor,
) -> Result<Neighbors, Error> {
    let norms: Vec<f32> = vectors.of.iter().map(|of| of.norm).collect();
    let count = norms.len();
    let typical_cosine = typical(&mut vectors.rows, &norms)?;
    let mut best = Best::new(count, options.nearest);
    let mut pairs = Pairs {
        captions,
        places: vectors.of.iter().map(|of| of.caption).collect(),
        most: options.most_pairs,
        kept: BinaryHeap::new(),
        count: 0,
        with_other_pictures: 0,
    };
    let blocks = count.div_ceil(BLOCK_ROWS) as u64;
    let stage = format!("neighbours, {}", vectors.encoder.slot);
    monitor.start(&stage, Some(blocks * (blocks + 1) / 2));
    for first in (0..count).step_by(BLOCK_ROWS) {
        let a = block(&mut vectors.rows, &norms, first, BLOCK_ROWS)?;
        for second in (first..count).step_by(BLOCK_ROWS) {
            let b = block(&mut vectors.rows, &norms, second, BLOCK_ROWS)?;
            let width = b.dim(0)?;
            let cosines = a.matmul(&b.t()?)?.flatten_all()?.to_vec1::<f32>()?;
            for (i, row) in cosines.chunks_exact(width).enumerate() {
                for (j, &cosine) in row.iter().enumerate() {
                    let (i, j) = (first + i, second + j);
                    // Of two blocks that are one, half is the other half.
                    if j <= i {
                        continue;
                    }
                    best.add(i, cosine, j);
                    best.add(j, cosine, i);
                    if cosine >= options.above {
                        pairs.add(cosine, i, j);
                    }
                }
            }
            monitor.advance(1);
        }
    }
    monitor.finish();
    let (near_duplicates, with_other_pictures) = (pairs.count, pairs.with_other_pictures);
    Ok(Neighbors {
        slot: vectors.encoder.slot.clone(),
        vectors: vectors.kind,
        captions: count,
        without: vectors.without.clone(),
        typical_cosine,
        pairs: pairs.finish(),
        nearest: best.finish(vectors),
        near_duplicates,
        with_other_pictures,
    })
}

/// Some rows, each divided by its norm; zeros stay zeros, and are near to nothing.
fn block(rows: &mut Rows, norms: &[f32], start: usize, count: usize) -> Result<Tensor, Error> {
    let mut values = rows.read(start, count)?;
    let width = rows.width().max(1);
    for (row, norm) in values.chunks_exact_mut(width).zip(&norms[start..]) {
        if *norm > 0.0 {
            for value in row {
                *value /= norm;
            }
        }
    }
    let count = values.len() / width;
    Ok(Tensor::from_vec(values, (count, width), &Device::Cpu)?)
}

/// The median cosine of captions that stand half the set apart.
fn typical(rows: &mut Rows, norms: &[f32]) -> Result<Option<f32>, Error> {
    let half = norms.len() / 2;
    let mut cosines = Vec::new();
    for start in (0..half.min(SAMPLED)).step_by(BLOCK_ROWS) {
        let count = BLOCK_ROWS.min(half.min(SAMPLED) - start);
        let a = block(rows, norms, start, count)?;
        let b = block(rows, norms, start + half, count)?;
        cosines.extend((a * b)?.sum(1)?.to_vec1::<f32>()?);
    }
    cosines.sort_by(f32::total_cmp);
    Ok(cosines.get(cosines.len() / 2).copied())
}

/// The nearest of each row, the nearest first.
struct Best {
    count: usize,
    rows: Vec<Vec<(f32, u32)>>,
}

impl Best {
    fn new(rows: usize, count: usize) -> Self {
        Self {
            count,
            rows: vec![Vec::with_capacity(count); rows],
        }
    }

    fn add(&mut self, row: usize, cosine: f32, other: usize) {
        let best = &mut self.rows[row];
        let is_full = best.len() == self.count;
        if is_full && best.last().is_none_or(|(least, _)| *least >= cosine) {
            return;
        }
        let place = best.partition_point(|(known, _)| *known >= cosine);
        if is_full {
            best.pop();
        }
        best.insert(place, (cosine, other as u32));
    }

    fn finish(self, vectors: &CaptionVectors) -> Vec<NearestCaptions> {
        let place = |row: usize| vectors.of[row].caption;
        let of_row = |(row, best): (usize, Vec<(f32, u32)>)| NearestCaptions {
            caption: place(row),
            neighbors: (best.into_iter())
                .map(|(cosine, other)| Neighbor {
                    caption: place(other as usize),
                    cosine,
                })
                .collect(),
        };
        self.rows.into_iter().enumerate().map(of_row).collect()
    }
}

/// Near-duplicates, of which the most remarkable are kept.
struct Pairs<'a> {
    captions: &'a Captions,
    places: Vec<usize>,
    most: usize,
    /// The least remarkable on top.
    kept: BinaryHeap<std::cmp::Reverse<NearPair>>,
    count: u64,
    with_other_pictures: u64,
}

impl Pairs<'_> {
    fn add(&mut self, cosine: f32, first: usize, second: usize) {
        let mut captions = [self.places[first], self.places[second]];
        captions.sort_unstable();
        let [a, b] = captions.map(|place| self.captions.digests(&self.captions.all[place]));
        let other_pictures = !a.is_empty() && !b.is_empty() && a.is_disjoint(&b);
        self.count += 1;
        self.with_other_pictures += u64::from(other_pictures);
        self.kept.push(std::cmp::Reverse(NearPair {
            other_pictures,
            cosine,
            captions,
        }));
        if self.kept.len() > self.most {
            self.kept.pop();
        }
    }

    fn finish(self) -> Vec<NearPair> {
        // Ascending in what is reversed: the most remarkable first.
        let sorted = self.kept.into_sorted_vec().into_iter();
        sorted.map(|std::cmp::Reverse(pair)| pair).collect()
    }
}

#[cfg(test)]
mod tests;

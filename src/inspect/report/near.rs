//! Captions that lie close to each other, and those that lie far from all.
//!
//! Nearness is the cosine of two vectors from which the mean of all was taken away: what all captions have in common says nothing of
//! how alike two of them are (and makes every cosine of a text encoder nearly 1).

use rayon::prelude::{IntoParallelIterator as _, ParallelIterator as _};

/// Captions from which on it is told which lie far: of fewer, quartiles say little.
const LEAST: usize = 12;
/// Pairs that are listed.
const PAIRS: usize = 20;
/// Far captions that are listed.
const FAR: usize = 12;

/// Two captions, by their places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pair {
    pub(super) places: [usize; 2],
    pub(super) cosine: f64,
}

/// What is near and what is far.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Nearness {
    /// The nearest pairs, the nearest first.
    pub(super) pairs: Vec<Pair>,
    /// Captions whose nearest neighbour is unusually far, with the cosine to it, the farthest first.
    pub(super) far: Vec<Pair>,
}

/// Of rows of a table, [rows, width].
pub(super) fn nearness(rows: &[f32], width: usize) -> Nearness {
    let directions = directions(rows, width);
    let cosine =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum() };
    // Of each the nearest of all, and those behind it for the list of pairs.
    let found: Vec<(Option<Pair>, Vec<Pair>)> = (0..directions.len())
        .into_par_iter()
        .map(|i| {
            let mut nearest: Option<Pair> = None;
            let mut pairs = Vec::new();
            for (j, other) in directions.iter().enumerate().filter(|(j, _)| *j != i) {
                let (places, cosine) = ([i, j], cosine(&directions[i], other));
                let pair = Pair { places, cosine };
                if nearest.is_none_or(|nearest| cosine > nearest.cosine) {
                    nearest = Some(pair);
                }
                if j > i {
                    pairs.push(pair);
                }
            }
            nearest_first(&mut pairs);
            (nearest, pairs)
        })
        .collect();
    let (nearest, pairs): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let mut pairs: Vec<Pair> = pairs.into_iter().flatten().collect();
    nearest_first(&mut pairs);
    Nearness {
        pairs,
        far: far(nearest.into_iter().flatten().collect()),
    }
}

fn nearest_first(pairs: &mut Vec<Pair>) {
    // By place where cosines are equal, so that every run lists the same.
    pairs.sort_by(|a, b| b.cosine.total_cmp(&a.cosine).then(a.places.cmp(&b.places)));
    pairs.truncate(PAIRS);
}

/// Those beyond Tukey's outer fence: farther from the nearest other than the upper quartile by three times the distance between
/// the quartiles.
fn far(mut nearest: Vec<Pair>) -> Vec<Pair> {
    if nearest.len() < LEAST {
        return Vec::new();
    }
    nearest.sort_by(|a, b| a.cosine.total_cmp(&b.cosine).then(a.places.cmp(&b.places)));
    // By distance, so the upper quartile is the lower one of cosines.
    let at = |part: usize| nearest[nearest.len() * part / 4].cosine;
    let fence = at(1) - 3.0 * (at(3) - at(1));
    let far = nearest.iter().take_while(|pair| pair.cosine < fence);
    far.take(FAR).copied().collect()
}

/// Unit vectors from the mean of all; zeros for one that lies there.
fn directions(rows: &[f32], width: usize) -> Vec<Vec<f32>> {
    let rows: Vec<&[f32]> = rows.chunks_exact(width.max(1)).collect();
    let mut mean = vec![0f64; width];
    for row in &rows {
        for (sum, value) in mean.iter_mut().zip(*row) {
            *sum += f64::from(*value) / rows.len() as f64;
        }
    }
    let direction = |row: &&[f32]| {
        let centred = row.iter().zip(&mean).map(|(v, m)| f64::from(*v) - m);
        let centred: Vec<f64> = centred.collect();
        let norm = centred.iter().map(|v| v * v).sum::<f64>().sqrt();
        let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
        centred.into_iter().map(|v| (v * scale) as f32).collect()
    };
    rows.iter().map(direction).collect()
}

#[cfg(test)]
mod tests {
    use super::nearness;

    #[test]
    fn near_pairs_come_first_and_a_lonely_row_is_far() {
        // Pairs that lie close together around a circle, and one row in a direction of its own.
        let mut rows = Vec::new();
        for n in 0..10 {
            let angle = f32::from(n as u8) * 0.6;
            for step in [0.0, 0.01 * (1.0 + f32::from(n as u8))] {
                rows.extend([(angle + step).cos(), (angle + step).sin(), 0.0]);
            }
        }
        rows.extend([0.0, 0.0, 9.0]);
        let found = nearness(&rows, 3);
        assert_eq!(found.pairs[0].places, [0, 1]);
        assert!(found.pairs[0].cosine > 0.9999);
        assert_eq!(
            found.far.iter().map(|p| p.places[0]).collect::<Vec<_>>(),
            [20]
        );
        assert_eq!(nearness(&rows[..9], 3).far, []);
        assert_eq!(nearness(&[], 0).pairs, []);
        assert_eq!(nearness(&[1.0, 2.0], 2).pairs, []);
    }
}

//! Which token of one caption is which of another.

use std::ops::Range;

/// Two rows that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Their places on both sides, from 0.
    pub rows: [usize; 2],
    /// Whether both are of the same token; `None` where that is not known.
    pub same_token: Option<bool>,
}

/// Which rows belong together. Places rise on both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alignment {
    /// Rows that belong together.
    pub pairs: Vec<Pair>,
    /// Rows of the first side alone.
    pub only_first: Vec<usize>,
    /// Rows of the second side alone.
    pub only_second: Vec<usize>,
}

impl Alignment {
    /// Rows of the same place together.
    pub fn by_place(first: Range<usize>, second: Range<usize>) -> Self {
        let both = first.start.max(second.start)..first.end.min(second.end);
        let pair = |row| Pair {
            rows: [row, row],
            same_token: None,
        };
        let is_alone = |row: &usize| !both.contains(row);
        Self {
            only_first: first.filter(is_alone).collect(),
            only_second: second.filter(is_alone).collect(),
            pairs: both.map(pair).collect(),
        }
    }

    /// Pairs the rows of a stretch between two tokens that both sides share, in order: a word in place of another.
    fn replaced(&mut self, first: Range<usize>, second: Range<usize>) {
        let both = first.len().min(second.len());
        self.pairs
            .extend(first.clone().zip(second.clone()).map(|(a, b)| Pair {
                rows: [a, b],
                same_token: Some(false),
            }));
        self.only_first.extend(first.skip(both));
        self.only_second.extend(second.skip(both));
    }
}

/// Cells of the table that the longest common subsequence takes; more tokens are aligned by place.
const MOST_CELLS: usize = 4 << 20;

/// Aligns two sequences of token ids by their longest common subsequence. Between two tokens that both share, tokens are
/// paired in order; what is left of the longer stretch is of one side alone.
pub fn align(first: &[u32], second: &[u32]) -> Alignment {
    let mut alignment = Alignment::default();
    let (mut a, mut b) = (0, 0);
    for (at, other) in common(first, second)
        .into_iter()
        .chain([(first.len(), second.len())])
    {
        alignment.replaced(a..at, b..other);
        if at < first.len() {
            alignment.pairs.push(Pair {
                rows: [at, other],
                same_token: Some(true),
            });
        }
        (a, b) = (at + 1, other + 1);
    }
    alignment
}

/// The places of a longest common subsequence.
fn common(first: &[u32], second: &[u32]) -> Vec<(usize, usize)> {
    let begin = first.iter().zip(second).take_while(|(a, b)| a == b).count();
    let (a, b) = (&first[begin..], &second[begin..]);
    let same = a.iter().rev().zip(b.iter().rev());
    let end = same.take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[..a.len() - end], &b[..b.len() - end]);
    let mut found: Vec<(usize, usize)> = (0..begin).map(|at| (at, at)).collect();
    found.extend(
        middle(a, b)
            .into_iter()
            .map(|(i, j)| (begin + i, begin + j)),
    );
    let (tail, other) = (first.len() - end, second.len() - end);
    found.extend((0..end).map(|at| (tail + at, other + at)));
    found
}

/// The same by the table of lengths, without what both begin and end with.
fn middle(a: &[u32], b: &[u32]) -> Vec<(usize, usize)> {
    let width = b.len() + 1;
    if (a.len() + 1).saturating_mul(width) > MOST_CELLS {
        let pairs = a.iter().zip(b).enumerate();
        return pairs
            .filter(|(_, (a, b))| a == b)
            .map(|(at, _)| (at, at))
            .collect();
    }
    // lengths[i * width + j]: of what is common behind a[i] and b[j].
    let mut lengths = vec![0u16; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            lengths[i * width + j] = match a[i] == b[j] {
                true => lengths[(i + 1) * width + j + 1] + 1,
                false => lengths[(i + 1) * width + j].max(lengths[i * width + j + 1]),
            };
        }
    }
    let (mut i, mut j, mut found) = (0, 0, Vec::new());
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
            found.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if lengths[(i + 1) * width + j] >= lengths[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    found
}

//! One flipped bit, found by trying every bit until the file has its digest again. What is found so is certain.
//!
//! BLAKE3 is a tree over pieces of 1 KiB: another bit changes one piece and the nodes above it, so that a try costs
//! microseconds however long the file is.

use std::ops::Range;

use blake3::CHUNK_LEN;
use blake3::hazmat::{
    ChainingValue, HasherExt as _, Mode, left_subtree_len, merge_subtrees_non_root,
    merge_subtrees_root,
};
use rayon::prelude::{IntoParallelRefIterator as _, ParallelIterator as _};

use crate::digest::Digest;

/// A node's other half, on the way from the root to a piece.
#[derive(Clone, Copy)]
enum Sibling {
    Left(ChainingValue),
    Right(ChainingValue),
}

/// A piece of the file, and its siblings from the root down.
struct Leaf {
    piece: Range<usize>,
    siblings: Vec<Sibling>,
}

/// Flips the one bit in `range` that gives `bytes` the digest `wanted`; says whether there is one.
pub(super) fn unflip(bytes: &mut [u8], range: Range<usize>, wanted: &Digest) -> bool {
    let range = range.start..range.end.min(bytes.len());
    let mut leaves = Vec::new();
    collect(bytes, 0..bytes.len(), &range, &mut Vec::new(), &mut leaves);
    let found = leaves
        .par_iter()
        .find_map_any(|leaf| search(bytes, leaf, &range, wanted));
    if let Some((at, bit)) = found {
        bytes[at] ^= bit;
    }
    found.is_some()
}

/// The pieces of `node`, a part of `bytes`, that reach into `range`.
fn collect(
    bytes: &[u8],
    node: Range<usize>,
    range: &Range<usize>,
    path: &mut Vec<Sibling>,
    leaves: &mut Vec<Leaf>,
) {
    if node.start >= range.end || node.end <= range.start {
        return;
    }
    if node.len() <= CHUNK_LEN {
        leaves.push(Leaf {
            piece: node,
            siblings: path.clone(),
        });
        return;
    }
    let middle = node.start + left_subtree_len(node.len() as u64) as usize;
    let (left, right) = (node.start..middle, middle..node.end);
    if left.end > range.start {
        path.push(Sibling::Right(value(bytes, &right)));
        collect(bytes, left.clone(), range, path, leaves);
        path.pop();
    }
    if right.start < range.end {
        path.push(Sibling::Left(value(bytes, &left)));
        collect(bytes, right, range, path, leaves);
        path.pop();
    }
}

/// The bit of a piece that does it, and where.
fn search(bytes: &[u8], leaf: &Leaf, range: &Range<usize>, wanted: &Digest) -> Option<(usize, u8)> {
    let start = leaf.piece.start;
    let mut piece = bytes[leaf.piece.clone()].to_vec();
    for at in start.max(range.start)..leaf.piece.end.min(range.end) {
        for bit in (0..8).map(|n| 1 << n) {
            piece[at - start] ^= bit;
            if root(&piece, leaf) == *wanted {
                return Some((at, bit));
            }
            piece[at - start] ^= bit;
        }
    }
    None
}

/// The digest of the file with `piece` in the place of a leaf.
fn root(piece: &[u8], leaf: &Leaf) -> Digest {
    let Some((top, below)) = leaf.siblings.split_first() else {
        return Digest::of(piece);
    };
    let mut node = value_at(piece, leaf.piece.start);
    for sibling in below.iter().rev() {
        let (left, right) = sibling.beside(&node);
        node = merge_subtrees_non_root(&left, &right, Mode::Hash);
    }
    let (left, right) = top.beside(&node);
    Digest::from(merge_subtrees_root(&left, &right, Mode::Hash))
}

impl Sibling {
    fn beside(&self, node: &ChainingValue) -> (ChainingValue, ChainingValue) {
        match self {
            Self::Left(left) => (*left, *node),
            Self::Right(right) => (*node, *right),
        }
    }
}

fn value(bytes: &[u8], node: &Range<usize>) -> ChainingValue {
    value_at(&bytes[node.clone()], node.start)
}

fn value_at(bytes: &[u8], offset: usize) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset as u64).update(bytes);
    hasher.finalize_non_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_found_in_files_of_any_length() {
        for length in [1, 64, 1000, 1024, 1025, 2048, 3000, 5000, 10_000] {
            let sound: Vec<u8> = (0..length).map(|i| (i * i % 251) as u8).collect();
            let wanted = Digest::of(&sound);
            for at in (0..length).step_by(311).chain([length - 1]) {
                let mut bytes = sound.clone();
                bytes[at] ^= 1 << (at % 8);
                assert!(unflip(&mut bytes, 0..length, &wanted), "{length}, {at}");
                assert_eq!(bytes, sound);
            }
        }
    }

    #[test]
    fn two_flipped_bits_and_those_elsewhere_are_not() {
        let sound = vec![7; 3000];
        let wanted = Digest::of(&sound);
        let mut bytes = sound.clone();
        bytes[2000] ^= 4;
        assert!(!unflip(&mut bytes, 0..2000, &wanted) && !unflip(&mut bytes, 2001..9000, &wanted));
        bytes[1] ^= 4;
        let before = bytes.clone();
        assert!(!unflip(&mut bytes, 0..3000, &wanted));
        assert_eq!(bytes, before);
    }
}

//! Ranges of a file compared with the digest of the whole of it, by what is known of its pieces.
//!
//! BLAKE3 is a tree: the digest of a file is made of the values of its pieces alone. So a list of these proves itself against the
//! digest, and each piece that is read proves itself against the list. See section 2.1 of the paper on BLAKE3.

use blake3::hazmat::{
    ChainingValue, HasherExt as _, Mode, left_subtree_len, merge_subtrees_non_root,
    merge_subtrees_root,
};

use crate::digest::Digest;

/// The bytes of a piece: the least that is read. A power of two, as the tree asks.
pub(super) const PIECE_BYTES: u64 = 64 << 10;
const VALUE_DIGITS: usize = 64;

/// The values of a file's pieces.
pub(super) struct Tree {
    values: Vec<ChainingValue>,
    bytes: u64,
}

impl Tree {
    /// Of a file of more than one piece; None of a shorter one.
    pub(super) fn of(file: &[u8]) -> Option<Self> {
        let bytes = file.len() as u64;
        let pieces = file.chunks(PIECE_BYTES as usize).enumerate();
        let values = pieces.map(|(i, piece)| value(i as u64 * PIECE_BYTES, piece));
        (bytes > PIECE_BYTES).then(|| Self {
            values: values.collect(),
            bytes,
        })
    }

    /// What [`Self::to_text`] gave, if it is that of the file with this digest. Where `bytes` is not quite its length, the last piece
    /// will not fit.
    pub(super) fn parse(text: &str, bytes: u64, file: &Digest) -> Option<Self> {
        let count = usize::try_from(bytes.div_ceil(PIECE_BYTES)).ok()?;
        // Compared before anything is allocated for it.
        if bytes <= PIECE_BYTES || count.checked_mul(VALUE_DIGITS) != Some(text.len()) {
            return None;
        }
        let values = text.as_bytes().chunks(VALUE_DIGITS);
        let values = values.map(|digits| std::str::from_utf8(digits).ok()?.parse::<Digest>().ok());
        let values: Option<Vec<ChainingValue>> = values.map(|v| Some(*v?.as_bytes())).collect();
        let tree = Self {
            values: values?,
            bytes,
        };
        (tree.root() == *file).then_some(tree)
    }

    /// 64 hexadecimal digits a piece.
    pub(super) fn to_text(&self) -> String {
        let values = self.values.iter();
        values.map(|v| Digest::from_bytes(*v).to_string()).collect()
    }

    /// The bytes of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether `bytes`, which begin with a piece and end with one, are those of the file from `start` on.
    pub(super) fn holds(&self, start: u64, bytes: &[u8]) -> bool {
        let first = (start / PIECE_BYTES) as usize;
        let pieces = bytes.chunks(PIECE_BYTES as usize).enumerate();
        let mut pieces = pieces.map(|(i, piece)| {
            let begin = (first + i) as u64 * PIECE_BYTES;
            self.values.get(first + i) == Some(&value(begin, piece))
        });
        start.is_multiple_of(PIECE_BYTES) && pieces.all(|holds| holds)
    }

    /// The digest of the file.
    pub(super) fn root(&self) -> Digest {
        let (left, right) = self.halves(0, self.bytes);
        let root = merge_subtrees_root(&self.node(left), &self.node(right), Mode::Hash);
        Digest::from(root)
    }

    fn halves(&self, start: u64, end: u64) -> ((u64, u64), (u64, u64)) {
        let middle = start + left_subtree_len(end - start);
        ((start, middle), (middle, end))
    }

    fn node(&self, (start, end): (u64, u64)) -> ChainingValue {
        if end - start <= PIECE_BYTES {
            return self.values[(start / PIECE_BYTES) as usize];
        }
        let (left, right) = self.halves(start, end);
        merge_subtrees_non_root(&self.node(left), &self.node(right), Mode::Hash)
    }
}

fn value(start: u64, piece: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(start).update(piece);
    hasher.finalize_non_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_prove_themselves_against_the_digest_of_the_whole() {
        let piece = PIECE_BYTES as usize;
        for length in [
            piece + 1,
            2 * piece,
            2 * piece + 7,
            5 * piece,
            9 * piece - 1,
        ] {
            let file: Vec<u8> = (0..length).map(|i| (i * i % 251) as u8).collect();
            let digest = Digest::of(&file);
            let tree = Tree::of(&file).expect("a tree");
            assert_eq!(tree.root(), digest, "{length}");
            let text = tree.to_text();
            let tree = Tree::parse(&text, length as u64, &digest).expect("its own");
            assert!(tree.holds(0, &file) && tree.holds(PIECE_BYTES, &file[piece..]));
            assert!(tree.holds(PIECE_BYTES, &file[piece..length.min(2 * piece)]));
            let mut wrong = file.clone();
            wrong[length - 1] ^= 1;
            assert!(tree.holds(0, &wrong[..piece]) && !tree.holds(0, &wrong));
            assert!(!tree.holds(0, &file[1..]) && !tree.holds(1, &file));
            // Nor is a list of pieces taken that is of another file, of another length, or no list.
            assert!(Tree::parse(&text, length as u64, &Digest::of(b"x")).is_none());
            for bytes in [0, 1, length as u64 + PIECE_BYTES, u64::MAX] {
                assert!(Tree::parse(&text, bytes, &digest).is_none(), "{bytes}");
            }
            let other = text.replace('0', "\u{e9}");
            assert!(Tree::parse(&other, length as u64, &digest).is_none());
        }
        assert!(Tree::of(&vec![1; piece]).is_none());
    }
}

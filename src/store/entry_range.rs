//! Fingerprints from one to another: what of an index is read at once where not all of it need be in memory.

use super::sweep::SpecParts;
use super::{Error, Store};
use crate::digest::Fingerprint;

/// Hexadecimal digits of a fingerprint.
const DIGITS: usize = 64;
/// So many parts of a spec's entries, of which the first tells of most specs that they have some.
const FEW: u64 = 1 << 16;

/// Fingerprints from one to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRange {
    pub(super) first: Fingerprint,
    pub(super) last: Fingerprint,
}

impl EntryRange {
    /// Those that begin with some lower-case hexadecimal digits; `None` where they are none, or more than there are.
    pub fn beginning(digits: &str) -> Option<Self> {
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if digits.len() > DIGITS || !digits.bytes().all(is_digit) {
            return None;
        }
        Some(Self {
            first: format!("{digits:0<DIGITS$}").parse().ok()?,
            last: format!("{digits:f<DIGITS$}").parse().ok()?,
        })
    }

    /// Everything.
    pub(super) fn all() -> Self {
        Self {
            first: Fingerprint::from_bytes([0; 32]),
            last: Fingerprint::from_bytes([u8::MAX; 32]),
        }
    }

    /// As many as it takes for so many rows at so many a time, which together have all.
    pub(super) fn for_rows(rows: u64, at_once: usize) -> impl Iterator<Item = Self> {
        Self::each(rows.div_ceil(at_once.max(1) as u64))
    }

    /// As many as `count`, one after the other and about equally large, which together have all.
    fn each(count: u64) -> impl Iterator<Item = Self> {
        let count = count.max(1);
        // The first 64 bits of the `n`-th.
        let begin = move |n: u64| (u128::from(n) << 64) / u128::from(count);
        (0..count).map(move |n| {
            let (mut first, mut last) = ([0; 32], [u8::MAX; 32]);
            first[..8].copy_from_slice(&(begin(n) as u64).to_be_bytes());
            last[..8].copy_from_slice(&((begin(n + 1) - 1) as u64).to_be_bytes());
            Self {
                first: Fingerprint::from_bytes(first),
                last: Fingerprint::from_bytes(last),
            }
        })
    }

    /// Whether an entry is in it.
    pub fn has(&self, entry: &Fingerprint) -> bool {
        (self.first..=self.last).contains(entry)
    }

    /// Those of sorted fingerprints that are in it.
    pub(super) fn within<'a>(&self, sorted: &'a [Fingerprint]) -> &'a [Fingerprint] {
        let start = sorted.partition_point(|entry| *entry < self.first);
        let end = sorted.partition_point(|entry| *entry <= self.last);
        // None where what they are said to be is nonsense.
        sorted.get(start..end).unwrap_or_default()
    }

    /// Whether anything from `first` to `last` may be in it.
    pub(super) fn touches(&self, (first, last): (Fingerprint, Fingerprint)) -> bool {
        // One that says nonsense is looked at in each.
        first > last || self.first <= last && first <= self.last
    }
}

impl Store {
    /// Ranges of fingerprints, one after the other, which together have all: of each of them there is room in memory for what the index has,
    /// and for what the runs in the folder list.
    ///
    /// # Errors
    /// If the folders cannot be read.
    pub fn ranges(&self) -> Result<impl Iterator<Item = EntryRange> + use<>, Error> {
        let behind = self.layout.mirror.as_ref();
        let mut rows = behind.map_or(0, |mirror| mirror.most_rows());
        for spec in self.layout.indexed_specs()? {
            let here = SpecParts::list(&self.layout, spec)?.most_rows();
            rows = rows.saturating_add(here);
        }
        // A reader's rows take more room while they are read than those that maintenance holds.
        let room = self.disk().rows_in_memory() / 2;
        Ok(EntryRange::for_rows(rows.max(self.most_listed()?), room))
    }

    /// How many entries of a spec can be used, each once.
    ///
    /// # Errors
    /// As [`Self::reader`].
    pub fn num_entries(&self, spec: &Fingerprint) -> Result<u64, Error> {
        let mut entries = 0;
        for range in self.ranges()? {
            let reader = self.reader_of_range(&[*spec], range)?;
            entries += reader.entries(spec).len() as u64;
        }
        Ok(entries)
    }

    /// Whether a spec has an entry that can be used. Little is read where there are many.
    ///
    /// # Errors
    /// As [`Self::reader`].
    pub fn has_entries(&self, spec: &Fingerprint) -> Result<bool, Error> {
        let some = EntryRange::each(FEW).take(1);
        for range in some.chain(self.ranges()?) {
            let reader = self.reader_of_range(&[*spec], range)?;
            if reader.has_entries(spec) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_apart_in_order_and_have_everything() {
        let mut all: Vec<Fingerprint> = (0..1000u32)
            .map(|i| Fingerprint::from_bytes(*blake3::hash(&i.to_le_bytes()).as_bytes()))
            .collect();
        all.extend([[0; 32], [255; 32]].map(Fingerprint::from_bytes));
        all.sort_unstable();
        for count in [0, 1, 2, 7, 1000, 1 << 40] {
            let ranges: Vec<EntryRange> = EntryRange::each(count).take(2000).collect();
            let end = ranges.last().expect("one");
            for entry in all.iter().filter(|entry| **entry <= end.last) {
                let in_them = ranges.iter().filter(|range| range.has(entry));
                assert_eq!(in_them.count(), 1, "{count}");
                let touched = ranges.iter().filter(|r| r.touches((*entry, *entry)));
                assert_eq!(touched.count(), 1, "{count}");
            }
            assert!(ranges.iter().all(|r| r.touches((all[10], all[0]))));
            let low = (all[0], all[10]);
            let is_missed = |r: &EntryRange| !r.touches(low) && !r.within(&all[..11]).is_empty();
            assert!(!ranges.iter().any(is_missed));
            assert!(ranges.iter().all(|r| r.touches((all[0], all[1001]))));
            assert!(ranges.windows(2).all(|two| two[0].last < two[1].first));
            if count < 2000 {
                let each = ranges.iter().flat_map(|range| range.within(&all));
                assert_eq!(each.copied().collect::<Vec<_>>(), all);
                assert_eq!((ranges.len(), end.last), (count.max(1) as usize, all[1001]));
            }
        }
    }

    #[test]
    fn there_are_as_many_as_rows_need() {
        for at_once in [0, 1, 7, 500, 1002, 5000] {
            let expected = 1002usize.div_ceil(at_once.max(1));
            assert_eq!(EntryRange::for_rows(1002, at_once).count(), expected);
        }
        let only: Vec<EntryRange> = EntryRange::for_rows(0, 5).collect();
        assert_eq!(only, [EntryRange::all()]);
    }

    #[test]
    fn what_begins_with_digits_is_a_range() {
        let entry = Fingerprint::from_bytes(*blake3::hash(b"one").as_bytes());
        let digits = entry.to_string();
        for length in 0..=64 {
            let range = EntryRange::beginning(&digits[..length]).expect("a range");
            assert!(range.has(&entry) && range.touches((entry, entry)));
            let other = Fingerprint::from_bytes(*blake3::hash(b"two").as_bytes());
            let alike = other.to_string().starts_with(&digits[..length]);
            assert_eq!(range.has(&other), alike);
        }
        for wrong in ["A", "g", "0 ", &digits.repeat(2), "\u{e9}"] {
            assert_eq!(EntryRange::beginning(wrong), None);
        }
    }
}

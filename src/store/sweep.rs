//! The index, a range of fingerprints at a time: however many rows there are, those of one range are in memory.
//!
//! Nothing is left out by what `parts.json` says. Of a part that it tells of, the row groups that may have some of the range are read, by what the
//! part's own footer says, which was compared with its digest; all of them are read in one range or another, and one that has an entry outside of
//! what it says is an error.

use std::collections::HashMap;

use rayon::prelude::{IntoParallelIterator as _, ParallelIterator as _};

use super::disk::ListedFile;
use super::entry_range::EntryRange;
use super::layout::Layout;
use super::parts::{self, Listed};
use super::presence::EntryRows;
use super::snapshot::decode_part;
use super::{Error, index};
use crate::digest::{Digest, Fingerprint};

/// Parts that are decoded at once.
const PARTS_AT_ONCE: usize = 16;
/// The bytes of an index part that has a row, at the least: half of them are digests, which nothing makes smaller.
const ROW_BYTES: u64 = 64;

/// How many rows an index part of so many bytes has, or fewer.
pub(super) fn most_rows(bytes: u64, known: Option<&Listed>) -> u64 {
    let most = bytes / ROW_BYTES;
    known.map_or(most, |known| known.rows.min(most))
}

/// The index parts of a spec.
pub(super) struct SpecParts {
    pub(super) spec: Fingerprint,
    pub(super) parts: Vec<(Digest, ListedFile, Option<Listed>)>,
}

impl SpecParts {
    pub(super) fn list(layout: &Layout, spec: Fingerprint) -> Result<Self, Error> {
        let mut known = parts::read(layout, &spec);
        let parts = layout.index_parts(&spec)?.into_iter();
        let parts = parts.map(|(part, file)| {
            let known = known.remove(&part).filter(|known| known.is_of(&part));
            (part, file, known)
        });
        Ok(Self {
            spec,
            parts: parts.collect(),
        })
    }

    /// How many rows they have, or fewer.
    pub(super) fn most_rows(&self) -> u64 {
        let parts = self.parts.iter();
        let rows = parts.map(|(_, file, known)| most_rows(file.bytes, known.as_ref()));
        rows.fold(0, u64::saturating_add)
    }

    /// Gives `take`, by the number of its part, what there is in a range, part by part in order, or why it cannot be told.
    pub(super) fn read(
        &self,
        layout: &Layout,
        range: EntryRange,
        mut take: impl FnMut(usize, Result<Vec<EntryRows>, Error>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let all = 0..self.parts.len();
        for start in all.clone().step_by(PARTS_AT_ONCE) {
            let some = start..(start + PARTS_AT_ONCE).min(all.end);
            let read: Vec<_> = some
                .clone()
                .into_par_iter()
                .map(|number| self.read_part(layout, number, range))
                .collect();
            for (number, read) in some.zip(read) {
                take(number, read)?;
            }
        }
        Ok(())
    }

    fn read_part(
        &self,
        layout: &Layout,
        number: usize,
        range: EntryRange,
    ) -> Result<Vec<EntryRows>, Error> {
        let (part, _, known) = &self.parts[number];
        if let Some(known) = known.as_ref().filter(|_| range != EntryRange::all())
            && let Some(found) = self.read_groups(layout, part, known, range)?
        {
            return Ok(found);
        }
        let mut found = decode_part(layout, &self.spec, part, index::presence)?;
        found.retain(|rows| range.has(&rows.entry));
        found.shrink_to_fit();
        Ok(found)
    }

    /// None where it has to be read whole, to tell what is wrong with it.
    fn read_groups(
        &self,
        layout: &Layout,
        part: &Digest,
        known: &Listed,
        range: EntryRange,
    ) -> Result<Option<Vec<EntryRows>>, Error> {
        let opened = match known.open(layout, &self.spec, part) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Ok(None),
            Err(e) if e.is_content() => return Ok(None),
            Err(e) => return Err(e),
        };
        let (mut found, mut row) = (Vec::new(), 0u32);
        for group in 0..opened.num_groups() {
            let first_row = row;
            row = row.saturating_add(u32::try_from(opened.num_rows(group)).unwrap_or(u32::MAX));
            let said = opened.range(group);
            if said.is_some_and(|said| !range.touches(said)) {
                continue;
            }
            let rows = match opened.decode(group, None, index::presence) {
                Ok(rows) => rows,
                Err(e) if e.is_content() => return Ok(None),
                Err(e) => return Err(e),
            };
            for mut rows in rows {
                if said.is_some_and(|(first, last)| !(first..=last).contains(&rows.entry)) {
                    let why = format!("row group {group} says that it has no entry {}", rows.entry);
                    return Err(Error::malformed(opened.path(), why));
                }
                if range.has(&rows.entry) {
                    rows.row += first_row;
                    found.push(rows);
                }
            }
        }
        found.shrink_to_fit();
        Ok(Some(found))
    }
}

/// Digests of packs by number: there are many rows of each.
#[derive(Default)]
pub(super) struct PackNumbers {
    digests: Vec<Digest>,
    numbers: HashMap<Digest, u32>,
}

impl PackNumbers {
    /// The number of a pack, which gets one where it has none.
    pub(super) fn of(&mut self, pack: Digest) -> u32 {
        let next = self.digests.len() as u32;
        let number = *self.numbers.entry(pack).or_insert(next);
        if number == next {
            self.digests.push(pack);
        }
        number
    }

    pub(super) fn get(&self, pack: &Digest) -> Option<u32> {
        self.numbers.get(pack).copied()
    }

    pub(super) fn digest(&self, number: u32) -> Digest {
        self.digests[number as usize]
    }

    /// All, in the order of their numbers.
    pub(super) fn digests(&self) -> &[Digest] {
        &self.digests
    }
}

/// A set of rows, or of packs, by number.
#[derive(Default)]
pub(super) struct RowSet {
    words: Vec<u64>,
}

impl RowSet {
    pub(super) fn insert(&mut self, row: u32) {
        let word = row as usize / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (row % 64);
    }

    pub(super) fn contains(&self, row: u32) -> bool {
        let word = self.words.get(row as usize / 64);
        word.is_some_and(|word| word >> (row % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_rows_has_what_was_put() {
        let mut set = RowSet::default();
        for row in [0, 63, 64, 1000] {
            assert!(!set.contains(row));
            set.insert(row);
        }
        let has: Vec<u32> = (0..2000).filter(|row| set.contains(*row)).collect();
        assert_eq!(has, [0, 63, 64, 1000]);
    }
}

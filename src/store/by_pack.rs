//! What the index says of the entries of packs, in the order of packs. Where there are more rows than there is room for, a sum tells of each pack whether
//! it says the same, and the index is read again for some packs at a time.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::Error;
use super::check_pack::record_digest;
use super::layout::Layout;
use super::record::Record;
use super::snapshot::each_record;
use super::sweep::PackNumbers;
use crate::digest::{Digest, Fingerprint};

/// What the index says of an entry, with the numbers of its pack and of its index part.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) pack: u32,
    pub(super) part: u32,
    pub(super) entry: Fingerprint,
    pub(super) record: Digest,
}

/// Whether a row counts.
pub(super) type Counts<'a> = &'a (dyn Fn(&Record) -> bool + Sync);

/// Those rows of an index that count.
pub(super) struct ByPack<'a> {
    layout: &'a Layout,
    counts: Counts<'a>,
    /// The index parts that could be read.
    pub(super) parts: Vec<(Fingerprint, Digest)>,
    /// All rows by pack, where they are few; else none.
    rows: Vec<Row>,
    holds_rows: bool,
    pub(super) num_rows: u64,
    /// The packs that the index names, and what the rows of each come to.
    packs: PackNumbers,
    of_packs: Vec<Sum>,
}

/// How many rows there are, and what they come to in whatever order: the sums of their digests' four words. Two lots of rows that differ come
/// to the same about as likely as two digests do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    rows: u64,
    words: [u64; 4],
}

impl Sum {
    fn add(&mut self, record: &Digest) {
        self.rows += 1;
        let (words, _) = record.as_bytes().as_chunks();
        for (sum, word) in self.words.iter_mut().zip(words) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
}

impl<'a> ByPack<'a> {
    pub(super) fn new(layout: &'a Layout, counts: Counts<'a>) -> Self {
        Self {
            layout,
            counts,
            parts: Vec::new(),
            rows: Vec::new(),
            holds_rows: true,
            num_rows: 0,
            packs: PackNumbers::default(),
            of_packs: Vec::new(),
        }
    }

    /// Reads a part of the index. Of one that cannot be read nothing is taken.
    pub(super) fn read(&mut self, spec: &Fingerprint, part: &Digest) -> Result<(), Error> {
        let most = self.layout.disk.rows_in_memory();
        let (rows_before, before) = (self.rows.len(), self.num_rows);
        let mut named: Vec<(u32, Digest)> = Vec::new();
        let number = self.parts.len() as u32;
        let read = each_record(self.layout, spec, part, |_, record| {
            if !(self.counts)(&record) {
                return Ok(());
            }
            let pack = self.packs.of(record.pack);
            let row = row(pack, number, &record);
            named.push((pack, row.record));
            self.num_rows += 1;
            // More than there is room for: from now on they are counted.
            self.holds_rows &= self.rows.len() < most;
            match self.holds_rows {
                true => self.rows.push(row),
                false => self.rows = Vec::new(),
            }
            Ok(())
        });
        self.of_packs
            .resize(self.packs.digests().len(), Sum::default());
        match read {
            Ok(()) => {
                self.parts.push((*spec, *part));
                for (pack, record) in named {
                    self.of_packs[pack as usize].add(&record);
                }
            }
            Err(_) => {
                self.num_rows = before;
                self.rows.truncate(rows_before);
            }
        }
        read
    }

    /// After the last part.
    pub(super) fn seal(&mut self) {
        self.rows.sort_unstable_by_key(|row| (row.pack, row.part));
    }

    /// All rows by pack, where there is room for them.
    pub(super) fn held(&self) -> Option<&[Row]> {
        self.holds_rows.then_some(&self.rows)
    }

    /// The packs that rows name.
    pub(super) fn packs(&self) -> &[Digest] {
        self.packs.digests()
    }

    /// The rows of a pack if they are just these entries with the digests of their records, each once: without looking for them, so the index part is
    /// not said. For where rows are not held.
    pub(super) fn rows_if_just(
        &self,
        pack: &Digest,
        entries: &HashMap<Fingerprint, Digest>,
    ) -> Option<Vec<Row>> {
        let mut found = Sum::default();
        for record in entries.values() {
            found.add(record);
        }
        let Some(number) = self.packs.get(pack) else {
            return entries.is_empty().then(Vec::new);
        };
        (self.of_packs[number as usize] == found).then(|| {
            let row = |(entry, record): (&Fingerprint, &Digest)| Row {
                pack: number,
                part: 0,
                entry: *entry,
                record: *record,
            };
            entries.iter().map(row).collect()
        })
    }

    /// Packs in lots of which there is room for the rows; in one where all rows are held.
    pub(super) fn lots<T>(
        &self,
        packs: impl Iterator<Item = (Digest, T)>,
    ) -> Vec<Vec<(Digest, T)>> {
        let most = self.layout.disk.rows_in_memory() as u64;
        let (mut lots, mut lot, mut room) = (Vec::new(), Vec::new(), most);
        for (pack, of_pack) in packs {
            let number = self.packs.get(&pack);
            let rows = number.map_or(0, |number| self.of_packs[number as usize].rows);
            if rows > room && !self.holds_rows && !lot.is_empty() {
                lots.push(std::mem::take(&mut lot));
                room = most;
            }
            room = room.saturating_sub(rows);
            lot.push((pack, of_pack));
        }
        if !lot.is_empty() {
            lots.push(lot);
        }
        lots
    }

    /// The rows of the packs of a lot, by pack; `failed` is given the parts that cannot be read any more.
    pub(super) fn rows_of<T>(
        &self,
        lot: &[(Digest, T)],
        mut failed: impl FnMut(&(Fingerprint, Digest), Error),
    ) -> Cow<'_, [Row]> {
        if self.holds_rows {
            return Cow::Borrowed(&self.rows);
        }
        let wanted = lot.iter().filter_map(|(pack, _)| self.packs.get(pack));
        let wanted: HashSet<u32> = wanted.collect();
        let mut rows = Vec::new();
        for (number, named) in (0u32..).zip(&self.parts) {
            let read = each_record(self.layout, &named.0, &named.1, |_, record| {
                let pack = self.packs.get(&record.pack);
                let pack = pack.filter(|pack| wanted.contains(pack));
                if let Some(pack) = pack.filter(|_| (self.counts)(&record)) {
                    rows.push(row(pack, number, &record));
                }
                Ok(())
            });
            if let Err(e) = read {
                failed(named, e);
            }
        }
        rows.sort_unstable_by_key(|row| (row.pack, row.part));
        Cow::Owned(rows)
    }

    /// Of rows by pack, those of one.
    pub(super) fn of_pack<'r>(&self, rows: &'r [Row], pack: &Digest) -> &'r [Row] {
        let Some(number) = self.packs.get(pack) else {
            return &[];
        };
        let start = rows.partition_point(|row| row.pack < number);
        let end = rows.partition_point(|row| row.pack <= number);
        &rows[start..end]
    }
}

fn row(pack: u32, part: u32, record: &Record) -> Row {
    Row {
        pack,
        part,
        entry: record.entry,
        record: record_digest(record),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(records: impl IntoIterator<Item = u32>) -> Sum {
        let mut sum = Sum::default();
        for record in records {
            sum.add(&Digest::of(&record.to_le_bytes()));
        }
        sum
    }

    #[test]
    fn a_sum_tells_what_there_is_but_no_order() {
        let all = sum(0..100);
        assert_eq!(all, sum((0..100).rev()));
        for one in 0..100 {
            assert_ne!(all, sum((0..100).filter(|record| *record != one)));
            assert_ne!(all, sum((0..100).chain([one])));
            let other = |record| if record == one { 100 } else { record };
            assert_ne!(all, sum((0..100).map(other)));
            // One twice in the place of its neighbour.
            let twice = |record| {
                if record == one {
                    (one + 1) % 100
                } else {
                    record
                }
            };
            assert_ne!(all, sum((0..100).map(twice)));
        }
    }
}

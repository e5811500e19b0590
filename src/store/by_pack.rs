//! What the index says of the entries of packs, in the order of packs. Where there are more rows than there is room for, the index is read again for
//! some packs at a time.

use std::borrow::Cow;
use std::collections::HashSet;

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
    /// The packs that the index names, and how many rows of each.
    packs: PackNumbers,
    rows_of_pack: Vec<u64>,
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
            rows_of_pack: Vec::new(),
        }
    }

    /// Reads a part of the index. Of one that cannot be read nothing is taken.
    pub(super) fn read(&mut self, spec: &Fingerprint, part: &Digest) -> Result<(), Error> {
        let most = self.layout.disk.rows_in_memory();
        let (rows_before, before) = (self.rows.len(), self.num_rows);
        let mut named: Vec<u32> = Vec::new();
        let number = self.parts.len() as u32;
        let read = each_record(self.layout, spec, part, |_, record| {
            if !(self.counts)(&record) {
                return Ok(());
            }
            let pack = self.packs.of(record.pack);
            named.push(pack);
            self.num_rows += 1;
            // More than there is room for: from now on they are counted.
            self.holds_rows &= self.rows.len() < most;
            match self.holds_rows {
                true => self.rows.push(row(pack, number, &record)),
                false => self.rows = Vec::new(),
            }
            Ok(())
        });
        self.rows_of_pack.resize(self.packs.digests().len(), 0);
        match read {
            Ok(()) => {
                self.parts.push((*spec, *part));
                for pack in named {
                    self.rows_of_pack[pack as usize] += 1;
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

    /// Packs in lots of which there is room for the rows; in one where all rows are held.
    pub(super) fn lots<T>(
        &self,
        packs: impl Iterator<Item = (Digest, T)>,
    ) -> Vec<Vec<(Digest, T)>> {
        let most = self.layout.disk.rows_in_memory() as u64;
        let (mut lots, mut lot, mut room) = (Vec::new(), Vec::new(), most);
        for (pack, of_pack) in packs {
            let number = self.packs.get(&pack);
            let rows = number.map_or(0, |number| self.rows_of_pack[number as usize]);
            if rows > room && !self.holds_rows && !lot.is_empty() {
                lots.push(std::mem::take(&mut lot));
                room = most;
            }
            room = room.saturating_sub(rows);
            lot.push((pack, of_pack));
        }
        lots.push(lot);
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

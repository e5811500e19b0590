//! Sorted index parts made of others: one entry after the other, so that however many rows there are, a row group of each part that is
//! merged is in memory, and one part that is made.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, HashSet};
use std::vec::IntoIter;

use bytes::Bytes;

use super::columns::{GROUP_ENTRIES, PartBuilder};
use super::index::{self, ROWS_LIMIT};
use super::parts::{self, Listed, PartList};
use super::ranged::RangedPart;
use super::record::Record;
use super::writer::put_index_part;
use super::{Error, Store};
use crate::digest::{Digest, Fingerprint};

/// Rows of a merged part; with its last entries it may have a few more.
pub(super) const MERGED_ROWS: usize = ROWS_LIMIT / 16;

/// How many short runs are merged at once: of each a row group is in memory.
pub(super) const RUNS_AT_ONCE: usize = 64;

/// Writes entries that come sorted as index parts, cut between entries.
pub(super) struct SortedWriter<'a> {
    store: &'a Store,
    spec: Fingerprint,
    total_rows: u64,
    part: Option<PartBuilder>,
    group: Vec<Record>,
    known: PartList,
    written: Vec<Digest>,
    packs: HashSet<Digest>,
}

impl<'a> SortedWriter<'a> {
    /// For so many rows, or a few less.
    pub(super) fn new(store: &'a Store, spec: &Fingerprint, total_rows: u64) -> Self {
        Self {
            store,
            spec: *spec,
            total_rows,
            part: None,
            group: Vec::new(),
            known: PartList::new(),
            written: Vec::new(),
            packs: HashSet::new(),
        }
    }

    /// Takes the next entry; one that is exactly the last one is passed over.
    pub(super) fn push(&mut self, record: Record) -> Result<(), Error> {
        if self.group.last() == Some(&record) {
            return Ok(());
        }
        // Full before this one came: so the last one is still there to be compared with.
        if self.group.len() >= GROUP_ENTRIES {
            self.write_group()?;
        }
        self.packs.insert(record.pack);
        self.group.push(record);
        Ok(())
    }

    fn write_group(&mut self) -> Result<(), Error> {
        let part = match &mut self.part {
            Some(part) => part,
            none => {
                // Of few rows everything is read anyway: nothing is said of them, so that the same rows make the part that a commit made.
                let sorted = Some(self.total_rows).filter(|&rows| rows > GROUP_ENTRIES as u64);
                none.insert(PartBuilder::new(&self.spec, sorted)?)
            }
        };
        part.push(&self.group)?;
        self.group.clear();
        match part.rows() >= MERGED_ROWS {
            true => self.write_part(),
            false => Ok(()),
        }
    }

    fn write_part(&mut self) -> Result<(), Error> {
        let Some(part) = self.part.take() else {
            return Ok(());
        };
        let bytes = Bytes::from(part.finish()?);
        let digest = put_index_part(self.store, &self.spec, &bytes)?;
        let known = Listed::of(&bytes, &self.spec);
        self.known.extend(known.map(|known| (digest, known)));
        self.written.push(digest);
        Ok(())
    }

    /// Writes the last part. `parts.json` stays as it is.
    pub(super) fn finish(mut self) -> Result<Written, Error> {
        if !self.group.is_empty() {
            self.write_group()?;
        }
        self.write_part()?;
        Ok(Written {
            parts: self.written,
            known: self.known,
            packs: self.packs,
        })
    }
}

/// Parts that were written.
pub(super) struct Written {
    pub(super) parts: Vec<Digest>,
    /// What is known of those that are large.
    pub(super) known: PartList,
    /// The packs that they name.
    pub(super) packs: HashSet<Digest>,
}

/// Writes `records`, sorted by entry, as parts of bounded size.
pub(super) fn write_parts(
    store: &Store,
    spec: &Fingerprint,
    records: Vec<Record>,
) -> Result<Vec<Digest>, Error> {
    let written = write_sorted(store, spec, records)?;
    parts::update(&store.layout, spec, written.known)?;
    Ok(written.parts)
}

/// The same; `parts.json` stays as it is.
pub(super) fn write_sorted(
    store: &Store,
    spec: &Fingerprint,
    records: Vec<Record>,
) -> Result<Written, Error> {
    let rows = records.iter().map(|r| r.parts.len() as u64).sum();
    let mut writer = SortedWriter::new(store, spec, rows);
    for record in records {
        writer.push(record)?;
    }
    writer.finish()
}

/// Entries in order.
pub(super) enum Sorted {
    /// Those of an index part.
    Part(Digest, Listed),
    /// In memory.
    Entries(Vec<Record>),
}

/// Whether an entry stays: the part that it is read from, the first of its rows in it, and what it is.
pub(super) type Stays<'a> = &'a dyn Fn(&Digest, u32, &Record) -> bool;

/// What was made of sorted entries.
pub(super) struct Merged {
    pub(super) new: Written,
    /// Those of which all rows are in them, but for those that were not to stay.
    pub(super) done: Vec<Digest>,
    /// Why others are not among these.
    pub(super) failed: Option<Error>,
}

/// Writes the rows of sorted parts as new parts. One that is damaged or cannot be read now is left as it is.
pub(super) fn merge_parts(
    store: &Store,
    spec: &Fingerprint,
    old: Vec<(Digest, Listed)>,
) -> Result<Merged, Error> {
    let rows = old.iter().fold(0u64, |n, (_, l)| n.saturating_add(l.rows));
    let old = old
        .into_iter()
        .map(|(part, known)| Sorted::Part(part, known));
    let mut merged = merge(store, spec, old.collect(), rows, &|_, _, _| true)?;
    let known = std::mem::take(&mut merged.new.known);
    parts::update(&store.layout, spec, known)?;
    Ok(merged)
}

/// Writes those of sorted entries that stay as new parts; of so many rows, or a few less. `parts.json` stays as it is.
pub(super) fn merge(
    store: &Store,
    spec: &Fingerprint,
    old: Vec<Sorted>,
    rows: u64,
    stays: Stays<'_>,
) -> Result<Merged, Error> {
    let mut writer = SortedWriter::new(store, spec, rows);
    let mut open: BinaryHeap<Reverse<Stream>> = BinaryHeap::new();
    let mut parts = Vec::new();
    for sorted in old {
        match sorted {
            Sorted::Part(part, known) => parts.push((part, known)),
            Sorted::Entries(entries) => open.extend(Stream::of_entries(entries).map(Reverse)),
        }
    }
    // The lowest last: they are opened when it is their turn.
    parts.sort_by_key(|(part, known)| Reverse((known.first, *part)));
    let (mut done, mut failed) = (Vec::new(), None);
    loop {
        let lowest = open.peek().map(|Reverse(stream)| stream.next.entry);
        if let Some((part, known)) = parts.pop_if(|(_, l)| lowest.is_none_or(|low| l.first <= low))
        {
            match Stream::open(store, spec, part, &known) {
                Ok(stream) => open.push(Reverse(stream)),
                Err(e) => _ = failed.get_or_insert(e),
            }
            continue;
        }
        let Some(mut top) = open.peek_mut() else {
            break;
        };
        let (part, row) = (top.0.part, top.0.row);
        let record = match top.0.advance() {
            Ok((record, true)) => {
                drop(top);
                record
            }
            Ok((record, false)) => {
                done.extend(part);
                PeekMut::pop(top);
                record
            }
            // Of the rest of its rows nothing is known. Those that were taken are there twice, which readers allow.
            Err((record, e)) => {
                PeekMut::pop(top);
                failed.get_or_insert(e);
                record
            }
        };
        if part.is_none_or(|part| stays(&part, row, &record)) {
            writer.push(record)?;
        }
    }
    Ok(Merged {
        new: writer.finish()?,
        done,
        failed,
    })
}

/// Entries in order, one after the other.
struct Stream {
    next: Record,
    /// The first row of the next entry.
    row: u32,
    rest: IntoIter<Record>,
    /// The row groups that are still to be read.
    groups: Option<(RangedPart, std::ops::Range<usize>)>,
    part: Option<Digest>,
}

impl Stream {
    fn open(
        store: &Store,
        spec: &Fingerprint,
        part: Digest,
        known: &Listed,
    ) -> Result<Self, Error> {
        let path = store.layout.index_part(spec, &part);
        let other = || Error::malformed(&path, "it is not what is known of it");
        let opened = known.open(&store.layout, spec, &part)?;
        let opened = opened.ok_or_else(other)?;
        let mut groups = 0..opened.num_groups();
        let first = groups.next().ok_or_else(other)?;
        let mut rest = opened.decode(first, None, index::records)?.into_iter();
        Ok(Self {
            next: rest.next().ok_or_else(other)?,
            row: 0,
            rest,
            groups: Some((opened, groups)),
            part: Some(part),
        })
    }

    /// None of no entries.
    fn of_entries(entries: Vec<Record>) -> Option<Self> {
        let mut rest = entries.into_iter();
        Some(Self {
            next: rest.next()?,
            row: 0,
            rest,
            groups: None,
            part: None,
        })
    }

    /// The next entry, and whether there are others; or that and why those cannot be read.
    fn advance(&mut self) -> Result<(Record, bool), (Record, Error)> {
        let following = loop {
            if let Some(record) = self.rest.next() {
                break record;
            }
            let next = self.groups.as_mut();
            let Some((source, group)) = next.and_then(|(s, g)| Some((s, g.next()?))) else {
                return Ok((self.next.clone(), false));
            };
            match source.decode(group, None, index::records) {
                Ok(records) => self.rest = records.into_iter(),
                Err(e) => return Err((self.next.clone(), e)),
            }
        };
        self.row += self.next.parts.len() as u32;
        Ok((std::mem::replace(&mut self.next, following), true))
    }

    fn order(&self) -> (Fingerprint, Digest, Option<Digest>) {
        (self.next.entry, self.next.pack, self.part)
    }
}

impl PartialEq for Stream {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Stream {}

impl PartialOrd for Stream {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Stream {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

//! Sorted index parts made of others: one entry after the other, so that however many rows there are, a row group of each part that is
//! merged is in memory, and one part that is made.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
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

/// Writes entries that come sorted as index parts, cut between entries.
pub(super) struct SortedWriter<'a> {
    store: &'a Store,
    spec: Fingerprint,
    total_rows: u64,
    part: Option<PartBuilder>,
    group: Vec<Record>,
    known: PartList,
    written: Vec<Digest>,
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

    /// Writes the last part, and what is known of all; gives their digests.
    pub(super) fn finish(mut self) -> Result<Vec<Digest>, Error> {
        if !self.group.is_empty() {
            self.write_group()?;
        }
        self.write_part()?;
        parts::update(&self.store.layout, &self.spec, self.known)?;
        Ok(self.written)
    }
}

/// Writes `records`, sorted by entry, as parts of bounded size.
pub(super) fn write_parts(
    store: &Store,
    spec: &Fingerprint,
    records: Vec<Record>,
) -> Result<Vec<Digest>, Error> {
    let rows = records.iter().map(|r| r.parts.len() as u64).sum();
    let mut writer = SortedWriter::new(store, spec, rows);
    for record in records {
        writer.push(record)?;
    }
    writer.finish()
}

/// What was made of sorted parts.
pub(super) struct Merged {
    /// The new parts.
    pub(super) new: Vec<Digest>,
    /// Those of which all rows are in them.
    pub(super) done: Vec<Digest>,
}

/// Writes the rows of sorted parts as new parts. One that is damaged or cannot be read now is left as it is.
pub(super) fn merge(
    store: &Store,
    spec: &Fingerprint,
    mut old: Vec<(Digest, Listed)>,
) -> Result<Merged, Error> {
    let rows = old.iter().fold(0u64, |n, (_, l)| n.saturating_add(l.rows));
    let mut writer = SortedWriter::new(store, spec, rows);
    // The lowest last: they are opened when it is their turn.
    old.sort_by_key(|(part, known)| Reverse((known.first, *part)));
    let mut open: BinaryHeap<Reverse<Stream>> = BinaryHeap::new();
    let mut done = Vec::new();
    loop {
        let lowest = open.peek().map(|Reverse(stream)| stream.next.entry);
        if let Some((part, known)) = old.pop_if(|(_, l)| lowest.is_none_or(|low| l.first <= low)) {
            let opened = known.open(&store.layout, spec, &part);
            if let Ok(Some(opened)) = opened
                && let Some(stream) = Stream::begin(opened, part)
            {
                open.push(Reverse(stream));
            }
            continue;
        }
        let Some(mut top) = open.peek_mut() else {
            break;
        };
        match top.0.advance() {
            Ok((record, true)) => {
                drop(top);
                writer.push(record)?;
            }
            Ok((record, false)) => {
                done.push(top.0.part);
                PeekMut::pop(top);
                writer.push(record)?;
            }
            // Of the rest of its rows nothing is known. Those that were taken are there twice, which readers allow.
            Err(record) => {
                PeekMut::pop(top);
                writer.push(record)?;
            }
        }
    }
    let new = writer.finish()?;
    Ok(Merged { new, done })
}

/// The entries of a part, one after the other.
struct Stream {
    next: Record,
    rest: IntoIter<Record>,
    groups: std::ops::Range<usize>,
    source: RangedPart,
    part: Digest,
}

impl Stream {
    /// None of a part that has no entry that can be read.
    fn begin(source: RangedPart, part: Digest) -> Option<Self> {
        let mut groups = 0..source.num_groups();
        let mut rest = source
            .decode(groups.next()?, None, index::records)
            .ok()?
            .into_iter();
        Some(Self {
            next: rest.next()?,
            rest,
            groups,
            source,
            part,
        })
    }

    /// The next entry, and whether there are others; alone where they cannot be read.
    fn advance(&mut self) -> Result<(Record, bool), Record> {
        let following = loop {
            if let Some(record) = self.rest.next() {
                break Ok(Some(record));
            }
            let Some(group) = self.groups.next() else {
                break Ok(None);
            };
            match self.source.decode(group, None, index::records) {
                Ok(records) => self.rest = records.into_iter(),
                Err(e) => break Err(e),
            }
        };
        match following {
            Ok(Some(record)) => Ok((std::mem::replace(&mut self.next, record), true)),
            Ok(None) => Ok((self.next.clone(), false)),
            Err(_) => Err(self.next.clone()),
        }
    }

    fn order(&self) -> (Fingerprint, Digest, Digest) {
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

//! Entries that come in any order, as sorted index parts: what does not fit into memory is sorted some at a time, and then merged.

use std::collections::{HashMap, HashSet};

use super::merge::{Merged, RUNS_AT_ONCE, Sorted, Stays, Written, merge, write_sorted};
use super::parts::PartList;
use super::record::Record;
use super::snapshot::{decode_part, each_record};
use super::sweep::SpecParts;
use super::{Error, Store, index, parts};
use crate::digest::{Digest, Fingerprint};

/// Of the rows that maintenance holds, what one of these holds: an entry in memory takes about as many times the place of what is needed of
/// it elsewhere.
const SHARE: usize = 64;

/// Entries of a spec that are being sorted. Their packs must be in their places: some are in the index before all are.
pub(super) struct Sorting<'a> {
    store: &'a Store,
    spec: Fingerprint,
    entries: Vec<Record>,
    num_entries: u64,
    num_rows: u64,
    /// What was sorted and written: parts that follow each other.
    runs: Vec<Vec<Digest>>,
    /// What is known of these parts, as far as they are large.
    known: PartList,
}

/// The index parts that were made, and which others have nothing that they have not.
pub(super) struct SortedIndex {
    pub(super) new: Vec<Digest>,
    /// The packs that they name.
    pub(super) packs: HashSet<Digest>,
    /// Parts that were made on the way.
    pub(super) passing: Vec<Digest>,
}

impl<'a> Sorting<'a> {
    pub(super) fn new(store: &'a Store, spec: &Fingerprint) -> Self {
        Self {
            store,
            spec: *spec,
            entries: Vec::new(),
            num_entries: 0,
            num_rows: 0,
            runs: Vec::new(),
            known: PartList::new(),
        }
    }

    /// How many entries came.
    pub(super) fn num_entries(&self) -> u64 {
        self.num_entries
    }

    /// The entries that were not written yet.
    pub(super) fn in_memory(&self) -> &[Record] {
        &self.entries
    }

    /// The parts with those that were.
    pub(super) fn written(&self) -> impl Iterator<Item = &Digest> {
        self.runs.iter().flatten()
    }

    /// Whether the next entry makes it write.
    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= (self.store.disk().rows_in_memory() / SHARE).max(1)
    }

    /// Takes an entry.
    pub(super) fn push(&mut self, record: Record) -> Result<(), Error> {
        if self.is_full() {
            self.write()?;
        }
        self.num_entries += 1;
        self.num_rows += record.parts.len() as u64;
        self.entries.push(record);
        Ok(())
    }

    fn sort(&mut self) {
        self.entries.sort_by_key(|r| (r.entry, r.pack));
    }

    fn write(&mut self) -> Result<(), Error> {
        self.sort();
        let entries = std::mem::take(&mut self.entries);
        let written = write_sorted(self.store, &self.spec, entries)?;
        self.runs.push(written.parts);
        self.known.extend(written.known);
        Ok(())
    }

    /// Writes all that came, and what stays of index parts, as sorted parts; of these `staying` rows. `stays` is asked by the number of a part, with the
    /// first row of each entry.
    ///
    /// # Errors
    /// If something cannot be written, or one of the parts not be read.
    pub(super) fn finish_with(
        mut self,
        index: &SpecParts,
        staying: u64,
        stays: &dyn Fn(usize, u32, &Record) -> bool,
    ) -> Result<SortedIndex, Error> {
        let moved = self.num_rows;
        let mut sorted = Vec::new();
        let mut numbers = HashMap::new();
        for (number, (part, _, known)) in index.parts.iter().enumerate() {
            if let Some(known) = known {
                numbers.insert(*part, number);
                sorted.push(Sorted::Part(*part, known.clone()));
                continue;
            }
            each_record(
                &self.store.layout,
                &index.spec,
                part,
                |row, record| match stays(number, row, &record) {
                    true => self.push(record),
                    false => Ok(()),
                },
            )?;
        }
        let in_sorted = (staying + moved).saturating_sub(self.num_rows);
        // Sorted, so that the same rows make the same parts.
        self.finish(sorted, in_sorted, &|part, row, record| {
            stays(numbers[part], row, record)
        })
    }

    /// Writes all that came, and of the parts `others` what stays, as sorted parts; of these `other_rows` rows.
    ///
    /// # Errors
    /// If something cannot be written, or one of the parts not be read.
    pub(super) fn finish(
        mut self,
        others: Vec<Sorted>,
        other_rows: u64,
        stays: Stays<'_>,
    ) -> Result<SortedIndex, Error> {
        let total = self.num_rows + other_rows;
        self.sort();
        let mut runs = std::mem::take(&mut self.runs);
        let mut passing: Vec<Digest> = runs.iter().flatten().copied().collect();
        while runs.len() > RUNS_AT_ONCE {
            let mut longer = Vec::new();
            for some in runs.chunks(RUNS_AT_ONCE) {
                let sources = self.sources(some)?;
                let merged = merge(self.store, &self.spec, sources, total, &|_, _, _| true)?;
                let merged = whole(merged)?;
                self.known.extend(merged.known);
                passing.extend(&merged.parts);
                longer.push(merged.parts);
            }
            runs = longer;
        }
        let mut sources = self.sources(&runs)?;
        sources.push(Sorted::Entries(std::mem::take(&mut self.entries)));
        sources.extend(others);
        let own: HashSet<Digest> = runs.into_iter().flatten().collect();
        let stays =
            |part: &Digest, row, record: &Record| own.contains(part) || stays(part, row, record);
        let merged = whole(merge(self.store, &self.spec, sources, total, &stays)?)?;
        parts::update(&self.store.layout, &self.spec, merged.known)?;
        Ok(SortedIndex {
            new: merged.parts,
            packs: merged.packs,
            passing,
        })
    }

    fn sources(&self, runs: &[Vec<Digest>]) -> Result<Vec<Sorted>, Error> {
        let source = |part: &Digest| match self.known.get(part) {
            Some(known) => Ok(Sorted::Part(*part, known.clone())),
            // One that is small.
            None => decode_part(&self.store.layout, &self.spec, part, index::records)
                .map(Sorted::Entries),
        };
        runs.iter().flatten().map(source).collect()
    }
}

/// What was made of sources that could all be read.
fn whole(merged: Merged) -> Result<Written, Error> {
    match merged.failed {
        Some(e) => Err(e),
        None => Ok(merged.new),
    }
}

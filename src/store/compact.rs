//! Merging index parts, so that there are few and each has a range of fingerprints: new parts with all their rows first, then the old
//! ones go.
//!
//! What a commit writes is small and lies anywhere. When many such parts have come together they are sorted into a *run*: parts of bounded
//! size that follow each other. When there are many runs of about one length, they are merged into one that is about as many times as
//! long. So each row is written again a few times only, however large the index becomes, and an entry is in one row group of each run.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use super::layout::Layout;
use super::merge::{MERGED_ROWS, RUNS_AT_ONCE, merge_parts, write_parts};
use super::parts::{self, Listed};
use super::snapshot::decode_part;
use super::{Error, Store, disk, index, lock};
use crate::digest::{Digest, Fingerprint};

/// Parts of commits are merged when there are more than so many, and so are runs of about one length.
const MOST: usize = 32;
/// Parts of commits that are sorted together: bytes and number.
const BATCH_BYTES: u64 = 64 << 20;
const BATCH_PARTS: usize = 4096;
/// The bytes that the end of an encoding may merge. Writers wait meanwhile.
const FEW_BYTES: u64 = 512 << 20;
/// Rows of the shortest run.
const SHORTEST_ROWS: u64 = 1024;

/// How much is merged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Effort {
    /// Where there is much of a kind, and what is done in seconds.
    Few,
    /// Everything, into one run.
    All,
}

impl Effort {
    /// Bytes that are merged at the most.
    pub(super) fn budget(self) -> u64 {
        match self {
            Self::Few => FEW_BYTES,
            Self::All => u64::MAX,
        }
    }
}

/// What merging all index parts came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CompactReport {
    /// Index parts that there were.
    pub parts_before: u64,
    /// Those that there are.
    pub parts: u64,
    /// The bytes that they have.
    pub bytes: u64,
}

impl Store {
    /// Merges all index parts of each spec into parts that follow each other, so that an entry is looked for in one of them. An
    /// encoding merges in its end what has to be; this is for an index of many millions of rows. On object storage the parts that
    /// were merged stay until garbage collection removes them, and are not read any more.
    ///
    /// # Errors
    /// If the store cannot be written or somebody else removes things or merges there. Nothing is lost by it.
    pub fn compact(&self) -> Result<CompactReport, Error> {
        if let Some(mirror) = &self.layout.mirror {
            let parts_before = mirror.count_parts().0;
            mirror.merge(self, Effort::All)?;
            let (parts, bytes) = mirror.count_parts();
            return Ok(CompactReport {
                parts_before,
                parts,
                bytes,
            });
        }
        let mut report = CompactReport::default();
        for spec in self.layout.indexed_specs()? {
            report.parts_before += self.layout.index_parts(&spec)?.len() as u64;
        }
        compact(self, Effort::All)?;
        for spec in self.layout.indexed_specs()? {
            let parts = self.layout.index_parts(&spec)?;
            report.parts += parts.len() as u64;
            report.bytes += parts.iter().map(|(_, file)| file.bytes).sum::<u64>();
        }
        Ok(report)
    }
}

/// The parts of a spec.
#[derive(Default)]
pub(super) struct Parts {
    /// Of which nothing is known, with their bytes.
    pub(super) unknown: Vec<(Digest, u64)>,
    pub(super) known: Vec<(Digest, Listed)>,
}

/// What is to be merged next.
pub(super) enum Work {
    /// Parts in no order.
    Sort(Vec<Digest>),
    Merge(Vec<(Digest, Listed)>),
}

impl Work {
    /// The parts that are merged.
    pub(super) fn parts(&self) -> Vec<Digest> {
        match self {
            Self::Sort(parts) => parts.clone(),
            Self::Merge(parts) => parts.iter().map(|(part, _)| *part).collect(),
        }
    }

    /// Gives the new parts, and those of which all rows are in them.
    pub(super) fn carry_out(
        self,
        store: &Store,
        spec: &Fingerprint,
    ) -> Result<(Vec<Digest>, Vec<Digest>), Error> {
        match self {
            Self::Sort(parts) => sort(store, spec, &parts),
            Self::Merge(parts) => {
                let merged = merge_parts(store, spec, parts)?;
                Ok((merged.new.parts, merged.done))
            }
        }
    }
}

/// Merges the index parts of each spec that has many; gives the number of parts removed.
pub(super) fn compact(store: &Store, effort: Effort) -> Result<usize, Error> {
    let layout = &store.layout;
    // What object storage has of the index would come again at the next look: it is merged there (`remote::merge`).
    if layout.mirror.is_some() {
        return Ok(0);
    }
    // Looked at before the lock is taken, and again under it: nearly always there is nothing to do, and no
    // writer is to be kept out for that.
    let mut is_crowded = false;
    for spec in layout.indexed_specs()? {
        is_crowded |= is_crowded_spec(layout, &spec, effort)?;
    }
    if !is_crowded {
        return Ok(0);
    }
    let name = match effort {
        Effort::Few => "the merging of index files after an encoding",
        Effort::All => "plumb store compact",
    };
    let _lock = lock::exclusive(layout, name)?;
    let mut removed = 0;
    for spec in layout.indexed_specs()? {
        if is_crowded_spec(layout, &spec, effort)? {
            removed += compact_spec(store, &spec, effort)?;
        }
    }
    Ok(removed)
}

fn is_crowded_spec(layout: &Layout, spec: &Fingerprint, effort: Effort) -> Result<bool, Error> {
    let mut no_end = u64::MAX;
    Ok(Parts::of(layout, spec)?.next(effort, &mut no_end).is_some())
}

fn compact_spec(store: &Store, spec: &Fingerprint, effort: Effort) -> Result<usize, Error> {
    let layout = &store.layout;
    let unknown = Parts::of(layout, spec)?.unknown.into_iter();
    // Perhaps the list was lost, or they came from another store.
    parts::know(layout, unknown.map(|(part, _)| (*spec, part)))?;
    let mut budget = effort.budget();
    let mut removed = 0;
    // Each part once: one that is damaged stays as it is.
    let mut tried = HashSet::new();
    loop {
        let mut parts = Parts::of(layout, spec)?;
        parts.unknown.retain(|(part, _)| !tried.contains(part));
        parts.known.retain(|(part, _)| !tried.contains(part));
        let Some(work) = parts.next(effort, &mut budget) else {
            return Ok(removed);
        };
        tried.extend(work.parts());
        let (new, done) = work.carry_out(store, spec)?;
        // The merged parts are durable before an old one goes. A kill in between leaves entries twice in
        // the index, which readers allow.
        let gone = done.iter().filter(|p| !new.contains(p));
        removed += remove_parts(layout, spec, gone)?;
    }
}

impl Parts {
    fn of(layout: &Layout, spec: &Fingerprint) -> Result<Self, Error> {
        let mut list = parts::read(layout, spec);
        let mut parts = Self::default();
        for (part, file) in layout.index_parts(spec)? {
            // Nothing behind a link is removed.
            if !file.is_own {
                continue;
            }
            match list.remove(&part).filter(|l| l.bytes == file.bytes) {
                Some(known) => parts.known.push((part, known)),
                None => parts.unknown.push((part, file.bytes)),
            }
        }
        Ok(parts)
    }

    /// What is to be done next, if its bytes are in the budget.
    pub(super) fn next(self, effort: Effort, budget: &mut u64) -> Option<Work> {
        let all = effort == Effort::All;
        if self.unknown.len() > MOST || (all && !self.unknown.is_empty()) {
            return sort_next(self.unknown, budget);
        }
        let (mut short, mut known) = (Vec::new(), self.known);
        if all {
            short = known.extract_if(.., |(_, l)| is_short(l)).collect();
        }
        if short.len() > RUNS_AT_ONCE {
            short.truncate(RUNS_AT_ONCE);
            return Some(Work::Merge(short));
        }
        known.extend(short);
        let mut tiers: BTreeMap<u32, Vec<(Digest, Listed)>> = BTreeMap::new();
        for (part, known) in known {
            let tier = if all { 0 } else { tier(known.sorted_rows) };
            tiers.entry(tier).or_default().push((part, known));
        }
        let most = if all { 1.0 } else { MOST as f64 };
        tiers.into_values().find_map(|parts| {
            // A run counts once, however many parts it has.
            let runs = parts
                .iter()
                .map(|(_, l)| l.rows as f64 / l.sorted_rows as f64);
            let bytes = parts.iter().map(|(_, l)| l.bytes).sum();
            // A little more than one where its rows are not quite what was said.
            let is_crowded = runs.sum::<f64>() > most + 0.01;
            (is_crowded && take(budget, bytes)).then_some(Work::Merge(parts))
        })
    }
}

/// Whether it is of a run that has a part or two.
fn is_short(known: &Listed) -> bool {
    known.sorted_rows <= 2 * MERGED_ROWS as u64
}

/// So many of the parts as are sorted in memory together.
fn sort_next(unknown: Vec<(Digest, u64)>, budget: &mut u64) -> Option<Work> {
    let mut bytes = 0;
    let mut batch = Vec::new();
    for (part, size) in unknown {
        let is_full = bytes + size > BATCH_BYTES || batch.len() == BATCH_PARTS;
        if is_full && !batch.is_empty() {
            break;
        }
        bytes += size;
        batch.push(part);
    }
    take(budget, bytes).then_some(Work::Sort(batch))
}

fn take(budget: &mut u64, bytes: u64) -> bool {
    let left = budget.checked_sub(bytes);
    *budget = left.unwrap_or(*budget);
    left.is_some()
}

/// Runs of one tier are of about one length, within a factor of 32.
fn tier(sorted_rows: u64) -> u32 {
    (sorted_rows / SHORTEST_ROWS).max(1).ilog2() / MOST.ilog2()
}

/// Gives the new parts, and those of which all rows are in them.
fn sort(
    store: &Store,
    spec: &Fingerprint,
    old: &[Digest],
) -> Result<(Vec<Digest>, Vec<Digest>), Error> {
    let mut done = Vec::new();
    let mut records = Vec::new();
    for part in old {
        // A part that is damaged or cannot be read now is left as it is, for `check` to tell of.
        if let Ok(found) = decode_part(&store.layout, spec, part, index::records) {
            done.push(*part);
            records.extend(found);
        }
    }
    records.sort_by_key(|r| (r.entry, r.pack));
    let new = write_parts(store, spec, records)?;
    Ok((new, done))
}

/// Removes index parts, durably. Only for who holds the exclusive lock and has written what takes their place.
pub(super) fn remove_parts<'a>(
    layout: &Layout,
    spec: &Fingerprint,
    parts: impl Iterator<Item = &'a Digest>,
) -> Result<usize, Error> {
    let mut removed = 0;
    for part in parts {
        let path = layout.index_part(spec, part);
        disk::remove(&*layout.disk, &path)?;
        removed += 1;
    }
    let dir = layout.index_of(spec);
    if removed > 0 {
        layout
            .disk
            .sync_dir(&dir)
            .map_err(|e| Error::io("sync the folder", &dir, e))?;
    }
    Ok(removed)
}

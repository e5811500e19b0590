//! Garbage collection: what no run uses and is older than a grace age goes.
//!
//! The order makes every moment safe: payloads that stay are in a new pack, and its rows in a new index part,
//! before the old part goes; no row names a pack any more before the pack goes.
//!
//! Only files that the store wrote go, by their names and kind, in its own folders: nothing behind a link does. Whatever cannot
//! be read ends it.
//!
//! What is to go is decided a range of fingerprints at a time (`sweep`), and kept as a bit a row; `collecting` does it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::disk::{self, ListedFile};
use super::entry_range::EntryRange;
use super::index::PayloadRow;
use super::leftovers::{Leftovers, Root};
use super::run_lists::{RunLists, roots};
use super::snapshot::decode_part;
use super::sweep::{PackNumbers, RowSet, SpecParts};
use super::{Error, Problem, Store, index, lock, packfile};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;

/// A pack is rewritten when more than this share of its payload bytes is unused.
const UNUSED_SHARE: f64 = 0.05;
/// A pack of fewer bytes than this is small.
const SMALL_PACK_BYTES: u64 = 8 << 20;
/// Packs of a spec are merged when more than this many of them are small.
const SMALL_PACKS: usize = 32;
/// Of the rows in memory, those of which it is known where their payloads are.
const PLACES_SHARE: usize = 32;

/// What garbage collection may remove.
#[derive(Clone, Copy, Debug)]
pub struct GcOptions {
    /// The present time, which the library does not look up itself; ages are counted back from it.
    pub now: SystemTime,
    /// Files younger than this stay, whether used or not: what was just encoded is perhaps used soon.
    pub grace: Duration,
    /// Whether to report what would go and change nothing.
    pub dry_run: bool,
    /// Go on when there is no run at all, that is, remove everything older than the grace age.
    pub without_runs: bool,
}

/// What garbage collection removed, or would remove.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GcReport {
    /// Whether this is only what would be done.
    pub dry_run: bool,
    /// Runs that protect entries.
    pub runs: u64,
    /// Entries that stay: a run uses them, or they are young.
    pub entries_kept: u64,
    /// Entries that no run uses, and copies beyond the first.
    pub entries_removed: u64,
    /// Packs removed, rewritten ones included.
    pub packs_removed: u64,
    /// Packs of which a part was kept, in new packs.
    pub packs_rewritten: u64,
    /// Bytes by which the packs shrink in all; index parts are not counted.
    pub bytes_freed: u64,
    /// Files removed that interrupted writes left, or that `rebuild-index` set aside.
    pub leftovers_removed: u64,
    /// Entries that could not be taken over because they are damaged, and leftovers that stay.
    pub problems: Vec<Problem>,
}

/// What garbage collection is going to do, decided before anything is touched.
pub(super) struct GcPlan {
    pub(super) specs: Vec<SpecPlan>,
    pub(super) rewrite: HashSet<Digest>,
    pub(super) remove: HashSet<Digest>,
    pub(super) leftovers: Vec<std::path::PathBuf>,
}

/// What is going to be done to the index of a spec.
pub(super) struct SpecPlan {
    pub(super) index: SpecParts,
    /// Some of it lies behind a link: it stays as it is.
    pub(super) is_linked: bool,
    /// By part: the first rows of the entries that go.
    pub(super) goes: Vec<RowSet>,
    /// Whether any do.
    pub(super) is_thinned: bool,
    /// What stays of each pack.
    pub(super) kept: HashMap<Digest, Kept>,
}

/// What stays of a pack.
#[derive(Clone, Copy, Default)]
pub(super) struct Kept {
    pub(super) entries: u64,
    pub(super) rows: u64,
    /// Of payloads.
    bytes: u64,
}

/// An entry as the index has it.
struct Seen {
    entry: Fingerprint,
    bytes: u64,
    /// Numbers of its part and pack.
    part: u32,
    pack: u32,
    row: u32,
    rows: u32,
    stays: bool,
}

/// What the plan is made of.
struct Planning<'a> {
    store: &'a Store,
    options: &'a GcOptions,
    /// Their names, and where their lists are once that is known.
    runs: Vec<(String, Option<RunLists>)>,
    /// Whether it matters which entries that runs use are not there.
    asks_lacking: bool,
    lacking: HashSet<Root>,
    num_roots: u64,
    packs: BTreeMap<Digest, ListedFile>,
    numbers: PackNumbers,
    report: &'a mut GcReport,
}

impl Store {
    /// Removes what no run uses and is older than the grace age, and repacks what is left of packs.
    ///
    /// # Errors
    /// If no run protects anything (unless allowed), if a run or index part cannot be understood, if a writer is
    /// at work, or if the store cannot be written. Whatever the error, no kept entry is lost.
    pub fn gc(&self, options: &GcOptions, monitor: &dyn Monitor) -> Result<GcReport, Error> {
        if self.layout.mirror.is_some() {
            return Err(Error::Refused(format!(
                "{} is on object storage: say `plumb store gc {}`",
                self.shown().display(),
                self.shown().display()
            )));
        }
        // Telling needs no lock: nothing is changed, and it may be told of a store that is being written.
        let _lock = if options.dry_run {
            None
        } else {
            Some(lock::exclusive(&self.layout, "plumb store gc")?)
        };
        let mut report = GcReport {
            dry_run: options.dry_run,
            ..GcReport::default()
        };
        let plan = self.plan(options, &mut report)?;
        if !options.dry_run {
            self.carry_out(plan, &mut report, monitor)?;
        }
        Ok(report)
    }

    fn plan(&self, options: &GcOptions, report: &mut GcReport) -> Result<GcPlan, Error> {
        // Runs before the index before packs, as readers do.
        let runs: Vec<_> = self.runs()?.into_iter().map(|id| (id, None)).collect();
        report.runs = runs.len() as u64;
        if runs.is_empty() {
            self.refuse_without_runs(options)?;
        }
        let listed = self.most_listed()?;
        let mut specs = Vec::new();
        for spec in self.layout.indexed_specs()? {
            specs.push(SpecPlan::new(SpecParts::list(&self.layout, spec)?));
        }
        let rows: u64 = specs.iter().map(|s| s.index.most_rows()).sum();
        let mut planning = Planning {
            store: self,
            options,
            runs,
            asks_lacking: !self.layout.set_aside_files()?.is_empty(),
            lacking: HashSet::new(),
            num_roots: 0,
            packs: self.layout.list_packs()?.into_iter().collect(),
            numbers: PackNumbers::default(),
            report,
        };
        for range in EntryRange::for_rows(rows.max(listed), self.disk().rows_in_memory()) {
            planning.decide(&mut specs, range)?;
        }
        if planning.num_roots == 0 {
            self.refuse_without_runs(options)?;
        }
        planning.plan_packs(specs)
    }

    fn refuse_without_runs(&self, options: &GcOptions) -> Result<(), Error> {
        // Without a run everything would be rubbish: more likely the folder of runs is not there than that nothing is wanted.
        if options.without_runs {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "no run in {} uses any entry, so everything would go; encode or train first, or say --without-runs",
            self.layout.runs().display()
        )))
    }

    /// The bytes of a pack's file that are not its header.
    fn payload_bytes(&self, pack: &Digest, file_bytes: u64) -> Result<u64, Error> {
        // The first 8 bytes of a safetensors file are its header's length.
        let length = disk::read_range(self.disk(), &self.layout.pack(pack), 0, 8)?;
        let length = length.and_then(|bytes| bytes.first_chunk().copied());
        let length = length.map_or(0, u64::from_le_bytes);
        Ok(file_bytes.saturating_sub(length).saturating_sub(8))
    }
}

impl SpecPlan {
    fn new(index: SpecParts) -> Self {
        Self {
            is_linked: index.parts.iter().any(|(_, file, _)| !file.is_own),
            goes: index.parts.iter().map(|_| RowSet::default()).collect(),
            is_thinned: false,
            kept: HashMap::new(),
            index,
        }
    }
}

impl Planning<'_> {
    fn is_old(&self, file: &ListedFile) -> bool {
        file.is_own && self.options.is_old(file.modified)
    }

    /// Decides about the entries of a range.
    fn decide(&mut self, specs: &mut [SpecPlan], range: EntryRange) -> Result<(), Error> {
        let store = self.store;
        let runs = self.runs.iter_mut();
        let listed = runs.map(|(id, lists)| store.run_within_once_read(id, lists, range));
        let mut roots = roots(listed)?;
        self.num_roots += roots.values().map(|all| all.len() as u64).sum::<u64>();
        for plan in specs {
            let wanted = roots.remove(&plan.index.spec).unwrap_or_default();
            let kept = self.decide_spec(plan, &wanted, range)?;
            if self.asks_lacking {
                let lacking = wanted
                    .iter()
                    .filter(|root| kept.binary_search(root).is_err());
                let spec = plan.index.spec;
                self.lacking.extend(lacking.map(|entry| (spec, *entry)));
            }
        }
        if self.asks_lacking {
            let others = roots.into_iter();
            let others = others.flat_map(|(spec, list)| list.into_iter().map(move |e| (spec, e)));
            self.lacking.extend(others);
        }
        Ok(())
    }

    /// Decides about the entries of a spec in a range, of which `wanted` are used; gives those that stay, sorted, where that
    /// matters.
    fn decide_spec(
        &mut self,
        plan: &mut SpecPlan,
        wanted: &[Fingerprint],
        range: EntryRange,
    ) -> Result<Vec<Fingerprint>, Error> {
        let mut seen = self.see(plan, range)?;
        let young: Vec<bool> = (self.numbers.digests().iter())
            .map(|pack| self.packs.get(pack).is_some_and(|file| !self.is_old(file)))
            .collect();
        // Those that stay, where there are several of an entry.
        let mut copies: Vec<std::ops::Range<usize>> = Vec::new();
        let mut next = 0;
        while let Some(first) = seen.get(next) {
            let entry = first.entry;
            let same = seen[next..].iter().take_while(|s| s.entry == entry).count();
            let is_used = plan.is_linked || wanted.binary_search(&entry).is_ok();
            for one in &mut seen[next..next + same] {
                // A young pack keeps its entries: its run may not be written yet.
                one.stays = is_used || young[one.pack as usize];
            }
            if seen[next..next + same].iter().filter(|s| s.stays).count() > 1 {
                copies.push(next..next + same);
            }
            next += same;
        }
        let at_once = (self.store.disk().rows_in_memory() / PLACES_SHARE).max(1);
        for some in copies.chunks(at_once) {
            self.choose(plan, &mut seen, some)?;
        }
        let (mut kept, mut num_kept) = (Vec::new(), 0);
        for one in &seen {
            // A pack of which nothing stays is known with 0 bytes, unlike one that no row names.
            let of_pack = plan.kept.entry(self.numbers.digest(one.pack)).or_default();
            if one.stays {
                of_pack.entries += 1;
                of_pack.rows += u64::from(one.rows);
                of_pack.bytes += one.bytes;
                num_kept += 1;
                if self.asks_lacking {
                    kept.push(one.entry);
                }
            } else {
                plan.goes[one.part as usize].insert(one.row);
                plan.is_thinned = true;
            }
        }
        self.report.entries_kept += num_kept;
        self.report.entries_removed += seen.len() as u64 - num_kept;
        Ok(kept)
    }

    /// The entries of a range, sorted, and copies by their pack.
    fn see(&mut self, plan: &SpecPlan, range: EntryRange) -> Result<Vec<Seen>, Error> {
        let mut seen = Vec::new();
        plan.index.read(&self.store.layout, range, |part, found| {
            for rows in found.map_err(before_cleaning)? {
                seen.push(Seen {
                    entry: rows.entry,
                    bytes: rows.bytes,
                    part: part as u32,
                    pack: self.numbers.of(rows.pack),
                    row: rows.row,
                    rows: rows.rows,
                    stays: false,
                });
            }
            Ok(())
        })?;
        let numbers = &self.numbers;
        seen.sort_unstable_by_key(|s| (s.entry, numbers.digest(s.pack), s.part, s.row));
        Ok(seen)
    }

    /// Of copies of an entry that are to stay, leaves one: the first that reads back, or else the last. Reading is the only way to know.
    fn choose(
        &self,
        plan: &SpecPlan,
        seen: &mut [Seen],
        copies: &[std::ops::Range<usize>],
    ) -> Result<(), Error> {
        let of_copies = copies.iter().flat_map(|copy| &seen[copy.clone()]);
        let places = self.places(plan, of_copies.filter(|s| s.stays))?;
        for copy in copies {
            let mut chosen: Option<usize> = None;
            for at in copy
                .clone()
                .filter(|&at| seen[at].stays)
                .collect::<Vec<_>>()
            {
                let Some(last) = chosen else {
                    chosen = Some(at);
                    continue;
                };
                let place = (seen[last].part, seen[last].row);
                let rows = places.get(&place).into_iter().flatten();
                let pack = self.numbers.digest(seen[last].pack);
                let parts = rows.map(|row| &row.part);
                if packfile::is_sound(&self.store.layout, &pack, parts)? {
                    seen[at].stays = false;
                } else {
                    seen[last].stays = false;
                    chosen = Some(at);
                }
            }
        }
        Ok(())
    }

    /// Where the payloads of some entries are, by part and row.
    fn places<'b>(
        &self,
        plan: &SpecPlan,
        of: impl Iterator<Item = &'b Seen>,
    ) -> Result<HashMap<(u32, u32), Vec<PayloadRow>>, Error> {
        let mut by_part: BTreeMap<u32, HashMap<u32, u32>> = BTreeMap::new();
        for one in of {
            by_part
                .entry(one.part)
                .or_default()
                .insert(one.row, one.rows);
        }
        let mut places: HashMap<(u32, u32), Vec<PayloadRow>> = HashMap::new();
        for (part, wanted) in by_part {
            let (digest, ..) = &plan.index.parts[part as usize];
            let layout = &self.store.layout;
            let rows = decode_part(layout, &plan.index.spec, digest, index::payloads);
            let mut left = 0;
            let mut first = 0;
            for (row, payload) in (0u32..).zip(rows.map_err(before_cleaning)?) {
                if let Some(rows) = wanted.get(&row) {
                    (first, left) = (row, *rows);
                }
                if left > 0 {
                    places.entry((part, first)).or_default().push(payload);
                    left -= 1;
                }
            }
        }
        Ok(places)
    }

    /// Decides which packs go and which are rewritten, by the payload bytes that stay of each.
    fn plan_packs(self, specs: Vec<SpecPlan>) -> Result<GcPlan, Error> {
        let (mut rewrite, mut remove) = (HashSet::new(), HashSet::new());
        for plan in specs.iter().filter(|plan| !plan.is_linked) {
            let is_small = |pack: &Digest| {
                let file = self.packs.get(pack);
                file.is_some_and(|f| f.is_own && f.bytes < SMALL_PACK_BYTES)
            };
            let kept = plan.kept.iter().filter(|(_, kept)| kept.entries > 0);
            let small: Vec<Digest> = kept.map(|(p, _)| *p).filter(is_small).collect();
            if small.len() > SMALL_PACKS {
                rewrite.extend(small);
            }
        }
        // The payload bytes that stay, by pack.
        let mut used: HashMap<Digest, u64> = HashMap::new();
        for (pack, kept) in specs.iter().flat_map(|plan| &plan.kept) {
            *used.entry(*pack).or_default() += kept.bytes;
        }
        for (pack, file) in &self.packs {
            match used.get(pack) {
                // No row names it. A young one may be a writer's whose rows are still to come.
                None if self.is_old(file) => _ = remove.insert(*pack),
                None => {}
                Some(0) if file.is_own => _ = remove.insert(*pack),
                Some(0) => {}
                Some(kept) if file.is_own => {
                    let payload_bytes = self.store.payload_bytes(pack, file.bytes)?;
                    let unused = payload_bytes.saturating_sub(*kept);
                    // Copying a whole pack to win a few bytes is not worth it.
                    if unused as f64 > payload_bytes as f64 * UNUSED_SHARE {
                        rewrite.insert(*pack);
                        self.report.bytes_freed += unused;
                    }
                }
                Some(_) => {}
            }
        }
        // Rows that stay as they are need their packs as they are.
        for plan in specs.iter().filter(|plan| plan.is_linked) {
            let kept = plan.kept.iter().filter(|(_, kept)| kept.entries > 0);
            for (pack, _) in kept {
                rewrite.remove(pack);
            }
        }
        let report = self.report;
        report.packs_rewritten = rewrite.len() as u64;
        report.packs_removed = (remove.len() + rewrite.len()) as u64;
        report.bytes_freed += remove.iter().map(|p| self.packs[p].bytes).sum::<u64>();
        let leftovers = Leftovers::find(&self.store.layout, self.options, &self.lacking)?;
        report.problems.extend(leftovers.problems);
        report.leftovers_removed = leftovers.files.len() as u64;
        Ok(GcPlan {
            specs,
            rewrite,
            remove,
            leftovers: leftovers.files,
        })
    }
}

/// Entries of a part that is left out would look like unused payloads, and go.
fn before_cleaning(e: Error) -> Error {
    match e.is_content() {
        true => Error::Refused(format!(
            "{e}; run `plumb store rebuild-index` before cleaning up"
        )),
        false => e,
    }
}

impl GcOptions {
    /// Whether a file of this time may go by its age. A time that is unknown or in the future counts as young: what is kept
    /// wrongly goes next time.
    pub(super) fn is_old(&self, modified: Option<SystemTime>) -> bool {
        let age = modified.and_then(|m| self.now.duration_since(m).ok());
        age.is_some_and(|age| age >= self.grace)
    }
}

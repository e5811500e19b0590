//! Garbage collection: what no run uses and is older than a grace age goes.
//!
//! The order makes every moment safe: payloads that stay are in a new pack, and its rows in a new index part,
//! before the old part goes; no row names a pack any more before the pack goes.
//!
//! Only files that the store wrote go, by their names and kind, in its own folders: nothing behind a link does. Whatever cannot
//! be read ends it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::compact::remove_parts;
use super::disk::{self, ListedFile};
use super::leftovers::Leftovers;
use super::merge::write_parts;
use super::pack::{PACK_LIMIT_BYTES, PackBuilder};
use super::packed::{OpenedPack, PackedEntry};
use super::record::Record;
use super::snapshot::decode_part;
use super::writer::write_pack;
use super::{Error, Problem, Store, index, lock, packfile};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;
use crate::shown;

/// A pack is rewritten when more than this share of its payload bytes is unused.
const UNUSED_SHARE: f64 = 0.05;
/// A pack of fewer bytes than this is small.
const SMALL_PACK_BYTES: u64 = 8 << 20;
/// Packs of a spec are merged when more than this many of them are small.
const SMALL_PACKS: usize = 32;

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
struct GcPlan {
    packs: BTreeMap<Digest, ListedFile>,
    /// By spec: the index parts there are, and the rows that stay.
    specs: BTreeMap<Fingerprint, (Vec<Digest>, Vec<Record>)>,
    /// Specs of which some rows go.
    thinned: HashSet<Fingerprint>,
    rewrite: HashSet<Digest>,
    remove: HashSet<Digest>,
    leftovers: Vec<std::path::PathBuf>,
    /// Specs whose index lies behind a link: it stays as it is.
    linked: HashSet<Fingerprint>,
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
        let roots = self.roots(options, &mut report)?;
        let plan = self.plan(options, &roots, &mut report)?;
        if !options.dry_run {
            self.carry_out(plan, &mut report, monitor)?;
        }
        Ok(report)
    }

    fn roots(
        &self,
        options: &GcOptions,
        report: &mut GcReport,
    ) -> Result<HashSet<(Fingerprint, Fingerprint)>, Error> {
        let mut roots = HashSet::new();
        for id in self.runs()? {
            report.runs += 1;
            roots.extend(self.run(&id)?.listed());
        }
        // Without a run everything would be rubbish: more likely the folder of runs is not there than that nothing is wanted.
        if roots.is_empty() && !options.without_runs {
            return Err(Error::Refused(format!(
                "no run in {} uses any entry, so everything would go; encode or train first, or say --without-runs",
                self.layout.runs().display()
            )));
        }
        Ok(roots)
    }

    fn plan(
        &self,
        options: &GcOptions,
        roots: &HashSet<(Fingerprint, Fingerprint)>,
        report: &mut GcReport,
    ) -> Result<GcPlan, Error> {
        let is_old = |file: &ListedFile| file.is_own && options.is_old(file.modified);
        let mut plan = GcPlan {
            packs: BTreeMap::new(),
            specs: BTreeMap::new(),
            thinned: HashSet::new(),
            rewrite: HashSet::new(),
            remove: HashSet::new(),
            leftovers: Vec::new(),
            linked: HashSet::new(),
        };
        // Index before packs, as readers do.
        let mut rows = BTreeMap::new();
        for spec in self.layout.indexed_specs()? {
            let parts = self.layout.index_parts(&spec)?;
            if parts.iter().any(|(_, f)| !f.is_own) {
                plan.linked.insert(spec);
            }
            let parts: Vec<Digest> = parts.into_iter().map(|(p, _)| p).collect();
            rows.insert(spec, (self.records_of_parts(&spec, &parts)?, parts));
        }
        plan.packs = self.layout.list_packs()?.into_iter().collect();
        // The payload bytes that stay, by pack.
        let mut used: HashMap<Digest, u64> = HashMap::new();
        for (spec, (records, parts)) in rows {
            let total = records.len();
            // A young pack keeps its entries: its run may not be written yet.
            let is_linked = plan.linked.contains(&spec);
            let kept = self.keep(records, &mut used, |r| {
                is_linked
                    || roots.contains(&(spec, r.entry))
                    || plan.packs.get(&r.pack).is_some_and(|f| !is_old(f))
            })?;
            if kept.len() < total {
                plan.thinned.insert(spec);
            }
            report.entries_kept += kept.len() as u64;
            report.entries_removed += (total - kept.len()) as u64;
            if !is_linked {
                self.plan_small_packs(&mut plan, &kept);
            }
            plan.specs.insert(spec, (parts, kept));
        }
        self.plan_packs(&mut plan, &used, &is_old, report)?;
        report.packs_rewritten = plan.rewrite.len() as u64;
        report.packs_removed = (plan.remove.len() + plan.rewrite.len()) as u64;
        report.bytes_freed += plan.remove.iter().map(|p| plan.packs[p].bytes).sum::<u64>();
        let kept = plan
            .specs
            .iter()
            .flat_map(|(spec, (_, rows))| rows.iter().map(move |r| (*spec, r.entry)));
        let lacking = roots - &kept.collect();
        let leftovers = Leftovers::find(&self.layout, options, &lacking)?;
        plan.leftovers = leftovers.files;
        report.problems.extend(leftovers.problems);
        report.leftovers_removed = plan.leftovers.len() as u64;
        Ok(plan)
    }

    /// Decides which packs go and which are rewritten, by the payload bytes that stay of each.
    fn plan_packs(
        &self,
        plan: &mut GcPlan,
        used: &HashMap<Digest, u64>,
        is_old: &dyn Fn(&ListedFile) -> bool,
        report: &mut GcReport,
    ) -> Result<(), Error> {
        for (pack, file) in &plan.packs {
            match used.get(pack) {
                // No row names it. A young one may be a writer's whose rows are still to come.
                None if is_old(file) => _ = plan.remove.insert(*pack),
                None => {}
                Some(0) if file.is_own => _ = plan.remove.insert(*pack),
                Some(0) => {}
                Some(kept) if file.is_own => {
                    let payload_bytes = self.payload_bytes(pack, file.bytes)?;
                    let unused = payload_bytes.saturating_sub(*kept);
                    // Copying a whole pack to win a few bytes is not worth it.
                    if unused as f64 > payload_bytes as f64 * UNUSED_SHARE {
                        plan.rewrite.insert(*pack);
                        report.bytes_freed += unused;
                    }
                }
                Some(_) => {}
            }
        }
        // Rows that stay as they are need their packs as they are.
        for spec in &plan.linked {
            let kept = plan.specs.get(spec).into_iter().flat_map(|(_, kept)| kept);
            for record in kept {
                plan.rewrite.remove(&record.pack);
            }
        }
        Ok(())
    }

    fn records_of_parts(&self, spec: &Fingerprint, parts: &[Digest]) -> Result<Vec<Record>, Error> {
        let mut records = Vec::new();
        for part in parts {
            // Entries of a part that is left out would look like unused payloads, and go.
            match decode_part(&self.layout, spec, part, index::records) {
                Ok(found) => records.extend(found),
                Err(e) if e.is_content() => {
                    return Err(Error::Refused(format!(
                        "{e}; run `plumb store rebuild-index` before cleaning up"
                    )));
                }
                Err(e) => return Err(e),
            }
        }
        records.sort_by_key(|r| (r.entry, r.pack));
        Ok(records)
    }

    /// The rows that stay, each entry once. Adds up their payload bytes by pack.
    fn keep(
        &self,
        records: Vec<Record>,
        used: &mut HashMap<Digest, u64>,
        wanted: impl Fn(&Record) -> bool,
    ) -> Result<Vec<Record>, Error> {
        let mut kept: Vec<Record> = Vec::new();
        for record in records {
            // A pack of which nothing stays is known with 0 bytes, unlike one that no row names.
            used.entry(record.pack).or_default();
            if !wanted(&record) {
                continue;
            }
            match kept.last_mut().filter(|last| last.entry == record.entry) {
                // Of two copies the one that reads back stays; reading it is the only way to know.
                Some(last) if packfile::is_sound(&self.layout, last)? => {}
                Some(last) => *last = record,
                None => kept.push(record),
            }
        }
        for record in &kept {
            let bytes: u64 = record.parts.iter().map(|p| p.length).sum();
            *used.entry(record.pack).or_default() += bytes;
        }
        Ok(kept)
    }

    /// The bytes of a pack's file that are not its header.
    fn payload_bytes(&self, pack: &Digest, file_bytes: u64) -> Result<u64, Error> {
        // The first 8 bytes of a safetensors file are its header's length.
        let length = disk::read_range(self.disk(), &self.layout.pack(pack), 0, 8)?;
        let length = length.and_then(|bytes| bytes.first_chunk().copied());
        let length = length.map_or(0, u64::from_le_bytes);
        Ok(file_bytes.saturating_sub(length).saturating_sub(8))
    }

    fn plan_small_packs(&self, plan: &mut GcPlan, kept: &[Record]) {
        let packs: HashSet<Digest> = kept.iter().map(|r| r.pack).collect();
        let is_small = |p: &Digest| {
            plan.packs
                .get(p)
                .is_some_and(|f| f.is_own && f.bytes < SMALL_PACK_BYTES)
        };
        let small: Vec<Digest> = packs.into_iter().filter(is_small).collect();
        if small.len() > SMALL_PACKS {
            plan.rewrite.extend(small);
        }
    }

    fn carry_out(
        &self,
        mut plan: GcPlan,
        report: &mut GcReport,
        monitor: &dyn Monitor,
    ) -> Result<(), Error> {
        monitor.start(
            "cleaning up",
            Some((plan.rewrite.len() + plan.remove.len()) as u64),
        );
        let mut new_packs = HashSet::new();
        for (spec, (parts, kept)) in std::mem::take(&mut plan.specs) {
            if plan.linked.contains(&spec) {
                continue;
            }
            let (moving, mut rows): (Vec<_>, Vec<_>) = kept
                .into_iter()
                .partition(|r| plan.rewrite.contains(&r.pack));
            // Nothing of it changes, and it has one part: its index stays as it is. Several are made one while we are at it.
            if moving.is_empty() && !plan.thinned.contains(&spec) && parts.len() < 2 {
                continue;
            }
            let stuck = self.repack(&spec, moving, &mut rows, report, monitor)?;
            plan.rewrite.retain(|pack| !stuck.contains(pack));
            rows.sort_by_key(|r| (r.entry, r.pack));
            new_packs.extend(rows.iter().map(|r| r.pack));
            // Sorted, so that the same rows make the same part: one that is there already is then not removed below.
            let new = write_parts(self, &spec, rows)?;
            remove_parts(
                &self.layout,
                &spec,
                parts.iter().filter(|p| !new.contains(p)),
            )?;
        }
        report.packs_removed = (plan.remove.len() + plan.rewrite.len()) as u64;
        // A pack made anew may have the very bytes of an old one.
        let gone = plan
            .remove
            .iter()
            .chain(&plan.rewrite)
            .filter(|p| !new_packs.contains(p));
        for pack in gone {
            disk::remove(self.disk(), &self.layout.pack(pack))?;
            monitor.advance(1);
        }
        for path in &plan.leftovers {
            disk::remove(self.disk(), path)?;
        }
        monitor.finish();
        Ok(())
    }

    /// Copies the payloads of `moving` into new packs and adds their rows. Gives the packs that cannot be taken
    /// apart: they stay, with their rows.
    fn repack(
        &self,
        spec: &Fingerprint,
        moving: Vec<Record>,
        rows: &mut Vec<Record>,
        report: &mut GcReport,
        monitor: &dyn Monitor,
    ) -> Result<HashSet<Digest>, Error> {
        let mut by_pack: BTreeMap<Digest, Vec<Record>> = BTreeMap::new();
        for record in moving {
            by_pack.entry(record.pack).or_default().push(record);
        }
        let mut stuck = HashSet::new();
        let mut builder: Option<PackBuilder> = None;
        for (pack, records) in by_pack {
            monitor.advance(1);
            let rows_of_pack: HashMap<Fingerprint, &Record> =
                records.iter().map(|r| (r.entry, r)).collect();
            let (bytes, opened) = match self.open_as_indexed(&pack, &rows_of_pack) {
                Ok(opened) => opened,
                Err(e) if e.is_content() => {
                    let what = format!("not repacked: {e}");
                    report.problems.push(self.problem(&pack, what));
                    // Its rows stay with it: of a pack that is not what the index says nothing can be moved.
                    rows.extend(records);
                    stuck.insert(pack);
                    continue;
                }
                Err(e) => return Err(e),
            };
            let target =
                builder.get_or_insert_with(|| PackBuilder::new(*spec, opened.spec_json.clone()));
            for packed in opened.entries {
                if !rows_of_pack.contains_key(&packed.record.entry) {
                    continue;
                }
                match packed.payloads(&bytes) {
                    Ok(payloads) => {
                        let payloads = payloads.into_iter().map(<[u8]>::to_vec).collect();
                        move_entry(self, target, packed, payloads, rows)?;
                    }
                    Err(why) => {
                        let entry = &packed.record;
                        let source = shown::text(&entry.source);
                        let what = format!("entry {} (\"{source}\") lost: {why}", entry.entry);
                        report.problems.push(self.problem(&pack, what));
                    }
                }
            }
        }
        if let Some(last) = builder.filter(|b| !b.is_empty()) {
            write_pack(self, &last, rows)?;
        }
        Ok(stuck)
    }

    /// Reads a pack whose header says of its entries what the index says: of the two, a damaged header would be believed.
    fn open_as_indexed(
        &self,
        pack: &Digest,
        rows: &HashMap<Fingerprint, &Record>,
    ) -> Result<(Vec<u8>, OpenedPack), Error> {
        let file = self.layout.pack_path(*pack);
        let (bytes, opened) = packfile::open(&self.layout, &file)?;
        let alike = opened.entries.iter();
        let alike = alike.filter(|e| {
            rows.get(&e.record.entry)
                .is_some_and(|row| **row == e.record)
        });
        match alike.count() == rows.len() {
            true => Ok((bytes, opened)),
            false => Err(Error::malformed(
                &file.path,
                "it says otherwise of its entries than the index; `plumb store rebuild-index` mends it",
            )),
        }
    }

    fn problem(&self, pack: &Digest, what: String) -> Problem {
        let path = self.layout.pack(pack);
        Problem::of(&self.layout, &path, what, "encoding again replaces it")
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

/// Adds an entry of another pack to `target`, which goes to disk first if it would grow too large.
pub(super) fn move_entry(
    store: &Store,
    target: &mut PackBuilder,
    packed: PackedEntry,
    payloads: Vec<Vec<u8>>,
    rows: &mut Vec<Record>,
) -> Result<(), Error> {
    let bytes = payloads.iter().map(Vec::len).sum();
    if !target.is_empty() && target.is_full_for(bytes, packed.header_bytes(), PACK_LIMIT_BYTES) {
        write_pack(store, target, rows)?;
        target.clear();
    }
    target.push_packed(packed, payloads);
    Ok(())
}

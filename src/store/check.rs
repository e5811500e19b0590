//! What is wrong in a store, without changing anything, and while others write to it.
//!
//! Runs are read first, the index after them, packs last: what a run lists was in the index before, and what the index
//! names was on disk before. Where something else went meanwhile, it is looked at again before anything is called wrong.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::disk::{self, Disk};
use super::layout::{self, PackPath};
use super::packed::{self, OpenedPack};
use super::record::Record;
use super::snapshot::decode_part;
use super::{Error, Local, Problem, Run, Store, index, packfile, parts, relative, temporary};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;

const REBUILD: &str = "`plumb store rebuild-index` and encoding again mend it";
const MEND_SPEC: &str = "encoding again or `plumb store rebuild-index` mends it";
pub(super) const UNREADABLE: &str = "what it holds is not known: see to its rights or its disk, and check again; nothing is to be rebuilt for it";

/// How often a store is looked at again that changes meanwhile.
const LOOKS: usize = 8;

/// What a check found, in counts and problems.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CheckReport {
    /// Entries that the index names, each once.
    pub entries: u64,
    /// Packs on disk.
    pub packs: u64,
    /// The size of those packs' files.
    pub pack_bytes: u64,
    /// Whether every payload was compared with its digest; otherwise only headers and the index were read.
    pub read_data: bool,
    /// Entries in packs that no row names: left by an interrupted run, or their index part is gone. Harmless;
    /// `rebuild-index` brings them back, `gc` removes them.
    pub unindexed_entries: u64,
    /// Files that an interrupted write left. Harmless; `gc` removes them.
    pub temporary_files: u64,
    /// Packs that `rebuild-index` set aside because something in them is damaged. `gc` removes them.
    pub set_aside_packs: u64,
    /// Files that `rebuild-index` set aside because they are not the spec in their name. `gc` removes them.
    pub set_aside_specs: u64,
    /// What is wrong, sorted by file.
    pub problems: Vec<Problem>,
}

impl Store {
    /// Checks the store at `path`: every file's structure and what they say of each other, and with
    /// `read_data` every byte of every payload. Changes nothing. A damaged `store.json` is a problem among
    /// others. Others may write meanwhile.
    ///
    /// # Errors
    /// If there is no store, if it is of a newer format, or if folders cannot be read.
    pub fn check(
        path: &Path,
        read_data: bool,
        monitor: &dyn Monitor,
    ) -> Result<CheckReport, Error> {
        Self::check_with(path, Arc::new(Local), read_data, monitor)
    }

    /// As [`Self::check`] without reading data, of this store.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_structure(&self, monitor: &dyn Monitor) -> Result<CheckReport, Error> {
        match &self.layout.mirror {
            Some(mirror) => mirror.remote().check(false, monitor),
            None => Self::check(self.path(), false, monitor),
        }
    }

    /// As [`Self::check`], with another way to the disk.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_with(
        path: &Path,
        disk: Arc<dyn Disk>,
        read_data: bool,
        monitor: &dyn Monitor,
    ) -> Result<CheckReport, Error> {
        let store = Self::at(path, disk);
        // Packs never change: each is read once, however often the store is looked at.
        let mut packed = HashMap::new();
        for _ in 0..LOOKS {
            let mut look = Look::new(&store, read_data, &mut packed);
            look.everything(monitor)?;
            if look.report.problems.is_empty() || look.is_still_so()? {
                return Ok(look.finish());
            }
        }
        Err(Error::Busy {
            path: path.to_owned(),
            holder: "its index keeps changing".to_owned(),
        })
    }
}

/// What was seen at one look.
struct Look<'a> {
    store: &'a Store,
    report: CheckReport,
    /// What reading each pack showed, damaged ones included.
    packed: &'a mut HashMap<Digest, PackFindings>,
    runs: Vec<Run>,
    /// The index parts that could be read.
    parts: Vec<(Fingerprint, Digest)>,
    rows: Vec<Row>,
    /// The entries that the index names, by spec.
    indexed: HashMap<Fingerprint, HashSet<Fingerprint>>,
    /// Whether all of the index could be read, so that what it does not name is not there.
    is_index_known: bool,
}

/// What the index says of an entry; `part` numbers the index parts.
struct Row {
    part: usize,
    entry: Fingerprint,
    pack: Digest,
    record: Digest,
}

/// What reading one pack brought to light.
#[derive(Default)]
struct PackFindings {
    /// What it says of each entry, as the digest of the record.
    entries: HashMap<Fingerprint, Digest>,
    /// The entries whose payload is not what was written. Only those that the index names matter.
    damaged: HashMap<Fingerprint, String>,
    problems: Vec<String>,
    /// Why it could not be read; nothing else is known then.
    unreadable: Option<String>,
}

impl<'a> Look<'a> {
    fn new(
        store: &'a Store,
        read_data: bool,
        packed: &'a mut HashMap<Digest, PackFindings>,
    ) -> Self {
        Self {
            store,
            report: CheckReport {
                read_data,
                ..CheckReport::default()
            },
            packed,
            runs: Vec::new(),
            parts: Vec::new(),
            rows: Vec::new(),
            indexed: HashMap::new(),
            is_index_known: true,
        }
    }

    fn everything(&mut self, monitor: &dyn Monitor) -> Result<(), Error> {
        self.marker()?;
        self.read_runs()?;
        self.read_index(monitor)?;
        self.specs()?;
        let here = self.read_packs(monitor)?;
        self.compare_rows(&here);
        self.compare_runs();
        self.leftovers()
    }

    fn finish(mut self) -> CheckReport {
        self.report.problems.sort();
        self.report
    }

    /// Whether what was read first is still there now: then what was read after it belongs to it, as packs go last.
    fn is_still_so(&self) -> Result<bool, Error> {
        for (spec, part) in &self.parts {
            if !disk::is_there(self.store.disk(), &self.store.layout.index_part(spec, part))? {
                return Ok(false);
            }
        }
        for run in &self.runs {
            match self.store.run(&run.id) {
                Ok(now) if now.digest == run.digest => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// A file that is not as it must be, or that cannot be read.
    fn wrong(&mut self, path: &Path, e: &Error, mend: &str) {
        let mend = if e.is_content() { mend } else { UNREADABLE };
        self.problem(path, e.to_string(), mend);
    }

    fn problem(&mut self, path: &Path, what: String, mend: &str) {
        let problem = Problem::of(&self.store.layout, path, what, mend);
        self.report.problems.push(problem);
    }

    fn marker(&mut self) -> Result<(), Error> {
        let path = self.store.layout.marker();
        match layout::read_marker(&self.store.layout) {
            Ok(_) => Ok(()),
            Err(e @ Error::NewerFormat { .. }) => Err(e),
            // No packs either: then this is no store, and opening it says so in better words.
            Err(_) if !self.store.layout.packs().is_dir() => {
                Store::open_with(self.store.path(), self.store.layout.disk.clone()).map(|_| ())
            }
            Err(e) => {
                let e = match e.is_gone() {
                    true => Error::malformed(&path, "missing"),
                    false => e,
                };
                self.wrong(&path, &e, "`plumb store rebuild-index` writes it anew");
                Ok(())
            }
        }
    }

    fn read_runs(&mut self) -> Result<(), Error> {
        for id in self.store.runs()? {
            match self.store.run(&id) {
                Ok(run) => self.runs.push(run),
                // Given up while we looked.
                Err(e) if e.is_gone() => {}
                Err(e) => {
                    let mend = "gc does not work until it is mended or removed";
                    self.wrong(&self.store.layout.run(&id), &e, mend);
                }
            }
        }
        Ok(())
    }

    fn read_index(&mut self, monitor: &dyn Monitor) -> Result<(), Error> {
        let layout = &self.store.layout;
        let mut all = Vec::new();
        for spec in layout.indexed_specs()? {
            self.report.problems.extend(parts::check(layout, &spec));
            let listed = layout.index_parts(&spec)?;
            all.extend(listed.into_iter().map(|(part, _)| (spec, part)));
        }
        monitor.start("checking the index", Some(all.len() as u64));
        for (spec, part) in all {
            match decode_part(layout, &spec, &part, index::records) {
                Ok(records) => {
                    let row = |record: &Record| Row {
                        part: self.parts.len(),
                        entry: record.entry,
                        pack: record.pack,
                        record: record_digest(record),
                    };
                    self.rows.extend(records.iter().map(row));
                    self.parts.push((spec, part));
                    let indexed = self.indexed.entry(spec).or_default();
                    indexed.extend(records.iter().map(|r| r.entry));
                }
                Err(e) => {
                    // One that is gone was merged into another while we looked: seen at the next look, if it matters.
                    self.is_index_known &= e.is_content();
                    if !e.is_gone() {
                        self.wrong(&layout.index_part(&spec, &part), &e, REBUILD);
                    }
                }
            }
            monitor.advance(1);
        }
        monitor.finish();
        self.report.entries = self.indexed.values().map(|s| s.len() as u64).sum();
        Ok(())
    }

    fn specs(&mut self) -> Result<(), Error> {
        let layout = &self.store.layout;
        for (spec, _) in layout.list_specs()? {
            match layout::read_spec(layout, &spec) {
                Ok(_) => {}
                // Set aside while we looked.
                Err(e) if e.is_gone() => {}
                Err(e) => {
                    let what = e.to_string().replace(&format!("; {MEND_SPEC}"), "");
                    let mend = if e.is_content() {
                        MEND_SPEC
                    } else {
                        UNREADABLE
                    };
                    self.problem(&layout.spec(&spec), what, mend);
                }
            }
        }
        // An index folder alone is no entry: gc leaves it empty.
        let specs: HashSet<Fingerprint> = self.parts.iter().map(|(spec, _)| *spec).collect();
        for spec in specs {
            let path = layout.spec(&spec);
            if !disk::is_there(self.store.disk(), &path)? {
                let what = "missing, but there are entries of it".to_owned();
                self.problem(&path, what, MEND_SPEC);
            }
        }
        Ok(())
    }

    /// Reads the packs that were not read yet; gives those that there are now.
    fn read_packs(&mut self, monitor: &dyn Monitor) -> Result<HashSet<Digest>, Error> {
        let layout = &self.store.layout;
        let files = layout.pack_files()?;
        let here: HashSet<Digest> = files.iter().map(|(file, _)| file.pack).collect();
        self.report.packs = files.len() as u64;
        self.report.pack_bytes = files.iter().map(|(_, f)| f.bytes).sum();
        let mut unread = files;
        unread.retain(|(file, _)| !self.packed.contains_key(&file.pack));
        monitor.start(
            "checking packs",
            Some(unread.iter().map(|(_, f)| f.bytes).sum()),
        );
        let read_data = self.report.read_data;
        let findings = packfile::each(&unread, monitor, |file| {
            Ok(check_pack(self.store, file, read_data))
        })?;
        monitor.finish();
        for ((file, _), found) in unread.into_iter().zip(findings) {
            // Gone since it was listed: no row names it any more, or this is not the last look.
            if let Some(found) = found {
                self.packed.insert(file.pack, found);
            }
        }
        for pack in &here {
            let Some(found) = self.packed.get(pack) else {
                continue;
            };
            let problems = found.problems.iter().map(|what| (what, REBUILD));
            let unreadable = found.unreadable.iter().map(|what| (what, UNREADABLE));
            for (what, mend) in problems.chain(unreadable) {
                let problem = Problem::of(layout, &layout.pack(pack), what.clone(), mend);
                self.report.problems.push(problem);
            }
        }
        Ok(here)
    }

    /// Compares the rows of the index with what the packs say.
    fn compare_rows(&mut self, here: &HashSet<Digest>) {
        let mut wrong: BTreeMap<(usize, Digest, &str), u64> = BTreeMap::new();
        let mut problems = Vec::new();
        let layout = &self.store.layout;
        for row in &self.rows {
            let pack = self
                .packed
                .get(&row.pack)
                .filter(|_| here.contains(&row.pack));
            // Counted by pack and fault: a lost pack is one problem, not a thousand.
            let what = match pack.map(|p| (p, p.entries.get(&row.entry))) {
                None => "is missing",
                Some((pack, _)) if pack.unreadable.is_some() => continue,
                Some((_, None)) => "does not hold them",
                Some((_, Some(packed))) if *packed != row.record => "says otherwise of them",
                Some((pack, Some(_))) => {
                    // A damaged payload that no row names harms nobody: it is told only here.
                    if let Some(what) = pack.damaged.get(&row.entry) {
                        let path = layout.pack(&row.pack);
                        problems.push(Problem::of(layout, &path, what.clone(), REBUILD));
                    }
                    continue;
                }
            };
            *wrong.entry((row.part, row.pack, what)).or_default() += 1;
        }
        for ((part, pack, what), entries) in wrong {
            let (spec, part) = &self.parts[part];
            let pack = relative(layout, &layout.pack(&pack));
            let what = format!("names {entries} entries in {pack}, which {what}");
            let path = layout.index_part(spec, part);
            problems.push(Problem::of(layout, &path, what, REBUILD));
        }
        self.report.problems.extend(problems);
        // An entry may be in several packs; one row that names it is enough.
        let named: HashSet<&Fingerprint> = self.rows.iter().map(|row| &row.entry).collect();
        let found = self.packed.iter().filter(|(pack, _)| here.contains(*pack));
        let sound = found.flat_map(|(_, found)| {
            let entries = found.entries.keys();
            entries.filter(|e| !found.damaged.contains_key(*e))
        });
        self.report.unindexed_entries = sound.filter(|e| !named.contains(e)).count() as u64;
    }

    fn compare_runs(&mut self) {
        // Otherwise what the index does not name may well be there.
        if !self.is_index_known {
            return;
        }
        let mut problems = Vec::new();
        for run in &self.runs {
            let is_here = |(spec, entry): &(Fingerprint, Fingerprint)| {
                self.indexed
                    .get(spec)
                    .is_some_and(|all| all.contains(entry))
            };
            let missing = run.listed().filter(|both| !is_here(both)).count();
            if missing > 0 {
                let all = run.num_entries();
                problems.push((
                    run.id.clone(),
                    format!("uses {missing} entries of {all} that are not here"),
                ));
            }
        }
        for (id, what) in problems {
            let path = self.store.layout.run(&id);
            self.problem(&path, what, "encoding again adds them; or remove the file");
        }
    }

    fn leftovers(&mut self) -> Result<(), Error> {
        let layout = &self.store.layout;
        // Those of writers at work are no leftovers.
        let is_left = |path: &PathBuf| {
            !temporary::is_held(path) || temporary::is_abandoned(self.store.disk(), path)
        };
        let files = layout.temporary_files()?;
        let left = files.iter().filter(|(path, _)| is_left(path)).count();
        self.report.temporary_files = left as u64;
        self.report.set_aside_packs = layout.set_aside_files()?.len() as u64;
        self.report.set_aside_specs = layout.list_specs_set_aside()?.len() as u64;
        Ok(())
    }
}

/// What one pack shows; `None` if it is gone.
fn check_pack(store: &Store, file: &PackPath, read_data: bool) -> Option<PackFindings> {
    let mut findings = PackFindings::default();
    let read = match read_data {
        true => packfile::read_whole(&store.layout, file),
        false => packfile::read_header(&store.layout, file),
    };
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(e) if e.is_gone() => return None,
        Err(e) if e.is_content() => {
            findings.problems.push(e.to_string());
            return Some(findings);
        }
        Err(e) => {
            findings.unreadable = Some(e.to_string());
            return Some(findings);
        }
    };
    match packed::read_pack(&file.path, &file.pack, &bytes) {
        Ok(opened) => {
            if read_data {
                read_payloads(&file.pack, &bytes, &opened, &mut findings);
            }
            findings.problems.extend(opened.faults);
            let digests = opened
                .entries
                .iter()
                .map(|e| (e.record.entry, record_digest(&e.record)));
            findings.entries = digests.collect();
        }
        Err(e) => findings.problems.push(e.to_string()),
    }
    Some(findings)
}

fn read_payloads(pack: &Digest, bytes: &[u8], opened: &OpenedPack, findings: &mut PackFindings) {
    for packed in &opened.entries {
        if let Err(why) = packed.payloads(bytes) {
            let record = &packed.record;
            let source = crate::shown::text(&record.source);
            let what = format!("entry {} (\"{source}\"): {why}", record.entry);
            findings.damaged.insert(record.entry, what);
        }
    }
    let found = Digest::of(bytes);
    // A damaged payload changes the file's digest as well: that would be told twice.
    if found != *pack && findings.damaged.is_empty() {
        findings.problems.push(format!(
            "expected content with the digest in the name, found {}; all payloads are sound",
            found.short()
        ));
    }
}

/// Stands for a record where only equality matters, in 32 bytes instead of a caption and its tokens.
fn record_digest(record: &Record) -> Digest {
    // A record has no map and no NaN, so it always has a JSON form; were it not so, both sides are alike.
    Digest::of(&serde_json::to_vec(record).unwrap_or_default())
}

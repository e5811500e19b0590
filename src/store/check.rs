//! What is wrong in a store, without changing anything.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::{IntoParallelRefIterator as _, ParallelIterator as _};
use serde::Serialize;

use super::disk::{self, TEMP_PREFIX};
use super::layout::{self, Layout, SET_ASIDE};
use super::packed::{self, OpenedPack};
use super::record::Record;
use super::snapshot::decode_part;
use super::{Error, Local, Problem, Store, index, relative};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;

const REBUILD: &str = "`plumb store rebuild-index` and encoding again mend it";

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
    /// What is wrong, sorted by file.
    pub problems: Vec<Problem>,
}

impl Store {
    /// Checks the store at `path`: every file's structure and what they say of each other, and with
    /// `read_data` every byte of every payload. Changes nothing. A damaged `store.json` is a problem among
    /// others.
    ///
    /// # Errors
    /// If there is no store, if it is of a newer format, or if folders cannot be read.
    pub fn check(
        path: &Path,
        read_data: bool,
        monitor: &dyn Monitor,
    ) -> Result<CheckReport, Error> {
        let mut checker = Checker {
            layout: Layout {
                root: path.to_owned(),
            },
            report: CheckReport {
                read_data,
                ..CheckReport::default()
            },
            packed: HashMap::new(),
            indexed: HashMap::new(),
        };
        checker.marker()?;
        checker.specs()?;
        checker.packs(monitor)?;
        checker.index(monitor)?;
        checker.runs()?;
        checker.leftovers()?;
        // Packs are checked in parallel; the report is the same every time.
        checker.report.problems.sort();
        Ok(checker.report)
    }
}

struct Checker {
    layout: Layout,
    report: CheckReport,
    /// What reading each pack showed, damaged ones included.
    packed: HashMap<Digest, PackFindings>,
    /// The entries that the index names, by spec.
    indexed: HashMap<Fingerprint, HashSet<Fingerprint>>,
}

/// What reading one pack brought to light.
#[derive(Default)]
struct PackFindings {
    /// What it says of each entry, as the digest of the record.
    entries: HashMap<Fingerprint, Digest>,
    /// The entries whose payload is not what was written. Only those that the index names matter.
    damaged: HashMap<Fingerprint, String>,
    problems: Vec<String>,
}

impl Checker {
    fn problem(&mut self, path: &Path, what: String, mend: &str) {
        let prefix = format!("{}: ", path.display());
        self.report.problems.push(Problem {
            file: relative(&self.layout, path),
            what: what.strip_prefix(&prefix).unwrap_or(&what).to_owned(),
            mend: mend.to_owned(),
        });
    }

    fn marker(&mut self) -> Result<(), Error> {
        let path = self.layout.marker();
        match layout::read_marker(&path) {
            Ok(_) => Ok(()),
            Err(e @ Error::NewerFormat { .. }) => Err(e),
            // No packs either: then this is no store, and opening it says so in better words.
            Err(_) if !self.layout.packs().is_dir() => {
                Store::open_with(&self.layout.root, Arc::new(Local)).map(|_| ())
            }
            Err(e) => {
                let what = if e.is_gone() {
                    "missing".to_owned()
                } else {
                    e.to_string()
                };
                self.problem(&path, what, "`plumb store rebuild-index` writes it anew");
                Ok(())
            }
        }
    }

    fn specs(&mut self) -> Result<(), Error> {
        let mend = "encoding again or `plumb store rebuild-index` writes it anew";
        for file in disk::list(&self.layout.specs())? {
            // Files that are not ours are passed over, as readers pass over them.
            let Some(spec) = file.name.strip_suffix(".json").and_then(|n| n.parse().ok()) else {
                continue;
            };
            let path = self.layout.spec(&spec);
            if let Err(e) = layout::read_spec(&path, &spec) {
                let what = e.to_string();
                self.problem(&path, what.replace(&format!("; {mend}"), ""), mend);
            }
        }
        for spec in self.layout.indexed_specs()? {
            let path = self.layout.spec(&spec);
            // An index folder alone is no entry: gc leaves it empty.
            if !path.exists() && !self.layout.index_parts(&spec)?.is_empty() {
                self.problem(
                    &path,
                    "missing, but there are entries of it".to_owned(),
                    mend,
                );
            }
        }
        Ok(())
    }

    fn packs(&mut self, monitor: &dyn Monitor) -> Result<(), Error> {
        let packs = self.layout.list_packs()?;
        self.report.packs = packs.len() as u64;
        self.report.pack_bytes = packs.iter().map(|(_, f)| f.bytes).sum();
        monitor.start("checking packs", Some(packs.len() as u64));
        let read_data = self.report.read_data;
        let findings: Vec<(Digest, PackFindings)> = packs
            .par_iter()
            .map(|(pack, _)| {
                let findings = check_pack(&self.layout, pack, read_data);
                monitor.advance(1);
                (*pack, findings)
            })
            .collect();
        monitor.finish();
        for (pack, mut found) in findings {
            let path = self.layout.pack(&pack);
            for what in found.problems.drain(..) {
                self.problem(&path, what, REBUILD);
            }
            self.packed.insert(pack, found);
        }
        Ok(())
    }

    fn index(&mut self, monitor: &dyn Monitor) -> Result<(), Error> {
        let mut parts = Vec::new();
        for spec in self.layout.indexed_specs()? {
            let listed = self.layout.index_parts(&spec)?;
            parts.extend(listed.into_iter().map(|(part, _)| (spec, part)));
        }
        monitor.start("checking the index", Some(parts.len() as u64));
        for (spec, part) in parts {
            let path = self.layout.index_part(&spec, &part);
            match decode_part(&self.layout, &spec, &part, index::records) {
                Ok(records) => self.rows(&path, spec, &records),
                // Merged into another while we looked.
                Err(e) if e.is_gone() => {}
                Err(e) => self.problem(&path, e.to_string(), REBUILD),
            }
            monitor.advance(1);
        }
        monitor.finish();
        self.report.entries = self.indexed.values().map(|s| s.len() as u64).sum();
        // An entry may be in several packs; one row that names it is enough.
        let named = |entry: &&Fingerprint| self.indexed.values().any(|all| all.contains(*entry));
        let sound = |found: &PackFindings| -> Vec<Fingerprint> {
            let entries = found
                .entries
                .keys()
                .filter(|e| !found.damaged.contains_key(*e));
            entries.copied().collect()
        };
        let packed = self.packed.values().flat_map(sound);
        self.report.unindexed_entries = packed.filter(|e| !named(&e)).count() as u64;
        Ok(())
    }

    /// Compares the rows of an index part with what the packs say.
    fn rows(&mut self, path: &Path, spec: Fingerprint, records: &[Record]) {
        let mut wrong: BTreeMap<(Digest, &str), u64> = BTreeMap::new();
        let mut damaged = Vec::new();
        for record in records {
            self.indexed.entry(spec).or_default().insert(record.entry);
            let pack = self.packed.get(&record.pack);
            // Counted by pack and fault: a lost pack is one problem, not a thousand.
            let what = match pack.map(|p| p.entries.get(&record.entry)) {
                None => "is missing",
                Some(None) => "does not hold them",
                Some(Some(packed)) if *packed != record_digest(record) => "says otherwise of them",
                Some(Some(_)) => {
                    // A damaged payload that no row names harms nobody: it is told only here.
                    damaged.extend(
                        pack.and_then(|p| p.damaged.get(&record.entry))
                            .map(|why| (record, why.clone())),
                    );
                    continue;
                }
            };
            *wrong.entry((record.pack, what)).or_default() += 1;
        }
        for (record, why) in damaged {
            let what = format!("entry {} ({:?}): {why}", record.entry, record.source);
            let path = self.layout.pack(&record.pack);
            self.problem(&path, what, REBUILD);
        }
        for ((pack, what), entries) in wrong {
            let pack = relative(&self.layout, &self.layout.pack(&pack));
            self.problem(
                path,
                format!("names {entries} entries in {pack}, which {what}"),
                REBUILD,
            );
        }
    }

    fn runs(&mut self) -> Result<(), Error> {
        let store = Store {
            layout: self.layout.clone(),
            disk: Arc::new(Local),
        };
        for id in store.runs()? {
            let path = self.layout.run(&id);
            match store.run(&id) {
                Ok(run) => {
                    let is_here = |spec, entry| {
                        self.indexed
                            .get(spec)
                            .is_some_and(|all| all.contains(entry))
                    };
                    let listed = run
                        .entries
                        .iter()
                        .flat_map(|(spec, list)| list.iter().map(move |e| (spec, e)));
                    let missing = listed.filter(|&(spec, e)| !is_here(spec, e)).count();
                    if missing > 0 {
                        let what = format!(
                            "uses {missing} entries of {} that are not here",
                            run.num_entries()
                        );
                        self.problem(&path, what, "encoding again adds them; or remove the file");
                    }
                }
                Err(e) => self.problem(
                    &path,
                    e.to_string(),
                    "gc does not work until it is mended or removed",
                ),
            }
        }
        Ok(())
    }

    fn leftovers(&mut self) -> Result<(), Error> {
        for folder in self.layout.folders()? {
            let files = disk::list(&folder)?;
            let count = |is: fn(&str) -> bool| files.iter().filter(|f| is(&f.name)).count() as u64;
            self.report.temporary_files += count(|name| name.starts_with(TEMP_PREFIX));
            self.report.set_aside_packs += count(|name| name.ends_with(SET_ASIDE));
        }
        Ok(())
    }
}

fn check_pack(layout: &Layout, pack: &Digest, read_data: bool) -> PackFindings {
    let mut findings = PackFindings::default();
    match open_pack(layout, pack) {
        Ok((map, opened)) => {
            if read_data {
                read_payloads(pack, &map, &opened, &mut findings);
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
    findings
}

pub(super) fn open_pack(
    layout: &Layout,
    pack: &Digest,
) -> Result<(memmap2::Mmap, OpenedPack), Error> {
    let path = layout.pack(pack);
    let map = packed::map_file(&path)?;
    let opened = packed::read_pack(&path, pack, &map)?;
    Ok((map, opened))
}

fn read_payloads(pack: &Digest, map: &[u8], opened: &OpenedPack, findings: &mut PackFindings) {
    for packed in &opened.entries {
        if let Err(why) = packed.payloads(map) {
            findings.damaged.insert(packed.record.entry, why);
        }
    }
    let found = Digest::of(map);
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

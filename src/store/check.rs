//! What is wrong in a store, without changing anything, and while others write to it.
//!
//! Runs are read first, the index after them, packs last: what a run lists was in the index before, and what the index
//! names was on disk before. Where something else went meanwhile, it is looked at again before anything is called wrong.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;

use super::by_pack::ByPack;
use super::check_pack::PackFindings;
use super::disk::{self, Disk};
use super::layout;
use super::run::RUN_LIMIT_BYTES;
use super::run_lists::RunLists;
use super::sweep::SpecParts;
use super::{Error, Local, Problem, Scratch, Store, parts, temporary};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;

pub(super) const REBUILD: &str = "`plumb store rebuild-index` and encoding again mend it";
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
            Some(mirror) => {
                let scratch = Scratch::with(self.path(), self.layout.disk.clone());
                mirror.remote().check(&scratch, false, monitor)
            }
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
        // Packs never change: each is read once, however often the store is looked at, as long as what it showed has room.
        let mut packed = Packed::default();
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

/// What reading packs showed, damaged ones included.
#[derive(Default)]
pub(super) struct Packed {
    pub(super) findings: HashMap<Digest, PackFindings>,
    pub(super) entries: usize,
}

/// What was seen at one look.
pub(super) struct Look<'a> {
    pub(super) store: &'a Store,
    pub(super) report: CheckReport,
    pub(super) packed: &'a mut Packed,
    pub(super) runs: Vec<RunLists>,
    pub(super) index: Vec<SpecParts>,
    /// What it says of packs.
    pub(super) by_pack: Rc<ByPack<'a>>,
    /// Whether all of the index could be read, so that what it does not name is not there.
    pub(super) is_index_known: bool,
    /// By index part, pack and fault: how many entries.
    pub(super) wrong: BTreeMap<(u32, Digest, &'static str), u64>,
    /// Entries of packs that no row of their pack names; one of another pack may.
    pub(super) unnamed: Vec<Fingerprint>,
}

impl<'a> Look<'a> {
    fn new(store: &'a Store, read_data: bool, packed: &'a mut Packed) -> Self {
        Self {
            store,
            report: CheckReport {
                read_data,
                ..CheckReport::default()
            },
            packed,
            runs: Vec::new(),
            index: Vec::new(),
            by_pack: Rc::new(ByPack::new(&store.layout, &|_| true)),
            is_index_known: true,
            wrong: BTreeMap::new(),
            unnamed: Vec::new(),
        }
    }

    fn everything(&mut self, monitor: &dyn Monitor) -> Result<(), Error> {
        self.marker()?;
        self.read_runs()?;
        self.read_index(monitor)?;
        self.specs()?;
        self.read_packs(monitor)?;
        self.tell_wrong();
        self.compare_runs()?;
        self.leftovers()
    }

    pub(super) fn rows_in_memory(&self) -> usize {
        self.store.disk().rows_in_memory()
    }

    fn finish(mut self) -> CheckReport {
        self.report.problems.sort();
        self.report
    }

    /// Whether what was read first is still there now: then what was read after it belongs to it, as packs go last.
    fn is_still_so(&self) -> Result<bool, Error> {
        for (spec, part) in &self.by_pack.parts {
            if !disk::is_there(self.store.disk(), &self.store.layout.index_part(spec, part))? {
                return Ok(false);
            }
        }
        for run in &self.runs {
            let path = self.store.layout.run(&run.id);
            let now = disk::read_bounded(self.store.disk(), &path, RUN_LIMIT_BYTES);
            if !now.is_ok_and(|bytes| Digest::of(&bytes) == run.digest) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A file that is not as it must be, or that cannot be read.
    pub(super) fn wrong(&mut self, path: &Path, e: &Error, mend: &str) {
        let mend = if e.is_content() { mend } else { UNREADABLE };
        self.problem(path, e.to_string(), mend);
    }

    pub(super) fn problem(&mut self, path: &Path, what: String, mend: &str) {
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
            match self.store.run_lists(&id) {
                Ok((_, lists)) => self.runs.push(lists),
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
        for spec in layout.indexed_specs()? {
            self.report.problems.extend(parts::check(layout, &spec));
            self.index.push(SpecParts::list(layout, spec)?);
        }
        let all = self.index.iter();
        let all = all.flat_map(|of| of.parts.iter().map(|(part, ..)| (of.spec, *part)));
        let all: Vec<(Fingerprint, Digest)> = all.collect();
        monitor.start("checking the index", Some(all.len() as u64));
        let mut by_pack = ByPack::new(layout, &|_| true);
        for (spec, part) in all {
            if let Err(e) = by_pack.read(&spec, &part) {
                // One that is gone was merged into another while we looked: seen at the next look, if it matters.
                self.is_index_known &= e.is_content();
                if !e.is_gone() {
                    self.wrong(&layout.index_part(&spec, &part), &e, REBUILD);
                }
            }
            monitor.advance(1);
        }
        by_pack.seal();
        self.by_pack = Rc::new(by_pack);
        monitor.finish();
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
        let parts = self.by_pack.parts.iter();
        let specs: HashSet<Fingerprint> = parts.map(|(spec, _)| *spec).collect();
        for spec in specs {
            let path = layout.spec(&spec);
            if !disk::is_there(self.store.disk(), &path)? {
                let what = "missing, but there are entries of it".to_owned();
                self.problem(&path, what, MEND_SPEC);
            }
        }
        Ok(())
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

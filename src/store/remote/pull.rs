//! `plumb store pull`: a copy of a store on object storage as a folder.

use std::collections::HashSet;

use serde::Serialize;

use super::lists::IndexThere;
use super::mirror::{write_pack, write_part};
use super::names::Contents;
use super::{Remote, as_named, each, problem_of};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;
use crate::shown;
use crate::store::snapshot::decode_bytes;
use crate::store::writer::write_index_part;
use crate::store::{Error, Lacking, Problem, Store, disk, index, lock, parts, specs};

/// What was copied from a store on object storage.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PullReport {
    /// Packs that came.
    pub packs: u64,
    /// The size of their objects.
    pub bytes: u64,
    /// Packs that were there already.
    pub packs_here: u64,
    /// Index parts that came.
    pub index_parts: u64,
    /// Runs that came.
    pub runs: u64,
    /// What could not be copied, and why.
    pub problems: Vec<Problem>,
}

const MEND: &str =
    "left out; encoding again, or pushing it again from where it is sound, replaces it";

impl Remote {
    /// Copies into `store` what it lacks. Packs come first, then the index parts that name them, then runs.
    ///
    /// # Errors
    /// If something cannot be read or written. What came before stays, and another pull goes on from there.
    pub fn pull(&self, store: &Store, monitor: &dyn Monitor) -> Result<PullReport, Error> {
        let layout = &store.layout;
        let _lock = lock::shared(layout)?;
        let contents = self.contents_of_store()?;
        let mut report = PullReport::default();
        for spec in contents.specs.keys() {
            match self.spec(spec) {
                Ok(json) => _ = specs::write(store, spec, &json)?,
                Err(e) => self.note(e, &mut report)?,
            }
        }
        let mut here: HashSet<Digest> = layout.list_packs()?.into_iter().map(|(p, _)| p).collect();
        let all = contents.packs.iter();
        let missing: Vec<_> = all.filter(|(pack, _)| !here.contains(pack)).collect();
        report.packs_here = (contents.packs.len() - missing.len()) as u64;
        let bytes = missing.iter().map(|(_, found)| found.object.bytes).sum();
        monitor.start(
            &format!("pulling packs from {}", self.address()),
            Some(bytes),
        );
        let pulled = each(&missing, |(pack, found)| {
            let pulled = match self.pack(pack, **found) {
                Ok(bytes) => {
                    write_pack(layout, pack, &bytes)?;
                    None
                }
                Err(e) => Some(e),
            };
            monitor.advance(found.object.bytes);
            Ok(pulled)
        });
        monitor.finish();
        for ((pack, found), failed) in missing.into_iter().zip(pulled?) {
            match failed {
                None => {
                    here.insert(*pack);
                    report.packs += 1;
                    report.bytes += found.object.bytes;
                }
                Some(e) => self.note(e, &mut report)?,
            }
        }
        self.pull_index(store, &contents, &here, &mut report)?;
        self.pull_runs(store, contents.runs.keys(), &mut report)?;
        Ok(report)
    }

    /// Copies the index parts that are to be read, and what they were merged from where one of them cannot be.
    fn pull_index(
        &self,
        store: &Store,
        contents: &Contents,
        here: &HashSet<Digest>,
        report: &mut PullReport,
    ) -> Result<(), Error> {
        let layout = &store.layout;
        let mut index = self.index_there(contents, &mut report.problems)?;
        let (mut tried, mut bad) = (HashSet::new(), HashSet::new());
        let mut came = Vec::new();
        loop {
            let bad_before = bad.len();
            for named @ (spec, part) in index.live.keys().copied() {
                let path = layout.index_part(&spec, &part);
                if !tried.insert(named) || disk::is_there(store.disk(), &path)? {
                    continue;
                }
                match self.part(&spec, &part) {
                    Ok(bytes) => {
                        self.pull_part(store, (&spec, &part), &bytes, here, report)?;
                        came.push(named);
                    }
                    Err(e) => {
                        bad.insert(named);
                        self.note(e, report)?;
                    }
                }
            }
            if bad.len() == bad_before {
                break;
            }
            index = IndexThere::new(contents, index.lists, &bad);
        }
        parts::know(layout, came.into_iter())
    }

    /// Writes an index part, without the rows whose packs are not here.
    fn pull_part(
        &self,
        store: &Store,
        (spec, part): (&Fingerprint, &Digest),
        bytes: &bytes::Bytes,
        here: &HashSet<Digest>,
        report: &mut PullReport,
    ) -> Result<(), Error> {
        let name = self.shown(&super::names::part(spec, part));
        let records = decode_bytes(name.as_ref(), spec, bytes.clone(), index::records);
        let records = match records {
            Ok(records) => records,
            Err(e) => return self.note(e, report),
        };
        let total = records.len();
        let kept: Vec<_> = records
            .into_iter()
            .filter(|r| here.contains(&r.pack))
            .collect();
        if kept.len() == total {
            write_part(&store.layout, spec, part, bytes)?;
        } else {
            let what = format!(
                "names {} in packs that are not there",
                shown::counted(total - kept.len(), "entry")
            );
            report.problems.push(Problem {
                file: name,
                what,
                mend: MEND.to_owned(),
            });
            if !kept.is_empty() {
                write_index_part(store, spec, &kept)?;
            }
        }
        report.index_parts += 1;
        Ok(())
    }

    fn pull_runs<'a>(
        &self,
        store: &Store,
        runs: impl Iterator<Item = &'a String>,
        report: &mut PullReport,
    ) -> Result<(), Error> {
        let here = store.runs()?;
        for id in runs.filter(|id| !here.contains(id)) {
            match self.run(id) {
                Ok(run) => {
                    let listed: Vec<_> = run.listed().collect();
                    store.write_run(id, &listed, run.extra, Lacking::LeaveOut)?;
                    report.runs += 1;
                }
                Err(e) => self.note(e, report)?,
            }
        }
        Ok(())
    }

    /// Takes note of content that is not what it must be, or that is gone since it was listed; else it is an error.
    fn note(&self, e: Error, report: &mut PullReport) -> Result<(), Error> {
        report.problems.extend(problem_of(e, as_named, MEND)?);
        Ok(())
    }
}

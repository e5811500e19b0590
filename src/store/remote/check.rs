//! `plumb store check` of a store on object storage: what it has is read and compared, nothing is changed there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::lists::{self, IndexThere, Named};
use super::mirror::MEND;
use super::names::{self, Contents, RemotePack};
use super::scratch::{IndexHere, Scratch};
use super::{Remote, each};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;
use crate::shown;
use crate::store::by_pack::{ByPack, Row};
use crate::store::check_pack::record_digest;
use crate::store::record::Record;
use crate::store::run_lists::num_missing;
use crate::store::{CheckReport, Error, Problem, index, packed};

const UNREADABLE: &str = "what it holds is not known: check again when it can be read";

struct Check<'a> {
    remote: &'a Remote,
    contents: Contents,
    there: IndexThere,
    here: IndexHere<'a>,
    report: CheckReport,
    /// The specs of which the index names entries.
    named: BTreeSet<Fingerprint>,
}

/// Of packs, how many entries an index part names that are lost there, and how.
type Lost = HashMap<Digest, (u64, &'static str)>;

impl Remote {
    /// Looks for damage: whether what is named is there, and every index part, spec and run is what its name says; with `read_data`
    /// also every pack, and whether it says of its entries what the index says. Changes nothing there; the index and the runs are in `scratch`
    /// meanwhile.
    ///
    /// # Errors
    /// If there is no store, or it cannot be listed, or this machine's disk cannot be written.
    pub fn check(
        &self,
        scratch: &Scratch,
        read_data: bool,
        monitor: &dyn Monitor,
    ) -> Result<CheckReport, Error> {
        // Runs before the index before packs, as in a folder: one list has all of them as they were at about one time, and what is
        // gone since is looked for again.
        let contents = self.contents_of_store()?;
        let mut problems = Vec::new();
        let mut check = Check {
            remote: self,
            there: self.index_there(&contents, &mut problems)?,
            here: IndexHere::new(self, scratch)?,
            contents,
            report: CheckReport {
                read_data,
                problems,
                ..CheckReport::default()
            },
            named: BTreeSet::new(),
        };
        check.bring_runs()?;
        check.bring_index(monitor)?;
        check.compare()?;
        check.packs(monitor)?;
        check.specs()?;
        check.report.problems.sort();
        Ok(check.report)
    }
}

impl Check<'_> {
    fn problem(&mut self, name: String, what: String, mend: &str) {
        self.report.problems.push(Problem {
            file: name,
            what,
            mend: mend.to_owned(),
        });
    }

    fn wrong(&mut self, name: String, e: Error) {
        match e {
            Error::Malformed { why, .. } => self.problem(name, why, MEND),
            e => self.problem(name, e.to_string(), UNREADABLE),
        }
    }

    fn bring_runs(&mut self) -> Result<(), Error> {
        let ids: Vec<String> = self.contents.runs.keys().cloned().collect();
        for id in ids {
            match self.here.bring_run(&id)? {
                Ok(()) => {}
                Err(e) if e.is_gone() => {}
                Err(e) => self.wrong(names::run(&id), e),
            }
        }
        Ok(())
    }

    /// Brings all index parts, and tells what they name that is not there.
    fn bring_index(&mut self, monitor: &dyn Monitor) -> Result<(), Error> {
        let all: Vec<Named> = self.contents.parts.keys().copied().collect();
        monitor.start("checking the index", Some(all.len() as u64));
        let (here, packs) = (&self.here, &self.contents.packs);
        let brought = each(&all, |named| {
            let brought = here.bring(named, |rows| {
                let mut lost = Lost::new();
                index::each_record(rows, &mut |_, row| {
                    if let Some(what) = fault(packs, &row) {
                        lost.entry(row.pack).or_insert((0, what)).0 += 1;
                    }
                    Ok(())
                })?;
                Ok(lost)
            });
            monitor.advance(1);
            brought
        })?;
        for (named, brought) in all.into_iter().zip(brought) {
            let name = names::part(&named.0, &named.1);
            match brought {
                Ok(lost) if self.there.live.contains_key(&named) => self.tell_lost(&name, lost),
                Ok(_) => {}
                // Merged into another since it was listed.
                Err(e) if e.is_gone() => {}
                Err(e) => self.wrong(name, e),
            }
        }
        monitor.finish();
        self.here.open(&self.there)
    }

    fn tell_lost(&mut self, name: &str, lost: Lost) {
        for (pack, (entries, what)) in lost {
            let pack = names::pack(&pack, false);
            let what = format!(
                "names {} in {pack}, which {what}",
                shown::counted(entries, "entry")
            );
            let mend = "push it again from where it is, or encode again";
            self.problem(name.to_owned(), what, mend);
        }
    }

    /// Compares what runs use and what was merged with the rows that are read, a range of them at a time.
    fn compare(&mut self) -> Result<(), Error> {
        let here = &mut self.here;
        let mut missing = vec![0; here.runs.len()];
        // Whose row groups have what they say that they have not.
        let mut bad: BTreeMap<Named, Error> = BTreeMap::new();
        for range in here.ranges() {
            let mut indexed: BTreeMap<Fingerprint, Vec<Fingerprint>> = BTreeMap::new();
            for number in 0..here.specs.len() {
                let rows = here.rows(number, range, &mut |part, e| match e.is_content() {
                    true => Ok(_ = bad.entry(part).or_insert(e)),
                    false => Err(e),
                })?;
                let of_spec = &mut here.specs[number];
                of_spec.compare_merged(&rows);
                let live = rows.iter().filter(|row| of_spec.is_live(row));
                let mut entries: Vec<Fingerprint> = live.map(|row| row.entry).collect();
                entries.dedup();
                self.report.entries += entries.len() as u64;
                indexed.insert(of_spec.index.spec, entries);
            }
            let named = indexed.iter().filter(|(_, entries)| !entries.is_empty());
            self.named.extend(named.map(|(spec, _)| *spec));
            for (run, missing) in here.runs.iter().zip(&mut missing) {
                *missing += num_missing(&here.store.run_within(run, range)?, &indexed);
            }
        }
        for ((spec, part), e) in bad {
            self.wrong(names::part(&spec, &part), e);
        }
        self.tell_alone();
        self.tell_missing(&missing);
        Ok(())
    }

    fn tell_alone(&mut self) {
        let all: Vec<(Named, u64)> = self.here.specs.iter().flat_map(|of| of.merged()).collect();
        for (part, alone) in all.into_iter().filter(|(_, alone)| *alone > 0) {
            if let Some(merged) = self.there.merged.get(&part) {
                let list = names::part_list(&part.0, &merged.list);
                let name = names::part(&part.0, &part.1);
                let what = format!(
                    "says that {name} was merged, of which {alone} entries are in no other"
                );
                self.problem(list, what, lists::MEND);
            }
        }
    }

    fn tell_missing(&mut self, missing: &[u64]) {
        let runs = std::mem::take(&mut self.here.runs);
        for (run, missing) in runs.into_iter().zip(missing) {
            if *missing > 0 {
                let what = format!(
                    "lacks {} that it uses",
                    shown::part_of(missing, run.num_entries, "entry")
                );
                let mend = "encode and push again, or remove the object";
                self.problem(names::run(&run.id), what, mend);
            }
        }
    }

    fn packs(&mut self, monitor: &dyn Monitor) -> Result<(), Error> {
        let main = self.contents.packs.iter();
        let packs: Vec<_> = main
            .chain(&self.contents.copies)
            .map(|(id, p)| (*id, *p))
            .collect();
        self.report.packs = self.contents.packs.len() as u64;
        self.report.pack_bytes = packs.iter().map(|(_, p)| p.object.bytes).sum();
        if !self.report.read_data {
            return Ok(());
        }
        let there = &self.contents.packs;
        // Of those that are lost it was told.
        let counts = |row: &Record| fault(there, row).is_none();
        let mut by_pack = ByPack::new(&self.here.store.layout, &counts);
        for of_spec in &self.here.specs {
            let spec = &of_spec.index.spec;
            of_spec
                .live()
                .try_for_each(|part| by_pack.read(spec, part))?;
        }
        by_pack.seal();
        monitor.start("checking packs", Some(self.report.pack_bytes));
        let mut wrong = Vec::new();
        for lot in by_pack.lots(packs.into_iter()) {
            let mut failed = Ok(());
            let rows = by_pack.rows_of(&lot, |_, e| failed = Err(e));
            failed?;
            let found = each(&lot, |(id, pack)| {
                let found = self
                    .remote
                    .compare_pack(id, *pack, by_pack.of_pack(&rows, id));
                monitor.advance(pack.object.bytes);
                Ok(found)
            })?;
            for ((id, pack), found) in lot.iter().zip(found) {
                match found {
                    Ok((unlike, unindexed)) => {
                        self.report.unindexed_entries += unindexed;
                        if unlike > 0 {
                            wrong.push((names::pack(id, pack.is_shared), Ok(unlike)));
                        }
                    }
                    Err(e) if e.is_gone() => {}
                    Err(e) => wrong.push((names::pack(id, pack.is_shared), Err(e))),
                }
            }
        }
        monitor.finish();
        for (name, wrong) in wrong {
            match wrong {
                Ok(unlike) => {
                    let unlike = shown::counted(unlike, "entry");
                    let what = format!("says otherwise of {unlike} than the index");
                    self.problem(name, what, MEND);
                }
                Err(e) => self.wrong(name, e),
            }
        }
        Ok(())
    }

    fn specs(&mut self) -> Result<(), Error> {
        let specs: Vec<_> = self.contents.specs.keys().copied().collect();
        let read = each(&specs, |spec| Ok(self.remote.spec(spec).err()))?;
        for (spec, e) in specs.into_iter().zip(read) {
            if let Some(e) = e {
                self.wrong(names::spec(&spec), e);
            }
        }
        for spec in std::mem::take(&mut self.named) {
            if !self.contents.specs.contains_key(&spec) {
                let what = "missing, but there are entries of it".to_owned();
                self.problem(names::spec(&spec), what, "encode or push again");
            }
        }
        Ok(())
    }
}

impl Remote {
    /// Reads a pack; gives of how many of its `rows` it says otherwise, and how many entries it has that none of them names. Of one with the first
    /// nothing is said of the second.
    fn compare_pack(
        &self,
        id: &Digest,
        pack: RemotePack,
        rows: &[Row],
    ) -> Result<(u64, u64), Error> {
        let name = names::pack(id, pack.is_shared);
        let bytes = self.pack(id, pack)?;
        let opened = packed::read_pack(name.as_ref(), id, &bytes)?;
        let entries = opened.entries.iter().map(|e| (e.record.entry, e));
        let entries: HashMap<_, _> = entries.collect();
        let unlike = rows.iter().filter(|row| {
            let packed = entries.get(&row.entry);
            packed.is_none_or(|e| {
                record_digest(&e.record) != row.record || e.payloads(&bytes).is_err()
            })
        });
        Ok(match unlike.count() as u64 {
            0 => (0, opened.entries.len().saturating_sub(rows.len()) as u64),
            unlike => (unlike, 0),
        })
    }
}

/// What is wrong with the pack that a row names, as far as its size tells.
fn fault(packs: &BTreeMap<Digest, RemotePack>, row: &Record) -> Option<&'static str> {
    let ends = row.parts.iter();
    let end = ends.map(|p| p.offset.saturating_add(p.length)).max();
    match packs.get(&row.pack) {
        None => Some("is missing"),
        Some(pack) if !pack.is_shared && end.unwrap_or(0) > pack.object.bytes => {
            Some("is too short for them")
        }
        Some(_) => None,
    }
}

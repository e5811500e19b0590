//! `plumb store check` of a store on object storage: what it has is read and compared, nothing is changed.

use std::collections::{HashMap, HashSet};

use super::lists::{self, IndexThere, Named, Place};
use super::mirror::MEND;
use super::names::{self, Contents};
use super::{Remote, each};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;
use crate::shown;
use crate::store::index::Rows;
use crate::store::record::Record;
use crate::store::snapshot::decode_bytes;
use crate::store::{CheckReport, Error, Problem, index, packed};

const UNREADABLE: &str = "what it holds is not known: check again when it can be read";

struct Check<'a> {
    remote: &'a Remote,
    contents: Contents,
    there: IndexThere,
    report: CheckReport,
    rows: HashMap<Digest, Vec<Record>>,
    indexed: HashSet<(Fingerprint, Fingerprint)>,
}

impl Remote {
    /// Looks for damage: whether what is named is there, and every index part, spec and run is what its name says; with `read_data`
    /// also every pack, and whether it says of its entries what the index says.
    ///
    /// # Errors
    /// If there is no store, or it cannot be listed.
    pub fn check(&self, read_data: bool, monitor: &dyn Monitor) -> Result<CheckReport, Error> {
        // Runs before the index before packs, as in a folder: one list has all of them as they were at about one time, and what is
        // gone since is looked for again.
        let contents = self.contents_of_store()?;
        let mut problems = Vec::new();
        let mut check = Check {
            remote: self,
            there: self.index_there(&contents, &mut problems)?,
            contents,
            report: CheckReport {
                read_data,
                problems,
                ..CheckReport::default()
            },
            rows: HashMap::new(),
            indexed: HashSet::new(),
        };
        check.index(monitor)?;
        check.packs(monitor)?;
        check.specs()?;
        check.runs()?;
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

    fn index(&mut self, monitor: &dyn Monitor) -> Result<(), Error> {
        let (live, merged): (Vec<Named>, Vec<Named>) =
            (self.contents.parts.keys().copied()).partition(|p| self.there.live.contains_key(p));
        let all = live.len() + merged.len();
        monitor.start("checking the index", Some(all as u64));
        let read = self.read_parts(&live, index::records, monitor)?;
        let mut places: HashSet<Place> = HashSet::new();
        for (part, rows) in live.into_iter().zip(read) {
            let Some(rows) = self.sound(part, rows) else {
                continue;
            };
            if !merged.is_empty() {
                places.extend(rows.iter().map(|row| (part.0, row.entry, row.pack)));
            }
            self.take_rows(part.0, names::part(&part.0, &part.1), rows);
        }
        self.report.entries = self.indexed.len() as u64;
        let read = self.read_parts(&merged, index::presence, monitor)?;
        for (part, rows) in merged.into_iter().zip(read) {
            let Some(rows) = self.sound(part, rows) else {
                continue;
            };
            let places_of = rows.iter().map(|row| (part.0, row.entry, row.pack));
            let lacking = places_of.filter(|place| !places.contains(place)).count();
            if let Some(merged) = self.there.merged.get(&part).filter(|_| lacking > 0) {
                let list = names::part_list(&part.0, &merged.list);
                let name = names::part(&part.0, &part.1);
                let what = format!(
                    "says that {name} was merged, of which {lacking} entries are in no other"
                );
                self.problem(list, what, lists::MEND);
            }
        }
        monitor.finish();
        Ok(())
    }

    fn read_parts<T: Send>(
        &self,
        parts: &[Named],
        decode: fn(&dyn Rows) -> Result<T, String>,
        monitor: &dyn Monitor,
    ) -> Result<Vec<Result<T, Error>>, Error> {
        each(parts, |(spec, part)| {
            let name = names::part(spec, part);
            let bytes = self.remote.part(spec, part);
            let rows = bytes.and_then(|b| decode_bytes(name.as_ref(), spec, b, decode));
            monitor.advance(1);
            Ok(rows)
        })
    }

    /// What was read of a part; of one that could not be, it is told.
    fn sound<T>(&mut self, (spec, part): Named, rows: Result<T, Error>) -> Option<T> {
        match rows {
            Ok(rows) => return Some(rows),
            // Merged into another since it was listed.
            Err(e) if e.is_gone() => {}
            Err(e) => self.wrong(names::part(&spec, &part), e),
        }
        None
    }

    fn take_rows(&mut self, spec: Fingerprint, name: String, rows: Vec<Record>) {
        let mut lost: HashMap<Digest, (u64, &str)> = HashMap::new();
        for row in rows {
            self.indexed.insert((spec, row.entry));
            let end = row.parts.iter().map(|p| p.offset.saturating_add(p.length));
            let what = match self.contents.packs.get(&row.pack) {
                None => "is missing",
                Some(pack) if !pack.is_shared && end.max().unwrap_or(0) > pack.object.bytes => {
                    "is too short for them"
                }
                Some(_) => {
                    self.rows.entry(row.pack).or_default().push(row);
                    continue;
                }
            };
            lost.entry(row.pack).or_insert((0, what)).0 += 1;
        }
        for (pack, (entries, what)) in lost {
            let pack = names::pack(&pack, false);
            let what = format!(
                "names {} in {pack}, which {what}",
                shown::counted(entries, "entry")
            );
            self.problem(
                name.clone(),
                what,
                "push it again from where it is, or encode again",
            );
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
        monitor.start("checking packs", Some(self.report.pack_bytes));
        let found = each(&packs, |(id, pack)| {
            let name = names::pack(id, pack.is_shared);
            let opened = self.remote.pack(id, *pack).and_then(|bytes| {
                let opened = packed::read_pack(name.as_ref(), id, &bytes)?;
                let rows = self.rows.get(id).map_or(&[][..], Vec::as_slice);
                let unlike = rows.iter().filter(|row| {
                    let packed = opened.entries.iter().find(|e| e.record.entry == row.entry);
                    packed.is_none_or(|e| e.record != **row || e.payloads(&bytes).is_err())
                });
                Ok((opened.entries.len(), rows.len(), unlike.count()))
            });
            monitor.advance(pack.object.bytes);
            Ok(opened)
        });
        monitor.finish();
        for ((id, pack), found) in packs.into_iter().zip(found?) {
            let name = names::pack(&id, pack.is_shared);
            match found {
                Ok((_, _, unlike)) if unlike > 0 => {
                    let what = format!(
                        "says otherwise of {} than the index",
                        shown::counted(unlike, "entry")
                    );
                    self.problem(name, what, MEND);
                }
                Ok((entries, rows, _)) => {
                    self.report.unindexed_entries += entries.saturating_sub(rows) as u64;
                }
                Err(e) if e.is_gone() => {}
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
        let named: HashSet<Fingerprint> = self.indexed.iter().map(|(spec, _)| *spec).collect();
        for spec in named
            .iter()
            .filter(|s| !self.contents.specs.contains_key(s))
        {
            self.report.problems.push(Problem {
                file: names::spec(spec),
                what: "missing, but there are entries of it".to_owned(),
                mend: "encode or push again".to_owned(),
            });
        }
        Ok(())
    }

    fn runs(&mut self) -> Result<(), Error> {
        let ids: Vec<String> = self.contents.runs.keys().cloned().collect();
        let read = each(&ids, |id| Ok(self.remote.run(id)))?;
        for (id, found) in ids.into_iter().zip(read) {
            match found {
                Ok(run) => {
                    let listed = run.listed();
                    let missing = listed.filter(|both| !self.indexed.contains(both)).count();
                    if missing > 0 {
                        let all = run.num_entries();
                        let what = format!(
                            "lacks {} that it uses",
                            shown::part_of(missing, all, "entry")
                        );
                        let mend = "encode and push again, or remove the object";
                        self.problem(names::run(&id), what, mend);
                    }
                }
                Err(e) if e.is_gone() => {}
                Err(e) => self.wrong(names::run(&id), e),
            }
        }
        Ok(())
    }
}

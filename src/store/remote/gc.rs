//! `plumb store gc` of a store on object storage: packs of which no run uses anything, and that are older than the grace age, go. The
//! index says so first: parts without their rows are put, then the old parts go, then the packs. Parts that were merged into others go when the list
//! that says so is older than the grace age.
//!
//! Ages are between times of the server. A pack of which something is used stays as it is.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, SystemTime};

use super::lease::{self, Lease, Purpose};
use super::lists::{IndexThere, List, Named, Place};
use super::names::{self, Contents, Object};
use super::{Remote, each};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;
use crate::store::merge::write_sorted;
use crate::store::record::Record;
use crate::store::snapshot::decode_bytes;
use crate::store::{Error, GcOptions, GcReport, index};

/// What is to be done, decided before anything is touched.
struct Plan {
    contents: Contents,
    there: IndexThere,
    /// Packs that go.
    gone: HashSet<Digest>,
    /// By spec: the parts that go, and the rows of them that stay.
    parts: BTreeMap<Fingerprint, (Vec<Digest>, Vec<Record>)>,
    /// Parts that go because others have all of their rows.
    merged: Vec<Named>,
}

impl Remote {
    /// Removes what no run uses and is older than the grace age by the server's clock; `options.now` is not looked at.
    ///
    /// # Errors
    /// If no run protects anything (unless allowed), if a run or index part cannot be read or understood, if somebody adds entries,
    /// or if the server refuses. Whatever the error, nothing that a run uses is lost.
    pub fn gc(
        &self,
        options: &GcOptions,
        wait: Duration,
        monitor: &dyn Monitor,
    ) -> Result<GcReport, Error> {
        if self.address().is_read_only() {
            return Err(Error::Refused(format!("{} is only read", self.address())));
        }
        let lease = Lease::take(&self.client, Purpose::Remove, wait, monitor)?;
        let now = lease.now()?;
        let mut report = GcReport {
            dry_run: options.dry_run,
            ..GcReport::default()
        };
        let contents = self.contents_of_store()?;
        let roots = self.roots(&contents, options, &mut report)?;
        let plan = self.plan(
            contents,
            &roots,
            &|o| is_old(o, now, options.grace),
            &mut report,
        )?;
        if !options.dry_run {
            self.carry_out(plan, &lease, monitor)?;
            lease::clear(&self.client, now)?;
        }
        Ok(report)
    }

    fn roots(
        &self,
        contents: &Contents,
        options: &GcOptions,
        report: &mut GcReport,
    ) -> Result<HashSet<(Fingerprint, Fingerprint)>, Error> {
        let mut roots = HashSet::new();
        for id in contents.runs.keys() {
            let run = self.run(id)?;
            report.runs += 1;
            roots.extend(run.listed());
        }
        if roots.is_empty() && !options.without_runs {
            return Err(Error::Refused(format!(
                "no run in {} uses any entry, so everything would go; encode or push first, or say --without-runs",
                self.shown("runs")
            )));
        }
        Ok(roots)
    }

    fn plan(
        &self,
        contents: Contents,
        roots: &HashSet<(Fingerprint, Fingerprint)>,
        is_old: &dyn Fn(&Object) -> bool,
        report: &mut GcReport,
    ) -> Result<Plan, Error> {
        // A list that cannot be read hides no part, so everything is looked at.
        let there = self.index_there(&contents, &mut Vec::new())?;
        let keys: Vec<_> = contents.parts.keys().copied().collect();
        let read = each(&keys, |(spec, part)| {
            let name = self.shown(&names::part(spec, part));
            // Entries of a part that is left out would look like unused payloads, and go.
            decode_bytes(name.as_ref(), spec, self.part(spec, part)?, index::records)
        })?;
        let mut used: HashSet<Digest> = HashSet::new();
        for ((spec, _), rows) in keys.iter().zip(&read) {
            let of_runs = rows
                .iter()
                .filter(|row| roots.contains(&(*spec, row.entry)));
            used.extend(of_runs.map(|row| row.pack));
        }
        let goes = |(pack, found): &(&Digest, &names::RemotePack)| {
            let copy = contents.copies.get(*pack);
            let is_old = is_old(&found.object) && copy.is_none_or(|copy| is_old(&copy.object));
            is_old && !used.contains(*pack)
        };
        let gone: HashSet<Digest> = contents
            .packs
            .iter()
            .filter(goes)
            .map(|(p, _)| *p)
            .collect();
        let mut read: BTreeMap<Named, Vec<Record>> = keys.into_iter().zip(read).collect();
        let (mut before, mut after) = (HashSet::new(), HashSet::new());
        let stays = |row: &Record| !gone.contains(&row.pack);
        for rows in read.values() {
            before.extend(rows.iter().map(|row| row.entry));
            after.extend(rows.iter().filter(|r| stays(r)).map(|row| row.entry));
        }
        let merged = merged(&there, &mut read);
        let mut parts: BTreeMap<Fingerprint, (Vec<Digest>, Vec<Record>)> = BTreeMap::new();
        for ((spec, part), rows) in read {
            if rows.iter().all(stays) {
                continue;
            }
            let of_spec = parts.entry(spec).or_default();
            of_spec.0.push(part);
            of_spec.1.extend(rows.into_iter().filter(stays));
        }
        let is_due = |part: &Named| {
            let list = there.merged.get(part).map(|merged| (part.0, merged.list));
            let list = list.and_then(|list| contents.lists.get(&list));
            // Where what they were merged into is written anew, they would be read again.
            list.is_some_and(is_old) || parts.contains_key(&part.0)
        };
        let merged = merged.into_iter().filter(is_due).collect();
        report.entries_kept = after.len() as u64;
        report.entries_removed = (before.len() - after.len()) as u64;
        report.packs_removed = gone.len() as u64;
        let bytes = |pack: &Digest| {
            let both = [contents.packs.get(pack), contents.copies.get(pack)];
            both.into_iter()
                .flatten()
                .map(|p| p.object.bytes)
                .sum::<u64>()
        };
        report.bytes_freed = gone.iter().map(bytes).sum();
        Ok(Plan {
            contents,
            there,
            gone,
            parts,
            merged,
        })
    }

    /// Puts entries of a spec as sorted parts, with a list of these; gives the parts.
    fn put_sorted(&self, spec: &Fingerprint, mut rows: Vec<Record>) -> Result<Vec<Digest>, Error> {
        rows.sort_by_key(|row| (row.entry, row.pack));
        let written = write_sorted(self, spec, rows)?;
        if !written.known.is_empty() {
            let known = written.known.into_iter();
            let known = known.map(|(part, known)| (part, Some(known)));
            self.put_list(spec, &List::new(known.collect(), BTreeSet::new()))?;
        }
        Ok(written.parts)
    }

    fn carry_out(&self, plan: Plan, lease: &Lease, monitor: &dyn Monitor) -> Result<(), Error> {
        let mut old: HashSet<Named> = plan.merged.iter().copied().collect();
        let mut new: HashSet<Named> = HashSet::new();
        for (spec, (thinned, rows)) in plan.parts {
            let parts = self.put_sorted(&spec, rows)?;
            old.extend(thinned.into_iter().map(|part| (spec, part)));
            new.extend(parts.into_iter().map(|part| (spec, part)));
        }
        // What was written may be what was there before.
        old.retain(|part| !new.contains(part));
        // This process may have been asleep for longer than its lease lasts.
        lease.confirm()?;
        // First what was merged: it would be read again where what it was merged into is gone.
        let is_merged = |part: &&Named| plan.there.merged.contains_key(part);
        let (first, then): (Vec<&Named>, Vec<&Named>) = old.iter().partition(is_merged);
        for (spec, part) in first.into_iter().chain(then) {
            self.client.remove(&names::part(spec, part))?;
        }
        // Lists that tell of nothing that is there.
        for ((spec, id), list) in &plan.there.lists {
            let is_there = |part: &Digest| {
                let part = (*spec, *part);
                new.contains(&part) || plan.there.is_there(&part) && !old.contains(&part)
            };
            if !list.parts.keys().any(is_there) {
                self.client.remove(&names::part_list(spec, id))?;
            }
        }
        let mut gone: Vec<Digest> = plan.gone.iter().copied().collect();
        gone.sort_unstable();
        let mut objects = Vec::new();
        for pack in &gone {
            let both = [
                plan.contents.packs.get(pack),
                plan.contents.copies.get(pack),
            ];
            let names = both.into_iter().flatten();
            objects.extend(names.map(|found| names::pack(pack, found.is_shared)));
        }
        if plan.contents.has_list {
            let gone: HashSet<&str> = objects.iter().map(String::as_str).collect();
            self.write_contents(|name| gone.contains(name))?;
        }
        monitor.start("cleaning up", Some(objects.len() as u64));
        for some in objects.chunks(64) {
            lease.confirm()?;
            each(some, |name| {
                monitor.advance(1);
                self.client.remove(name)
            })?;
        }
        monitor.finish();
        Ok(())
    }
}

/// Takes out of `read` the parts of which others have all rows, and gives their names. Nothing is taken on the word of a list alone: one that
/// has a row of its own stays.
fn merged(there: &IndexThere, read: &mut BTreeMap<Named, Vec<Record>>) -> Vec<Named> {
    if there.merged.values().all(|merged| !merged.is_there) {
        return Vec::new();
    }
    let live = read
        .iter()
        .filter(|(part, _)| there.live.contains_key(part));
    let places: HashSet<Place> = live
        .flat_map(|((spec, _), rows)| rows.iter().map(|row| (*spec, row.entry, row.pack)))
        .collect();
    let has_none_alone = |(spec, _): &Named, rows: &[Record]| {
        rows.iter()
            .all(|row| places.contains(&(*spec, row.entry, row.pack)))
    };
    let merged = read
        .iter()
        .filter(|(part, rows)| there.merged.contains_key(part) && has_none_alone(part, rows));
    let merged: Vec<Named> = merged.map(|(part, _)| *part).collect();
    for part in &merged {
        read.remove(part);
    }
    merged
}

/// Whether an object may go by its age. A time in the future counts as young.
fn is_old(object: &Object, now: SystemTime, grace: Duration) -> bool {
    now.duration_since(object.modified)
        .is_ok_and(|age| age >= grace)
}

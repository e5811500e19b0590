//! `plumb store gc` of a store on object storage: packs of which no run uses anything, and that are older than the grace age, go. The
//! index says so first: parts without their rows are put, then the old parts go, then the packs. Parts that were merged into others go when the list
//! that says so is older than the grace age.
//!
//! Ages are between times of the server. A pack of which something is used stays as it is. What goes is decided in two passes through the index, a
//! range of fingerprints at a time: the first finds the packs that are used, the second what the others leave of each part.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, SystemTime};

use super::lease::{self, Lease, Purpose};
use super::lists::{IndexThere, List, Named};
use super::names::{self, Contents, Object};
use super::scratch::{IndexHere, Scratch};
use super::{Remote, each};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;
use crate::store::record::Record;
use crate::store::run_lists::roots;
use crate::store::snapshot::read_part;
use crate::store::sorting::Sorting;
use crate::store::sweep::{RowSet, SpecParts};
use crate::store::{Error, GcOptions, GcReport, index, parts};

/// What is to be done, decided before anything is touched.
struct Plan<'a> {
    contents: Contents,
    there: IndexThere,
    here: IndexHere<'a>,
    /// Packs that go.
    gone: HashSet<Digest>,
    /// Parts that go because some of their rows do, and how many rows of them stay.
    thinned: Vec<(SpecParts, u64)>,
    /// Parts that go because others have all of their rows.
    merged: Vec<Named>,
}

/// What comes of an index part.
#[derive(Clone, Default)]
struct Thinned {
    /// Whether rows of it go.
    is_thinned: bool,
    /// How many stay, of payloads.
    staying: u64,
}

impl Remote {
    /// Removes what no run uses and is older than the grace age by the server's clock; `options.now` is not looked at. The index and the runs are in
    /// `scratch` meanwhile.
    ///
    /// # Errors
    /// If no run protects anything (unless allowed), if a run or index part cannot be read or understood, if somebody adds entries,
    /// if the server refuses, or if this machine's disk cannot be written. Whatever the error, nothing that a run uses is lost.
    pub fn gc(
        &self,
        scratch: &Scratch,
        options: &GcOptions,
        wait: Duration,
        monitor: &dyn Monitor,
    ) -> Result<GcReport, Error> {
        if self.address().is_read_only() {
            return Err(Error::Refused(format!("{} is only read", self.address())));
        }
        // Before a lease is put where there is none.
        self.find()?;
        let lease = Lease::take(&self.client, Purpose::Remove, wait, monitor)?;
        let now = lease.now()?;
        let mut report = GcReport {
            dry_run: options.dry_run,
            ..GcReport::default()
        };
        let contents = self.contents_of_store()?;
        let mut here = IndexHere::new(self, scratch)?;
        self.bring_runs(&contents, options, &mut here)?;
        report.runs = here.runs.len() as u64;
        let is_old = |object: &Object| is_old(object, now, options.grace);
        let plan = self.plan(contents, here, &is_old, &mut report, monitor)?;
        if !options.dry_run {
            self.carry_out(plan, &lease, monitor)?;
            lease::clear(&self.client, now)?;
        }
        Ok(report)
    }

    fn bring_runs(
        &self,
        contents: &Contents,
        options: &GcOptions,
        here: &mut IndexHere<'_>,
    ) -> Result<(), Error> {
        for id in contents.runs.keys() {
            here.bring_run(id)??;
        }
        let is_unused = here.runs.iter().all(|run| run.num_entries == 0);
        if is_unused && !options.without_runs {
            return Err(Error::Refused(format!(
                "no run in {} uses any entry, so everything would go; encode or push first, or say --without-runs",
                self.shown("runs")
            )));
        }
        Ok(())
    }

    fn plan<'a>(
        &self,
        contents: Contents,
        mut here: IndexHere<'a>,
        is_old: &dyn Fn(&Object) -> bool,
        report: &mut GcReport,
        monitor: &dyn Monitor,
    ) -> Result<Plan<'a>, Error> {
        // A list that cannot be read hides no part, so everything is looked at.
        let there = self.index_there(&contents, &mut Vec::new())?;
        let all: Vec<Named> = contents.parts.keys().copied().collect();
        monitor.start("reading the index", Some(all.len() as u64));
        each(&all, |named| {
            // Entries of a part that is left out would look like unused payloads, and go.
            here.bring(named, |rows| index::each_record(rows, &mut |_, _| Ok(())))??;
            monitor.advance(1);
            Ok(())
        })?;
        here.open(&there)?;
        let used = self.used(&mut here)?;
        let is_used = |pack: &Digest| here.packs.get(pack).is_some_and(|n| used.contains(n));
        let goes = |(pack, found): &(&Digest, &names::RemotePack)| {
            let copy = contents.copies.get(*pack);
            let is_old = is_old(&found.object) && copy.is_none_or(|copy| is_old(&copy.object));
            is_old && !is_used(pack)
        };
        let gone = contents.packs.iter().filter(goes);
        let gone: HashSet<Digest> = gone.map(|(pack, _)| *pack).collect();
        let thinned = self.thinned(&mut here, &gone, report)?;
        monitor.finish();
        let specs: HashSet<Fingerprint> = thinned.iter().map(|(parts, _)| parts.spec).collect();
        let is_due = |part: &Named| {
            let list = there.merged.get(part).map(|merged| (part.0, merged.list));
            let list = list.and_then(|list| contents.lists.get(&list));
            // Where what they were merged into is written anew, they would be read again.
            list.is_some_and(is_old) || specs.contains(&part.0)
        };
        // Nothing is taken on the word of a list alone: one that has a row of its own stays.
        let merged = here.specs.iter().flat_map(|of_spec| of_spec.merged());
        let merged = merged.filter(|(part, alone)| *alone == 0 && is_due(part));
        let merged = merged.map(|(part, _)| part).collect();
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
            here,
            gone,
            thinned,
            merged,
        })
    }

    /// The packs of which a run uses something. Parts that were merged are compared with the others on the way.
    fn used(&self, here: &mut IndexHere<'_>) -> Result<RowSet, Error> {
        let mut used = RowSet::default();
        for range in here.ranges() {
            let listed = here.runs.iter();
            let listed = listed.map(|run| here.store.run_within(run, range));
            let mut roots = roots(listed)?;
            for number in 0..here.specs.len() {
                let rows = here.rows(number, range, &mut |part, e| Err(self.of_part(part, e)))?;
                let of_spec = &mut here.specs[number];
                of_spec.compare_merged(&rows);
                let wanted = roots.remove(&of_spec.index.spec).unwrap_or_default();
                for row in rows {
                    if wanted.binary_search(&row.entry).is_ok() {
                        used.insert(row.pack);
                    }
                }
            }
        }
        Ok(used)
    }

    /// The parts of which rows go with the packs `gone`, but those of which others have all rows.
    fn thinned(
        &self,
        here: &mut IndexHere<'_>,
        gone: &HashSet<Digest>,
        report: &mut GcReport,
    ) -> Result<Vec<(SpecParts, u64)>, Error> {
        let mut goes = RowSet::default();
        for number in gone.iter().filter_map(|pack| here.packs.get(pack)) {
            goes.insert(number);
        }
        let parts = here.specs.iter().map(|of| of.index.parts.len());
        let mut thinned: Vec<Vec<Thinned>> = parts.map(|n| vec![Thinned::default(); n]).collect();
        for range in here.ranges() {
            for (number, thinned) in thinned.iter_mut().enumerate() {
                let rows = here.rows(number, range, &mut |part, e| Err(self.of_part(part, e)))?;
                for same in rows.chunk_by(|a, b| a.entry == b.entry) {
                    match same.iter().any(|row| !goes.contains(row.pack)) {
                        true => report.entries_kept += 1,
                        false => report.entries_removed += 1,
                    }
                }
                for row in rows {
                    let part = &mut thinned[row.part as usize];
                    match goes.contains(row.pack) {
                        true => part.is_thinned = true,
                        false => part.staying += u64::from(row.payloads),
                    }
                }
            }
        }
        let of_specs = here.specs.iter().zip(thinned).map(|(of_spec, thinned)| {
            let parts = of_spec.index.parts.iter().zip(&of_spec.alone).zip(&thinned);
            let some = parts.filter(|((_, alone), t)| **alone != Some(0) && t.is_thinned);
            let (mut parts, mut staying) = (Vec::new(), 0);
            for ((part, _), thinned) in some {
                parts.push(part.clone());
                staying += thinned.staying;
            }
            let spec = of_spec.index.spec;
            (SpecParts { spec, parts }, staying)
        });
        Ok(of_specs.filter(|(of, _)| !of.parts.is_empty()).collect())
    }

    /// An error of a part that is here, with its name there.
    fn of_part(&self, (spec, part): Named, e: Error) -> Error {
        match e {
            Error::Malformed { why, .. } => {
                let name = self.shown(&names::part(&spec, &part));
                Error::malformed(name.as_ref(), why)
            }
            other => other,
        }
    }

    /// Puts what stays of some parts as sorted parts, with a list of these; gives the parts.
    fn put_thinned(
        &self,
        here: &IndexHere<'_>,
        (thinned, staying): &(SpecParts, u64),
        gone: &HashSet<Digest>,
    ) -> Result<Vec<Digest>, Error> {
        let (spec, layout) = (&thinned.spec, &here.store.layout);
        let sorting = Sorting::new(&here.store, spec);
        let stays = |_, _, row: &Record| !gone.contains(&row.pack);
        let made = sorting.finish_with(thinned, *staying, &stays)?.new;
        let mut known = parts::read(layout, spec);
        let mut of_made = BTreeMap::new();
        for part in &made {
            self.put_part(spec, &read_part(layout, spec, part)?)?;
            of_made.extend(known.remove(part).map(|known| (*part, Some(known))));
        }
        if !of_made.is_empty() {
            self.put_list(spec, &List::new(of_made, BTreeSet::new()))?;
        }
        Ok(made)
    }

    fn carry_out(&self, plan: Plan<'_>, lease: &Lease, monitor: &dyn Monitor) -> Result<(), Error> {
        let mut old: HashSet<Named> = plan.merged.iter().copied().collect();
        let mut new: HashSet<Named> = HashSet::new();
        for thinned in &plan.thinned {
            let parts = self.put_thinned(&plan.here, thinned, &plan.gone)?;
            let spec = thinned.0.spec;
            old.extend(thinned.0.parts.iter().map(|(part, ..)| (spec, *part)));
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

/// Whether an object may go by its age. A time in the future counts as young.
fn is_old(object: &Object, now: SystemTime, grace: Duration) -> bool {
    now.duration_since(object.modified)
        .is_ok_and(|age| age >= grace)
}

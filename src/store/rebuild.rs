//! Making the index anew from the packs. A pack with damage in it is set aside under another name, and what is sound in it
//! moves to a new pack; what was set aside and turns out sound comes back.
//!
//! Everything is read before anything is changed, but for index parts that are added where rows have no room in memory. A file that cannot be
//! read ends it: only content that was read whole and does not fit is damage.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::collecting::move_entry;
use super::compact::remove_parts;
use super::disk::{Disk, ListedFile, write_once};
use super::layout::{self, PackPath};
use super::pack::PackBuilder;
use super::packfile::{self, PackState};
use super::record::Record;
use super::salvage::{self, Evidence, Outcome, SavedEntry};
use super::snapshot::{decode_part, each_record};
use super::sorting::Sorting;
use super::writer::write_pack;
use super::{Error, Local, Problem, Store, index, lock, packed, specs};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;
use crate::shown;

/// What rebuilding the index read, wrote and left out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RebuildReport {
    /// Packs that were there before, damaged ones included.
    pub packs: u64,
    /// Entries in the new index.
    pub entries: u64,
    /// Index parts written.
    pub parts_written: u64,
    /// Old index parts removed.
    pub parts_removed: u64,
    /// Packs with damage in them, set aside.
    pub packs_set_aside: u64,
    /// Damaged packs that have the bytes again that were written.
    pub packs_repaired: u64,
    /// Packs that were set aside before and are sound, brought back.
    pub packs_restored: u64,
    /// Spec files written anew.
    pub specs_written: u64,
    /// Spec files that are not the spec in their name, set aside.
    pub specs_set_aside: u64,
    /// Whether `store.json` was written anew.
    pub store_json_written: bool,
    /// What was left out, and why. Encoding again replaces it.
    pub problems: Vec<Problem>,
}

const LEFT_OUT: &str = "left out; encoding again replaces it";
/// The most lost entries of a pack that are named; the others are counted.
const NAMED_LOSSES: usize = 20;

/// What the disk holds. Nothing is changed before all of it was read, but for index parts with rows of sound packs.
struct Found<'a> {
    /// All packs, in whatever state.
    here: HashSet<Digest>,
    /// Those of which every byte is what was written.
    sound: HashSet<Digest>,
    /// By spec: the index parts there are, which go unless the new index has them.
    old_parts: BTreeMap<Fingerprint, Vec<(Digest, ListedFile)>>,
    /// Damaged packs, those under their names first.
    damaged: Vec<(PackPath, ListedFile)>,
    /// Packs that were set aside and are sound.
    restored: Vec<(PackPath, Fingerprint, Vec<Record>)>,
    /// Entries that the old index names in packs that are not there.
    missing: BTreeMap<Digest, BTreeSet<Fingerprint>>,
    evidence: Evidence,
    new: NewIndex<'a>,
}

/// What the new index will have.
struct NewIndex<'a> {
    store: &'a Store,
    specs: BTreeMap<Fingerprint, String>,
    rows: BTreeMap<Fingerprint, Sorting<'a>>,
    /// Of the entries that may be lost those that it has. Whatever their specs: a fingerprint is that of one entry of one spec.
    entries: HashSet<Fingerprint>,
    builders: BTreeMap<Fingerprint, PackBuilder>,
    specs_written: u64,
}

impl<'a> NewIndex<'a> {
    fn new(store: &'a Store) -> Self {
        Self {
            store,
            specs: BTreeMap::new(),
            rows: BTreeMap::new(),
            entries: HashSet::new(),
            builders: BTreeMap::new(),
            specs_written: 0,
        }
    }

    /// Takes entries of a known spec whose packs are in their places.
    fn add(&mut self, spec: &Fingerprint, records: Vec<Record>) -> Result<(), Error> {
        let rows = self.rows.entry(*spec);
        let rows = rows.or_insert_with(|| Sorting::new(self.store, spec));
        for record in records {
            // Before its first row, as a writer puts a spec before its first entry.
            if rows.is_full()
                && let Some(json) = self.specs.get(spec)
            {
                self.specs_written += u64::from(specs::write(self.store, spec, json.as_bytes())?);
            }
            rows.push(record)?;
        }
        Ok(())
    }

    /// Of `wanted` those that it has.
    fn having(&self, wanted: &HashSet<Fingerprint>) -> Result<HashSet<Fingerprint>, Error> {
        let mut found = HashSet::new();
        if wanted.is_empty() {
            return Ok(found);
        }
        for (spec, rows) in &self.rows {
            found.extend(rows.in_memory().iter().map(|record| record.entry));
            for part in rows.written() {
                let there = decode_part(&self.store.layout, spec, part, index::presence)?;
                let there = there.iter().map(|rows| rows.entry);
                found.extend(there.filter(|entry| wanted.contains(entry)));
            }
        }
        found.retain(|entry| wanted.contains(entry));
        Ok(found)
    }
}

impl Store {
    /// Makes the index of the store at `path` anew from its packs, and `store.json` and the specs where they are
    /// missing or damaged. Reads every byte; entries whose payload is not what was written are left out. What the index
    /// knew helps to save the entries of packs whose header is damaged.
    ///
    /// # Errors
    /// If there are no packs, if the store is of a newer format or in use by a writer, if anything cannot be read, or if it
    /// cannot be written. What was there before is then still there.
    pub fn rebuild_index(path: &Path, monitor: &dyn Monitor) -> Result<RebuildReport, Error> {
        Self::rebuild_index_with(path, Arc::new(Local), monitor)
    }

    /// As [`Self::rebuild_index`], with another way to the disk.
    ///
    /// # Errors
    /// As [`Self::rebuild_index`].
    pub fn rebuild_index_with(
        path: &Path,
        disk: Arc<dyn Disk>,
        monitor: &dyn Monitor,
    ) -> Result<RebuildReport, Error> {
        let store = Self::at(path, disk.clone());
        let lacks_marker = match layout::read_marker(&store.layout) {
            Ok(_) => false,
            Err(e) if e.is_gone() || e.is_content() => {
                if !store.layout.packs().is_dir() {
                    return Self::open_with(path, disk).map(|_| RebuildReport::default());
                }
                true
            }
            Err(e) => return Err(e),
        };
        let _lock = lock::exclusive(&store.layout, "plumb store rebuild-index")?;
        let mut report = RebuildReport::default();
        let mut found = store.look(&mut report, monitor)?;
        store.read_old_index(&mut found)?;
        let specs = specs::examine(&store.layout, &found.evidence.specs)?;
        store.rebuild(found, specs, &mut report)?;
        if lacks_marker {
            let bytes = layout::marker_bytes();
            write_once(store.disk(), path, layout::MARKER, &[&bytes])?;
            report.store_json_written = true;
        }
        report.problems.sort();
        Ok(report)
    }

    /// Reads the packs.
    fn look(&self, report: &mut RebuildReport, monitor: &dyn Monitor) -> Result<Found<'_>, Error> {
        let layout = &self.layout;
        // Listed before anything is written: what is in this list and not in the new index goes.
        let mut old_parts = BTreeMap::new();
        for spec in layout.indexed_specs()? {
            old_parts.insert(spec, layout.index_parts(&spec)?);
        }
        let files = layout.pack_files()?;
        report.packs = files.len() as u64;
        let aside = layout.set_aside_files()?;
        let all: Vec<_> = files.into_iter().chain(aside).collect();
        let bytes = all.iter().map(|(_, f)| f.bytes).sum();
        monitor.start("reading packs", Some(bytes));
        let mut found = Found {
            here: HashSet::new(),
            sound: HashSet::new(),
            old_parts,
            damaged: Vec::new(),
            restored: Vec::new(),
            missing: BTreeMap::new(),
            evidence: Evidence::default(),
            new: NewIndex::new(self),
        };
        packfile::each(
            &all,
            monitor,
            |file| packfile::read_state(layout, file),
            |file, state| self.take(&mut found, file, state, report),
        )?;
        monitor.finish();
        let sound = &found.sound;
        found
            .damaged
            .retain(|(file, _)| !sound.contains(&file.pack));
        Ok(found)
    }

    /// Takes what reading a pack showed.
    fn take(
        &self,
        found: &mut Found<'_>,
        (file, listed): &(PackPath, ListedFile),
        state: PackState,
        report: &mut RebuildReport,
    ) -> Result<(), Error> {
        let is_aside = file.path != self.layout.pack(&file.pack);
        if is_aside && !listed.is_own {
            return Ok(());
        }
        found.here.insert(file.pack);
        found.evidence.packs.insert(file.pack);
        match state {
            // Both are there after a crash, or where somebody put it back by hand.
            PackState::Sound { .. } if found.sound.contains(&file.pack) => {}
            PackState::Sound {
                spec,
                spec_json,
                records,
            } => {
                found.sound.insert(file.pack);
                found.new.specs.insert(spec, spec_json);
                match is_aside {
                    // Its rows come when it is back in its place.
                    true => found.restored.push((file.clone(), spec, records)),
                    false => found.new.add(&spec, records)?,
                }
            }
            PackState::Damaged => found.damaged.push((file.clone(), listed.clone())),
            PackState::Foreign(why) => report.problems.push(self.left_out(&file.pack, why)),
        }
        Ok(())
    }

    /// Reads what the old index says of packs that are not sound.
    fn read_old_index(&self, found: &mut Found<'_>) -> Result<(), Error> {
        let evidence = &mut found.evidence;
        let mut at_stake = HashSet::new();
        for (spec, parts) in &found.old_parts {
            for (part, _) in parts {
                let mut said = Vec::new();
                let read = each_record(&self.layout, spec, part, |_, record| {
                    evidence.packs.insert(record.pack);
                    if !found.sound.contains(&record.pack) {
                        said.push(record);
                    }
                    Ok(())
                });
                match read {
                    Ok(()) => {}
                    // A damaged part says nothing; that is what it is made anew for.
                    Err(e) if e.is_content() => continue,
                    Err(e) => return Err(e),
                }
                for record in said {
                    at_stake.insert(record.entry);
                    if found.here.contains(&record.pack) {
                        let rows = evidence.rows.entry(record.pack).or_default();
                        rows.insert(record.entry, (*spec, record));
                    } else {
                        let lost = found.missing.entry(record.pack).or_default();
                        lost.insert(record.entry);
                    }
                }
            }
        }
        for (file, _) in &found.damaged {
            at_stake.extend(salvage::entries(&self.layout, file)?);
        }
        found.new.entries = found.new.having(&at_stake)?;
        let restored = found.restored.iter().flat_map(|(.., records)| records);
        let restored = restored.map(|record| record.entry);
        found
            .new
            .entries
            .extend(restored.filter(|entry| at_stake.contains(entry)));
        evidence.specs = specs::read_sound(&self.layout)?;
        evidence.specs.extend(found.new.specs.clone());
        Ok(())
    }

    fn rebuild(
        &self,
        mut found: Found<'_>,
        specs: specs::Misnamed,
        report: &mut RebuildReport,
    ) -> Result<(), Error> {
        // The last that reads packs, so the first that changes anything: if it fails, packs and index parts may have been added.
        let aside = self.save_damaged(&mut found, report)?;
        for (file, spec, records) in std::mem::take(&mut found.restored) {
            self.rename_pack(&file.path, &self.layout.pack(&file.pack), &file.pack)?;
            report.packs_restored += 1;
            found.new.add(&spec, records)?;
        }
        self.tell_lost_packs(&found, report);
        // Before the index, as a writer puts a spec before its first entry.
        for (spec, json) in &found.new.specs {
            report.specs_written += u64::from(specs::write(self, spec, json.as_bytes())?);
        }
        report.specs_written += found.new.specs_written;
        specs.mend(self, report)?;
        let mut named = HashSet::new();
        let mut old_parts = found.old_parts;
        for (spec, rows) in found.new.rows {
            report.entries += rows.num_entries();
            // The same packs make the same parts, so a part that is right already is not among those removed.
            let made = rows.finish(Vec::new(), 0, &|_, _, _| true)?;
            named.extend(made.packs);
            report.parts_written += made.new.len() as u64;
            let old = old_parts.remove(&spec).unwrap_or_default();
            report.parts_removed += self.remove_others(&spec, &old, &made.new)?;
            // Else nothing is read any more, which might fail.
            if !made.passing.is_empty() {
                let here = self.layout.index_parts(&spec)?.into_iter();
                let passing: Vec<_> = here.filter(|(p, _)| made.passing.contains(p)).collect();
                self.remove_others(&spec, &passing, &made.new)?;
            }
        }
        for (spec, parts) in old_parts {
            report.parts_removed += self.remove_others(&spec, &parts, &[])?;
        }
        // Last, when no row names them any more. Renamed, not removed: a person may still want to look.
        for (file, listed) in &aside {
            // All of it was saved, into a pack of the same bytes and so of the same name.
            if named.contains(&file.pack) {
                report.packs_repaired += 1;
                continue;
            }
            if !listed.is_own {
                let why = "damaged, but behind a link, and so left where it is";
                report
                    .problems
                    .push(self.left_out(&file.pack, why.to_owned()));
                continue;
            }
            self.rename_pack(&file.path, &self.layout.set_aside(&file.pack), &file.pack)?;
            report.packs_set_aside += 1;
        }
        Ok(())
    }

    /// Removes those of `parts` that are not among `new`; gives how many.
    fn remove_others(
        &self,
        spec: &Fingerprint,
        parts: &[(Digest, ListedFile)],
        new: &[Digest],
    ) -> Result<u64, Error> {
        let own = parts.iter().filter(|(_, file)| file.is_own);
        let gone = own.map(|(part, _)| part).filter(|p| !new.contains(p));
        Ok(remove_parts(&self.layout, spec, gone)? as u64)
    }

    fn rename_pack(&self, from: &Path, to: &Path, pack: &Digest) -> Result<(), Error> {
        let dir = self.layout.pack_dir(pack);
        self.disk()
            .rename(from, to)
            .map_err(|e| Error::io("rename", from, e))?;
        self.disk()
            .sync_dir(&dir)
            .map_err(|e| Error::io("sync the folder", &dir, e))
    }

    /// Copies the sound entries of damaged packs into new ones. Gives the packs that are to be set aside.
    fn save_damaged(
        &self,
        found: &mut Found<'_>,
        report: &mut RebuildReport,
    ) -> Result<Vec<(PackPath, ListedFile)>, Error> {
        let mut done: Vec<(PackPath, ListedFile)> = Vec::new();
        for (file, listed) in std::mem::take(&mut found.damaged) {
            // Of what was set aside earlier it was told then what is lost.
            let is_told = file.path != self.layout.pack(&file.pack);
            match salvage::salvage(&self.layout, &file, &mut found.evidence)? {
                Outcome::Repaired(bytes) => {
                    self.put_back(&file, &bytes, &mut found.new)?;
                    done.retain(|(other, _)| other.pack != file.pack);
                    report.packs_repaired += 1;
                    continue;
                }
                Outcome::Saved(salvage) => {
                    for saved in salvage.saved {
                        self.save(saved, &mut found.new)?;
                    }
                    if !is_told {
                        let new = &found.new;
                        let lost =
                            (salvage.lost.into_iter()).filter(|(e, _)| !new.entries.contains(e));
                        let lost: Vec<String> = lost.map(|(_, what)| what).collect();
                        let told = salvage.faults.into_iter().chain(in_short(lost));
                        let told = told.map(|what| self.left_out(&file.pack, what));
                        report.problems.extend(told);
                    }
                }
            }
            if !is_told {
                done.push((file, listed));
            }
        }
        for (spec, builder) in std::mem::take(&mut found.new.builders) {
            if !builder.is_empty() {
                let mut rows = Vec::new();
                write_pack(self, &builder, &mut rows)?;
                found.new.add(&spec, rows)?;
            }
        }
        Ok(done)
    }

    /// Adds an entry of a damaged pack to a new one, unless a sound pack has it.
    fn save(&self, saved: SavedEntry, new: &mut NewIndex<'_>) -> Result<(), Error> {
        let spec = saved.spec;
        if !new.entries.insert(saved.packed.record.entry) {
            return Ok(());
        }
        new.specs.insert(spec, saved.spec_json.clone());
        let target = new
            .builders
            .entry(spec)
            .or_insert_with(|| PackBuilder::new(spec, saved.spec_json));
        let mut rows = Vec::new();
        move_entry(self, target, saved.packed, saved.payloads, &mut rows)?;
        new.add(&spec, rows)
    }

    /// Writes a pack with its right bytes in the place of the damaged ones.
    fn put_back(&self, file: &PackPath, bytes: &[u8], new: &mut NewIndex<'_>) -> Result<(), Error> {
        let opened = packed::read_pack(&file.path, &file.pack, bytes)?;
        let dir = self.layout.pack_dir(&file.pack);
        write_once(self.disk(), &dir, layout::pack_name(&file.pack), &[bytes])?;
        let records: Vec<Record> = opened.entries.into_iter().map(|e| e.record).collect();
        new.entries
            .extend(records.iter().map(|record| record.entry));
        new.specs.insert(opened.spec, opened.spec_json);
        new.add(&opened.spec, records)
    }

    /// Tells of rows whose pack is not there at all.
    fn tell_lost_packs(&self, found: &Found<'_>, report: &mut RebuildReport) {
        for (pack, entries) in &found.missing {
            let lost = entries.iter().filter(|e| !found.new.entries.contains(e));
            let lost = lost.count();
            if lost > 0 {
                let what = format!("missing, {} lost", shown::counted(lost, "entry"));
                report.problems.push(self.left_out(pack, what));
            }
        }
    }

    fn left_out(&self, pack: &Digest, what: String) -> Problem {
        Problem::of(&self.layout, &self.layout.pack(pack), what, LEFT_OUT)
    }
}

/// The first few texts, and how many others there are.
fn in_short(mut texts: Vec<String>) -> Vec<String> {
    let more = texts.len().saturating_sub(NAMED_LOSSES);
    texts.truncate(NAMED_LOSSES);
    if more > 0 {
        let more = shown::counted(more, "further entry");
        texts.push(format!("{more}, in the same way"));
    }
    texts
}

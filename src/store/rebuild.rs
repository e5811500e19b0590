//! Making the index anew from the packs. A pack with damage in it is set aside under another name, and what is sound in it
//! moves to a new pack; what was set aside and turns out sound comes back.
//!
//! Everything is read before anything is changed. A file that cannot be read ends it: only content that was read whole and
//! does not fit is damage.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::compact::remove_parts;
use super::disk::{Disk, ListedFile, write_once};
use super::gc::move_entry;
use super::layout::{self, PackPath};
use super::merge::write_parts;
use super::pack::PackBuilder;
use super::packfile::{self, PackState};
use super::record::Record;
use super::salvage::{Evidence, Outcome, SavedEntry, salvage};
use super::snapshot::decode_part;
use super::writer::write_pack;
use super::{Error, Local, Problem, Store, index, lock, packed, specs};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;

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

/// What the disk holds, read before anything is changed.
struct Found {
    /// All packs, in whatever state.
    here: HashSet<Digest>,
    /// By spec: the index parts there are, which go unless the new index has them.
    old_parts: BTreeMap<Fingerprint, Vec<(Digest, ListedFile)>>,
    /// Damaged packs, those under their names first.
    damaged: Vec<(PackPath, ListedFile)>,
    /// Packs that were set aside and are sound.
    restored: Vec<PackPath>,
    evidence: Evidence,
    new: NewIndex,
}

/// What the new index will have.
#[derive(Default)]
struct NewIndex {
    specs: BTreeMap<Fingerprint, String>,
    records: BTreeMap<Fingerprint, Vec<Record>>,
    /// Whatever their specs: a fingerprint is that of one entry of one spec.
    entries: HashSet<Fingerprint>,
    builders: BTreeMap<Fingerprint, PackBuilder>,
}

impl NewIndex {
    fn add(&mut self, spec: Fingerprint, spec_json: String, records: Vec<Record>) {
        self.entries.extend(records.iter().map(|r| r.entry));
        self.records.entry(spec).or_default().extend(records);
        self.specs.insert(spec, spec_json);
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
        let found = store.look(&mut report, monitor)?;
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

    /// Reads the packs and what the old index says of those that are not sound.
    fn look(&self, report: &mut RebuildReport, monitor: &dyn Monitor) -> Result<Found, Error> {
        let layout = &self.layout;
        let files = layout.pack_files()?;
        report.packs = files.len() as u64;
        let aside = layout.set_aside_files()?;
        let all: Vec<_> = files.into_iter().chain(aside).collect();
        let bytes = all.iter().map(|(_, f)| f.bytes).sum();
        monitor.start("reading packs", Some(bytes));
        let states = packfile::each(&all, monitor, |file| packfile::read_state(layout, file));
        monitor.finish();
        let mut found = Found {
            here: HashSet::new(),
            old_parts: BTreeMap::new(),
            damaged: Vec::new(),
            restored: Vec::new(),
            evidence: Evidence::default(),
            new: NewIndex::default(),
        };
        let mut sound = HashSet::new();
        for ((file, listed), state) in all.into_iter().zip(states?) {
            let is_aside = file.path != layout.pack(&file.pack);
            if is_aside && !listed.is_own {
                continue;
            }
            found.here.insert(file.pack);
            found.evidence.packs.insert(file.pack);
            match state {
                // Both are there after a crash, or where somebody put it back by hand.
                PackState::Sound { .. } if sound.contains(&file.pack) => {}
                PackState::Sound {
                    spec,
                    spec_json,
                    records,
                } => {
                    sound.insert(file.pack);
                    found.new.add(spec, spec_json, records);
                    if is_aside {
                        found.restored.push(file);
                    }
                }
                PackState::Damaged => found.damaged.push((file, listed)),
                PackState::Foreign(why) => report.problems.push(self.left_out(&file.pack, why)),
            }
        }
        found
            .damaged
            .retain(|(file, _)| !sound.contains(&file.pack));
        self.read_old_index(&sound, &mut found)?;
        Ok(found)
    }

    fn read_old_index(&self, sound: &HashSet<Digest>, found: &mut Found) -> Result<(), Error> {
        let evidence = &mut found.evidence;
        for spec in self.layout.indexed_specs()? {
            let parts = self.layout.index_parts(&spec)?;
            for (part, _) in &parts {
                let records = match decode_part(&self.layout, &spec, part, index::records) {
                    Ok(records) => records,
                    // A damaged part says nothing; that is what it is made anew for.
                    Err(e) if e.is_content() => continue,
                    Err(e) => return Err(e),
                };
                for record in records {
                    evidence.packs.insert(record.pack);
                    if !sound.contains(&record.pack) {
                        let rows = evidence.rows.entry(record.pack).or_default();
                        rows.insert(record.entry, (spec, record));
                    }
                }
            }
            // Listed before anything is written: what is in this list and not in the new index goes.
            found.old_parts.insert(spec, parts);
        }
        evidence.specs = specs::read_sound(&self.layout)?;
        evidence.specs.extend(found.new.specs.clone());
        Ok(())
    }

    fn rebuild(
        &self,
        mut found: Found,
        specs: specs::Misnamed,
        report: &mut RebuildReport,
    ) -> Result<(), Error> {
        // The last that reads packs, so the first that writes: if it fails, nothing but new packs was added.
        let aside = self.save_damaged(&mut found, report)?;
        for file in &found.restored {
            self.rename_pack(&file.path, &self.layout.pack(&file.pack), &file.pack)?;
            report.packs_restored += 1;
        }
        self.tell_lost_packs(&found, report);
        // Before the index, as a writer puts a spec before its first entry.
        for (spec, json) in &found.new.specs {
            report.specs_written += u64::from(specs::write(self, spec, json.as_bytes())?);
        }
        specs.mend(self, report)?;
        let mut new: BTreeMap<Fingerprint, Vec<Digest>> = BTreeMap::new();
        let mut named = HashSet::new();
        for (spec, mut records) in found.new.records {
            named.extend(records.iter().map(|r| r.pack));
            // The same packs make the same parts, so a part that is right already is not among those removed.
            records.sort_by_key(|r| (r.entry, r.pack));
            report.entries += records.len() as u64;
            let parts = write_parts(self, &spec, records)?;
            report.parts_written += parts.len() as u64;
            new.insert(spec, parts);
        }
        for (spec, parts) in found.old_parts {
            let kept = new.remove(&spec).unwrap_or_default();
            let parts = parts.iter().filter(|(_, f)| f.is_own);
            let gone = parts.map(|(part, _)| part).filter(|p| !kept.contains(p));
            report.parts_removed += remove_parts(&self.layout, &spec, gone)? as u64;
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
        found: &mut Found,
        report: &mut RebuildReport,
    ) -> Result<Vec<(PackPath, ListedFile)>, Error> {
        let mut done: Vec<(PackPath, ListedFile)> = Vec::new();
        for (file, listed) in std::mem::take(&mut found.damaged) {
            // Of what was set aside earlier it was told then what is lost.
            let is_told = file.path != self.layout.pack(&file.pack);
            match salvage(&self.layout, &file, &mut found.evidence)? {
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
        for (spec, builder) in &found.new.builders {
            if !builder.is_empty() {
                write_pack(self, builder, found.new.records.entry(*spec).or_default())?;
            }
        }
        Ok(done)
    }

    /// Adds an entry of a damaged pack to a new one, unless a sound pack has it.
    fn save(&self, saved: SavedEntry, new: &mut NewIndex) -> Result<(), Error> {
        let spec = saved.spec;
        if !new.entries.insert(saved.packed.record.entry) {
            return Ok(());
        }
        new.specs.insert(spec, saved.spec_json.clone());
        let target = new
            .builders
            .entry(spec)
            .or_insert_with(|| PackBuilder::new(spec, saved.spec_json));
        let rows = new.records.entry(spec).or_default();
        move_entry(self, target, saved.packed, saved.payloads, rows)
    }

    /// Writes a pack with its right bytes in the place of the damaged ones.
    fn put_back(&self, file: &PackPath, bytes: &[u8], new: &mut NewIndex) -> Result<(), Error> {
        let opened = packed::read_pack(&file.path, &file.pack, bytes)?;
        let dir = self.layout.pack_dir(&file.pack);
        write_once(self.disk(), &dir, &layout::pack_name(&file.pack), &[bytes])?;
        let records = opened.entries.into_iter().map(|e| e.record).collect();
        new.add(opened.spec, opened.spec_json, records);
        Ok(())
    }

    /// Tells of rows whose pack is not there at all.
    fn tell_lost_packs(&self, found: &Found, report: &mut RebuildReport) {
        for (pack, rows) in &found.evidence.rows {
            let is_lost = |entry: &&Fingerprint| !found.new.entries.contains(*entry);
            let lost = rows.keys().filter(is_lost).count();
            if lost > 0 && !found.here.contains(pack) {
                let what = format!("missing, {lost} entries lost");
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
        texts.push(format!("{more} more entries, in the same way"));
    }
    texts
}

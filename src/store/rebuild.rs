//! Making the index anew from the packs alone. A pack with damage in it is set aside under another name, and
//! what is sound in it moves to a new pack.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::{IntoParallelRefIterator as _, ParallelIterator as _};
use serde::Serialize;

use super::check::open_pack;
use super::compact::{remove_parts, write_parts};
use super::disk::{Disk, create_dirs, write_once};
use super::gc::move_entry;
use super::layout::{self, Layout, SET_ASIDE};
use super::pack::PackBuilder;
use super::record::Record;
use super::writer::write_pack;
use super::{Error, Local, Problem, Store, lock, relative};
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
    /// Spec files written anew.
    pub specs_written: u64,
    /// Whether `store.json` was written anew.
    pub store_json_written: bool,
    /// What was left out, and why. Encoding again replaces it.
    pub problems: Vec<Problem>,
}

/// The outcome of reading a pack.
enum PackState {
    /// Every byte is what was written.
    Sound {
        spec: Fingerprint,
        spec_json: String,
        records: Vec<Record>,
    },
    Damaged,
    /// Of a format that this program does not know: left alone.
    Foreign(String),
}

/// What the packs say, gathered for the new index.
#[derive(Default)]
struct RebuiltIndex {
    specs: BTreeMap<Fingerprint, String>,
    records: BTreeMap<Fingerprint, Vec<Record>>,
    builders: BTreeMap<Fingerprint, PackBuilder>,
    damaged: Vec<Digest>,
}

impl Store {
    /// Makes the index of the store at `path` anew from its packs, and `store.json` and the specs where they are
    /// missing or damaged. Reads every byte; entries whose payload is not what was written are left out.
    ///
    /// # Errors
    /// If there are no packs, if the store is of a newer format or in use by a writer, or if it cannot be
    /// written. What was there before is then still there.
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
        let layout = Layout {
            root: path.to_owned(),
        };
        let marker = layout::read_marker(&layout.marker());
        match &marker {
            Err(Error::NewerFormat { .. }) => return marker.map(|_| RebuildReport::default()),
            Err(_) if !layout.packs().is_dir() => {
                Self::open_with(path, disk)?;
                return Ok(RebuildReport::default());
            }
            _ => {}
        }
        let _lock = lock::exclusive(&*disk, &layout)?;
        let store = Self { layout, disk };
        let mut report = RebuildReport::default();
        if marker.is_err() {
            write_once(
                &*store.disk,
                path,
                layout::MARKER,
                &[&layout::marker_bytes()],
            )?;
            report.store_json_written = true;
        }
        store.rebuild(&mut report, monitor)?;
        report.problems.sort();
        Ok(report)
    }

    fn rebuild(&self, report: &mut RebuildReport, monitor: &dyn Monitor) -> Result<(), Error> {
        let mut old = BTreeMap::new();
        // Listed before anything is written: what is in this list and not in the new index goes.
        for spec in self.layout.indexed_specs()? {
            old.insert(spec, self.layout.index_parts(&spec)?);
        }
        let mut found = self.read_packs(report, monitor)?;
        self.save_sound(&mut found, report)?;
        // Before the index, as a writer puts a spec before its first entry.
        self.write_specs(&found.specs, report)?;
        let mut new: BTreeMap<Fingerprint, Vec<Digest>> = BTreeMap::new();
        for (spec, mut records) in found.records {
            // The same packs make the same parts, so a part that is right already is not among those removed.
            records.sort_by_key(|r| (r.entry, r.pack));
            report.entries += records.len() as u64;
            let parts = write_parts(self, &spec, &records)?;
            report.parts_written += parts.len() as u64;
            new.insert(spec, parts);
        }
        for (spec, parts) in old {
            let kept = new.remove(&spec).unwrap_or_default();
            let gone = parts
                .iter()
                .map(|(part, _)| part)
                .filter(|p| !kept.contains(p));
            report.parts_removed += remove_parts(self, &spec, gone)? as u64;
        }
        // Last, when no row names them any more. Renamed, not removed: a person may still want to look.
        for pack in &found.damaged {
            let path = self.layout.pack(pack);
            let aside = self
                .layout
                .pack_dir(pack)
                .join(format!("{pack}{SET_ASIDE}"));
            self.disk
                .rename(&path, &aside)
                .map_err(|e| Error::io("set aside", &path, e))?;
            report.packs_set_aside += 1;
        }
        Ok(())
    }

    fn read_packs(
        &self,
        report: &mut RebuildReport,
        monitor: &dyn Monitor,
    ) -> Result<RebuiltIndex, Error> {
        let packs = self.layout.list_packs()?;
        report.packs = packs.len() as u64;
        monitor.start(
            "reading packs",
            Some(packs.iter().map(|(_, f)| f.bytes).sum()),
        );
        let states: Vec<(Digest, PackState)> = packs
            .par_iter()
            .map(|(pack, file)| {
                let state = read_pack(&self.layout, pack);
                monitor.advance(file.bytes);
                (*pack, state)
            })
            .collect();
        monitor.finish();
        let mut found = RebuiltIndex::default();
        for (pack, state) in states {
            match state {
                PackState::Sound {
                    spec,
                    spec_json,
                    records,
                } => {
                    found.records.entry(spec).or_default().extend(records);
                    found.specs.insert(spec, spec_json);
                }
                PackState::Damaged => found.damaged.push(pack),
                PackState::Foreign(why) => report.problems.push(self.left_out(&pack, why)),
            }
        }
        Ok(found)
    }

    /// Copies the sound entries of damaged packs into new ones.
    fn save_sound(
        &self,
        found: &mut RebuiltIndex,
        report: &mut RebuildReport,
    ) -> Result<(), Error> {
        for pack in &found.damaged {
            let (map, opened) = match open_pack(&self.layout, pack) {
                Ok(opened) => opened,
                Err(e) => {
                    report.problems.push(self.left_out(pack, e.to_string()));
                    continue;
                }
            };
            report.problems.extend(
                opened
                    .faults
                    .into_iter()
                    .map(|why| self.left_out(pack, why)),
            );
            let rows = found.records.entry(opened.spec).or_default();
            // Its header was sound enough to be believed, whatever its payloads are.
            found.specs.insert(opened.spec, opened.spec_json.clone());
            let target = found
                .builders
                .entry(opened.spec)
                .or_insert_with(|| PackBuilder::new(opened.spec, opened.spec_json));
            for packed in opened.entries {
                match packed.payloads(&map) {
                    Ok(payloads) => {
                        let payloads = payloads.into_iter().map(<[u8]>::to_vec).collect();
                        move_entry(self, target, packed, payloads, rows)?;
                    }
                    Err(why) => {
                        let entry = &packed.record;
                        let what = format!("entry {} ({:?}): {why}", entry.entry, entry.source);
                        report.problems.push(self.left_out(pack, what));
                    }
                }
            }
        }
        for (spec, builder) in &found.builders {
            if !builder.is_empty() {
                write_pack(self, builder, found.records.entry(*spec).or_default())?;
            }
        }
        Ok(())
    }

    fn write_specs(
        &self,
        specs: &BTreeMap<Fingerprint, String>,
        report: &mut RebuildReport,
    ) -> Result<(), Error> {
        for (spec, json) in specs {
            if layout::read_spec(&self.layout.spec(spec), spec).is_err() {
                let dir = self.layout.specs();
                create_dirs(&*self.disk, &self.layout.root, &dir)?;
                write_once(
                    &*self.disk,
                    &dir,
                    &format!("{spec}.json"),
                    &[json.as_bytes()],
                )?;
                report.specs_written += 1;
            }
        }
        Ok(())
    }

    fn left_out(&self, pack: &Digest, what: String) -> Problem {
        let path = self.layout.pack(pack);
        let prefix = format!("{}: ", path.display());
        Problem {
            file: relative(&self.layout, &path),
            what: what.strip_prefix(&prefix).unwrap_or(&what).to_owned(),
            mend: "left out; encoding again replaces it".to_owned(),
        }
    }
}

fn read_pack(layout: &Layout, pack: &Digest) -> PackState {
    match open_pack(layout, pack) {
        Err(e @ Error::NewerFormat { .. }) => PackState::Foreign(e.to_string()),
        Ok((map, opened)) if opened.faults.is_empty() && Digest::of(&map) == *pack => {
            // The file is what was written; were a payload not what its header says, it would have been so
            // from the beginning, and reading it would tell.
            let records = opened.entries.into_iter().map(|e| e.record).collect();
            PackState::Sound {
                spec: opened.spec,
                spec_json: opened.spec_json,
                records,
            }
        }
        // A faulty header, or a digest that is not the name's: entry by entry, in `save_sound`.
        _ => PackState::Damaged,
    }
}

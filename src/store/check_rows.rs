//! What the index says, compared with what packs and runs say. Where there are more rows than there is room for, the index is read again for some of
//! the packs that it does not agree with (`by_pack`), and for a range of fingerprints at a time (`sweep`).

use std::collections::{BTreeMap, HashSet};

use super::by_pack::Row;
use super::check::{Look, REBUILD, UNREADABLE};
use super::check_pack::{PackFindings, check_pack};
use super::disk::ListedFile;
use super::entry_range::EntryRange;
use super::layout::PackPath;
use super::run_lists::num_missing;
use super::sweep::RowSet;
use super::{Error, packfile, relative};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;
use crate::shown;

/// Of the rows in memory, the entries of packs that are remembered for the next look.
const CACHED_SHARE: usize = 4;

/// A pack's file, and how it was listed.
type PackFile = (PackPath, ListedFile);

impl Look<'_> {
    /// Reads the packs that are not known yet, and compares what the index says of each.
    pub(super) fn read_packs(&mut self, monitor: &dyn Monitor) -> Result<(), Error> {
        let files = self.store.layout.pack_files()?;
        self.report.packs = files.len() as u64;
        self.report.pack_bytes = files.iter().map(|(_, f)| f.bytes).sum();
        monitor.start("checking packs", Some(self.unread_bytes(&files)));
        let here: HashSet<Digest> = files.iter().map(|(file, _)| file.pack).collect();
        let by_pack = self.by_pack.clone();
        let missing = by_pack.packs().iter().filter(|p| !here.contains(*p));
        let missing = missing.map(|pack| (*pack, None));
        let files = match by_pack.held() {
            Some(_) => files,
            None => {
                let unlike = self.unlike(files, monitor)?;
                if !unlike.is_empty() {
                    monitor.finish();
                    monitor.start(
                        "comparing packs that differ",
                        Some(self.unread_bytes(&unlike)),
                    );
                }
                unlike
            }
        };
        let files = files.into_iter().map(|file| (file.0.pack, Some(file)));
        for some in by_pack.lots(missing.chain(files)) {
            let layout = &self.store.layout;
            let rows = by_pack.rows_of(&some, |(spec, part), e| {
                // One that is gone was merged into another since it was read first, which the end of this look finds.
                if !e.is_gone() {
                    self.wrong(&layout.index_part(spec, part), &e, REBUILD);
                }
            });
            self.compare_some(some, &rows, monitor)?;
        }
        self.count_unnamed()?;
        monitor.finish();
        Ok(())
    }

    fn unread_bytes(&self, files: &[PackFile]) -> u64 {
        let known = &self.packed.findings;
        let unread = files.iter().filter(|(f, _)| !known.contains_key(&f.pack));
        unread.map(|(_, f)| f.bytes).sum()
    }

    /// Of packs, those of which the index does not name just the entries that they have. The others are compared without looking for their rows.
    fn unlike(
        &mut self,
        files: Vec<PackFile>,
        monitor: &dyn Monitor,
    ) -> Result<Vec<PackFile>, Error> {
        let by_pack = self.by_pack.clone();
        let mut unlike = Vec::new();
        self.each_pack(files, monitor, |look, file, found| {
            let pack = &file.0.pack;
            match found.and_then(|found| by_pack.rows_if_just(pack, &found.entries)) {
                Some(rows) => look.compare(pack, found, &rows),
                None => unlike.push(file.clone()),
            }
            Ok(())
        })?;
        Ok(unlike)
    }

    /// Compares some packs, of which these are the rows, by pack.
    fn compare_some(
        &mut self,
        some: Vec<(Digest, Option<PackFile>)>,
        rows: &[Row],
        monitor: &dyn Monitor,
    ) -> Result<(), Error> {
        let mut files = Vec::new();
        for (pack, file) in some {
            match file {
                None => self.compare(&pack, None, rows),
                Some(file) => files.push(file),
            }
        }
        let most = self.rows_in_memory();
        self.each_pack(files, monitor, |look, (file, _), found| {
            // Gone since it was listed: no row names it any more, or this is not the last look.
            look.compare(&file.pack, found, rows);
            match look.unnamed.len() >= most {
                true => look.count_unnamed(),
                false => Ok(()),
            }
        })
    }

    /// Gives `take` what each pack shows, or None of one that is gone. Those that were not read yet are read, and kept for the next look where there
    /// is room.
    fn each_pack(
        &mut self,
        files: Vec<PackFile>,
        monitor: &dyn Monitor,
        mut take: impl FnMut(&mut Self, &PackFile, Option<&PackFindings>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut unread = Vec::new();
        for file in files {
            match self.packed.findings.remove(&file.0.pack) {
                None => unread.push(file),
                Some(found) => {
                    take(self, &file, Some(&found))?;
                    self.packed.findings.insert(file.0.pack, found);
                }
            }
        }
        let (store, read_data) = (self.store, self.report.read_data);
        let most_kept = self.rows_in_memory() / CACHED_SHARE;
        packfile::each(
            &unread,
            monitor,
            |file| Ok(check_pack(store, file, read_data)),
            |file, found| {
                take(self, file, found.as_ref())?;
                if let Some(found) = found
                    && self.packed.entries < most_kept
                {
                    self.packed.entries += found.entries.len();
                    self.packed.findings.insert(file.0.pack, found);
                }
                Ok(())
            },
        )
    }

    /// Compares the rows that name a pack, among others by pack, with what it says; None of one that is not there.
    fn compare(&mut self, pack: &Digest, found: Option<&PackFindings>, rows: &[Row]) {
        let by_pack = self.by_pack.clone();
        let of_pack = by_pack.of_pack(rows, pack);
        let path = self.store.layout.pack(pack);
        let Some(found) = found else {
            // Counted by pack and fault: a lost pack is one problem, not a thousand.
            for row in of_pack {
                *self
                    .wrong
                    .entry((row.part, *pack, "is missing"))
                    .or_default() += 1;
            }
            return;
        };
        for what in &found.problems {
            self.problem(&path, what.clone(), REBUILD);
        }
        if let Some(what) = &found.unreadable {
            return self.problem(&path, what.clone(), UNREADABLE);
        }
        for row in of_pack {
            let what = match found.entries.get(&row.entry) {
                None => "does not hold them",
                Some(packed) if *packed != row.record => "says otherwise of them",
                Some(_) => {
                    // A damaged payload that no row names harms nobody: it is told only here.
                    if let Some(what) = found.damaged.get(&row.entry) {
                        self.problem(&path, what.clone(), REBUILD);
                    }
                    continue;
                }
            };
            *self.wrong.entry((row.part, *pack, what)).or_default() += 1;
        }
        let named: HashSet<&Fingerprint> = of_pack.iter().map(|row| &row.entry).collect();
        let unnamed = found.entries.keys().filter(|entry| !named.contains(entry));
        let sound = unnamed.filter(|entry| !found.damaged.contains_key(entry));
        self.unnamed.extend(sound);
    }

    pub(super) fn tell_wrong(&mut self) {
        for ((part, pack, what), entries) in std::mem::take(&mut self.wrong) {
            let layout = &self.store.layout;
            let (spec, part) = &self.by_pack.parts[part as usize];
            let pack = relative(layout, &layout.pack(&pack));
            let what = format!(
                "names {} in {pack}, which {what}",
                shown::counted(entries, "entry")
            );
            let path = layout.index_part(spec, part);
            self.problem(&path, what, REBUILD);
        }
    }

    /// Counts the entries that no row names at all: an entry may be in several packs, and one row that names it is enough.
    fn count_unnamed(&mut self) -> Result<(), Error> {
        let mut unnamed = std::mem::take(&mut self.unnamed);
        if unnamed.is_empty() {
            return Ok(());
        }
        unnamed.sort_unstable();
        let mut named = RowSet::default();
        let mut name = |entry: &Fingerprint| {
            let start = unnamed.partition_point(|other| other < entry);
            let alike = unnamed[start..].iter().take_while(|other| *other == entry);
            for (at, _) in (start as u32..).zip(alike) {
                named.insert(at);
            }
        };
        if let Some(rows) = self.by_pack.held() {
            for row in rows {
                name(&row.entry);
            }
        } else {
            for spec in &self.index {
                spec.read(&self.store.layout, EntryRange::all(), |_, found| {
                    // Of one that cannot be read it was told.
                    for rows in found.iter().flatten() {
                        name(&rows.entry);
                    }
                    Ok(())
                })?;
            }
        }
        let unnamed = (0..unnamed.len() as u32).filter(|at| !named.contains(*at));
        self.report.unindexed_entries += unnamed.count() as u64;
        Ok(())
    }

    /// Counts the entries of the index, and those of each run that are not there.
    pub(super) fn compare_runs(&mut self) -> Result<(), Error> {
        let listed: u64 = self.runs.iter().map(|run| run.num_entries).sum();
        let mut missing = vec![0; self.runs.len()];
        for range in EntryRange::for_rows(self.by_pack.num_rows.max(listed), self.rows_in_memory())
        {
            let indexed = self.indexed(range)?;
            self.report.entries += indexed.values().map(|all| all.len() as u64).sum::<u64>();
            for (run, missing) in self.runs.iter().zip(&mut missing) {
                // Gone, or another by now: the end of this look finds that.
                let listed = self.store.same_run_within(run, range);
                *missing += listed.map_or(0, |listed| num_missing(&listed, &indexed));
            }
        }
        // Otherwise what the index does not name may well be there.
        if !self.is_index_known {
            return Ok(());
        }
        let lacking = self
            .runs
            .iter()
            .zip(missing)
            .filter(|(_, missing)| *missing > 0);
        let told = lacking.map(|(run, missing)| {
            let what = format!(
                "lacks {} that it uses",
                shown::part_of(missing, run.num_entries, "entry")
            );
            (self.store.layout.run(&run.id), what)
        });
        for (path, what) in told.collect::<Vec<_>>() {
            self.problem(&path, what, "encoding again adds them; or remove the file");
        }
        Ok(())
    }

    /// The entries that the index names in a range, by spec, sorted, each once.
    fn indexed(
        &mut self,
        range: EntryRange,
    ) -> Result<BTreeMap<Fingerprint, Vec<Fingerprint>>, Error> {
        let mut indexed: BTreeMap<Fingerprint, Vec<Fingerprint>> = BTreeMap::new();
        if let Some(rows) = self.by_pack.held() {
            for row in rows.iter().filter(|row| range.has(&row.entry)) {
                let (spec, _) = self.by_pack.parts[row.part as usize];
                indexed.entry(spec).or_default().push(row.entry);
            }
        } else {
            for of in &self.index {
                let all = indexed.entry(of.spec).or_default();
                let is_index_known = &mut self.is_index_known;
                of.read(&self.store.layout, range, |_, found| {
                    *is_index_known &= found.as_ref().err().is_none_or(Error::is_content);
                    all.extend(found.iter().flatten().map(|rows| rows.entry));
                    Ok(())
                })?;
            }
        }
        for all in indexed.values_mut() {
            all.sort_unstable();
            all.dedup();
        }
        Ok(indexed)
    }
}

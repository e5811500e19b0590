//! What the index says, compared with what packs and runs say. Where there are more rows than there is room for, the index is read again for some
//! packs at a time, and for a range of fingerprints at a time (`sweep`).

use std::collections::{BTreeMap, HashSet};

use super::check::{Look, REBUILD, Row, UNREADABLE};
use super::check_pack::{PackFindings, check_pack, record_digest};
use super::disk::ListedFile;
use super::layout::PackPath;
use super::record::Record;
use super::snapshot::each_record;
use super::sweep::{Range, RowSet};
use super::{Error, Run, packfile, relative};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;
use crate::shown;

/// Of the rows in memory, the entries of packs that are remembered for the next look.
const CACHED_SHARE: usize = 4;

impl Look<'_> {
    /// Reads the packs that are not known yet, and compares what the index says of each.
    pub(super) fn read_packs(&mut self, monitor: &dyn Monitor) -> Result<(), Error> {
        let files = self.store.layout.pack_files()?;
        self.report.packs = files.len() as u64;
        self.report.pack_bytes = files.iter().map(|(_, f)| f.bytes).sum();
        let known = &self.packed.findings;
        let unread = files.iter().filter(|(f, _)| !known.contains_key(&f.pack));
        let unread = unread.map(|(_, f)| f.bytes).sum();
        monitor.start("checking packs", Some(unread));
        let here: HashSet<Digest> = files.iter().map(|(file, _)| file.pack).collect();
        let missing = self.packs.digests().iter().filter(|p| !here.contains(*p));
        let missing: Vec<Digest> = missing.copied().collect();
        let held = std::mem::take(&mut self.rows);
        let files = files.into_iter().map(|file| (file.0.pack, Some(file)));
        let all = missing.into_iter().map(|pack| (pack, None)).chain(files);
        for some in self.lots(all) {
            let read = match self.holds_rows {
                true => Vec::new(),
                false => self.rows_of_packs(some.iter().map(|(pack, _)| *pack)),
            };
            let rows = if self.holds_rows { &held } else { &read };
            self.read_some(some, rows, monitor)?;
        }
        self.count_unnamed(&held)?;
        self.rows = held;
        monitor.finish();
        Ok(())
    }

    /// Packs in lots of which there is room for the rows; in one where all rows are held.
    fn lots<T>(&self, packs: impl Iterator<Item = (Digest, T)>) -> Vec<Vec<(Digest, T)>> {
        let most = self.rows_in_memory() as u64;
        let (mut lots, mut lot, mut room) = (Vec::new(), Vec::new(), most);
        for (pack, file) in packs {
            let number = self.packs.get(&pack);
            let rows = number.map_or(0, |number| self.rows_of_pack[number as usize]);
            if rows > room && !self.holds_rows && !lot.is_empty() {
                lots.push(std::mem::take(&mut lot));
                room = most;
            }
            room = room.saturating_sub(rows);
            lot.push((pack, file));
        }
        lots.push(lot);
        lots
    }

    /// What the index says of the entries of some packs, by pack.
    fn rows_of_packs(&mut self, packs: impl Iterator<Item = Digest>) -> Vec<Row> {
        let wanted: HashSet<u32> = packs.filter_map(|pack| self.packs.get(&pack)).collect();
        let mut rows = Vec::new();
        let mut failed = Vec::new();
        for (number, (spec, part)) in (0u32..).zip(&self.parts) {
            let read = each_record(&self.store.layout, spec, part, |_, record| {
                let pack = self.packs.get(&record.pack);
                if let Some(pack) = pack.filter(|pack| wanted.contains(pack)) {
                    rows.push(row(pack, number, &record));
                }
                Ok(())
            });
            // One that is gone was merged into another since it was read first, which the end of this look finds.
            let e = read.err().filter(|e| !e.is_gone());
            failed.extend(e.map(|e| (self.store.layout.index_part(spec, part), e)));
        }
        for (path, e) in failed {
            self.wrong(&path, &e, REBUILD);
        }
        rows.sort_unstable_by_key(|row| (row.pack, row.part));
        rows
    }

    /// Compares some packs, of which these are the rows, by pack; those that were not read yet are read.
    fn read_some(
        &mut self,
        some: Vec<(Digest, Option<(PackPath, ListedFile)>)>,
        rows: &[Row],
        monitor: &dyn Monitor,
    ) -> Result<(), Error> {
        let mut unread = Vec::new();
        for (pack, file) in some {
            let found = self.packed.findings.remove(&pack);
            match (file, found) {
                (None, _) => self.compare(&pack, None, rows),
                (Some(file), None) => unread.push(file),
                (Some(_), Some(found)) => {
                    self.compare(&pack, Some(&found), rows);
                    self.packed.findings.insert(pack, found);
                }
            }
        }
        let (store, read_data) = (self.store, self.report.read_data);
        let most = self.rows_in_memory();
        packfile::each(
            &unread,
            monitor,
            |file| Ok(check_pack(store, file, read_data)),
            |(file, _), found| {
                // Gone since it was listed: no row names it any more, or this is not the last look.
                self.compare(&file.pack, found.as_ref(), rows);
                if self.unnamed.len() >= most {
                    self.count_unnamed(rows)?;
                }
                if let Some(found) = found
                    && self.packed.entries < most / CACHED_SHARE
                {
                    self.packed.entries += found.entries.len();
                    self.packed.findings.insert(file.pack, found);
                }
                Ok(())
            },
        )
    }

    /// Compares the rows that name a pack, among others by pack, with what it says; None of one that is not there.
    fn compare(&mut self, pack: &Digest, found: Option<&PackFindings>, rows: &[Row]) {
        let number = self.packs.get(pack);
        let of_pack = number.map_or(&rows[..0], |number| {
            let start = rows.partition_point(|row| row.pack < number);
            let end = rows.partition_point(|row| row.pack <= number);
            &rows[start..end]
        });
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
            let (spec, part) = &self.parts[part as usize];
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
    /// `rows` are all of them, where all are held.
    fn count_unnamed(&mut self, rows: &[Row]) -> Result<(), Error> {
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
        if self.holds_rows {
            for row in rows {
                name(&row.entry);
            }
        } else {
            for spec in &self.index {
                spec.read(&self.store.layout, Range::ALL, |_, found| {
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
        let listed: u64 = self.runs.iter().map(|(_, _, entries)| entries).sum();
        let mut missing = vec![0; self.runs.len()];
        for range in Range::each(self.num_rows.max(listed), self.rows_in_memory()) {
            let indexed = self.indexed(range)?;
            self.report.entries += indexed.values().map(|all| all.len() as u64).sum::<u64>();
            for ((id, digest, _), missing) in self.runs.iter().zip(&mut missing) {
                // Another one by now: the end of this look finds that.
                let run = self.store.run(id).ok().filter(|run| run.digest == *digest);
                for (spec, entry) in run.iter().flat_map(Run::listed) {
                    let all = indexed.get(&spec).map_or(&[][..], Vec::as_slice);
                    let is_missing = range.has(&entry) && all.binary_search(&entry).is_err();
                    *missing += u64::from(is_missing);
                }
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
        let told = lacking.map(|((id, _, all), missing)| {
            let what = format!(
                "lacks {} that it uses",
                shown::part_of(missing, all, "entry")
            );
            (self.store.layout.run(id), what)
        });
        for (path, what) in told.collect::<Vec<_>>() {
            self.problem(&path, what, "encoding again adds them; or remove the file");
        }
        Ok(())
    }

    /// The entries that the index names in a range, by spec, sorted, each once.
    fn indexed(&mut self, range: Range) -> Result<BTreeMap<Fingerprint, Vec<Fingerprint>>, Error> {
        let mut indexed: BTreeMap<Fingerprint, Vec<Fingerprint>> = BTreeMap::new();
        if self.holds_rows {
            for row in self.rows.iter().filter(|row| range.has(&row.entry)) {
                let (spec, _) = self.parts[row.part as usize];
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

/// A row by the numbers of its pack and part.
pub(super) fn row(pack: u32, part: u32, record: &Record) -> Row {
    Row {
        pack,
        part,
        entry: record.entry,
        record: record_digest(record),
    }
}

//! Garbage collection as it was planned (`gc`): packs of which something stays are written anew without the rest, the index without what
//! goes, and then the old files go.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::check_pack::record_digest;
use super::compact::remove_parts;
use super::gc::{GcPlan, SpecPlan};
use super::pack::{PACK_LIMIT_BYTES, PackBuilder};
use super::packed::{OpenedPack, PackedEntry};
use super::record::Record;
use super::snapshot::each_record;
use super::sorting::Sorting;
use super::writer::write_pack;
use super::{Error, GcReport, Problem, Store, disk, packfile};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;
use crate::shown;

/// Of each entry that stays of a pack, what the index says, as the digest of its record.
type Rows = HashMap<Fingerprint, Digest>;

impl Store {
    pub(super) fn carry_out(
        &self,
        mut plan: GcPlan,
        report: &mut GcReport,
        monitor: &dyn Monitor,
    ) -> Result<(), Error> {
        let changed = plan.specs.iter().filter(|spec| !spec.is_linked);
        let moving: usize = changed.map(|spec| spec.moving(&plan.rewrite).count()).sum();
        monitor.start("cleaning up", Some((moving + plan.remove.len()) as u64));
        let mut new_packs = HashSet::new();
        for spec in std::mem::take(&mut plan.specs) {
            if spec.is_linked {
                continue;
            }
            let is_moved = spec.moving(&plan.rewrite).next().is_some();
            // Nothing of it changes, and it has one part: its index stays as it is. Several are made one while we are at it.
            if !is_moved && !spec.is_thinned && spec.index.parts.len() < 2 {
                continue;
            }
            let mut sorting = Sorting::new(self, &spec.index.spec);
            let stuck = self.repack(&spec, &plan.rewrite, &mut sorting, report, monitor)?;
            plan.rewrite.retain(|pack| !stuck.contains(pack));
            new_packs.extend(self.write_index(&spec, &plan.rewrite, sorting)?);
        }
        report.packs_removed = (plan.remove.len() + plan.rewrite.len()) as u64;
        // A pack made anew may have the very bytes of an old one.
        let remove = |pack: &Digest| match new_packs.contains(pack) {
            true => Ok(()),
            false => disk::remove(self.disk(), &self.layout.pack(pack)),
        };
        for pack in &plan.remove {
            remove(pack)?;
            monitor.advance(1);
        }
        // These have advanced when they were rewritten.
        plan.rewrite.iter().try_for_each(remove)?;
        for path in &plan.leftovers {
            disk::remove(self.disk(), path)?;
        }
        monitor.finish();
        Ok(())
    }

    /// Writes the index of a spec anew: what was moved, and what stays of the packs that were not rewritten; then the old parts go. Gives
    /// the packs that it names.
    fn write_index(
        &self,
        plan: &SpecPlan,
        rewritten: &HashSet<Digest>,
        sorting: Sorting<'_>,
    ) -> Result<HashSet<Digest>, Error> {
        let spec = &plan.index.spec;
        let stays = |number: usize, row: u32, record: &Record| {
            !plan.goes[number].contains(row) && !rewritten.contains(&record.pack)
        };
        let staying = plan
            .kept
            .iter()
            .filter(|(pack, _)| !rewritten.contains(*pack));
        let staying: u64 = staying.map(|(_, kept)| kept.rows).sum();
        let made = sorting.finish_with(&plan.index, staying, &stays)?;
        // The same rows make the same part: one that was there before does not go.
        let old = plan.index.parts.iter().map(|(part, ..)| part);
        let gone = old.chain(&made.passing);
        let gone = gone.filter(|part| !made.new.contains(part));
        remove_parts(&self.layout, spec, gone)?;
        Ok(made.packs)
    }

    /// Copies what stays of the packs `rewrite` into new ones, and gives their rows to `sorting`. Gives the packs that cannot be taken
    /// apart: they stay, with their rows.
    fn repack(
        &self,
        plan: &SpecPlan,
        rewrite: &HashSet<Digest>,
        sorting: &mut Sorting<'_>,
        report: &mut GcReport,
        monitor: &dyn Monitor,
    ) -> Result<HashSet<Digest>, Error> {
        let mut stuck = HashSet::new();
        let mut builder: Option<PackBuilder> = None;
        let mut rows = Vec::new();
        let mut moving: Vec<(Digest, u64)> = plan.moving(rewrite).collect();
        moving.sort_unstable();
        let mut moving = moving.into_iter().peekable();
        // Some at a time: the index is not in the order of packs.
        while moving.peek().is_some() {
            let mut room = self.disk().rows_in_memory() as u64 / 2;
            let mut some = HashSet::new();
            while let Some((pack, entries)) =
                moving.next_if(|(_, entries)| some.is_empty() || *entries <= room)
            {
                some.insert(pack);
                room = room.saturating_sub(entries);
            }
            for (pack, indexed) in self.rows_of_packs(plan, &some)? {
                monitor.advance(1);
                let target = &mut builder;
                if !self.move_pack(plan, (&pack, &indexed), target, &mut rows, report)? {
                    stuck.insert(pack);
                }
                rows.drain(..).try_for_each(|row| sorting.push(row))?;
            }
        }
        if let Some(last) = builder.filter(|b| !b.is_empty()) {
            write_pack(self, &last, &mut rows)?;
        }
        rows.into_iter().try_for_each(|row| sorting.push(row))?;
        Ok(stuck)
    }

    /// What the index says of the entries that stay of some packs.
    fn rows_of_packs(
        &self,
        plan: &SpecPlan,
        packs: &HashSet<Digest>,
    ) -> Result<BTreeMap<Digest, Rows>, Error> {
        let mut found: BTreeMap<Digest, Rows> = BTreeMap::new();
        for (number, (part, ..)) in plan.index.parts.iter().enumerate() {
            each_record(&self.layout, &plan.index.spec, part, |row, record| {
                if packs.contains(&record.pack) && !plan.goes[number].contains(row) {
                    let rows = found.entry(record.pack).or_default();
                    rows.insert(record.entry, record_digest(&record));
                }
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// Copies what stays of a pack; false where it cannot be taken apart.
    fn move_pack(
        &self,
        plan: &SpecPlan,
        (pack, indexed): (&Digest, &Rows),
        builder: &mut Option<PackBuilder>,
        rows: &mut Vec<Record>,
        report: &mut GcReport,
    ) -> Result<bool, Error> {
        let (bytes, opened) = match self.open_as_indexed(pack, indexed) {
            Ok(opened) => opened,
            Err(e) if e.is_content() => {
                // Of a pack that is not what the index says nothing can be moved.
                let what = format!("not repacked: {e}");
                report.problems.push(self.problem(pack, what));
                return Ok(false);
            }
            Err(e) => return Err(e),
        };
        let target = builder
            .get_or_insert_with(|| PackBuilder::new(plan.index.spec, opened.spec_json.clone()));
        for packed in opened.entries {
            if !indexed.contains_key(&packed.record.entry) {
                continue;
            }
            match packed.payloads(&bytes) {
                Ok(payloads) => {
                    let payloads = payloads.into_iter().map(<[u8]>::to_vec).collect();
                    move_entry(self, target, packed, payloads, rows)?;
                }
                Err(why) => {
                    let entry = &packed.record;
                    let source = shown::text(&entry.source);
                    let what = format!("entry {} (\"{source}\") lost: {why}", entry.entry);
                    report.problems.push(self.problem(pack, what));
                }
            }
        }
        Ok(true)
    }

    /// Reads a pack whose header says of its entries what the index says: of the two, a damaged header would be believed.
    fn open_as_indexed(
        &self,
        pack: &Digest,
        indexed: &Rows,
    ) -> Result<(Vec<u8>, OpenedPack), Error> {
        let file = self.layout.pack_path(*pack);
        let (bytes, opened) = packfile::open(&self.layout, &file)?;
        let alike = opened.entries.iter();
        let alike = alike.filter(|e| {
            indexed
                .get(&e.record.entry)
                .is_some_and(|row| *row == record_digest(&e.record))
        });
        match alike.count() == indexed.len() {
            true => Ok((bytes, opened)),
            false => Err(Error::malformed(
                &file.path,
                "it says otherwise of its entries than the index; `plumb store rebuild-index` mends it",
            )),
        }
    }

    fn problem(&self, pack: &Digest, what: String) -> Problem {
        let path = self.layout.pack(pack);
        Problem::of(&self.layout, &path, what, "encoding again replaces it")
    }
}

impl SpecPlan {
    /// The packs of which something is to be moved, and how many entries.
    fn moving<'a>(
        &'a self,
        rewrite: &'a HashSet<Digest>,
    ) -> impl Iterator<Item = (Digest, u64)> + 'a {
        let kept = self.kept.iter().filter(|(_, kept)| kept.entries > 0);
        let moving = kept.filter(|(pack, _)| rewrite.contains(*pack));
        moving.map(|(pack, kept)| (*pack, kept.entries))
    }
}

/// Adds an entry of another pack to `target`, which goes to disk first if it would grow too large.
pub(super) fn move_entry(
    store: &Store,
    target: &mut PackBuilder,
    packed: PackedEntry,
    payloads: Vec<Vec<u8>>,
    rows: &mut Vec<Record>,
) -> Result<(), Error> {
    let bytes = payloads.iter().map(Vec::len).sum();
    if !target.is_empty() && target.is_full_for(bytes, packed.header_bytes(), PACK_LIMIT_BYTES) {
        write_pack(store, target, rows)?;
        target.clear();
    }
    target.push_packed(packed, payloads);
    Ok(())
}

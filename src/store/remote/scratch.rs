//! The index of a store on object storage, and its runs, in a folder of this machine for as long as maintenance goes through them. There the index is
//! read as that of a store in a folder is, a range of fingerprints at a time (`sweep`), so that no more of it is in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::lists::{IndexThere, Named};
use super::mirror::{write, write_part};
use super::{Remote, names};
use crate::digest::{Digest, Fingerprint};
use crate::store::entry_range::EntryRange;
use crate::store::index::Rows;
use crate::store::parts::{self, Listed, PartList};
use crate::store::run_lists::RunLists;
use crate::store::snapshot::decode_bytes;
use crate::store::sweep::{PackNumbers, SpecParts};
use crate::store::{Disk, Error, Local, NewFolder, Store, create_root};

/// As many processes of a machine may go through one index at once.
const FOLDERS: u32 = 64;

/// Where on this machine maintenance of a store on object storage puts the index while it works: in a folder of its own in this one, which goes in the
/// end. What a process that was killed leaves goes when the next one for the same store begins.
pub struct Scratch {
    above: PathBuf,
    disk: Arc<dyn Disk>,
}

impl Scratch {
    /// In the folder `above`, which is made where it is missing.
    pub fn in_folder(above: &Path) -> Self {
        Self::with(above, Arc::new(Local))
    }

    /// The same, with another way to the disk.
    pub fn with(above: &Path, disk: Arc<dyn Disk>) -> Self {
        let above = above.to_owned();
        Self { above, disk }
    }

    fn folder(&self, remote: &Remote) -> Result<NewFolder, Error> {
        let name = Digest::of(remote.address().to_string().as_bytes()).short();
        create_root(&Local, &self.above)?;
        let mut number = 0;
        loop {
            let path = self.above.join(format!("{name}-{number}"));
            match NewFolder::create(&path) {
                // Another process is in it.
                Err(Error::Refused(_)) if number < FOLDERS => number += 1,
                Err(Error::Refused(why)) => {
                    return Err(Error::Refused(format!("{} {why}", path.display())));
                }
                made => return made,
            }
        }
    }
}

/// A row of the index: an entry in a pack, by the numbers of the pack and of the index part.
pub(super) struct Found {
    pub(super) entry: Fingerprint,
    pub(super) pack: u32,
    pub(super) part: u32,
    /// The rows of the part that it is made of, one for each payload.
    pub(super) payloads: u32,
}

/// The index of a spec.
pub(super) struct SpecHere {
    pub(super) index: SpecParts,
    /// Of each part that was merged into others: how many of its rows none of those has that are to be read. None of these themselves.
    pub(super) alone: Vec<Option<u64>>,
}

/// What came.
pub(super) struct IndexHere<'a> {
    remote: &'a Remote,
    /// Without packs.
    pub(super) store: Store,
    pub(super) specs: Vec<SpecHere>,
    pub(super) packs: PackNumbers,
    pub(super) runs: Vec<RunLists>,
    /// What the parts say themselves that are large.
    known: Mutex<BTreeMap<Fingerprint, PartList>>,
    _folder: NewFolder,
}

impl<'a> IndexHere<'a> {
    /// Nothing of it yet.
    pub(super) fn new(remote: &'a Remote, scratch: &Scratch) -> Result<Self, Error> {
        let folder = scratch.folder(remote)?;
        Ok(Self {
            remote,
            store: Store::at(folder.path(), scratch.disk.clone()),
            specs: Vec::new(),
            packs: PackNumbers::default(),
            runs: Vec::new(),
            known: Mutex::default(),
            _folder: folder,
        })
    }

    /// Brings a run, or gives why it cannot be used.
    ///
    /// # Errors
    /// If it cannot be written here.
    pub(super) fn bring_run(&mut self, id: &str) -> Result<Result<(), Error>, Error> {
        let (run, bytes) = match self.remote.run_and_bytes(id) {
            Ok(read) => read,
            Err(e) => return Ok(Err(e)),
        };
        let layout = &self.store.layout;
        write(layout, &layout.runs(), &format!("{id}.json"), &bytes)?;
        self.runs.push(RunLists::of(&run, &bytes));
        Ok(Ok(()))
    }

    /// Brings an index part and gives what `look`, which must look at all of its rows, says of them; or gives why it cannot be used.
    ///
    /// # Errors
    /// If it cannot be written here.
    pub(super) fn bring<T>(
        &self,
        (spec, part): &Named,
        look: impl FnOnce(&dyn Rows) -> Result<T, String>,
    ) -> Result<Result<T, Error>, Error> {
        let bytes = match self.remote.part(spec, part) {
            Ok(bytes) => bytes,
            Err(e) => return Ok(Err(e)),
        };
        let name = self.remote.shown(&names::part(spec, part));
        let looked = decode_bytes(name.as_ref(), spec, bytes.clone(), look);
        if looked.is_ok() {
            write_part(&self.store.layout, spec, part, &bytes)?;
            // What its bytes say, whatever a list says of it.
            if let Some(known) = Listed::of(&bytes, spec) {
                let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                all.entry(*spec).or_default().insert(*part, known);
            }
        }
        Ok(looked)
    }

    /// After the last part came.
    pub(super) fn open(&mut self, there: &IndexThere) -> Result<(), Error> {
        let known = self.known.get_mut();
        let known = known.unwrap_or_else(PoisonError::into_inner);
        let layout = &self.store.layout;
        for spec in layout.indexed_specs()? {
            parts::update(layout, &spec, known.remove(&spec).unwrap_or_default())?;
            let index = SpecParts::list(layout, spec)?;
            let parts = index.parts.iter();
            let alone = parts.map(|(part, ..)| match there.live.contains_key(&(spec, *part)) {
                true => None,
                false => Some(0),
            });
            self.specs.push(SpecHere {
                alone: alone.collect(),
                index,
            });
        }
        Ok(())
    }

    /// Ranges of which each has as much as there is room for.
    pub(super) fn ranges(&self) -> impl Iterator<Item = EntryRange> + use<> {
        let rows = self.specs.iter().map(|of| of.index.most_rows());
        let rows = rows.fold(0, u64::saturating_add);
        let listed: u64 = self.runs.iter().map(|run| run.num_entries).sum();
        EntryRange::for_rows(rows.max(listed), self.store.disk().rows_in_memory())
    }

    /// The rows of a range that the spec of this number has, sorted by entry and pack. `failed` is given the parts that cannot be read.
    pub(super) fn rows(
        &mut self,
        spec: usize,
        range: EntryRange,
        failed: &mut dyn FnMut(Named, Error) -> Result<(), Error>,
    ) -> Result<Vec<Found>, Error> {
        let (index, packs) = (&self.specs[spec].index, &mut self.packs);
        let mut rows = Vec::new();
        index.read(&self.store.layout, range, |part, found| {
            let found = match found {
                Ok(found) => found.into_iter(),
                Err(e) => return failed((index.spec, index.parts[part].0), e),
            };
            rows.extend(found.map(|row| Found {
                entry: row.entry,
                pack: packs.of(row.pack),
                part: part as u32,
                payloads: row.rows,
            }));
            Ok(())
        })?;
        rows.sort_unstable_by_key(|row| (row.entry, row.pack, row.part));
        Ok(rows)
    }
}

impl SpecHere {
    /// Whether a row is of a part that is to be read.
    pub(super) fn is_live(&self, row: &Found) -> bool {
        self.alone[row.part as usize].is_none()
    }

    /// Compares the rows of merged parts, among all of a range, with those that are to be read.
    pub(super) fn compare_merged(&mut self, rows: &[Found]) {
        for same in rows.chunk_by(|a, b| (a.entry, a.pack) == (b.entry, b.pack)) {
            if same.iter().any(|row| self.is_live(row)) {
                continue;
            }
            for row in same {
                *self.alone[row.part as usize].get_or_insert(0) += 1;
            }
        }
    }

    /// Those parts that were merged, and how many of their rows are in none of those that are to be read.
    pub(super) fn merged(&self) -> impl Iterator<Item = (Named, u64)> {
        let parts = self.index.parts.iter().zip(&self.alone);
        parts.filter_map(|((part, ..), alone)| Some(((self.index.spec, *part), (*alone)?)))
    }

    /// Those that are to be read.
    pub(super) fn live(&self) -> impl Iterator<Item = &Digest> {
        let parts = self.index.parts.iter().zip(&self.alone);
        let live = parts.filter(|(_, alone)| alone.is_none());
        live.map(|((part, ..), _)| part)
    }
}

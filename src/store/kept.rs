//! Looking for some entries after others, as who is given captions batch after batch does: what was learnt of index parts is kept, as
//! far as there is room, and not read again. Parts never change, so that it stays true for as long as they are there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::layout::Layout;
use super::loading::{ListedPart, Scope};
use super::parts::{self, PartList};
use super::presence::EntryRows;
use super::ranged::RangedPart;
use super::{Error, Store, StoreReader};
use crate::digest::{Digest, Fingerprint};

/// Footers of index parts that are kept, of some 0.8 MB each.
const FOOTERS: usize = 256;
/// The most entries of a part that a commit left.
const COMMITTED: usize = 4096;

/// A part of a spec.
pub(super) type PartId = (Fingerprint, Digest);

/// A row group of a part, by its number; of `None`, all of a part.
pub(super) type RowsId = (PartId, Option<usize>);

/// Looks for some entries after others in an index that need not fit into memory.
pub struct Lookup {
    layout: Layout,
    kept: KeptParts,
}

/// What is kept of index parts.
pub(super) struct KeptParts {
    /// How many entries are kept, those that are read first, beside what commits left: of it all is kept, as all of it would be read
    /// each time.
    room: usize,
    found: Mutex<Found>,
}

/// When a file was written, and how long it is.
type Stamp = (u64, SystemTime);

#[derive(Default)]
struct Found {
    lists: BTreeMap<Fingerprint, (Stamp, Arc<PartList>)>,
    opened: HashMap<PartId, Arc<RangedPart>>,
    /// Sorted by entry.
    rows: HashMap<RowsId, Arc<Vec<EntryRows>>>,
    /// How many there are of those for which room is needed.
    num_rows: usize,
}

/// Whether room is needed to keep them.
fn takes_room(id: &RowsId, rows: &[EntryRows]) -> bool {
    id.1.is_some() || rows.len() > COMMITTED
}

impl Store {
    /// For who looks for some entries after others.
    pub fn lookup(&self) -> Lookup {
        Lookup {
            layout: self.layout.clone(),
            kept: KeptParts {
                // An entry takes more room here than where maintenance counts rows.
                room: self.disk().rows_in_memory() / 2,
                found: Mutex::default(),
            },
        }
    }
}

impl Lookup {
    /// As [`Store::reader_of_entries`], with what the index has now.
    ///
    /// # Errors
    /// As [`Store::reader`].
    pub fn reader_of_entries(
        &self,
        entries: &[(Fingerprint, Fingerprint)],
    ) -> Result<StoreReader, Error> {
        let scope = Scope::entries(entries);
        StoreReader::new(self.layout.clone(), scope, Some(&self.kept))
    }
}

impl KeptParts {
    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `parts.json` of a spec says.
    pub(super) fn list(&self, layout: &Layout, spec: &Fingerprint) -> Arc<PartList> {
        let seen = layout.disk.look_at(&layout.part_list(spec));
        // Before it is read: one that is replaced meanwhile is read once more.
        let stamp = seen.and_then(|file| Ok((file.len(), file.modified()?)));
        let Ok(stamp) = stamp else {
            return Arc::new(parts::read(layout, spec));
        };
        if let Some((before, list)) = self.found().lists.get(spec)
            && *before == stamp
        {
            return list.clone();
        }
        let list = Arc::new(parts::read(layout, spec));
        let mut found = self.found();
        found.lists.insert(*spec, (stamp, list.clone()));
        list
    }

    /// Forgets parts of `specs` that are not among those `listed`, and all that was read of one that is now known to be sorted.
    pub(super) fn forget_others(&self, specs: &[Fingerprint], listed: &[ListedPart<'_>]) {
        let here: HashMap<PartId, bool> = listed
            .iter()
            .map(|(spec, part, known)| ((*spec, *part), known.is_some()))
            .collect();
        let specs: HashSet<&Fingerprint> = specs.iter().collect();
        let mut found = self.found();
        let found = &mut *found;
        found
            .opened
            .retain(|id, _| !specs.contains(&id.0) || here.contains_key(id));
        found.rows.retain(|id, rows| {
            let (part, group) = id;
            let stays = match here.get(part) {
                None => !specs.contains(&part.0),
                Some(is_known) => group.is_some() || !is_known,
            };
            if !stays && takes_room(id, rows) {
                found.num_rows -= rows.len();
            }
            stays
        });
    }

    /// A part, opened.
    pub(super) fn opened(
        &self,
        id: PartId,
        open: impl FnOnce() -> Result<Option<RangedPart>, Error>,
    ) -> Result<Option<Arc<RangedPart>>, Error> {
        if let Some(part) = self.found().opened.get(&id) {
            return Ok(Some(part.clone()));
        }
        let opened = open()?.map(Arc::new);
        let mut found = self.found();
        if let Some(part) = &opened
            && found.opened.len() < FOOTERS
        {
            found.opened.insert(id, part.clone());
        }
        Ok(opened)
    }

    /// Those of `wanted`, which is sorted, that a part or row group has, in the order of its rows.
    pub(super) fn rows(
        &self,
        id: RowsId,
        wanted: &[Fingerprint],
        read: impl FnOnce() -> Result<Vec<EntryRows>, Error>,
    ) -> Result<Vec<EntryRows>, Error> {
        let known = self.found().rows.get(&id).cloned();
        let all = match known {
            Some(all) => all,
            None => {
                let mut all = read()?;
                all.sort_by_key(|rows| rows.entry);
                all.shrink_to_fit();
                let all = Arc::new(all);
                self.keep(id, &all);
                all
            }
        };
        let mut some = Vec::new();
        for entry in wanted {
            let start = all.partition_point(|rows| rows.entry < *entry);
            let same = all[start..].iter().take_while(|rows| rows.entry == *entry);
            some.extend(same.cloned());
        }
        some.sort_unstable_by_key(|rows| rows.row);
        Ok(some)
    }

    fn keep(&self, id: RowsId, rows: &Arc<Vec<EntryRows>>) {
        let mut found = self.found();
        // Another thread may have read the same.
        if found.rows.contains_key(&id) {
            return;
        }
        if takes_room(&id, rows) {
            if found.num_rows + rows.len() > self.room {
                return;
            }
            found.num_rows += rows.len();
        }
        found.rows.insert(id, rows.clone());
    }
}

//! Reading: what is there, and its bytes, checked.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use super::index::{self, PayloadRow, Rows};
use super::kept::KeptParts;
use super::layout::{self, Layout};
use super::loading::Scope;
use super::packed::PackFile;
use super::record::Record;
use super::snapshot::{EntryLocation, ReadState, Snapshot};
use super::tensor::{ElementType, TensorBytes, size_bytes};
use super::{Error, Problem, packed};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;

/// A view of a store as it was when opened or last refreshed. It takes no lock and needs no right to write. Another process may clean
/// up meanwhile: entries that move to other packs are found again, and payloads handed out stay readable.
pub struct StoreReader {
    layout: Layout,
    scope: Scope,
    snapshot: RwLock<Arc<Snapshot>>,
}

/// An entry with its payloads, each checked against its digest.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its fingerprint, which is that of its key record.
    pub entry: Fingerprint,
    /// The fingerprint of the spec that made it.
    pub spec: Fingerprint,
    /// How many token ids came before padding.
    pub token_count: u32,
    /// Whether the caption had more tokens than the spec allows, and was cut.
    pub truncated: bool,
    /// The payloads by name, sorted.
    pub parts: Vec<(String, Payload)>,
}

impl Entry {
    /// The payload called `name`, such as `hidden`; `None` if the entry has no such part.
    pub fn part(&self, name: &str) -> Option<&Payload> {
        self.parts.iter().find(|(n, _)| n == name).map(|(_, p)| p)
    }
}

/// A tensor of a pack, in memory. Little endian, row major.
#[derive(Clone)]
pub struct Payload {
    /// The type of each element.
    pub dtype: ElementType,
    /// The size of each dimension, outermost first.
    pub shape: Vec<usize>,
    /// The digest of [`Self::bytes`], which was compared.
    pub digest: Digest,
    bytes: Arc<Vec<u8>>,
}

impl Payload {
    /// The elements.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A copy that owns its bytes.
    pub fn to_tensor_bytes(&self) -> TensorBytes {
        TensorBytes {
            dtype: self.dtype,
            shape: self.shape.clone(),
            bytes: self.bytes().to_vec(),
        }
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Payload({} {:?} {})",
            self.dtype,
            self.shape,
            self.digest.short()
        )
    }
}

impl StoreReader {
    pub(super) fn new(
        layout: Layout,
        scope: Scope,
        kept: Option<&KeptParts>,
    ) -> Result<Self, Error> {
        let snapshot = Snapshot::load(&layout, &scope, kept)?;
        Ok(Self {
            layout,
            scope,
            snapshot: RwLock::new(Arc::new(snapshot)),
        })
    }

    /// Reads the index anew, so that what was added since is seen.
    ///
    /// # Errors
    /// As [`super::Store::reader`].
    pub fn refresh(&self) -> Result<(), Error> {
        if let Some(mirror) = &self.layout.mirror {
            mirror.refresh(&self.layout)?;
        }
        let snapshot = Snapshot::load(&self.layout, &self.scope, None)?;
        *self
            .snapshot
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
        Ok(())
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What of the index could not be used; the entries concerned count as missing.
    pub fn problems(&self) -> Vec<Problem> {
        let behind = self.layout.mirror.as_ref();
        let mut problems = behind.map(|mirror| mirror.problems()).unwrap_or_default();
        problems.extend(self.snapshot().problems.iter().cloned());
        problems
    }

    /// Whether all of the index could be read, damaged parts aside.
    pub(super) fn is_complete(&self) -> bool {
        !self.snapshot().lacks_parts
    }

    /// The specs that have entries or a description here, sorted.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn specs(&self) -> Result<Vec<Fingerprint>, Error> {
        let described = self.layout.list_specs()?.into_iter();
        let mut specs: BTreeSet<Fingerprint> = described.map(|(spec, _)| spec).collect();
        specs.extend(self.snapshot().tables.keys());
        Ok(specs.into_iter().collect())
    }

    /// The canonical JSON of a spec; `None` if it was never put.
    ///
    /// # Errors
    /// If it cannot be read or is not what its name says.
    pub fn spec_json(&self, spec: &Fingerprint) -> Result<Option<Vec<u8>>, Error> {
        match layout::read_spec(&self.layout, spec) {
            Err(e) if e.is_gone() => Ok(None),
            other => other.map(Some),
        }
    }

    /// The entries of a spec, sorted.
    pub fn entries(&self, spec: &Fingerprint) -> Vec<Fingerprint> {
        let snapshot = self.snapshot();
        let Some(table) = snapshot.tables.get(spec) else {
            return Vec::new();
        };
        let mut entries: Vec<_> = table.candidates.iter().map(|c| c.entry).collect();
        // Sorted by entry, so copies stand together.
        entries.dedup();
        entries
    }

    /// Whether a spec has entries.
    pub fn has_entries(&self, spec: &Fingerprint) -> bool {
        let snapshot = self.snapshot();
        (snapshot.tables.get(spec)).is_some_and(|table| !table.candidates.is_empty())
    }

    /// Whether an entry is there, as far as the index and the sizes of the packs tell, and as far as reading it
    /// has not shown otherwise.
    pub fn contains(&self, spec: &Fingerprint, entry: &Fingerprint) -> bool {
        self.snapshot().tables.get(spec).is_some_and(|t| {
            t.find(entry)
                .iter()
                .any(|c| c.state() != ReadState::Damaged)
        })
    }

    /// The entry with its payloads; `None` if it is not there. Each payload is checked against its digest when
    /// it is first read.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is there but not as it was written: for who encodes, the same as `None`.
    pub fn get(&self, spec: &Fingerprint, entry: &Fingerprint) -> Result<Option<Entry>, Error> {
        self.again_if_moved(|snapshot| self.try_get(snapshot, spec, entry))
    }

    fn try_get(
        &self,
        snapshot: &Snapshot,
        spec: &Fingerprint,
        entry: &Fingerprint,
    ) -> Result<Option<Entry>, Error> {
        let candidates = snapshot
            .tables
            .get(spec)
            .map(|t| t.find(entry))
            .unwrap_or_default();
        let mut fault: Option<Error> = None;
        // Two writers may both have stored it: any sound one will do.
        for candidate in candidates {
            let mut read = self.read(snapshot, spec, candidate);
            if read.as_ref().is_err_and(Error::is_damage)
                && let Some(mirror) = &self.layout.mirror
            {
                // The file here may be damaged where what it was fetched from is not.
                let pack = &snapshot.packs[candidate.pack as usize].digest;
                if mirror.fetch_anew(&self.layout, pack).unwrap_or(false) {
                    read = self.read(snapshot, spec, candidate);
                }
            }
            match read {
                Ok(found) => return Ok(Some(found)),
                Err(damaged @ Error::Damaged { .. }) => {
                    candidate.set_state(ReadState::Damaged);
                    // The first fault is told, unless a file is gone: then looking again may still find the entry.
                    fault.get_or_insert(damaged);
                }
                // Before damage: of an entry that cannot be read now nobody knows whether it is damaged.
                Err(e) if e.is_gone() || !fault.as_ref().is_some_and(Error::is_gone) => {
                    fault = Some(e);
                }
                Err(_) => {}
            }
        }
        fault.map_or(Ok(None), Err)
    }

    fn read(
        &self,
        snapshot: &Snapshot,
        spec: &Fingerprint,
        candidate: &EntryLocation,
    ) -> Result<Entry, Error> {
        let pack_path = self
            .layout
            .pack(&snapshot.packs[candidate.pack as usize].digest);
        let mended = |why: String| match self.layout.mirror {
            Some(_) => format!("{why}; encoding again replaces it"),
            None => {
                format!("{why}; `plumb store rebuild-index` forgets it, encoding again replaces it")
            }
        };
        let damaged = |why: String| Error::Damaged {
            spec: *spec,
            entry: candidate.entry,
            path: pack_path.clone(),
            why,
        };
        // A file that is gone may have been rewritten elsewhere, and what could not be read says nothing of the entry.
        let fault = |e: Error| match e {
            Error::Malformed { path, why } if path == pack_path => damaged(mended(why)),
            // Of the store behind the folder, which says what to do there.
            e if e.is_content() && self.layout.mirror.is_some() => damaged(e.to_string()),
            e if e.is_content() => damaged(mended(e.to_string())),
            e => e,
        };
        let rows = snapshot
            .payload_rows(&self.layout, spec, candidate)
            .map_err(fault)?;
        let opened = snapshot.open_pack(&self.layout, candidate);
        let (pack, as_before) = opened.map_err(fault)?;
        let checked = as_before && candidate.state() == ReadState::Sound;
        let first = rows
            .first()
            .ok_or_else(|| damaged(mended("no rows".to_owned())))?;
        let mut parts = rows
            .iter()
            .map(|row| payload(row, &pack, checked))
            .collect::<Result<Vec<_>, _>>()
            .map_err(fault)?;
        parts.sort_by(|a, b| a.0.cmp(&b.0));
        // Packs never change, so one check lasts as long as the file looks the same. One that does not is checked each time.
        candidate.set_state(ReadState::Sound);
        Ok(Entry {
            entry: candidate.entry,
            spec: *spec,
            token_count: first.token_count,
            truncated: first.truncated,
            parts,
        })
    }

    /// Fetches the packs of `entries`, given as (spec, entry), that are on object storage and not in the folder before it. Without it
    /// each is fetched when it is first read.
    ///
    /// # Errors
    /// If one cannot be fetched.
    pub fn fetch(
        &self,
        entries: &[(Fingerprint, Fingerprint)],
        monitor: &dyn Monitor,
    ) -> Result<u64, Error> {
        let Some(mirror) = &self.layout.mirror else {
            return Ok(0);
        };
        self.again_if_moved(|snapshot| {
            let here = self.layout.list_packs()?.into_iter();
            let here: HashSet<Digest> = here.map(|(pack, _)| pack).collect();
            let mut wanted = BTreeSet::new();
            for (spec, entry) in entries {
                let found = snapshot.tables.get(spec).map(|t| t.find(entry));
                let packs = found.unwrap_or_default().iter();
                let mut packs = packs.map(|c| snapshot.packs[c.pack as usize].digest);
                let first = packs.clone().next();
                if !packs.any(|pack| here.contains(&pack)) {
                    wanted.extend(first);
                }
            }
            let wanted: Vec<Digest> = wanted.into_iter().collect();
            if !wanted.is_empty() {
                mirror.fetch_all(&self.layout, &wanted, monitor)?;
            }
            Ok(wanted.len() as u64)
        })
    }

    /// How many of `entries` have a caption that was cut. No payload is read.
    ///
    /// # Errors
    /// If an index part cannot be read.
    pub fn truncated(&self, spec: &Fingerprint, entries: &[Fingerprint]) -> Result<u64, Error> {
        self.again_if_moved(|snapshot| self.truncated_in(snapshot, spec, entries))
    }

    /// Looks once more where a file is gone: gc and compaction move entries and then remove what they moved them from. A second
    /// miss is a loss.
    fn again_if_moved<T>(&self, look: impl Fn(&Snapshot) -> Result<T, Error>) -> Result<T, Error> {
        match look(&self.snapshot()) {
            Err(e) if e.is_gone() => {
                self.refresh()?;
                look(&self.snapshot())
            }
            other => other,
        }
    }

    fn truncated_in(
        &self,
        snapshot: &Snapshot,
        spec: &Fingerprint,
        entries: &[Fingerprint],
    ) -> Result<u64, Error> {
        let Some(table) = snapshot.tables.get(spec) else {
            return Ok(0);
        };
        let mut count = 0;
        for candidate in entries.iter().filter_map(|entry| table.find(entry).first()) {
            let rows = snapshot.payload_rows(&self.layout, spec, candidate);
            let rows = rows.map_err(mendable)?;
            count += u64::from(rows.first().is_some_and(|row| row.truncated));
        }
        Ok(count)
    }

    /// The entries of a spec, sorted, each once, with the bytes of their payloads.
    ///
    /// # Errors
    /// If an index part cannot be read.
    pub fn entry_bytes(&self, spec: &Fingerprint) -> Result<Vec<(Fingerprint, u64)>, Error> {
        self.again_if_moved(|snapshot| {
            let mut found: Vec<(Fingerprint, u64)> = Vec::new();
            let Some(table) = snapshot.tables.get(spec) else {
                return Ok(found);
            };
            // Read once more, a part at a time: who looks for entries need not hold how large they are.
            for (number, part) in table.parts.iter().enumerate() {
                let entries = (part.source).decode(&self.layout, spec, index::presence);
                for rows in entries.map_err(mendable)? {
                    // Of several places the first is the one that counts.
                    let first = table.find(&rows.entry).first();
                    if first.is_some_and(|c| (c.part as usize, c.row) == (number, rows.row)) {
                        found.push((rows.entry, rows.bytes));
                    }
                }
            }
            found.sort_unstable();
            Ok(found)
        })
    }

    /// All that the index says of an entry; `None` if it is not there. No payload is read.
    ///
    /// # Errors
    /// If the index part cannot be read.
    pub fn record(&self, spec: &Fingerprint, entry: &Fingerprint) -> Result<Option<Record>, Error> {
        self.again_if_moved(|snapshot| {
            let Some(table) = snapshot.tables.get(spec) else {
                return Ok(None);
            };
            let Some(candidate) = table.find(entry).first() else {
                return Ok(None);
            };
            let records = snapshot.records(&self.layout, spec, candidate.part);
            let records = records.map_err(mendable)?;
            Ok(records.into_iter().find(|r| r.entry == *entry))
        })
    }

    /// All that the index says of some entries, those of them that are there. Each part of the index that has one is read once.
    ///
    /// # Errors
    /// If an index part cannot be read.
    pub fn records_of(
        &self,
        spec: &Fingerprint,
        entries: &[Fingerprint],
    ) -> Result<HashMap<Fingerprint, Record>, Error> {
        self.again_if_moved(|snapshot| {
            let mut found = HashMap::new();
            let Some(table) = snapshot.tables.get(spec) else {
                return Ok(found);
            };
            let mut by_part: BTreeMap<u32, HashSet<Fingerprint>> = BTreeMap::new();
            for candidate in entries.iter().filter_map(|entry| table.find(entry).first()) {
                let of_part = by_part.entry(candidate.part).or_default();
                of_part.insert(candidate.entry);
            }
            for (part, wanted) in by_part {
                let records = snapshot.records(&self.layout, spec, part);
                let records = records.map_err(mendable)?;
                let records = records.into_iter().filter(|r| wanted.contains(&r.entry));
                found.extend(records.map(|record| (record.entry, record)));
            }
            Ok(found)
        })
    }

    /// Gives `take` all that the index says of the entries of a spec, in no order; of one that two writers stored, twice. Where parts of the
    /// index are moved meanwhile, some are given once more.
    ///
    /// # Errors
    /// If an index part cannot be read.
    pub fn each_record(
        &self,
        spec: &Fingerprint,
        take: &mut dyn FnMut(Record),
    ) -> Result<(), Error> {
        let take = RefCell::new(take);
        self.again_if_moved(|snapshot| {
            let parts = snapshot.tables.get(spec).map(|t| &t.parts);
            for part in parts.into_iter().flatten() {
                let told = |rows: &dyn Rows| {
                    index::each_record(rows, &mut |_, record| {
                        (*take.borrow_mut())(record);
                        Ok(())
                    })
                };
                (part.source.decode(&self.layout, spec, told)).map_err(mendable)?;
            }
            Ok(())
        })
    }
}

/// Of an index part that lists its entries and says something else wrongly: with what mends it.
fn mendable(error: Error) -> Error {
    match error {
        Error::Malformed { path, why } => Error::Malformed {
            path,
            why: format!("{why}; `plumb store rebuild-index` and encoding again mend it"),
        },
        other => other,
    }
}

/// The payload of a row, compared with its digest unless it was before.
fn payload(row: &PayloadRow, pack: &PackFile, checked: bool) -> Result<(String, Payload), Error> {
    let part = &row.part;
    let malformed = |why: String| Error::malformed(pack.path(), why);
    if size_bytes(part.dtype, &part.shape).map(|n| n as u64) != Some(part.length) {
        return Err(malformed(format!(
            "part {}: {} bytes for {} of shape {:?}",
            part.part, part.length, part.dtype, part.shape
        )));
    }
    let bytes = pack.read(part)?;
    if !checked {
        packed::check_digest(part, &bytes).map_err(malformed)?;
    }
    let payload = Payload {
        dtype: part.dtype,
        shape: part.shape.clone(),
        digest: part.digest,
        bytes: Arc::new(bytes),
    };
    Ok((part.part.clone(), payload))
}

//! Writing: entries are collected into packs, and become visible together at [`StoreWriter::commit`].

use std::collections::{BTreeMap, HashMap, HashSet};

use super::compact::{self, Effort};
use super::disk::{create_dirs, write_once};
use super::lock::{self, Lock};
use super::merge::write_parts;
use super::pack::{self, PACK_LIMIT_BYTES, PackBuilder};
use super::record::{NewEntry, Record};
use super::{Error, Store, index, layout, specs, temporary};
use crate::digest::{Digest, Fingerprint};

/// Waiting payloads, in bytes or entries, from which on [`StoreWriter::commit_if_large`] commits; also about what a kill may cost.
const COMMIT_BYTES: usize = 16 << 20;
const COMMIT_ENTRIES: usize = 1024;

/// Adds entries to a store. What was not committed when it is dropped is lost, and nothing else.
///
/// After an error (a full disk) the writer still holds what it was given: committing again may succeed.
pub struct StoreWriter {
    store: Store,
    lock: Option<Lock>,
    specs: HashMap<Fingerprint, String>,
    pending: BTreeMap<Fingerprint, PendingSpec>,
    pack_limit_bytes: usize,
}

/// What waits to be committed under one spec.
struct PendingSpec {
    builder: PackBuilder,
    /// The rows of packs that are already on disk.
    written: Vec<Record>,
    entries: HashSet<Fingerprint>,
}

/// What a commit added to the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitStats {
    /// Entries that readers see from now on.
    pub entries: u64,
    /// Index parts written.
    pub index_parts: u64,
    /// The bytes of these entries' payloads.
    pub payload_bytes: u64,
}

impl StoreWriter {
    pub(super) fn new(store: Store) -> Result<Self, Error> {
        let lock = lock::shared(&store.layout)?;
        Ok(Self {
            store,
            lock: Some(lock),
            specs: HashMap::new(),
            pending: BTreeMap::new(),
            pack_limit_bytes: PACK_LIMIT_BYTES,
        })
    }

    /// Makes packs smaller than [`PACK_LIMIT_BYTES`]. A pack holds at least one entry.
    pub fn set_pack_limit_bytes(&mut self, limit: usize) {
        self.pack_limit_bytes = limit.min(PACK_LIMIT_BYTES);
    }

    /// How many bytes of payloads wait in memory.
    pub fn pending_bytes(&self) -> usize {
        self.pending
            .values()
            .map(|p| p.builder.payload_bytes())
            .sum()
    }

    /// How many entries wait to be committed.
    pub fn pending_entries(&self) -> usize {
        self.pending.values().map(|p| p.entries.len()).sum()
    }

    /// Stores the canonical JSON of a spec, before the first entry that it made. A damaged one is replaced.
    ///
    /// # Errors
    /// If the JSON does not have this fingerprint or cannot be written.
    pub fn put_spec(&mut self, spec: &Fingerprint, canonical_json: &[u8]) -> Result<(), Error> {
        if blake3::hash(canonical_json).as_bytes() != spec.as_bytes() {
            return Err(Error::Refused(format!(
                "cannot store the spec {spec}: expected canonical JSON with this fingerprint"
            )));
        }
        let text = std::str::from_utf8(canonical_json)
            .ok()
            .filter(|t| serde_json::from_str::<serde_json::Value>(t).is_ok_and(|v| v.is_object()))
            .ok_or_else(|| {
                Error::Refused(format!(
                    "cannot store the spec {spec}: expected a JSON object"
                ))
            })?;
        // Read, not only looked for: encoding again is what mends a damaged spec.
        specs::write(&self.store, spec, canonical_json)?;
        self.specs.insert(*spec, text.to_owned());
        Ok(())
    }

    /// Takes an entry to be committed. One that waits already is passed over. Packs that are full go to disk at
    /// once, but nothing becomes visible before [`Self::commit`].
    ///
    /// # Errors
    /// If its spec was not put, if it cannot be stored as it is (a NaN, a wrong shape, a key record that does
    /// not belong to it), or if a full pack could not be written.
    pub fn put(&mut self, entry: NewEntry) -> Result<(), Error> {
        let key = entry.validate()?;
        let Some(spec_json) = self.specs.get(&entry.spec) else {
            return Err(entry.unfit(None, "expected its spec to be put first".to_owned()));
        };
        let pending = self
            .pending
            .entry(entry.spec)
            .or_insert_with(|| PendingSpec {
                builder: PackBuilder::new(entry.spec, spec_json.clone()),
                written: Vec::new(),
                entries: HashSet::new(),
            });
        // What is in the store already is the caller's to look up: here only what this writer holds is known.
        if pending.entries.contains(&entry.entry) {
            return Ok(());
        }
        let header_bytes =
            pack::record_bytes(&entry.source, &key, entry.tokens.len(), entry.parts.len());
        let payload_bytes = entry.payload_bytes();
        // An entry that fills a pack alone and does not fit could never be written.
        let empty = PackBuilder::new(entry.spec, spec_json.clone());
        if empty.is_full_for(payload_bytes, header_bytes, PACK_LIMIT_BYTES) {
            let why = format!(
                "expected at most {PACK_LIMIT_BYTES} bytes with its header, found {payload_bytes}"
            );
            return Err(entry.unfit(None, why));
        }
        if !pending.builder.is_empty()
            && pending
                .builder
                .is_full_for(payload_bytes, header_bytes, self.pack_limit_bytes)
        {
            write_pack(&self.store, &pending.builder, &mut pending.written)?;
            pending.builder = empty;
        }
        let id = entry.entry;
        pending.builder.push(entry, key)?;
        pending.entries.insert(id);
        Ok(())
    }

    /// Makes all that was put durable and visible: packs first, then one index part a spec.
    ///
    /// # Errors
    /// If something could not be written: specs done before stay, the others still wait in this writer.
    pub fn commit(&mut self) -> Result<CommitStats, Error> {
        self.commit_and_tell(|_, _| ())
    }

    /// As [`Self::commit`]; `tell` is given each spec's records as they are in the index now.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_and_tell(
        &mut self,
        mut tell: impl FnMut(&Fingerprint, &[Record]),
    ) -> Result<CommitStats, Error> {
        let mut stats = CommitStats::default();
        // One spec after the other, each taken out when it is durable: after an error a second commit goes on with the rest.
        while let Some((&spec, pending)) = self.pending.iter_mut().next() {
            if !pending.entries.is_empty() {
                commit_spec(&self.store, &spec, pending)?;
                tell(&spec, &pending.written);
                let payloads = pending.written.iter().flat_map(|r| &r.parts);
                stats.entries += pending.written.len() as u64;
                stats.index_parts += 1;
                stats.payload_bytes += payloads.map(|p| p.length).sum::<u64>();
            }
            self.pending.remove(&spec);
        }
        Ok(stats)
    }

    /// [`Self::commit`] where 16 MiB of payloads or 1024 entries wait: a commit waits for the disk several times,
    /// and small ones would do little else.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_if_large(&mut self) -> Result<CommitStats, Error> {
        if self.pending_bytes() < COMMIT_BYTES && self.pending_entries() < COMMIT_ENTRIES {
            return Ok(CommitStats::default());
        }
        self.commit()
    }

    /// Commits, removes temporary files of writers that died, and merges small index parts when many have come together and
    /// nobody else writes.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn finish(mut self) -> Result<CommitStats, Error> {
        let stats = self.commit()?;
        // Compaction needs the exclusive lock, which our own shared one would refuse.
        self.lock = None;
        for folder in self.store.layout.folders()? {
            // What cannot be removed now, the next one to finish or `gc` removes.
            let _ = temporary::collect(self.store.disk(), &folder);
        }
        match compact::compact(&self.store, Effort::Few) {
            // Somebody writes: the next one to finish does it.
            Ok(_) | Err(Error::Busy { .. }) => Ok(stats),
            Err(e) => Err(e),
        }
    }
}

fn commit_spec(store: &Store, spec: &Fingerprint, pending: &mut PendingSpec) -> Result<(), Error> {
    if !pending.builder.is_empty() {
        write_pack(store, &pending.builder, &mut pending.written)?;
        // Its rows are in `written` now: a commit that fails below must not write the pack again.
        pending.builder.clear();
    }
    write_index_part(store, spec, &pending.written)?;
    Ok(())
}

/// Makes a pack durable and adds its rows to `written`.
pub(super) fn write_pack(
    store: &Store,
    builder: &PackBuilder,
    written: &mut Vec<Record>,
) -> Result<Digest, Error> {
    let (layout, disk) = (&store.layout, store.disk());
    let sealed = builder.seal()?;
    let dir = layout.pack_dir(&sealed.digest);
    create_dirs(disk, &layout.root, &dir)?;
    write_once(
        disk,
        &dir,
        layout::pack_name(&sealed.digest),
        &sealed.chunks(),
    )?;
    written.extend(sealed.records);
    Ok(sealed.digest)
}

/// Makes an index part with the rows of `records` durable.
pub(super) fn write_index_part(
    store: &Store,
    spec: &Fingerprint,
    records: &[Record],
) -> Result<Digest, Error> {
    put_index_part(store, spec, &index::encode(spec, records)?)
}

impl Store {
    /// Writes sorted rows whose packs others put there, as merging does: for measurements of an index without payloads.
    ///
    /// # Errors
    /// If they cannot be written.
    #[doc(hidden)]
    pub fn write_rows(&self, spec: &Fingerprint, records: Vec<Record>) -> Result<(), Error> {
        let _lock = lock::shared(&self.layout)?;
        write_parts(self, spec, records).map(|_| ())
    }
}

/// Makes an index part of these bytes durable.
pub(super) fn put_index_part(
    store: &Store,
    spec: &Fingerprint,
    bytes: &[u8],
) -> Result<Digest, Error> {
    let (layout, disk) = (&store.layout, store.disk());
    let digest = Digest::of(bytes);
    let dir = layout.index_of(spec);
    create_dirs(disk, &layout.root, &dir)?;
    write_once(disk, &dir, layout::part_name(&digest), &[bytes])?;
    Ok(digest)
}

//! Merging small index parts: a new part with all their rows first, then the old ones go.

use super::disk::ListedFile;
use super::index::{self, ROWS_LIMIT};
use super::layout::Layout;
use super::record::Record;
use super::snapshot::decode_part;
use super::writer::write_index_part;
use super::{Error, Store, disk, lock};
use crate::digest::{Digest, Fingerprint};

/// Parts of a spec are merged when more than this many of them are small.
const SMALL_PARTS: usize = 32;
/// A part of fewer bytes than this is small.
const SMALL_BYTES: u64 = 1 << 20;
/// Rows of a merged part; with its last entry it may have a few more.
pub(super) const MERGED_ROWS: usize = ROWS_LIMIT / 16;

/// Merges the index parts of each spec that has many small ones; gives the number of parts removed.
pub(super) fn compact(store: &Store) -> Result<usize, Error> {
    let crowded = |store: &Store| -> Result<Vec<(Fingerprint, Vec<Digest>)>, Error> {
        let mut found = Vec::new();
        for spec in store.layout.indexed_specs()? {
            let parts = store.layout.index_parts(&spec)?;
            let is_small = |f: &ListedFile| f.is_own && f.bytes < SMALL_BYTES;
            let small = parts.into_iter().filter(|(_, f)| is_small(f));
            let small: Vec<Digest> = small.map(|(part, _)| part).collect();
            if small.len() > SMALL_PARTS {
                found.push((spec, small));
            }
        }
        Ok(found)
    };
    // What object storage has of the index would come again at the next look.
    if store.layout.mirror.is_some() {
        return Ok(0);
    }
    // Looked at before the lock is taken, and again under it: nearly always there is nothing to do, and no
    // writer is to be kept out for that.
    if crowded(store)?.is_empty() {
        return Ok(0);
    }
    let _lock = lock::exclusive(
        &store.layout,
        "the merging of index files after an encoding",
    )?;
    let mut removed = 0;
    for (spec, parts) in crowded(store)? {
        removed += merge(store, &spec, &parts)?;
    }
    Ok(removed)
}

fn merge(store: &Store, spec: &Fingerprint, parts: &[Digest]) -> Result<usize, Error> {
    let mut sound = Vec::new();
    let mut records = Vec::new();
    for part in parts {
        // A part that is damaged or cannot be read now is left as it is, for `check` to tell of.
        if let Ok(found) = decode_part(&store.layout, spec, part, index::records) {
            sound.push(*part);
            records.extend(found);
        }
    }
    // The merged part is durable before an old one goes. A kill in between leaves entries twice in
    // the index, which readers allow.
    let new = write_parts(store, spec, &records)?;
    remove_parts(
        &store.layout,
        spec,
        sound.iter().filter(|p| !new.contains(p)),
    )
}

/// Writes `records` as parts of bounded size.
pub(super) fn write_parts(
    store: &Store,
    spec: &Fingerprint,
    records: &[Record],
) -> Result<Vec<Digest>, Error> {
    let mut new = Vec::new();
    let (mut start, mut rows) = (0, 0);
    for (i, record) in records.iter().enumerate() {
        rows += record.parts.len();
        // Cut between entries only: the rows of an entry stand in one part.
        if rows >= MERGED_ROWS || i + 1 == records.len() {
            new.push(write_index_part(store, spec, &records[start..=i])?);
            (start, rows) = (i + 1, 0);
        }
    }
    Ok(new)
}

/// Removes index parts, durably. Only for who holds the exclusive lock and has written what takes their place.
pub(super) fn remove_parts<'a>(
    layout: &Layout,
    spec: &Fingerprint,
    parts: impl Iterator<Item = &'a Digest>,
) -> Result<usize, Error> {
    let mut removed = 0;
    for part in parts {
        let path = layout.index_part(spec, part);
        disk::remove(&*layout.disk, &path)?;
        removed += 1;
    }
    let dir = layout.index_of(spec);
    if removed > 0 {
        layout
            .disk
            .sync_dir(&dir)
            .map_err(|e| Error::io("sync the folder", &dir, e))?;
    }
    Ok(removed)
}

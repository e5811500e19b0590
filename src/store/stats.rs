//! What a store holds, in numbers.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::Serialize;

use super::entry_range::EntryRange;
use super::snapshot::decode_part;
use super::sweep::SpecParts;
use super::{Error, Store, index};
use crate::digest::{Digest, Fingerprint};

/// How much a store holds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StoreStats {
    /// By the spec's fingerprint.
    pub specs: BTreeMap<String, SpecStats>,
    /// Packs on disk; of a store on object storage, over there.
    pub packs: u64,
    /// The size of those packs.
    pub pack_bytes: u64,
    /// Packs that no row names.
    pub unindexed_packs: u64,
    /// The size of their files.
    pub unindexed_pack_bytes: u64,
    /// The bytes of all index parts.
    pub index_bytes: u64,
    /// The runs and how many entries each uses; `None` where the file cannot be understood.
    pub runs: BTreeMap<String, Option<u64>>,
}

/// How much a store holds of one spec.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SpecStats {
    /// Entries, each once.
    pub entries: u64,
    /// Entries whose caption was cut.
    pub truncated_entries: u64,
    /// Entries that are there more than once; gc keeps one of each.
    pub duplicate_entries: u64,
    /// The bytes of all payloads that rows name, copies included.
    pub payload_bytes: u64,
    /// The element types of the payloads.
    pub dtypes: BTreeSet<&'static str>,
    /// Packs with payloads of it.
    pub packs: u64,
    /// Index parts on disk, damaged ones included.
    pub index_parts: u64,
    /// Index parts that cannot be used.
    pub damaged_index_parts: u64,
}

impl Store {
    /// Counts what is there, from the index and the sizes of files.
    ///
    /// # Errors
    /// If the folders cannot be read.
    pub fn stats(&self) -> Result<StoreStats, Error> {
        let packs = match &self.layout.mirror {
            Some(mirror) => {
                mirror.bring(&self.layout, &|_, _, _| true)?;
                mirror.list_packs()?
            }
            None => {
                let files = self.layout.list_packs()?.into_iter();
                files.map(|(pack, file)| (pack, file.bytes)).collect()
            }
        };
        let mut stats = StoreStats::default();
        let mut named = BTreeSet::new();
        for spec in self.layout.indexed_specs()? {
            let of_spec = self.spec_stats(&spec, &mut stats.index_bytes, &mut named)?;
            stats.specs.insert(spec.to_string(), of_spec);
        }
        for (pack, bytes) in packs {
            stats.packs += 1;
            stats.pack_bytes += bytes;
            if !named.contains(&pack) {
                stats.unindexed_packs += 1;
                stats.unindexed_pack_bytes += bytes;
            }
        }
        for id in self.runs()? {
            // One damaged run file is no reason to tell nothing.
            let entries = self.run(&id).ok().map(|run| run.num_entries() as u64);
            stats.runs.insert(id, entries);
        }
        Ok(stats)
    }

    fn spec_stats(
        &self,
        spec: &Fingerprint,
        index_bytes: &mut u64,
        named: &mut BTreeSet<Digest>,
    ) -> Result<SpecStats, Error> {
        let mut stats = SpecStats::default();
        let mut packs = BTreeSet::new();
        let index = SpecParts::list(&self.layout, *spec)?;
        let mut sound = HashSet::new();
        for (number, (part, file, _)) in index.parts.iter().enumerate() {
            stats.index_parts += 1;
            *index_bytes += file.bytes;
            let presence = decode_part(&self.layout, spec, part, index::presence);
            let rows = decode_part(&self.layout, spec, part, index::payloads);
            let (presence, rows) = match (presence, rows) {
                (Ok(presence), Ok(rows)) => (presence, rows),
                // Merged into another while we looked.
                (Err(e), _) | (_, Err(e)) if e.is_gone() => continue,
                (Err(e), _) | (_, Err(e)) if e.is_content() => {
                    stats.damaged_index_parts += 1;
                    continue;
                }
                (Err(e), _) | (_, Err(e)) => return Err(e),
            };
            sound.insert(number);
            for found in presence {
                packs.insert(found.pack);
                let truncated = rows.get(found.row as usize).is_some_and(|r| r.truncated);
                stats.truncated_entries += u64::from(truncated);
            }
            for row in rows {
                stats.payload_bytes += row.part.length;
                stats.dtypes.insert(row.part.dtype.name());
            }
        }
        self.count_entries(&index, &sound, &mut stats)?;
        stats.packs = packs.len() as u64;
        named.extend(packs);
        Ok(stats)
    }

    /// Counts the entries that the parts with the numbers `sound` have, some at a time.
    fn count_entries(
        &self,
        index: &SpecParts,
        sound: &HashSet<usize>,
        stats: &mut SpecStats,
    ) -> Result<(), Error> {
        for range in EntryRange::for_rows(index.most_rows(), self.disk().rows_in_memory()) {
            let mut entries = Vec::new();
            index.read(&self.layout, range, |number, found| {
                match found {
                    Ok(rows) if sound.contains(&number) => {
                        entries.extend(rows.into_iter().map(|rows| rows.entry));
                    }
                    // Damaged; or merged into another while we looked.
                    Ok(_) => {}
                    Err(e) if e.is_gone() || e.is_content() => {}
                    Err(e) => return Err(e),
                }
                Ok(())
            })?;
            entries.sort_unstable();
            for same in entries.chunk_by(|a, b| a == b) {
                stats.entries += 1;
                stats.duplicate_entries += u64::from(same.len() > 1);
            }
        }
        Ok(())
    }
}

//! The index in memory: which entries were there when it was loaded, and where. Compact (48 bytes an entry),
//! sorted by fingerprint (`loading` reads it); what it takes to read payloads is loaded part by part when first asked for.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;
use parquet::arrow::arrow_reader::RowSelection;
use rayon::prelude::ParallelSliceMut as _;

use super::index::{self, PayloadRow, Rows, Whole};
use super::layout::Layout;
use super::packed::PackFile;
use super::ranged::RangedPart;
use super::record::Record;
use super::{Error, Problem, disk};
use crate::digest::{Digest, Fingerprint};

/// How often a pack is fetched that is gone again when it is opened.
const FETCHES: u32 = 5;

/// One place where an entry is stored; an entry may have several. Numbers instead of digests: there may be millions.
pub(super) struct EntryLocation {
    pub(super) entry: Fingerprint,
    pub(super) part: u32,
    pub(super) row: u32,
    pub(super) pack: u32,
    pub(super) rows: u16,
    pub(super) state: AtomicU8,
}

/// Whether an entry's payloads were read at this place, and were what was written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadState {
    Unread,
    Sound,
    Damaged,
}

impl EntryLocation {
    pub(super) fn state(&self) -> ReadState {
        match self.state.load(Ordering::Relaxed) {
            1 => ReadState::Sound,
            2 => ReadState::Damaged,
            _ => ReadState::Unread,
        }
    }

    pub(super) fn set_state(&self, state: ReadState) {
        // Two threads may check the same payload and write the same answer: nothing else hangs on the order.
        self.state.store(state as u8, Ordering::Relaxed);
    }
}

/// Rows of an index part that were loaded.
pub(super) struct IndexPart {
    pub(super) source: Source,
    pub(super) payloads: OnceLock<Vec<PayloadRow>>,
}

/// Where rows are.
pub(super) enum Source {
    /// All rows of the part.
    Whole(Digest),
    /// Of one of its row groups those that were looked for.
    Group {
        part: Arc<RangedPart>,
        group: usize,
        keep: RowSelection,
    },
}

/// A pack, opened for each read: of a large store's packs there may be more than a process may have open files.
pub(super) struct Pack {
    pub(super) digest: Digest,
    /// Length and time of change, when it was first opened.
    pub(super) state: OnceLock<(u64, Option<SystemTime>)>,
}

/// The entries of one spec, for look-up by fingerprint.
#[derive(Default)]
pub(super) struct SpecTable {
    pub(super) candidates: Vec<EntryLocation>,
    pub(super) parts: Vec<IndexPart>,
    /// By the first bits of a fingerprint, where the candidates with these bits begin. There is about one for each value, so a
    /// look-up reads memory in two places.
    starts: Vec<u32>,
}

impl SpecTable {
    /// Sorts the candidates and makes `starts`.
    pub(super) fn seal(&mut self) {
        self.candidates
            .par_sort_unstable_by_key(|c| (c.entry, c.part, c.row));
        // Fingerprints are evenly distributed, so their first bits are a hash already; 24 bits keep the table at 64 MiB.
        let bits = self.candidates.len().max(1).ilog2().min(24);
        self.starts = vec![0; (1 << bits) + 1];
        for candidate in &self.candidates {
            self.starts[bucket(&candidate.entry, bits) + 1] += 1;
        }
        for i in 1..self.starts.len() {
            self.starts[i] += self.starts[i - 1];
        }
    }

    /// The places where `entry` is.
    pub(super) fn find(&self, entry: &Fingerprint) -> &[EntryLocation] {
        if self.starts.is_empty() {
            return &[];
        }
        let bucket = bucket(entry, (self.starts.len() - 1).ilog2());
        let range = self.starts[bucket] as usize..self.starts[bucket + 1] as usize;
        let alike = &self.candidates[range];
        let start = alike.partition_point(|c| c.entry < *entry);
        let count = alike[start..]
            .iter()
            .take_while(|c| c.entry == *entry)
            .count();
        &alike[start..start + count]
    }
}

/// The first `bits` bits of a fingerprint.
fn bucket(entry: &Fingerprint, bits: u32) -> usize {
    let [a, b, c, d, ..] = *entry.as_bytes();
    (u64::from(u32::from_be_bytes([a, b, c, d])) >> (32 - bits)) as usize
}

/// The index of all specs as it was at one moment.
#[derive(Default)]
pub(super) struct Snapshot {
    pub(super) tables: BTreeMap<Fingerprint, SpecTable>,
    pub(super) packs: Vec<Pack>,
    pub(super) problems: Vec<Problem>,
    /// Whether some part could not be read now, for a reason that says nothing about it.
    pub(super) lacks_parts: bool,
}

impl Snapshot {
    pub(super) fn problem(&mut self, layout: &Layout, path: &Path, e: &Error) {
        self.lacks_parts |= !e.is_content();
        let mend = match e.is_content() {
            true => "`plumb store rebuild-index` and encoding again mend it",
            // Nobody knows what the file holds, so nothing is to be rebuilt.
            false => "until it can be read, its entries count as missing",
        };
        self.problems
            .push(Problem::of(layout, path, e.to_string(), mend));
    }

    /// The rows of `candidate`, loading its part if it was not.
    pub(super) fn payload_rows(
        &self,
        layout: &Layout,
        spec: &Fingerprint,
        candidate: &EntryLocation,
    ) -> Result<&[PayloadRow], Error> {
        let Some(part) = self
            .tables
            .get(spec)
            .and_then(|t| t.parts.get(candidate.part as usize))
        else {
            return Ok(&[]);
        };
        let rows = match part.payloads.get() {
            Some(rows) => rows,
            None => {
                // Two threads may decode it at once; the second's work is dropped, and nobody waits with a lock.
                let rows = part.source.decode(layout, spec, index::payloads)?;
                part.payloads.get_or_init(|| rows)
            }
        };
        Ok(rows.get(row_range(candidate)).unwrap_or_default())
    }

    /// All that is said of the entries of a loaded part.
    pub(super) fn records(
        &self,
        layout: &Layout,
        spec: &Fingerprint,
        part: u32,
    ) -> Result<Vec<Record>, Error> {
        let table = self.tables.get(spec);
        match table.and_then(|t| t.parts.get(part as usize)) {
            Some(part) => part.source.decode(layout, spec, index::records),
            None => Ok(Vec::new()),
        }
    }

    /// A candidate's pack, and whether it is as it was when it was opened before: then what was checked need not be again.
    pub(super) fn open_pack(
        &self,
        layout: &Layout,
        candidate: &EntryLocation,
    ) -> Result<(PackFile, bool), Error> {
        let slot = &self.packs[candidate.pack as usize];
        let path = layout.pack(&slot.digest);
        let mut opened = PackFile::open(&path);
        for _ in 0..FETCHES {
            match opened {
                // Of a folder that is full, another process may remove it before it is open here.
                Err(e) if e.is_gone() && layout.fetch(&slot.digest)? => {
                    opened = PackFile::open(&path);
                }
                _ => break,
            }
        }
        let file = opened?;
        if let Some(mirror) = &layout.mirror {
            file.mark_read(mirror);
        }
        let as_before = *slot.state.get_or_init(|| file.state()) == file.state();
        Ok((file, as_before))
    }
}

pub(super) fn row_range(candidate: &EntryLocation) -> Range<usize> {
    let start = candidate.row as usize;
    start..start + usize::from(candidate.rows)
}

impl Source {
    pub(super) fn decode<T>(
        &self,
        layout: &Layout,
        spec: &Fingerprint,
        decode: impl Fn(&dyn Rows) -> Result<T, String>,
    ) -> Result<T, Error> {
        match self {
            Self::Whole(part) => decode_part(layout, spec, part, decode),
            Self::Group { part, group, keep } => part.decode(*group, Some(keep.clone()), decode),
        }
    }
}

/// Reads an index part, makes sure that its bytes are what its name says, and decodes it.
pub(super) fn decode_part<T>(
    layout: &Layout,
    spec: &Fingerprint,
    part: &Digest,
    decode: impl FnOnce(&dyn Rows) -> Result<T, String>,
) -> Result<T, Error> {
    let bytes = read_part(layout, spec, part)?;
    decode_bytes(&layout.index_part(spec, part), spec, bytes, decode)
}

/// The bytes of an index part, which are what its name says.
pub(super) fn read_part(
    layout: &Layout,
    spec: &Fingerprint,
    part: &Digest,
) -> Result<Bytes, Error> {
    let path = layout.index_part(spec, part);
    let bytes = disk::read_bounded(&*layout.disk, &path, index::PART_LIMIT_BYTES)?;
    let found = Digest::of(&bytes);
    if found != *part {
        return Err(Error::malformed(
            &path,
            format!(
                "expected content with the digest in the name, found {}",
                found.short()
            ),
        ));
    }
    Ok(Bytes::from(bytes))
}

/// As [`decode_part`], of bytes that were read and compared; `path` names them.
pub(super) fn decode_bytes<T>(
    path: &Path,
    spec: &Fingerprint,
    bytes: Bytes,
    decode: impl FnOnce(&dyn Rows) -> Result<T, String>,
) -> Result<T, Error> {
    decode(&Whole { bytes, spec }).map_err(|why| Error::malformed(path, why))
}

/// Gives `take` all that an index part says of each of its entries, with the first of its rows; some of them may have been given before
/// an error.
pub(super) fn each_record(
    layout: &Layout,
    spec: &Fingerprint,
    part: &Digest,
    mut take: impl FnMut(u32, Record) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut failed = None;
    let decoded = decode_part(layout, spec, part, |rows| {
        index::each_record(rows, &mut |row, record| {
            take(row, record).map_err(|e| {
                failed = Some(e);
                String::new()
            })
        })
    });
    // What went wrong in taking is what is to be told.
    failed.map_or(decoded, Err)
}

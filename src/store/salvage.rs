//! What can be saved of a damaged pack: every entry whose payloads are what a sound index says of them, whatever became of
//! the pack's header. Where the index says nothing, the header is believed only if something vouches for it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use super::disk;
use super::layout::{Layout, PackPath};
use super::pack::{HEADER_LIMIT_BYTES, HeaderRecord, PACK_LIMIT_BYTES};
use super::packed::{self, OpenedPack, PackedEntry};
use super::record::Record;
use super::{Error, packfile, repair};
use crate::digest::{Digest, Fingerprint, canonical_json};

/// In how many bytes of headers flipped bits are looked for, in all: a few minutes on one core.
const SEARCH_BYTES: usize = 16 << 20;

/// Rows of the index, by entry, with the spec that they are of.
pub(super) type Rows = BTreeMap<Fingerprint, (Fingerprint, Record)>;

/// What is known beside the pack.
pub(super) struct Evidence {
    /// The rows of sound index parts, by the packs that they name; those of sound packs are left out.
    pub(super) rows: HashMap<Digest, Rows>,
    /// Packs that the index names or a listing shows: content with such a digest was written so.
    pub(super) packs: HashSet<Digest>,
    /// The canonical forms of specs.
    pub(super) specs: BTreeMap<Fingerprint, String>,
    /// In how many bytes flipped bits are still looked for.
    search_bytes: usize,
}

impl Default for Evidence {
    fn default() -> Self {
        Self {
            rows: HashMap::new(),
            packs: HashSet::new(),
            specs: BTreeMap::new(),
            search_bytes: SEARCH_BYTES,
        }
    }
}

/// An entry with the spec that it is of, and its payloads, each compared with its digest.
pub(super) struct SavedEntry {
    pub(super) spec: Fingerprint,
    pub(super) spec_json: String,
    pub(super) packed: PackedEntry,
    pub(super) payloads: Vec<Vec<u8>>,
}

/// What is left of a damaged pack.
#[derive(Default)]
pub(super) struct Salvage {
    pub(super) saved: Vec<SavedEntry>,
    /// Entries that are lost: what they were made of, and why.
    pub(super) lost: BTreeMap<Fingerprint, String>,
    /// What else is wrong with it, when more may be lost than is known by name.
    pub(super) faults: Vec<String>,
}

/// What became of a damaged pack.
pub(super) enum Outcome {
    /// The bytes that were written; their digest says so.
    Repaired(Vec<u8>),
    Saved(Salvage),
}

/// Saves what can be saved of a damaged pack.
///
/// # Errors
/// If it cannot be read; that says nothing about what it holds.
pub(super) fn salvage(
    layout: &Layout,
    file: &PackPath,
    evidence: &mut Evidence,
) -> Result<Outcome, Error> {
    let mut bytes = read(layout, file)?;
    let (salvage, suspect) = Examination::new(file, &bytes, evidence).finish();
    if let Some(header) = suspect {
        let header = header.start..header.end.min(evidence.search_bytes);
        if repair::unflip(&mut bytes, header.clone(), &file.pack) {
            return Ok(Outcome::Repaired(bytes));
        }
        evidence.search_bytes -= header.len();
    }
    Ok(Outcome::Saved(salvage))
}

/// The entries that the header of a damaged pack names, as far as it can be read.
///
/// # Errors
/// As [`salvage`].
pub(super) fn entries(layout: &Layout, file: &PackPath) -> Result<Vec<Fingerprint>, Error> {
    let opened = packed::read_pack(&file.path, &file.pack, &read(layout, file)?);
    let entries = opened.into_iter().flat_map(|opened| opened.entries);
    Ok(entries.map(|packed| packed.record.entry).collect())
}

fn read(layout: &Layout, file: &PackPath) -> Result<Vec<u8>, Error> {
    match packfile::read_whole(layout, file) {
        // Longer than a pack can be: something was added to it.
        Err(e) if e.is_content() => {
            let limit = PACK_LIMIT_BYTES as u64;
            let read = disk::read_range(&*layout.disk, &file.path, 0, limit)?;
            Ok(read.unwrap_or_default())
        }
        other => other,
    }
}

struct Examination<'a> {
    bytes: &'a [u8],
    evidence: &'a Evidence,
    rows: Option<&'a Rows>,
    opened: Result<OpenedPack, Error>,
    /// Whether the content is that of a pack which is known, under a wrong name.
    is_whole: bool,
    /// Whether a payload is damaged: then the header need not be.
    has_damage: bool,
    salvage: Salvage,
}

impl<'a> Examination<'a> {
    fn new(file: &PackPath, bytes: &'a [u8], evidence: &'a Evidence) -> Self {
        Self {
            bytes,
            evidence,
            rows: evidence.rows.get(&file.pack),
            opened: packed::read_pack(&file.path, &file.pack, bytes),
            is_whole: evidence.packs.contains(&Digest::of(bytes)),
            has_damage: false,
            salvage: Salvage::default(),
        }
    }

    /// What was saved, and the bytes among which a single flipped bit may be all that is wrong.
    fn finish(mut self) -> (Salvage, Option<Range<usize>>) {
        self.save_rows();
        let opened = match std::mem::replace(&mut self.opened, Err(Error::Refused(String::new()))) {
            Ok(opened) => opened,
            Err(e) => {
                // With rows it is known what the pack held.
                if self.rows.is_none() {
                    self.salvage.faults.push(e.to_string());
                }
                return self.conclude();
            }
        };
        self.save_others(opened);
        self.conclude()
    }

    fn conclude(self) -> (Salvage, Option<Range<usize>>) {
        let loses = !self.salvage.lost.is_empty() || !self.salvage.faults.is_empty();
        let suspect = (loses && !self.has_damage && !self.is_whole).then(|| self.header());
        (self.salvage, suspect)
    }

    /// The entries that the index knows.
    fn save_rows(&mut self) {
        let Some(rows) = self.rows else { return };
        let mut keys = Keys::of(&self.opened, &self.bytes[self.header()]);
        for (entry, (spec, row)) in rows {
            let payloads = match payloads(row, self.bytes) {
                Ok(payloads) => payloads,
                Err(why) => {
                    self.has_damage = true;
                    self.lose(*entry, &row.source, &why);
                    continue;
                }
            };
            let (Some(key), Some(spec_json)) = (keys.find(spec, row), self.spec_json(spec)) else {
                self.lose(*entry, &row.source, "what it was made of cannot be read");
                continue;
            };
            let packed = PackedEntry {
                record: row.clone(),
                header: HeaderRecord::of_row(row, key),
            };
            self.salvage.saved.push(SavedEntry {
                spec: *spec,
                spec_json,
                packed,
                payloads,
            });
        }
    }

    /// The entries that only the header knows.
    fn save_others(&mut self, opened: OpenedPack) {
        let mut sound = Vec::new();
        for packed in opened.entries {
            let entry = packed.record.entry;
            if self.rows.is_some_and(|rows| rows.contains_key(&entry)) {
                continue;
            }
            match payloads(&packed.record, self.bytes) {
                Ok(payloads) => sound.push((packed, payloads)),
                Err(why) => {
                    self.has_damage = true;
                    self.lose(entry, &packed.record.source, &why);
                }
            }
        }
        // Damage to a payload explains why the digest is wrong. Without such the damage is in the header: its numbers of
        // tokens may be other ones.
        let is_vouched = self.is_whole || self.has_damage;
        for (packed, payloads) in sound {
            match is_vouched {
                true => self.salvage.saved.push(SavedEntry {
                    spec: opened.spec,
                    spec_json: opened.spec_json.clone(),
                    packed,
                    payloads,
                }),
                false => {
                    let why = "its payloads are sound, but nothing vouches for the pack's header";
                    self.lose(packed.record.entry, &packed.record.source, why);
                }
            }
        }
        if self.rows.is_none() {
            self.salvage.faults.extend(opened.faults);
        }
    }

    fn lose(&mut self, entry: Fingerprint, source: &str, why: &str) {
        let source = crate::shown::text(source);
        let what = format!("entry {entry} (\"{source}\"): {why}");
        self.salvage.lost.insert(entry, what);
    }

    fn spec_json(&self, spec: &Fingerprint) -> Option<String> {
        let in_header = self.opened.as_ref().ok().filter(|o| o.spec == *spec);
        let in_header = in_header.map(|o| &o.spec_json);
        in_header.or(self.evidence.specs.get(spec)).cloned()
    }

    /// Where the header is. Its length stands in its first bytes, which may be damaged too; the index knows where payloads
    /// begin.
    fn header(&self) -> Range<usize> {
        let places = self.rows.into_iter().flat_map(BTreeMap::values);
        let first = places
            .flat_map(|(_, row)| &row.parts)
            .map(|p| p.offset)
            .min();
        let said = self.bytes.first_chunk().map(|b| u64::from_le_bytes(*b));
        let end = first.or(said.map(|n| n.saturating_add(8)));
        let end = end.unwrap_or(0).min(HEADER_LIMIT_BYTES as u64 + 8);
        // At least the length itself.
        0..(end.max(8) as usize).min(self.bytes.len())
    }
}

/// The payloads of an entry in its pack, or which of them is not what was written.
fn payloads(record: &Record, bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let parts = record.parts.iter();
    parts
        .map(|part| packed::payload(part, bytes).map(<[u8]>::to_vec))
        .collect()
}

/// The key records of entries, which the index does not have. An entry's fingerprint tells whether one is right.
struct Keys<'a> {
    found: HashMap<Fingerprint, String>,
    header: &'a [u8],
    is_searched: bool,
}

impl<'a> Keys<'a> {
    fn of(opened: &Result<OpenedPack, Error>, header: &'a [u8]) -> Self {
        let entries = opened.iter().flat_map(|o| &o.entries);
        Self {
            found: entries
                .map(|e| (e.record.entry, e.header.key.clone()))
                .collect(),
            header,
            is_searched: false,
        }
    }

    fn find(&mut self, spec: &Fingerprint, row: &Record) -> Option<String> {
        if let Some(key) = self.found.get(&row.entry) {
            return Some(key.clone());
        }
        let caption = serde_json::json!({"caption": row.source, "spec": spec, "version": 1});
        let caption = canonical_json(&caption);
        if blake3::hash(&caption).as_bytes() == row.entry.as_bytes() {
            return String::from_utf8(caption).ok();
        }
        if !self.is_searched {
            self.search();
        }
        self.found.get(&row.entry).cloned()
    }

    /// Looks for key records in a header that is no JSON any more. Each begins the JSON of a record, which is a string of the
    /// header's JSON.
    fn search(&mut self) {
        const BEGIN: &[u8] = br#""{\"key\":"#;
        self.is_searched = true;
        for at in 0..self.header.len() {
            let rest = &self.header[at..];
            if !rest.starts_with(BEGIN) {
                continue;
            }
            let record = first::<String>(rest).unwrap_or_default();
            let key = record.strip_prefix(r#"{"key":"#).map(str::as_bytes);
            if let Some(key) = key.and_then(first::<String>) {
                let entry = Fingerprint::of_canonical(key.as_bytes());
                self.found.insert(entry, key);
            }
        }
    }
}

/// The first JSON value in some bytes, whatever follows.
fn first<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<T>();
    values.next()?.ok()
}

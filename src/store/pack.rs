//! Packs: immutable safetensors files of payloads, all of one spec. The header's metadata repeats everything
//! that the index says of each entry, so the index can be made anew from packs alone.
//!
//! Writing one is JSON in front of bytes; `packed` reads them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::packed::PackedEntry;
use super::record::{NewEntry, PartRecord, Record, tensor_name};
use super::tensor::{ElementType, Summary, TensorBytes};
use super::{Error, TOOL, layout};
use crate::digest::{Digest, Fingerprint};

/// The largest pack, header included.
pub const PACK_LIMIT_BYTES: usize = 256 << 20;
/// The largest header of a pack. The safetensors library refuses headers above 100 MB.
pub(super) const HEADER_LIMIT_BYTES: usize = 32 << 20;
/// An upper bound of a tensor's own entry in the header: its name, type, shape and offsets.
const TENSOR_HEADER_BYTES: usize = 512;

/// About what an entry takes of a pack's header and the index, beside its caption and its tokens.
const RECORD_BYTES: usize = 1000;

pub(super) const KEY_VERSION: &str = "plumb.version";
pub(super) const KEY_SPEC: &str = "plumb.spec";
pub(super) const KEY_SPEC_JSON: &str = "plumb.spec_json";

/// What a pack's header says of one entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct HeaderRecord {
    /// The canonical key record; its digest is the entry's fingerprint.
    pub(super) key: String,
    pub(super) source: String,
    pub(super) tokens: Vec<u32>,
    token_count: u32,
    truncated: bool,
    tool: String,
    pub(super) parts: BTreeMap<String, HeaderPart>,
}

impl HeaderRecord {
    /// What a header says of an entry of which the index has a row; `key` must be its key record.
    pub(super) fn of_row(row: &Record, key: String) -> Self {
        let part = |p: &PartRecord| {
            let (digest, summary) = (p.digest, p.summary);
            (p.part.clone(), HeaderPart { digest, summary })
        };
        Self {
            key,
            source: row.source.clone(),
            tokens: row.tokens.clone(),
            token_count: row.token_count,
            truncated: row.truncated,
            tool: row.tool.clone(),
            parts: row.parts.iter().map(part).collect(),
        }
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct HeaderPart {
    digest: Digest,
    #[serde(flatten)]
    summary: Summary,
}

struct PendingEntry {
    entry: Fingerprint,
    record: HeaderRecord,
    tensors: Vec<(String, TensorBytes)>,
}

/// Collects entries of one spec until they fill a pack.
pub(super) struct PackBuilder {
    spec: Fingerprint,
    spec_json: String,
    entries: Vec<PendingEntry>,
    payload_bytes: usize,
    header_bytes: usize,
}

/// A pack ready to be written: its name, its bytes in pieces, and its rows for the index.
pub(super) struct SealedPack<'a> {
    pub(super) digest: Digest,
    header: Vec<u8>,
    payloads: Vec<&'a [u8]>,
    pub(super) records: Vec<Record>,
}

impl SealedPack<'_> {
    pub(super) fn chunks(&self) -> Vec<&[u8]> {
        std::iter::once(self.header.as_slice())
            .chain(self.payloads.iter().copied())
            .collect()
    }
}

impl PackBuilder {
    pub(super) fn new(spec: Fingerprint, spec_json: String) -> Self {
        Self {
            // Quotes and backslashes double when the spec's JSON becomes a string in the header; the rest is room for fixed keys.
            header_bytes: 4096 + 2 * spec_json.len(),
            spec,
            spec_json,
            entries: Vec::new(),
            payload_bytes: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets the entries, which are on disk now.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.spec, std::mem::take(&mut self.spec_json));
    }

    pub(super) fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Whether `entry` would make the pack larger than `limit`.
    pub(super) fn is_full_for(
        &self,
        payload_bytes: usize,
        header_bytes: usize,
        limit: usize,
    ) -> bool {
        let header = self.header_bytes + header_bytes;
        // By an upper estimate: the header's true length is known only when the pack is laid out.
        header > HEADER_LIMIT_BYTES || self.payload_bytes + payload_bytes + header > limit
    }

    /// Adds an entry that was validated; its values must be finite.
    pub(super) fn push(&mut self, entry: NewEntry, key: String) -> Result<(), Error> {
        let mut parts = BTreeMap::new();
        for (name, tensor) in &entry.parts {
            let summary = Summary::of(tensor.dtype, &tensor.bytes);
            // Refused when it is made: stored, it would end trainings that begin much later.
            if summary.non_finite > 0 {
                let why = format!(
                    "expected finite values, found {} that are NaN or infinite among {}",
                    summary.non_finite,
                    tensor.bytes.len() / tensor.dtype.size_bytes()
                );
                return Err(entry.unfit(Some(name), why));
            }
            let digest = Digest::of_pieces([&*tensor.bytes]);
            parts.insert(name.clone(), HeaderPart { digest, summary });
        }
        let record = HeaderRecord {
            key,
            source: entry.source,
            tokens: entry.tokens,
            token_count: entry.token_count,
            truncated: entry.truncated,
            tool: TOOL.to_owned(),
            parts,
        };
        self.add(entry.entry, record, entry.parts);
        Ok(())
    }

    /// Takes over an entry of another pack, as it is; `payloads` must have been checked.
    pub(super) fn push_packed(&mut self, packed: PackedEntry, payloads: Vec<Vec<u8>>) {
        let tensors = packed
            .record
            .parts
            .into_iter()
            .zip(payloads)
            .map(|(part, bytes)| {
                let (dtype, shape) = (part.dtype, part.shape);
                (
                    part.part,
                    TensorBytes {
                        dtype,
                        shape,
                        bytes,
                    },
                )
            })
            .collect();
        self.add(packed.record.entry, packed.header, tensors);
    }

    fn add(
        &mut self,
        entry: Fingerprint,
        record: HeaderRecord,
        tensors: Vec<(String, TensorBytes)>,
    ) {
        self.payload_bytes += tensors.iter().map(|(_, t)| t.bytes.len()).sum::<usize>();
        self.header_bytes += record_bytes(
            &record.source,
            &record.key,
            record.tokens.len(),
            tensors.len(),
        );
        self.entries.push(PendingEntry {
            entry,
            record,
            tensors,
        });
    }

    /// Lays the pack out. Tensors go by falling element size, as the official writers have it, so that each
    /// is aligned.
    pub(super) fn seal(&self) -> Result<SealedPack<'_>, Error> {
        let mut order: Vec<(usize, usize)> = Vec::new();
        for (e, pending) in self.entries.iter().enumerate() {
            order.extend((0..pending.tensors.len()).map(|t| (e, t)));
        }
        let tensor = |&(e, t): &(usize, usize)| &self.entries[e].tensors[t].1;
        order.sort_by_key(|at| std::cmp::Reverse(tensor(at).dtype.size_bytes()));

        let mut header = serde_json::Map::new();
        // By entry and tensor: records list parts in the entry's order, the file has them by element size.
        let mut starts = BTreeMap::new();
        let mut end = 0usize;
        for at in &order {
            let (start, tensor) = (end, tensor(at));
            end += tensor.bytes.len();
            let pending = &self.entries[at.0];
            starts.insert(*at, start);
            header.insert(
                tensor_name(&pending.entry, &pending.tensors[at.1].0),
                serde_json::json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [start, end]}),
            );
        }
        // JSON objects are sorted here, so the same entries in the same order make the same bytes.
        header.insert("__metadata__".to_owned(), self.metadata()?);
        let header = frame_header(&header)?;
        let payloads: Vec<&[u8]> = order.iter().map(|at| tensor(at).bytes.as_slice()).collect();
        // In pieces, as they will be written: a pack of 256 MiB is not copied together to be digested.
        let digest = Digest::of_pieces(std::iter::once(&*header).chain(payloads.iter().copied()));
        let records = self.records(digest, header.len(), &starts);
        Ok(SealedPack {
            digest,
            header,
            payloads,
            records,
        })
    }

    fn metadata(&self) -> Result<serde_json::Value, Error> {
        let mut metadata = BTreeMap::from([
            (KEY_VERSION.to_owned(), layout::FORMAT_VERSION.to_string()),
            (KEY_SPEC.to_owned(), self.spec.to_string()),
            (KEY_SPEC_JSON.to_owned(), self.spec_json.clone()),
        ]);
        for pending in &self.entries {
            metadata.insert(pending.entry.to_string(), to_json(&pending.record)?);
        }
        serde_json::to_value(metadata).map_err(unserializable)
    }

    fn records(
        &self,
        pack: Digest,
        header_len: usize,
        starts: &BTreeMap<(usize, usize), usize>,
    ) -> Vec<Record> {
        let place = |(e, t): (usize, usize)| {
            let (name, tensor) = &self.entries[e].tensors[t];
            // From the file's start, not the data's: a reader gets a payload without parsing the header.
            let offset = header_len + starts.get(&(e, t)).copied().unwrap_or(0);
            (
                name.clone(),
                (
                    tensor.dtype,
                    tensor.shape.clone(),
                    offset as u64,
                    tensor.bytes.len() as u64,
                ),
            )
        };
        let record = |(e, pending): (usize, &PendingEntry)| {
            let places: BTreeMap<_, _> =
                (0..pending.tensors.len()).map(|t| place((e, t))).collect();
            to_record(pending.entry, pack, &pending.record, &places)
        };
        self.entries.iter().enumerate().map(record).collect()
    }
}

/// Where a part's payload is: type, shape, offset in the file, length.
pub(super) type PayloadPlace = (ElementType, Vec<usize>, u64, u64);

pub(super) fn to_record(
    entry: Fingerprint,
    pack: Digest,
    header: &HeaderRecord,
    places: &BTreeMap<String, PayloadPlace>,
) -> Record {
    let part = |(name, (dtype, shape, offset, length)): (&String, &PayloadPlace)| {
        let known = header.parts.get(name)?;
        Some(PartRecord {
            part: name.clone(),
            tensor: tensor_name(&entry, name),
            offset: *offset,
            length: *length,
            digest: known.digest,
            dtype: *dtype,
            shape: shape.clone(),
            summary: known.summary,
        })
    };
    Record {
        entry,
        source: header.source.clone(),
        tokens: header.tokens.clone(),
        token_count: header.token_count,
        truncated: header.truncated,
        tool: header.tool.clone(),
        pack,
        parts: places.iter().filter_map(part).collect(),
    }
}

/// An upper bound of what an entry takes in the header. It is JSON in a JSON string, so a quote in a caption becomes four bytes.
pub(super) fn record_bytes(source: &str, key: &str, tokens: usize, parts: usize) -> usize {
    1024 + 4 * (source.len() + key.len()) + 12 * tokens + parts * (TENSOR_HEADER_BYTES + 512)
}

/// About what an entry takes beside its tensors, in its pack's header and in the index: a caption stands in each once, in the header also
/// in the key, and token ids in both.
pub fn about_record_bytes(source: &str, tokens: usize) -> u64 {
    (RECORD_BYTES + 3 * source.len() + 6 * tokens) as u64
}

/// The length in 8 bytes, then JSON, then spaces up to a multiple of 8.
fn frame_header(header: &serde_json::Map<String, serde_json::Value>) -> Result<Vec<u8>, Error> {
    let json = serde_json::to_vec(header).map_err(unserializable)?;
    // So that payloads of 8-byte elements are aligned in the mapped file, as the safetensors library pads too.
    let padded = json.len().next_multiple_of(8);
    let mut framed = Vec::with_capacity(8 + padded);
    framed.extend_from_slice(&(padded as u64).to_le_bytes());
    framed.extend_from_slice(&json);
    framed.resize(8 + padded, b' ');
    Ok(framed)
}

fn to_json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(unserializable)
}

fn unserializable(e: serde_json::Error) -> Error {
    Error::Refused(format!("cannot write a pack's header: {e}"))
}

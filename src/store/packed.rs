//! Reading packs: one payload, or the whole header.
//!
//! The official safetensors crate reads the header, bounds included.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use safetensors::SafeTensors;
use safetensors::tensor::TensorInfo;

use super::pack::{HeaderRecord, KEY_SPEC, KEY_SPEC_JSON, KEY_VERSION, record_bytes, to_record};
use super::record::{
    PARTS_LIMIT, PartRecord, Record, SOURCE_LIMIT_BYTES, TOKENS_LIMIT, is_part_name, tensor_name,
};
use super::remote::Mirror;
use super::tensor::ElementType;
use super::{Error, layout};
use crate::digest::{Digest, Fingerprint};

/// A pack, open to be read at places. Not mapped: a map of a file that is cut short, or lies on a drive that fails, ends a
/// training by a signal where a read gives an error.
pub(super) struct PackFile {
    path: PathBuf,
    file: File,
    length: u64,
    modified: Option<SystemTime>,
    accessed: Option<SystemTime>,
}

impl PackFile {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let metadata = file.metadata().map_err(|e| Error::io("read", path, e))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            length: metadata.len(),
            modified: metadata.modified().ok(),
            accessed: metadata.accessed().ok(),
        })
    }

    /// Tells a folder that is bounded that the pack was read.
    pub(super) fn mark_read(&self, folder: &Mirror) {
        folder.mark_read(&self.file, self.accessed);
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What a file that was written to has another of.
    pub(super) fn state(&self) -> (u64, Option<SystemTime>) {
        (self.length, self.modified)
    }

    /// The bytes of `part`, not compared with its digest.
    pub(super) fn read(&self, part: &PartRecord) -> Result<Vec<u8>, Error> {
        let end = part.offset.checked_add(part.length);
        // Before anything is allocated: an index may say anything.
        let length = usize::try_from(part.length).ok();
        let length = length.filter(|_| end.is_some_and(|end| end <= self.length));
        let beyond = || {
            let why = format!("part {} lies beyond the end of the file", part.part);
            Error::malformed(&self.path, why)
        };
        let mut bytes = Vec::with_capacity(length.ok_or_else(beyond)?);
        let sought = (&self.file).seek(SeekFrom::Start(part.offset));
        let read = sought.and_then(|_| (&self.file).take(part.length).read_to_end(&mut bytes));
        read.map_err(|e| Error::io("read", &self.path, e))?;
        // It may have been cut short since its length was asked for.
        if bytes.len() as u64 != part.length {
            return Err(beyond());
        }
        Ok(bytes)
    }
}

/// A pack's header, read and checked: what its entries are and where their payloads begin. No payload was read.
pub(super) struct OpenedPack {
    pub(super) spec: Fingerprint,
    pub(super) spec_json: String,
    pub(super) entries: Vec<PackedEntry>,
    /// What of it could not be understood, an entry each.
    pub(super) faults: Vec<String>,
}

/// An entry as its pack has it.
pub(super) struct PackedEntry {
    pub(super) record: Record,
    pub(super) header: HeaderRecord,
}

impl PackedEntry {
    /// Its share of a pack's header, by the estimate of [`record_bytes`].
    pub(super) fn header_bytes(&self) -> usize {
        let h = &self.header;
        record_bytes(&h.source, &h.key, h.tokens.len(), h.parts.len())
    }

    /// Its payloads in the order of its parts, or which of them is not what was written.
    pub(super) fn payloads<'a>(&self, map: &'a [u8]) -> Result<Vec<&'a [u8]>, String> {
        self.record.parts.iter().map(|p| payload(p, map)).collect()
    }
}

/// The bytes of `part` in its pack's file, if they are what was written.
pub(super) fn payload<'a>(part: &PartRecord, map: &'a [u8]) -> Result<&'a [u8], String> {
    let bytes = slice(map, part.offset, part.length)
        .ok_or_else(|| format!("part {} lies beyond the end of the file", part.part))?;
    check_digest(part, bytes).map(|()| bytes)
}

/// Whether `bytes` are what was written as `part`.
pub(super) fn check_digest(part: &PartRecord, bytes: &[u8]) -> Result<(), String> {
    let found = Digest::of_pieces([bytes]);
    if found == part.digest {
        Ok(())
    } else {
        Err(format!(
            "part {} has the digest {}, expected {}",
            part.part,
            found.short(),
            part.digest.short()
        ))
    }
}

pub(super) fn slice(map: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    map.get(start..end)
}

/// Reads a pack's header. An entry that makes no sense is a fault; a header that makes none is an error.
pub(super) fn read_pack(path: &Path, pack: &Digest, map: &[u8]) -> Result<OpenedPack, Error> {
    let malformed = |why: String| Error::malformed(path, why);
    let (header_len, header) =
        // The library checks lengths and offsets; its panics, if there are any, cost this file only.
        super::contain(|| SafeTensors::read_metadata(map).map_err(|e| e.to_string()))
            .map_err(|e| malformed(format!("not a sound safetensors file: {e}")))?;
    let metadata = header.metadata().as_ref();
    let field = |key: &str| {
        metadata
            .and_then(|m| m.get(key))
            .ok_or_else(|| malformed(format!("metadata `{key}`: expected, not found")))
    };
    let version = field(KEY_VERSION)?.parse().unwrap_or(0);
    layout::check_version(path, version)?;
    let spec: Fingerprint = field(KEY_SPEC)?
        .parse()
        .map_err(|e| malformed(format!("metadata `{KEY_SPEC}`: {e}")))?;
    let spec_json = field(KEY_SPEC_JSON)?.clone();
    // Rebuilding writes this text back as the spec's file, so it must be the one it claims to be.
    if blake3::hash(spec_json.as_bytes()).as_bytes() != spec.as_bytes() {
        return Err(malformed(format!(
            "metadata `{KEY_SPEC_JSON}`: expected the text with the fingerprint {spec}"
        )));
    }
    let mut found = OpenedPack {
        spec,
        spec_json,
        entries: Vec::new(),
        faults: Vec::new(),
    };
    let data_start = 8 + header_len as u64;
    let mut tensors = header.tensors();
    for (name, json) in metadata.into_iter().flatten() {
        // The header's other keys (`plumb.version` and so on) are no fingerprints.
        let Ok(entry) = name.parse::<Fingerprint>() else {
            continue;
        };
        match packed_entry(entry, *pack, spec, json, &mut tensors, data_start) {
            Ok(packed) => found.entries.push(packed),
            Err(why) => found.faults.push(format!("entry {entry}: {why}")),
        }
    }
    found.faults.extend(
        tensors
            .keys()
            .map(|name| format!("tensor {name} belongs to no entry")),
    );
    found.faults.sort();
    // The library's metadata is a hash map: unsorted, the order would be another in every process.
    found.entries.sort_by_key(|e| e.record.entry);
    Ok(found)
}

fn packed_entry(
    entry: Fingerprint,
    pack: Digest,
    spec: Fingerprint,
    json: &str,
    tensors: &mut HashMap<String, &TensorInfo>,
    data_start: u64,
) -> Result<PackedEntry, String> {
    let header: HeaderRecord = serde_json::from_str(json).map_err(|e| e.to_string())?;
    // The fingerprint vouches for the key, so an entry cannot pretend to be another caption's.
    if blake3::hash(header.key.as_bytes()).as_bytes() != entry.as_bytes() {
        return Err("its key record has another fingerprint".to_owned());
    }
    let key: serde_json::Value = serde_json::from_str(&header.key).map_err(|e| e.to_string())?;
    if key.get("spec").and_then(|s| s.as_str()) != Some(spec.to_string().as_str()) {
        return Err("its key record names another spec".to_owned());
    }
    let mut places = BTreeMap::new();
    for name in header.parts.keys() {
        let info = tensors
            // Taken out: what is left at the end belongs to no entry.
            .remove(&tensor_name(&entry, name))
            .filter(|_| is_part_name(name))
            .ok_or_else(|| format!("part {name} has no tensor"))?;
        let dtype = ElementType::from_safetensors(info.dtype)
            .ok_or_else(|| format!("part {name} has the element type {:?}", info.dtype))?;
        let (start, end) = info.data_offsets;
        let place = (
            dtype,
            info.shape.clone(),
            data_start + start as u64,
            (end - start) as u64,
        );
        places.insert(name.clone(), place);
    }
    // The writer's limits, for packs that it did not write.
    if !(1..=PARTS_LIMIT).contains(&places.len())
        || header.source.len() > SOURCE_LIMIT_BYTES
        || header.tokens.len() > TOKENS_LIMIT
    {
        return Err("it has no parts, or more of something than an entry may have".to_owned());
    }
    let record = to_record(entry, pack, &header, &places);
    Ok(PackedEntry { record, header })
}

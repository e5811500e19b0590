//! The header of a safetensors file.
//!
//! It is believed only when all of this holds: it fits in the file and in the format's limit of 100 MB; it is
//! JSON of the right form; the tensors' byte ranges lie one after the other without hole or overlap and end where
//! the file ends; and each range is as long as its shape and type say. So what a hostile file can make us
//! allocate is bounded by the size of its own header.

use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::TensorInfo;
use serde::Deserialize;

use super::file::{FileContents, TensorEntry};

/// The limit that the safetensors library itself has (`MAX_HEADER_SIZE`).
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    metadata: Option<HashMap<String, String>>,
    #[serde(flatten)]
    tensors: HashMap<String, TensorInfo>,
}

/// Reads and checks the header of the file behind `map`.
pub(super) fn read(map: &[u8]) -> Result<FileContents, String> {
    if let Some(kind) = super::other_kind(map) {
        return Err(kind);
    }
    let Some((length, rest)) = map.split_first_chunk::<8>() else {
        return Err(format!(
            "it has {} bytes, fewer than the 8 of a header's length",
            map.len()
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(format!(
            "its header claims {length} bytes, the limit is {MAX_HEADER_BYTES}"
        ));
    }
    let header_bytes = usize::try_from(length).ok().and_then(|n| rest.get(..n));
    let Some(header_bytes) = header_bytes else {
        return Err(format!(
            "its header claims {length} bytes, {} follow: it is cut short or another kind of file",
            rest.len()
        ));
    };
    let header: Header = serde_json::from_slice(header_bytes)
        .map_err(|e| format!("its header is not a safetensors header ({e})"))?;
    let tensors = check_places(
        header.tensors,
        8 + header_bytes.len(),
        rest.len() - header_bytes.len(),
    )?;
    let metadata = header.metadata.unwrap_or_default().into_iter().collect();
    Ok(FileContents { tensors, metadata })
}

/// Checks that the tensors fill the `data_bytes` bytes after the header, and gives their places in the file.
fn check_places(
    tensors: HashMap<String, TensorInfo>,
    data_start: usize,
    data_bytes: usize,
) -> Result<BTreeMap<String, TensorEntry>, String> {
    let mut ordered: Vec<_> = tensors.into_iter().collect();
    // By place, so that one pass finds holes and overlaps; by name after it, because tensors without elements share a place.
    ordered.sort_by(|a, b| (a.1.data_offsets, &a.0).cmp(&(b.1.data_offsets, &b.0)));
    let mut reached = 0;
    let mut entries = BTreeMap::new();
    for (name, info) in ordered {
        let (start, end) = info.data_offsets;
        if start != reached || end < start {
            return Err(format!(
                "tensor `{name}` claims bytes {start} to {end}, but the tensors before it end at {reached}"
            ));
        }
        if end > data_bytes {
            return Err(format!(
                "tensor `{name}` ends at byte {end} of {data_bytes}: the file is cut short"
            ));
        }
        let elements = info.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        // In bits: some types of safetensors are smaller than a byte.
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        if bits != (end - start).checked_mul(8) {
            return Err(format!(
                "tensor `{name}` has {} bytes, which do not fit {} of shape {:?}",
                end - start,
                info.dtype,
                info.shape
            ));
        }
        reached = end;
        let entry = TensorEntry {
            dtype: info.dtype.into(),
            shape: info.shape,
            start: data_start + start,
            end: data_start + end,
            scale: None,
        };
        entries.insert(name, entry);
    }
    // Bytes after the last tensor belong to nothing: the format forbids them, as they could hide another file
    // (README of safetensors).
    if reached != data_bytes {
        return Err(format!("its tensors end at byte {reached} of {data_bytes}"));
    }
    Ok(entries)
}

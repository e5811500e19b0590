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
use crate::shown;

/// The limit that the safetensors library itself has (`MAX_HEADER_SIZE`).
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;

/// More than any network has, and few enough for a message.
const MAX_DIMENSIONS: usize = 16;

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    metadata: Option<HashMap<String, String>>,
    #[serde(flatten)]
    tensors: HashMap<String, TensorInfo>,
}

/// How many bytes the header of a file of `file_bytes` has, by the file's first bytes.
///
/// # Errors
/// If the file is none of safetensors, with what it is instead.
pub fn length(first: &[u8], file_bytes: u64) -> Result<usize, String> {
    if let Some(kind) = super::other_kind(first) {
        return Err(kind);
    }
    let Some((length, _)) = first.split_first_chunk::<8>() else {
        return Err(format!(
            "it has {file_bytes} bytes, fewer than the 8 of a header's length"
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(format!(
            "its header claims {length} bytes, the limit is {MAX_HEADER_BYTES}"
        ));
    }
    let follow = file_bytes.saturating_sub(8);
    let fits = usize::try_from(length).ok().filter(|_| length <= follow);
    fits.ok_or_else(|| {
        format!(
            "its header claims {length} bytes, {follow} follow: it is cut short or another kind of file"
        )
    })
}

/// Reads and checks a header (without its length) that `data_bytes` of tensors follow.
pub(super) fn read(header: &[u8], data_bytes: usize) -> Result<FileContents, String> {
    let parsed: Header = serde_json::from_slice(header).map_err(|e| {
        let reason = e.to_string();
        let reason = shown::text(&reason);
        format!("its header is not a safetensors header ({reason})")
    })?;
    let data_start = 8 + header.len();
    let tensors = check_places(parsed.tensors, data_start, data_bytes)?;
    let metadata = parsed.metadata.unwrap_or_default().into_iter().collect();
    Ok(FileContents {
        tensors,
        metadata,
        data_start,
    })
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
        let shown = shown::text(&name);
        if info.shape.len() > MAX_DIMENSIONS {
            return Err(format!(
                "tensor `{shown}` has {} dimensions, at most {MAX_DIMENSIONS} can be",
                info.shape.len()
            ));
        }
        if start != reached || end < start {
            return Err(format!(
                "tensor `{shown}` claims bytes {start} to {end}, but the tensors before it end at {reached}"
            ));
        }
        if end > data_bytes {
            return Err(format!(
                "tensor `{shown}` ends at byte {end} of {data_bytes}: the file is cut short"
            ));
        }
        let elements = info.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        // In bits: some types of safetensors are smaller than a byte.
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        if bits != (end - start).checked_mul(8) {
            return Err(format!(
                "tensor `{shown}` has {} bytes, which do not fit {} of shape {:?}",
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

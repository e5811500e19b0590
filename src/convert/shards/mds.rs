//! MDS, the format of mosaicml-streaming, version 2, written here because no crate does: `streaming/base/format/mds/writer.py` and
//! `streaming/base/format/base/writer.py` of mosaicml/streaming 0.13.0.
//!
//! All numbers are u32, little-endian. A shard: how many samples it has; where each begins in the file, and where the last ends; the
//! shard's configuration as JSON; the samples. A sample: the length of each column's bytes, then the columns, in the order of their names.
//! Beside the shards `index.json` names them, their lengths and hashes. Its member `plumb` is ours: the reader looks at `version` and
//! `shards` alone.
//!
//! Tensors are one column of bytes, a safetensors file: the format's own arrays have no bf16, and nothing for rows that a sample lacks.

use serde_json::{Value, json};

use super::sample::Sample;
use super::{SHARD_HASH, ShardFile};
use crate::foreign::cache::safetensors;

pub(super) const INDEX: &str = "index.json";

/// Names and encodings of the columns, in the order that they are written in.
const COLUMNS: [(&str, &str); 4] = [
    ("caption", "str"),
    ("key", "str"),
    ("meta", "json"),
    ("tensors", "bytes"),
];

pub(super) fn file_name(number: usize) -> String {
    format!("shard.{number:05}.mds")
}

pub(super) fn sample(sample: &Sample) -> Result<Vec<u8>, String> {
    let tensors = safetensors(&sample.tensors, &[])?;
    let columns = [
        sample.caption.as_bytes(),
        sample.key.as_bytes(),
        &sample.meta,
        &tensors,
    ];
    let lengths: Vec<u32> = columns
        .iter()
        .map(|c| word(c.len()))
        .collect::<Result<_, _>>()?;
    let mut bytes: Vec<u8> = lengths.iter().flat_map(|n| n.to_le_bytes()).collect();
    bytes.reserve_exact(columns.iter().map(|c| c.len()).sum());
    for column in columns {
        bytes.extend(column);
    }
    Ok(bytes)
}

/// What stands before the samples of a shard, whose lengths are these.
pub(super) fn head(lengths: &[usize], limit: u64) -> Result<Vec<u8>, String> {
    let config = serde_json::to_vec(&config(limit)).map_err(|e| e.to_string())?;
    let mut bytes = word(lengths.len())?.to_le_bytes().to_vec();
    let mut at = 4 + 4 * (lengths.len() + 1) + config.len();
    for length in std::iter::once(&0).chain(lengths) {
        at += length;
        bytes.extend(word(at)?.to_le_bytes());
    }
    bytes.extend(config);
    Ok(bytes)
}

/// The index of a split's shards.
pub(super) fn index(shards: &[ShardFile], limit: u64, description: &Value) -> Vec<u8> {
    let shard = |shard: &ShardFile| {
        let mut entry = config(limit);
        entry["samples"] = json!(shard.samples);
        entry["zip_data"] = Value::Null;
        entry["raw_data"] = json!({
            "basename": shard.file,
            "bytes": shard.bytes,
            "hashes": { SHARD_HASH: shard.sha256 },
        });
        entry
    };
    let shards: Vec<Value> = shards.iter().map(shard).collect();
    let index = json!({ "version": 2, "shards": shards, "plumb": description });
    index.to_string().into_bytes()
}

fn config(limit: u64) -> Value {
    json!({
        "version": 2,
        "format": "mds",
        "compression": null,
        "hashes": [SHARD_HASH],
        "size_limit": limit,
        "column_names": COLUMNS.map(|(name, _)| name),
        "column_encodings": COLUMNS.map(|(_, encoding)| encoding),
        "column_sizes": COLUMNS.map(|_| Value::Null),
    })
}

fn word(n: usize) -> Result<u32, String> {
    u32::try_from(n).map_err(|_| {
        format!("{n} bytes are more than a shard of MDS holds: a smaller --shard-size")
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_places_of_a_shard_are_those_of_its_samples_in_the_file() {
        let head = super::head(&[3, 0, 5], 100).expect("small");
        let word = |n: usize| {
            let bytes = head[4 * n..4 * n + 4].try_into().expect("four bytes");
            u32::from_le_bytes(bytes) as usize
        };
        let begin = head.len();
        assert_eq!(
            [word(0), word(1), word(2), word(3), word(4)],
            [3, begin, begin + 3, begin + 3, begin + 8]
        );
        assert!(super::head(&[1 << 31, 1 << 31], 100).is_err());
    }
}

//! The ways to name several weights files: folders and indexes of shards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Error;
use crate::{files, shown};

const INDEX_SUFFIX: &str = ".safetensors.index.json";
/// An index names each tensor once, with its shard.
const MAX_INDEX_BYTES: u64 = 100 << 20;

/// The files behind what a person gave: files, shard indexes, folders.
pub(super) fn resolve(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for path in paths {
        let path = if path.is_dir() {
            in_folder(path)?
        } else {
            path.clone()
        };
        if path.to_string_lossy().ends_with(INDEX_SUFFIX) {
            files.extend(shards(&path)?);
        } else {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::NotFound {
            path: PathBuf::new(),
            reason: "no file was given".to_owned(),
        });
    }
    Ok(files)
}

/// The one index or weights file that a folder means: the names Hugging Face libraries write come first,
/// else the only safetensors or GGUF file there.
fn in_folder(folder: &Path) -> Result<PathBuf, Error> {
    for stem in ["model", "diffusion_pytorch_model"] {
        for suffix in [INDEX_SUFFIX, ".safetensors"] {
            let path = folder.join(format!("{stem}{suffix}"));
            if path.is_file() {
                return Ok(path);
            }
        }
    }
    let listing = std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let listing = listing.map_err(|error| Error::Io {
        path: folder.to_owned(),
        error,
    })?;
    let paths = listing.iter().map(std::fs::DirEntry::path);
    let is_weights = |p: &PathBuf| {
        p.extension()
            .is_some_and(|e| e == "safetensors" || e == "gguf")
    };
    // Not several as one: a folder may hold the same model twice, in other types.
    let mut found: Vec<_> = paths.filter(is_weights).collect();
    found.sort();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => Err(Error::NotFound {
            path: folder.to_owned(),
            reason: format!(
                "it has {} weights files, none called model.safetensors: name one",
                found.len() + 1
            ),
        }),
        (None, _) => Err(Error::NotFound {
            path: folder.to_owned(),
            reason: "it has no .safetensors or .gguf file".to_owned(),
        }),
    }
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// The shards that an index names. That each tensor is where the index says need not be checked: all shards
/// are opened, and a tensor missing from all of them is found missing.
fn shards(index: &Path) -> Result<Vec<PathBuf>, Error> {
    let format = |reason: String| Error::Format {
        path: index.to_owned(),
        kind: "shard index",
        reason,
    };
    let text = files::read(index, MAX_INDEX_BYTES).map_err(|error| Error::Io {
        path: index.to_owned(),
        error,
    })?;
    let parsed: ShardIndex = serde_json::from_slice(&text).map_err(|e| {
        format(format!(
            "it is not an index of shards ({})",
            shown::text(&e.to_string())
        ))
    })?;
    // A set: each shard is named once for each of its tensors.
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    let mut files = Vec::new();
    for name in names {
        // A shard lies beside its index; anything else would read files the person did not name.
        if Path::new(&name)
            .file_name()
            .is_none_or(|file| file != name.as_str())
        {
            return Err(format(format!(
                "shard `{}` is not a plain file name",
                shown::text(&name)
            )));
        }
        files.push(index.with_file_name(name));
    }
    if files.is_empty() {
        return Err(format("it names no shard".to_owned()));
    }
    Ok(files)
}

//! One weights file behind a memory map, and the ways to name several.
//!
//! What kind of file it is, its first bytes say, not its name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use super::element::ElementType;
use super::{Error, gguf, header, scaled};

const INDEX_SUFFIX: &str = ".safetensors.index.json";

/// By what a file is taken to be the one that was read before, without reading it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    /// The path as it was given; relative if it was.
    pub path: PathBuf,
    /// The file's length.
    pub size_bytes: u64,
    /// When its content was last changed, in nanoseconds since 1970, as the file system says.
    pub modified_ns: i64,
}

/// A tensor in a file: its type, its shape as stored, and its bytes from `start` to `end` of the file.
pub(super) struct TensorEntry {
    pub(super) dtype: ElementType,
    pub(super) shape: Vec<usize>,
    pub(super) start: usize,
    pub(super) end: usize,
    /// What every stored number is to be multiplied with.
    pub(super) scale: Option<f32>,
}

/// What a file's header says, once it was checked.
#[derive(Default)]
pub(super) struct FileContents {
    pub(super) tensors: BTreeMap<String, TensorEntry>,
    /// Text fields of the header, by name.
    pub(super) metadata: BTreeMap<String, String>,
}

/// A weights file, mapped, with its header read and checked.
pub(super) struct WeightsFile {
    pub(super) state: FileState,
    pub(super) tensors: BTreeMap<String, TensorEntry>,
    pub(super) metadata: BTreeMap<String, String>,
    map: Mmap,
}

impl WeightsFile {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let io = |error| Error::Io {
            path: path.to_owned(),
            error,
        };
        let file = File::open(path).map_err(io)?;
        // Of the open file, not of the path: what is mapped is what is described.
        let state = FileState::of(path, &file).map_err(io)?;
        // SAFETY: the bytes are only ever read, as `u8`. Another process that shortens the file meanwhile
        // ends this one (SIGBUS), one that overwrites it changes what is read; neither breaks memory safety
        // here, and weights files are written once.
        #[expect(unsafe_code, reason = "a 19 GB file must not be copied to be read")]
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let read = match map.get(..4) {
            Some(gguf::MAGIC) => ("GGUF", gguf::read(&map)),
            _ => ("safetensors", header::read(&map)),
        };
        let format = |reason| Error::Format {
            path: path.to_owned(),
            kind: read.0,
            reason,
        };
        let FileContents {
            mut tensors,
            metadata,
        } = read.1.map_err(format)?;
        // Scales and markers are not weights: they would be told as unused tensors.
        scaled::absorb(&mut tensors, &map).map_err(format)?;
        Ok(Self {
            state,
            tensors,
            metadata,
            map,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.state.path
    }

    /// The bytes of one of this file's own entries.
    pub(super) fn bytes(&self, entry: &TensorEntry) -> &[u8] {
        &self.map[entry.start..entry.end]
    }
}

impl FileState {
    fn of(path: &Path, file: &File) -> std::io::Result<Self> {
        let metadata = file.metadata()?;
        let since = metadata.modified()?.duration_since(std::time::UNIX_EPOCH);
        let modified_ns = match since {
            Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
            // A file system may tell a time before 1970.
            Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
        };
        Ok(Self {
            path: path.to_owned(),
            size_bytes: metadata.len(),
            modified_ns,
        })
    }
}

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
    let text = std::fs::read(index).map_err(|error| Error::Io {
        path: index.to_owned(),
        error,
    })?;
    let parsed: ShardIndex = serde_json::from_slice(&text)
        .map_err(|e| format(format!("it is not an index of shards ({e})")))?;
    // A set: each shard is named once for each of its tensors.
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    let mut files = Vec::new();
    for name in names {
        // A shard lies beside its index; anything else would read files the person did not name.
        if Path::new(&name)
            .file_name()
            .is_none_or(|file| file != name.as_str())
        {
            return Err(format(format!("shard `{name}` is not a plain file name")));
        }
        files.push(index.with_file_name(name));
    }
    if files.is_empty() {
        return Err(format("it names no shard".to_owned()));
    }
    Ok(files)
}

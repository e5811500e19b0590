//! One safetensors file behind a memory map, and the ways to name several.
//!
//! A header is believed only when all of this holds: it fits in the file and in the format's limit of
//! 100 MB; it is JSON of the right form; the tensors' byte ranges lie one after the other without hole or
//! overlap and end where the file ends; and each range is as long as its shape and type say. So what a
//! hostile file can make us allocate is bounded by the size of its own header.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::{Deserialize, Serialize};

use super::Error;

/// The safetensors format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const INDEX_SUFFIX: &str = ".safetensors.index.json";

/// What tells that a file is still the one that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    /// As it was given.
    pub path: PathBuf,
    /// Its length.
    pub size_bytes: u64,
    /// When its content was last changed, in nanoseconds since 1970, as the file system says.
    pub modified_ns: i64,
}

/// A tensor's place in a file.
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// An open file.
pub(super) struct WeightsFile {
    pub(super) state: FileState,
    pub(super) tensors: BTreeMap<String, Entry>,
    map: Mmap,
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    _metadata: Option<HashMap<String, String>>,
    #[serde(flatten)]
    tensors: HashMap<String, TensorInfo>,
}

impl WeightsFile {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let io = |error| Error::Io {
            path: path.to_owned(),
            error,
        };
        let file = File::open(path).map_err(io)?;
        let state = FileState::of(path, &file).map_err(io)?;
        // SAFETY: the bytes are only ever read, as `u8`. Another process that shortens the file meanwhile
        // ends this one (SIGBUS), one that overwrites it changes what is read; neither breaks memory safety
        // here, and weights files are written once.
        #[expect(unsafe_code, reason = "a 19 GB file must not be copied to be read")]
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let tensors = read_header(&map).map_err(|reason| Error::Format {
            path: path.to_owned(),
            reason,
        })?;
        Ok(Self {
            state,
            tensors,
            map,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.state.path
    }

    /// The bytes of one of this file's own entries.
    pub(super) fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.map[entry.start..entry.end]
    }
}

impl FileState {
    fn of(path: &Path, file: &File) -> std::io::Result<Self> {
        let metadata = file.metadata()?;
        let since = metadata.modified()?.duration_since(std::time::UNIX_EPOCH);
        let modified_ns = match since {
            Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
        };
        Ok(Self {
            path: path.to_owned(),
            size_bytes: metadata.len(),
            modified_ns,
        })
    }
}

fn read_header(map: &[u8]) -> Result<BTreeMap<String, Entry>, String> {
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
    place(
        header.tensors,
        8 + header_bytes.len(),
        rest.len() - header_bytes.len(),
    )
}

/// Checks that the tensors fill the `data_bytes` bytes after the header, and gives their places in the file.
fn place(
    tensors: HashMap<String, TensorInfo>,
    data_start: usize,
    data_bytes: usize,
) -> Result<BTreeMap<String, Entry>, String> {
    let mut ordered: Vec<_> = tensors.into_iter().collect();
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
        let entry = Entry {
            dtype: info.dtype,
            shape: info.shape,
            start: data_start + start,
            end: data_start + end,
        };
        entries.insert(name, entry);
    }
    if reached != data_bytes {
        return Err(format!("its tensors end at byte {reached} of {data_bytes}"));
    }
    Ok(entries)
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
/// else the only safetensors file there.
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
    let mut found: Vec<_> = paths
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    found.sort();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => Err(Error::NotFound {
            path: folder.to_owned(),
            reason: format!(
                "it has {} safetensors files, none called model.safetensors: name one",
                found.len() + 1
            ),
        }),
        (None, _) => Err(Error::NotFound {
            path: folder.to_owned(),
            reason: "it has no .safetensors file".to_owned(),
        }),
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The shards that an index names. That each tensor is where the index says need not be checked: all shards
/// are opened, and a tensor missing from all of them is found missing.
fn shards(index: &Path) -> Result<Vec<PathBuf>, Error> {
    let format = |reason: String| Error::Format {
        path: index.to_owned(),
        reason,
    };
    let text = std::fs::read(index).map_err(|error| Error::Io {
        path: index.to_owned(),
        error,
    })?;
    let parsed: Index = serde_json::from_slice(&text)
        .map_err(|e| format(format!("it is not a shard index ({e})")))?;
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

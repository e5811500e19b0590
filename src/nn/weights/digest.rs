//! The id of a set of weights, whatever files they lie in; and the memory of it between runs.
//!
//! The digest is BLAKE3 over the tensors in the order of their canonical names (as bytes). Each adds one line
//! of RFC 8785 JSON, `{"dtype":"F16","name":"...","shape":[...]}` and a line feed, then its little-endian
//! row-major bytes. It is of what the files hold, not of what is computed with: 8-bit and quantised weights are
//! other weights than those they were made from. A scaled tensor's line has `"scale"` too, the scale's f32 bits as
//! a number; a quantised tensor's bytes are its blocks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, FileState, Stored, TensorSlice, Weights};
use crate::digest::{Digest, Fingerprint, canonical_json};

/// Changes when the digest's definition does, so that old memories are forgotten.
const MEMO_VERSION: u32 = 1;

impl Weights {
    /// The digest of these tensors (canonical names and shapes), read from the files and marked as used.
    ///
    /// # Errors
    /// If one is missing, misshapen or not of a float type.
    pub fn digest(&self, tensors: &[(String, Vec<usize>)]) -> Result<Digest, Error> {
        #[derive(Serialize)]
        struct DigestLine<'a> {
            dtype: String,
            name: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            scale: Option<u32>,
            shape: &'a [usize],
        }
        let mut ordered: Vec<_> = tensors.iter().collect();
        ordered.sort();
        // A tensor that is named twice counts once: the digest is of a set.
        ordered.dedup();
        let mut hasher = blake3::Hasher::new();
        for (name, shape) in ordered {
            let view = self.view(shape, name)?;
            let line = canonical_json(&DigestLine {
                dtype: view.dtype.to_string(),
                name,
                scale: view.scale.map(f32::to_bits),
                shape,
            });
            hasher.update(&line);
            hasher.update(b"\n");
            hasher.update_rayon(&view.bytes);
        }
        Ok(hasher.finalize().into())
    }
}

/// Digests of weights already read, by path, size and time of change, in one small JSON file.
///
/// It is a cache: a file that cannot be read is taken as empty, one that cannot be written is left.
pub struct DigestMemo {
    path: PathBuf,
    known: BTreeMap<Fingerprint, KnownDigest>,
}

#[derive(Serialize, Deserialize)]
struct KnownDigest {
    digest: Digest,
    files: Vec<FileState>,
}

#[derive(Serialize, Deserialize)]
struct MemoFile {
    version: u32,
    known: BTreeMap<Fingerprint, KnownDigest>,
}

impl DigestMemo {
    /// The memory kept at `path`, which need not exist yet.
    pub fn open(path: &Path) -> Self {
        let read = std::fs::read(path).ok();
        let parsed = read.and_then(|text| serde_json::from_slice::<MemoFile>(&text).ok());
        let known = parsed
            .filter(|f| f.version == MEMO_VERSION)
            .map(|f| f.known);
        Self {
            path: path.to_owned(),
            known: known.unwrap_or_default(),
        }
    }

    /// [`Weights::digest`], from memory if the files are those it was made from.
    ///
    /// # Errors
    /// As [`Weights::digest`].
    pub fn digest(
        &mut self,
        weights: &Weights,
        tensors: &[(String, Vec<usize>)],
    ) -> Result<Digest, Error> {
        let files = weights.absolute_files();
        let key = weights.memo_key(tensors, &files);
        if let Some(known) = self.known.get(&key) {
            // As a reading would have: otherwise they would be told as unused.
            weights.mark_used(tensors);
            return Ok(known.digest);
        }
        let digest = weights.digest(tensors)?;
        // What is known of an older content of the same files will never be asked again.
        self.known.retain(|_, known| {
            let stale = |old: &FileState| files.iter().any(|f| f.path == old.path && f != old);
            !known.files.iter().any(stale)
        });
        self.known.insert(key, KnownDigest { digest, files });
        self.save();
        Ok(digest)
    }

    fn save(&self) {
        #[derive(Serialize)]
        struct MemoRef<'a> {
            version: u32,
            known: &'a BTreeMap<Fingerprint, KnownDigest>,
        }
        let content = MemoRef {
            version: MEMO_VERSION,
            known: &self.known,
        };
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty());
        let write = || -> std::io::Result<()> {
            let folder = folder.unwrap_or(Path::new("."));
            std::fs::create_dir_all(folder)?;
            // Written beside and renamed, so that a process that reads meanwhile never sees half of it. Not synced: it is a
            // cache.
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer_pretty(&mut file, &content)?;
            file.persist(&self.path)?;
            Ok(())
        };
        // Losing the memory costs a reading of the weights, nothing else.
        let _ = write();
    }
}

impl Weights {
    fn absolute_files(&self) -> Vec<FileState> {
        // Relative paths would mean other files from another folder.
        let absolute = |file: &&FileState| FileState {
            path: std::path::absolute(&file.path).unwrap_or_else(|_| file.path.clone()),
            ..(*file).clone()
        };
        self.files().iter().map(absolute).collect()
    }

    /// What a digest is remembered under: the files (path, size, time of change) and which tensors are read from where in them.
    fn memo_key(&self, tensors: &[(String, Vec<usize>)], files: &[FileState]) -> Fingerprint {
        #[derive(Serialize)]
        struct MemoKey<'a> {
            files: Vec<(String, u64, String)>,
            tensors: Vec<(&'a str, &'a [usize], String)>,
        }
        let file = |f: &FileState| {
            (
                f.path.to_string_lossy().into_owned(),
                f.size_bytes,
                // As text: JSON numbers are exact up to 2^53 only.
                f.modified_ns.to_string(),
            )
        };
        let stored = |name: &str| stored_text(&self.stored(name));
        let mut tensors: Vec<_> = tensors
            .iter()
            .map(|(n, s)| (n.as_str(), s.as_slice(), stored(n)))
            .collect();
        // The digest does not depend on the order, so neither may its key.
        tensors.sort();
        let files = files.iter().map(file).collect();
        Fingerprint::of(&MemoKey { files, tensors })
    }

    fn mark_used(&self, tensors: &[(String, Vec<usize>)]) {
        let names = tensors.iter().map(|(name, _)| self.stored(name).name);
        let mut used = self
            .shared
            .used
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        used.extend(names);
    }
}

/// Where a tensor is stored, as a memo's keys have it.
pub(super) fn stored_text(stored: &Stored) -> String {
    let Stored {
        name,
        part,
        swapped,
        transposed,
    } = stored;
    // The words of the first version's structs: with others, every digest that a memo knows would be computed again.
    let part = part.map(
        |TensorSlice {
             first,
             count,
             pieces,
         }| { format!("Some(Part {{ first: {first}, count: {count}, of: {pieces} }})") },
    );
    let part = part.as_deref().unwrap_or("None");
    format!(
        "Stored {{ name: {name:?}, part: {part}, swapped: {swapped}, transposed: {transposed} }}"
    )
}

//! The id of a set of weights, whatever files they lie in; and the memory of it between runs.
//!
//! The digest is BLAKE3 over the tensors in the order of their canonical names (as bytes). Each adds one line
//! of RFC 8785 JSON, `{"dtype":"F16","name":"...","shape":[...]}` and a line feed, then its little-endian
//! row-major bytes. It is of what the files hold, not of what is computed with: 8-bit and quantised weights are
//! other weights than those they were made from. A scaled tensor's line has `"scale"` too, the scale's f32 bits as
//! a number; a quantised tensor's bytes are its blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::file::WeightsFile;
use super::{Error, FileState, Stored, TensorSlice, Weights, lock};
use crate::digest::{Digest, Fingerprint, canonical_json};
use crate::files;

/// Changes when the digest's definition does, so that old memories are forgotten.
const MEMO_VERSION: u32 = 2;
/// An entry has some hundred bytes.
const MAX_MEMO_BYTES: u64 = 64 << 20;

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
            view.content.for_each_piece(|piece| {
                hasher.update_rayon(piece);
            })?;
        }
        let digest = hasher.finalize().into();
        lock(&self.shared.read_whole).insert(digest);
        Ok(digest)
    }

    /// Loads what these tensors make, and makes sure that it is what `digest` says: they are read whole meanwhile, unless
    /// `digest` was made by reading these very files, and the files may not change before the end.
    ///
    /// # Errors
    /// As `load`, and if the tensors have another digest or a file was changed.
    pub fn load_checked<T, E: From<Error>>(
        &self,
        tensors: &[(String, Vec<usize>)],
        digest: &Digest,
        load: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let (checked, loaded) = std::thread::scope(|scope| {
            let check = scope.spawn(|| self.check_digest(tensors, digest));
            let loaded = load();
            (check.join(), loaded)
        });
        match checked {
            // Told first: other weights may also be the reason why they did not load.
            Ok(checked) => checked?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        let loaded = loaded?;
        self.check_unchanged()?;
        Ok(loaded)
    }

    fn check_digest(&self, tensors: &[(String, Vec<usize>)], digest: &Digest) -> Result<(), Error> {
        let is_known = |read: &BTreeSet<Digest>| read.contains(digest);
        if is_known(&lock(&self.shared.read_whole)) {
            return Ok(());
        }
        let found = self.digest(tensors)?;
        self.check_unchanged()?;
        if found == *digest {
            return Ok(());
        }
        if let Some(memo) = &*lock(&self.shared.memo) {
            DigestMemo::open(memo).learn(self, tensors, found)?;
        }
        Err(Error::Remembered {
            files: self.describe(),
            remembered: digest.short(),
            found: found.short(),
        })
    }

    /// Refuses files of which anything was changed since they were opened.
    fn check_unchanged(&self) -> Result<(), Error> {
        let mut files = self.shared.files.iter();
        files.try_for_each(WeightsFile::check_unchanged)
    }
}

/// Digests of weights already read, in one small JSON file.
///
/// What was read before is known again by the file's place, length and times, and by a digest of its header and of some MB all
/// over it, which is made each time. That sees what people do (another model under the old name and time), but neither one bit
/// that fell over nor a memo that somebody wrote: so whatever is loaded to compute with is read whole, see
/// [`Weights::load_checked`].
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
        let read = files::read(path, MAX_MEMO_BYTES).ok();
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
        let key = weights.memo_key(tensors, &weights.absolute_files())?;
        if let Some(known) = self.known.get(&key) {
            // As a reading would have: otherwise they would be told as unused.
            weights.mark_used(tensors);
            *lock(&weights.shared.memo) = Some(self.path.clone());
            return Ok(known.digest);
        }
        let digest = weights.digest(tensors)?;
        self.learn(weights, tensors, digest)?;
        Ok(digest)
    }

    /// Remembers a digest that was made by reading the tensors.
    fn learn(
        &mut self,
        weights: &Weights,
        tensors: &[(String, Vec<usize>)],
        digest: Digest,
    ) -> Result<(), Error> {
        let files = weights.absolute_files();
        let key = weights.memo_key(tensors, &files)?;
        // It is of what was read, and that is of one version only if nothing was written meanwhile.
        weights.check_unchanged()?;
        // What is known of an older content of the same files will never be asked again.
        self.known.retain(|_, known| {
            let stale = |old: &FileState| files.iter().any(|f| f.path == old.path && f != old);
            !known.files.iter().any(stale)
        });
        self.known.insert(key, KnownDigest { digest, files });
        self.save();
        Ok(())
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
        // Losing the memory costs a reading of the weights, nothing else.
        let content = serde_json::to_vec_pretty(&content).map_err(std::io::Error::from);
        let _ = content.and_then(|content| files::replace(&self.path, &content));
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

    /// What a digest is remembered under: the files, a sample of their content, and which tensors are read from where in them.
    fn memo_key(
        &self,
        tensors: &[(String, Vec<usize>)],
        files: &[FileState],
    ) -> Result<Fingerprint, Error> {
        #[derive(Serialize)]
        struct MemoKey<'a> {
            files: Vec<(String, [String; 5], Digest)>,
            tensors: Vec<(&'a str, &'a [usize], String)>,
        }
        let file = |(file, sample): (&FileState, Digest)| {
            let path = file.path.to_string_lossy().into_owned();
            let FileState {
                path: _,
                size_bytes,
                modified_ns,
                device,
                inode,
                changed_ns,
            } = file;
            // As text: JSON numbers are exact up to 2^53 only.
            let ids = [size_bytes, device, inode].map(u64::to_string);
            let times = [modified_ns, changed_ns].map(i64::to_string);
            let [size, device, inode] = ids;
            let [modified, changed] = times;
            (path, [size, device, inode, modified, changed], sample)
        };
        let opened = &self.shared.files;
        let samples: Vec<Digest> = opened
            .iter()
            .map(WeightsFile::sample)
            .collect::<Result<_, _>>()?;
        let stored = |name: &str| stored_text(&self.stored(name));
        let mut tensors: Vec<_> = tensors
            .iter()
            .map(|(n, s)| (n.as_str(), s.as_slice(), stored(n)))
            .collect();
        // The digest does not depend on the order, so neither may its key.
        tensors.sort();
        let files = files.iter().zip(samples).map(file).collect();
        Ok(Fingerprint::of(&MemoKey { files, tensors }))
    }

    fn mark_used(&self, tensors: &[(String, Vec<usize>)]) {
        let names = tensors.iter().map(|(name, _)| self.stored(name).name);
        lock(&self.shared.used).extend(names);
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

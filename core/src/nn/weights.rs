//! Weights: safetensors and GGUF files and checkpoints of PyTorch, read tensor by tensor.
//!
//! - `file`, `header`, `gguf`: files and what their headers say; `kind`: what other files are; `scaled`: 8-bit weights with scales
//! - `torch`: checkpoints of `torch.save`
//! - `element`, `cast`, `blocks`: the types that numbers are stored as, and the way from there to tensors; `rounding`: what other programs make of them
//! - `paths`: folders and indexes of shards; `view`, `content`: one tensor as stored; `digest`: the id of many; `audit`: everything that does not fit; `error`: what can be wrong
//!
//! [`Weights::open`] reads headers only, so a 19 GB file opens at once and a tensor costs memory when it is
//! asked for. A network asks by *canonical* name and expected shape; a rename map says where the files keep
//! that tensor ([`Stored`]), so one network serves every naming. Everything that does not fit is an error
//! that names the file and the tensor.
//!
//! Nothing in a file is trusted: `header.rs` and `gguf.rs` say what is checked of a header, [`Weights::get`] what is checked of
//! a tensor. This module is the one place of the numeric layers that touches files.

mod audit;
mod blocks;
mod cast;
mod content;
mod digest;
mod element;
mod error;
mod file;
mod gguf;
mod header;
mod kind;
mod paths;
mod rounding;
mod scaled;
#[cfg(test)]
mod tests;
mod torch;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device};

pub use audit::Storage;
pub(super) use cast::{e4m3, e5m2};
pub use digest::DigestMemo;
pub use element::{BlockType, ElementType};
pub use error::Error;
pub use file::FileState;
use file::WeightsFile;
pub use header::length as header_length;
pub use kind::{KIND_BYTES, other_kind};
pub use rounding::Rounding;

use super::Kernels;
use crate::digest::Digest;
use crate::shown;

/// Where the files keep a canonical tensor, and what has to be done to it. In this order: the slice is taken, transposed, swapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The stored tensor's name.
    pub name: String,
    /// The slice that it is, where the stored tensor is a fused one (`q, k, v`); `None`: it is the whole.
    pub part: Option<TensorSlice>,
    /// Its halves along the first dimension are stored the other way round.
    pub swapped: bool,
    /// It is a matrix and stored as its transpose (`x @ P` instead of a linear layer's weight).
    pub transposed: bool,
}

/// A slice of a tensor along its first dimension, which is cut into equal pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorSlice {
    /// The first piece that belongs to it, from 0.
    pub first: usize,
    /// How many pieces belong to it.
    pub count: usize,
    /// How many pieces the whole tensor has.
    pub pieces: usize,
}

impl TensorSlice {
    /// Piece `k`, from 0, of `n`.
    pub fn nth(k: usize, n: usize) -> Self {
        Self {
            first: k,
            count: 1,
            pieces: n,
        }
    }
}

impl<S: Into<String>> From<S> for Stored {
    fn from(name: S) -> Self {
        Self {
            name: name.into(),
            part: None,
            swapped: false,
            transposed: false,
        }
    }
}

impl Stored {
    /// The shape of the stored tensor, if the canonical one's is `shape`.
    fn shape(&self, shape: &[usize]) -> Vec<usize> {
        let mut stored = shape.to_vec();
        if self.transposed {
            stored.reverse();
        }
        // Saturating: a shape that no file can have is refused by comparison, not by an overflow.
        if let (Some(part), Some(first)) = (self.part, stored.first_mut()) {
            *first = (*first / part.count).saturating_mul(part.pieces);
        }
        stored
    }
}

/// From a canonical name, scope included, to where that tensor is stored.
type Rename = dyn Fn(&str) -> Stored + Send + Sync;

/// Weights files, a scope in their names, the type and device that tensors are loaded to, and what a network of them computes by.
///
/// Cloning is cheap and shares the files; tensors that any clone reads count as used.
#[derive(Clone)]
pub struct Weights {
    shared: Arc<OpenFiles>,
    rename: Option<Arc<Rename>>,
    /// What [`Self::pp`] gathered before a rename map was set: a prefix of names in the files.
    root: String,
    /// What [`Self::pp`] gathered since: a prefix of canonical names.
    scope: String,
    /// A name in the files that is none of a network's, and does not tell that the files are another's.
    idle: Option<&'static str>,
    dtype: DType,
    device: Device,
    kernels: Kernels,
    rounding: Option<Rounding>,
}

struct OpenFiles {
    files: Vec<WeightsFile>,
    /// By the name of a tensor in the files, the index of the file that has it.
    tensors: BTreeMap<String, usize>,
    used: Mutex<BTreeSet<String>>,
    /// Digests that were made by reading the files whole.
    read_whole: Mutex<BTreeSet<Digest>>,
    /// The memo that a digest came from without a reading; it is corrected where it was wrong.
    memo: Mutex<Option<PathBuf>>,
}

/// What a thread that panicked left is whole: each change of it is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Weights {
    /// Opens files (safetensors, GGUF, or of `torch.save`), shard indexes (`*.safetensors.index.json`) and folders holding one of
    /// these; tensors will be f32 on the CPU.
    ///
    /// # Errors
    /// If a file cannot be read, is not whole and consistent, or repeats another's tensor.
    pub fn open(paths: &[PathBuf]) -> Result<Self, Error> {
        let mut files: Vec<WeightsFile> = Vec::new();
        let mut tensors = BTreeMap::new();
        for path in paths::resolve(paths)? {
            let file = WeightsFile::open(&path)?;
            for name in file.tensors.keys() {
                if let Some(first) = tensors.insert(name.clone(), files.len()) {
                    return Err(Error::Duplicate {
                        tensor: name.clone(),
                        first: files
                            .get(first)
                            .map_or_else(|| path.clone(), |f| f.path().to_owned()),
                        second: path,
                    });
                }
            }
            files.push(file);
        }
        Ok(Self {
            shared: Arc::new(OpenFiles {
                files,
                tensors,
                used: Mutex::default(),
                read_whole: Mutex::default(),
                memo: Mutex::default(),
            }),
            rename: None,
            root: String::new(),
            scope: String::new(),
            idle: None,
            dtype: DType::F32,
            device: Device::Cpu,
            kernels: Kernels::NONE,
            rounding: None,
        })
    }

    /// The same weights, loaded as `dtype` (F32, F16 or BF16).
    #[must_use]
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// The same weights, loaded to `device`.
    #[must_use]
    pub fn on(mut self, device: &Device) -> Self {
        self.device = device.clone();
        self
    }

    /// The same weights, for a network that computes by these kernels.
    #[must_use]
    pub fn with_kernels(mut self, kernels: &Kernels) -> Self {
        self.kernels = kernels.clone();
        self
    }

    /// The same weights, each rounded once it is read. Digests stay those of what is stored.
    #[must_use]
    pub fn rounded(mut self, rounding: Rounding) -> Self {
        self.rounding = Some(rounding);
        self
    }

    /// What each tensor is rounded to once it is read.
    pub fn rounding(&self) -> Option<Rounding> {
        self.rounding
    }

    /// The type tensors are loaded as, whatever the files have; F32 unless changed.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The type of the activations of a network of them. Under weights of bf16 it is f32 on a CPU: `nn::linear` rounds what
    /// goes into a product and nothing else.
    pub fn activations(&self) -> DType {
        match self.dtype {
            DType::BF16 if self.device.is_cpu() => DType::F32,
            dtype => dtype,
        }
    }

    /// The device tensors are loaded to; the CPU unless changed.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What a network of them computes by.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// The weights below `name`: `w.pp("encoder").pp(3)` asks for `encoder.3....`. A trailing dot is optional.
    #[must_use]
    pub fn pp(&self, name: impl Display) -> Self {
        let mut below = self.clone();
        let scope = match below.rename {
            Some(_) => &mut below.scope,
            None => &mut below.root,
        };
        scope.push_str(&name.to_string());
        if !(scope.is_empty() || scope.ends_with('.')) {
            scope.push('.');
        }
        below
    }

    /// The weights without a tensor that is in the files, below the scope reached so far, although no network reads it.
    #[must_use]
    pub fn without(mut self, name: &'static str) -> Self {
        self.idle = Some(name);
        self
    }

    /// The weights with canonical names: from here on, `rename` says where each is stored, below the scope
    /// reached so far. For a table, pass a closure that looks it up. A second map is applied before the first.
    #[must_use]
    pub fn renamed<S: Into<Stored>>(
        &self,
        rename: impl Fn(&str) -> S + Send + Sync + 'static,
    ) -> Self {
        let mut renamed = self.clone();
        // The outer map knows names with this scope; the inner one begins anew below it.
        let scope = std::mem::take(&mut renamed.scope);
        renamed.rename = Some(match renamed.rename.take() {
            None => Arc::new(move |name: &str| rename(name).into()),
            Some(outer) => Arc::new(move |name: &str| {
                let inner: Stored = rename(name).into();
                let stored = outer(&format!("{scope}{}", inner.name));
                Stored {
                    name: stored.name,
                    part: inner.part.or(stored.part),
                    // Swapping or transposing twice is doing nothing.
                    swapped: inner.swapped != stored.swapped,
                    transposed: inner.transposed != stored.transposed,
                }
            }),
        });
        renamed
    }

    /// The names in the files below the scope, without it, in order.
    pub fn names(&self) -> Vec<String> {
        self.below()
            .map(|n| n[self.root.len()..].to_owned())
            .collect()
    }

    /// Whether the files have what this canonical name stands for.
    pub fn contains(&self, name: &str) -> bool {
        self.shared.tensors.contains_key(&self.stored(name).name)
    }

    /// The canonical shape of the tensor, if the files have it.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let stored = self.stored(name);
        let mut shape = self.find(&stored.name).ok()?.1.shape.clone();
        if let (Some(part), Some(first)) = (stored.part, shape.first_mut()) {
            *first = *first / part.pieces * part.count;
        }
        if stored.transposed {
            shape.reverse();
        }
        Some(shape)
    }

    /// Whether two tensors are stored with the same shape, type and bytes.
    ///
    /// # Errors
    /// If one is missing or cannot be read.
    pub fn same_bytes(&self, first: &str, second: &str) -> Result<bool, Error> {
        let (first, second) = (self.stored(first).name, self.stored(second).name);
        let ((file_a, a), (file_b, b)) = (self.find(&first)?, self.find(&second)?);
        // The scale belongs to the numbers: equal bytes with different scales are different weights.
        let kind = |entry: &file::TensorEntry| (entry.dtype, entry.shape.clone(), entry.scale);
        if kind(a) != kind(b) {
            return Ok(false);
        }
        Ok(file_a.content(a).into_bytes()? == file_b.content(b).into_bytes()?)
    }

    /// Checks names, shapes and element types of many tensors by the headers alone.
    ///
    /// # Errors
    /// For the first that is missing, misshapen or not of a float type.
    pub fn require(&self, tensors: &[(String, Vec<usize>)]) -> Result<(), Error> {
        self.faults(tensors).into_iter().next().map_or(Ok(()), Err)
    }

    /// The names in the files below the scope that nothing has read so far, in full.
    pub fn unused(&self) -> Vec<String> {
        let used = lock(&self.shared.used);
        self.below()
            .filter(|n| !used.contains(*n))
            .map(str::to_owned)
            .collect()
    }

    /// The files, in the order given (shards in the order of their names), with what tells a change.
    pub fn files(&self) -> Vec<&FileState> {
        self.shared.files.iter().map(|f| &f.state).collect()
    }

    /// A text field of the headers, such as GGUF's `general.architecture`: the first file's that has it.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        let mut fields = self.shared.files.iter().map(|file| file.metadata.get(key));
        fields.find_map(|field| field.map(String::as_str))
    }

    /// The files' names in one line, for messages.
    pub fn describe(&self) -> String {
        match self.shared.files.as_slice() {
            [one] => shown::path(one.path()).to_string(),
            [first, .., last] => format!(
                "{} files ({} to {})",
                self.shared.files.len(),
                shown::path(first.path()),
                shown::path(last.path())
            ),
            [] => "no file".to_owned(),
        }
    }

    fn stored(&self, name: &str) -> Stored {
        let mut stored = match &self.rename {
            Some(rename) => rename(&format!("{}{name}", self.scope)),
            None => name.into(),
        };
        // The root was given before the map, in the files' own names.
        stored.name.insert_str(0, &self.root);
        stored
    }

    // A range of the sorted names: the scope of one encoder is not looked for among all tensors of a checkpoint.
    fn below(&self) -> impl Iterator<Item = &str> {
        let root = self.root.as_str();
        let from = self.shared.tensors.range(root.to_owned()..);
        from.map(|(name, _)| name.as_str())
            .take_while(move |name| name.starts_with(root))
    }

    fn find(&self, stored: &str) -> Result<(&WeightsFile, &file::TensorEntry), Error> {
        let found = self.shared.tensors.get(stored).and_then(|&file| {
            let file = self.shared.files.get(file)?;
            Some((file, file.tensors.get(stored)?))
        });
        found.ok_or_else(|| self.missing(stored, &BTreeSet::new()))
    }

    /// The error for a missing tensor, with the nearest name that is there and not `expected` for another.
    fn missing(&self, stored: &str, expected: &BTreeSet<&str>) -> Error {
        Error::Missing {
            tensor: stored.to_owned(),
            files: self.describe(),
            near: self.near(stored, expected),
        }
    }

    fn near(&self, stored: &str, expected: &BTreeSet<&str>) -> String {
        let score = |name: &str| strsim::normalized_levenshtein(name, stored);
        let nearest = self
            .below()
            // The distance is quadratic in the lengths, and a single file may have thousands of names: what cannot be near is
            // passed over, and looking ends somewhere.
            .filter(|name| name.len().abs_diff(stored.len()) < 24 && !expected.contains(name))
            .filter(|name| name.len() < 1000)
            .take(4096)
            .map(|name| (score(name), name))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        match nearest {
            // A name that is less alike would mislead more than help.
            Some((score, name)) if score > 0.6 => {
                format!(" (the nearest name there: `{}`)", shown::text(name))
            }
            _ => String::new(),
        }
    }
}

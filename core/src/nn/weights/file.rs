//! One weights file, read at places.
//!
//! What kind of file it is, its first bytes say, not its name.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::content::Content;
use super::element::ElementType;
use super::{Error, gguf, header, kind, scaled, torch};
use crate::digest::Digest;
use crate::files;

/// Places of a file that are looked at to see whether it is still the one that was read whole, and how large each is: 4 MiB in all.
const SAMPLES: usize = 64;
const SAMPLE_BYTES: usize = 64 << 10;

/// By what a file is taken to be the one that was read before, without reading it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    /// The path as it was given; relative if it was.
    pub path: PathBuf,
    /// The file's length.
    pub size_bytes: u64,
    /// When its content was last changed, in nanoseconds since 1970, as the file system says.
    pub modified_ns: i64,
    /// The file system it lies on, and its number there; 0 where the system has none (Windows).
    pub device: u64,
    /// The file's number on its file system.
    pub inode: u64,
    /// When anything of it was last changed, in nanoseconds since 1970: programs can set the time of its content, but not this.
    pub changed_ns: i64,
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
    /// Where the header ends.
    pub(super) data_start: usize,
}

/// A weights file, open, with its header read and checked.
///
/// It is read at places and not mapped: a mapped file that is cut short, or lies on a drive that fails, ends the program by
/// a signal where a read gives an error.
pub(super) struct WeightsFile {
    pub(super) state: FileState,
    pub(super) tensors: BTreeMap<String, TensorEntry>,
    pub(super) metadata: BTreeMap<String, String>,
    file: File,
    /// Where the header ends.
    data_start: usize,
    /// Of the header and of places all over the file, once it was asked for.
    sample: OnceLock<Digest>,
    /// When the file was changed in any way, last seen; begins as the state's.
    changed_ns: AtomicI64,
}

impl WeightsFile {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let io = |error| Error::Io {
            path: path.to_owned(),
            error,
        };
        let file = files::open(path).map_err(io)?;
        // Of the open file, not of the path: what is read is what is described.
        let state = FileState::of(path, &file).map_err(io)?;
        let too_large = || io(std::io::ErrorKind::FileTooLarge.into());
        let file_bytes = usize::try_from(state.size_bytes).map_err(|_| too_large())?;
        let (kind, read) = read_header(&file, file_bytes).map_err(io)?;
        let format = |reason| Error::Format {
            path: path.to_owned(),
            kind,
            reason,
        };
        let FileContents {
            mut tensors,
            metadata,
            data_start,
        } = read.map_err(format)?;
        // Scales and markers are not weights: they would be told as unused tensors.
        let read_entry = |entry: &TensorEntry| {
            let mut bytes = vec![0; entry.end - entry.start];
            let read = read_exact_at(&file, entry.start, &mut bytes);
            read.map(|()| bytes)
                .map_err(|e| format!("it cannot be read: {e}"))
        };
        scaled::absorb(&mut tensors, &read_entry).map_err(format)?;
        Ok(Self {
            changed_ns: AtomicI64::new(state.changed_ns),
            state,
            tensors,
            metadata,
            file,
            data_start,
            sample: OnceLock::new(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.state.path
    }

    /// The bytes of one of this file's own entries.
    pub(super) fn content(&self, entry: &TensorEntry) -> Content<'_> {
        Content::InFile {
            file: self,
            start: entry.start,
            end: entry.end,
        }
    }

    /// Fills `into` from byte `at` of the file.
    pub(super) fn read(&self, at: usize, into: &mut [u8]) -> Result<(), Error> {
        let read = read_exact_at(&self.file, at, into);
        // A file that was cut short is told as that, and not as one that ends too early.
        self.check_content_unchanged()?;
        read.map_err(|error| self.io(error))
    }

    /// Refuses a file that was written to since it was opened.
    ///
    /// A new name, another link or other permissions change no content, and should not end a training that reads from the
    /// file for days: then the sample decides.
    fn check_content_unchanged(&self) -> Result<(), Error> {
        let now = self.state_now()?;
        let seen = self.changed_ns.load(Ordering::Relaxed);
        if now.has_content_of(&self.state) && now.changed_ns == seen {
            return Ok(());
        }
        let same_sample = || -> Result<bool, Error> {
            let Some(sample) = self.sample.get() else {
                return Ok(true);
            };
            Ok(*sample == self.take_sample()?)
        };
        if !now.has_content_of(&self.state) || !same_sample()? {
            return Err(self.changed());
        }
        self.changed_ns.store(now.changed_ns, Ordering::Relaxed);
        Ok(())
    }

    /// Refuses a file of which anything was changed since it was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        match self.state_now()? == self.state {
            true => Ok(()),
            false => Err(self.changed()),
        }
    }

    fn state_now(&self) -> Result<FileState, Error> {
        FileState::of(self.path(), &self.file).map_err(|error| self.io(error))
    }

    pub(super) fn changed(&self) -> Error {
        Error::Changed {
            path: self.path().to_owned(),
        }
    }

    fn io(&self, error: std::io::Error) -> Error {
        Error::Io {
            path: self.path().to_owned(),
            error,
        }
    }

    /// The digest of the whole header and of places spread over the rest: whole where there is little.
    pub(super) fn sample(&self) -> Result<Digest, Error> {
        if let Some(sample) = self.sample.get() {
            return Ok(*sample);
        }
        let sample = self.take_sample()?;
        Ok(*self.sample.get_or_init(|| sample))
    }

    fn take_sample(&self) -> Result<Digest, Error> {
        let end = usize::try_from(self.state.size_bytes).unwrap_or(usize::MAX);
        let places = sample_places(self.data_start, end);
        let mut bytes = vec![0; places.iter().map(ExactSizeIterator::len).sum()];
        let mut rest = bytes.as_mut_slice();
        let mut reads = Vec::new();
        for place in places {
            let (into, behind) = rest.split_at_mut(place.len());
            reads.push((place.start, into));
            rest = behind;
        }
        // At once: a place costs a seek where the drive is slow, and drives reorder what waits.
        reads
            .into_par_iter()
            .try_for_each(|(at, into)| read_exact_at(&self.file, at, into))
            .map_err(|error| self.io(error))?;
        Ok(Digest::of(&bytes))
    }
}

/// The header, and [`SAMPLES`] places between it and the end, the last of which ends there.
pub(super) fn sample_places(data_start: usize, end: usize) -> Vec<Range<usize>> {
    let data = end.saturating_sub(data_start);
    let header = 0..data_start;
    if data <= SAMPLES * SAMPLE_BYTES {
        return vec![header, data_start..data_start + data];
    }
    let last = data - SAMPLE_BYTES;
    let spread = (0..SAMPLES).map(|i| {
        // In u128: a file has up to 2^63 bytes.
        let at = (last as u128 * i as u128 / (SAMPLES as u128 - 1)) as usize;
        data_start + at..data_start + at + SAMPLE_BYTES
    });
    std::iter::once(header).chain(spread).collect()
}

/// The kind of the file, and what its header says.
fn read_header(
    file: &File,
    file_bytes: usize,
) -> std::io::Result<(&'static str, Result<FileContents, String>)> {
    let prefix = |length: usize| {
        let mut bytes = vec![0; length];
        read_exact_at(file, 0, &mut bytes).map(|()| bytes)
    };
    let first = prefix(file_bytes.min(kind::KIND_BYTES))?;
    if torch::is_checkpoint(&first) {
        return Ok(("PyTorch checkpoint", torch::read(file, file_bytes)));
    }
    if !first.starts_with(gguf::MAGIC) {
        const KIND: &str = "safetensors";
        let length = match header::length(&first, file_bytes as u64) {
            Ok(length) => length,
            Err(reason) => return Ok((KIND, Err(reason))),
        };
        let bytes = prefix(8 + length)?;
        let data_bytes = file_bytes - bytes.len();
        return Ok((KIND, header::read(&bytes[8..], data_bytes)));
    }
    // A GGUF header does not say how long it is. It gets the other format's limit.
    let limit = usize::try_from(header::MAX_HEADER_BYTES).map_or(file_bytes, |n| file_bytes.min(n));
    let mut length = limit.min(1 << 20);
    loop {
        match gguf::read(&prefix(length)?, file_bytes) {
            Ok(contents) => return Ok(("GGUF", Ok(contents))),
            Err(gguf::Unread::Longer(_)) if length < limit => length = limit.min(length * 4),
            Err(gguf::Unread::Longer(reason) | gguf::Unread::Wrong(reason)) => {
                return Ok(("GGUF", Err(reason)));
            }
        }
    }
}

/// Fills `into` from byte `at` of a file, whose own position others may be using.
pub(super) fn read_exact_at(file: &File, at: usize, into: &mut [u8]) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        std::os::unix::fs::FileExt::read_exact_at(file, into, at as u64)
    }
    #[cfg(windows)]
    {
        use std::os::windows::fs::FileExt as _;
        let (mut at, mut into) = (at as u64, into);
        while !into.is_empty() {
            match file.seek_read(into, at) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    at += count as u64;
                    into = &mut into[count..];
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl FileState {
    /// That of an open file; `path` is what it is called.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn of(path: &Path, file: &File) -> std::io::Result<Self> {
        let metadata = file.metadata()?;
        let since = metadata.modified()?.duration_since(std::time::UNIX_EPOCH);
        let modified_ns = match since {
            Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
            // A file system may tell a time before 1970.
            Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
        };
        #[cfg(unix)]
        let (device, inode, changed_ns) = {
            use std::os::unix::fs::MetadataExt as _;
            let seconds = metadata.ctime().saturating_mul(1_000_000_000);
            let changed_ns = seconds.saturating_add(metadata.ctime_nsec());
            (metadata.dev(), metadata.ino(), changed_ns)
        };
        // The standard library tells none of these elsewhere.
        #[cfg(not(unix))]
        let (device, inode, changed_ns) = (0, 0, 0);
        Ok(Self {
            path: path.to_owned(),
            size_bytes: metadata.len(),
            modified_ns,
            device,
            inode,
            changed_ns,
        })
    }

    /// Whether the file is as long as it was, and nobody says that it was written to.
    fn has_content_of(&self, before: &Self) -> bool {
        (self.size_bytes, self.modified_ns) == (before.size_bytes, before.modified_ns)
    }
}

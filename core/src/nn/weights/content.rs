//! A tensor's bytes, read when they are needed: a part at a time, so that a large one is not in memory twice.

use rayon::prelude::*;

use super::Error;
use super::file::WeightsFile;

/// Bytes that one thread reads at a time.
const READ_BYTES: usize = 1 << 20;
/// Bytes of a tensor that are in memory at a time where it is only looked through.
const PIECE_BYTES: usize = 16 << 20;

/// A tensor's bytes, in its file or made of them.
pub(super) enum Content<'a> {
    InFile {
        file: &'a WeightsFile,
        start: usize,
        end: usize,
    },
    InMemory(Vec<u8>),
}

impl<'a> Content<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::InFile { start, end, .. } => end - start,
            Self::InMemory(bytes) => bytes.len(),
        }
    }

    /// Its first `count` bytes from `at`, which must be within it.
    pub(super) fn part(self, at: usize, count: usize) -> Self {
        match self {
            Self::InFile { file, start, .. } => Self::InFile {
                file,
                start: start + at,
                end: start + at + count,
            },
            Self::InMemory(bytes) => Self::InMemory(bytes[at..at + count].to_vec()),
        }
    }

    /// Gives the bytes from `at`, `count` of them and all within it, to `use_them`.
    pub(super) fn with<T>(
        &self,
        at: usize,
        count: usize,
        use_them: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, Error> {
        match self {
            Self::InFile { file, start, .. } => {
                let mut bytes = vec![0; count];
                file.read(start + at, &mut bytes)?;
                Ok(use_them(&bytes))
            }
            Self::InMemory(bytes) => Ok(use_them(&bytes[at..at + count])),
        }
    }

    /// All of them.
    pub(super) fn into_bytes(self) -> Result<Vec<u8>, Error> {
        match self {
            Self::InFile { file, start, end } => {
                let mut bytes = vec![0; end - start];
                let parts = bytes.par_chunks_mut(READ_BYTES).enumerate();
                parts.try_for_each(|(i, into)| file.read(start + i * READ_BYTES, into))?;
                Ok(bytes)
            }
            Self::InMemory(bytes) => Ok(bytes),
        }
    }

    /// Pieces of it in order, each of some MB, given to `take` one after the other.
    pub(super) fn for_each_piece(&self, mut take: impl FnMut(&[u8])) -> Result<(), Error> {
        match self {
            Self::InMemory(bytes) => {
                take(bytes);
                Ok(())
            }
            Self::InFile { file, start, end } => {
                let mut at = *start;
                while at < *end {
                    let count = PIECE_BYTES.min(end - at);
                    let piece = Content::InFile {
                        file,
                        start: at,
                        end: at + count,
                    };
                    take(&piece.into_bytes()?);
                    at += count;
                }
                Ok(())
            }
        }
    }
}

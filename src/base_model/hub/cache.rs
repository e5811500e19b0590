//! The cache that all of the hub's programs share, in the layout of huggingface_hub: `refs/BRANCH` holds a commit,
//! `snapshots/COMMIT` links to the files in `blobs`, which are called by their hash.
//!
//! Names in it are believed no more than those of a server: a ref holds a commit or nothing, and no link leads out of the cache.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::hash::{ContentHash, is_commit};
use super::{Address, Error};
use crate::files;
use crate::shown;

/// Folders within folders that are looked into.
const MAX_DEPTH: usize = 8;

/// One repository's part of a cache.
pub(super) struct CachedRepo<'a> {
    cache: &'a Path,
    folder: PathBuf,
    /// The folder of lock files, which huggingface_hub keeps apart.
    locks: PathBuf,
}

impl<'a> CachedRepo<'a> {
    pub(super) fn new(cache: &'a Path, address: &Address) -> Self {
        let name = format!("models--{}", address.repo.replace('/', "--"));
        Self {
            cache,
            folder: cache.join(&name),
            locks: cache.join(".locks").join(name),
        }
    }

    /// The commit that the address means, if the cache knows.
    pub(super) fn commit(&self, address: &Address) -> Result<Option<String>, Error> {
        // A commit needs no ref, and no ref may say otherwise.
        if is_commit(address.revision()) {
            return Ok(Some(address.revision().to_owned()));
        }
        let file = self.folder.join("refs").join(address.revision());
        let Ok(bytes) = files::read(&file, 1 << 12) else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim();
        if is_commit(text) {
            return Ok(Some(text.to_owned()));
        }
        Err(Error::Damaged {
            address: address.clone(),
            file,
            reason: format!(
                "it says `{}`, expected a commit (40 hexadecimal digits)",
                shown::text(text)
            ),
        })
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The file of this name in a snapshot, whether it is there or not.
    pub(super) fn pointer(&self, commit: &str, file: &str) -> PathBuf {
        self.snapshot(commit).join(file)
    }

    pub(super) fn blob(&self, hash: &ContentHash) -> PathBuf {
        self.folder.join("blobs").join(hash.name())
    }

    /// Where a blob is downloaded to, by every program of the hub.
    pub(super) fn incomplete(&self, hash: &ContentHash) -> PathBuf {
        let name = format!("{}.incomplete", hash.name());
        self.folder.join("blobs").join(name)
    }

    /// The names of a snapshot's files, with `/` between folders.
    pub(super) fn listing(&self, commit: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![(self.snapshot(commit), String::new(), 0)];
        while let Some((folder, prefix, depth)) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let Ok(name) = entry.file_name().into_string() else {
                    continue;
                };
                let name = format!("{prefix}{name}");
                // Of the entry itself: a link to a folder is not followed.
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() && depth < MAX_DEPTH => {
                        folders.push((entry.path(), name + "/", depth + 1));
                    }
                    Ok(kind) if !kind.is_dir() => found.push(name),
                    _ => {}
                }
            }
        }
        found.sort();
        found
    }

    /// Where a file of a snapshot really lies, and the hash that its name there says; None for a file that lies in the snapshot
    /// itself, as where a system has no links.
    pub(super) fn located(&self, pointer: &Path) -> io::Result<(PathBuf, Option<ContentHash>)> {
        let real = pointer.canonicalize()?;
        if !real.starts_with(self.cache.canonicalize()?) {
            let reason = format!("it leads out of the cache, to {}", shown::path(&real));
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let name = real.file_name().and_then(|name| name.to_str());
        let is_link = std::fs::symlink_metadata(pointer)?.is_symlink();
        let hash = name.filter(|_| is_link).and_then(ContentHash::parse);
        Ok((real, hash))
    }

    /// Waits until no other program downloads this blob; the lock ends with the file.
    pub(super) fn lock(&self, hash: &ContentHash, waiting: impl FnOnce()) -> io::Result<File> {
        std::fs::create_dir_all(&self.locks)?;
        std::fs::create_dir_all(self.folder.join("blobs"))?;
        let path = self.locks.join(format!("{}.lock", hash.name()));
        let file = File::options().append(true).create(true).open(path)?;
        if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
            waiting();
            // A file system without locks: then nobody can be waited for.
            match file.lock() {
                Err(error) if error.kind() != io::ErrorKind::Unsupported => return Err(error),
                _ => {}
            }
        }
        Ok(file)
    }

    /// Makes a snapshot's file a link to its blob.
    pub(super) fn link(&self, commit: &str, file: &str, hash: &ContentHash) -> io::Result<()> {
        let pointer = self.pointer(commit, file);
        if let Some(folder) = pointer.parent() {
            std::fs::create_dir_all(folder)?;
        }
        match std::fs::remove_file(&pointer) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Relative, so that the cache can be moved: up from the file's folders, the commit and `snapshots`.
        let up = "../".repeat(file.matches('/').count() + 2);
        let target = PathBuf::from(format!("{up}blobs/{}", hash.name()));
        #[cfg(unix)]
        let linked = std::os::unix::fs::symlink(target, &pointer);
        #[cfg(windows)]
        let linked = std::os::windows::fs::symlink_file(target, &pointer);
        // Some file systems, and Windows without its developer mode, have no links of that kind.
        linked
            .or_else(|_| std::fs::hard_link(self.blob(hash), &pointer))
            .or_else(|_| std::fs::copy(self.blob(hash), &pointer).map(drop))
    }

    /// Writes what a branch or tag means. Last, as the cache is taken to have what a ref points to.
    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> io::Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        files::replace(&path, commit.as_bytes())
    }
}

//! The lock of a store: shared by all who add, exclusive for who removes. Readers take none.
//!
//! What is on disk is right without it, because names are digests and nothing is edited. It only keeps a
//! cleaner from taking a pack whose index rows are about to be written.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;

use super::Error;
use super::disk::{Disk, create_dirs};
use super::layout::Layout;

const CLEANER: &str =
    "another process is removing or rewriting files (gc, rebuild-index or compaction)";
const WRITER: &str = "another process is adding entries or cleaning up";

/// A lock that is held until it is dropped, or until the process ends in any way. `None` inside where the file system has no locks.
pub(super) struct Lock(Option<File>);

/// Taken by a writer: any number at once.
pub(super) fn shared(disk: &dyn Disk, layout: &Layout) -> Result<Lock, Error> {
    let file = open(disk, layout)?;
    match file.try_lock_shared() {
        Ok(()) => Ok(Lock(Some(file))),
        // Told, not waited for: cleaning may take minutes.
        Err(TryLockError::WouldBlock) => Err(busy(layout, CLEANER)),
        // A file system without locks: adding is safe as it is.
        Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => Ok(Lock(None)),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", &layout.lock(), e)),
    }
}

/// Taken to remove files: one, and no writer beside.
pub(super) fn exclusive(disk: &dyn Disk, layout: &Layout) -> Result<Lock, Error> {
    let file = open(disk, layout)?;
    // Without locks (an error here) nothing is removed: a writer beside could not be seen.
    match file.try_lock() {
        Ok(()) => Ok(Lock(Some(file))),
        Err(TryLockError::WouldBlock) => Err(busy(layout, WRITER)),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", &layout.lock(), e)),
    }
}

fn open(disk: &dyn Disk, layout: &Layout) -> Result<File, Error> {
    create_dirs(disk, &layout.root, &layout.root)?;
    let path = layout.lock();
    disk.open_lock(&path)
        .map_err(|e| Error::io("open the lock", &path, e))
}

fn busy(layout: &Layout, holder: &'static str) -> Error {
    Error::Busy {
        path: layout.root.clone(),
        holder,
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            // Closing the file releases the lock in any case.
            let _ = file.unlock();
        }
    }
}

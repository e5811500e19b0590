//! The lock of a store: shared by all who add, exclusive for who removes. Readers take none.
//!
//! What is on disk is right without it, because names are digests and nothing is edited. It only keeps a
//! cleaner from taking a pack whose index rows are about to be written.
//!
//! The system frees it when its holder ends in whatever way. Who holds it exclusively writes its name into the lock's
//! file, for those who wait; that says nothing once the lock is free.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::time::Duration;

use super::disk::create_dirs;
use super::layout::Layout;
use super::{Error, Store};
use crate::monitor::Monitor;
use crate::shown;

const CLEANER: &str =
    "another process is removing or rewriting files (gc, rebuild-index or compaction)";
const WRITER: &str = "another process is adding entries or cleaning up";
/// The longest name of a holder that is read.
const NAME_LIMIT_BYTES: u64 = 120;
/// How often a lock that somebody holds is tried again.
const POLL: Duration = Duration::from_millis(100);

/// A lock that is held until it is dropped, or until the process ends in any way.
pub(super) struct Lock {
    /// `None` where the file system has no locks.
    file: Option<File>,
    is_named: bool,
}

/// Taken by a writer: any number at once.
pub(super) fn shared(layout: &Layout) -> Result<Lock, Error> {
    let file = open(layout)?;
    match file.try_lock_shared() {
        Ok(()) => {
            let file = is_current(layout, file)?;
            // While it is shared nobody holds it alone: a name there is of one that was killed.
            if file.metadata().is_ok_and(|m| m.len() > 0) {
                let _ = file.set_len(0);
            }
            Ok(Lock {
                file: Some(file),
                is_named: false,
            })
        }
        Err(TryLockError::WouldBlock) => Err(busy(layout, holder(&file, CLEANER))),
        // A file system without locks: adding is safe as it is.
        Err(TryLockError::Error(e)) if has_no_locks(&e) => Ok(Lock {
            file: None,
            is_named: false,
        }),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", &layout.lock(), e)),
    }
}

/// Taken to remove files, by the command `name`: one, and no writer beside.
pub(super) fn exclusive(layout: &Layout, name: &str) -> Result<Lock, Error> {
    let file = open(layout)?;
    // Without locks (an error here) nothing is removed: a writer beside could not be seen.
    match file.try_lock() {
        Ok(()) => {
            let file = is_current(layout, file)?;
            let is_named = write_name(&file, name).is_ok();
            Ok(Lock {
                file: Some(file),
                is_named,
            })
        }
        Err(TryLockError::WouldBlock) => Err(busy(layout, holder(&file, WRITER))),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", &layout.lock(), e)),
    }
}

/// Does `work`, and does it again while another process keeps the store busy, for `limit` at most.
///
/// # Errors
/// As `work`; [`Error::Busy`] when the time is up.
pub fn when_free<T>(
    limit: Duration,
    monitor: &dyn Monitor,
    mut work: impl FnMut() -> Result<T, Error>,
) -> Result<T, Error> {
    // Counted, not measured: there is no clock here.
    let mut waited = Duration::ZERO;
    let mut told = String::new();
    loop {
        match work() {
            Err(Error::Busy { holder, .. }) if waited < limit => {
                if told != holder {
                    monitor.note(&format!("waiting for the store: {holder}"));
                    told = holder;
                }
                std::thread::sleep(POLL);
                waited += POLL;
            }
            done => return done,
        }
    }
}

impl Store {
    /// Does `work` as soon as no other process keeps the store busy; how long that may take, [`Self::waiting`] says.
    ///
    /// # Errors
    /// As `work`; [`Error::Busy`] when the time is up.
    pub fn when_free<T>(
        &self,
        monitor: &dyn Monitor,
        work: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        when_free(self.wait, monitor, work)
    }
}

fn open(layout: &Layout) -> Result<File, Error> {
    create_dirs(&*layout.disk, &layout.root, &layout.root)?;
    let path = layout.lock();
    layout
        .disk
        .open_lock(&path)
        .map_err(|e| Error::io("open the lock", &path, e))
}

/// The locked file, if it is the one that the next process will open: whoever removes it makes another lock of it.
fn is_current(layout: &Layout, file: File) -> Result<File, Error> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let id = |m: std::fs::Metadata| (m.dev(), m.ino());
        let held = file.metadata().map(id);
        let named = std::fs::metadata(layout.lock()).map(id);
        if !matches!((held, named), (Ok(held), Ok(named)) if held == named) {
            return Err(busy(layout, "its lock is being replaced".to_owned()));
        }
    }
    Ok(file)
}

fn has_no_locks(e: &std::io::Error) -> bool {
    // ENOLCK, which has no kind: a network file system whose server grants no locks.
    const NO_LOCKS: i32 = if cfg!(target_os = "linux") { 37 } else { 77 };
    e.kind() == ErrorKind::Unsupported || (cfg!(unix) && e.raw_os_error() == Some(NO_LOCKS))
}

/// Who holds the lock, as it says itself, or `otherwise` in words.
fn holder(mut file: &File, otherwise: &str) -> String {
    let mut name = Vec::new();
    let read = file
        .seek(SeekFrom::Start(0))
        .and_then(|_| file.take(NAME_LIMIT_BYTES).read_to_end(&mut name));
    let name = String::from_utf8_lossy(&name);
    match (read, name.lines().next()) {
        (Ok(_), Some(name)) if !name.is_empty() => format!("{} is at work", shown::text(name)),
        _ => otherwise.to_owned(),
    }
}

fn write_name(mut file: &File, name: &str) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    let process = std::process::id();
    let host = sysinfo::System::host_name().map_or_else(String::new, |host| format!(" on {host}"));
    writeln!(file, "{name} (process {process}{host})")
}

fn busy(layout: &Layout, holder: String) -> Error {
    Error::Busy {
        path: layout.root.clone(),
        holder,
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            if self.is_named {
                // A name that stays is passed over by whoever gets the lock next.
                let _ = file.set_len(0);
            }
            // Closing the file releases the lock in any case.
            let _ = file.unlock();
        }
    }
}

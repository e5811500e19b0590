//! How the store touches the disk. Every change goes through [`Disk`], so that tests can make any single
//! step fail and can replay what a power cut would have left.
//!
//! A file comes into being in one way only, [`write_once`]: a temporary name in the same folder, all bytes,
//! fsync, rename, fsync of the folder. Only `gc`, `rebuild-index` and compaction remove files.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Error;

/// The changes that a store makes to the disk. [`Local`] makes them; the tests' disks fail or stop at a chosen one.
pub trait Disk: Send + Sync {
    /// Creates one folder.
    ///
    /// # Errors
    /// As the operating system says; one that exists already is an error of kind `AlreadyExists`.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Creates the file `path`, which must not exist, and writes `chunks` into it.
    ///
    /// # Errors
    /// As the operating system says.
    fn write_new(&self, path: &Path, chunks: &[&[u8]]) -> io::Result<File>;
    /// Makes the bytes of `file`, which is at `path`, durable.
    ///
    /// # Errors
    /// As the operating system says.
    fn sync_file(&self, file: &File, path: &Path) -> io::Result<()>;
    /// Renames a file, replacing what was at `to`.
    ///
    /// # Errors
    /// As the operating system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// As the operating system says.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// As the operating system says.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Opens the lock file, creating it if need be.
    ///
    /// # Errors
    /// As the operating system says.
    fn open_lock(&self, path: &Path) -> io::Result<File>;
}

/// The file system as the operating system gives it.
pub struct Local;

impl Disk for Local {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn write_new(&self, path: &Path, chunks: &[&[u8]]) -> io::Result<File> {
        let mut file = File::create_new(path)?;
        for chunk in chunks {
            file.write_all(chunk)?;
        }
        Ok(file)
    }

    fn sync_file(&self, file: &File, _: &Path) -> io::Result<()> {
        file.sync_all()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that renames, with syncs before and after"
    )]
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        // Elsewhere a folder cannot be opened as a file; there a rename is as durable as the system makes it.
        if cfg!(unix) {
            File::open(path)?.sync_all()?;
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn open_lock(&self, path: &Path) -> io::Result<File> {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
    }
}

/// The names of files that are being written begin with this; whoever reads a folder passes over them.
pub(super) const TEMP_PREFIX: &str = ".tmp-";

/// Creates `dir` and what is missing above it, down from `root`, durably.
pub(super) fn create_dirs(disk: &dyn Disk, root: &Path, dir: &Path) -> Result<(), Error> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent()
        && dir != root
    {
        create_dirs(disk, root, parent)?;
    }
    match disk.create_dir(dir) {
        // Another process made it meanwhile.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.map_err(|e| Error::io("create the folder", dir, e))?,
    }
    // The name of a new folder is in its parent: without this sync a power cut takes the folder with all that is in it.
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => disk
            .sync_dir(parent)
            .map_err(|e| Error::io("sync the folder", parent, e)),
        _ => Ok(()),
    }
}

/// Puts a file at `dir/name`, whole and durable or not at all. A file that is there is replaced: names are
/// digests of the content, so it can only have held the same bytes, or damaged ones.
pub(super) fn write_once(
    disk: &dyn Disk,
    dir: &Path,
    name: &str,
    chunks: &[&[u8]],
) -> Result<(), Error> {
    let (temp, written) = write_temp(disk, dir, chunks)?;
    let target = dir.join(name);
    let placed = written
        .and_then(|file| {
            // Bytes before the name: after a power cut a name that is there must have all its bytes.
            disk.sync_file(&file, &temp)
                .map_err(|e| Error::io("sync", &target, e))
        })
        .and_then(|()| {
            disk.rename(&temp, &target)
                .map_err(|e| Error::io("rename a temporary file to", &target, e))
        });
    if placed.is_err() {
        // The first error is the one to tell; a file left behind is found by `check` and removed by `gc`.
        let _ = disk.remove(&temp);
        return placed;
    }
    // Only now is the rename itself durable, so only now may a row name this file.
    disk.sync_dir(dir)
        .map_err(|e| Error::io("sync the folder", dir, e))
}

type Written = (std::path::PathBuf, Result<File, Error>);

/// Writes `chunks` under a temporary name that no other process or thread uses.
fn write_temp(disk: &dyn Disk, dir: &Path, chunks: &[&[u8]]) -> Result<Written, Error> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        // Only uniqueness is asked of the counter, no order.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let temp = dir.join(format!("{TEMP_PREFIX}{}-{number}", std::process::id()));
        match disk.write_new(&temp, chunks) {
            // Left by a dead process with our number, or of another machine on a shared disk.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            result => {
                let file = result.map_err(|e| Error::io("write", &temp, e));
                return Ok((temp, file));
            }
        }
    }
}

/// Reads a whole file of at most `limit` bytes.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let length_bytes = file
        .metadata()
        .map_err(|e| Error::io("look at", path, e))?
        .len();
    if length_bytes > limit {
        return Err(Error::malformed(
            path,
            format!("expected at most {limit} bytes, found {length_bytes}"),
        ));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length_bytes).unwrap_or(0));
    // The file may grow while it is read.
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io("read", path, e))?;
    Ok(bytes)
}

/// A file or folder as a listing has it. `modified` is `None` where the file system does not tell.
pub(super) struct ListedFile {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) modified: Option<std::time::SystemTime>,
}

/// What is in `dir`, sorted by name; nothing where there is no such folder. Names that are not text are not
/// ours and are left out.
pub(super) fn list(dir: &Path) -> Result<Vec<ListedFile>, Error> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Error::io("list", dir, e))?,
    };
    let mut listed = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("list", dir, e))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // A file may be renamed or removed while we look; then it is not there.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        listed.push(ListedFile {
            name,
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
        });
    }
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(listed)
}

//! How the store touches the disk. Every change goes through [`Disk`], and so does what maintenance reads, so that
//! tests can make any single step fail and can replay what a power cut would have left.
//!
//! A file comes into being in one way only, [`write_once`]: a temporary name in the same folder, all bytes,
//! fsync, rename, fsync of the folder. Only `gc`, `rebuild-index` and compaction remove files; the temporary ones of
//! writers that died, `temporary` does, and copies of what is on object storage, `remote::trim`.
//!
//! An error of the system never stands for "not there" or "damaged": only its word that there is no such name does.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, ReadDir};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use super::{Error, temporary};

/// What a store does to the disk. [`Local`] does it; the tests' disks fail or stop at a chosen step.
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
    /// Opens a file to read it.
    ///
    /// # Errors
    /// As the operating system says.
    fn open(&self, path: &Path) -> io::Result<File> {
        File::open(path)
    }
    /// Reads some bytes of `file`, which is at `path`, from `offset` on; none at its end.
    ///
    /// # Errors
    /// As the operating system says.
    fn read_at(
        &self,
        mut file: &File,
        _: &Path,
        offset: u64,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        file.seek(SeekFrom::Start(offset))?;
        file.read(buffer)
    }
    /// Begins to list a folder.
    ///
    /// # Errors
    /// As the operating system says.
    fn read_dir(&self, path: &Path) -> io::Result<ReadDir> {
        fs::read_dir(path)
    }
    /// Looks at what is called `path`; a link is not followed.
    ///
    /// # Errors
    /// As the operating system says.
    fn look_at(&self, path: &Path) -> io::Result<Metadata> {
        fs::symlink_metadata(path)
    }
    /// How many rows of the index maintenance holds in memory at once, of some 60 bytes each; where there are more, it reads the
    /// index several times.
    fn rows_in_memory(&self) -> usize {
        1 << 23
    }
}

/// The file system as the operating system gives it.
pub struct Local;

impl Disk for Local {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn write_new(&self, path: &Path, chunks: &[&[u8]]) -> io::Result<File> {
        let mut file = File::create_new(path)?;
        // For as long as it is open, so that nobody takes it for one of a dead writer.
        temporary::hold(&file, path)?;
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

/// Creates `dir` and what is missing above it, down from `root`, durably.
pub(super) fn create_dirs(disk: &dyn Disk, root: &Path, dir: &Path) -> Result<(), Error> {
    // The empty path is the current folder, above a relative one.
    if dir.is_dir() || dir.as_os_str().is_empty() {
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
    name: impl AsRef<OsStr>,
    chunks: &[&[u8]],
) -> Result<(), Error> {
    let (temp, written) = temporary::write(disk, dir, chunks)?;
    place(disk, (written, &temp), (dir, name.as_ref()))
}

/// Gives a temporary file of the folder `dir` the name `name` there, durably; where that fails, or writing it did, it is removed.
pub(super) fn place(
    disk: &dyn Disk,
    (written, temp): (Result<File, Error>, &Path),
    (dir, name): (&Path, &OsStr),
) -> Result<(), Error> {
    let target = dir.join(name);
    // The file stays open until it has its name: what is open is not collected.
    let placed = written.and_then(|file| {
        // Bytes before the name: after a power cut a name that is there must have all its bytes.
        disk.sync_file(&file, temp)
            .map_err(|e| Error::io("sync", &target, e))?;
        disk.rename(temp, &target)
            .map_err(|e| Error::io("rename a temporary file to", &target, e))
    });
    if placed.is_err() {
        // The first error is the one to tell; a file left behind is found by `check` and collected later.
        let _ = disk.remove(temp);
        return placed;
    }
    // Only now is the rename itself durable, so only now may a row name this file.
    disk.sync_dir(dir)
        .map_err(|e| Error::io("sync the folder", dir, e))
}

/// Removes a file; one that is gone already is no error.
pub(super) fn remove(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    match disk.remove(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|e| Error::io("remove", path, e)),
    }
}

/// Reads a whole file of at most `limit` bytes.
pub(super) fn read_bounded(disk: &dyn Disk, path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let (file, length_bytes) = open(disk, path)?;
    if length_bytes > limit {
        return Err(Error::malformed(
            path,
            format!("expected at most {limit} bytes, found {length_bytes}"),
        ));
    }
    read(disk, &file, path, 0, length_bytes)
}

/// The bytes from `offset` on, `length` of them; `None` where the file ends before.
pub(super) fn read_range(
    disk: &dyn Disk,
    path: &Path,
    offset: u64,
    length: u64,
) -> Result<Option<Vec<u8>>, Error> {
    let (file, length_bytes) = open(disk, path)?;
    match offset.checked_add(length) {
        Some(end) if end <= length_bytes => read(disk, &file, path, offset, length).map(Some),
        _ => Ok(None),
    }
}

/// The length of a regular file.
pub(super) fn length(disk: &dyn Disk, path: &Path) -> Result<u64, Error> {
    Ok(open(disk, path)?.1)
}

/// The length of a regular file, or of what a link leads to; None where there is none.
pub(super) fn length_of_file(disk: &dyn Disk, path: &Path) -> Result<Option<u64>, Error> {
    let look = || {
        let found = disk.look_at(path)?;
        if found.is_symlink() {
            return fs::metadata(path);
        }
        Ok(found)
    };
    match look() {
        Ok(found) => Ok(Some(found.len()).filter(|_| found.is_file())),
        Err(e) if is_absence(&e) => Ok(None),
        Err(e) => Err(Error::io("look at", path, e)),
    }
}

/// Opens a regular file; gives its length.
fn open(disk: &dyn Disk, path: &Path) -> Result<(File, u64), Error> {
    let fail = |e| Error::io("look at", path, e);
    let mut found = disk.look_at(path).map_err(fail)?;
    if found.is_symlink() {
        found = fs::metadata(path).map_err(fail)?;
    }
    // Before it is opened: that of a pipe would wait for ever.
    if !found.is_file() {
        let why = io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file");
        return Err(Error::io("read", path, why));
    }
    let file = disk.open(path).map_err(|e| Error::io("open", path, e))?;
    let length_bytes = file.metadata().map_err(fail)?.len();
    Ok((file, length_bytes))
}

fn read(
    disk: &dyn Disk,
    file: &File,
    path: &Path,
    offset: u64,
    length: u64,
) -> Result<Vec<u8>, Error> {
    let fail = |e| Error::io("read", path, e);
    let size = usize::try_from(length).map_err(|_| fail(io::ErrorKind::OutOfMemory.into()))?;
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(size)
        .map_err(|_| fail(io::ErrorKind::OutOfMemory.into()))?;
    bytes.resize(size, 0);
    let mut done = 0;
    while done < size {
        match disk.read_at(file, path, offset + done as u64, &mut bytes[done..]) {
            // It was longer a moment ago: somebody changes it, which says nothing about what it held.
            Ok(0) => return Err(fail(io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(fail(e)),
        }
    }
    Ok(bytes)
}

/// Whether anything is called `path`, a link to nowhere included.
pub(super) fn is_there(disk: &dyn Disk, path: &Path) -> Result<bool, Error> {
    match disk.look_at(path) {
        Ok(_) => Ok(true),
        Err(e) if is_absence(&e) => Ok(false),
        Err(e) => Err(Error::io("look at", path, e)),
    }
}

/// Whether `path` itself is a folder, not a link to one.
pub(super) fn is_own_folder(disk: &dyn Disk, path: &Path) -> Result<bool, Error> {
    match disk.look_at(path) {
        Ok(found) => Ok(found.is_dir()),
        Err(e) if is_absence(&e) => Ok(false),
        Err(e) => Err(Error::io("look at", path, e)),
    }
}

/// A file or folder as a listing has it. Of a link it tells what the link leads to. `modified` is `None` where the file
/// system does not tell.
#[derive(Clone)]
pub(super) struct ListedFile {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) modified: Option<std::time::SystemTime>,
    pub(super) is_file: bool,
    pub(super) is_folder: bool,
    /// Whether it lies in the store's own folders, and is no link: only such a file is ever removed or renamed.
    pub(super) is_own: bool,
}

/// What is in `dir`, sorted by name; nothing where there is no such folder. Names that are not text are not
/// ours and are left out, as are links to nowhere.
pub(super) fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<ListedFile>, Error> {
    let fail = |e| Error::io("list", dir, e);
    let entries = match disk.read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(fail)?,
    };
    let mut listed = Vec::new();
    for entry in entries {
        let Ok(name) = entry.map_err(fail)?.file_name().into_string() else {
            continue;
        };
        let path = dir.join(&name);
        let look = || {
            let found = disk.look_at(&path)?;
            let is_own = !found.is_symlink();
            let found = if is_own { found } else { fs::metadata(&path)? };
            Ok((found, is_own))
        };
        let (found, is_own) = match look() {
            Ok(found) => found,
            // A file may be renamed or removed while we look; then it is not there.
            Err(e) if is_absence(&e) => continue,
            Err(e) => return Err(Error::io("look at", &path, e)),
        };
        listed.push(ListedFile {
            name,
            bytes: found.len(),
            modified: found.modified().ok(),
            is_file: found.is_file(),
            is_folder: found.is_dir(),
            is_own,
        });
    }
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(listed)
}

/// Whether the system says that there is nothing of this name: not that it could not look.
fn is_absence(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        // The second where a file stands in a folder's place.
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

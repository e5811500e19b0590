//! Temporary files: the name of each, who is writing it, and the collection of those whose writer died.
//!
//! Whoever writes one holds a lock (`flock`) on it until it has its name, and the system ends the lock with the process.
//! So a file of this kind that can be locked belongs to nobody, whatever machine or container its writer was on. Where
//! the file system has no locks, only its age tells.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::disk::{self, Disk};
use super::{Error, Local};

/// The names of files that are being written begin with this; whoever reads a folder passes over them.
const PREFIX: &str = ".tmp-";
/// The end of those that their writer holds locked. Earlier versions held none, and their names ended in a number.
const HELD: &str = "-held";

/// Writes `chunks` under a temporary name that no other process or thread uses.
pub(super) fn write(
    disk: &dyn Disk,
    dir: &Path,
    chunks: &[&[u8]],
) -> Result<(PathBuf, Result<File, Error>), Error> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        // Only uniqueness is asked of the counter, no order.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let temp = dir.join(format!("{PREFIX}{}-{number}{HELD}", std::process::id()));
        match disk.write_new(&temp, chunks) {
            // Left by a dead process with our number, of another machine on a shared disk, or collected before it was held.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            result => {
                let file = result.map_err(|e| Error::io("write", &temp, e));
                return Ok((temp, file));
            }
        }
    }
}

/// Holds a new file until it is closed.
///
/// # Errors
/// `AlreadyExists` where a collector was quicker: another name must be taken.
pub(super) fn hold(file: &File, path: &Path) -> io::Result<()> {
    // Waits for a collector that looks at it just now; where there are no locks, age alone protects it.
    if file.lock().is_ok() && !path.try_exists()? {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    Ok(())
}

/// Whether a name is one that this or an earlier version gives to a file that is being written.
pub(super) fn is_name(name: &str) -> bool {
    let is_number = |text: &str| (1..=20).contains(&text.len()) && text.bytes().all(is_digit);
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return false;
    };
    let numbers = rest.strip_suffix(HELD).unwrap_or(rest);
    let pair = numbers.split_once('-');
    pair.is_some_and(|(process, number)| is_number(process) && is_number(number))
}

fn is_digit(byte: u8) -> bool {
    byte.is_ascii_digit()
}

/// Whether the name of a temporary file says that its writer holds it.
pub(super) fn is_held(path: &Path) -> bool {
    path.to_string_lossy().ends_with(HELD)
}

/// Whether the writer of the temporary file `path` is certainly dead.
pub(super) fn is_abandoned(disk: &dyn Disk, path: &Path) -> bool {
    lock_abandoned(disk, path).is_some()
}

/// The file, locked, if nobody writes it any more. `None` as well where that cannot be known.
fn lock_abandoned(disk: &dyn Disk, path: &Path) -> Option<File> {
    let name = path.file_name()?.to_str()?;
    if !is_name(name) || !name.ends_with(HELD) || !disk.look_at(path).ok()?.is_file() {
        return None;
    }
    // A network file system grants the lock only to who may write.
    let file = File::options().read(true).write(true).open(path).ok()?;
    match file.try_lock() {
        Ok(()) => Some(file),
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => None,
    }
}

/// Removes the temporary files in `dir` whose writers died; gives how many.
pub(super) fn collect(disk: &dyn Disk, dir: &Path) -> Result<u64, Error> {
    let mut collected = 0;
    if !disk::is_own_folder(disk, dir)? {
        return Ok(0);
    }
    for file in disk::list(disk, dir)? {
        if file.is_own && file.is_file && is_name(&file.name) {
            let path = dir.join(&file.name);
            // Held while it is removed, so that its writer, if it had only just begun, notices.
            if let Some(_held) = lock_abandoned(disk, &path) {
                disk::remove(disk, &path)?;
                collected += 1;
            }
        }
    }
    Ok(collected)
}

/// Removes the temporary files that [`super::write_file`] left in the folder `dir` when its process was killed; those of
/// processes at work stay. Gives how many went.
///
/// # Errors
/// If the folder cannot be listed or one of them not be removed.
pub fn collect_temporary_files(dir: &Path) -> Result<u64, Error> {
    match dir.canonicalize() {
        Ok(dir) => collect(&Local, &dir),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(Error::io("find", dir, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_the_store_gives_are_temporary_files() {
        for name in [".tmp-1-0", ".tmp-4194304-12", ".tmp-1-0-held"] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            ".tmp-",
            ".tmp-a",
            ".tmp-1",
            ".tmp-1-",
            ".tmp-1-x",
            ".tmp-1-0-",
            ".tmp--1",
            ".tmp-1-0.json",
            ".tmp-1-0-held-held",
            ".tmp-notes-1",
            "tmp-1-0",
            ".tmp-\u{661}-0",
            "a.tmp-1-0",
        ] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn files_of_dead_writers_go_and_those_at_work_and_foreign_ones_stay() {
        let dir = tempfile::tempdir().expect("a folder");
        let (alive, file) = write(&Local, dir.path(), &[b"half"]).expect("written");
        let (dead, written) = write(&Local, dir.path(), &[b"half"]).expect("written");
        drop(written.expect("written"));
        let others = [".tmp-1-0", ".tmp-notes-held", "a.json"].map(|name| dir.path().join(name));
        for other in &others {
            std::fs::write(other, "x").expect("written");
        }
        assert!(is_abandoned(&Local, &dead) && !is_abandoned(&Local, &alive));
        assert_eq!(collect_temporary_files(dir.path()).expect("collected"), 1);
        assert!(!dead.exists() && alive.exists() && others.iter().all(|o| o.exists()));
        drop(file);
        assert_eq!(collect_temporary_files(dir.path()).expect("collected"), 1);
        assert!(!alive.exists());
    }
}

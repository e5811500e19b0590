//! Files outside a store, at a path that a person named.

use std::io;
use std::path::{Path, PathBuf};

use super::disk::{self, Local};
use super::{Error, create_root};

/// Links that lead to each other, as the operating systems count them.
const MOST_LINKS: usize = 40;

/// Puts a file in place outside a store as files are put into one: whole and durable under its name, or not at
/// all. Missing folders are made; a file that is there is replaced, and of a link, what it leads to.
///
/// # Errors
/// If something else than a file has that name, or the file or a folder cannot be written.
pub fn write_file(path: &Path, chunks: &[&[u8]]) -> Result<(), Error> {
    let target = file_target(path)?;
    let (folder, name) = parts(&target);
    create_root(&Local, folder)
        .and_then(|()| disk::write_once(&Local, folder, name, chunks))
        .map_err(|e| e.outside(path))
}

/// That [`write_file`] could put a file at `path`, before the work that makes its bytes. Nothing is left there.
///
/// # Errors
/// If it could not, but for the room on the disk.
pub fn check_file(path: &Path) -> Result<(), Error> {
    let target = file_target(path)?;
    let mut above = target.ancestors().skip(1);
    // The folder, or the one that it would be made in.
    let there = above.find(|folder| folder.symlink_metadata().is_ok());
    let tried = tempfile::tempfile_in(there.unwrap_or(Path::new("/")));
    tried.map(|_| ()).map_err(|cause| unwritable(path, cause))
}

/// Where a file that is to be called `path` comes to lie: behind the links of that name, also where they lead to no file yet.
///
/// # Errors
/// If there is something that is no file: what replaced a device or a pipe would take it away from all who use it.
pub fn file_target(path: &Path) -> Result<PathBuf, Error> {
    let refused = |why: &str| {
        let cause = io::Error::new(io::ErrorKind::InvalidInput, why);
        Err(unwritable(path, cause))
    };
    match path.metadata() {
        Ok(found) if found.is_dir() => return refused("it is a folder; name a file in it"),
        Ok(found) if !found.is_file() => {
            return refused("it is a device, a pipe or a socket; name a file");
        }
        _ => {}
    }
    // A bare file name has no parent to write and sync in.
    let mut target = std::path::absolute(path).map_err(|e| unwritable(path, e))?;
    for _ in 0..MOST_LINKS {
        match target.read_link() {
            Ok(to) => target = parts(&target).0.join(to),
            // It is no link, or nothing yet; what else the system has against it, writing tells.
            Err(_) if target.file_name().is_none() => return refused("it is no name of a file"),
            Err(_) => return Ok(target),
        }
    }
    refused("its links lead to each other; name a file")
}

/// The folder and the name of an absolute path.
pub(super) fn parts(target: &Path) -> (&Path, &std::ffi::OsStr) {
    (
        target.parent().unwrap_or(Path::new("/")),
        target.file_name().unwrap_or_default(),
    )
}

fn unwritable(path: &Path, cause: io::Error) -> Error {
    Error::File {
        path: path.to_owned(),
        cause,
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::{FileTypeExt as _, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_file_is_written_behind_its_links_and_under_its_very_name() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("other")).expect("a folder");
        symlink("other/file", at("second")).expect("a link");
        symlink("second", at("first")).expect("a link");
        for text in ["to a file that is not there yet", "to one that is"] {
            check_file(&at("first")).expect("fine");
            write_file(&at("first"), &[text.as_bytes()]).expect("written");
            assert!(at("first").is_symlink() && at("second").is_symlink());
            assert_eq!(fs::read_to_string(at("other/file")).expect("there"), text);
        }
        symlink("round", at("round")).expect("a link");
        let round = write_file(&at("round"), &[]).expect_err("refused");
        assert!(round.to_string().contains("lead to each other"), "{round}");

        // A name that is no UTF-8 is a name as well.
        let name = OsStr::from_bytes(b"bad\xff.txt");
        write_file(&dir.path().join(name), &[b"x"]).expect("written");
        let mut names = fs::read_dir(dir.path()).expect("a folder");
        assert!(names.any(|entry| entry.expect("an entry").file_name() == name));
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).expect("a socket");
        symlink(&socket, dir.path().join("link")).expect("a link");
        for name in ["socket", "link"] {
            let path = dir.path().join(name);
            for refused in [check_file(&path), write_file(&path, &[b"x"])] {
                let error = refused.expect_err("refused").to_string();
                assert!(
                    error.contains("it is a device, a pipe or a socket"),
                    "{error}"
                );
            }
        }
        let kind = socket.symlink_metadata().expect("there").file_type();
        assert!(kind.is_socket());
        let error = check_file(dir.path()).expect_err("refused").to_string();
        assert!(error.contains("it is a folder"), "{error}");
    }
}

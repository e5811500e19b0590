//! Files that a person names, read within bounds: a device or a pipe may never end, and opening a pipe may wait for ever.
//!
//! Only regular files are opened (links are followed), and no more is read than the caller says such a file can have.
//!
//! - `pickle`, `number`: the pickles of `torch.save`, read as data

mod number;
pub mod pickle;

pub use number::NumberType;

use std::fs::{File, FileType, Metadata};
use std::io::{Error, ErrorKind, Read as _, Result, Write as _};
use std::path::Path;

/// Bytes that a model's configuration, or a list in JSON, can have; those that are published have a few kB.
pub const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Opens a regular file for reading.
///
/// # Errors
/// If it cannot be opened, or is a folder, a pipe, a socket or a device.
pub fn open(path: &Path) -> Result<File> {
    // Looked at before it is opened: that alone waits at a pipe that nobody writes to, and does things to some devices.
    check(&std::fs::metadata(path)?)?;
    let file = File::open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

/// The content of a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open`], if it is longer, or cannot be read.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let claimed = file.metadata()?.len();
    let mut bytes = Vec::new();
    if claimed <= limit {
        bytes.reserve_exact(usize::try_from(claimed).unwrap_or(0));
        // The length is what the file system says: some files are longer (`/proc`), and one may grow meanwhile.
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    }
    let found = claimed.max(bytes.len() as u64);
    if found > limit {
        let reason = format!("it has {found} bytes or more, such a file has at most {limit}");
        return Err(Error::new(ErrorKind::FileTooLarge, reason));
    }
    Ok(bytes)
}

/// Puts a file of a cache in place, for others whole or not at all; missing folders are made. Not synced: it can be made again.
///
/// # Errors
/// If the file or a folder cannot be written.
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.persist(path)?;
    Ok(())
}

fn check(metadata: &Metadata) -> Result<()> {
    match other_kind(metadata.file_type()) {
        None => Ok(()),
        Some(kind) => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("it is {kind}, not a file"),
        )),
    }
}

fn other_kind(kind: FileType) -> Option<&'static str> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        if kind.is_fifo() {
            return Some("a pipe");
        }
        if kind.is_socket() {
            return Some("a socket");
        }
        if kind.is_char_device() || kind.is_block_device() {
            return Some("a device");
        }
    }
    match kind {
        kind if kind.is_file() => None,
        kind if kind.is_dir() => Some("a folder"),
        _ => Some("something else"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn refusal(path: &Path, limit: u64) -> String {
        match super::read(path, limit) {
            Ok(bytes) => panic!("{}: {} bytes were read", path.display(), bytes.len()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.json");
        std::fs::write(&path, b"12345").expect("written");
        assert_eq!(super::read(&path, 5).expect("read"), b"12345");
        assert!(refusal(&path, 4).contains("has 5 bytes or more, such a file has at most 4"));
        assert!(refusal(folder.path(), 4).contains("a folder"));
        assert!(super::read(&folder.path().join("none"), 4).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn what_may_never_end_is_not_read() {
        use std::os::unix::net::UnixListener;
        use std::process::Command;

        assert!(refusal(Path::new("/dev/zero"), u64::MAX).contains("a device"));
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("socket");
        let _listener = UnixListener::bind(&socket).expect("a socket");
        assert!(refusal(&socket, 4).contains("a socket"));
        let pipe = folder.path().join("pipe");
        let made = Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
        assert!(made.success());
        assert!(refusal(&pipe, 4).contains("a pipe"));
        // Nor behind a link.
        let link = folder.path().join("config.json");
        std::os::unix::fs::symlink(&pipe, &link).expect("a link");
        assert!(refusal(&link, 4).contains("a pipe"));
    }
}

//! What a file on the hub is verified by, and the memory of which files were.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::files;
use crate::monitor::Monitor;
use crate::nn::weights::FileState;

/// Bytes read at a time.
const PIECE: usize = 1 << 20;
/// Files below it are verified without a word.
const SLOW_BYTES: u64 = 256 << 20;
const MAX_MEMO_BYTES: u64 = 64 << 20;

/// The hash of a file's content, which is also its name in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ContentHash {
    /// Of a file in Git LFS, as large files are.
    Sha256(String),
    /// Of any other: Git's own, SHA-1 of its length and content.
    Git(String),
}

impl ContentHash {
    /// Reads 64 or 40 lower-case hexadecimal digits, as nothing else may become a name of a file.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.len() {
            64 if is_hex(text) => Some(Self::Sha256(text.to_owned())),
            40 if is_hex(text) => Some(Self::Git(text.to_owned())),
            _ => None,
        }
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Sha256(name) | Self::Git(name) => name,
        }
    }

    /// Hashes a content of `size` bytes in the same way.
    pub(super) fn hasher(&self, size: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::Git(_) => {
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {size}\0"));
                Hasher::Git(hasher)
            }
        }
    }
}

/// Whether a text is a commit: 40 lower-case hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

pub(super) enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
        }
    }

    pub(super) fn finish(self) -> String {
        let bytes = match self {
            Self::Sha256(hasher) => hasher.finalize().to_vec(),
            Self::Git(hasher) => hasher.finalize().to_vec(),
        };
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Gives a whole file to `take`, piece by piece.
pub(super) fn read_pieces(file: &std::fs::File, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let (mut file, mut piece) = (file, vec![0; PIECE]);
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => take(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The files that were found to have the content their hash says, by place, length and times, so that 20 GB are hashed once.
pub(super) struct Verified {
    path: Option<PathBuf>,
    known: BTreeMap<String, VerifiedFile>,
    changed: bool,
}

#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct VerifiedFile {
    file: FileState,
    hash: String,
}

impl Verified {
    pub(super) fn open(path: Option<&Path>) -> Self {
        let read = path.and_then(|path| files::read(path, MAX_MEMO_BYTES).ok());
        let known = read.and_then(|text| serde_json::from_slice(&text).ok());
        Self {
            path: path.map(Path::to_owned),
            known: known.unwrap_or_default(),
            changed: false,
        }
    }

    /// Whether the content of a file is what its hash says; read whole unless that was done before.
    pub(super) fn check(
        &mut self,
        path: &Path,
        hash: &ContentHash,
        monitor: &dyn Monitor,
    ) -> io::Result<bool> {
        // One entry for a file, however it is reached.
        let path = &path.canonicalize()?;
        let file = files::open(path)?;
        let before = FileState::of(path, &file)?;
        let found = VerifiedFile {
            hash: hash.name().to_owned(),
            file: before,
        };
        let key = path.to_string_lossy().into_owned();
        if self.known.get(&key) == Some(&found) {
            return Ok(true);
        }
        let size = found.file.size_bytes;
        let slow = size >= SLOW_BYTES;
        if slow {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            monitor.start(&format!("verifying {name:.12}, bytes"), Some(size));
        }
        let mut hasher = hash.hasher(size);
        let read = read_pieces(&file, |piece| {
            hasher.update(piece);
            if slow {
                monitor.advance(piece.len() as u64);
            }
        });
        if slow {
            monitor.finish();
        }
        read?;
        let unchanged = FileState::of(path, &file)? == found.file;
        let sound = unchanged && hasher.finish() == hash.name();
        if sound {
            self.known.insert(key, found);
            self.changed = true;
        }
        Ok(sound)
    }

    /// Keeps what is known. Losing it costs a reading, nothing else.
    pub(super) fn save(&self) {
        let Some(path) = self.path.as_ref().filter(|_| self.changed) else {
            return;
        };
        let content = serde_json::to_vec_pretty(&self.known).map_err(io::Error::from);
        let _ = content.and_then(|content| files::replace(path, &content));
    }
}

#[cfg(test)]
mod tests {
    use super::{ContentHash, Verified, is_commit};
    use crate::monitor::Silent;

    #[test]
    fn nothing_but_a_hash_becomes_a_name() {
        let (git, sha) = ("0123456789abcdef".repeat(3), "0123456789abcdef".repeat(4));
        assert!(is_commit(&git[..40]));
        assert_eq!(
            ContentHash::parse(&git[..40]).map(|h| h.name().to_owned()),
            Some(git[..40].to_owned())
        );
        assert!(ContentHash::parse(&sha).is_some());
        let dots = "../".repeat(13) + "x";
        for bad in [
            "",
            "/etc",
            "..",
            &git,
            &sha[1..],
            &dots,
            &"g".repeat(64),
            &"A".repeat(40),
        ] {
            assert_eq!(ContentHash::parse(bad), None, "{bad}");
            assert!(!is_commit(bad), "{bad}");
        }
    }

    /// The values are those of `git hash-object` and `sha256sum`.
    #[test]
    fn a_file_is_verified_by_its_hash_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let memo = folder.path().join("deep/memo.json");
        std::fs::write(&path, "hello\n").expect("written");
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let check = |hash: &str| {
            let mut verified = Verified::open(Some(&memo));
            let hash = ContentHash::parse(hash).expect("a hash");
            let sound = verified.check(&path, &hash, &Silent).expect("read");
            verified.save();
            sound
        };
        assert!(check(git) && check(sha) && !check(&sha.replace('5', "6")));
        assert!(memo.is_file());
        // What was written to is read again.
        std::fs::write(&path, "hellO\n").expect("written");
        assert!(!check(sha) && !check(git));
    }
}

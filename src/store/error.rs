//! What can go wrong in a store, each with the file, what was expected, what was found, and what to do next.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Fingerprint;

/// Why a store could not be opened, read, written or mended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder holds no store.
    #[error("no store at {path}: {why}")]
    NotAStore {
        /// The folder.
        path: PathBuf,
        /// What was found there, and what to do.
        why: String,
        /// Whether one may be made there.
        is_free: bool,
    },
    /// The store was written by a newer plumb.
    #[error(
        "{path} has format version {found}, and this plumb ({tool}) knows versions up to {known}; use a newer plumb",
        tool = super::TOOL
    )]
    NewerFormat {
        /// The file that says so.
        path: PathBuf,
        /// The version that the file says.
        found: u64,
        /// The newest version this program reads.
        known: u64,
    },
    /// The operating system refused something.
    #[error("cannot {action} {path}: {cause}{advice}", advice = advice(cause))]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder it was tried on.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The operating system refused a file that is no part of a store.
    #[error("cannot write {path}: {cause}{}", if is_full(cause) { "; free some space and run again" } else { "" })]
    File {
        /// The file that was to be written.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A file does not hold what it must.
    #[error("{path}: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Field, expected, found, and what to do.
        why: String,
    },
    /// An entry is in the index but its payload is not what was written.
    #[error("damaged entry {entry} of spec {spec} in {path}: {why}")]
    Damaged {
        /// The encoder's or latents' spec.
        spec: Fingerprint,
        /// The entry that cannot be read.
        entry: Fingerprint,
        /// The pack or index part at fault.
        path: PathBuf,
        /// Expected, found, and what to do.
        why: String,
    },
    /// What was given to be stored cannot be stored.
    #[error("cannot store `{source_text}` under spec {spec}{}: {why}", part.as_ref().map(|p| format!(", part {p}")).unwrap_or_default())]
    Unfit {
        /// The spec it was to be stored under.
        spec: Fingerprint,
        /// The caption, or what stands for it.
        source_text: String,
        /// The part, if it is one's fault.
        part: Option<String>,
        /// Expected and found.
        why: String,
    },
    /// Object storage cannot be reached, or refuses something.
    #[error("cannot {action} {object}: {why}")]
    Remote {
        /// What was tried, as a verb.
        action: &'static str,
        /// The object's address, or that of the store.
        object: String,
        /// What the server or the system said, and what to do.
        why: String,
        /// Whether it said that there is no such object.
        is_absent: bool,
    },
    /// Another process holds the lock.
    #[error(
        "the store at {path} is busy: {holder}; try again when it is done, or wait longer (--wait)"
    )]
    Busy {
        /// The store.
        path: PathBuf,
        /// What the other process may be doing, as a clause.
        holder: String,
    },
    /// The request makes no sense or would do harm.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    pub(super) fn io(action: &'static str, path: &Path, cause: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            cause,
        }
    }

    /// Of something that went wrong while a file outside a store was written: it is that file's, whatever was tried on the way.
    pub(super) fn outside(self, path: &Path) -> Self {
        match self {
            Self::Io { cause, .. } => Self::File {
                path: path.to_owned(),
                cause,
            },
            other => other,
        }
    }

    pub(super) fn malformed(path: &Path, why: impl Into<String>) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            why: why.into(),
        }
    }

    /// Whether this is damage to one entry: for an encoder the same as a missing one.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }

    /// Whether it came from a full disk or quota, so that trying again after making room may succeed.
    pub fn is_full_disk(&self) -> bool {
        matches!(self, Self::Io { cause, .. } | Self::File { cause, .. } if is_full(cause))
    }

    /// Whether the store may be read but not written.
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::Io { cause, .. } if is_read_only(cause))
    }

    /// Whether there is no store at all, so that one may be made.
    pub fn is_no_store(&self) -> bool {
        matches!(self, Self::NotAStore { is_free: true, .. })
    }

    /// Whether a file was read whole and is not what it must be. Anything else that went wrong says nothing about it.
    pub(crate) fn is_content(&self) -> bool {
        matches!(self, Self::Malformed { .. } | Self::Damaged { .. })
    }

    /// Whether a file named in a listing was gone when it was opened.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Io { cause, .. } => cause.kind() == io::ErrorKind::NotFound,
            Self::Remote { is_absent, .. } => *is_absent,
            _ => false,
        }
    }
}

fn is_full(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        // A quota is a full disk to whoever has it.
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn is_read_only(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        // A read-only mount, or a store that belongs to somebody else: both can be read.
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
    )
}

/// What to do about an error of the operating system, where there is something to do.
fn advice(cause: &io::Error) -> &'static str {
    if is_full(cause) {
        return "; free some space and run again, what was committed before is safe";
    }
    match is_read_only(cause) {
        true => "; a store that may not be written can still be read",
        false => "",
    }
}

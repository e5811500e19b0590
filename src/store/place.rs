//! Where a store is.

use std::path::{Path, PathBuf};

use super::remote::{CacheLimit, Remote};

/// A folder; or object storage, and the folder that keeps what was read from there.
#[derive(Clone, Debug)]
pub struct Place {
    folder: PathBuf,
    behind: Option<Behind>,
}

/// What stands behind a folder.
#[derive(Clone, Debug)]
pub(super) struct Behind {
    pub(super) remote: Remote,
    /// Whether packs go there in shared form.
    pub(super) compress: bool,
    /// How much the folder keeps; None for all.
    pub(super) limit: Option<CacheLimit>,
}

impl Place {
    /// The store `remote`, of which `folder` keeps what was read and what is to be written; `compress` says whether packs are
    /// written in shared form.
    pub fn remote(remote: Remote, folder: PathBuf, compress: bool) -> Self {
        Self {
            folder,
            behind: Some(Behind {
                remote,
                compress,
                limit: None,
            }),
        }
    }

    /// The same, whose folder keeps no more than `limit` of a store on object storage.
    #[must_use]
    pub fn keeping(mut self, limit: Option<CacheLimit>) -> Self {
        if let Some(behind) = &mut self.behind {
            behind.limit = limit;
        }
        self
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// As a person names it: the folder, or the address.
    pub fn shown(&self) -> PathBuf {
        match &self.behind {
            Some(behind) => behind.remote.address().to_string().into(),
            None => self.folder.clone(),
        }
    }

    pub(super) fn behind(&self) -> Option<&Behind> {
        self.behind.as_ref()
    }
}

impl From<PathBuf> for Place {
    fn from(folder: PathBuf) -> Self {
        Self {
            folder,
            behind: None,
        }
    }
}

impl From<&Path> for Place {
    fn from(folder: &Path) -> Self {
        folder.to_owned().into()
    }
}

impl From<&PathBuf> for Place {
    fn from(folder: &PathBuf) -> Self {
        folder.clone().into()
    }
}

impl From<&Self> for Place {
    fn from(place: &Self) -> Self {
        place.clone()
    }
}

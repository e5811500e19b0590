//! Models on the Hugging Face hub: `hf://owner/name@revision`, and a file or folder in one,
//! `hf://owner/name/file.safetensors@revision`.
//!
//! Files go to the cache that all of the hub's programs share, so nothing is downloaded twice; of a folder in the
//! layout of diffusers only what is used comes: the parts' weights (one of several precisions), configurations and
//! tokenizers. Downloading needs the feature `hub`; without it, and offline, what is in the cache is used.

#[cfg(feature = "hub")]
mod download;
mod select;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::monitor::Monitor;
use crate::shown;

pub use select::wanted;

const SCHEME: &str = "hf://";
const MAIN: &str = "main";

/// Why a model on the hub could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not an address.
    #[error(
        "`{0}` is not an address on the hub: expected hf://owner/name, hf://owner/name@revision or hf://owner/name/file@revision"
    )]
    Malformed(String),
    /// This build cannot download, and it is not in the cache.
    #[error(
        "{address} is not in the cache ({}), and this plumb was built without downloads: build it with `--features hub`, or fetch the model (`hf download {repo}`) and name its folder",
        shown::path(cache)
    )]
    NotBuilt {
        /// What was wanted.
        address: Address,
        /// Its repository, `owner/name`.
        repo: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// Downloads are off, and it is not in the cache.
    #[error(
        "{address} is not in the cache ({}), and HF_HUB_OFFLINE is set: unset it, or fetch the model elsewhere and name its folder",
        shown::path(cache)
    )]
    Offline {
        /// What was wanted.
        address: Address,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// The hub cannot be reached.
    #[error(
        "{address}: {endpoint} cannot be reached ({reason}): is there a network? a model that was fetched elsewhere can be named by its folder"
    )]
    Unreachable {
        /// What was wanted.
        address: Address,
        /// The address of the hub that was asked.
        endpoint: String,
        /// What the system said.
        reason: String,
    },
    /// The hub refuses.
    #[error(
        "{address}: the hub refuses ({status}): {repo} is gated, private or not there; accept its terms at {endpoint}/{repo}, and set HF_TOKEN to a token of yours that may read it{token}"
    )]
    Refused {
        /// What was wanted.
        address: Address,
        /// Its repository, `owner/name`.
        repo: String,
        /// The address of the hub that was asked.
        endpoint: String,
        /// 401 or 403.
        status: u16,
        /// Whether there was a token, as the end of a sentence.
        token: &'static str,
    },
    /// There is no such repository, revision or file.
    #[error("{address}: the hub has no repository {repo} with a revision `{revision}`")]
    NotThere {
        /// What was wanted.
        address: Address,
        /// Its repository, `owner/name`.
        repo: String,
        /// The branch, tag or commit that was asked for.
        revision: String,
    },
    /// The repository has nothing that is wanted.
    #[error("{address}: {reason}")]
    Nothing {
        /// What was wanted.
        address: Address,
        /// What the repository has instead.
        reason: String,
    },
    /// A download failed.
    #[error(
        "{address}: `{file}` could not be downloaded: {reason}; the next try goes on where this one ended"
    )]
    Failed {
        /// What was wanted.
        address: Address,
        /// The file in the repository.
        file: String,
        /// What went wrong.
        reason: String,
    },
}

/// A repository on the hub, or a file or folder in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `owner/name`.
    pub repo: String,
    /// A branch, tag or commit.
    pub revision: Option<String>,
    /// A file or folder in the repository.
    pub inside: Option<String>,
}

/// Where the hub and its cache are.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of the cache (`~/.cache/huggingface/hub`).
    pub cache: PathBuf,
    /// The hub (`https://huggingface.co`).
    pub endpoint: String,
    /// The access token, for gated and private repositories; None: there is none.
    pub token: Option<String>,
    /// Whether to look in the cache only.
    pub offline: bool,
}

impl Address {
    /// Whether a path of an Experiment is an address.
    pub fn is_one(path: &Path) -> bool {
        path.to_str().is_some_and(|text| text.starts_with(SCHEME))
    }

    /// Reads an address.
    ///
    /// # Errors
    /// If it is not one.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let malformed = || Error::Malformed(text.to_owned());
        let rest = text.strip_prefix(SCHEME).ok_or_else(malformed)?;
        let (path, revision) = match rest.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (rest, None),
        };
        // What is asked for becomes a part of paths in the cache.
        let is_plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_. +".contains(c);
            !part.is_empty() && part.chars().all(allowed) && !part.chars().all(|c| c == '.')
        };
        let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
        let (Some([owner, name]), inside) = (parts.get(..2), parts.get(2..).unwrap_or_default())
        else {
            return Err(malformed());
        };
        let all_plain = parts.iter().all(|part| is_plain(part))
            && revision.is_none_or(|r| r.split('/').all(is_plain));
        if !all_plain {
            return Err(malformed());
        }
        Ok(Self {
            repo: format!("{owner}/{name}"),
            revision: revision.map(str::to_owned),
            inside: (!inside.is_empty()).then(|| inside.join("/")),
        })
    }

    fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// The folder of the repository in a cache.
    fn folder(&self, cache: &Path) -> PathBuf {
        cache.join(format!("models--{}", self.repo.replace('/', "--")))
    }

    /// What the cache has of it.
    fn cached(&self, cache: &Path) -> Option<PathBuf> {
        let folder = self.folder(cache);
        // The layout of huggingface_hub's cache: `refs/BRANCH` holds a commit, `snapshots/COMMIT` its files.
        let named = std::fs::read_to_string(folder.join("refs").join(self.revision()));
        // A full commit hash needs no ref.
        let commit = named.map_or_else(|_| self.revision().to_owned(), |c| c.trim().to_owned());
        let snapshot = folder.join("snapshots").join(commit);
        let found = match &self.inside {
            Some(inside) => snapshot.join(inside),
            None => snapshot,
        };
        found.exists().then_some(found)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.repo)?;
        if let Some(inside) = &self.inside {
            write!(f, "/{inside}")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        Ok(())
    }
}

/// The file or folder of an address on this machine, downloaded where it is not.
///
/// # Errors
/// If it is not there, may not be read, or cannot be downloaded.
pub fn fetch(
    address: &Address,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<PathBuf, Error> {
    if options.offline {
        let cached = address.cached(&options.cache);
        return cached.ok_or_else(|| Error::Offline {
            address: address.clone(),
            cache: options.cache.clone(),
        });
    }
    online(address, options, monitor)
}

#[cfg(feature = "hub")]
fn online(address: &Address, options: &Options, monitor: &dyn Monitor) -> Result<PathBuf, Error> {
    match download::fetch(address, options, monitor) {
        Err(Error::Unreachable {
            reason, endpoint, ..
        // What was fetched before is enough to go on without a network.
        }) if address.cached(&options.cache).is_some() => {
            monitor.note(&format!(
                "{address}: {endpoint} cannot be reached ({reason}), what is in the cache is used"
            ));
            address
                .cached(&options.cache)
                .ok_or_else(|| Error::Offline {
                    address: address.clone(),
                    cache: options.cache.clone(),
                })
        }
        other => other,
    }
}

#[cfg(not(feature = "hub"))]
fn online(address: &Address, options: &Options, _: &dyn Monitor) -> Result<PathBuf, Error> {
    let cached = address.cached(&options.cache);
    cached.ok_or_else(|| Error::NotBuilt {
        address: address.clone(),
        repo: address.repo.clone(),
        cache: options.cache.clone(),
    })
}

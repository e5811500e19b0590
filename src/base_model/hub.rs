//! Models on the Hugging Face hub: `hf://owner/name@revision`, and a file or folder in one,
//! `hf://owner/name/file.safetensors@revision`.
//!
//! Files go to the cache that all of the hub's programs share, so nothing is downloaded twice; of a folder in the
//! layout of diffusers only what is used comes: the parts' weights (one of several precisions), configurations and
//! tokenizers. Every file is compared with the hash that the hub lists, or that the cache calls it by, before it is used the
//! first time; offline, what is in the cache is used.

mod cache;
mod download;
mod hash;
mod remote;
mod select;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use cache::CachedRepo;
use hash::Verified;

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
        "`{}` is not an address on the hub: expected hf://owner/name, hf://owner/name@revision or hf://owner/name/file@revision", shown::text(.0)
    )]
    Malformed(String),
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
        "{address}: the hub refuses ({status}): {repo} is {why}; accept its licence at {endpoint}/{repo} if it has one, and set HF_TOKEN to a token of yours that may read it{token}"
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
        /// What the hub says of the repository.
        why: &'static str,
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
    /// The hub answers nobody who asks so often.
    #[error("{address}: the hub has had too many requests (429): try again later, or set HF_TOKEN")]
    Busy {
        /// What was wanted.
        address: Address,
    },
    /// The disk is too full for it.
    #[error(
        "{address}: {needed} are to be downloaded, and {} has {free} free: make room, or set HF_HOME to a folder on another disk",
        shown::path(cache)
    )]
    NoSpace {
        /// What was wanted.
        address: Address,
        /// How much is missing.
        needed: String,
        /// The folder of the cache.
        cache: PathBuf,
        /// How much there is room for.
        free: String,
    },
    /// A file of the cache is not what its name says.
    #[error(
        "{address}: {} is damaged: {reason}; remove it, and let it be downloaded again",
        shown::path(file)
    )]
    Damaged {
        /// What was wanted.
        address: Address,
        /// The file in the cache.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The cache has some of it.
    #[error(
        "{address} is in the cache only in part: {} has no `{missing}`; let it be downloaded (without HF_HUB_OFFLINE)",
        shown::path(folder)
    )]
    Incomplete {
        /// What was wanted.
        address: Address,
        /// The snapshot's folder.
        folder: PathBuf,
        /// A folder that its `model_index.json` names.
        missing: String,
    },
    /// A download failed.
    #[error(
        "{address}: `{}` could not be downloaded: {reason}; the next try goes on where this one ended",
        shown::text(file)
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
#[derive(Clone)]
pub struct Options {
    /// The folder of the cache (`~/.cache/huggingface/hub`).
    pub cache: PathBuf,
    /// The hub (`https://huggingface.co`).
    pub endpoint: String,
    /// The access token, for gated and private repositories; None: there is none.
    pub token: Option<String>,
    /// Whether to look in the cache only.
    pub offline: bool,
    /// Where it is remembered which files of the cache were compared with their hash; None: they are compared each time.
    pub verified: Option<PathBuf>,
}

// By hand, as the token is nobody's to read.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("cache", &self.cache)
            .field("endpoint", &self.shown_endpoint())
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("offline", &self.offline)
            .field("verified", &self.verified)
            .finish()
    }
}

impl Options {
    /// The hub's address for messages: without what may stand before an `@` in it, a name and a password.
    fn shown_endpoint(&self) -> String {
        let endpoint = self.endpoint.trim_end_matches('/');
        let plain = match endpoint.split_once("://") {
            Some((scheme, rest)) => {
                let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                let host = host.rsplit('@').next().unwrap_or(host);
                format!("{scheme}://{host}{path}")
            }
            None => endpoint.to_owned(),
        };
        shown::text(&plain).to_string()
    }
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

    /// What is meant, where the repository's files are in `snapshot`.
    fn in_snapshot(&self, snapshot: PathBuf) -> PathBuf {
        match &self.inside {
            Some(inside) => snapshot.join(inside),
            None => snapshot,
        }
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
        let found = cached(address, options, monitor)?;
        return found.ok_or_else(|| Error::Offline {
            address: address.clone(),
            cache: options.cache.clone(),
        });
    }
    match download::fetch(address, options, monitor) {
        Err(Error::Unreachable {
            address: wanted,
            endpoint,
            reason,
        }) => match cached(address, options, monitor)? {
            // What was fetched before is enough to go on without a network.
            Some(found) => {
                monitor.note(&format!(
                    "{address}: {endpoint} cannot be reached ({reason}), what is in the cache is used"
                ));
                Ok(found)
            }
            None => Err(Error::Unreachable {
                address: wanted,
                endpoint,
                reason,
            }),
        },
        other => other,
    }
}

/// What the cache has of an address, each file compared with the hash that its name in the cache is.
fn cached(
    address: &Address,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Option<PathBuf>, Error> {
    let repo = CachedRepo::new(&options.cache, address);
    let Some(commit) = repo.commit(address)? else {
        return Ok(None);
    };
    let files = repo.listing(&commit);
    let found = address.in_snapshot(repo.snapshot(&commit));
    if !found.exists() {
        return Ok(None);
    }
    let damaged = |file: PathBuf, reason: String| Error::Damaged {
        address: address.clone(),
        file,
        reason,
    };
    let mut verified = Verified::open(options.verified.as_deref());
    for name in wanted(address, &files)? {
        let pointer = repo.pointer(&commit, &name);
        let located = repo.located(&pointer);
        let (real, hash) = located.map_err(|e| damaged(pointer.clone(), e.to_string()))?;
        // Where a system has no links, nothing says what the content should be.
        let Some(hash) = hash else { continue };
        let checked = verified.check(&real, &hash, monitor);
        match checked {
            Ok(true) => {}
            Ok(false) => {
                let reason = "its content has another hash than its name says";
                return Err(damaged(real, reason.to_owned()));
            }
            Err(error) => return Err(damaged(real, error.to_string())),
        }
    }
    verified.save();
    if address.inside.is_none()
        && let Some(missing) = select::missing_part(&found, &files)
    {
        return Err(Error::Incomplete {
            address: address.clone(),
            folder: found,
            missing,
        });
    }
    Ok(Some(found))
}

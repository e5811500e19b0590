//! Downloads, by hf-hub.

use std::path::PathBuf;

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use super::{Address, Error, Options, wanted};
use crate::monitor::Monitor;

/// Tries of one file before giving up.
const RETRIES: usize = 3;

pub(super) fn fetch(
    address: &Address,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<PathBuf, Error> {
    let cache = Cache::new(options.cache.clone());
    let fail = |file: &str, error: ApiError| explain(address, options, file, &error);
    let api = ApiBuilder::from_cache(cache.clone())
        .with_endpoint(options.endpoint.trim_end_matches('/').to_owned())
        .with_token(options.token.clone())
        // Its own bar would print across ours.
        .with_progress(false)
        .with_retries(RETRIES)
        .with_user_agent("plumb", env!("CARGO_PKG_VERSION"))
        .build()
        .map_err(|e| fail("", e))?;
    let repo = |revision: &str| {
        Repo::with_revision(address.repo.clone(), RepoType::Model, revision.to_owned())
    };
    let named = repo(address.revision());
    let info = api.repo(named.clone()).info().map_err(|e| fail("", e))?;
    let files: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
    // All of one commit, though the branch may move meanwhile.
    let commit = repo(&info.sha);
    for file in wanted(address, &files)? {
        if !is_plain(&file) {
            return Err(Error::Nothing {
                address: address.clone(),
                reason: format!("the hub lists a file `{file}`, which is no name of a file"),
            });
        }
        get(&api, &cache, &commit, &file, monitor).map_err(|e| fail(&file, e))?;
    }
    let kept = cache.repo(named);
    // Last, as `Address::cached` takes what a ref points to for complete.
    kept.create_ref(&info.sha)
        .map_err(|e| fail("", ApiError::IoError(e)))?;
    let snapshot = kept.pointer_path(&info.sha);
    Ok(match &address.inside {
        Some(inside) => snapshot.join(inside),
        None => snapshot,
    })
}

/// Whether a name from the hub stays in the folder that it is joined to.
fn is_plain(file: &str) -> bool {
    let is_name = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':']);
    file.split('/').all(is_name)
}

fn get(
    api: &Api,
    cache: &Cache,
    commit: &Repo,
    file: &str,
    monitor: &dyn Monitor,
) -> Result<(), ApiError> {
    // Else hf-hub would ask the hub about every file once more.
    if cache.repo(commit.clone()).get(file).is_some() {
        return Ok(());
    }
    let bar = Bar { monitor };
    api.repo(commit.clone())
        .download_with_progress(file, bar)
        .map(drop)
}

/// A download as the program's progress.
struct Bar<'a> {
    monitor: &'a dyn Monitor,
}

impl Progress for Bar<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        self.monitor
            .start(&format!("downloading {filename}, bytes"), Some(size as u64));
    }

    fn update(&mut self, size: usize) {
        self.monitor.advance(size as u64);
    }

    fn finish(&mut self) {
        self.monitor.finish();
    }
}

fn explain(address: &Address, options: &Options, file: &str, error: &ApiError) -> Error {
    let address = address.clone();
    let repo = address.repo.clone();
    match error {
        ApiError::TooManyRetries(last) => explain(&address, options, file, last),
        ApiError::RequestError(error) => match &**error {
            // Also what is not there, unless a token says who asks: the hub does not tell strangers what is private.
            ureq::Error::StatusCode(status @ (401 | 403)) => Error::Refused {
                address,
                repo,
                endpoint: options.endpoint.clone(),
                status: *status,
                token: match options.token {
                    Some(_) => " (the one that is set may not)",
                    None => "",
                },
            },
            ureq::Error::StatusCode(404) => Error::NotThere {
                revision: address.revision().to_owned(),
                address,
                repo,
            },
            ureq::Error::StatusCode(status) => Error::Failed {
                address,
                file: file.to_owned(),
                reason: format!("the hub answers {status}"),
            },
            other => Error::Unreachable {
                address,
                endpoint: options.endpoint.clone(),
                reason: other.to_string(),
            },
        },
        other => Error::Failed {
            address,
            file: file.to_owned(),
            reason: other.to_string(),
        },
    }
}

//! The hub over HTTP: which files a repository has, and their content from a byte on.
//!
//! The token goes to the hub alone: a redirect, which leads to the servers that keep large files, goes without it.

use std::io::Read;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body};

use super::hash::{ContentHash, is_commit};
use super::{Address, Error, Options};
use crate::shown;

/// A list of files has some hundred bytes for each.
const MAX_LIST_BYTES: u64 = 64 << 20;
/// A connection that brings nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(30);

/// A repository of the hub, at one commit once that is known.
pub(super) struct Remote<'a> {
    agent: Agent,
    address: &'a Address,
    options: &'a Options,
}

/// A file as the hub lists it.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) hash: ContentHash,
}

/// A repository's files at one commit.
pub(super) struct Listing {
    pub(super) commit: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

/// Why an answer did not come, or not all of it.
pub(super) enum Failure {
    /// Another try may do.
    Passing(String),
    /// It will not.
    Final(Error),
}

impl Listing {
    pub(super) fn names(&self) -> Vec<String> {
        self.siblings.iter().map(|s| s.rfilename.clone()).collect()
    }
}

impl<'a> Remote<'a> {
    pub(super) fn new(address: &'a Address, options: &'a Options) -> Self {
        let config = Agent::config_builder()
            .user_agent(concat!("plumb/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .timeout_resolve(Some(SILENCE))
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .build();
        Self {
            agent: config.into(),
            address,
            options,
        }
    }

    /// The files of the revision that the address names.
    pub(super) fn list(&self) -> Result<Listing, Failure> {
        let revision = escaped(self.address.revision(), "");
        // With `blobs` the sizes and hashes come along.
        let path = format!(
            "api/models/{}/revision/{revision}?blobs=true",
            self.address.repo
        );
        let response = self.get(&path, 0)?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(self.refused(status, response.headers(), None));
        }
        let text = response
            .into_body()
            .into_with_config()
            .limit(MAX_LIST_BYTES)
            .read_to_vec()
            .map_err(|e| Failure::Passing(e.to_string()))?;
        let unlike = |what: String| {
            Failure::Final(Error::Nothing {
                address: self.address.clone(),
                reason: format!(
                    "what {} answers is no list of files: {what}",
                    self.shown_endpoint()
                ),
            })
        };
        let info: ModelInfo = serde_json::from_slice(&text)
            .map_err(|e| unlike(shown::text(&e.to_string()).to_string()))?;
        if !is_commit(&info.sha) {
            let found = shown::text(&info.sha);
            return Err(unlike(format!(
                "`sha` is `{found}`, expected a commit (40 hexadecimal digits)"
            )));
        }
        Ok(Listing {
            commit: info.sha,
            siblings: info.siblings,
        })
    }

    /// Size and hash of a file, as listed or, where a mirror leaves them out of its list, as told with the file.
    pub(super) fn describe(&self, listing: &Listing, name: &str) -> Result<RemoteFile, Failure> {
        let listed = listing.siblings.iter().find(|s| s.rfilename == name);
        let listed = listed.and_then(|sibling| match &sibling.lfs {
            Some(lfs) => Some((lfs.size, lfs.sha256.clone())),
            None => Some((sibling.size?, sibling.blob_id.clone()?)),
        });
        let (size, hash) = match listed {
            Some(listed) => listed,
            None => self.ask(&listing.commit, name)?,
        };
        let hash = ContentHash::parse(&hash).ok_or_else(|| {
            self.failed(
                name,
                format!(
                    "its hash is given as `{}`, expected a SHA-256 or Git's SHA-1, so it cannot be verified",
                    shown::text(&hash)
                ),
            )
        })?;
        Ok(RemoteFile {
            name: name.to_owned(),
            size,
            hash,
        })
    }

    /// Size and hash of a file from the headers of the hub itself, before its redirect.
    fn ask(&self, commit: &str, name: &str) -> Result<(u64, String), Failure> {
        let url = format!("{}/{}", self.endpoint(), self.resolve(commit, name));
        let mut request = self.agent.head(&url);
        if let Some(token) = &self.options.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.config().max_redirects(0).build();
        let answered = request.header("accept-encoding", "identity").call();
        let response = answered.map_err(|e| self.unanswered(&e))?;
        let status = response.status();
        if !(status.is_success() || status.is_redirection()) {
            return Err(self.refused(status, response.headers(), Some(name)));
        }
        let told = |names: [&str; 2]| {
            let found = names.iter().find_map(|n| response.headers().get(*n));
            found.and_then(|value| value.to_str().ok())
        };
        let hash = told(["x-linked-etag", "etag"]).unwrap_or_default();
        let hash = hash.trim_start_matches("W/").trim_matches('"').to_owned();
        let size = told(["x-linked-size", "content-length"]).and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| self.failed(name, "its size is not told".to_owned()))?;
        Ok((size, hash))
    }

    /// A file's content from byte `from` on, and the byte that really comes first.
    pub(super) fn content(
        &self,
        commit: &str,
        file: &RemoteFile,
        from: u64,
    ) -> Result<(u64, impl Read + use<>), Failure> {
        let response = self.get(&self.resolve(commit, &file.name), from)?;
        let status = response.status();
        let first = match status {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => first_byte(response.headers()).ok_or_else(|| {
                self.failed(&file.name, "which part of it comes is not told".to_owned())
            })?,
            // Nothing is left of it from there on, by the server's mind: it is asked for anew.
            StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => return self.content(commit, file, 0),
            _ => return Err(self.refused(status, response.headers(), Some(&file.name))),
        };
        Ok((first, response.into_body().into_reader()))
    }

    fn get(&self, path: &str, from: u64) -> Result<Response<Body>, Failure> {
        let url = format!("{}/{path}", self.endpoint());
        let mut request = self.agent.get(&url).header("accept-encoding", "identity");
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        if let Some(token) = &self.options.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.call().map_err(|error| self.unanswered(&error))
    }

    fn resolve(&self, commit: &str, name: &str) -> String {
        format!(
            "{}/resolve/{commit}/{}",
            self.address.repo,
            escaped(name, "/")
        )
    }

    fn endpoint(&self) -> &str {
        self.options.endpoint.trim_end_matches('/')
    }

    fn shown_endpoint(&self) -> String {
        self.options.shown_endpoint()
    }

    fn failed(&self, file: &str, reason: String) -> Failure {
        Failure::Final(Error::Failed {
            address: self.address.clone(),
            file: file.to_owned(),
            reason,
        })
    }

    /// There was no answer.
    fn unanswered(&self, error: &ureq::Error) -> Failure {
        let unreachable = |reason: String| {
            Failure::Final(Error::Unreachable {
                address: self.address.clone(),
                endpoint: self.shown_endpoint(),
                reason,
            })
        };
        match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                unreachable("its address, or the token, is malformed".to_owned())
            }
            ureq::Error::HostNotFound => unreachable("its name is not found".to_owned()),
            ureq::Error::Timeout(_) => {
                Failure::Passing(format!("nothing came for {} seconds", SILENCE.as_secs()))
            }
            other => Failure::Passing(shown::text(&other.to_string()).to_string()),
        }
    }

    /// The error for an answer that is none of success.
    fn refused(&self, status: StatusCode, headers: &HeaderMap, file: Option<&str>) -> Failure {
        let code = headers.get("x-error-code").and_then(|c| c.to_str().ok());
        let address = self.address.clone();
        let repo = address.repo.clone();
        Failure::Final(match (status.as_u16(), code) {
            // Also what is not there, unless a token says who asks: the hub does not tell strangers what is private.
            (401 | 403, _) => Error::Refused {
                address,
                endpoint: self.shown_endpoint(),
                status: status.as_u16(),
                why: match code {
                    Some("GatedRepo") => "gated",
                    Some("RepoNotFound") => "private or not there",
                    _ => "gated, private or not there",
                },
                token: match self.options.token {
                    Some(_) => " (the one that is set may not)",
                    None => "",
                },
                repo,
            },
            (404, _) => match file {
                None => Error::NotThere {
                    revision: address.revision().to_owned(),
                    address,
                    repo,
                },
                Some(file) => Error::Failed {
                    address,
                    file: file.to_owned(),
                    reason: "the hub has no such file there".to_owned(),
                },
            },
            (429, _) => Error::Busy { address },
            (500..=599, _) => {
                return Failure::Passing(format!("the hub answers {}", status.as_u16()));
            }
            (other, _) => Error::Failed {
                address,
                file: file.unwrap_or("the list of files").to_owned(),
                reason: format!("the hub answers {other}"),
            },
        })
    }
}

/// The first byte of `content-range: bytes 5-9/10`.
fn first_byte(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get("content-range")?.to_str().ok()?;
    let (first, _) = value.strip_prefix("bytes ")?.split_once('-')?;
    first.parse().ok()
}

/// A text as a part of an address: bytes that mean something there, but those in `kept`, as `%XX`.
fn escaped(text: &str, kept: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-._~".contains(c) || kept.contains(c) {
            escaped.push(c);
        } else {
            escaped += &format!("%{byte:02X}");
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_keep_their_meaning_in_an_address() {
        let name = super::escaped("a b/c#d?e%f\u{e9}.bin", "/");
        assert_eq!(name, "a%20b/c%23d%3Fe%25f%C3%A9.bin");
        assert_eq!(super::escaped("refs/pr/1", ""), "refs%2Fpr%2F1");
    }
}

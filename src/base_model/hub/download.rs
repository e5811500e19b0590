//! Downloads into the cache: asked for by commit, begun where an earlier try ended, verified before they get their name.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cache::CachedRepo;
use super::hash::{Hasher, Verified, read_pieces};
use super::remote::{Failure, Remote, RemoteFile};
use super::{Address, Error, Options, wanted};
use crate::monitor::Monitor;
use crate::shown;

/// Tries in a row that bring nothing before a download is given up, and the pause after the first, which grows.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes written at a time.
const PIECE: usize = 1 << 20;
/// Disk space that a download leaves free.
const SPARE_BYTES: u64 = 64 << 20;

pub(super) fn fetch(
    address: &Address,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<PathBuf, Error> {
    let mut verified = Verified::open(options.verified.as_deref());
    let mut download = Download {
        address,
        options,
        monitor,
        remote: Remote::new(address, options),
        repo: CachedRepo::new(&options.cache, address),
        verified: &mut verified,
    };
    let fetched = download.fetch();
    // Of what is known to be sound nothing is lost by an error elsewhere.
    verified.save();
    fetched
}

struct Download<'a> {
    address: &'a Address,
    options: &'a Options,
    monitor: &'a dyn Monitor,
    remote: Remote<'a>,
    repo: CachedRepo<'a>,
    verified: &'a mut Verified,
}

impl Download<'_> {
    fn fetch(&mut self) -> Result<PathBuf, Error> {
        let listing = self.ask("", || self.remote.list())?;
        // All of one commit, though the branch may move meanwhile.
        let commit = listing.commit.clone();
        let mut missing = Vec::new();
        for name in wanted(self.address, &listing.names())? {
            if !is_plain(&name) {
                return Err(Error::Nothing {
                    address: self.address.clone(),
                    reason: format!(
                        "the hub lists a file `{}`, which is no name of a file",
                        shown::text(&name)
                    ),
                });
            }
            let file = self.ask(&name, || self.remote.describe(&listing, &name))?;
            if !self.is_there(&commit, &file) {
                missing.push(file);
            }
        }
        self.announce(&missing)?;
        for file in &missing {
            self.get(&commit, file)?;
        }
        let written = self.repo.write_ref(self.address.revision(), &commit);
        written.map_err(|e| self.failed("the list of files", &e))?;
        Ok(self.address.in_snapshot(self.repo.snapshot(&commit)))
    }

    /// Whether the cache has a file, with the content that the hub says. One that is damaged is not there.
    fn is_there(&mut self, commit: &str, file: &RemoteFile) -> bool {
        let mut is_sound = |path: &Path| {
            let checked = self.verified.check(path, &file.hash, self.monitor);
            checked.unwrap_or(false)
        };
        let pointer = self.repo.pointer(commit, &file.name);
        let inside = self.repo.located(&pointer).is_ok();
        if inside && is_sound(&pointer) {
            return true;
        }
        // Another snapshot may have the same file.
        is_sound(&self.repo.blob(&file.hash))
            && self.repo.link(commit, &file.name, &file.hash).is_ok()
    }

    /// Tells how much is to come, and refuses what has no room.
    fn announce(&self, missing: &[RemoteFile]) -> Result<(), Error> {
        if missing.is_empty() {
            return Ok(());
        }
        let cache = &self.options.cache;
        let made = std::fs::create_dir_all(cache);
        made.map_err(|e| self.failed(&missing[0].name, &e))?;
        let there = |file: &RemoteFile| {
            let begun = std::fs::metadata(self.repo.incomplete(&file.hash));
            begun.map_or(0, |m| m.len().min(file.size))
        };
        let total = missing.iter().map(|f| f.size - there(f));
        let total = total.fold(0u64, u64::saturating_add);
        let amount = |bytes: u64| match bytes {
            1_000_000_000.. => format!("{:.1} GB", bytes as f64 / 1e9),
            _ => format!("{:.1} MB", bytes as f64 / 1e6),
        };
        // Where the system does not tell, writing will.
        let free = fs4::available_space(cache).unwrap_or(u64::MAX);
        if free < total.saturating_add(SPARE_BYTES) {
            return Err(Error::NoSpace {
                address: self.address.clone(),
                needed: amount(total),
                cache: cache.clone(),
                free: amount(free),
            });
        }
        let (files, place) = (missing.len(), shown::path(cache));
        self.monitor.note(&format!(
            "{}: downloading {}, {}, to {place}",
            self.address,
            shown::counted(files, "file"),
            amount(total)
        ));
        Ok(())
    }

    /// Downloads a file, verifies it, and gives it its name.
    fn get(&mut self, commit: &str, file: &RemoteFile) -> Result<(), Error> {
        let fail = |error: io::Error| self.failed(&file.name, &error);
        let waiting = || {
            self.monitor.note(&format!(
                "`{}` is being downloaded by another program: waiting for it",
                file.name
            ));
        };
        let _lock = self.repo.lock(&file.hash, waiting).map_err(fail)?;
        // The other program may be done with it.
        if self.is_there(commit, file) {
            return Ok(());
        }
        let incomplete = self.repo.incomplete(&file.hash);
        let mut found = String::new();
        // A second time from the start: what another program left there may be of another file.
        for _ in 0..2 {
            found = self.transfer(commit, file, &incomplete)?;
            if found == file.hash.name() {
                return self.keep(commit, file, &incomplete);
            }
            let removed = std::fs::remove_file(&incomplete);
            removed.map_err(|e| self.failed(&file.name, &e))?;
        }
        Err(self.fail(
            &file.name,
            format!(
                "its content has the hash {found}, the hub says {}: it is damaged on its way, or was replaced",
                file.hash.name()
            ),
        ))
    }

    fn keep(&mut self, commit: &str, file: &RemoteFile, incomplete: &Path) -> Result<(), Error> {
        let blob = self.repo.blob(&file.hash);
        #[expect(
            clippy::disallowed_methods,
            reason = "a cache: what a crash loses is downloaded again, and what it damages is seen by its hash"
        )]
        let renamed = std::fs::rename(incomplete, &blob);
        let linked = renamed.and_then(|()| self.repo.link(commit, &file.name, &file.hash));
        linked.map_err(|e| self.failed(&file.name, &e))?;
        // From the page cache: now, so that the next run need not.
        let kept = self
            .verified
            .check(&blob, &file.hash, &crate::monitor::Silent);
        match kept {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.fail(
                &file.name,
                "the disk gives other bytes than were written".into(),
            )),
            Err(error) => Err(self.failed(&file.name, &error)),
        }
    }

    /// Brings a file to its size, from where it is on; gives its hash.
    fn transfer(
        &self,
        commit: &str,
        file: &RemoteFile,
        incomplete: &Path,
    ) -> Result<String, Error> {
        let opened = Part::open(incomplete, file);
        let mut part = opened.map_err(|e| self.failed(&file.name, &e))?;
        self.begin(file, part.length);
        let mut tries = 0;
        while part.length < file.size {
            let before = part.length;
            let reason = match self.receive(commit, file, &mut part) {
                Ok(()) => "the connection ended early".to_owned(),
                Err(Failure::Passing(reason)) => reason,
                Err(Failure::Final(error)) => {
                    self.monitor.finish();
                    return Err(error);
                }
            };
            // As long as something comes, the line is slow or shaky, and no try failed.
            tries = if part.length > before { 0 } else { tries + 1 };
            if tries == TRIES {
                self.monitor.finish();
                return Err(self.fail(&file.name, reason));
            }
            if tries > 0 {
                std::thread::sleep(PAUSE * tries);
            }
        }
        self.monitor.finish();
        Ok(part.hasher.finish())
    }

    /// Appends what one answer brings.
    fn receive(&self, commit: &str, file: &RemoteFile, part: &mut Part) -> Result<(), Failure> {
        let fatal = |error: io::Error| Failure::Final(self.failed(&file.name, &error));
        let (first, mut content) = self.remote.content(commit, file, part.length)?;
        if first != part.length {
            if first != 0 {
                let reason = format!("byte {first} came, {} was asked for", part.length);
                return Err(Failure::Final(self.fail(&file.name, reason)));
            }
            // A server that knows no ranges sends all of it again.
            part.restart(file).map_err(fatal)?;
            self.monitor.finish();
            self.begin(file, 0);
        }
        let mut piece = vec![0; PIECE];
        loop {
            let count = match content.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::Passing(error.to_string())),
            };
            if part.length + count as u64 > file.size {
                let reason = format!("more than the {} bytes came that the hub lists", file.size);
                return Err(Failure::Final(self.fail(&file.name, reason)));
            }
            part.append(&piece[..count]).map_err(fatal)?;
            self.monitor.advance(count as u64);
        }
    }

    fn begin(&self, file: &RemoteFile, there: u64) {
        let stage = format!("downloading {}, bytes", shown::text(&file.name));
        self.monitor.start(&stage, Some(file.size));
        self.monitor.advance(there);
    }

    /// Asks once more where the first answer did not come for a reason that may pass.
    fn ask<T>(&self, file: &str, ask: impl Fn() -> Result<T, Failure>) -> Result<T, Error> {
        let first = ask();
        let second = match first {
            Err(Failure::Passing(_)) => {
                std::thread::sleep(PAUSE);
                ask()
            }
            other => other,
        };
        second.map_err(|failure| match failure {
            Failure::Final(error) => error,
            Failure::Passing(reason) if file.is_empty() => Error::Unreachable {
                address: self.address.clone(),
                endpoint: self.options.shown_endpoint(),
                reason,
            },
            Failure::Passing(reason) => self.fail(file, reason),
        })
    }

    fn failed(&self, file: &str, error: &io::Error) -> Error {
        self.fail(file, error.to_string())
    }

    fn fail(&self, file: &str, reason: String) -> Error {
        Error::Failed {
            address: self.address.clone(),
            file: file.to_owned(),
            reason,
        }
    }
}

/// A file on its way: what is there of it is its beginning, and was hashed.
struct Part {
    file: File,
    length: u64,
    hasher: Hasher,
}

impl Part {
    fn open(path: &Path, of: &RemoteFile) -> io::Result<Self> {
        let mut file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(path)?;
        let length = file.metadata()?.len();
        let mut part = Self {
            hasher: of.hash.hasher(of.size),
            length,
            file: file.try_clone()?,
        };
        if length > of.size {
            part.restart(of)?;
        } else {
            file.seek(SeekFrom::Start(0))?;
            read_pieces(&file, |piece| part.hasher.update(piece))?;
        }
        Ok(part)
    }

    fn restart(&mut self, of: &RemoteFile) -> io::Result<()> {
        self.file.set_len(0)?;
        self.length = 0;
        self.hasher = of.hash.hasher(of.size);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// Whether a name from the hub stays in the folder that it is joined to, on every system.
fn is_plain(file: &str) -> bool {
    let is_name = |part: &str| {
        let is_bad = |c: char| c.is_control() || "\\:*?\"<>|".contains(c);
        !matches!(part, "" | "." | "..") && !part.contains(is_bad)
    };
    file.split('/').all(is_name)
}

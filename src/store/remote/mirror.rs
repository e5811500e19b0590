//! The folder that stands before a store on object storage: a store of its own, with the index of the other, and with those of its
//! packs that were read. What is encoded goes into it first, and from there to the other by `push`.
//!
//! A pack is fetched when something in it is first read, and kept, for as long as there is room (`trim`). Nothing in the folder that was pushed
//! is anywhere alone, so whoever needs the room may remove the folder.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError, RwLock};

use super::names::{Contents, RemotePack};
use super::{Remote, as_named, each, problem_of};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;
use crate::store::compact::remove_parts;
use crate::store::disk::{self, create_dirs, write_once};
use crate::store::layout::{self, Layout};
use crate::store::place::Behind;
use crate::store::snapshot::decode_part;
use crate::store::{Error, Problem, create_root, index, lock, parts};

/// In a folder that stands before another store, the file that says which.
pub(in crate::store) const MIRROR_OF: &str = "remote.json";

const MEND: &str = "remove the object, then encode or push again";

/// What a folder is the mirror of.
#[derive(Debug)]
pub(in crate::store) struct Mirror {
    pub(super) behind: Behind,
    /// Bytes of packs that came since the folder was last made smaller.
    pub(super) grown: AtomicU64,
    /// The packs over there, as of the last look, and those that were pushed since.
    pub(super) packs: RwLock<BTreeMap<Digest, RemotePack>>,
    problems: RwLock<Vec<Problem>>,
    runs: RwLock<Vec<String>>,
    /// Held while a pack is fetched because somebody reads it: others may want the same.
    fetching: Mutex<()>,
}

impl Mirror {
    pub(in crate::store) fn new(behind: Behind) -> Self {
        Self {
            behind,
            // What was there before is looked at with the first pack that comes.
            grown: AtomicU64::new(u64::MAX / 2),
            packs: RwLock::default(),
            problems: RwLock::default(),
            runs: RwLock::default(),
            fetching: Mutex::default(),
        }
    }

    pub(in crate::store) fn remote(&self) -> &Remote {
        &self.behind.remote
    }

    pub(in crate::store) fn compresses(&self) -> bool {
        self.behind.compress
    }

    /// Makes the folder, if it is not there, and brings its index up to date. Where there is no store over there, it is an error
    /// unless `may_be_new`, or the folder has something that is still to be pushed.
    pub(in crate::store) fn open(&self, layout: &Layout, may_be_new: bool) -> Result<(), Error> {
        self.claim(layout)?;
        match self.remote().contents()? {
            Some(contents) => self.update(layout, &contents),
            None if may_be_new || !layout.indexed_specs()?.is_empty() => Ok(()),
            None => Err(Error::NotAStore {
                path: self.remote().address().to_string().into(),
                why: "there is nothing of a store; `plumb encode` or `plumb store push` makes it"
                    .to_owned(),
            }),
        }
    }

    /// Makes sure that the folder is for this store and no other.
    fn claim(&self, layout: &Layout) -> Result<(), Error> {
        let address = self.remote().address().to_string();
        let path = layout.root.join(MIRROR_OF);
        let expected = serde_json::json!({ "address": address }).to_string();
        match disk::read_bounded(&*layout.disk, &path, layout::JSON_LIMIT_BYTES) {
            Ok(found) if found == expected.as_bytes() => {}
            Ok(_) => {
                return Err(Error::Refused(format!(
                    "{} keeps what was read from another store than {address}; give `cache` under [store] another folder",
                    layout.root.display()
                )));
            }
            Err(e) if e.is_gone() => {
                if layout::holds_anything(layout)? {
                    return Err(Error::Refused(format!(
                        "{} holds other things, and cannot keep what is read from {address}; give `cache` under [store] another folder",
                        layout.root.display()
                    )));
                }
                create_root(&*layout.disk, &layout.root)?;
                write_once(
                    &*layout.disk,
                    &layout.root,
                    MIRROR_OF,
                    &[expected.as_bytes()],
                )?;
            }
            Err(e) => return Err(e),
        }
        if !disk::is_there(&*layout.disk, &layout.marker())? {
            let marker = layout::marker_bytes();
            write_once(&*layout.disk, &layout.root, layout::MARKER, &[&marker])?;
        }
        Ok(())
    }

    /// Looks at the other store again.
    pub(in crate::store) fn refresh(&self, layout: &Layout) -> Result<(), Error> {
        match self.remote().contents()? {
            Some(contents) => self.update(layout, &contents),
            None => Ok(()),
        }
    }

    fn update(&self, layout: &Layout, contents: &Contents) -> Result<(), Error> {
        let mut problems = Vec::new();
        let specs: HashSet<Fingerprint> =
            layout.list_specs()?.into_iter().map(|(s, _)| s).collect();
        let missing: Vec<_> = contents
            .specs
            .keys()
            .filter(|s| !specs.contains(s))
            .collect();
        let fetched = each(&missing, |spec| {
            let bytes = self.remote().spec(spec);
            noting(bytes, |bytes| {
                write(layout, &layout.specs(), &format!("{spec}.json"), bytes)
            })
        })?;
        problems.extend(fetched.into_iter().flatten());
        let mut here = HashSet::new();
        for spec in layout.indexed_specs()? {
            let parts = layout.index_parts(&spec)?;
            here.extend(parts.into_iter().map(|(part, _)| (spec, part)));
        }
        let missing: Vec<_> = contents
            .parts
            .keys()
            .filter(|p| !here.contains(p))
            .collect();
        let fetched = each(&missing, |(spec, part)| {
            let bytes = self.remote().part(spec, part);
            noting(bytes, |bytes| write_part(layout, spec, part, bytes))
        })?;
        problems.extend(fetched.into_iter().flatten());
        parts::know(layout, missing.into_iter().copied())?;
        *self.packs.write().unwrap_or_else(PoisonError::into_inner) = contents.packs.clone();
        *self.runs.write().unwrap_or_else(PoisonError::into_inner) =
            contents.runs.keys().cloned().collect();
        *self
            .problems
            .write()
            .unwrap_or_else(PoisonError::into_inner) = problems;
        let gone = here
            .iter()
            .filter(|part| !contents.parts.contains_key(part));
        self.forget(layout, gone.copied().collect())
    }

    /// Removes index parts that were fetched once and are over there no more. Those that name a pack which is in the folder stay:
    /// they may be still to be pushed.
    fn forget(&self, layout: &Layout, gone: Vec<(Fingerprint, Digest)>) -> Result<(), Error> {
        let mut stale = Vec::new();
        for (spec, part) in gone {
            let Ok(rows) = decode_part(layout, &spec, &part, index::presence) else {
                continue;
            };
            let packs: HashSet<Digest> = rows.iter().map(|row| row.pack).collect();
            let is_here = |pack: &Digest| disk::is_there(&*layout.disk, &layout.pack(pack));
            let mut own = false;
            for pack in &packs {
                own |= is_here(pack)?;
            }
            if !own {
                stale.push((spec, part));
            }
        }
        if stale.is_empty() {
            return Ok(());
        }
        // Somebody else at work in the folder: the next one does it.
        let Ok(_lock) = lock::exclusive(layout, "plumb, which brings an index up to date") else {
            return Ok(());
        };
        for (spec, part) in stale {
            remove_parts(layout, &spec, std::iter::once(&part))?;
        }
        Ok(())
    }

    /// The packs over there with the bytes that their files have at least, as far as that is known.
    pub(in crate::store) fn packs(&self) -> Vec<(Digest, u64)> {
        let packs = self.packs.read().unwrap_or_else(PoisonError::into_inner);
        let bytes = |pack: &RemotePack| match pack.is_shared {
            // How long it becomes is known when it is here.
            true => u64::MAX,
            false => pack.object.bytes,
        };
        packs.iter().map(|(id, pack)| (*id, bytes(pack))).collect()
    }

    /// Takes note of packs that were pushed.
    pub(in crate::store) fn know(&self, pushed: Vec<(Digest, RemotePack)>) {
        let mut packs = self.packs.write().unwrap_or_else(PoisonError::into_inner);
        packs.extend(pushed);
    }

    /// The names of the runs over there.
    pub(in crate::store) fn runs(&self) -> Vec<String> {
        let runs = self.runs.read();
        runs.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What of the other store could not be used.
    pub(in crate::store) fn problems(&self) -> Vec<Problem> {
        let problems = self.problems.read();
        problems.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fetches a pack that is read; says whether it is over there.
    pub(in crate::store) fn fetch(&self, layout: &Layout, pack: &Digest) -> Result<bool, Error> {
        let _one = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        // Fetched by whoever held the lock before.
        if disk::is_there(&*layout.disk, &layout.pack(pack))? {
            return Ok(true);
        }
        self.fetch_anew(layout, pack)
    }

    /// As [`Self::fetch`], in the place of a file that is damaged.
    pub(in crate::store) fn fetch_anew(
        &self,
        layout: &Layout,
        pack: &Digest,
    ) -> Result<bool, Error> {
        let packs = self.packs.read().unwrap_or_else(PoisonError::into_inner);
        let Some(found) = packs.get(pack).copied() else {
            return Ok(false);
        };
        drop(packs);
        let bytes = match self.remote().pack(pack, found) {
            Err(Error::Malformed { path, why }) => {
                let why = format!("{why}; {MEND}");
                return Err(Error::Malformed { path, why });
            }
            other => other?,
        };
        write_pack(layout, pack, &bytes)?;
        self.grew(layout, pack, bytes.len() as u64)?;
        Ok(true)
    }

    /// Fetches several packs, with progress; gives how many bytes came.
    pub(in crate::store) fn fetch_all(
        &self,
        layout: &Layout,
        packs: &[Digest],
        monitor: &dyn Monitor,
    ) -> Result<(), Error> {
        let sizes = self.packs.read().unwrap_or_else(PoisonError::into_inner);
        let bytes = |pack: &Digest| sizes.get(pack).map_or(0, |p| p.object.bytes);
        let wanted: Vec<(Digest, u64)> = packs.iter().map(|pack| (*pack, bytes(pack))).collect();
        drop(sizes);
        let total: u64 = wanted.iter().map(|(_, bytes)| bytes).sum();
        if let Some(limit) = self.behind.limit.filter(|limit| limit.bytes < total) {
            monitor.note(&format!(
                "{:.1} GB are to be fetched, and `cache_gb` keeps {:.1} of them: what goes is fetched again when it is read",
                total as f64 / 1e9,
                limit.bytes as f64 / 1e9
            ));
        }
        let what = format!("fetching packs from {}", self.remote().address());
        monitor.start(&what, Some(total));
        let fetched = each(&wanted, |(pack, bytes)| {
            let fetched = self.fetch_anew(layout, pack);
            monitor.advance(*bytes);
            fetched
        });
        monitor.finish();
        fetched.map(|_| ())
    }
}

/// Puts a file that was fetched into the folder.
fn write(layout: &Layout, dir: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    create_dirs(&*layout.disk, &layout.root, dir)?;
    write_once(&*layout.disk, dir, name, &[bytes])
}

pub(super) fn write_pack(layout: &Layout, pack: &Digest, bytes: &[u8]) -> Result<(), Error> {
    let (dir, name) = (layout.pack_dir(pack), layout::pack_name(pack));
    write(layout, &dir, &name, bytes)
}

pub(super) fn write_part(
    layout: &Layout,
    spec: &Fingerprint,
    part: &Digest,
    bytes: &[u8],
) -> Result<(), Error> {
    let (dir, name) = (layout.index_of(spec), layout::part_name(part));
    write(layout, &dir, &name, bytes)
}

/// Does `work` with what was read; content that is not what its name says is a problem, and no error.
fn noting(
    read: Result<bytes::Bytes, Error>,
    work: impl FnOnce(&[u8]) -> Result<(), Error>,
) -> Result<Option<Problem>, Error> {
    match read {
        Ok(bytes) => work(&bytes).map(|()| None),
        Err(e) => problem_of(e, as_named, MEND),
    }
}

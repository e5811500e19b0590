//! The folder that stands before a store on object storage: a store of its own, with the index of the other, and with those of its
//! packs that were read. What is encoded goes into it first, and from there to the other by `push`.
//!
//! A pack is fetched when something in it is first read, and kept, for as long as there is room (`trim`); a part of the index of which it is
//! known what range it has, when something of that is looked for (`bring`). Nothing in the folder that was pushed
//! is anywhere alone, so whoever needs the room may remove the folder.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use super::lists::{IndexThere, Named};
use super::names::RemotePack;
use super::{Remote, each};
use crate::digest::{Digest, Fingerprint, canonical_json};
use crate::monitor::Monitor;
use crate::shown;
use crate::store::disk::{self, create_dirs, write_once};
use crate::store::layout::{self, Layout};
use crate::store::place::Behind;
use crate::store::{Error, Problem, create_root};

/// In a folder that stands before another store, the file that says which.
pub(in crate::store) const MIRROR_OF: &str = "remote.json";

/// The members of that file.
#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Of {
    address: String,
    /// Empty where the address says it; none where the file is of a time when it was not told.
    server: Option<String>,
}

pub(super) const MEND: &str = "remove the object, then encode or push again";

/// What a folder is the mirror of.
#[derive(Debug)]
pub(in crate::store) struct Mirror {
    pub(super) behind: Behind,
    /// Bytes of packs that came since the folder was last made smaller.
    pub(super) grown: AtomicU64,
    /// Packs over there: those that were looked for and found since the last look at the store, and those that were pushed since.
    pub(super) packs: RwLock<BTreeMap<Digest, RemotePack>>,
    /// Packs that were over there when this process looked for them.
    found: Mutex<HashSet<Digest>>,
    /// The index over there, as of the last look.
    pub(super) index: RwLock<Arc<IndexThere>>,
    /// Index parts over there that are not what their names say.
    pub(super) bad: Mutex<HashSet<Named>>,
    pub(super) problems: RwLock<Vec<Problem>>,
    pub(super) runs: RwLock<Vec<String>>,
    /// Held while a pack is fetched because somebody reads it: others may want the same.
    fetching: Mutex<()>,
    /// Likewise while parts of the index are.
    pub(super) bringing: Mutex<()>,
}

impl Mirror {
    pub(in crate::store) fn new(behind: Behind) -> Self {
        Self {
            behind,
            // What was there before is looked at with the first pack that comes.
            grown: AtomicU64::new(u64::MAX / 2),
            packs: RwLock::default(),
            found: Mutex::default(),
            index: RwLock::default(),
            bad: Mutex::default(),
            problems: RwLock::default(),
            runs: RwLock::default(),
            fetching: Mutex::default(),
            bringing: Mutex::default(),
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
        match self.remote().contents_but_packs()? {
            Some(contents) => self.update(layout, &contents),
            None if may_be_new || !layout.indexed_specs()?.is_empty() => Ok(()),
            None => Err(Error::NotAStore {
                path: self.remote().address().to_string().into(),
                why: "there is nothing of a store; `plumb encode` or `plumb store push` makes it"
                    .to_owned(),
                is_free: true,
            }),
        }
    }

    /// Makes the folder, if it is not there, and looks which index parts there are over there; brings none.
    pub(in crate::store) fn look(&self, layout: &Layout) -> Result<(), Error> {
        self.claim(layout)?;
        match self.remote().contents_but_packs()? {
            Some(contents) => self.take_index(&contents, &mut Vec::new()),
            None => Ok(()),
        }
    }

    /// Makes sure that the folder is for this store and no other.
    fn claim(&self, layout: &Layout) -> Result<(), Error> {
        let address = self.remote().identity();
        let path = layout.root.join(MIRROR_OF);
        let expected = Of {
            address: self.remote().address().to_string(),
            server: Some(self.remote().server.clone().unwrap_or_default()),
        };
        let write = || {
            let json = canonical_json(&expected);
            write_once(&*layout.disk, &layout.root, MIRROR_OF, &[&json])
        };
        match disk::read_bounded(&*layout.disk, &path, layout::JSON_LIMIT_BYTES) {
            Ok(found) => match serde_json::from_slice::<Of>(&found) {
                Ok(found) if found == expected => {}
                // As it was written before servers were told apart.
                Ok(found) if found.server.is_none() && found.address == expected.address => {
                    write()?;
                }
                Ok(found) => {
                    return Err(Error::Refused(format!(
                        "{} keeps what was read from another store than {address}: {}, server `{}`; give `cache` under [store] another folder",
                        layout.root.display(),
                        shown::text(&found.address),
                        shown::text(&found.server.unwrap_or_default())
                    )));
                }
                Err(e) => {
                    return Err(Error::malformed(
                        &path,
                        format!(
                            "expected `address` and `server`, found {e}; if nothing in the folder is still to be pushed, remove the folder: it is filled again"
                        ),
                    ));
                }
            },
            Err(e) if e.is_gone() => {
                if layout::holds_anything(layout)? {
                    return Err(Error::Refused(format!(
                        "{} holds other things, and cannot keep what is read from {address}; give `cache` under [store] another folder",
                        layout.root.display()
                    )));
                }
                create_root(&*layout.disk, &layout.root)?;
                write()?;
            }
            Err(e) => return Err(e),
        }
        if !disk::is_there(&*layout.disk, &layout.marker())? {
            let marker = layout::marker_bytes();
            write_once(&*layout.disk, &layout.root, layout::MARKER, &[&marker])?;
        }
        Ok(())
    }

    /// Those of some packs that are over there.
    pub(super) fn find(&self, wanted: &[Digest]) -> Result<BTreeMap<Digest, RemotePack>, Error> {
        let packs = self.packs.read().unwrap_or_else(PoisonError::into_inner);
        let known = wanted
            .iter()
            .filter_map(|pack| Some((*pack, *packs.get(pack)?)));
        let mut found: BTreeMap<_, _> = known.collect();
        drop(packs);
        // Where the server cannot list, all were known from the start.
        if found.len() < wanted.len() && !self.remote().address().is_read_only() {
            let unknown = wanted.iter().filter(|pack| !found.contains_key(pack));
            let new = self.remote().packs_of(&unknown.copied().collect())?;
            self.know(new.iter().map(|(pack, found)| (*pack, *found)).collect());
            found.extend(new);
        }
        Ok(found)
    }

    /// Those of some packs that are over there, with the bytes that their files have at least, as far as that is known.
    pub(in crate::store) fn sizes(&self, wanted: &[Digest]) -> Result<Vec<(Digest, u64)>, Error> {
        let bytes = |pack: &RemotePack| match pack.is_shared {
            // How long it becomes is known when it is here.
            true => u64::MAX,
            false => pack.object.bytes,
        };
        let found = self.find(wanted)?;
        Ok(found.iter().map(|(id, pack)| (*id, bytes(pack))).collect())
    }

    /// All packs over there, with the bytes that they have there.
    pub(in crate::store) fn list_packs(&self) -> Result<Vec<(Digest, u64)>, Error> {
        let packs = self.remote().contents_of_store()?.packs;
        let size = |(id, pack): (Digest, RemotePack)| (id, pack.object.bytes);
        Ok(packs.into_iter().map(size).collect())
    }

    /// Takes note of packs that were pushed.
    pub(in crate::store) fn know(&self, pushed: Vec<(Digest, RemotePack)>) {
        let mut packs = self.packs.write().unwrap_or_else(PoisonError::into_inner);
        packs.extend(pushed);
    }

    /// Those of some packs that this process has not found over there.
    pub(super) fn not_found_yet(&self, packs: impl Iterator<Item = Digest>) -> HashSet<Digest> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        packs.filter(|pack| !found.contains(pack)).collect()
    }

    /// Takes note of packs that are over there.
    pub(super) fn have_found(&self, packs: impl Iterator<Item = Digest>) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.extend(packs);
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
        let Some(found) = self.find(&[*pack])?.remove(pack) else {
            return Ok(false);
        };
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
        let sizes = self.find(packs)?;
        let bytes = |pack: &Digest| sizes.get(pack).map_or(0, |p| p.object.bytes);
        let wanted: Vec<(Digest, u64)> = packs.iter().map(|pack| (*pack, bytes(pack))).collect();
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
pub(super) fn write(layout: &Layout, dir: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
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

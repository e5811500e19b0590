//! Stores on object storage. What lies there is what lies in a store's folder, under the same names, with leases in place of the lock
//! file; packs may be in shared form (`planes`). `schemas/FORMAT.md` has the order in which objects come and go.
//!
//! Nothing that was read is believed: names are checked before they are used, sizes are bounded, digests compared.
//!
//! - `client` alone knows the protocols and their asynchronous runtime, `http` sends their requests, `variables` are those of the environment.
//! - `names` are the names of objects; `lease` keeps those who add and those who remove apart, `ending` gives leases back when a signal ends the process; `lists` say which index parts are to be read.
//! - `push`, `pull`, `check`, `gc` and `merging` are what commands do; `mirror` is the folder that stands before a store on object storage,
//!   `bring` how the index comes into it, `seen` what of it was over there, `trim` its bound; `scratch` is where `check` and `gc` have the index meanwhile.

mod address;
mod bring;
mod check;
mod client;
mod ending;
mod gc;
mod http;
mod lease;
mod lists;
mod merging;
mod mirror;
mod names;
mod pull;
mod push;
mod push_runs;
mod scratch;
mod seen;
mod trim;
mod variables;

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

pub use address::Address;
pub use client::Variables;
pub use ending::NoMoreChanges;
pub use lease::{give_back as give_back_leases, has_any as has_leases};
pub use pull::PullReport;
pub use push::{PushOptions, PushReport};
pub use scratch::Scratch;
pub use trim::CacheLimit;

pub(super) use mirror::{MIRROR_OF, Mirror};
pub(super) use names::RemotePack;

use super::index::PART_LIMIT_BYTES;
use super::layout::{JSON_LIMIT_BYTES, MARKER};
use super::pack::PACK_LIMIT_BYTES;
use super::run::{self, RUN_LIMIT_BYTES};
use super::{Error, Problem, Run, layout, planes};
use crate::digest::{Digest, Fingerprint};
use client::Client;
use names::Contents;

/// How often an object is read whose bytes are not those of its name: what came may be wrong where what lies there is not.
const READ_TRIES: u32 = 3;
/// Objects that are read or written at once.
const AT_ONCE: usize = 8;
/// So many packs are asked for by name, however few there are.
const ASKED_FOR: usize = AT_ONCE;
/// As many packs are listed rather than asked for one by one: a page of a list, and as many as take about the time that asking would.
const LISTED_AT_LEAST: usize = 1000;
const LISTED_FOR_ONE: usize = 60;

/// The names and sizes of a store's objects, for readers whose server cannot list them.
const CONTENTS: &str = "contents.json";
const CONTENTS_LIMIT_BYTES: u64 = 1 << 30;

/// A store on object storage. Opening it sends nothing.
#[derive(Clone, Debug)]
pub struct Remote {
    client: Arc<Client>,
    server: Option<String>,
}

impl Remote {
    /// The store at `address`, with the credentials that `variables`, the environment's, have.
    ///
    /// # Errors
    /// If these do not suffice to ask for anything.
    pub fn new(address: Address, variables: &Variables) -> Result<Self, Error> {
        let server = variables::server(address.scheme, variables);
        let client = Arc::new(Client::new(address, variables)?);
        Ok(Self { client, server })
    }

    /// What tells it from every other store: its address, and the server where the address does not say it.
    pub fn identity(&self) -> String {
        match &self.server {
            Some(server) => format!("{} on {server}", self.address()),
            None => self.address().to_string(),
        }
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.client.address
    }

    /// Makes sure that there is a store.
    ///
    /// # Errors
    /// If there is none, if it is of a newer format, or if it cannot be read.
    pub fn find(&self) -> Result<(), Error> {
        match self.has_marker()? {
            true => Ok(()),
            false => self.contents_of_store().map(|_| ()),
        }
    }

    /// What there is, all of it. `None` where there is no store at all.
    fn contents(&self) -> Result<Option<Contents>, Error> {
        let contents = match self.address().is_read_only() {
            true => self.read_contents()?,
            false => Contents::of(&self.client.list("")?),
        };
        if contents.is_empty() {
            return Ok(None);
        }
        self.check_marker(&contents)?;
        Ok(Some(contents))
    }

    /// The same without packs, of which there may be millions; where the server cannot list, a list has these, too.
    fn contents_but_packs(&self) -> Result<Option<Contents>, Error> {
        if !self.has_marker()? {
            return self.contents();
        }
        let mut listed = Vec::new();
        // What names something before what is named, so that this is found.
        for folder in ["runs", "index", "specs"] {
            listed.extend(self.client.list(folder)?);
        }
        Ok(Some(Contents {
            has_marker: true,
            ..Contents::of(&listed)
        }))
    }

    /// Whether there is a store, of a format that this program knows, where the server can list.
    fn has_marker(&self) -> Result<bool, Error> {
        if self.address().is_read_only() {
            return Ok(false);
        }
        match self.read_marker() {
            // What lies there without it decides what is to be said.
            Err(e) if e.is_gone() => Ok(false),
            read => read.map(|()| true),
        }
    }

    /// Those of some packs that are there. Where there are not many more, they are listed, else each is asked for by its names.
    fn packs_of(&self, wanted: &HashSet<Digest>) -> Result<BTreeMap<Digest, RemotePack>, Error> {
        if wanted.len() > ASKED_FOR {
            let most = LISTED_AT_LEAST.saturating_add(LISTED_FOR_ONE * wanted.len());
            if let Some(listed) = self.client.list_up_to("packs", most)? {
                let mut packs = Contents::of(&listed).packs;
                packs.retain(|pack, _| wanted.contains(pack));
                return Ok(packs);
            }
        }
        let wanted: Vec<Digest> = wanted.iter().copied().collect();
        let found = each(&wanted, |pack| self.find_pack(pack))?;
        let found = wanted.into_iter().zip(found);
        Ok(found
            .filter_map(|(pack, found)| Some((pack, found?)))
            .collect())
    }

    fn find_pack(&self, pack: &Digest) -> Result<Option<RemotePack>, Error> {
        // Where both are there, the first is the smaller.
        for is_shared in [true, false] {
            if let Some(object) = self.client.look(&names::pack(pack, is_shared))? {
                return Ok(Some(RemotePack { object, is_shared }));
            }
        }
        Ok(None)
    }

    /// As [`Self::contents`], where there must be a store.
    fn contents_of_store(&self) -> Result<Contents, Error> {
        self.contents()?.ok_or_else(|| Error::NotAStore {
            path: self.address().to_string().into(),
            why: "there is nothing of a store; `plumb store push` or `plumb encode` makes it"
                .to_owned(),
            is_free: true,
        })
    }

    /// Refuses a format that is newer than this program.
    fn check_marker(&self, contents: &Contents) -> Result<(), Error> {
        if !contents.has_marker {
            return Err(Error::NotAStore {
                path: self.address().to_string().into(),
                why: "store.json is missing but parts of a store are there: a push was interrupted, or it is another prefix; push again".to_owned(),
                is_free: false,
            });
        }
        self.read_marker()
    }

    fn read_marker(&self) -> Result<(), Error> {
        let bytes = self.client.get(MARKER, JSON_LIMIT_BYTES)?;
        layout::marker_version(self.shown(MARKER).as_ref(), &bytes).map(|_| ())
    }

    /// The list that a push left for those who cannot list.
    fn read_contents(&self) -> Result<Contents, Error> {
        let name = CONTENTS;
        let bytes = match self.client.get(name, CONTENTS_LIMIT_BYTES) {
            Err(e) if e.is_gone() => {
                return Err(Error::NotAStore {
                    path: self.address().to_string().into(),
                    why: "there is no contents.json, by which a store is read over http; `plumb store push --contents` writes it".to_owned(),
                    is_free: false,
                });
            }
            other => other?,
        };
        let listed: Vec<(String, u64)> = serde_json::from_slice(&bytes).map_err(|e| {
            let why = format!("expected pairs of a name and a size, found {e}");
            Error::malformed(self.shown(name).as_ref(), why)
        })?;
        let object = |(name, bytes)| client::Listed {
            name,
            bytes,
            modified: std::time::SystemTime::UNIX_EPOCH,
        };
        Ok(Contents::of(
            &listed.into_iter().map(object).collect::<Vec<_>>(),
        ))
    }

    /// Writes the list for those who cannot list, without the packs that `goes` names.
    fn write_contents(&self, goes: impl Fn(&str) -> bool) -> Result<(), Error> {
        let listed = self.client.list("")?;
        let listed: Vec<(String, u64)> = listed
            .into_iter()
            .filter(|object| object.name != CONTENTS && !object.name.starts_with("leases/"))
            .filter(|object| !goes(&object.name))
            .map(|object| (object.name, object.bytes))
            .collect();
        let json = serde_json::to_vec(&listed)
            .map_err(|e| Error::Refused(format!("cannot write {CONTENTS}: {e}")))?;
        self.client.put(CONTENTS, &json.into())
    }

    /// An object's name with its address, for messages.
    fn shown(&self, name: &str) -> String {
        format!("{}/{name}", self.address())
    }

    /// The bytes of a spec, which are what its name says.
    fn spec(&self, spec: &Fingerprint) -> Result<Bytes, Error> {
        self.checked(&names::spec(spec), JSON_LIMIT_BYTES, |bytes| {
            let found = Fingerprint::of_canonical(bytes);
            (found == *spec).then_some(()).ok_or(found.short())
        })
    }

    /// The bytes of an index part, which are what its name says.
    fn part(&self, spec: &Fingerprint, part: &Digest) -> Result<Bytes, Error> {
        let name = names::part(spec, part);
        self.checked(&name, PART_LIMIT_BYTES, |bytes| is_digest(bytes, part))
    }

    pub(super) fn run(&self, id: &str) -> Result<Run, Error> {
        self.run_and_bytes(id).map(|(run, _)| run)
    }

    pub(super) fn run_and_bytes(&self, id: &str) -> Result<(Run, Bytes), Error> {
        let name = names::run(id);
        let bytes = self.client.get(&name, RUN_LIMIT_BYTES)?;
        let run = run::parse(self.shown(&name).as_ref(), id, &bytes)?;
        Ok((run, bytes))
    }

    /// Some bytes of a run; `None` if they cannot be had, or it is not of the length `all`.
    pub(super) fn run_range(&self, id: &str, bytes: Range<u64>, all: u64) -> Option<Vec<u8>> {
        let (found, length) = self.client.get_range(&names::run(id), bytes).ok()?;
        (length == all).then(|| found.into())
    }

    /// The bytes of a pack as it is in a folder, which are what its name says.
    fn pack(&self, pack: &Digest, found: RemotePack) -> Result<Vec<u8>, Error> {
        let name = names::pack(pack, found.is_shared);
        let mut unpacked = Vec::new();
        let limit = match found.is_shared {
            true => planes::LIMIT_BYTES,
            false => PACK_LIMIT_BYTES as u64,
        };
        let bytes = self.checked(&name, limit, |bytes| {
            if found.is_shared {
                unpacked = planes::decode(bytes)?;
                return is_digest(&unpacked, pack);
            }
            is_digest(bytes, pack)
        })?;
        Ok(match found.is_shared {
            true => unpacked,
            false => bytes.into(),
        })
    }

    /// Reads an object until `is_sound` finds nothing wrong with its bytes; what it finds is told in the end.
    fn checked(
        &self,
        name: &str,
        limit: u64,
        mut is_sound: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<Bytes, Error> {
        let mut why = String::new();
        for _ in 0..READ_TRIES {
            let bytes = self.client.get(name, limit)?;
            match is_sound(&bytes) {
                Ok(()) => return Ok(bytes),
                Err(found) => why = found,
            }
        }
        let why = format!("expected content with the digest in the name, found {why}");
        Err(Error::malformed(self.shown(name).as_ref(), why))
    }
}

fn is_digest(bytes: &[u8], expected: &Digest) -> Result<(), String> {
    let found = Digest::of(bytes);
    (found == *expected).then_some(()).ok_or(found.short())
}

/// Content that is not what it must be, as a problem of the file that `name` gives; None of what is gone since it was listed. Anything else
/// stays an error.
fn problem_of(
    e: Error,
    name: impl FnOnce(&Path) -> String,
    mend: &str,
) -> Result<Option<Problem>, Error> {
    match e {
        Error::Malformed { path, why } => Ok(Some(Problem {
            file: name(&path),
            what: why,
            mend: mend.to_owned(),
        })),
        e if e.is_gone() => Ok(None),
        e => Err(e),
    }
}

/// A path as it is: for objects it is their whole address.
fn as_named(path: &Path) -> String {
    path.display().to_string()
}

/// Does `work` on each, a few at once in threads of their own: what they wait for is the network. Gives the results in order.
fn each<T: Sync, R: Send>(
    all: &[T],
    work: impl Fn(&T) -> Result<R, Error> + Sync,
) -> Result<Vec<R>, Error> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let next = AtomicUsize::new(0);
    let failed = AtomicUsize::new(usize::MAX);
    let run = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            // After an error nothing new is begun.
            let Some(one) = all
                .get(at)
                .filter(|_| failed.load(Ordering::Relaxed) == usize::MAX)
            else {
                return done;
            };
            let result = work(one);
            if result.is_err() {
                failed.fetch_min(at, Ordering::Relaxed);
            }
            done.push((at, result));
        }
    };
    let mut done: Vec<(usize, Result<R, Error>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE.min(all.len()))
            .map(|_| scope.spawn(run))
            .collect();
        let joined = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined
            .flat_map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

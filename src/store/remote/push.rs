//! `plumb store push`: what object storage lacks of a store in a folder goes there, in the order in which a writer adds to a folder:
//! packs, then the index parts that name them, then runs. Whoever reads there at any moment finds all that is named.
//!
//! Everything but a lease is put under the digest of what it is, and only where nothing of that name is, so any number may push at once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;

use super::lease::{Lease, Purpose};
use super::lists::{IndexThere, List};
use super::names::{self, Contents, Object, RemotePack};
use super::{Remote, each, problem_of};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;
use crate::shown;
use crate::store::layout::{self, MARKER, PackPath};
use crate::store::parts::Listed;
use crate::store::record::Record;
use crate::store::snapshot::decode_part;
use crate::store::{Error, Problem, Store, disk, index, packfile, planes, relative};

/// How packs are pushed.
#[derive(Clone, Copy, Debug, Default)]
pub struct PushOptions {
    /// In shared form, which has fewer bytes.
    pub compress: bool,
    /// Whether to write the list by which a store is read over http.
    pub contents: bool,
    /// How long to wait for a process that removes objects.
    pub wait: Duration,
}

/// What was pushed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PushReport {
    /// Packs that were put.
    pub packs: u64,
    /// The size of their files.
    pub pack_bytes: u64,
    /// The size of what was put for them.
    pub sent_bytes: u64,
    /// Packs with entries of this store that were there already.
    pub packs_there: u64,
    /// Index parts that were put.
    pub index_parts: u64,
    /// Entries that they name.
    pub entries: u64,
    /// Runs that were put.
    pub runs: u64,
    /// What was left out, and why.
    pub problems: Vec<Problem>,
}

/// An index part that is to be put.
struct Part {
    spec: Fingerprint,
    digest: Digest,
    rows: Vec<Record>,
    /// How many rows the file has.
    total: usize,
}

/// A push under way.
pub(super) struct Push<'a> {
    pub(super) remote: &'a Remote,
    pub(super) store: &'a Store,
    options: PushOptions,
    /// What is there; of packs, those that were looked for.
    pub(super) there: Contents,
    index: IndexThere,
    /// The bytes of the packs that are here.
    here: BTreeMap<Digest, u64>,
    /// Packs that are here and that an index part there names, which has them no more.
    lost: BTreeSet<Digest>,
    /// Packs that were put by this push, or were found to be there.
    pub(super) put: HashSet<Digest>,
    /// The runs of the store that were looked at.
    pub(super) settled: Vec<(String, Digest)>,
    pub(super) report: PushReport,
}

impl Remote {
    /// Puts there what it lacks of `store`.
    ///
    /// # Errors
    /// If something cannot be read or written, or somebody removes objects there meanwhile. What was put before stays, and another
    /// push goes on from there.
    pub fn push(
        &self,
        store: &Store,
        options: PushOptions,
        monitor: &dyn Monitor,
    ) -> Result<PushReport, Error> {
        self.push_and_tell(store, options, &mut |_, _| (), monitor)
    }

    /// As [`Self::push`]; `tell` is given each pack that was put.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub(in crate::store) fn push_and_tell(
        &self,
        store: &Store,
        options: PushOptions,
        tell: &mut dyn FnMut(Digest, RemotePack),
        monitor: &dyn Monitor,
    ) -> Result<PushReport, Error> {
        if self.address().is_read_only() {
            return Err(Error::Refused(format!(
                "{} is only read: give an s3://, gs:// or az:// address to push to",
                self.address()
            )));
        }
        let lease = Lease::take(&self.client, Purpose::Add, options.wait, monitor)?;
        let there = match self.contents_but_packs()? {
            Some(there) => there,
            None => self.begin()?,
        };
        let mut problems = Vec::new();
        let index = self.index_there(&there, &mut problems)?;
        let mut push = Push {
            remote: self,
            store,
            options,
            there,
            index,
            here: BTreeMap::new(),
            lost: BTreeSet::new(),
            put: HashSet::new(),
            settled: Vec::new(),
            report: PushReport {
                problems,
                ..PushReport::default()
            },
        };
        let parts = push.parts()?;
        let parts = push.put_specs(parts)?;
        push.put_packs(&parts, tell, monitor)?;
        lease.confirm()?;
        push.put_those_gone(&parts)?;
        push.put_parts(parts)?;
        push.put_runs()?;
        if options.contents {
            self.write_contents(|_| false)?;
        }
        if store.is_remote() {
            store.forget_runs(&push.settled)?;
        }
        Ok(push.report)
    }

    /// Begins a store where there is nothing else.
    fn begin(&self) -> Result<Contents, Error> {
        let all = self.client.list("")?;
        // By another, since it was looked for.
        let is_begun = all.iter().any(|object| object.name == MARKER);
        if is_begun && let Some(there) = self.contents_but_packs()? {
            return Ok(there);
        }
        if all.iter().any(|object| !object.name.starts_with("leases/")) {
            return Err(Error::NotAStore {
                path: self.address().to_string().into(),
                why: "other things are there; give an empty prefix, or that of a store".to_owned(),
                is_free: false,
            });
        }
        let marker = Bytes::from(layout::marker_bytes());
        self.client.put_new(MARKER, &marker)?;
        Ok(Contents::default())
    }
}

impl Push<'_> {
    /// The index parts that are not there, with those of their rows that are not there either. On the way packs are found that are named there
    /// and lost.
    fn parts(&mut self) -> Result<Vec<Part>, Error> {
        let layout = &self.store.layout;
        let (mut there, mut missing) = (Vec::new(), Vec::new());
        for spec in layout.indexed_specs()? {
            for (part, _) in layout.index_parts(&spec)? {
                match self.index.has(&(spec, part)) {
                    true => there.push((spec, part)),
                    false => missing.push((spec, part)),
                }
            }
        }
        let mut parts = Vec::new();
        for (spec, digest) in missing {
            match decode_part(layout, &spec, &digest, index::records) {
                Ok(rows) => parts.push(Part {
                    spec,
                    digest,
                    total: rows.len(),
                    rows,
                }),
                Err(e) => self.note(e)?,
            }
        }
        let here = layout.list_packs()?.into_iter();
        self.here = here.map(|(pack, file)| (pack, file.bytes)).collect();
        // A process that pushes over and over asks for each once.
        let doubtful = self.here.keys().copied();
        let doubtful: HashSet<Digest> = match &layout.mirror {
            Some(mirror) => mirror.not_found_yet(doubtful),
            None => doubtful.collect(),
        };
        let named = parts.iter().flat_map(|part| &part.rows).map(|row| row.pack);
        let named: HashSet<Digest> = named.chain(doubtful.iter().copied()).collect();
        self.there.packs = self.remote.packs_of(&named)?;
        let packs = &self.there.packs;
        if let Some(mirror) = &layout.mirror {
            mirror.have_found(packs.keys().copied());
        }
        let all_there = doubtful.iter().all(|pack| packs.contains_key(pack));
        if parts.is_empty() && all_there {
            return Ok(Vec::new());
        }
        let mut known: HashSet<(Fingerprint, Digest)> = HashSet::new();
        for (spec, part) in there {
            // One that cannot be read here only makes more rows go there twice.
            let Ok(rows) = decode_part(layout, &spec, &part, index::presence) else {
                continue;
            };
            let lost = rows.iter().map(|row| row.pack);
            let lost = lost.filter(|pack| doubtful.contains(pack) && !packs.contains_key(pack));
            self.lost.extend(lost);
            let rows = rows.iter().map(|row| (row.entry, row.pack));
            known.extend(rows.filter(|(_, pack)| packs.contains_key(pack)));
        }
        for part in &mut parts {
            part.rows
                .retain(|row| !known.contains(&(row.entry, row.pack)));
        }
        parts.retain(|part| !part.rows.is_empty());
        Ok(parts)
    }

    /// Puts the specs of the parts; parts whose spec is not sound are left out.
    fn put_specs(&mut self, parts: Vec<Part>) -> Result<Vec<Part>, Error> {
        let mut sound = HashMap::new();
        for part in &parts {
            if sound.contains_key(&part.spec) {
                continue;
            }
            let is_sound = match layout::read_spec(&self.store.layout, &part.spec) {
                Ok(json) => {
                    if !self.there.specs.contains_key(&part.spec) {
                        let name = names::spec(&part.spec);
                        self.remote.client.put_new(&name, &json.into())?;
                    }
                    true
                }
                Err(e) if e.is_gone() => {
                    let path = self.store.layout.spec(&part.spec);
                    self.note(Error::malformed(&path, "missing, so its entries stay here"))?;
                    false
                }
                Err(e) => {
                    self.note(e)?;
                    false
                }
            };
            sound.insert(part.spec, is_sound);
        }
        let is_sound = |part: &Part| sound.get(&part.spec).copied().unwrap_or(false);
        Ok(parts.into_iter().filter(is_sound).collect())
    }

    fn put_packs(
        &mut self,
        parts: &[Part],
        tell: &mut dyn FnMut(Digest, RemotePack),
        monitor: &dyn Monitor,
    ) -> Result<(), Error> {
        let named = parts.iter().flat_map(|p| &p.rows).map(|r| r.pack);
        let wanted: HashSet<Digest> = named.chain(self.lost.iter().copied()).collect();
        let (there, missing): (Vec<Digest>, Vec<Digest>) = wanted
            .into_iter()
            .partition(|pack| self.there.packs.contains_key(pack));
        self.report.packs_there = there.len() as u64;
        self.put.extend(there);
        let mut sized: Vec<(Digest, u64)> = missing
            .into_iter()
            .filter_map(|pack| Some((pack, *self.here.get(&pack)?)))
            .collect();
        sized.sort_unstable();
        let total = sized.iter().map(|(_, bytes)| bytes).sum();
        let what = format!("pushing packs to {}", self.remote.address());
        monitor.start(&what, Some(total));
        let done = each(&sized, |(pack, bytes)| {
            let put = self.put_pack(pack);
            monitor.advance(*bytes);
            match put {
                Err(e) if e.is_content() || e.is_gone() => Ok(Err(e)),
                other => other.map(Ok),
            }
        });
        monitor.finish();
        for ((pack, _), put) in sized.into_iter().zip(done?) {
            match put {
                Ok((bytes, sent)) => {
                    self.put.insert(pack);
                    self.report.packs += 1;
                    self.report.pack_bytes += bytes;
                    self.report.sent_bytes += sent.object.bytes;
                    tell(pack, sent);
                }
                Err(e) => self.note(e)?,
            }
        }
        Ok(())
    }

    /// Puts a pack whose bytes are what its name says; gives their number, and what was sent for them.
    fn put_pack(&self, pack: &Digest) -> Result<(u64, RemotePack), Error> {
        let file: PackPath = self.store.layout.pack_path(*pack);
        let bytes = packfile::read_whole(&self.store.layout, &file)?;
        let found = Digest::of(&bytes);
        if found != *pack {
            let why = format!(
                "expected content with the digest in the name, found {}",
                found.short()
            );
            return Err(Error::malformed(&file.path, why));
        }
        let size = bytes.len() as u64;
        let shared = match self.options.compress {
            true => Some(planes::encode(&bytes).map_err(Error::Refused)?),
            false => None,
        };
        let (is_shared, object) = match shared {
            Some(shared) if shared.len() < bytes.len() => (true, Bytes::from(shared)),
            _ => (false, Bytes::from(bytes)),
        };
        let name = names::pack(pack, is_shared);
        self.remote.client.put_new(&name, &object)?;
        let object = Object {
            bytes: object.len() as u64,
            // As far as this is known here; what is cleaned up by its age is listed before.
            modified: SystemTime::UNIX_EPOCH,
        };
        Ok((size, RemotePack { object, is_shared }))
    }

    /// Puts packs again that were there at first and are gone: somebody removed them while we were asleep.
    fn put_those_gone(&mut self, parts: &[Part]) -> Result<(), Error> {
        if self.report.packs_there == 0 {
            return Ok(());
        }
        let named = parts.iter().flat_map(|part| &part.rows).map(|row| row.pack);
        let relied: HashSet<Digest> = named.filter(|p| self.there.packs.contains_key(p)).collect();
        let now = self.remote.packs_of(&relied)?;
        for pack in relied.iter().filter(|p| !now.contains_key(p)) {
            match self.put_pack(pack) {
                Ok(_) => {}
                Err(e) if e.is_content() || e.is_gone() => {
                    self.put.remove(pack);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn put_parts(&mut self, parts: Vec<Part>) -> Result<(), Error> {
        let mut known: BTreeMap<Fingerprint, BTreeMap<Digest, Option<Listed>>> = BTreeMap::new();
        for mut part in parts {
            let before = part.rows.len();
            part.rows.retain(|row| self.put.contains(&row.pack));
            let path = self.store.layout.index_part(&part.spec, &part.digest);
            if part.rows.len() < before {
                let left = shown::counted(before - part.rows.len(), "entry");
                let why = format!("names {left} in packs that are missing or damaged here");
                self.note(Error::malformed(&path, why))?;
            }
            if part.rows.is_empty() {
                continue;
            }
            let bytes = match part.rows.len() == part.total {
                true => disk::read_bounded(self.store.disk(), &path, index::PART_LIMIT_BYTES)?,
                false => index::encode(&part.spec, &part.rows)?,
            };
            let bytes = Bytes::from(bytes);
            let digest = self.remote.put_part(&part.spec, &bytes)?;
            self.report.index_parts += 1;
            self.report.entries += part.rows.len() as u64;
            if let Some(listed) = Listed::of(&bytes, &part.spec) {
                known
                    .entry(part.spec)
                    .or_default()
                    .insert(digest, Some(listed));
            }
        }
        // Of those that were merged here, so that nobody has to fetch all of them.
        for (spec, known) in known {
            self.remote
                .put_list(&spec, &List::new(known, BTreeSet::new()))?;
        }
        Ok(())
    }

    /// Takes note of what is not as it must be; what cannot be read is an error.
    pub(super) fn note(&mut self, e: Error) -> Result<(), Error> {
        let mend = "left out; `plumb store check` tells what is wrong here";
        let file = |path: &Path| relative(&self.store.layout, path);
        self.report.problems.extend(problem_of(e, file, mend)?);
        Ok(())
    }
}

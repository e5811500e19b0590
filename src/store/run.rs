//! Runs: which entries somebody uses. They are the roots of garbage collection; nothing else reads them.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::disk::{self, create_dirs, write_once};
use super::layout::{self, FORMAT_VERSION};
use super::{Error, Store, lock, temporary};
use crate::digest::{Digest, Fingerprint, canonical_json};
use crate::shown;

/// The largest run file.
pub(super) const RUN_LIMIT_BYTES: u64 = 1 << 30;
/// The most entries of a run: of 67 bytes each in its file, with room for the rest.
pub const RUN_LIMIT_ENTRIES: usize = 15_000_000;

/// The longest name of a run.
pub(super) const ID_LIMIT: usize = 128;

/// A list of entries in use.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Its name, which is that of its file without the ending.
    pub id: String,
    /// The digest of the file's bytes: what provenance calls the manifest.
    pub digest: Digest,
    /// The entries by spec, sorted.
    pub entries: BTreeMap<Fingerprint, Vec<Fingerprint>>,
    /// A JSON object that the writer added for people; the store does not look into it.
    pub extra: Value,
}

impl Run {
    /// How many entries it uses.
    pub fn num_entries(&self) -> usize {
        self.entries.values().map(Vec::len).sum()
    }

    /// The entries it uses: (spec, entry), sorted.
    pub(super) fn listed(&self) -> impl Iterator<Item = (Fingerprint, Fingerprint)> {
        let of_spec = self.entries.iter();
        of_spec.flat_map(|(spec, list)| list.iter().map(|entry| (*spec, *entry)))
    }
}

/// What to do where the store lacks entries of a run that is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    /// Write nothing, and say so.
    Refuse,
    /// Write the run without them.
    LeaveOut,
}

#[derive(Serialize, Deserialize)]
// A member that nobody knows is a misspelt one of ours: what it said would be lost unseen.
#[serde(deny_unknown_fields)]
struct RunFile {
    version: u64,
    id: String,
    extra: Value,
    entries: BTreeMap<String, Vec<Fingerprint>>,
    /// Of the canonical form of the other members. Runs of earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
}

impl Store {
    /// Writes down that the run `id` uses `entries`, given as (spec, entry), so that garbage collection keeps
    /// them. A run of the same name is replaced as a whole. The digest is that of the list, whatever its order.
    ///
    /// A run lists no entry that the store lacks. It is looked for under the lock, so nothing can remove it in between.
    ///
    /// # Errors
    /// If `id` is no file name, if entries are lacking and `lacking` says to refuse, or if the store cannot be written or is
    /// being cleaned up.
    pub fn write_run(
        &self,
        id: &str,
        entries: &[(Fingerprint, Fingerprint)],
        extra: Value,
        lacking: Lacking,
    ) -> Result<Digest, Error> {
        if !is_run_id(id) {
            return Err(Error::Refused(format!(
                "cannot write the run `{}`: expected 1 to 128 letters, digits, `.`, `_` or `-`, not beginning with `.`",
                shown::text(id)
            )));
        }
        if entries.len() > RUN_LIMIT_ENTRIES {
            return Err(Error::Refused(format!(
                "cannot write the run {id}: expected at most {RUN_LIMIT_ENTRIES} entries, found {}; encode in parts (`plumb encode --part 1/16` and so on), each of which has a run of its own",
                entries.len()
            )));
        }
        // A cleaner that is at work has read the runs already, and would not see this one.
        let _lock = lock::shared(&self.layout)?;
        let here = self.those_here(entries)?;
        if here.len() < entries.len() && lacking == Lacking::Refuse {
            return Err(Error::Refused(format!(
                "cannot write the run {id}: the store lacks {}; encode them first",
                shown::part_of(entries.len() - here.len(), entries.len(), "entry")
            )));
        }
        let bytes = run_bytes(id, &here, extra);
        let dir = self.layout.runs();
        create_dirs(self.disk(), &self.layout.root, &dir)?;
        // No writer is the owner of these names, so whoever writes a run collects what killed ones left beside it.
        let _ = temporary::collect(self.disk(), &dir);
        write_once(self.disk(), &dir, format!("{id}.json"), &[&bytes])?;
        Ok(Digest::of(&bytes))
    }

    /// Those of `entries` that the store has. Where a part of the index cannot be read now, that is not known, and they count
    /// as there: a run rather keeps too much.
    fn those_here(
        &self,
        entries: &[(Fingerprint, Fingerprint)],
    ) -> Result<Vec<(Fingerprint, Fingerprint)>, Error> {
        let reader = self.reader_of_entries(entries)?;
        let is_here = |(spec, entry): &&(Fingerprint, Fingerprint)| reader.contains(spec, entry);
        Ok(match reader.is_complete() {
            true => entries.iter().filter(is_here).copied().collect(),
            false => entries.to_vec(),
        })
    }

    /// Removes the runs whose names begin with `prefix`: whoever calls it has written what takes their place.
    ///
    /// # Errors
    /// If the store cannot be written or is being cleaned up.
    pub fn remove_runs(&self, prefix: &str) -> Result<(), Error> {
        let is_one = |id: &String| id.starts_with(prefix);
        let removed: Vec<String> = self.runs()?.into_iter().filter(is_one).collect();
        if removed.is_empty() {
            return Ok(());
        }
        // A cleaner has read either all of the runs or none.
        let _lock = lock::shared(&self.layout)?;
        for id in removed {
            // One that is gone was removed by another process that came to the same end.
            disk::remove(self.disk(), &self.layout.run(&id))?;
        }
        let dir = self.layout.runs();
        (self.disk().sync_dir(&dir)).map_err(|e| Error::io("sync the folder", &dir, e))
    }

    /// Removes runs from a folder before a store on object storage which are over there by now, if they are still what was read: whoever gives one
    /// up there finds it given up. Where somebody else is at work in the folder, the next one does it.
    pub(super) fn forget_runs(&self, settled: &[(String, Digest)]) -> Result<(), Error> {
        if settled.is_empty() {
            return Ok(());
        }
        let Ok(_lock) = lock::exclusive(&self.layout, "plumb, which forgets runs that were pushed")
        else {
            return Ok(());
        };
        for (id, digest) in settled {
            let path = self.layout.run(id);
            let bytes = disk::read_bounded(self.disk(), &path, RUN_LIMIT_BYTES);
            if bytes.is_ok_and(|bytes| Digest::of(&bytes) == *digest) {
                disk::remove(self.disk(), &path)?;
            }
        }
        Ok(())
    }

    /// The names of the runs, sorted.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn runs(&self) -> Result<Vec<String>, Error> {
        let mut runs = self.own_runs()?;
        if let Some(mirror) = &self.layout.mirror {
            runs.extend(mirror.runs());
            runs.sort_unstable();
            runs.dedup();
        }
        Ok(runs)
    }

    /// The names of the runs in its folder, sorted: of a store on object storage those that were written here.
    pub(super) fn own_runs(&self) -> Result<Vec<String>, Error> {
        let files = self.layout.list(&self.layout.runs())?;
        Ok(files
            .iter()
            .filter_map(|f| f.name.strip_suffix(".json"))
            .filter(|id| is_run_id(id))
            .map(str::to_owned)
            .collect())
    }

    /// The run called `id`.
    ///
    /// # Errors
    /// If it is not there or cannot be understood, or if it is not what was written.
    pub fn run(&self, id: &str) -> Result<Run, Error> {
        self.run_and_bytes(id).map(|(run, _)| run)
    }

    pub(super) fn run_and_bytes(&self, id: &str) -> Result<(Run, Bytes), Error> {
        if !is_run_id(id) {
            let id = shown::text(id);
            return Err(Error::Refused(format!("`{id}` is no name of a run")));
        }
        let path = self.layout.run(id);
        match (
            disk::read_bounded(self.disk(), &path, RUN_LIMIT_BYTES),
            &self.layout.mirror,
        ) {
            (Err(e), Some(mirror)) if e.is_gone() => mirror.remote().run_and_bytes(id),
            (bytes, _) => {
                let bytes = bytes?;
                Ok((parse(&path, id, &bytes)?, bytes.into()))
            }
        }
    }
}

/// The run called `id` that these bytes are.
pub(super) fn parse(path: &Path, id: &str, bytes: &[u8]) -> Result<Run, Error> {
    let malformed = |why: String| {
        let mend = "write it again by encoding or training, or remove it";
        Error::malformed(path, format!("not a run: {why}; {mend}"))
    };
    let mut file: RunFile = serde_json::from_slice(bytes).map_err(|e| malformed(e.to_string()))?;
    layout::check_version(path, file.version)?;
    if let Some(expected) = file.digest.take()
        && !is_as_written(bytes, &expected)
    {
        let found = Digest::of(&canonical_json(&file));
        if found != expected {
            let (found, expected) = (found.short(), expected.short());
            return Err(malformed(format!(
                "its members have the digest {found}, expected {expected} as it says itself"
            )));
        }
    }
    if file.id != id {
        let found = shown::text(&file.id);
        return Err(malformed(format!(
            "field `id`: expected the file's name, found `{found}`"
        )));
    }
    let entries: Result<BTreeMap<Fingerprint, Vec<Fingerprint>>, _> = file
        .entries
        .into_iter()
        .map(|(spec, mut list)| {
            // As it was written it is sorted.
            list.sort();
            spec.parse().map(|spec| (spec, list))
        })
        .collect();
    Ok(Run {
        id: id.to_owned(),
        digest: Digest::of(bytes),
        entries: entries.map_err(|e| malformed(e.to_string()))?,
        extra: file.extra,
    })
}

/// Whether these are the bytes of [`run_bytes`] with this digest of the other members: then these need not be written once more.
fn is_as_written(bytes: &[u8], digest: &Digest) -> bool {
    let begin = format!("{{\"digest\":\"{digest}\",");
    let others = bytes.strip_prefix(begin.as_bytes());
    others.is_some_and(|others| Digest::of_pieces([&b"{"[..], others]) == *digest)
}

/// The canonical form of a run, with its own digest.
pub(super) fn run_bytes(id: &str, entries: &[(Fingerprint, Fingerprint)], extra: Value) -> Vec<u8> {
    let mut by_spec: BTreeMap<String, Vec<Fingerprint>> = BTreeMap::new();
    for (spec, entry) in entries {
        by_spec.entry(spec.to_string()).or_default().push(*entry);
    }
    for list in by_spec.values_mut() {
        // The digest is of the list as a set: the order of captions is not what a run depends on.
        list.sort_unstable();
        list.dedup();
    }
    let mut file = RunFile {
        version: FORMAT_VERSION,
        id: id.to_owned(),
        extra,
        entries: by_spec,
        digest: None,
    };
    file.digest = Some(Digest::of(&canonical_json(&file)));
    canonical_json(&file)
}

pub(super) fn is_run_id(id: &str) -> bool {
    (1..=ID_LIMIT).contains(&id.len())
        // Nor `.` and `..`, nor a temporary file's name.
        && !id.starts_with('.')
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

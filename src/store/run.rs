//! Runs: which entries somebody uses. They are the roots of garbage collection; nothing else reads them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::disk::{self, create_dirs, write_once};
use super::layout::{self, FORMAT_VERSION};
use super::{Error, Store, lock};
use crate::digest::{Digest, Fingerprint, canonical_json};

/// The largest run file: three million entries.
const RUN_LIMIT_BYTES: u64 = 256 << 20;

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
}

#[derive(Serialize, Deserialize)]
struct RunFile {
    version: u64,
    id: String,
    extra: Value,
    entries: BTreeMap<String, Vec<Fingerprint>>,
}

impl Store {
    /// Writes down that the run `id` uses `entries`, given as (spec, entry), so that garbage collection keeps
    /// them. A run of the same name is replaced as a whole. The digest is that of the list, whatever its order.
    ///
    /// Write it before checking that the entries are there: then nothing can remove them in between.
    ///
    /// # Errors
    /// If `id` is no file name, or the store cannot be written or is being cleaned up.
    pub fn write_run(
        &self,
        id: &str,
        entries: &[(Fingerprint, Fingerprint)],
        extra: Value,
    ) -> Result<Digest, Error> {
        if !is_run_id(id) {
            return Err(Error::Refused(format!(
                "cannot write the run `{id}`: expected 1 to 128 letters, digits, `.`, `_` or `-`, not beginning with `.`"
            )));
        }
        let mut by_spec: BTreeMap<String, Vec<Fingerprint>> = BTreeMap::new();
        for (spec, entry) in entries {
            by_spec.entry(spec.to_string()).or_default().push(*entry);
        }
        for list in by_spec.values_mut() {
            // The digest is of the list as a set: the order of captions is not what a run depends on.
            list.sort_unstable();
            list.dedup();
        }
        let file = RunFile {
            version: FORMAT_VERSION,
            id: id.to_owned(),
            extra,
            entries: by_spec,
        };
        let bytes = canonical_json(&file);
        // A cleaner that is at work has read the runs already, and would not see this one.
        let _lock = lock::shared(&*self.disk, &self.layout)?;
        let dir = self.layout.runs();
        create_dirs(&*self.disk, &self.layout.root, &dir)?;
        write_once(&*self.disk, &dir, &format!("{id}.json"), &[&bytes])?;
        Ok(Digest::of(&bytes))
    }

    /// The names of the runs, sorted.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn runs(&self) -> Result<Vec<String>, Error> {
        Ok(disk::list(&self.layout.runs())?
            .iter()
            .filter_map(|f| f.name.strip_suffix(".json"))
            .filter(|id| is_run_id(id))
            .map(str::to_owned)
            .collect())
    }

    /// The run called `id`.
    ///
    /// # Errors
    /// If it is not there or cannot be understood.
    pub fn run(&self, id: &str) -> Result<Run, Error> {
        if !is_run_id(id) {
            return Err(Error::Refused(format!("`{id}` is no name of a run")));
        }
        let path = self.layout.run(id);
        let bytes = disk::read_bounded(&path, RUN_LIMIT_BYTES)?;
        let malformed = |why: String| {
            let mend = "write it again by encoding or training, or remove it";
            Error::malformed(&path, format!("not a run: {why}; {mend}"))
        };
        let file: RunFile = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
        layout::check_version(&path, file.version)?;
        let entries: Result<BTreeMap<Fingerprint, Vec<Fingerprint>>, _> = file
            .entries
            .into_iter()
            .map(|(spec, list)| spec.parse().map(|spec| (spec, list)))
            .collect();
        Ok(Run {
            id: id.to_owned(),
            digest: Digest::of(&bytes),
            entries: entries.map_err(|e| malformed(e.to_string()))?,
            extra: file.extra,
        })
    }
}

fn is_run_id(id: &str) -> bool {
    (1..=128).contains(&id.len())
        // Nor `.` and `..`, nor a temporary file's name.
        && !id.starts_with('.')
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

//! The runs of a push, after all that they list.

use std::collections::{BTreeMap, HashSet};

use super::names;
use super::push::Push;
use crate::digest::{Digest, Fingerprint, canonical_json};
use crate::shown;
use crate::store::loading::Scope;
use crate::store::snapshot::decode_part;
use crate::store::{Error, Run, index, run};

/// An entry with its spec before it.
type Listed = (Fingerprint, Fingerprint);

impl Push<'_> {
    /// Puts the runs, with those of their entries that are there.
    pub(super) fn put_runs(&mut self) -> Result<(), Error> {
        let mut new = Vec::new();
        for id in self.store.own_runs()? {
            match self.store.run(&id) {
                Ok(run) => {
                    self.settled.push((id, run.digest));
                    let all: Vec<Listed> = run.listed().collect();
                    // One that is there with all of its entries was put before.
                    let (_, id) = names_there(&run.id, &all);
                    if !self.there.runs.contains_key(&id) {
                        new.push((run, all));
                    }
                }
                Err(e) => self.note(e)?,
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        let wanted = new.iter().flat_map(|(_, all)| all).copied().collect();
        let there = self.entries_there(&wanted)?;
        for (run, all) in new {
            let kept: Vec<Listed> = all.into_iter().filter(|one| there.contains(one)).collect();
            if kept.len() < run.num_entries() {
                let left = shown::counted(run.num_entries() - kept.len(), "entry");
                let why = format!("lacks {left} that it uses: these it protects no more");
                self.note(Error::malformed(&self.store.layout.run(&run.id), why))?;
            }
            if !kept.is_empty() {
                self.put_run(&run, &kept)?;
            }
        }
        Ok(())
    }

    /// Runs there are never replaced: each is put under a name with the digest of its list, and takes the place of those of its name, and of
    /// its parts, of which it has all entries.
    fn put_run(&mut self, run: &Run, kept: &[Listed]) -> Result<(), Error> {
        let (base, id) = names_there(&run.id, kept);
        if self.there.runs.contains_key(&id) {
            return Ok(());
        }
        let bytes = run::run_bytes(&id, kept, run.extra.clone());
        self.remote
            .client
            .put_new(&names::run(&id), &bytes.into())?;
        self.report.runs += 1;
        let kept: HashSet<_> = kept.iter().copied().collect();
        let older = self.there.runs.keys().filter(|other| {
            let of_part = base_name(other).strip_prefix(&base);
            of_part.is_some_and(|rest| rest.is_empty() || rest.starts_with(".part-"))
        });
        for other in older {
            // One that cannot be read may protect something.
            let Ok(old) = self.remote.run(other) else {
                continue;
            };
            if old.listed().all(|both| kept.contains(&both)) {
                self.remote.client.remove(&names::run(other))?;
            }
        }
        Ok(())
    }

    /// Those of `wanted` that are in this store's index and whose packs are there now.
    fn entries_there(&self, wanted: &HashSet<Listed>) -> Result<HashSet<Listed>, Error> {
        let layout = &self.store.layout;
        if let Some(mirror) = &layout.mirror {
            let wanted: Vec<Listed> = wanted.iter().copied().collect();
            let scope = Scope::entries(&wanted);
            mirror.bring(layout, &|spec, _, known| scope.touches(spec, known))?;
        }
        let mut places: Vec<(Listed, Digest)> = Vec::new();
        for spec in layout.indexed_specs()? {
            for (part, _) in layout.index_parts(&spec)? {
                // Of one that cannot be read it is told where entries are lacking for it.
                let rows = decode_part(layout, &spec, &part, index::presence);
                let rows = rows
                    .iter()
                    .flatten()
                    .map(|row| ((spec, row.entry), row.pack));
                places.extend(rows.filter(|(one, _)| wanted.contains(one)));
            }
        }
        let packs = places.iter().map(|(_, pack)| *pack);
        let is_known =
            |pack: &Digest| self.put.contains(pack) || self.there.packs.contains_key(pack);
        let unknown: HashSet<Digest> = packs.filter(|pack| !is_known(pack)).collect();
        let found = self.remote.packs_of(&unknown)?;
        let is_there = |pack: &Digest| is_known(pack) || found.contains_key(pack);
        let there = places.iter().filter(|(_, pack)| is_there(pack));
        Ok(there.map(|(one, _)| *one).collect())
    }
}

/// A point and twelve digits.
const SUFFIX: usize = 13;

/// A run's name without the digest of its list.
fn base_name(id: &str) -> &str {
    match id.rsplit_once('.') {
        Some((base, digest))
            if digest.len() == SUFFIX - 1 && digest.bytes().all(|b| b.is_ascii_hexdigit()) =>
        {
            base
        }
        _ => id,
    }
}

/// The name without digest, and the one with that of a list, which a run of the name `id` with this list gets there.
fn names_there(id: &str, list: &[Listed]) -> (String, String) {
    // Room for the point and the digest.
    let base: String = base_name(id).chars().take(run::ID_LIMIT - SUFFIX).collect();
    let id = format!("{base}.{}", list_digest(list).short());
    (base, id)
}

fn list_digest(entries: &[Listed]) -> Digest {
    let mut by_spec: BTreeMap<String, Vec<Fingerprint>> = BTreeMap::new();
    for (spec, entry) in entries {
        by_spec.entry(spec.to_string()).or_default().push(*entry);
    }
    Digest::of(&canonical_json(&by_spec))
}

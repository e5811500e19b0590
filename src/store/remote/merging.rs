//! Merging index parts on object storage. The new parts are put beside the old ones, and then a list that says what they have (`lists`):
//! nothing goes before `gc` removes it, so whoever reads or adds meanwhile is not in the way, and whoever is killed leaves rows that are there
//! twice at the worst.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use super::lease::{Lease, Purpose};
use super::lists::{IndexThere, List, Named};
use super::mirror::Mirror;
use super::names;
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Silent;
use crate::store::compact::{Effort, Parts};
use crate::store::layout::Layout;
use crate::store::parts::{self, Listed};
use crate::store::snapshot::read_part;
use crate::store::{Error, Store, lock};

/// How long somebody else's merging is waited for who merges all: two that begin at once keep each other out, and begin again.
const WAIT: Duration = Duration::from_secs(10);

impl Mirror {
    /// Merges where there is much of a kind, unless somebody merges or removes: then the next one to push does it.
    pub(in crate::store) fn merge_few(&self, store: &Store) -> Result<(), Error> {
        match self.merge(store, Effort::Few) {
            Err(Error::Busy { .. }) => Ok(()),
            done => done,
        }
    }

    /// Merges the index parts over there of each spec that has many.
    pub(in crate::store) fn merge(&self, store: &Store, effort: Effort) -> Result<(), Error> {
        let layout = &store.layout;
        if self.remote().address().is_read_only() {
            let address = self.remote().address();
            return Err(Error::Refused(format!("{address} is only read")));
        }
        let mut is_crowded = false;
        for spec in self.index().specs() {
            let parts = self.parts(layout, &spec, &HashSet::new());
            is_crowded |= parts.next(effort, &mut effort.budget()).is_some();
        }
        if !is_crowded {
            return Ok(());
        }
        let wait = match effort {
            Effort::Few => Duration::ZERO,
            Effort::All => WAIT,
        };
        let client = &self.remote().client;
        // Only so that two do not do the same: it would do no harm.
        let merging = Lease::take(client, Purpose::Merge, wait, &Silent)?;
        let adding = Lease::take(client, Purpose::Add, wait, &Silent)?;
        self.refresh(layout)?;
        for spec in self.index().specs() {
            self.merge_spec(store, &spec, effort, &adding)?;
        }
        drop((adding, merging));
        Ok(())
    }

    /// The parts of a spec that are read over there, but those in `tried`.
    fn parts(&self, layout: &Layout, spec: &Fingerprint, tried: &HashSet<Digest>) -> Parts {
        let mut own = parts::read(layout, spec);
        let mut parts = Parts::default();
        let index = self.index();
        let of_spec = index.live.iter().filter(|((of, _), _)| of == spec);
        for ((_, part), live) in of_spec.filter(|((_, part), _)| !tried.contains(part)) {
            let own = own.remove(part).filter(|own| own.bytes == live.bytes);
            match live.known.clone().or(own) {
                Some(known) => parts.known.push((*part, known)),
                None => parts.unknown.push((*part, live.bytes)),
            }
        }
        parts
    }

    fn merge_spec(
        &self,
        store: &Store,
        spec: &Fingerprint,
        effort: Effort,
        adding: &Lease,
    ) -> Result<(), Error> {
        let layout = &store.layout;
        let mut budget = effort.budget();
        // Each part once, as in a folder.
        let mut tried = HashSet::new();
        loop {
            let parts = self.parts(layout, spec, &tried);
            let Some(work) = parts.next(effort, &mut budget) else {
                return Ok(());
            };
            let old: HashSet<Digest> = work.parts().into_iter().collect();
            tried.extend(&old);
            self.bring(layout, &|of, part, _| of == spec && old.contains(part))?;
            {
                // What is written here is over there before it can be taken for old.
                let _lock = lock::shared(layout)?;
                let (new, done) = work.carry_out(store, spec)?;
                self.publish(layout, spec, (&new, &done), adding)?;
            }
            self.refresh(layout)?;
        }
    }

    /// Puts the parts `new`, which have all rows of `done`, and the list that says so.
    fn publish(
        &self,
        layout: &Layout,
        spec: &Fingerprint,
        (new, done): (&[Digest], &[Digest]),
        adding: &Lease,
    ) -> Result<(), Error> {
        let (remote, index) = (self.remote(), self.index());
        let mut merged: BTreeSet<Digest> = done.iter().copied().collect();
        merged.retain(|part| !new.contains(part));
        if merged.is_empty() {
            return Ok(());
        }
        // This process may have been asleep for longer than its lease lasts, and somebody may have removed packs: then these parts went before.
        adding.confirm()?;
        let now = remote.contents_but_packs()?.unwrap_or_default();
        let is_there = |part: &Digest| now.parts.contains_key(&(*spec, *part));
        if !done.iter().all(is_there) {
            return Ok(());
        }
        let mut parts: BTreeMap<Digest, Option<Listed>> = BTreeMap::new();
        for part in new {
            let bytes = read_part(layout, spec, part)?;
            parts.insert(*part, Listed::of(&bytes, spec));
            remote.put_part(spec, &bytes)?;
        }
        merged.extend(merged_before(&index, spec, &parts, &merged));
        let older = told(&index, spec, &merged);
        let list = remote.put_list(spec, &List::new(parts, merged))?;
        // Whoever misses one that it has seen in a list takes the parts for what they are.
        for older in older.into_iter().filter(|older| *older != list) {
            remote.client.remove(&names::part_list(spec, &older))?;
        }
        Ok(())
    }
}

/// Parts that are still there, and that were merged into parts of which all are merged now.
fn merged_before(
    index: &IndexThere,
    spec: &Fingerprint,
    new: &BTreeMap<Digest, Option<Listed>>,
    merged: &BTreeSet<Digest>,
) -> Vec<Digest> {
    let before = index
        .merged
        .iter()
        .filter(|((of, _), m)| of == spec && m.is_there);
    let is_new = |leaf: &Digest| merged.contains(leaf) || new.contains_key(leaf);
    before
        .map(|((_, part), _)| *part)
        .filter(|part| !new.contains_key(part))
        .filter(|part| {
            let leaves = index.leaves(spec, std::iter::once(part));
            leaves.is_some_and(|leaves| leaves.iter().all(is_new))
        })
        .collect()
}

/// The lists that say nothing but what one of `merged` says, as far as the parts are still there.
fn told(index: &IndexThere, spec: &Fingerprint, merged: &BTreeSet<Digest>) -> Vec<Digest> {
    let is_told = |part: &Digest| {
        let named: Named = (*spec, *part);
        merged.contains(part) || !index.is_there(&named)
    };
    let of_spec = index.lists.iter().filter(|((of, _), _)| of == spec);
    of_spec
        .filter(|(_, list)| list.parts.keys().chain(&list.merged).all(is_told))
        .map(|((_, id), _)| *id)
        .collect()
}

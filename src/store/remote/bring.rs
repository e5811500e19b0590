//! The index of a store on object storage, as far as it comes into the folder before it: parts of which it is known what range of entries they
//! have when something of that is looked for, all others at once. Parts that were merged into others go from the folder.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::lists::{IndexThere, Named};
use super::mirror::{MEND, Mirror, write, write_part};
use super::names::Contents;
use super::seen;
use super::{as_named, each, problem_of};
use crate::digest::{Digest, Fingerprint};
use crate::store::compact::remove_parts;
use crate::store::disk;
use crate::store::layout::Layout;
use crate::store::parts::{self, Listed, PartList};
use crate::store::snapshot::decode_part;
use crate::store::sweep::most_rows;
use crate::store::{Error, Problem, index, lock};

/// How often the list is asked for again where it names parts that are gone.
const LOOKS: u32 = 4;
/// Before the third of these; the second comes at once.
const PAUSE: Duration = Duration::from_millis(300);

/// Whether a part is wanted of which something is known.
pub(in crate::store) type Wanted<'a> = &'a dyn Fn(&Fingerprint, &Digest, &Listed) -> bool;

impl Mirror {
    /// Looks at the other store again.
    pub(in crate::store) fn refresh(&self, layout: &Layout) -> Result<(), Error> {
        match self.remote().contents_but_packs()? {
            Some(contents) => self.update(layout, &contents),
            None => Ok(()),
        }
    }

    pub(super) fn update(&self, layout: &Layout, contents: &Contents) -> Result<(), Error> {
        let mut problems = Vec::new();
        let here = layout.list_specs()?.into_iter();
        let here: HashSet<Fingerprint> = here.map(|(spec, _)| spec).collect();
        let missing = contents.specs.keys().filter(|spec| !here.contains(spec));
        let missing: Vec<_> = missing.collect();
        let fetched = each(&missing, |spec| match self.remote().spec(spec) {
            Ok(bytes) => {
                write(layout, &layout.specs(), &format!("{spec}.json"), &bytes).map(|()| None)
            }
            Err(e) => problem_of(e, as_named, MEND),
        })?;
        problems.extend(fetched.into_iter().flatten());
        // What was damaged may have been put right.
        (self.bad.lock().unwrap_or_else(PoisonError::into_inner)).clear();
        self.take_index(contents, &mut problems)?;
        *self.packs.write().unwrap_or_else(PoisonError::into_inner) = contents.packs.clone();
        *self.runs.write().unwrap_or_else(PoisonError::into_inner) =
            contents.runs.keys().cloned().collect();
        *self
            .problems
            .write()
            .unwrap_or_else(PoisonError::into_inner) = problems;
        self.bring(layout, &|_, _, _| false)?;
        self.forget(layout)?;
        // Where it cannot be written, as on a full disk, more is pushed than need be.
        let _ = seen::write(layout, &self.index());
        Ok(())
    }

    pub(super) fn take_index(
        &self,
        contents: &Contents,
        problems: &mut Vec<Problem>,
    ) -> Result<(), Error> {
        let known = &self.index().lists;
        let lists = self.remote().lists(contents, known, problems)?;
        let bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
        let index = Arc::new(IndexThere::new(contents, lists, &bad));
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = index;
        Ok(())
    }

    /// The index over there, as of the last look.
    pub(super) fn index(&self) -> Arc<IndexThere> {
        let index = self.index.read();
        index.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many parts of the index are to be read over there, and their bytes.
    pub(in crate::store) fn count_parts(&self) -> (u64, u64) {
        let index = self.index();
        let bytes = index.live.values().map(|part| part.bytes).sum();
        (index.live.len() as u64, bytes)
    }

    /// The specs of the index over there.
    pub(in crate::store) fn specs(&self) -> BTreeSet<Fingerprint> {
        self.index().specs()
    }

    /// At least as many rows as the parts of the index have that are to be read over there.
    pub(in crate::store) fn most_rows(&self) -> u64 {
        let index = self.index();
        let parts = index.live.values();
        let rows = parts.map(|part| most_rows(part.bytes, part.known.as_ref()));
        rows.fold(0, u64::saturating_add)
    }

    /// Fetches those parts of the index that are not here and of which nothing is known, or that are `wanted`.
    pub(in crate::store) fn bring(&self, layout: &Layout, wanted: Wanted<'_>) -> Result<(), Error> {
        let _one = self.bringing.lock().unwrap_or_else(PoisonError::into_inner);
        for look in 0..LOOKS {
            let missing = missing(layout, &self.index(), wanted)?;
            if self.bring_all(layout, missing)? {
                return Ok(());
            }
            // Merged and collected since it was listed, or damaged: then what it was made of may still be there.
            std::thread::sleep(PAUSE * look.min(1));
            let Some(contents) = self.remote().contents_but_packs()? else {
                return Ok(());
            };
            let mut problems = Vec::new();
            self.take_index(&contents, &mut problems)?;
            self.tell(problems);
        }
        // What is named and is not there is as good as not there.
        Ok(())
    }

    /// Fetches parts; says whether all of them are here now.
    fn bring_all(&self, layout: &Layout, missing: Vec<Named>) -> Result<bool, Error> {
        let brought = each(&missing, |(spec, part)| {
            match self.remote().part(spec, part) {
                Ok(bytes) => {
                    write_part(layout, spec, part, &bytes)?;
                    // What its bytes say, whatever the list says of it.
                    Ok(Ok(Listed::of(&bytes, spec)))
                }
                Err(e) if e.is_content() || e.is_gone() => Ok(Err(e)),
                Err(e) => Err(e),
            }
        })?;
        let mut new: BTreeMap<Fingerprint, PartList> = BTreeMap::new();
        let mut all = true;
        for (named, brought) in missing.into_iter().zip(brought) {
            match brought {
                Ok(known) => {
                    let known = known.map(|known| (named.1, known));
                    new.entry(named.0).or_default().extend(known);
                }
                Err(e) => {
                    all = false;
                    let problem = problem_of(e, as_named, MEND)?;
                    if problem.is_some() {
                        let mut bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
                        bad.insert(named);
                    }
                    self.tell(problem.into_iter().collect());
                }
            }
        }
        for (spec, new) in new {
            parts::update(layout, &spec, new)?;
        }
        Ok(all)
    }

    fn tell(&self, new: Vec<Problem>) {
        let problems = self.problems.write();
        let mut problems = problems.unwrap_or_else(PoisonError::into_inner);
        for problem in new {
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
    }

    /// Removes index parts from the folder that are not read over there any more: those that were merged into others, and those that are
    /// gone. Of the latter those that name a pack which is in the folder stay, where they may be still to be pushed.
    fn forget(&self, layout: &Layout) -> Result<(), Error> {
        let (index, seen) = (self.index(), seen::read(layout));
        let mut stale: HashMap<Fingerprint, Vec<Digest>> = HashMap::new();
        let mut given_up = HashSet::new();
        for spec in layout.indexed_specs()? {
            for (part, _) in layout.index_parts(&spec)? {
                let named = (spec, part);
                if index.live.contains_key(&named) {
                    continue;
                }
                // Of a part that was over there and is gone: where its packs are all there, it was lost, and is put again.
                let gone = match seen.contains(&named) {
                    true => self.packs_gone(layout, &named)?,
                    false => HashSet::new(),
                };
                if index.merged.contains_key(&named)
                    || names_none_here(layout, &named)?
                    || !gone.is_empty()
                {
                    stale.entry(spec).or_default().push(part);
                }
                given_up.extend(gone);
            }
        }
        if stale.is_empty() {
            return Ok(());
        }
        // Somebody else at work in the folder: the next one does it.
        let Ok(_lock) = lock::exclusive(layout, "plumb, which brings an index up to date") else {
            return Ok(());
        };
        for (spec, parts) in stale {
            remove_parts(layout, &spec, parts.iter())?;
        }
        remove_unnamed(layout, given_up)
    }

    /// The packs that a part of the folder names and that are not over there.
    fn packs_gone(&self, layout: &Layout, (spec, part): &Named) -> Result<HashSet<Digest>, Error> {
        let mut packs = packs_named(layout, spec, part).unwrap_or_default();
        let there = self.remote().packs_of(&packs)?;
        packs.retain(|pack| !there.contains_key(pack));
        Ok(packs)
    }
}

/// Removes those of some packs that no part of the folder names. The caller holds the folder's lock.
fn remove_unnamed(layout: &Layout, mut packs: HashSet<Digest>) -> Result<(), Error> {
    if packs.is_empty() {
        return Ok(());
    }
    for spec in layout.indexed_specs()? {
        for (part, _) in layout.index_parts(&spec)? {
            // Nobody knows what one names that cannot be read.
            let Some(named) = packs_named(layout, &spec, &part) else {
                return Ok(());
            };
            packs.retain(|pack| !named.contains(pack));
        }
    }
    packs
        .iter()
        .try_for_each(|pack| disk::remove(&*layout.disk, &layout.pack(pack)))
}

/// The parts that are to be fetched.
fn missing(layout: &Layout, index: &IndexThere, wanted: Wanted<'_>) -> Result<Vec<Named>, Error> {
    let mut here: HashSet<Named> = HashSet::new();
    for spec in index.specs() {
        let parts = layout.index_parts(&spec)?.into_iter();
        here.extend(parts.map(|(part, _)| (spec, part)));
    }
    let missing = index.live.iter().filter(|(named, live)| {
        let is_wanted = live
            .known
            .as_ref()
            .is_none_or(|l| wanted(&named.0, &named.1, l));
        is_wanted && !here.contains(named)
    });
    Ok(missing.map(|(named, _)| *named).collect())
}

/// The packs that a part in the folder names; None where it cannot be read.
fn packs_named(layout: &Layout, spec: &Fingerprint, part: &Digest) -> Option<HashSet<Digest>> {
    let rows = decode_part(layout, spec, part, index::presence).ok()?;
    Some(rows.iter().map(|row| row.pack).collect())
}

/// Whether a part in the folder can be read, and no pack that it names is in the folder.
fn names_none_here(layout: &Layout, (spec, part): &Named) -> Result<bool, Error> {
    let Some(packs) = packs_named(layout, spec, part) else {
        return Ok(false);
    };
    for pack in packs {
        if disk::is_there(&*layout.disk, &layout.pack(&pack))? {
            return Ok(false);
        }
    }
    Ok(true)
}

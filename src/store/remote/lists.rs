//! What is known of the index parts of a store on object storage, and which of them need not be read: whoever merges parts puts a list of the
//! new ones, which names the old ones. These stay until `gc` removes them, so that merging takes nothing away from anybody.
//!
//! A list is put after the parts that it tells of, under the digest of its bytes, and says of others only that these have all of their rows. So
//! one that is lost or comes late only makes rows be read twice.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::names::{self, Contents};
use super::{Remote, as_named, each, is_digest, problem_of};
use crate::digest::{Digest, Fingerprint, canonical_json};
use crate::store::parts::Listed;
use crate::store::{Error, Problem, layout};

/// The largest list.
const LIMIT_BYTES: u64 = 1 << 30;

pub(super) const MEND: &str = "remove the object: it is derived from the parts";

/// A part of a spec, or a list of these.
pub(super) type Named = (Fingerprint, Digest);

/// What is known of some parts of a spec.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct List {
    version: u64,
    /// Of each what is known; nothing of one that is small.
    pub(super) parts: BTreeMap<Digest, Option<Listed>>,
    /// Parts of which these have all rows.
    pub(super) merged: BTreeSet<Digest>,
}

impl List {
    pub(super) fn new(parts: BTreeMap<Digest, Option<Listed>>, merged: BTreeSet<Digest>) -> Self {
        Self {
            version: layout::FORMAT_VERSION,
            parts,
            merged,
        }
    }
}

/// Lists by their names, read and compared.
pub(super) type Lists = BTreeMap<Named, Arc<List>>;

/// A part that is to be read.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) bytes: u64,
    pub(super) known: Option<Listed>,
}

/// A part of which others have all rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merged {
    /// Says so.
    pub(super) list: Digest,
    /// Whether it is still there.
    pub(super) is_there: bool,
}

/// The index parts that there are.
#[derive(Debug, Default)]
pub(super) struct IndexThere {
    /// Those that have all rows of the index.
    pub(super) live: BTreeMap<Named, Live>,
    /// Parts of which others have all rows.
    pub(super) merged: BTreeMap<Named, Merged>,
    pub(super) lists: Lists,
}

impl IndexThere {
    /// Of the parts of `contents` but those in `bad`.
    pub(super) fn new(contents: &Contents, lists: Lists, bad: &HashSet<Named>) -> Self {
        let there = contents
            .parts
            .iter()
            .filter(|(part, _)| !bad.contains(part));
        let mut index = Self {
            live: there
                .map(|(part, object)| {
                    let bytes = object.bytes;
                    (*part, Live { bytes, known: None })
                })
                .collect(),
            merged: BTreeMap::new(),
            lists,
        };
        index.take_lists();
        index
    }

    /// Goes through the lists until none says anything new: of two, the one may name what the other merged.
    fn take_lists(&mut self) {
        let lists: Vec<(Named, Arc<List>)> = (self.lists.iter())
            .map(|(id, list)| (*id, list.clone()))
            .collect();
        for ((spec, _), list) in &lists {
            for (part, known) in &list.parts {
                let live = self.live.get_mut(&(*spec, *part));
                let known = known.clone().filter(|known| !known.is_absurd());
                if let (Some(live), Some(known)) = (live, known)
                    && live.known.is_none()
                    && known.bytes == live.bytes
                    && known.is_of(part)
                {
                    live.known = Some(known);
                }
            }
        }
        let mut waiting = lists;
        loop {
            let before = waiting.len();
            waiting.retain(|((spec, id), list)| !self.take(spec, id, list));
            if waiting.len() == before {
                return;
            }
        }
    }

    /// Takes note of what a list says is merged, if its parts are there, or what they were merged into is; says whether they are.
    fn take(&mut self, spec: &Fingerprint, id: &Digest, list: &List) -> bool {
        let Some(leaves) = self.leaves(spec, list.parts.keys()) else {
            return false;
        };
        // Lists that name each other in a circle: each part of it is one of the last.
        if list
            .merged
            .iter()
            .any(|part| !list.parts.contains_key(part) && leaves.contains(part))
        {
            return false;
        }
        for part in list.merged.iter().filter(|p| !list.parts.contains_key(p)) {
            let part = (*spec, *part);
            let is_there = self.live.remove(&part).is_some();
            let merged = Merged {
                list: *id,
                is_there,
            };
            self.merged.entry(part).or_insert(merged);
        }
        true
    }

    /// The parts to be read that have all rows of some; None where one of these is not there.
    pub(super) fn leaves<'a>(
        &self,
        spec: &Fingerprint,
        parts: impl Iterator<Item = &'a Digest>,
    ) -> Option<HashSet<Digest>> {
        let mut waiting: Vec<Digest> = parts.copied().collect();
        let mut seen: HashSet<Digest> = waiting.iter().copied().collect();
        let mut leaves = HashSet::new();
        while let Some(part) = waiting.pop() {
            let part = (*spec, part);
            if self.live.contains_key(&part) {
                leaves.insert(part.1);
                continue;
            }
            let list = self.lists.get(&(*spec, self.merged.get(&part)?.list))?;
            waiting.extend(list.parts.keys().filter(|p| seen.insert(**p)));
        }
        Some(leaves)
    }

    /// Whether all rows of a part are there.
    pub(super) fn has(&self, part: &Named) -> bool {
        self.live.contains_key(part) || self.merged.contains_key(part)
    }

    /// Whether a part is among the objects.
    pub(super) fn is_there(&self, part: &Named) -> bool {
        self.live.contains_key(part) || self.merged.get(part).is_some_and(|m| m.is_there)
    }

    pub(super) fn specs(&self) -> BTreeSet<Fingerprint> {
        self.live.keys().map(|(spec, _)| *spec).collect()
    }
}

impl Remote {
    /// The lists there are, of which `known` need not be read again. One that cannot be used is a problem, or is passed over where it
    /// is gone.
    pub(super) fn lists(
        &self,
        contents: &Contents,
        known: &Lists,
        problems: &mut Vec<Problem>,
    ) -> Result<Lists, Error> {
        let all: Vec<Named> = contents.lists.keys().copied().collect();
        let read = each(&all, |id| {
            Ok(match known.get(id) {
                Some(list) => Ok(list.clone()),
                None => self.list(id).map(Arc::new),
            })
        })?;
        let mut lists = Lists::new();
        for (id, list) in all.into_iter().zip(read) {
            match list {
                Ok(list) => _ = lists.insert(id, list),
                Err(e) => problems.extend(problem_of(e, as_named, MEND)?),
            }
        }
        Ok(lists)
    }

    /// The index parts that are to be read, by what the lists say.
    pub(super) fn index_there(
        &self,
        contents: &Contents,
        problems: &mut Vec<Problem>,
    ) -> Result<IndexThere, Error> {
        let lists = self.lists(contents, &Lists::new(), problems)?;
        Ok(IndexThere::new(contents, lists, &HashSet::new()))
    }

    fn list(&self, (spec, id): &Named) -> Result<List, Error> {
        let name = names::part_list(spec, id);
        let bytes = self.checked(&name, LIMIT_BYTES, |bytes| is_digest(bytes, id))?;
        let path = self.shown(&name);
        let wrong =
            |why: String| Error::malformed(path.as_ref(), format!("no list of index parts: {why}"));
        let list: List = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        // Otherwise everything would be in nothing.
        if list.parts.is_empty() && !list.merged.is_empty() {
            return Err(wrong(
                "expected the parts that have the rows of the merged ones".to_owned(),
            ));
        }
        layout::check_version(path.as_ref(), list.version)?;
        Ok(list)
    }

    /// Puts a list, after the parts that it tells of.
    pub(super) fn put_list(&self, spec: &Fingerprint, list: &List) -> Result<Digest, Error> {
        let bytes = canonical_json(list);
        let digest = Digest::of(&bytes);
        self.client
            .put_new(&names::part_list(spec, &digest), &bytes.into())?;
        Ok(digest)
    }

    /// Puts an index part.
    pub(super) fn put_part(
        &self,
        spec: &Fingerprint,
        bytes: &bytes::Bytes,
    ) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        self.client.put_new(&names::part(spec, &digest), bytes)?;
        Ok(digest)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::store::remote::names::Object;

    fn part(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    /// Of parts there, and lists of what was merged into what.
    fn index(there: &[&str], lists: &[(&[&str], &[&str])], bad: &[&str]) -> IndexThere {
        let spec = Fingerprint::of_canonical(b"{}");
        let object = Object {
            bytes: 1,
            modified: SystemTime::UNIX_EPOCH,
        };
        let mut contents = Contents::default();
        for name in there {
            contents.parts.insert((spec, part(name)), object);
        }
        let mut all = Lists::new();
        for (from, into) in lists {
            let list = List::new(
                into.iter().map(|name| (part(name), None)).collect(),
                from.iter().map(|name| part(name)).collect(),
            );
            let id = Digest::of(&canonical_json(&list));
            all.insert((spec, id), list.into());
        }
        let bad = bad.iter().map(|name| (spec, part(name))).collect();
        IndexThere::new(&contents, all, &bad)
    }

    #[track_caller]
    fn assert_live(index: &IndexThere, expected: &[&str]) {
        let live: BTreeSet<Digest> = index.live.keys().map(|(_, part)| *part).collect();
        assert_eq!(live, expected.iter().map(|name| part(name)).collect());
    }

    #[test]
    fn what_was_merged_is_read_no_more_where_all_that_it_became_is_there() {
        let ab: (&[&str], &[&str]) = (&["a", "b"], &["x", "y"]);
        assert_live(
            &index(&["a", "b", "x", "y", "c"], &[ab], &[]),
            &["x", "y", "c"],
        );
        // A list that is older than what it names, or the other way round.
        assert_live(&index(&["a", "b", "x"], &[ab], &[]), &["a", "b", "x"]);
        assert_live(
            &index(&["a", "b", "x", "y"], &[ab], &["y"]),
            &["a", "b", "x"],
        );
        assert_live(&index(&["x", "y"], &[ab], &[]), &["x", "y"]);
        // Merged again, in whatever order the lists come, and with what was between gone.
        let chain: [(&[&str], &[&str]); 3] =
            [(&["a"], &["b"]), (&["b", "c"], &["d"]), (&["d"], &["e"])];
        for order in [
            [0, 1, 2],
            [2, 1, 0],
            [1, 2, 0],
            [0, 2, 1],
            [2, 0, 1],
            [1, 0, 2],
        ] {
            let lists = order.map(|at| chain[at]);
            assert_live(&index(&["a", "b", "c", "d", "e"], &lists, &[]), &["e"]);
            let few = index(&["a", "c", "e"], &lists, &[]);
            assert_live(&few, &["e"]);
            assert_eq!(few.merged.len(), 4);
            assert_live(&index(&["a", "b", "c"], &lists, &[]), &["b", "c"]);
        }
        // Two at once that saw other parts: what is in both is read twice, and nothing is lost.
        let both: [(&[&str], &[&str]); 2] = [(&["a", "b"], &["x"]), (&["a", "b", "c"], &["y"])];
        assert_live(&index(&["a", "b", "c", "x", "y"], &both, &[]), &["x", "y"]);
        assert_live(&index(&["a", "b", "c", "x"], &both, &[]), &["c", "x"]);
    }

    #[test]
    fn lists_that_name_each_other_hide_nothing() {
        let circle: [(&[&str], &[&str]); 2] = [(&["a"], &["b"]), (&["b"], &["a"])];
        for lists in [circle, [circle[1], circle[0]]] {
            assert_eq!(index(&["a", "b"], &lists, &[]).live.len(), 1);
        }
        assert_live(&index(&["a"], &[(&["a"], &["a"])], &[]), &["a"]);
        let long: [(&[&str], &[&str]); 3] =
            [(&["a"], &["b", "z"]), (&["b"], &["c"]), (&["c"], &["a"])];
        let found = index(&["a", "b", "c", "z"], &long, &[]);
        let spec = Fingerprint::of_canonical(b"{}");
        for name in ["a", "b", "c", "z"] {
            let leaves = found
                .leaves(&spec, [part(name)].iter())
                .expect("read somewhere");
            assert!(!leaves.is_empty());
        }
    }
}

//! What of the folder before a store on object storage was over there at the last look: `seen.json`. So what was given up there since is told from
//! what is still to be pushed. Without it, as after a second process at work in the folder has written its own, more is pushed than need be.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::{Deserialize, Serialize};

use super::lists::{IndexThere, Named};
use crate::digest::{Digest, Fingerprint, canonical_json};
use crate::store::Error;
use crate::store::disk::{self, write_once};
use crate::store::layout::{FORMAT_VERSION, Layout};

const FILE: &str = "seen.json";
/// Of a million parts.
const LIMIT_BYTES: u64 = 128 << 20;

#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    version: u64,
    parts: BTreeMap<Fingerprint, BTreeSet<Digest>>,
}

fn try_read(layout: &Layout) -> Option<Seen> {
    let path = layout.root.join(FILE);
    let bytes = disk::read_bounded(&*layout.disk, &path, LIMIT_BYTES).ok()?;
    let seen: Seen = serde_json::from_slice(&bytes).ok()?;
    (seen.version == FORMAT_VERSION).then_some(seen)
}

/// The index parts of the folder that were over there; none where that is not known.
pub(super) fn read(layout: &Layout) -> HashSet<Named> {
    let seen = try_read(layout).into_iter().flat_map(|seen| seen.parts);
    seen.flat_map(|(spec, parts)| parts.into_iter().map(move |part| (spec, part)))
        .collect()
}

/// Writes down which of the folder's index parts are over there.
pub(super) fn write(layout: &Layout, index: &IndexThere) -> Result<(), Error> {
    let mut parts: BTreeMap<Fingerprint, BTreeSet<Digest>> = BTreeMap::new();
    for spec in layout.indexed_specs()? {
        let here = layout.index_parts(&spec)?.into_iter();
        let there = here.filter(|(part, _)| index.has(&(spec, *part)));
        let there: BTreeSet<Digest> = there.map(|(part, _)| part).collect();
        if !there.is_empty() {
            parts.insert(spec, there);
        }
    }
    let seen = Seen {
        version: FORMAT_VERSION,
        parts,
    };
    if try_read(layout).as_ref() != Some(&seen) {
        write_once(&*layout.disk, &layout.root, FILE, &[&canonical_json(&seen)])?;
    }
    Ok(())
}

//! `parts.json` of a spec: what is known of its large index parts, so that a reader need not read them whole. Derived from the parts, and
//! never needed: of a part that it lacks everything is read, and what it says is compared with the part's digest where it matters.
//!
//! It is replaced as a whole by whoever wrote parts. Of two at once the later one stands, and may lack what the other knew.

use std::collections::{BTreeMap, HashSet};

use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use serde::{Deserialize, Serialize};

use super::check::UNREADABLE;
use super::columns::KEY_SORTED;
use super::disk::{self, write_once};
use super::index::{self, PART_LIMIT_BYTES, ROWS_LIMIT};
use super::layout::{self, Layout};
use super::ranged::{RangedPart, group_range};
use super::tree::Tree;
use super::{Error, Problem, snapshot};
use crate::digest::{Digest, Fingerprint, canonical_json};
use crate::shown;

/// Of a billion rows of 400 bytes it takes a third of that.
const LIMIT_BYTES: u64 = 1 << 30;

/// The parts of a spec of which something is known.
pub(super) type PartList = BTreeMap<Digest, Listed>;

/// What is known of an index part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listed {
    /// Of its file.
    pub(super) bytes: u64,
    pub(super) rows: u64,
    /// How many rows were sorted together and cut into this part and others.
    pub(super) sorted_rows: u64,
    /// The lowest entry.
    pub(super) first: Fingerprint,
    /// The highest entry.
    pub(super) last: Fingerprint,
    /// The values of its pieces.
    pieces: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u64,
    parts: PartList,
    /// Of the canonical form of the other members.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
}

impl Listed {
    /// Of a part whose bytes were compared with its digest; None of one that is small or whose entries are not sorted.
    pub(super) fn of(bytes: &bytes::Bytes, spec: &Fingerprint) -> Option<Self> {
        let tree = Tree::of(bytes)?;
        let described = super::contain(|| {
            let options = ArrowReaderOptions::default();
            let metadata = ArrowReaderMetadata::load(bytes, options).map_err(|e| e.to_string())?;
            index::check_file(&metadata, spec)?;
            Ok(metadata)
        });
        let metadata = described.ok()?;
        let file = metadata.metadata();
        let facts = file.file_metadata().key_value_metadata()?;
        let sorted = facts.iter().find(|fact| fact.key == KEY_SORTED)?;
        let mut ranges = file.row_groups().iter().map(group_range);
        let (mut first, mut last) = ranges.next()??;
        for range in ranges {
            let (low, high) = range?;
            (first, last) = (first.min(low), last.max(high));
        }
        let rows = u64::try_from(file.file_metadata().num_rows()).ok()?;
        Some(Self {
            bytes: tree.bytes(),
            rows,
            sorted_rows: sorted.value.as_deref()?.parse().ok()?,
            first,
            last,
            pieces: tree.to_text(),
        })
    }

    /// Opens the part, if what is known of it is of a part with this digest.
    pub(super) fn open(
        &self,
        layout: &Layout,
        spec: &Fingerprint,
        part: &Digest,
    ) -> Result<Option<RangedPart>, Error> {
        let opened = self.tree(part);
        opened
            .map(|tree| RangedPart::open(layout, spec, part, tree))
            .transpose()
    }

    /// Whether it is of a part with this digest, as far as the values of its pieces go.
    pub(super) fn is_of(&self, part: &Digest) -> bool {
        self.tree(part).is_some()
    }

    fn tree(&self, part: &Digest) -> Option<Tree> {
        let known = Some(self.bytes).filter(|&bytes| bytes <= PART_LIMIT_BYTES);
        known.and_then(|bytes| Tree::parse(&self.pieces, bytes, part))
    }

    /// Numbers that no part has.
    pub(super) fn is_absurd(&self) -> bool {
        let rows = 1..=ROWS_LIMIT as u64;
        !rows.contains(&self.rows) || self.sorted_rows < self.rows || self.first > self.last
    }
}

/// The list of a spec; empty where there is none, or none that can be used.
pub(super) fn read(layout: &Layout, spec: &Fingerprint) -> PartList {
    try_read(layout, spec).unwrap_or_default()
}

/// As [`read`], where one that cannot be used is an error.
pub(super) fn try_read(layout: &Layout, spec: &Fingerprint) -> Result<PartList, Error> {
    let path = layout.part_list(spec);
    let bytes = match disk::read_bounded(&*layout.disk, &path, LIMIT_BYTES) {
        Err(e) if e.is_gone() => return Ok(PartList::new()),
        other => other?,
    };
    let wrong = |why: String| Error::malformed(&path, format!("no list of parts: {why}"));
    let mut file: File = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
    let expected = file.digest.take();
    if expected != Some(Digest::of(&canonical_json(&file))) {
        return Err(wrong(
            "its members do not have the digest that it says itself".to_owned(),
        ));
    }
    layout::check_version(&path, file.version)?;
    file.parts.retain(|_, listed| !listed.is_absurd());
    Ok(file.parts)
}

/// Makes the list of a spec that of the parts there are: `new` ones, and those that it had and that are still there.
pub(super) fn update(layout: &Layout, spec: &Fingerprint, new: PartList) -> Result<(), Error> {
    if new.is_empty() {
        return Ok(());
    }
    let here: HashSet<Digest> = layout
        .index_parts(spec)?
        .into_iter()
        .map(|(part, _)| part)
        .collect();
    let mut parts = read(layout, spec);
    parts.retain(|part, _| here.contains(part));
    parts.extend(new);
    let mut file = File {
        version: layout::FORMAT_VERSION,
        parts,
        digest: None,
    };
    file.digest = Some(Digest::of(&canonical_json(&file)));
    let bytes = canonical_json(&file);
    write_once(
        &*layout.disk,
        &layout.index_of(spec),
        layout::PART_LIST,
        &[&bytes],
    )
}

/// Adds parts that came from elsewhere to the lists of their specs, as far as they are of the kind.
pub(super) fn know(
    layout: &Layout,
    came: impl Iterator<Item = (Fingerprint, Digest)>,
) -> Result<(), Error> {
    let mut by_spec: BTreeMap<Fingerprint, Vec<Digest>> = BTreeMap::new();
    for (spec, part) in came {
        by_spec.entry(spec).or_default().push(part);
    }
    for (spec, parts) in by_spec {
        update(layout, &spec, describe(layout, &spec, parts.into_iter()))?;
    }
    Ok(())
}

/// What is wrong with the list of a spec, if anything.
pub(super) fn check(layout: &Layout, spec: &Fingerprint) -> Option<Problem> {
    let problem =
        |what: String, mend: &str| Problem::of(layout, &layout.part_list(spec), what, mend);
    let told = |what: String| {
        let mend = "remove the file: it is derived from the parts, and made anew when it is of use";
        problem(what, mend)
    };
    let list = match try_read(layout, spec) {
        Ok(list) => list,
        Err(e) if e.is_content() => return Some(told(e.to_string())),
        Err(e) => return Some(problem(e.to_string(), UNREADABLE)),
    };
    let found = describe(layout, spec, list.keys().copied());
    // Of one that is gone or damaged the list may say what it was.
    let wrong = found
        .iter()
        .filter(|(part, found)| list.get(*part) != Some(*found));
    let wrong = wrong.count();
    (wrong > 0).then(|| {
        told(format!(
            "says otherwise of {} than is there",
            shown::counted(wrong, "index part")
        ))
    })
}

/// Reads the parts `unknown` whole; gives what is to be known of those that are sorted.
pub(super) fn describe(
    layout: &Layout,
    spec: &Fingerprint,
    unknown: impl Iterator<Item = Digest>,
) -> PartList {
    let mut found = PartList::new();
    for part in unknown {
        // One that cannot be read is told of by whoever needs it.
        let bytes = snapshot::read_part(layout, spec, &part);
        let listed = bytes.ok().and_then(|bytes| Listed::of(&bytes, spec));
        found.extend(listed.map(|listed| (part, listed)));
    }
    found
}

//! Loading the index: all of it, or what it says of some entries or of a range of them. Of the large parts that `parts.json` tells of, only
//! those row groups are read that may have one of these.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU8;
use std::sync::{Arc, OnceLock};

use parquet::arrow::arrow_reader::RowSelection;
use rayon::prelude::{IntoParallelRefIterator as _, ParallelIterator as _};

use super::entry_range::EntryRange;
use super::kept::{KeptParts, PartId, RowsId};
use super::layout::Layout;
use super::parts::{self, Listed, PartList};
use super::presence::EntryRows;
use super::ranged::RangedPart;
use super::snapshot::{EntryLocation, IndexPart, Pack, ReadState, Snapshot, Source, decode_part};
use super::{Error, disk, index};
use crate::digest::{Digest, Fingerprint};
use crate::shown;

/// How often the index is listed again because a cleaner removed parts meanwhile.
const LOAD_TRIES: usize = 8;
/// How many index parts are decoded before what stays of them is put away.
const PARTS_AT_ONCE: usize = 64;

/// Which entries are looked for.
pub(super) enum Scope {
    All,
    /// All of these specs.
    Specs(Vec<Fingerprint>),
    /// Those listed, by spec, sorted.
    Entries(BTreeMap<Fingerprint, Vec<Fingerprint>>),
    /// Those of these specs that are in a range.
    Range(Vec<Fingerprint>, EntryRange),
}

/// Which entries of a spec are looked for.
#[derive(Clone, Copy)]
pub(super) enum Wanted<'a> {
    All,
    /// Sorted.
    Listed(&'a [Fingerprint]),
    Range(EntryRange),
}

impl Wanted<'_> {
    /// Those that are neither below nor above some fingerprints; `None` where none is.
    fn within(self, (first, last): (Fingerprint, Fingerprint)) -> Option<Self> {
        match self {
            Self::All => Some(self),
            Self::Listed(entries) => {
                let some = EntryRange { first, last }.within(entries);
                (!some.is_empty()).then_some(Self::Listed(some))
            }
            Self::Range(range) => range.touches((first, last)).then_some(self),
        }
    }

    fn has(self, entry: &Fingerprint) -> bool {
        match self {
            Self::All => true,
            Self::Listed(entries) => entries.binary_search(entry).is_ok(),
            Self::Range(range) => range.has(entry),
        }
    }
}

impl Scope {
    /// Of entries given as (spec, entry).
    pub(super) fn entries(entries: &[(Fingerprint, Fingerprint)]) -> Self {
        let mut by_spec: BTreeMap<Fingerprint, Vec<Fingerprint>> = BTreeMap::new();
        for (spec, entry) in entries {
            by_spec.entry(*spec).or_default().push(*entry);
        }
        for wanted in by_spec.values_mut() {
            wanted.sort_unstable();
            wanted.dedup();
        }
        Self::Entries(by_spec)
    }

    fn specs(&self, layout: &Layout) -> Result<Vec<Fingerprint>, Error> {
        match self {
            Self::All => layout.indexed_specs(),
            Self::Specs(specs) | Self::Range(specs, _) => Ok(specs.clone()),
            Self::Entries(wanted) => Ok(wanted.keys().copied().collect()),
        }
    }

    /// Whether an index part may have something of it.
    pub(super) fn touches(&self, spec: &Fingerprint, part: &Listed) -> bool {
        let wanted = self.wanted(spec).within((part.first, part.last));
        wanted.is_some()
    }

    /// What is looked for of a spec.
    fn wanted(&self, spec: &Fingerprint) -> Wanted<'_> {
        match self {
            Self::All => Wanted::All,
            Self::Entries(wanted) => Wanted::Listed(wanted.get(spec).map_or(&[], Vec::as_slice)),
            Self::Specs(specs) | Self::Range(specs, _) if !specs.contains(spec) => {
                Wanted::Listed(&[])
            }
            Self::Specs(_) => Wanted::All,
            Self::Range(_, range) => Wanted::Range(*range),
        }
    }
}

/// An index part that is to be loaded, and what is known of it.
pub(super) type ListedPart<'a> = (Fingerprint, Digest, Option<&'a Listed>);

/// Rows, and where they are.
type Loaded = Vec<(Source, Vec<EntryRows>)>;

/// A snapshot that is being loaded: where each candidate's last payload ends in its pack is known beside, until the packs are.
#[derive(Default)]
struct Loading {
    snapshot: Snapshot,
    ends: BTreeMap<Fingerprint, Vec<u32>>,
    pack_numbers: HashMap<Digest, u32>,
}

impl Snapshot {
    /// Loads the index as far as `scope` goes. What is `kept` of it is not read again.
    pub(super) fn load(
        layout: &Layout,
        scope: &Scope,
        kept: Option<&KeptParts>,
    ) -> Result<Self, Error> {
        // Parts first, packs after them: a pack is on disk before a row names it, so every row read
        // finds its pack in the later list.
        for _ in 0..LOAD_TRIES {
            if let Some(mirror) = &layout.mirror {
                mirror.bring(layout, &|spec, _, known| scope.touches(spec, known))?;
            }
            let specs = scope.specs(layout)?;
            let lists: Vec<Arc<PartList>> = specs
                .iter()
                .map(|spec| match (scope.wanted(spec), kept) {
                    (Wanted::All, _) => Arc::default(),
                    (_, Some(kept)) => kept.list(layout, spec),
                    (_, None) => Arc::new(parts::read(layout, spec)),
                })
                .collect();
            let mut listed: Vec<ListedPart<'_>> = Vec::new();
            for (spec, known) in specs.iter().zip(&lists) {
                let here = layout.index_parts(spec)?.into_iter();
                listed.extend(here.map(|(part, _)| (*spec, part, known.get(&part))));
            }
            if let Some(kept) = kept {
                kept.forget_others(&specs, &listed);
            }
            let mut loading = Loading::default();
            // Some at a time: what is decoded takes more room than what stays of it.
            for some in listed.chunks(PARTS_AT_ONCE) {
                let loaded: Vec<Result<Loaded, Error>> = some
                    .par_iter()
                    .map(|part| load_part(layout, part, scope.wanted(&part.0), kept))
                    .collect();
                for ((spec, part, _), loaded) in some.iter().zip(loaded) {
                    loading.take(layout, (spec, part), loaded);
                }
            }
            let snapshot = loading.finish(layout, scope)?;
            // A cleaner removes parts before packs: when all parts are still there, so were their packs.
            let mut is_stable = true;
            for (spec, part, _) in &listed {
                is_stable &= disk::is_there(&*layout.disk, &layout.index_part(spec, part))?;
            }
            if is_stable {
                return Ok(snapshot);
            }
        }
        Err(Error::Busy {
            path: layout.root.clone(),
            holder: "its index keeps changing".to_owned(),
        })
    }
}

impl Loading {
    /// Takes what was loaded of a part.
    fn take(
        &mut self,
        layout: &Layout,
        (spec, part): (&Fingerprint, &Digest),
        loaded: Result<Loaded, Error>,
    ) {
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(e) => {
                let path = layout.index_part(spec, part);
                return self.snapshot.problem(layout, &path, &e);
            }
        };
        let table = self.snapshot.tables.entry(*spec).or_default();
        let ends = self.ends.entry(*spec).or_default();
        for (source, found) in loaded {
            let part = table.parts.len() as u32;
            table.parts.push(IndexPart {
                source,
                payloads: OnceLock::new(),
            });
            for rows in found {
                let packs = &mut self.snapshot.packs;
                let pack = *self.pack_numbers.entry(rows.pack).or_insert_with(|| {
                    packs.push(Pack {
                        digest: rows.pack,
                        state: OnceLock::new(),
                    });
                    packs.len() as u32 - 1
                });
                // No pack is so long that it does not fit.
                ends.push(u32::try_from(rows.end).unwrap_or(u32::MAX));
                table.candidates.push(EntryLocation {
                    entry: rows.entry,
                    part,
                    row: rows.row,
                    pack,
                    rows: rows.rows as u16,
                    state: AtomicU8::new(ReadState::Unread as u8),
                });
            }
        }
    }

    /// Leaves out what is in a pack that is missing or too short: it is as good as not there.
    fn finish(mut self, layout: &Layout, scope: &Scope) -> Result<Snapshot, Error> {
        let named: Vec<Digest> = self.snapshot.packs.iter().map(|p| p.digest).collect();
        let readable = match scope {
            Scope::Entries(_) | Scope::Range(..) => layout.readable_of(&named)?,
            Scope::All | Scope::Specs(_) => layout.readable_packs(&named)?,
        };
        let packs = self.snapshot.packs.iter();
        let bytes: Vec<Option<u64>> = packs.map(|p| readable.get(&p.digest).copied()).collect();
        // Told by pack: a lost one is one problem, not thousands.
        let mut lost: BTreeMap<Digest, usize> = BTreeMap::new();
        for (spec, table) in &mut self.snapshot.tables {
            let mut ends = self.ends.remove(spec).unwrap_or_default().into_iter();
            table.candidates.retain(|candidate| {
                let pack = candidate.pack as usize;
                let end = u64::from(ends.next().unwrap_or(u32::MAX));
                let is_there = bytes[pack].is_some_and(|bytes| bytes >= end);
                if !is_there {
                    *lost.entry(self.snapshot.packs[pack].digest).or_default() += 1;
                }
                is_there
            });
            table.seal();
        }
        // Of a store on object storage somebody may have removed what nothing used: its entries are not there, no more.
        lost.retain(|_, _| layout.mirror.is_none());
        for (pack, entries) in lost {
            let path = layout.pack(&pack);
            let lost = shown::counted(entries, "entry");
            let why = format!("missing or shorter than the index says, {lost} lost");
            let lost = Error::malformed(&path, why);
            self.snapshot.problem(layout, &path, &lost);
        }
        Ok(self.snapshot)
    }
}

/// Loads what of a part is wanted.
fn load_part(
    layout: &Layout,
    (spec, part, known): &ListedPart<'_>,
    wanted: Wanted<'_>,
    kept: Option<&KeptParts>,
) -> Result<Loaded, Error> {
    let id = (*spec, *part);
    if let Some(known) = known {
        let Some(some) = wanted.within((known.first, known.last)) else {
            return Ok(Loaded::new());
        };
        let open = || known.open(layout, spec, part);
        let opened = match kept {
            Some(kept) => kept.opened(id, open)?,
            None => open()?.map(Arc::new),
        };
        if let Some(opened) = opened {
            return load_groups(id, &opened, some, kept);
        }
    }
    let read = || decode_part(layout, spec, part, index::presence);
    let rows = rows_of((id, None), wanted, kept, read)?;
    Ok(vec![(Source::Whole(*part), rows)])
}

/// Loads the row groups that may have some of `wanted`, and of them what is wanted.
fn load_groups(
    id: PartId,
    part: &Arc<RangedPart>,
    wanted: Wanted<'_>,
    kept: Option<&KeptParts>,
) -> Result<Loaded, Error> {
    let mut loaded = Loaded::new();
    for group in 0..part.num_groups() {
        // One that does not tell may have anything.
        let some = match part.range(group) {
            None => Some(wanted),
            Some(range) => wanted.within(range),
        };
        let Some(some) = some else {
            continue;
        };
        let read = || part.decode(group, None, index::presence);
        let mut rows = rows_of((id, Some(group)), some, kept, read)?;
        let places = rows
            .iter()
            .map(|row| row.row as usize..(row.row + row.rows) as usize);
        let total = part.num_rows(group);
        if places
            .clone()
            .next_back()
            .is_some_and(|last| last.end > total)
        {
            let why = format!("row group {group} has more rows than the {total} that it says");
            return Err(Error::malformed(part.path(), why));
        }
        let keep = RowSelection::from_consecutive_ranges(places, total);
        // From now on they are counted among those that are selected.
        let mut next = 0;
        for row in &mut rows {
            row.row = next;
            next += row.rows;
        }
        if !rows.is_empty() {
            let part = part.clone();
            loaded.push((Source::Group { part, group, keep }, rows));
        }
    }
    Ok(loaded)
}

/// What is wanted of a part or row group, in the order of its rows.
fn rows_of(
    id: RowsId,
    wanted: Wanted<'_>,
    kept: Option<&KeptParts>,
    read: impl FnOnce() -> Result<Vec<EntryRows>, Error>,
) -> Result<Vec<EntryRows>, Error> {
    if let (Some(kept), Wanted::Listed(entries)) = (kept, wanted) {
        return kept.rows(id, entries, read);
    }
    let mut rows = read()?;
    rows.retain(|row| wanted.has(&row.entry));
    rows.shrink_to_fit();
    Ok(rows)
}

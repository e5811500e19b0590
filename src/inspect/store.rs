//! What a store holds and who uses it: each spec in words, the runs that share its entries, and what no run uses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use super::Error;
use super::entry::{RunUse, run_use};
use super::spec_title::{self, spec_title};
use crate::cache;
use crate::digest::Fingerprint;
use crate::monitor::Monitor;
use crate::recipe::Diff;
use crate::recipe::spec::spelled_out;
use crate::store::{CheckReport, EntryRange, RunLists, Store, StoreReader, StoreStats};

/// What a store holds and who uses it.
#[derive(Debug, Serialize)]
pub struct StoreReport {
    /// Its folder.
    pub path: PathBuf,
    /// Sizes and counts.
    pub stats: StoreStats,
    /// Its specs: those with most bytes first.
    pub specs: Vec<SpecReport>,
    /// The runs, by name.
    pub runs: Vec<RunReport>,
    /// Entries that no run uses.
    pub orphans: u64,
    /// The bytes of their payloads.
    pub orphan_bytes: u64,
    /// Entries that several runs use.
    pub shared: u64,
    /// Files of interrupted writes, and what was set aside as damaged.
    pub leftovers: Leftovers,
    /// What is wrong, a line each.
    pub problems: Vec<String>,
}

/// A spec of a store.
#[derive(Debug, Serialize)]
pub struct SpecReport {
    /// Its fingerprint.
    pub spec: Fingerprint,
    /// What it is, in a line.
    pub what: String,
    /// Its entries that can be used.
    pub entries: u64,
    /// The bytes of their payloads.
    pub bytes: u64,
    /// Of these entries, those that no run uses.
    pub orphans: u64,
    /// The bytes of their payloads.
    pub orphan_bytes: u64,
    /// The entries that several runs use.
    pub shared: u64,
    /// Entries whose caption was cut.
    pub truncated: u64,
    /// The runs that use some.
    pub runs: Vec<String>,
    /// The spec before it of the same weights that differs in the fewest fields.
    pub alike: Option<AlikeSpec>,
}

/// A spec of the same weights.
#[derive(Debug, Serialize)]
pub struct AlikeSpec {
    /// Its fingerprint.
    pub spec: Fingerprint,
    /// In which fields they differ: `wanted` is what this one has, `found` what the other has.
    pub diff: Diff,
}

/// A run of a store.
#[derive(Debug, Serialize)]
pub struct RunReport {
    /// Its name and Experiment.
    #[serde(flatten)]
    pub run: RunUse,
    /// Entries that it uses; `None` where its file cannot be understood.
    pub entries: Option<u64>,
    /// Of these, used by no other run.
    pub alone: u64,
    /// Of these, no longer in the store.
    pub missing: u64,
}

/// What lies in a store and is neither pack nor index.
#[derive(Debug, Serialize)]
pub struct Leftovers {
    /// Files that an interrupted write left.
    pub temporary_files: u64,
    /// Packs that were set aside as damaged.
    pub set_aside_packs: u64,
    /// Files that were set aside because they are not the spec in their name.
    pub set_aside_specs: u64,
    /// Entries in packs that no row names.
    pub unindexed_entries: u64,
}

/// That a run uses an entry: spec and run by their places.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    spec: u32,
    entry: Fingerprint,
    run: u32,
}

/// What is counted of a store, a range of fingerprints at a time.
struct Counting<'a> {
    store: &'a Store,
    /// Of the runs that can be understood, their places.
    lists: Vec<(u32, RunLists)>,
    specs: BTreeMap<Fingerprint, SpecReport>,
    /// Those that have a description, or an index that can be read.
    known: BTreeSet<Fingerprint>,
    runs: Vec<RunReport>,
    problems: Vec<String>,
}

/// The Experiments that the store's runs are of, as these call their files, each once. Runs that cannot be understood are left out.
///
/// # Errors
/// If the folder of runs cannot be read.
pub fn experiments(store: &Store) -> Result<Vec<PathBuf>, Error> {
    let runs = store.runs().map_err(cache::Error::from)?.into_iter();
    let known = runs.filter_map(|id| Some(run_use(id.clone(), &store.run(&id).ok()?.extra)));
    let files = known.filter_map(|run| run.experiment.map(PathBuf::from));
    Ok(files.collect::<BTreeSet<_>>().into_iter().collect())
}

/// What the store holds and who uses it. Only headers and the index are read.
///
/// # Errors
/// If the store cannot be read.
pub fn store(store: &Store, monitor: &dyn Monitor) -> Result<StoreReport, Error> {
    let fail = |e| Error::from(cache::Error::from(e));
    let check = store.check_structure(monitor).map_err(fail)?;
    let mut problems: Vec<String> = check.problems.iter().map(ToString::to_string).collect();
    let mut counting = Counting::begin(store)?;
    for range in store.ranges().map_err(fail)? {
        counting.add(range)?;
    }
    let stats = store.stats().map_err(fail)?;
    // Of no spec: only descriptions are read.
    let reader = store.reader_of(&[]).map_err(fail)?;
    let mut specs: Vec<SpecReport> = counting.specs.into_values().collect();
    specs.retain(|spec| counting.known.contains(&spec.spec));
    for spec in &mut specs {
        spec.what = spec_title(&spec_title::json(&reader, &spec.spec)?);
        let counted = stats.specs.get(&spec.spec.to_string());
        spec.truncated = counted.map_or(0, |s| s.truncated_entries);
    }
    specs.sort_by_key(|spec| std::cmp::Reverse(spec.bytes));
    find_alike(&reader, &mut specs)?;
    problems.extend(counting.problems);
    problems.sort();
    problems.dedup();
    Ok(StoreReport {
        path: store.shown().to_owned(),
        orphans: specs.iter().map(|spec| spec.orphans).sum(),
        orphan_bytes: specs.iter().map(|spec| spec.orphan_bytes).sum(),
        shared: specs.iter().map(|spec| spec.shared).sum(),
        specs,
        runs: counting.runs,
        stats,
        leftovers: leftovers(&check),
        problems,
    })
}

impl<'a> Counting<'a> {
    /// A run that cannot be understood is told.
    fn begin(store: &'a Store) -> Result<Self, Error> {
        let spec = |spec| SpecReport {
            spec,
            what: String::new(),
            entries: 0,
            bytes: 0,
            orphans: 0,
            orphan_bytes: 0,
            shared: 0,
            truncated: 0,
            runs: Vec::new(),
            alike: None,
        };
        let specs = store.specs().map_err(cache::Error::from)?.into_iter();
        let mut counting = Self {
            store,
            lists: Vec::new(),
            specs: specs.map(|id| (id, spec(id))).collect(),
            known: BTreeSet::new(),
            runs: Vec::new(),
            problems: Vec::new(),
        };
        let ids = store.runs().map_err(cache::Error::from)?;
        for (place, id) in (0..).zip(ids) {
            let (extra, entries) = match store.run_lists(&id) {
                Ok((run, lists)) => {
                    for spec in run.entries.keys() {
                        if let Some(spec) = counting.specs.get_mut(spec) {
                            spec.runs.push(id.clone());
                        }
                    }
                    let entries = lists.num_entries;
                    counting.lists.push((place, lists));
                    (run.extra, Some(entries))
                }
                Err(e) => {
                    counting.problems.push(e.to_string());
                    (Value::Null, None)
                }
            };
            counting.runs.push(RunReport {
                run: run_use(id, &extra),
                entries,
                alone: 0,
                missing: 0,
            });
        }
        Ok(counting)
    }

    /// Counts the entries of a range.
    fn add(&mut self, range: EntryRange) -> Result<(), Error> {
        let specs: Vec<Fingerprint> = self.specs.keys().copied().collect();
        let reader = self.store.reader_of_range(&specs, range);
        let reader = reader.map_err(cache::Error::from)?;
        let known = reader.specs().map_err(cache::Error::from)?;
        self.known.extend(known);
        let uses = self.uses(&reader, range);
        for used in uses.chunk_by(|a, b| (a.spec, a.entry) == (b.spec, b.entry)) {
            if let [one] = used {
                self.runs[one.run as usize].alone += 1;
            }
        }
        for (place, report) in (0u32..).zip(self.specs.values_mut()) {
            let entries = reader.entry_bytes(&report.spec);
            for (entry, bytes) in entries.map_err(cache::Error::from)? {
                report.entries += 1;
                report.bytes += bytes;
                let key = (place, entry);
                let start = uses.partition_point(|used| (used.spec, used.entry) < key);
                let users = uses[start..].iter();
                match users.take_while(|u| (u.spec, u.entry) == key).count() {
                    0 => {
                        report.orphans += 1;
                        report.orphan_bytes += bytes;
                    }
                    users => report.shared += u64::from(users > 1),
                }
            }
        }
        Ok(())
    }

    /// What runs use of a range, sorted. A run that cannot be understood any more is told.
    fn uses(&mut self, reader: &StoreReader, range: EntryRange) -> Vec<Use> {
        let mut places: BTreeMap<Fingerprint, u32> = self.specs.keys().copied().zip(0..).collect();
        let mut uses = Vec::new();
        for (run, lists) in &self.lists {
            let listed = match self.store.run_within(lists, range) {
                Ok(listed) => listed,
                Err(e) => {
                    self.problems.push(e.to_string());
                    continue;
                }
            };
            let report = &mut self.runs[*run as usize];
            for (spec, entries) in listed {
                // One that the store does not know comes behind those that it does.
                let next = places.len() as u32;
                let spec_place = *places.entry(spec).or_insert(next);
                for entry in entries {
                    report.missing += u64::from(!reader.contains(&spec, &entry));
                    uses.push(Use {
                        spec: spec_place,
                        entry,
                        run: *run,
                    });
                }
            }
        }
        uses.sort_unstable();
        uses
    }
}

/// Says of each spec in which fields it differs from one before it that has the same weights.
fn find_alike(reader: &StoreReader, specs: &mut [SpecReport]) -> Result<(), Error> {
    let json = specs
        .iter()
        .map(|spec| spec_title::json(reader, &spec.spec));
    let json: Vec<Value> = json.collect::<Result<_, _>>()?;
    let spelled: Vec<Value> = json.iter().map(spelled_out).collect();
    for place in 1..specs.len() {
        let weights = |of: usize| json[of].get("weights").filter(|w| !w.is_null());
        let alike = (0..place).filter(|&of| weights(of).is_some() && weights(of) == weights(place));
        let diffs = alike.map(|of| (of, Diff::between(&spelled[place], &spelled[of])));
        let nearest = diffs.min_by_key(|(_, diff)| diff.fields.len());
        specs[place].alike = nearest.map(|(of, diff)| AlikeSpec {
            spec: specs[of].spec,
            diff,
        });
    }
    Ok(())
}

fn leftovers(check: &CheckReport) -> Leftovers {
    Leftovers {
        temporary_files: check.temporary_files,
        set_aside_packs: check.set_aside_packs,
        set_aside_specs: check.set_aside_specs,
        unindexed_entries: check.unindexed_entries,
    }
}

//! What a run lists, read a range of fingerprints at a time. Where the index is larger than memory, maintenance compares it with the runs range by range,
//! and would otherwise read each run as a whole for each range.
//!
//! As `write_run` writes a run, each entry of a list takes 67 bytes of the file, sorted. Of each block of them the first, whole reading keeps where it begins
//! and the digest of its bytes, with which they are compared when they are read again. A run that is written otherwise is read as a whole each time, and so
//! is one that is another by now.

use std::collections::BTreeMap;
use std::ops::Range;

use super::entry_range::EntryRange;
use super::run::Run;
use super::{Error, Store, disk};
use crate::digest::{Digest, Fingerprint};

/// The bytes of an entry in a run's file: its digits, two quotes, and a comma or bracket.
const LISTED_BYTES: usize = 67;
/// Where the digits are among them.
const DIGITS: Range<usize> = 1..65;
/// Entries of a block.
const BLOCK: usize = 1024;

/// A run's entries by spec, sorted.
type Entries = BTreeMap<Fingerprint, Vec<Fingerprint>>;

/// Where the lists of a run are, which was read as a whole once.
#[derive(Clone, Debug)]
pub struct RunLists {
    /// The run's name.
    pub id: String,
    /// The digest of the file's bytes.
    pub(super) digest: Digest,
    /// How many entries it uses.
    pub num_entries: u64,
    file_bytes: u64,
    /// `None` of a file that is not written as `write_run` writes it.
    lists: Option<BTreeMap<Fingerprint, List>>,
}

/// Where the entries of a spec are.
#[derive(Clone, Debug)]
struct List {
    /// Of the first.
    offset: u64,
    entries: usize,
    blocks: Vec<Block>,
}

/// Entries that follow each other.
#[derive(Clone, Debug)]
struct Block {
    first: Fingerprint,
    /// Of their bytes.
    digest: Digest,
}

/// The bytes of a run's file, compared with how it should be written from the begin on.
struct Written<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Run {
    fn within(mut self, range: EntryRange) -> Entries {
        for list in self.entries.values_mut() {
            *list = range.within(list).to_vec();
        }
        self.entries
    }
}

impl RunLists {
    /// Of a run that was read from `bytes`.
    pub(super) fn of(run: &Run, bytes: &[u8]) -> Self {
        Self {
            id: run.id.clone(),
            digest: run.digest,
            num_entries: run.num_entries() as u64,
            file_bytes: bytes.len() as u64,
            lists: Written { bytes, at: 0 }.lists(&run.entries),
        }
    }
}

impl List {
    /// `entries`, whose bytes begin at an offset; `None` if these are others.
    fn of(entries: &[Fingerprint], bytes: &[u8], offset: usize) -> Option<Self> {
        let bytes = bytes.get(offset..)?.get(..entries.len() * LISTED_BYTES)?;
        (decode(bytes)? == entries).then_some(())?;
        let firsts = entries.iter().step_by(BLOCK);
        let blocks = firsts.zip(bytes.chunks(BLOCK * LISTED_BYTES));
        let blocks = blocks.map(|(first, bytes)| Block {
            first: *first,
            digest: Digest::of(bytes),
        });
        Some(Self {
            offset: offset as u64,
            entries: entries.len(),
            blocks: blocks.collect(),
        })
    }

    /// Of a file of which `read` gives so many bytes from an offset on, the entries of a range; `None` if these are not the bytes that were there.
    fn within(
        &self,
        range: EntryRange,
        read: impl FnOnce(u64, u64) -> Result<Option<Vec<u8>>, Error>,
    ) -> Result<Option<Vec<Fingerprint>>, Error> {
        let begins_before = |block: &Block| block.first < range.first;
        let first = self.blocks.partition_point(begins_before).saturating_sub(1);
        let end = self
            .blocks
            .partition_point(|block| block.first <= range.last);
        let Some(blocks) = self.blocks.get(first..end).filter(|some| !some.is_empty()) else {
            return Ok(Some(Vec::new()));
        };
        let (first, end) = (first * BLOCK, self.entries.min(end * BLOCK));
        let offset = self.offset + (first * LISTED_BYTES) as u64;
        let Some(bytes) = read(offset, ((end - first) * LISTED_BYTES) as u64)? else {
            return Ok(None);
        };
        let found = bytes.chunks(BLOCK * LISTED_BYTES).map(Digest::of);
        let found = found.eq(blocks.iter().map(|block| block.digest));
        let entries = found.then(|| decode(&bytes)).flatten();
        Ok(entries.map(|entries| range.within(&entries).to_vec()))
    }
}

impl Written<'_> {
    /// Passes `expected`, which must be next.
    fn pass(&mut self, expected: &str) -> Option<()> {
        let rest = self.bytes.get(self.at..)?;
        self.at += expected.len();
        rest.starts_with(expected.as_bytes()).then_some(())
    }

    /// Where the lists of `entries` are, if the file begins with its digest, which old ones lack, and these as they should be written.
    fn lists(mut self, entries: &Entries) -> Option<BTreeMap<Fingerprint, List>> {
        const DIGEST: &str = "{\"digest\":\"";
        match self.bytes.starts_with(DIGEST.as_bytes()) {
            true => {
                self.at = DIGEST.len() + 64;
                self.pass("\",")?;
            }
            false => self.pass("{")?,
        }
        self.pass("\"entries\":{")?;
        let mut lists = BTreeMap::new();
        for (spec, entries) in entries {
            if !lists.is_empty() {
                self.pass(",")?;
            }
            self.pass(&format!("\"{spec}\":["))?;
            lists.insert(*spec, List::of(entries, self.bytes, self.at)?);
            self.at += entries.len() * LISTED_BYTES;
            if entries.is_empty() {
                self.pass("]")?;
            }
        }
        Some(lists)
    }
}

/// Entries as a list has them.
fn decode(bytes: &[u8]) -> Option<Vec<Fingerprint>> {
    let entries = bytes.chunks(LISTED_BYTES).map(|listed| {
        let digits = str::from_utf8(listed.get(DIGITS)?).ok()?;
        digits.parse().ok()
    });
    entries.collect()
}

/// How many entries are not among `indexed`, which has those of their range by spec, sorted.
pub(super) fn num_missing(entries: &Entries, indexed: &Entries) -> u64 {
    let of_spec = |(spec, list): (&Fingerprint, &Vec<Fingerprint>)| {
        let all = indexed.get(spec).map_or(&[][..], Vec::as_slice);
        list.iter()
            .filter(|entry| all.binary_search(entry).is_err())
            .count() as u64
    };
    entries.iter().map(of_spec).sum()
}

/// All that some runs list, by spec, sorted, each once. One run at a time is in memory.
pub(super) fn roots(runs: impl Iterator<Item = Result<Entries, Error>>) -> Result<Entries, Error> {
    let mut roots: BTreeMap<Fingerprint, Roots> = BTreeMap::new();
    for run in runs {
        for (spec, listed) in run? {
            roots.entry(spec).or_default().add(&listed);
        }
    }
    let sorted = |(spec, roots): (Fingerprint, Roots)| (spec, roots.sorted());
    Ok(roots.into_iter().map(sorted).collect())
}

/// Entries that runs use. Most of them may be in several.
#[derive(Default)]
struct Roots {
    entries: Vec<Fingerprint>,
    /// How many there were when they were last sorted, each once.
    sorted: usize,
}

impl Roots {
    fn add(&mut self, entries: &[Fingerprint]) {
        self.entries.extend_from_slice(entries);
        // Twice as many as there were: so that many runs of the same entries take no more room than two, and many of different ones are not sorted
        // each time.
        if self.entries.len() > 2 * self.sorted {
            self.sort();
        }
    }

    fn sort(&mut self) {
        // Finds what is sorted already, as it comes from each run.
        self.entries.sort();
        self.entries.dedup();
        self.sorted = self.entries.len();
    }

    /// Sorted, each once.
    fn sorted(mut self) -> Vec<Fingerprint> {
        self.sort();
        self.entries
    }
}

impl Store {
    /// How many entries the runs in the folder list together, or a few more.
    pub(super) fn most_listed(&self) -> Result<u64, Error> {
        let files = self.layout.list(&self.layout.runs())?;
        let listed = files.iter().map(|file| file.bytes / LISTED_BYTES as u64);
        Ok(listed.sum())
    }

    /// The run called `id`, and where its lists are.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_lists(&self, id: &str) -> Result<(Run, RunLists), Error> {
        let (run, bytes) = self.run_and_bytes(id)?;
        let lists = RunLists::of(&run, &bytes);
        Ok((run, lists))
    }

    /// The entries of a range that a run uses now, by spec, sorted.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_within(&self, run: &RunLists, range: EntryRange) -> Result<Entries, Error> {
        match self.read_within(run, range)? {
            Some(found) => Ok(found),
            None => self.run(&run.id).map(|whole| whole.within(range)),
        }
    }

    /// The same of a run that is still what it was; `None` of one that is gone, or another by now.
    pub(super) fn same_run_within(&self, run: &RunLists, range: EntryRange) -> Option<Entries> {
        if let Some(found) = self.read_within(run, range).ok()? {
            return Some(found);
        }
        let whole = self.run(&run.id).ok()?;
        (whole.digest == run.digest).then(|| whole.within(range))
    }

    /// The entries of a range from the places of the lists; `None` where they are not known, or not there any more.
    fn read_within(&self, run: &RunLists, range: EntryRange) -> Result<Option<Entries>, Error> {
        let Some(lists) = &run.lists else {
            return Ok(None);
        };
        let mut entries = Entries::new();
        for (spec, list) in lists {
            let read = |offset, bytes| self.run_range(run, offset, bytes);
            let Some(found) = list.within(range, read)? else {
                return Ok(None);
            };
            entries.insert(*spec, found);
        }
        Ok(Some(entries))
    }

    /// Some bytes of a run's file; `None` if it is not as long as it was.
    fn run_range(&self, run: &RunLists, offset: u64, bytes: u64) -> Result<Option<Vec<u8>>, Error> {
        let path = self.layout.run(&run.id);
        match (disk::length(self.disk(), &path), &self.layout.mirror) {
            (Err(e), Some(mirror)) if e.is_gone() => {
                let range = offset..offset.saturating_add(bytes);
                let remote = mirror.remote();
                Ok(remote.run_range(&run.id, range, run.file_bytes))
            }
            (Err(e), _) => Err(e),
            (Ok(length), _) if length != run.file_bytes => Ok(None),
            _ => disk::read_range(self.disk(), &path, offset, bytes),
        }
    }

    /// The entries of a range that the run `id` uses, by spec, sorted. The first time it is read as a whole, and `lists` is set.
    pub(super) fn run_within_once_read(
        &self,
        id: &str,
        lists: &mut Option<RunLists>,
        range: EntryRange,
    ) -> Result<Entries, Error> {
        if let Some(lists) = lists {
            return self.run_within(lists, range);
        }
        let (run, found) = self.run_lists(id)?;
        *lists = Some(found);
        Ok(run.within(range))
    }
}

#[cfg(test)]
#[path = "run_lists_tests.rs"]
mod tests;

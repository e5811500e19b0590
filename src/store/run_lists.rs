//! What a run lists, read a range of fingerprints at a time. Where the index is larger than memory, maintenance compares it with the runs range by range,
//! and would otherwise read each run as a whole for each range.
//!
//! As `write_run` writes a run, each entry of a list takes 67 bytes of the file, sorted. A run that is written otherwise is read as a whole each time, and
//! so is one that is another by now. Nothing is taken on trust: what was read is compared with what the first, whole reading found there.

use std::collections::BTreeMap;

use super::entry_range::EntryRange;
use super::run::Run;
use super::{Error, Store, disk};
use crate::digest::{Digest, Fingerprint};

/// The bytes of an entry in a run's file: its digits, two quotes, and a comma or bracket.
const LISTED_BYTES: usize = 67;
/// How many entries lie between two of those that are remembered.
const MARKED: usize = 1024;

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
    /// Of the opening bracket.
    offset: u64,
    entries: usize,
    /// Each of which the number is a multiple of [`MARKED`].
    marks: Vec<Fingerprint>,
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
    /// Of a file of which `read` gives so many bytes from an offset on, the entries of a range; `None` if these are not the bytes that were there.
    fn within(
        &self,
        range: EntryRange,
        read: impl FnOnce(u64, u64) -> Result<Option<Vec<u8>>, Error>,
    ) -> Result<Option<Vec<Fingerprint>>, Error> {
        // From the mark before the range to the one behind it, both included: were there an entry more or less between them, one of them would be
        // elsewhere.
        let before = self.marks.partition_point(|mark| *mark < range.first);
        let first = before.saturating_sub(1) * MARKED;
        let behind = self.marks.partition_point(|mark| *mark <= range.last);
        let end = self.entries.min(behind * MARKED + 1);
        let offset = self.offset + (first * LISTED_BYTES) as u64;
        let read = read(offset, listed_bytes(end - first) as u64)?;
        let marks = self.marks.get(first / MARKED..end.div_ceil(MARKED));
        let is_same = |found: &Vec<Fingerprint>| {
            found.is_sorted() && marks.is_some_and(|marks| found.iter().step_by(MARKED).eq(marks))
        };
        let found = read.and_then(|bytes| decode(&bytes, first == 0, end == self.entries));
        let found = found.filter(is_same);
        Ok(found.map(|found| range.within(&found).to_vec()))
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
            self.pass(&format!("\"{spec}\":"))?;
            let offset = self.at;
            self.at += listed_bytes(entries.len());
            let found = decode(self.bytes.get(offset..self.at)?, true, true)?;
            (found == *entries).then_some(())?;
            let list = List {
                offset: offset as u64,
                entries: entries.len(),
                marks: entries.iter().step_by(MARKED).copied().collect(),
            };
            lists.insert(*spec, list);
        }
        Some(lists)
    }
}

/// How many bytes so many entries that follow each other take, with what is before and behind them.
fn listed_bytes(entries: usize) -> usize {
    (1 + entries * LISTED_BYTES).max("[]".len())
}

/// Entries that follow each other in a list, with what is before and behind them: its brackets, where they are the first or the last.
fn decode(bytes: &[u8], are_first: bool, are_last: bool) -> Option<Vec<Fingerprint>> {
    if bytes == b"[]" {
        return Some(Vec::new());
    }
    let (before, listed) = bytes.split_first()?;
    let is_whole = listed.len().is_multiple_of(LISTED_BYTES);
    (is_whole && *before == if are_first { b'[' } else { b',' }).then_some(())?;
    let mut found = Vec::with_capacity(listed.len() / LISTED_BYTES);
    let mut rest = listed.chunks(LISTED_BYTES).peekable();
    while let Some(listed) = rest.next() {
        let is_last = are_last && rest.peek().is_none();
        let behind: &[u8] = if is_last { b"\"]" } else { b"\"," };
        let digits = listed.strip_prefix(b"\"")?.strip_suffix(behind)?;
        found.push(str::from_utf8(digits).ok()?.parse().ok()?);
    }
    Some(found)
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
mod tests {
    use std::fs::{self, File};
    use std::io;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::{Value, json};

    use super::*;
    use crate::store::run::run_bytes;
    use crate::store::{Disk, Local};

    /// Counts the bytes that are read.
    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Disk for Counting {
        fn create_dir(&self, path: &Path) -> io::Result<()> {
            Local.create_dir(path)
        }
        fn write_new(&self, path: &Path, chunks: &[&[u8]]) -> io::Result<File> {
            Local.write_new(path, chunks)
        }
        fn sync_file(&self, file: &File, path: &Path) -> io::Result<()> {
            Local.sync_file(file, path)
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            Local.rename(from, to)
        }
        fn sync_dir(&self, path: &Path) -> io::Result<()> {
            Local.sync_dir(path)
        }
        fn remove(&self, path: &Path) -> io::Result<()> {
            Local.remove(path)
        }
        fn open_lock(&self, path: &Path) -> io::Result<File> {
            Local.open_lock(path)
        }
        fn read_at(
            &self,
            file: &File,
            path: &Path,
            offset: u64,
            buffer: &mut [u8],
        ) -> io::Result<usize> {
            let read = Local.read_at(file, path, offset, buffer)?;
            self.0.fetch_add(read, Ordering::Relaxed);
            Ok(read)
        }
    }

    struct World {
        _folder: tempfile::TempDir,
        disk: Arc<Counting>,
        store: Store,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let disk = Arc::new(Counting::default());
            let store = Store::at(folder.path(), disk.clone());
            fs::create_dir_all(store.layout.runs()).expect("a folder");
            Self {
                _folder: folder,
                disk,
                store,
            }
        }

        fn write(&self, bytes: &[u8]) {
            fs::write(self.store.layout.run("one"), bytes).expect("a run");
        }

        fn lists(&self) -> RunLists {
            self.store.run_lists("one").expect("a run").1
        }

        /// The entries of a range, and how many bytes were read.
        fn within(&self, lists: &RunLists, range: EntryRange) -> (Entries, usize) {
            let before = self.disk.0.load(Ordering::Relaxed);
            let found = self.store.run_within(lists, range).expect("the run");
            (found, self.disk.0.load(Ordering::Relaxed) - before)
        }
    }

    fn id(number: usize) -> Fingerprint {
        Fingerprint::of(&number)
    }

    /// So many entries of as many specs.
    fn entries(counts: &[usize]) -> Vec<(Fingerprint, Fingerprint)> {
        let specs = counts.iter().enumerate();
        let all = specs.flat_map(|(n, &count)| (0..count).map(move |m| (id(n), id(1_000_000 + m))));
        all.collect()
    }

    fn expected(all: &[(Fingerprint, Fingerprint)], range: EntryRange) -> Entries {
        let mut expected = Entries::new();
        for (spec, entry) in all {
            let list = expected.entry(*spec).or_default();
            list.extend(range.has(entry).then_some(*entry));
        }
        for list in expected.values_mut() {
            list.sort();
        }
        expected
    }

    fn some_ranges(all: &[(Fingerprint, Fingerprint)]) -> Vec<EntryRange> {
        let mut ranges: Vec<EntryRange> = EntryRange::for_rows(7, 1).collect();
        ranges.push(EntryRange::all());
        for (_, entry) in all.iter().step_by(97) {
            let (first, last) = (*entry, *entry);
            ranges.push(EntryRange { first, last });
        }
        ranges
    }

    /// The bytes of a run as `change` makes them of its members.
    fn changed(bytes: &[u8], change: impl FnOnce(&mut Value)) -> Value {
        let mut json = serde_json::from_slice(bytes).expect("JSON");
        change(&mut json);
        json
    }

    #[test]
    fn a_range_is_what_the_whole_run_has_of_it() {
        let world = World::new();
        for counts in [&[][..], &[1], &[1023, 1024], &[1025, 1, 5000]] {
            let all = entries(counts);
            let written = run_bytes("one", &all, json!({"entries": {}}));
            let old = changed(&written, |json| {
                json.as_object_mut().expect("members").remove("digest");
            });
            let unsorted = changed(&old.to_string().into_bytes(), |json| {
                let lists = json["entries"].as_object_mut().expect("lists");
                for list in lists.values_mut() {
                    list.as_array_mut().expect("a list").reverse();
                }
            });
            let spaced = serde_json::to_vec_pretty(&old).expect("JSON");
            let places = [written.clone(), old.to_string().into_bytes()];
            let none = [spaced, unsorted.to_string().into_bytes()];
            let each = places.iter().map(|b| (b, true));
            for (bytes, has_places) in each.chain(none.iter().map(|b| (b, false))) {
                world.write(bytes);
                let lists = world.lists();
                let is_plain = all.len() < 2 && !bytes.contains(&b' ');
                assert_eq!(lists.lists.is_some(), has_places || is_plain);
                assert_eq!(lists.num_entries, all.len() as u64);
                for range in some_ranges(&all) {
                    assert_eq!(world.within(&lists, range).0, expected(&all, range));
                }
            }
        }
    }

    #[test]
    fn little_of_a_run_is_read_for_a_range() {
        let world = World::new();
        let all = entries(&[100_000]);
        world.write(&run_bytes("one", &all, Value::Null));
        let lists = world.lists();
        let most = 2 * (MARKED + 100_000 / 50) * LISTED_BYTES;
        for range in EntryRange::for_rows(50, 1) {
            let (found, read) = world.within(&lists, range);
            assert_eq!(found, expected(&all, range));
            assert!(read < most, "{read}");
        }
    }

    #[test]
    fn a_run_that_is_another_by_now_is_read_as_it_is() {
        let world = World::new();
        let all = entries(&[3000, 1]);
        let others = [
            &all[1..],
            &all[..2999],
            &[all[0]],
            &entries(&[3001, 1])[1..],
        ];
        for other in others {
            world.write(&run_bytes("one", &all, Value::Null));
            let lists = world.lists();
            world.write(&run_bytes("one", other, Value::Null));
            for range in some_ranges(&all) {
                assert_eq!(world.within(&lists, range).0, expected(other, range));
            }
        }
        let lists = world.lists();
        fs::remove_file(world.store.layout.run("one")).expect("to remove it");
        let found = world.store.run_within(&lists, EntryRange::all());
        assert!(found.is_err_and(|e| e.is_gone()));
    }
}

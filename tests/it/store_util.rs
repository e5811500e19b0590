//! Small stores to test with, and disks that fail.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use plumb::digest::{Fingerprint, canonical_json};
use plumb::store::{
    Disk, ElementType, Error, Local, NewEntry, Record, Store, StoreReader, StoreWriter, TensorBytes,
};

/// A folder that goes when it is dropped; in memory where that can be had, for the many fsyncs.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a folder")
}

/// A spec that says which number it has.
pub(crate) fn spec(number: u32) -> (Fingerprint, Vec<u8>) {
    let json = canonical_json(&serde_json::json!({"number": number, "version": 1}));
    (
        Fingerprint::from_bytes(*blake3::hash(&json).as_bytes()),
        json,
    )
}

/// The entry that `spec` makes of `caption`: two parts of different types, with values that depend on both.
pub(crate) fn entry(spec: &Fingerprint, caption: &str) -> NewEntry {
    let key = serde_json::json!({"caption": caption, "spec": spec, "version": 1});
    let seed = blake3::hash(format!("{spec}{caption}").as_bytes());
    let value = |i: usize| f32::from(seed.as_bytes()[i % 32]) / 16.0 - 4.0 + i as f32;
    let rows = 3 + caption.len() % 5;
    let hidden: Vec<u8> = (0..rows * 4)
        .flat_map(|i| half::bf16::from_f32(value(i)).to_le_bytes())
        .collect();
    let pooled: Vec<f32> = (0..6).map(value).collect();
    NewEntry {
        entry: Fingerprint::of(&key),
        spec: *spec,
        source: caption.to_owned(),
        tokens: caption.bytes().map(u32::from).collect(),
        token_count: caption.len() as u32,
        truncated: caption.len() > 20,
        parts: vec![
            ("pooled".to_owned(), TensorBytes::from_f32(&[6], &pooled)),
            (
                "hidden".to_owned(),
                TensorBytes {
                    dtype: ElementType::Bf16,
                    shape: vec![rows, 4],
                    bytes: hidden,
                },
            ),
        ],
        key,
    }
}

/// Puts the entries of `captions` under spec `number` and commits.
pub(crate) fn add(store: &Store, number: u32, captions: &[&str]) -> Result<(), Error> {
    let mut writer = store.writer()?;
    put(&mut writer, number, captions)?;
    writer.commit().map(|_| ())
}

/// So many different captions.
pub(crate) fn captions(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| format!("caption {i}")).collect()
}

/// Adds these under spec 1.
pub(crate) fn add_all(store: &Store, range: std::ops::Range<usize>) {
    let captions = captions(range);
    let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
    add(store, 1, &captions).expect("added");
}

pub(crate) fn put(writer: &mut StoreWriter, number: u32, captions: &[&str]) -> Result<(), Error> {
    let (id, json) = spec(number);
    writer.put_spec(&id, &json)?;
    for caption in captions {
        writer.put(entry(&id, caption))?;
    }
    Ok(())
}

/// Whether the entry of `caption` reads back exactly as it was put. A wrong byte fails the test; damage and
/// absence are `false`.
#[track_caller]
pub(crate) fn reads_back(reader: &StoreReader, number: u32, caption: &str) -> bool {
    let (id, _) = spec(number);
    let put = entry(&id, caption);
    let found = match reader.get(&id, &put.entry) {
        Ok(Some(found)) => found,
        Ok(None) => return false,
        Err(e) if e.is_damage() => return false,
        Err(e) => panic!("{caption}: {e}"),
    };
    assert_eq!(
        (found.token_count, found.truncated),
        (put.token_count, put.truncated),
        "{caption}"
    );
    let expected: BTreeMap<_, _> = put.parts.into_iter().collect();
    let read: BTreeMap<_, _> = found
        .parts
        .iter()
        .map(|(n, p)| (n.clone(), p.to_tensor_bytes()))
        .collect();
    assert_eq!(read, expected, "{caption}");
    true
}

/// All that the index says of the entries of a spec, sorted, each once.
pub(crate) fn records(reader: &StoreReader, spec: &Fingerprint) -> Vec<Record> {
    let mut records = Vec::new();
    let told = reader.each_record(spec, &mut |record| records.push(record));
    told.expect("rows");
    records.sort_by_key(|record| record.entry);
    records.dedup_by_key(|record| record.entry);
    records
}

/// Those of `captions` that read back.
#[track_caller]
pub(crate) fn readable<'a>(store: &Store, number: u32, captions: &[&'a str]) -> Vec<&'a str> {
    let reader = store.reader().expect("a reader");
    captions
        .iter()
        .copied()
        .filter(|c| reads_back(&reader, number, c))
        .collect()
}

/// The files below `root` whose name ends with `end`.
pub(crate) fn files(root: &Path, end: &str) -> Vec<PathBuf> {
    crate::util::listing(root)
        .iter()
        .filter(|f| f.ends_with(end))
        .map(|f| root.join(f))
        .collect()
}

/// A copy of a folder.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("create");
    for file in crate::util::listing(from) {
        let target = to.join(&file);
        fs::create_dir_all(target.parent().expect("inside")).expect("create");
        fs::copy(from.join(&file), target).expect("copy");
    }
}

/// One change to the disk.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    CreateDir(PathBuf),
    Write(PathBuf, Vec<u8>),
    SyncFile(PathBuf),
    Rename(PathBuf, PathBuf),
    SyncDir(PathBuf),
    Remove(PathBuf),
}

/// What happens at a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    None,
    /// The process dies in the midst of this step: nothing after it happens.
    Crash(usize),
    /// This step, and none other, finds the disk full.
    Full(usize),
    /// From this step on the disk is full.
    FullFrom(usize),
    /// The disk may not be written.
    ReadOnly,
    /// This reading of a file or folder fails, and none other.
    Reading(usize, io::ErrorKind),
}

/// A disk that keeps a log of what was done to it and fails as told.
pub(crate) struct Faulty {
    fault: Fault,
    log: Mutex<Vec<Step>>,
    count: Mutex<usize>,
    readings: Mutex<usize>,
    room: usize,
}

/// Room in memory for all rows of any test.
pub(crate) const ROOM: usize = 1 << 23;

impl Faulty {
    pub(crate) fn new(fault: Fault) -> Self {
        Self::with_room(fault, ROOM)
    }

    /// Where so many rows of the index have room in memory.
    pub(crate) fn with_room(fault: Fault, room: usize) -> Self {
        Self {
            fault,
            log: Mutex::new(Vec::new()),
            count: Mutex::new(0),
            readings: Mutex::new(0),
            room,
        }
    }

    /// How many steps were tried.
    pub(crate) fn steps(&self) -> usize {
        *self.count.lock().expect("no panic inside")
    }

    /// How often something was read.
    pub(crate) fn readings(&self) -> usize {
        *self.readings.lock().expect("no panic inside")
    }

    /// Counts a reading and says whether it succeeds.
    fn allow_reading(&self) -> io::Result<()> {
        let mut readings = self.readings.lock().expect("no panic inside");
        let reading = *readings;
        *readings += 1;
        match self.fault {
            Fault::Reading(at, kind) if reading == at => Err(kind.into()),
            _ => Ok(()),
        }
    }

    /// The steps that were done, in order.
    pub(crate) fn log(&self) -> Vec<Step> {
        self.log.lock().expect("no panic inside").clone()
    }

    /// Counts a step and says whether it may be done.
    fn allow(&self) -> io::Result<()> {
        let mut count = self.count.lock().expect("no panic inside");
        let step = *count;
        *count += 1;
        match self.fault {
            Fault::Crash(at) if step >= at => Err(io::Error::other("the process is dead")),
            Fault::Full(at) if step == at => Err(io::ErrorKind::StorageFull.into()),
            Fault::FullFrom(at) if step >= at => Err(io::ErrorKind::StorageFull.into()),
            Fault::ReadOnly => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            _ => Ok(()),
        }
    }

    fn done(&self, step: Step) {
        self.log.lock().expect("no panic inside").push(step);
    }
}

impl Disk for Faulty {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.allow()?;
        Local.create_dir(path)?;
        self.done(Step::CreateDir(path.to_owned()));
        Ok(())
    }

    fn write_new(&self, path: &Path, chunks: &[&[u8]]) -> io::Result<File> {
        let bytes = chunks.concat();
        if let Err(e) = self.allow() {
            // Some of it arrives before the fault.
            let half = &bytes[..bytes.len() / 2];
            let was_alive = !matches!(self.fault, Fault::Crash(at) if self.steps() > at + 1);
            if was_alive && self.fault != Fault::ReadOnly {
                Local.write_new(path, &[half])?;
                self.done(Step::Write(path.to_owned(), half.to_vec()));
            }
            return Err(e);
        }
        let file = Local.write_new(path, chunks)?;
        self.done(Step::Write(path.to_owned(), bytes));
        Ok(file)
    }

    fn sync_file(&self, file: &File, path: &Path) -> io::Result<()> {
        self.allow()?;
        Local.sync_file(file, path)?;
        self.done(Step::SyncFile(path.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.allow()?;
        Local.rename(from, to)?;
        self.done(Step::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.allow()?;
        Local.sync_dir(path)?;
        self.done(Step::SyncDir(path.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        // A full disk lets one remove.
        if !matches!(self.fault, Fault::Full(_) | Fault::FullFrom(_)) {
            self.allow()?;
        }
        Local.remove(path)?;
        self.done(Step::Remove(path.to_owned()));
        Ok(())
    }

    fn open_lock(&self, path: &Path) -> io::Result<File> {
        if self.fault == Fault::ReadOnly {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Local.open_lock(path)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.allow_reading()?;
        Local.open(path)
    }

    fn read_at(
        &self,
        file: &File,
        path: &Path,
        offset: u64,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        self.allow_reading()?;
        // In small pieces, as a network file system may give them.
        let some = buffer.len().min(1000);
        Local.read_at(file, path, offset, &mut buffer[..some])
    }

    fn read_dir(&self, path: &Path) -> io::Result<fs::ReadDir> {
        self.allow_reading()?;
        Local.read_dir(path)
    }

    fn look_at(&self, path: &Path) -> io::Result<fs::Metadata> {
        self.allow_reading()?;
        Local.look_at(path)
    }

    fn rows_in_memory(&self) -> usize {
        self.room
    }
}

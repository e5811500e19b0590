//! The store: tensors made once, kept so that they cannot be misread.
//!
//! - An *entry* is what one spec makes of one caption or picture: a few payloads with names, and a key record
//!   whose fingerprint is the entry's id. A *spec* is canonical JSON, and its fingerprint is its id. The store
//!   does not look into either.
//! - A *pack* is a safetensors file of payloads, an *index part* a Parquet file of rows. Both are named by the
//!   digest of their bytes, written once, and never edited.
//! - A *run* is a list of entries that somebody uses: what garbage collection keeps.
//!
//! What holds at every moment, whoever is killed: a pack is durable before a row names it, so a reader sees
//! all of an entry or nothing; two writers never write the same file differently; the index can be made anew
//! from the packs; every payload's digest is checked before it is handed out.
//!
//! ```text
//! store.json    specs/<spec>.json    packs/<2 hex>/<digest>.safetensors    index/<spec>/<digest>.parquet
//! runs/<id>.json    lock
//! ```
//!
//! `schemas/FORMAT.md` has every byte and column. Start reading at [`StoreWriter::put`] and
//! [`StoreReader::get`]; `collecting`, `rebuild`, `compact`, `temporary`, `run`, `folder` and `remote::trim` are the only files that remove
//! anything; `parts` and `ranged` say how a large index is read in part, `kept` how again and again, `sweep`, `by_pack` and `sorting` how
//! maintenance goes through one that does not fit into memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;

mod by_pack;
mod check;
mod check_pack;
mod check_rows;
mod collecting;
mod columns;
mod compact;
mod disk;
mod entry_range;
mod error;
mod folder;
mod gc;
mod index;
mod kept;
mod layout;
mod leftovers;
mod loading;
mod lock;
mod merge;
mod outside;
mod pack;
mod packed;
mod packfile;
mod parts;
mod place;
pub mod planes;
mod presence;
mod ranged;
mod reader;
mod rebuild;
mod record;
mod remote;
mod repair;
mod run;
mod run_lists;
mod salvage;
mod snapshot;
mod sorting;
mod specs;
mod stats;
mod sweep;
pub mod table;
mod temporary;
mod tensor;
mod tree;
mod writer;

pub use check::CheckReport;
pub use compact::CompactReport;
pub use disk::{Disk, Local};
pub use entry_range::EntryRange;
pub use error::Error;
pub use folder::NewFolder;
pub use gc::{GcOptions, GcReport};
pub use kept::Lookup;
pub use layout::FORMAT_VERSION;
pub use lock::when_free;
pub use outside::{check_file, file_target, write_file};
pub use pack::{PACK_LIMIT_BYTES, about_record_bytes};
pub use place::Place;
pub use reader::{Entry, Payload, StoreReader};
pub use rebuild::RebuildReport;
pub use record::{NewEntry, PartRecord, Record};
pub use remote::{
    Address, CacheLimit, NoMoreChanges, PullReport, PushOptions, PushReport, Remote, Scratch,
    Variables, give_back_leases, has_leases,
};
pub use run::{Lacking, RUN_LIMIT_ENTRIES, Run};
pub use run_lists::RunLists;
pub use stats::{SpecStats, StoreStats};
pub use temporary::collect_temporary_files;
pub use tensor::{ElementType, Summary, TensorBytes};
pub use writer::{CommitStats, StoreWriter};

use layout::{Layout, PackPath};
use loading::Scope;
use remote::Mirror;

/// The program and its version, as rows and packs record it.
pub const TOOL: &str = concat!("plumb ", env!("CARGO_PKG_VERSION"));

/// A store, open. Cheap to clone; holds no lock and no file.
#[derive(Clone)]
pub struct Store {
    layout: Layout,
    wait: Duration,
    shown: PathBuf,
}

/// Something wrong in a store that did not end the work.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file, relative to the store.
    pub file: String,
    /// What was expected and what was found.
    pub what: String,
    /// What to do about it, as a clause.
    pub mend: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}; {}", self.file, self.what, self.mend)
    }
}

impl Problem {
    /// Of the file `path`, whose name `what` need not repeat.
    fn of(layout: &Layout, path: &Path, what: String, mend: &str) -> Self {
        let prefix = format!("{}: ", path.display());
        Self {
            file: relative(layout, path),
            what: what.strip_prefix(&prefix).unwrap_or(&what).to_owned(),
            mend: mend.to_owned(),
        }
    }
}

impl Store {
    /// Opens the store in the folder `path`.
    ///
    /// # Errors
    /// If there is none, if it is of a newer format, or if it cannot be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_with(path, Arc::new(Local))
    }

    /// Opens the store in the folder `path`, or makes one where there is nothing.
    ///
    /// # Errors
    /// As [`Self::open`], and if the folder holds other things.
    pub fn open_or_create(path: &Path) -> Result<Self, Error> {
        Self::open_or_create_with(path, Arc::new(Local))
    }

    /// Opens the store at `place`.
    ///
    /// # Errors
    /// If there is none, if it is of a newer format, or if it cannot be read.
    pub fn open_at(place: &Place) -> Result<Self, Error> {
        match place.behind() {
            Some(_) => Self::open_mirror(place, false),
            None => Self::open_with(place.folder(), Arc::new(Local)),
        }
    }

    /// Whether the folder `path` is a store, of whatever format and state.
    pub fn is_at(path: &Path) -> bool {
        path.join(layout::MARKER).exists()
    }

    /// Opens the store at `place`, or makes one where there is nothing. On object storage it comes to be with the first push.
    ///
    /// # Errors
    /// As [`Self::open`], and if the folder holds other things.
    pub fn open_or_create_at(place: &Place) -> Result<Self, Error> {
        match place.behind() {
            Some(_) => Self::open_mirror(place, true),
            None => Self::open_or_create_with(place.folder(), Arc::new(Local)),
        }
    }

    fn open_mirror(place: &Place, may_be_new: bool) -> Result<Self, Error> {
        let mut store = Self::at(place.folder(), Arc::new(Local));
        let mirror = place.behind().map(|behind| Mirror::new(behind.clone()));
        store.layout.mirror = mirror.map(Arc::new);
        store.shown = place.shown();
        if let Some(mirror) = &store.layout.mirror {
            mirror.open(&store.layout, may_be_new)?;
        }
        layout::read_marker(&store.layout).map(|_| store)
    }

    /// Whether it is on object storage, and what is added to it waits in a folder until it is shared.
    pub fn is_remote(&self) -> bool {
        self.layout.mirror.is_some()
    }

    /// Whether it is one on object storage that nothing can be put into.
    pub fn is_only_read(&self) -> bool {
        let mirror = self.layout.mirror.as_ref();
        mirror.is_some_and(|mirror| mirror.remote().address().is_read_only())
    }

    /// Puts what was added to it since where others see it, for a store on object storage, and merges index parts there where many have come
    /// together; one in a folder needs nothing.
    ///
    /// # Errors
    /// As [`Remote::push`].
    pub fn share(&self, monitor: &dyn Monitor) -> Result<Option<PushReport>, Error> {
        let Some(mirror) = &self.layout.mirror else {
            return Ok(None);
        };
        let options = PushOptions {
            compress: mirror.compresses(),
            contents: false,
            wait: self.wait,
        };
        let mut pushed = Vec::new();
        let mut tell = |pack, object| pushed.push((pack, object));
        let report = (mirror.remote()).push_and_tell(self, options, &mut tell, monitor)?;
        // What is over there need not be here any more.
        mirror.know(pushed);
        mirror.trim(&self.layout, None)?;
        if report.index_parts > 0 {
            mirror.refresh(&self.layout)?;
            mirror.merge_few(self)?;
        }
        Ok(Some(report))
    }

    /// Merges index parts of the store at `place`, on object storage, where many have come together: for who pushed there from elsewhere. They come
    /// into the folder of `place` for it, and nothing does where there are not many.
    ///
    /// # Errors
    /// If something cannot be read or written. Nothing is lost by it.
    pub fn merge_at(place: &Place) -> Result<(), Error> {
        let Some(behind) = place.behind() else {
            return Ok(());
        };
        let mirror = Arc::new(Mirror::new(behind.clone()));
        let mut store = Self::at(place.folder(), Arc::new(Local));
        store.layout.mirror = Some(mirror.clone());
        mirror.look(&store.layout)?;
        mirror.merge_few(&store)
    }

    /// As [`Self::open`], with another way to the disk.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(path: &Path, disk: Arc<dyn Disk>) -> Result<Self, Error> {
        let store = Self::at(path, disk);
        match layout::read_marker(&store.layout) {
            Ok(_) => Ok(store),
            Err(e) if e.is_gone() => Err(no_marker(&store.layout)),
            Err(e) => Err(e),
        }
    }

    /// As [`Self::open_or_create`], with another way to the disk.
    ///
    /// # Errors
    /// As [`Self::open_or_create`].
    pub fn open_or_create_with(path: &Path, disk: Arc<dyn Disk>) -> Result<Self, Error> {
        let layout = Self::at(path, disk.clone()).layout;
        if !disk::is_there(&*disk, &layout.marker())? {
            // A folder of something else: most likely a wrong path.
            let is_other = layout::holds_anything(&layout)?;
            // Looked for again: several processes may make it at once, and the marker is the first that they write.
            if is_other && !disk::is_there(&*disk, &layout.marker())? {
                return Err(no_marker(&layout));
            }
            create_root(&*disk, path)?;
            disk::write_once(&*disk, path, layout::MARKER, &[&layout::marker_bytes()])?;
        }
        Self::open_with(path, disk)
    }

    /// Whatever is at `path`, store or not.
    fn at(path: &Path, disk: Arc<dyn Disk>) -> Self {
        let layout = Layout {
            root: path.to_owned(),
            disk,
            mirror: None,
        };
        Self {
            layout,
            wait: Duration::ZERO,
            shown: path.to_owned(),
        }
    }

    fn disk(&self) -> &dyn Disk {
        &*self.layout.disk
    }

    /// Makes [`Self::when_free`] wait so long for other processes.
    #[must_use]
    pub fn waiting(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// Where it is, as a person names it: the folder it was opened in, or the address on object storage.
    pub fn shown(&self) -> &Path {
        &self.shown
    }

    /// The folder it was opened in; of a store on object storage, the one that stands before it.
    pub fn path(&self) -> &Path {
        &self.layout.root
    }

    /// The file of a pack.
    pub fn pack_path(&self, pack: &Digest) -> PathBuf {
        self.layout.pack(pack)
    }

    /// A view of all entries as they are now.
    ///
    /// # Errors
    /// If the folders cannot be read. Damaged index parts are no error, see [`StoreReader::problems`].
    pub fn reader(&self) -> Result<StoreReader, Error> {
        StoreReader::new(self.layout.clone(), Scope::All, None)
    }

    /// As [`Self::reader`], of the entries of `specs` only.
    ///
    /// # Errors
    /// As [`Self::reader`].
    pub fn reader_of(&self, specs: &[Fingerprint]) -> Result<StoreReader, Error> {
        StoreReader::new(self.layout.clone(), Scope::Specs(specs.to_vec()), None)
    }

    /// As [`Self::reader`], of these entries only, given as (spec, entry): all others are as good as not there. Of a large index this
    /// reads what may tell of them.
    ///
    /// # Errors
    /// As [`Self::reader`].
    pub fn reader_of_entries(
        &self,
        entries: &[(Fingerprint, Fingerprint)],
    ) -> Result<StoreReader, Error> {
        StoreReader::new(self.layout.clone(), Scope::entries(entries), None)
    }

    /// As [`Self::reader`], of those entries of `specs` only that are in a range: all others are as good as not there. Of a large index
    /// this reads what may tell of them.
    ///
    /// # Errors
    /// As [`Self::reader`].
    pub fn reader_of_range(
        &self,
        specs: &[Fingerprint],
        range: EntryRange,
    ) -> Result<StoreReader, Error> {
        let scope = Scope::Range(specs.to_vec(), range);
        StoreReader::new(self.layout.clone(), scope, None)
    }

    /// The specs that have a description or an index here, sorted.
    ///
    /// # Errors
    /// If the folders cannot be read.
    pub fn specs(&self) -> Result<Vec<Fingerprint>, Error> {
        let described = self.layout.list_specs()?.into_iter();
        let mut specs: Vec<Fingerprint> = described.map(|(spec, _)| spec).collect();
        specs.extend(self.layout.indexed_specs()?);
        let behind = self.layout.mirror.as_ref();
        specs.extend(behind.into_iter().flat_map(|mirror| mirror.specs()));
        specs.sort_unstable();
        specs.dedup();
        Ok(specs)
    }

    /// A writer. Any number of them may write at once, in this process and in others.
    ///
    /// # Errors
    /// If the store may not be written, or while it is being cleaned up.
    pub fn writer(&self) -> Result<StoreWriter, Error> {
        StoreWriter::new(self.clone())
    }
}

/// Creates the store's own folder and those above it.
fn create_root(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    let top = path
        .ancestors()
        // The empty path is the current folder, above a relative one.
        .find(|a| a.as_os_str().is_empty() || a.is_dir())
        .unwrap_or(path);
    disk::create_dirs(disk, top, path)
}

fn no_marker(layout: &Layout) -> Error {
    let why = if layout.packs().is_dir() {
        "store.json is missing but packs are there; `plumb store rebuild-index` writes it anew"
    } else if layout.root.is_dir() {
        "the folder holds no store.json; give the folder of a store, or an empty or new one to encode into"
    } else {
        "there is no such folder; `plumb encode` makes it"
    };
    Error::NotAStore {
        path: layout.root.clone(),
        why: why.to_owned(),
        is_free: !layout::holds_anything(layout).unwrap_or(true),
    }
}

/// Whether a folder has the marker of a store, which need not be sound.
pub fn is_store(folder: &Path) -> bool {
    folder.join(layout::MARKER).is_file()
}

/// Runs a decoder on bytes that may be hostile: a panic in a library below becomes an error of that one file.
fn contain<T>(decode: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // Unwind safe: what a decoder leaves half done is its own and dropped.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(decode))
        .unwrap_or_else(|_| Err("the decoder gave up on it".to_owned()))
}

/// `path` as a person names it inside the store.
fn relative(layout: &Layout, path: &Path) -> String {
    path.strip_prefix(&layout.root)
        .unwrap_or(path)
        .display()
        .to_string()
}

//! The paths inside a store (the parent module's documentation shows the tree), and the format's version.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Error;
use super::disk::{self, Disk, ListedFile};
use super::remote::{MIRROR_OF, Mirror};
use super::temporary;
use crate::digest::{Digest, Fingerprint};

/// The version of the format this program writes; it reads this one and all before it.
pub const FORMAT_VERSION: u64 = 1;

/// The name of the format, in `store.json`.
const FORMAT_NAME: &str = "plumb-store";

/// The largest `store.json` or spec that is read, so that a wrong file is not taken into memory whole.
pub(super) const JSON_LIMIT_BYTES: u64 = 4 << 20;

/// Where things lie inside the store at `root`, and the way to the disk.
#[derive(Clone)]
pub(super) struct Layout {
    pub(super) root: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    /// Where the folder stands before a store on object storage.
    pub(super) mirror: Option<Arc<Mirror>>,
}

/// A pack's digest, and where its file is now: under its name, or set aside.
#[derive(Clone)]
pub(super) struct PackPath {
    pub(super) pack: Digest,
    pub(super) path: PathBuf,
}

impl Layout {
    pub(super) fn marker(&self) -> PathBuf {
        self.root.join(MARKER)
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(super) fn specs(&self) -> PathBuf {
        self.root.join("specs")
    }

    pub(super) fn spec(&self, spec: &Fingerprint) -> PathBuf {
        self.specs().join(format!("{spec}.json"))
    }

    /// Where a file is put that is not the spec in its name.
    pub(super) fn spec_set_aside(&self, spec: &Fingerprint) -> PathBuf {
        self.specs().join(format!("{spec}{SPEC_SET_ASIDE}"))
    }

    pub(super) fn packs(&self) -> PathBuf {
        self.root.join("packs")
    }

    pub(super) fn pack(&self, pack: &Digest) -> PathBuf {
        self.pack_dir(pack).join(pack_name(pack))
    }

    pub(super) fn pack_dir(&self, pack: &Digest) -> PathBuf {
        // 256 folders, as git and restic have them, so that none comes to hold thousands of files.
        self.packs().join(&pack.to_string()[..2])
    }

    pub(super) fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    pub(super) fn index_of(&self, spec: &Fingerprint) -> PathBuf {
        self.index().join(spec.to_string())
    }

    pub(super) fn index_part(&self, spec: &Fingerprint, part: &Digest) -> PathBuf {
        self.index_of(spec).join(part_name(part))
    }

    pub(super) fn part_list(&self, spec: &Fingerprint) -> PathBuf {
        self.index_of(spec).join(PART_LIST)
    }

    pub(super) fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }

    pub(super) fn run(&self, id: &str) -> PathBuf {
        self.runs().join(format!("{id}.json"))
    }

    pub(super) fn list(&self, dir: &Path) -> Result<Vec<ListedFile>, Error> {
        disk::list(&*self.disk, dir)
    }

    /// Whether `dir`, a folder of the store, and the one that it is in are no links out of it.
    fn is_own(&self, dir: &Path) -> Result<bool, Error> {
        for folder in dir.ancestors().take_while(|a| *a != self.root) {
            if !disk::is_own_folder(&*self.disk, folder)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The files in `dir`, a folder of the store, that are called by an id and `suffix`, sorted. Where the folder lies
    /// behind a link, none of them is the store's own.
    fn named<T: std::str::FromStr>(
        &self,
        dir: &Path,
        suffix: &str,
    ) -> Result<Vec<(T, ListedFile)>, Error> {
        let mut found = Vec::new();
        let is_own = self.is_own(dir)?;
        for mut file in self.list(dir)? {
            file.is_own &= is_own && file.is_file;
            if let Some(Ok(id)) = file.name.strip_suffix(suffix).map(str::parse) {
                found.push((id, file));
            }
        }
        Ok(found)
    }

    /// The specs that have an index folder, sorted.
    pub(super) fn indexed_specs(&self) -> Result<Vec<Fingerprint>, Error> {
        let folders = self.list(&self.index())?.into_iter();
        Ok(folders
            .filter(|f| f.is_folder)
            .filter_map(|f| f.name.parse().ok())
            .collect())
    }

    /// The index parts of a spec, sorted.
    pub(super) fn index_parts(
        &self,
        spec: &Fingerprint,
    ) -> Result<Vec<(Digest, ListedFile)>, Error> {
        self.named(&self.index_of(spec), ".parquet")
    }

    /// The packs, sorted by digest; files under other names are left out.
    pub(super) fn list_packs(&self) -> Result<Vec<(Digest, ListedFile)>, Error> {
        self.packs_named(".safetensors")
    }

    /// As [`Self::list_packs`], with their paths.
    pub(super) fn pack_files(&self) -> Result<Vec<(PackPath, ListedFile)>, Error> {
        let path = |(pack, file)| (self.pack_path(pack), file);
        Ok(self.list_packs()?.into_iter().map(path).collect())
    }

    /// The packs that were set aside as damaged.
    pub(super) fn set_aside_files(&self) -> Result<Vec<(PackPath, ListedFile)>, Error> {
        let path = |(pack, file)| {
            let path = self.set_aside(&pack);
            (PackPath { pack, path }, file)
        };
        Ok(self.packs_named(SET_ASIDE)?.into_iter().map(path).collect())
    }

    pub(super) fn pack_path(&self, pack: Digest) -> PackPath {
        let path = self.pack(&pack);
        PackPath { pack, path }
    }

    /// Where a damaged pack is put.
    pub(super) fn set_aside(&self, pack: &Digest) -> PathBuf {
        self.pack_dir(pack).join(format!("{pack}{SET_ASIDE}"))
    }

    /// Of the packs `named` those whose entries can be read, with at least how many bytes: those here, and those that would be fetched.
    pub(super) fn readable_packs(&self, named: &[Digest]) -> Result<HashMap<Digest, u64>, Error> {
        let here = self.list_packs()?.into_iter().filter(|(_, f)| f.is_file);
        let here = here.map(|(pack, f)| (pack, f.bytes));
        self.with_those_behind(here.collect(), named)
    }

    /// The same; each is looked for by its name: of the packs of a large store they are few.
    pub(super) fn readable_of(&self, named: &[Digest]) -> Result<HashMap<Digest, u64>, Error> {
        let mut here = HashMap::new();
        for pack in named {
            let bytes = disk::length_of_file(&*self.disk, &self.pack(pack))?;
            here.extend(bytes.map(|bytes| (*pack, bytes)));
        }
        self.with_those_behind(here, named)
    }

    fn with_those_behind(
        &self,
        mut here: HashMap<Digest, u64>,
        named: &[Digest],
    ) -> Result<HashMap<Digest, u64>, Error> {
        if let Some(mirror) = &self.mirror {
            let missing = named.iter().filter(|pack| !here.contains_key(pack));
            let missing: Vec<Digest> = missing.copied().collect();
            here.extend(mirror.sizes(&missing)?);
        }
        Ok(here)
    }

    /// Fetches a pack that is not here, if there is a place where it can be fetched and it is there.
    pub(super) fn fetch(&self, pack: &Digest) -> Result<bool, Error> {
        match &self.mirror {
            Some(mirror) => mirror.fetch(self, pack),
            None => Ok(false),
        }
    }

    fn packs_named(&self, suffix: &str) -> Result<Vec<(Digest, ListedFile)>, Error> {
        let mut packs = Vec::new();
        for folder in self.pack_folders()? {
            let here = self.named::<Digest>(&folder, suffix)?.into_iter();
            // A pack in another folder would be found by listing and not by its name.
            packs.extend(here.filter(|(pack, _)| self.pack_dir(pack) == folder));
        }
        Ok(packs)
    }

    fn pack_folders(&self) -> Result<Vec<PathBuf>, Error> {
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let folders = self.list(&self.packs())?.into_iter();
        Ok(folders
            .filter(|f| f.is_folder && f.name.len() == 2 && f.name.bytes().all(is_hex))
            .map(|f| self.packs().join(f.name))
            .collect())
    }

    /// The specs on disk, sorted.
    pub(super) fn list_specs(&self) -> Result<Vec<(Fingerprint, ListedFile)>, Error> {
        self.named(&self.specs(), ".json")
    }

    /// The files that were set aside because they are not the spec in their name.
    pub(super) fn list_specs_set_aside(&self) -> Result<Vec<(Fingerprint, ListedFile)>, Error> {
        self.named(&self.specs(), SPEC_SET_ASIDE)
    }

    /// What writes under way or interrupted have left, in the store's own folders alone.
    pub(super) fn temporary_files(&self) -> Result<Vec<(PathBuf, ListedFile)>, Error> {
        let mut found = Vec::new();
        for folder in self.folders()? {
            let files = self.list(&folder)?.into_iter();
            let files = files.filter(|f| f.is_own && f.is_file && temporary::is_name(&f.name));
            found.extend(files.map(|f| (folder.join(&f.name), f)));
        }
        Ok(found)
    }

    /// The store's own folders, in which files are written; none behind a link.
    pub(super) fn folders(&self) -> Result<Vec<PathBuf>, Error> {
        let mut folders = vec![self.specs(), self.runs()];
        folders.extend(self.pack_folders()?);
        let specs = self.indexed_specs()?;
        folders.extend(specs.iter().map(|spec| self.index_of(spec)));
        let mut own = vec![self.root.clone()];
        for folder in folders {
            if self.is_own(&folder)? {
                own.push(folder);
            }
        }
        Ok(own)
    }
}

/// Packs that were set aside because something in them is damaged end so. Only `rebuild-index` and `gc` look at them.
pub(super) const SET_ASIDE: &str = ".safetensors.damaged";
/// Likewise files that are not the spec in their name.
pub(super) const SPEC_SET_ASIDE: &str = ".json.damaged";

pub(super) const MARKER: &str = "store.json";

/// In the folder of a spec's index: what is known of its large parts.
pub(super) const PART_LIST: &str = "parts.json";

pub(super) fn pack_name(pack: &Digest) -> String {
    format!("{pack}.safetensors")
}

pub(super) fn part_name(part: &Digest) -> String {
    format!("{part}.parquet")
}

#[derive(Serialize, Deserialize)]
struct Marker {
    format: String,
    version: u64,
}

/// The bytes of `store.json`.
pub(super) fn marker_bytes() -> Vec<u8> {
    // By hand: these bytes are part of the format, whatever a serializer does with spaces.
    format!("{{\"format\":\"{FORMAT_NAME}\",\"version\":{FORMAT_VERSION}}}\n").into_bytes()
}

/// Reads `store.json` and refuses a format that is newer than this program.
pub(super) fn read_marker(layout: &Layout) -> Result<u64, Error> {
    let path = &layout.marker();
    let bytes = disk::read_bounded(&*layout.disk, path, JSON_LIMIT_BYTES)?;
    if layout.mirror.is_none() && disk::is_there(&*layout.disk, &layout.root.join(MIRROR_OF))? {
        return Err(Error::Refused(format!(
            "{} keeps what was read from a store on object storage ({MIRROR_OF} in it says which): name that store",
            layout.root.display()
        )));
    }
    marker_version(path, &bytes)
}

/// The version that the bytes of a `store.json` say, unless it is newer than this program.
pub(super) fn marker_version(path: &Path, bytes: &[u8]) -> Result<u64, Error> {
    let mend = "`plumb store rebuild-index` writes it anew";
    let marker: Marker = serde_json::from_slice(bytes).map_err(|e| {
        Error::malformed(
            path,
            format!("expected {{\"format\", \"version\"}}, found {e}; {mend}"),
        )
    })?;
    if marker.format != FORMAT_NAME {
        return Err(Error::malformed(
            path,
            format!(
                "field `format`: expected `{FORMAT_NAME}`, found `{}`; {mend}",
                marker.format
            ),
        ));
    }
    check_version(path, marker.version)?;
    Ok(marker.version)
}

/// Whether the folder has anything in it that is not left over from the making of a store.
pub(super) fn holds_anything(layout: &Layout) -> Result<bool, Error> {
    Ok(layout
        .list(&layout.root)?
        .iter()
        // Left by a creation that was interrupted: trying again must work.
        .any(|f| f.name != "lock" && !temporary::is_name(&f.name)))
}

/// Refuses a version newer than this program's.
pub(super) fn check_version(path: &Path, found: u64) -> Result<(), Error> {
    // Refused, not read as far as possible: a newer format may mean something else by the same words.
    if found > FORMAT_VERSION {
        return Err(Error::NewerFormat {
            path: path.to_owned(),
            found,
            known: FORMAT_VERSION,
        });
    }
    if found == 0 {
        return Err(Error::malformed(
            path,
            "field `version`: expected 1 or more, found 0",
        ));
    }
    Ok(())
}

/// Reads a spec and makes sure that it is the one its name says.
pub(super) fn read_spec(layout: &Layout, spec: &Fingerprint) -> Result<Vec<u8>, Error> {
    let path = layout.spec(spec);
    let bytes = disk::read_bounded(&*layout.disk, &path, JSON_LIMIT_BYTES)?;
    let found = Fingerprint::of_canonical(&bytes);
    if found != *spec {
        return Err(Error::malformed(
            &path,
            format!(
                "expected content with the digest in the name, found {found}; encoding again or `plumb store rebuild-index` mends it"
            ),
        ));
    }
    Ok(bytes)
}

/// The bytes of a file that ought to be a spec, whatever they are.
pub(super) fn read_as_spec(layout: &Layout, path: &Path) -> Result<Vec<u8>, Error> {
    disk::read_bounded(&*layout.disk, path, JSON_LIMIT_BYTES)
}

//! The paths inside a store (the parent module's documentation shows the tree), and the format's version.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Error;
use super::disk::{self, ListedFile};
use crate::digest::{Digest, Fingerprint};

/// The version of the format this program writes; it reads this one and all before it.
pub const FORMAT_VERSION: u64 = 1;

/// The name of the format, in `store.json`.
const FORMAT_NAME: &str = "plumb-store";

/// The largest `store.json` or spec that is read, so that a wrong file is not taken into memory whole.
const JSON_LIMIT_BYTES: u64 = 4 << 20;

/// Where things lie inside the store at `root`.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) root: PathBuf,
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

    pub(super) fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }

    pub(super) fn run(&self, id: &str) -> PathBuf {
        self.runs().join(format!("{id}.json"))
    }

    /// The specs that have an index folder, sorted.
    pub(super) fn indexed_specs(&self) -> Result<Vec<Fingerprint>, Error> {
        Ok(disk::list(&self.index())?
            .iter()
            .filter_map(|f| f.name.parse().ok())
            .collect())
    }

    /// The index parts of a spec, sorted.
    pub(super) fn index_parts(
        &self,
        spec: &Fingerprint,
    ) -> Result<Vec<(Digest, ListedFile)>, Error> {
        Ok(named_by_digest(
            disk::list(&self.index_of(spec))?,
            ".parquet",
        ))
    }

    /// The packs, sorted by digest; files under other names are left out.
    pub(super) fn list_packs(&self) -> Result<Vec<(Digest, ListedFile)>, Error> {
        let mut packs = Vec::new();
        for folder in disk::list(&self.packs())? {
            let dir = self.packs().join(&folder.name);
            if folder.name.len() == 2 && dir.is_dir() {
                packs.extend(
                    named_by_digest(disk::list(&dir)?, ".safetensors")
                        .into_iter()
                        // A pack in another folder would be found by listing and not by its name.
                        .filter(|(pack, _)| self.pack_dir(pack) == dir),
                );
            }
        }
        Ok(packs)
    }

    /// All folders in which files are written, and interrupted writes can be left.
    pub(super) fn folders(&self) -> Result<Vec<PathBuf>, Error> {
        let mut folders = vec![self.root.clone(), self.specs(), self.runs()];
        for parent in [self.packs(), self.index()] {
            for folder in disk::list(&parent)? {
                folders.push(parent.join(folder.name));
            }
        }
        Ok(folders)
    }
}

/// Packs that were set aside because something in them is damaged end so. Only `gc` looks at them.
pub(super) const SET_ASIDE: &str = ".safetensors.damaged";

pub(super) const MARKER: &str = "store.json";

pub(super) fn pack_name(pack: &Digest) -> String {
    format!("{pack}.safetensors")
}

pub(super) fn part_name(part: &Digest) -> String {
    format!("{part}.parquet")
}

/// The files called by a digest and `suffix`.
fn named_by_digest(files: Vec<ListedFile>, suffix: &str) -> Vec<(Digest, ListedFile)> {
    files
        .into_iter()
        .filter_map(|f| Some((f.name.strip_suffix(suffix)?.parse().ok()?, f)))
        .collect()
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
pub(super) fn read_marker(path: &Path) -> Result<u64, Error> {
    let bytes = disk::read_bounded(path, JSON_LIMIT_BYTES)?;
    let mend = "`plumb store rebuild-index` writes it anew";
    let marker: Marker = serde_json::from_slice(&bytes).map_err(|e| {
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
    Ok(disk::list(&layout.root)?
        .iter()
        // Left by a creation that was interrupted: trying again must work.
        .any(|f| f.name != "lock" && !f.name.starts_with(disk::TEMP_PREFIX)))
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
pub(super) fn read_spec(path: &Path, spec: &Fingerprint) -> Result<Vec<u8>, Error> {
    let bytes = disk::read_bounded(path, JSON_LIMIT_BYTES)?;
    let found = blake3::hash(&bytes);
    // Compared as bytes: it is a digest of the file and a fingerprint of the spec, as the file is the canonical form.
    if found.as_bytes() != spec.as_bytes() {
        return Err(Error::malformed(
            path,
            format!(
                "expected content with the digest in the name, found {}; encoding again or `plumb store rebuild-index` writes it anew",
                found.to_hex()
            ),
        ));
    }
    Ok(bytes)
}

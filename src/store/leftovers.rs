//! What garbage collection finds beside packs and index: temporary files whose writers died, and what was set aside as damaged.
//! The latter is read again, and stays unless it is damaged indeed and of no use.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::layout::{self, Layout, PackPath};
use super::packfile::{self, PackState};
use super::{Error, GcOptions, Problem, temporary};
use crate::digest::Fingerprint;

const TAKE_BACK: &str = "`plumb store rebuild-index` takes it back";

/// An entry that a run uses, with its spec.
pub(super) type Root = (Fingerprint, Fingerprint);

/// Files that go, and why others stay.
#[derive(Default)]
pub(super) struct Leftovers {
    pub(super) files: Vec<PathBuf>,
    pub(super) problems: Vec<Problem>,
}

impl Leftovers {
    /// Looks through the store's own folders. `lacking` are the entries that runs use and the index has not.
    pub(super) fn find(
        layout: &Layout,
        options: &GcOptions,
        lacking: &HashSet<Root>,
    ) -> Result<Self, Error> {
        let mut found = Self::default();
        for (path, file) in layout.temporary_files()? {
            // A held one is young as long as it is held; where there are no locks, and for those of earlier versions, age tells.
            if temporary::is_abandoned(&*layout.disk, &path) || options.is_old(file.modified) {
                found.files.push(path);
            }
        }
        for (file, listed) in layout.set_aside_files()? {
            let since = set_aside_at(layout, &file.path)?.max(listed.modified);
            if listed.is_own && options.is_old(since) {
                found.pack(layout, &file, lacking);
            }
        }
        for (spec, listed) in layout.list_specs_set_aside()? {
            let path = layout.spec_set_aside(&spec);
            let since = set_aside_at(layout, &path)?.max(listed.modified);
            if listed.is_own && options.is_old(since) {
                found.spec(layout, &spec, path);
            }
        }
        Ok(found)
    }

    fn pack(&mut self, layout: &Layout, file: &PackPath, lacking: &HashSet<Root>) {
        let what = match packfile::read_state(layout, file) {
            Ok(PackState::Damaged) => match holds_any(layout, file, lacking) {
                Ok(false) => return self.files.push(file.path.clone()),
                Ok(true) => "it holds entries that runs use and that are nowhere else".to_owned(),
                Err(e) => e.to_string(),
            },
            Ok(PackState::Sound { .. }) => "set aside as damaged, but it is sound".to_owned(),
            Ok(PackState::Foreign(why)) => why,
            Err(e) => e.to_string(),
        };
        self.stays(layout, &file.path, what);
    }

    fn spec(&mut self, layout: &Layout, spec: &Fingerprint, path: PathBuf) {
        let what = match layout::read_as_spec(layout, &path) {
            Ok(bytes) if Fingerprint::of_canonical(&bytes) == *spec => {
                "set aside, but it is the spec in its name".to_owned()
            }
            Ok(_) => return self.files.push(path),
            Err(e) if e.is_content() => return self.files.push(path),
            Err(e) => e.to_string(),
        };
        self.stays(layout, &path, what);
    }

    fn stays(&mut self, layout: &Layout, path: &Path, what: String) {
        let what = format!("not removed: {what}");
        self.problems
            .push(Problem::of(layout, path, what, TAKE_BACK));
    }
}

/// Whether a damaged pack has a sound copy of any of these entries.
fn holds_any(layout: &Layout, file: &PackPath, entries: &HashSet<Root>) -> Result<bool, Error> {
    if entries.is_empty() {
        return Ok(false);
    }
    match packfile::open(layout, file) {
        Ok((bytes, opened)) => Ok(opened.entries.iter().any(|packed| {
            entries.contains(&(opened.spec, packed.record.entry)) && packed.payloads(&bytes).is_ok()
        })),
        Err(e) if e.is_content() => Ok(false),
        Err(e) => Err(e),
    }
}

/// When a file got its name, as far as the system tells: renaming leaves the time of its content as it was.
fn set_aside_at(layout: &Layout, path: &Path) -> Result<Option<SystemTime>, Error> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let found = layout.disk.look_at(path);
        let changed = found.map_err(|e| Error::io("look at", path, e))?.ctime();
        let since_1970 = std::time::Duration::from_secs(u64::try_from(changed).unwrap_or(0));
        Ok(Some(SystemTime::UNIX_EPOCH + since_1970))
    }
    #[cfg(not(unix))]
    {
        let _ = (layout, path);
        Ok(None)
    }
}

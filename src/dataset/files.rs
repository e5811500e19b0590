//! What lies in a data folder. Each file is a picture, a caption or a list of captions, or it is left out for a reason that is
//! told.
//!
//! Links that stay inside the folder are followed; those that lead out of it only where the Experiment says so, as they would
//! bring in what nobody has put there. Each folder is read once, so that links cannot lead in circles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirEntry, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::Error;
use super::caption::LISTS;
use super::clip::is_video_name;
use super::clip::numbered::{Gaps, numbered};
use super::left_out::{LeftOut, Reason};
use super::natural::natural;
use super::picture::{HEAD_BYTES, Kind, kind};
use crate::experiment::{ClipUse, DatasetSettings};
use crate::monitor::Monitor;
use crate::shown;

/// Extensions of files that are taken for pictures, in any case. What is in them, decides how they are read.
const PICTURES: [&str; 13] = [
    "png", "apng", "jpg", "jpeg", "jpe", "jfif", "jif", "pjpeg", "pjp", "webp", "bmp", "gif", "tif",
];
/// Extensions of pictures and videos that cannot be decoded here.
const UNDECODABLE: [&str; 29] = [
    "avif", "avifs", "heic", "heif", "hif", "jxl", "jp2", "j2k", "jpf", "psd", "exr", "hdr", "tga",
    "dng", "cr2", "nef", "arw", "flv", "wmv", "mpg", "mpeg", "ts", "mts", "m2ts", "3gp", "ogv",
    "qt", "vob", "y4m",
];
/// Extensions of what other trainers compute from pictures and captions.
const CACHES: [&str; 5] = ["npz", "npy", "pt", "pth", "safetensors"];
/// Extensions of copies that editors keep, and of downloads that have not ended.
const UNFINISHED: [&str; 8] = [
    "bak",
    "orig",
    "old",
    "tmp",
    "temp",
    "part",
    "crdownload",
    "download",
];
/// OneTrainer's masks and conditioning pictures: `NAME-masklabel.png`.
const MASK_ENDS: [&str; 2] = ["-masklabel", "-condlabel"];
/// Folders that trainers look for masks in.
const MASK_FOLDERS: [&str; 3] = ["mask", "masks", "conditioning"];
/// What systems write beside files.
const SYSTEM: [&str; 6] = [
    ".ds_store",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "__macosx",
    "@eadir",
];

/// The files of a data folder: paths below it with `/`, in natural order.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub pictures: Vec<String>,
    pub captions: Vec<String>,
    pub lists: Vec<String>,
    pub left: LeftOut,
    /// Folders that were not entered, as `recursive` is not set.
    pub closed: Vec<String>,
    /// All folders inside, entered or not.
    pub folders: Vec<String>,
    /// Of these, the ones with nothing but numbered pictures: clips, where a caption says so. With the numbers that are missing.
    numbered: BTreeMap<String, Gaps>,
}

/// Finds the files of a data set.
///
/// # Errors
/// If a folder cannot be read, a name is not Unicode, or a link that leads out of the folder would be a caption.
pub(super) fn find(set: &DatasetSettings) -> Result<Files, Error> {
    let mut walk = Walk {
        set,
        real_root: real(&set.path)?,
        entered: BTreeSet::new(),
        linked: Vec::new(),
        names: Vec::new(),
        found: Files::default(),
    };
    walk.enter(&set.path)?;
    // Behind the folders themselves, so that a link inside gives no folder another name.
    while let Some(folder) = walk.linked.pop() {
        walk.enter(&folder)?;
    }
    let Walk {
        mut names,
        mut found,
        ..
    } = walk;
    names.sort_by(|a, b| natural(a, b));
    found.closed.sort_by(|a, b| natural(a, b));
    found.folders.sort_by(|a, b| natural(a, b));
    for name in names {
        match role(set, &name) {
            Role::Picture => found.pictures.push(name),
            Role::Caption => found.captions.push(name),
            Role::List => found.lists.push(name),
            Role::None(reason) => found.left.add(reason, name),
        }
    }
    found.leave_masks();
    found.left.sort();
    Ok(found)
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Io {
        path: path.to_owned(),
        source,
    }
}

fn real(path: &Path) -> Result<PathBuf, Error> {
    fs::canonicalize(path).map_err(io(path))
}

struct Walk<'a> {
    set: &'a DatasetSettings,
    real_root: PathBuf,
    /// The folders that were read, by where they really are.
    entered: BTreeSet<PathBuf>,
    /// Links to folders that are still to be entered.
    linked: Vec<PathBuf>,
    names: Vec<String>,
    found: Files,
}

impl Walk<'_> {
    fn enter(&mut self, folder: &Path) -> Result<(), Error> {
        if !self.entered.insert(real(folder)?) {
            return Ok(());
        }
        let entries = fs::read_dir(folder).map_err(io(folder))?;
        for entry in entries {
            self.entry(&entry.map_err(io(folder))?)?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: &DirEntry) -> Result<(), Error> {
        let path = entry.path();
        let name = self.name(&path)?;
        let last = entry.file_name().to_string_lossy().to_lowercase();
        // `._NAME` are macOS' files, which are called like pictures and are none.
        if SYSTEM.contains(&last.as_str()) || last.starts_with("._") {
            self.found.left.add(Reason::System, name);
            return Ok(());
        }
        if last.starts_with('.') {
            self.found.left.add(Reason::Hidden, name);
            return Ok(());
        }
        let kind = entry.file_type().map_err(io(&path))?;
        if kind.is_symlink() && !self.follows(&path, &name)? {
            return Ok(());
        }
        let target = fs::metadata(&path).map_err(io(&path))?;
        if target.is_file() {
            self.names.push(name);
        } else if !target.is_dir() {
            self.found.left.add(Reason::Device, name);
        } else {
            self.found.folders.push(name.clone());
            if self.set.clip_settings().is_some()
                && let Some(gaps) = numbered(&path).map_err(io(&path))?
            {
                self.found.numbered.insert(name.clone(), gaps);
            }
            match (self.set.recursive, kind.is_symlink()) {
                (false, _) => self.found.closed.push(name),
                (true, true) => self.linked.push(path),
                (true, false) => self.enter(&path)?,
            }
        }
        Ok(())
    }

    /// Whether a link is followed; if not, it is left out.
    fn follows(&mut self, path: &Path, name: &str) -> Result<bool, Error> {
        let reason = match fs::canonicalize(path) {
            Err(_) => Reason::Dangling,
            Ok(real) if self.set.follow_links || real.starts_with(&self.real_root) => {
                return Ok(true);
            }
            Ok(_) => Reason::LeadsOut,
        };
        // The picture beside it would get a default caption, or none, and nobody would know.
        if matches!(
            caption_role(self.set, name),
            Some(Role::Caption | Role::List)
        ) {
            let problem = match reason {
                Reason::Dangling => "a link to nothing, expected a caption: mend or remove it",
                _ => {
                    "a link that leads out of the data set's folder: put the text there instead, or set \
                     `follow_links = true`"
                }
            };
            return Err(Error::Unusable {
                path: path.to_owned(),
                problem: problem.to_owned(),
            });
        }
        self.found.left.add(reason, name.to_owned());
        Ok(false)
    }

    /// The path below the data set's folder.
    fn name(&self, path: &Path) -> Result<String, Error> {
        let below = path.strip_prefix(&self.set.path).unwrap_or(path).iter();
        let parts: Option<Vec<_>> = below.map(|part| part.to_str()).collect();
        parts
            .map(|parts| parts.join("/"))
            .ok_or_else(|| Error::Unusable {
                path: path.to_owned(),
                problem: "the name is not Unicode: rename the file".to_owned(),
            })
    }
}

enum Role {
    Picture,
    Caption,
    List,
    None(Reason),
}

/// The lower-case extension of a file's name, or nothing.
fn extension(name: &str) -> String {
    let extension = Path::new(name).extension().and_then(|e| e.to_str());
    extension.unwrap_or_default().to_lowercase()
}

fn caption_role(set: &DatasetSettings, name: &str) -> Option<Role> {
    let last = name.rsplit('/').next().unwrap_or(name);
    if LISTS.contains(&last) {
        return Some(Role::List);
    }
    let extension = extension(name);
    let is_caption = match set.caption_ending() {
        Some(chosen) => extension == chosen.to_lowercase(),
        None => extension == "txt" || extension == "caption",
    };
    is_caption.then_some(Role::Caption)
}

fn role(set: &DatasetSettings, name: &str) -> Role {
    let extension = extension(name);
    let is_of = |list: &[&str]| list.contains(&extension.as_str());
    let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str());
    let is_mask = |stem: &str| MASK_ENDS.iter().any(|end| stem.ends_with(end));
    if let Some(role) = caption_role(set, name) {
        role
    } else if is_of(&UNFINISHED) || name.ends_with('~') {
        Role::None(Reason::Unfinished)
    } else if is_of(&CACHES) {
        Role::None(Reason::Cache)
    } else if is_video_name(name) {
        match set.clips {
            ClipUse::Windows(_) => Role::Picture,
            ClipUse::NotSet => Role::None(Reason::Clip),
            ClipUse::Never => Role::None(Reason::Undecodable),
        }
    } else if is_of(&UNDECODABLE) {
        Role::None(Reason::Undecodable)
    } else if stem.is_some_and(is_mask) {
        Role::None(Reason::Mask)
    } else if is_picture_name(name) {
        Role::Picture
    } else {
        // Names without an extension, or with one that nobody knows.
        match head(&set.path.join(name)).map(|head| kind(&head)) {
            Some(Kind::Picture(_)) => Role::Picture,
            Some(Kind::Known(what, _)) if what.ends_with("picture") => {
                Role::None(Reason::Undecodable)
            }
            _ => Role::None(Reason::Other),
        }
    }
}

/// Whether a name is one of a picture.
pub(super) fn is_picture_name(name: &str) -> bool {
    let extension = extension(name);
    extension == "tiff" || PICTURES.contains(&extension.as_str())
}

fn head(path: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    let file = File::open(path).ok()?;
    file.take(HEAD_BYTES as u64).read_to_end(&mut head).ok()?;
    Some(head)
}

impl Files {
    /// Whether a name may be that of a folder of frames.
    pub(super) fn is_numbered(&self, name: &str) -> bool {
        self.numbered.contains_key(name)
    }

    /// Makes clips of the folders of numbered frames that have captions: a file of the folder's name beside it, or a line in a list.
    pub(super) fn take_clips(
        &mut self,
        root: &Path,
        is_listed: impl Fn(&str) -> bool,
        monitor: &dyn Monitor,
    ) {
        let stems = self
            .captions
            .iter()
            .map(|name| Path::new(name).with_extension(""));
        let stems: BTreeSet<PathBuf> = stems.collect();
        let mut numbered = std::mem::take(&mut self.numbered);
        numbered.retain(|name, _| stems.contains(Path::new(name)) || is_listed(name));
        if numbered.is_empty() {
            return;
        }
        let inside = |name: &str| {
            let mut above = Path::new(name).ancestors().skip(1);
            above.any(|folder| {
                folder
                    .to_str()
                    .is_some_and(|folder| numbered.contains_key(folder))
            })
        };
        self.pictures.retain(|name| !inside(name));
        for names in [&mut self.closed, &mut self.folders] {
            names.retain(|name| !numbered.contains_key(name));
        }
        for (name, gaps) in &numbered {
            if let Some(gaps) = gaps {
                let place = shown::path(root);
                let name = shown::text(name);
                monitor.problem(&format!(
                    "{place}: {name}: frames are missing ({gaps}), and what is before them is followed by what is behind: add them, or split the clip"
                ));
            }
        }
        self.pictures.extend(numbered.into_keys());
        self.pictures.sort_by(|a, b| natural(a, b));
    }

    /// Leaves out pictures in a folder of masks whose names are those of pictures beside the folder, and that have no captions.
    fn leave_masks(&mut self) {
        let stem = |name: &str| Path::new(name).with_extension("");
        let captions: BTreeSet<_> = self.captions.iter().map(|name| stem(name)).collect();
        let pictures: BTreeSet<_> = self.pictures.iter().map(|name| stem(name)).collect();
        let is_mask = |name: &String| {
            let stem = stem(name);
            let (Some(folder), Some(last)) = (stem.parent(), stem.file_name()) else {
                return false;
            };
            let called = folder
                .file_name()
                .map(|folder| folder.to_string_lossy().to_lowercase());
            called.is_some_and(|called| MASK_FOLDERS.contains(&called.as_str()))
                && folder
                    .parent()
                    .is_some_and(|above| pictures.contains(&above.join(last)))
                && !captions.contains(&stem)
        };
        let (masks, pictures) = std::mem::take(&mut self.pictures)
            .into_iter()
            .partition(is_mask);
        self.pictures = pictures;
        for mask in masks {
            self.left.add(Reason::Mask, mask);
        }
    }
}

//! Finding pictures and their captions. Everything that is wrong is told at once.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::caption::{self, LIST};
use super::{Dataset, Error, Folder, Item, PictureFile};
use crate::monitor::Monitor;

/// Extensions of files that are taken for pictures, in any case.
const PICTURES: [&str; 8] = ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"];
/// Extensions of pictures that cannot be decoded here: told, where others are passed over.
const UNREADABLE: [&str; 6] = ["avif", "heic", "heif", "jxl", "jp2", "psd"];
/// The most names in one message.
const NAMED: usize = 10;

impl Dataset {
    /// The captioned pictures of these folders.
    ///
    /// In a folder, a picture's caption is its line in `metadata.jsonl` (`file_name` and `text`) or the file of
    /// its name with the extension `.txt` (else `.caption`). Hidden files are not looked at. Every file is read
    /// once, for its digest; none is decoded.
    ///
    /// # Errors
    /// If a folder cannot be read or has no picture, a picture or caption cannot be used, or a picture has no
    /// caption; all of it, not only the first.
    pub fn scan(folders: &[Folder], monitor: &dyn Monitor) -> Result<Self, Error> {
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        for (n, folder) in folders.iter().enumerate() {
            match pictures(folder, monitor) {
                Ok(pictures) => found.extend(pictures.into_iter().map(|picture| (n, picture))),
                Err(error) => errors.push(error),
            }
        }
        monitor.start("look at pictures", Some(found.len() as u64));
        let items: Vec<_> = found
            .into_par_iter()
            .map(|(n, (picture, caption))| {
                let item = item(&folders[n], picture, caption);
                monitor.advance(1);
                item
            })
            .collect();
        monitor.finish();
        let (items, failed): (Vec<_>, Vec<_>) = items.into_iter().partition(Result::is_ok);
        errors.extend(failed.into_iter().filter_map(Result::err));
        if errors.len() > 1 {
            return Err(Error::Several(errors));
        }
        match errors.pop() {
            Some(error) => Err(error),
            None if items.is_empty() => {
                Err(Error::Nothing("no folder of pictures is given".to_owned()))
            }
            None => Ok(Self {
                items: items.into_iter().filter_map(Result::ok).collect(),
            }),
        }
    }
}

fn item(folder: &Folder, picture: PathBuf, caption: String) -> Result<Item, Error> {
    let unusable = |problem: String| Error::Unusable {
        path: picture.clone(),
        problem,
    };
    let trigger = folder
        .set
        .trigger
        .as_deref()
        .filter(|word| !word.is_empty());
    let caption = caption::with_trigger(&caption, trigger).map_err(unusable)?;
    let file = PictureFile::open(&picture)?;
    let (digest, size) = (file.digest, file.size);
    let views = folder.view_rules.views(size);
    let views = views.map_err(|e| unusable(e.to_string()))?;
    Ok(Item {
        picture,
        digest,
        size,
        captions: vec![caption],
        views,
        repeats: folder.set.repeats,
        held_out: false,
    })
}

/// The pictures of a folder and their captions, in order.
fn pictures(folder: &Folder, monitor: &dyn Monitor) -> Result<Vec<(PathBuf, String)>, Error> {
    let root = &folder.set.path;
    let fail = |path: &Path, problem: String| {
        Err(Error::Unusable {
            path: path.to_owned(),
            problem,
        })
    };
    if folder.set.repeats == 0 {
        return fail(
            root,
            "`repeats` is 0, expected at least 1; leave the folder out instead".to_owned(),
        );
    }
    let mut files = Vec::new();
    let deeper = files_below(root, root, folder.set.recursive, &mut files)?;
    files.sort_by(|a, b| natural(a, b));
    let names: BTreeSet<&str> = files.iter().map(String::as_str).collect();
    let has_extension = |name: &str, list: &[&str]| {
        let extension = Path::new(name).extension().and_then(|e| e.to_str());
        extension.is_some_and(|e| list.iter().any(|known| e.eq_ignore_ascii_case(known)))
    };
    // A problem and not silence: a data set that is smaller than the person thinks trains another LoRA.
    for name in files.iter().filter(|name| has_extension(name, &UNREADABLE)) {
        monitor.problem(&format!(
            "{} was not read: save it as PNG, JPEG or WebP",
            root.join(name).display()
        ));
    }
    let pictures: Vec<&str> = files
        .iter()
        .map(String::as_str)
        .filter(|name| has_extension(name, &PICTURES))
        .collect();
    if pictures.is_empty() {
        let hint = if deeper {
            " (it has folders: set `recursive = true` to read them)"
        } else {
            ""
        };
        return fail(root, format!("the folder has no picture{hint}"));
    }
    if deeper {
        monitor.note(&format!(
            "{} has folders inside that were not read (`recursive = true` reads them)",
            root.display()
        ));
    }
    let mut listed = match names.contains(LIST) {
        true => caption::list(&root.join(LIST))?,
        false => BTreeMap::new(),
    };
    let (mut out, mut bare) = (Vec::new(), Vec::new());
    for name in pictures {
        match caption_of(folder, name, &names, listed.remove(name))? {
            Some(caption) => out.push((root.join(name), caption)),
            None => bare.push(root.join(name)),
        }
    }
    // A misspelt name: its caption would be used for nothing, and nobody would know.
    if let Some(name) = listed.keys().next() {
        return fail(
            &root.join(LIST),
            format!("`{name}` is not a picture in the folder"),
        );
    }
    if !bare.is_empty() {
        let named: Vec<_> = bare
            .iter()
            .take(NAMED)
            .map(|path| path.display().to_string())
            .collect();
        let more = if bare.len() > NAMED { ", ..." } else { "" };
        return Err(Error::NoCaption {
            count: bare.len(),
            named: format!("{}{more}", named.join(", ")),
        });
    }
    Ok(out)
}

/// A picture's caption; `None` if it has none and none is assumed.
fn caption_of(
    folder: &Folder,
    picture: &str,
    names: &BTreeSet<&str>,
    listed: Option<String>,
) -> Result<Option<String>, Error> {
    let stem = Path::new(picture).with_extension("");
    let fail = |problem: String| Error::Unusable {
        path: folder.set.path.join(picture),
        problem,
    };
    let stem = stem.to_str().unwrap_or_default();
    let extensions: &[&str] = match &folder.set.caption_extension {
        Some(extension) => &[extension.trim_start_matches('.')],
        None => &["txt", "caption"],
    };
    let beside: Vec<_> = extensions
        .iter()
        .map(|extension| format!("{stem}.{extension}"))
        .filter(|name| names.contains(name.as_str()))
        .collect();
    // Of two captions the right one cannot be guessed.
    let caption = match (listed, beside.as_slice()) {
        (Some(_), [file, ..]) => {
            return Err(fail(format!(
                "it has a caption in {LIST} and one in {file}: remove one of them"
            )));
        }
        (_, [one, other, ..]) => {
            return Err(fail(format!(
                "it has captions in {one} and in {other}: remove one of them"
            )));
        }
        (Some(caption), []) => Some(caption),
        (None, [file]) => Some(caption::read(&folder.set.path.join(file))?),
        (None, []) => None,
    };
    let caption = caption
        // An empty file counts as none: it gets what the folder says of pictures without a caption.
        .filter(|caption| !caption.is_empty())
        .or(folder.set.default_caption.clone());
    Ok(caption.or(folder.set.allow_empty_captions.then(String::new)))
}

/// Adds the paths of all files below `folder`, relative to `root` and with `/`. Says whether there are folders
/// that were not entered. Links to folders are not followed, as they may lead in circles.
fn files_below(
    root: &Path,
    folder: &Path,
    recursive: bool,
    files: &mut Vec<String>,
) -> Result<bool, Error> {
    let io = |source| Error::Io {
        path: folder.to_owned(),
        source,
    };
    let mut deeper = false;
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        // Among them macOS' `._NAME` files, which are called like pictures and are none.
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let is_folder = entry.file_type().map_err(io)?.is_dir();
        if is_folder && recursive {
            files_below(root, &path, recursive, files)?;
        } else if is_folder {
            deeper = true;
        } else if path.is_file() {
            let below: Option<Vec<_>> = path
                .strip_prefix(root)
                .unwrap_or(&path)
                .iter()
                .map(|part| part.to_str())
                .collect();
            let Some(below) = below else {
                let problem = "the name is not Unicode: rename the file".to_owned();
                return Err(Error::Unusable { path, problem });
            };
            files.push(below.join("/"));
        }
    }
    Ok(deeper)
}

/// The order of names as file managers have it: numbers in them by value, letters without their case. Byte by byte where that does not
/// decide, so that the order is total.
pub(super) fn natural(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a.as_bytes(), b.as_bytes());
    loop {
        match (x.first(), y.first()) {
            (None, None) => return a.cmp(b),
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
            (Some(p), Some(q)) if p.is_ascii_digit() && q.is_ascii_digit() => {
                let (m, n) = (number(&mut x), number(&mut y));
                // Without leading zeros the longer number is the larger; no number is too long to compare.
                let order = m.len().cmp(&n.len()).then(m.cmp(n));
                if order != Ordering::Equal {
                    return order;
                }
            }
            (Some(p), Some(q)) => {
                let order = p.to_ascii_lowercase().cmp(&q.to_ascii_lowercase());
                if order != Ordering::Equal {
                    return order;
                }
                (x, y) = (&x[1..], &y[1..]);
            }
        }
    }
}

/// Takes the digits at the front, and gives them without leading zeros.
fn number<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text
        .iter()
        .position(|b| !b.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    let zeros = digits.iter().take_while(|&&b| b == b'0').count();
    &digits[zeros..]
}

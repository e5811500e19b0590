//! What names of files and folders may mean to a person and do not mean here: told, as nobody would know otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tokenizers::NormalizedString;

use super::Folder;
use super::files::Files;
use super::left_out::{Reason, named};
use crate::monitor::Monitor;
use crate::shown;

/// What names may mean to a person and do not mean here.
pub(super) fn tell_of_names(
    folder: &Folder,
    files: &Files,
    beside: &BTreeMap<&str, Vec<&String>>,
    monitor: &dyn Monitor,
) {
    let root = shown::path(&folder.set.path);
    if !files.closed.is_empty() {
        monitor.note(&format!(
            "{root} has {} folders inside that were not read (`recursive = true` reads them): {}",
            files.closed.len(),
            named(&files.closed)
        ));
    }
    let mut users: BTreeMap<&String, Vec<&str>> = BTreeMap::new();
    for (&picture, captions) in beside {
        for &caption in captions {
            users.entry(caption).or_default().push(picture);
        }
    }
    let shared: Vec<_> = users
        .values()
        .filter(|pictures| pictures.len() > 1)
        .collect();
    if let Some(first) = shared.first() {
        monitor.note(&format!(
            "{root}: {} of several pictures each, as these have one name: {}",
            shown::counted(shared.len(), "caption file"),
            named(first)
        ));
    }
    tell_of_forms(folder, files, beside, monitor);
    tell_of_numbers(folder, files, monitor);
}

/// Tells of captions whose names look as those of pictures without a caption do, and are made of other signs: macOS writes a letter and
/// its accent apart.
fn tell_of_forms(
    folder: &Folder,
    files: &Files,
    beside: &BTreeMap<&str, Vec<&String>>,
    monitor: &dyn Monitor,
) {
    let stem = |name: &str| {
        let name = Path::new(name).with_extension("");
        let mut text = NormalizedString::from(&*name.to_string_lossy());
        text.nfc();
        text.get().to_owned()
    };
    let bare = files
        .pictures
        .iter()
        .filter(|name| !beside.contains_key(name.as_str()));
    let bare: BTreeSet<String> = bare.map(|name| stem(name)).collect();
    let orphans = files.left.of(Reason::Orphan).iter();
    let alike: Vec<&String> = orphans.filter(|name| bare.contains(&stem(name))).collect();
    if !alike.is_empty() {
        monitor.problem(&format!(
            "{}: {} named as a picture is, but in another Unicode form, with accents as signs of their own or not: rename one of the two as the other: {}",
            shown::path(&folder.set.path),
            match alike.len() {
                1 => "1 caption is".to_owned(),
                several => format!("{several} captions are"),
            },
            named(&alike)
        ));
    }
}

/// What to do about pictures without a caption.
pub(super) fn write_captions(folder: &Folder, files: &Files, bare: &[&str]) -> String {
    let extension = folder.set.caption_ending().unwrap_or("txt");
    let others = files.left.of(Reason::Other).iter();
    let there: BTreeSet<&str> = others.map(String::as_str).collect();
    let usual = |name: &&str| {
        let name = Path::new(name).with_extension("txt");
        name.to_str().is_some_and(|name| there.contains(name))
    };
    match bare.iter().filter(|name| usual(name)).count() {
        0 => format!("write a .{} beside each", shown::text(extension)),
        count => format!(
            "{count} of them have a .txt, which is not read as `caption_extension` is `{}`: leave that out, or set it to `txt`",
            shown::text(extension)
        ),
    }
}

/// Tells of kohya's folders, whose names say how often each picture comes.
fn tell_of_numbers(folder: &Folder, files: &Files, monitor: &dyn Monitor) {
    let own = folder.set.path.file_name().and_then(|name| name.to_str());
    // Who writes repeats does not expect the name to be read.
    let own = own.filter(|_| folder.set.repeats == 1);
    let inside = files
        .folders
        .iter()
        .filter_map(|name| name.rsplit('/').next());
    let numbered = own.into_iter().chain(inside);
    let lines: Vec<_> = numbered
        .filter_map(|name| Some((name, number(name)?)))
        .filter(|(_, repeats)| *repeats > 1)
        .map(|(name, repeats)| format!("`repeats = {repeats}` for {}", shown::text(name)))
        .collect();
    if !lines.is_empty() {
        monitor.note(&format!(
            "{}: kohya's numbers in the names of folders are not read; write a [[dataset]] for each of these folders, with {}",
            shown::path(&folder.set.path),
            named(&lines)
        ));
    }
}

/// How often kohya would repeat the pictures of a folder with this name: `10_sks dog`.
fn number(name: &str) -> Option<u32> {
    let (number, rest) = name.split_once('_')?;
    (!rest.is_empty()).then(|| number.parse().ok())?
}

//! What names of files and folders may mean to a person and do not mean here: told, as nobody would know otherwise.

use std::collections::BTreeMap;

use super::Folder;
use super::files::Files;
use super::left_out::named;
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
    tell_of_numbers(folder, files, monitor);
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

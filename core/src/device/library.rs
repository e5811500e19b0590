//! Libraries of NVIDIA's that are looked for when the program runs.

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use libloading::{Error, Library};

/// Opens a library by the first of its names that is found by the system's loader, else in `folders`.
///
/// # Errors
/// If it is nowhere: where it was looked for, and what the loader says of the last place.
pub(crate) fn open_library(names: &[&str], folders: &[PathBuf]) -> Result<Library, String> {
    let by_name = names.iter().map(PathBuf::from);
    let in_folders = folders
        .iter()
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    let mut why = String::new();
    for place in by_name.chain(in_folders) {
        match open_one(&place) {
            Ok(library) => return Ok(library),
            Err(error) => why = reason(&error),
        }
    }
    Err(format!(
        "{} was not found by the system's loader or in {} folders: {why}",
        names.join(" or "),
        folders.len()
    ))
}

/// Opens the library of a file, and nothing else.
pub(super) fn open_one(place: &Path) -> Result<Library, Error> {
    // SAFETY: NVIDIA's libraries may be loaded at any time; their initialisers touch nothing of ours.
    unsafe { Library::new(place) }
}

/// Leaves a library open: what was taken of it stays good, and whoever asks for it by its name later finds it.
pub(crate) fn keep_open(library: Library) {
    let _ = ManuallyDrop::new(library);
}

/// What the system's loader says, which the error keeps to itself.
fn reason(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}

//! Which folders are clips: those with nothing but pictures that are numbered.

use std::path::Path;
use std::{fs, io};

use crate::dataset::files::is_picture_name;

/// The numbers that are missing, in a few words; None where none is.
pub(in crate::dataset) type Gaps = Option<String>;

/// The most entries that are looked at.
const MOST: usize = 200_000;

/// Whether a folder has nothing but pictures called by a number, all behind the same letters, and at least two of them: what numbers
/// are missing between them. None if it has anything else.
///
/// # Errors
/// If it cannot be read.
pub(in crate::dataset) fn numbered(folder: &Path) -> io::Result<Option<Gaps>> {
    let (mut letters, mut numbers) = (None, Vec::new());
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else {
            return Ok(None);
        };
        // What systems leave behind.
        if name.starts_with('.') || name.eq_ignore_ascii_case("thumbs.db") {
            continue;
        }
        let Some((before, number)) = split(name) else {
            return Ok(None);
        };
        if *letters.get_or_insert_with(|| before.to_owned()) != before || numbers.len() >= MOST {
            return Ok(None);
        }
        numbers.push(number);
    }
    if numbers.len() < 2 {
        return Ok(None);
    }
    numbers.sort_unstable();
    // Two with one number have no order.
    if numbers.windows(2).any(|pair| pair[0] == pair[1]) {
        return Ok(None);
    }
    let gap = |pair: &[u64]| (pair[1] - pair[0] > 1).then_some((pair[0] + 1, pair[1] - 1));
    let gaps: Vec<_> = numbers.windows(2).filter_map(gap).collect();
    let words = |&(first, last): &(u64, u64)| match first == last {
        true => first.to_string(),
        false => format!("{first} to {last}"),
    };
    let mut told: Vec<String> = gaps.iter().take(3).map(words).collect();
    if gaps.len() > 3 {
        told.push("...".to_owned());
    }
    Ok(Some((!told.is_empty()).then(|| told.join(", "))))
}

/// A picture's name before its number, and the number.
fn split(name: &str) -> Option<(&str, u64)> {
    let stem = Path::new(name).file_stem()?.to_str()?;
    let digits = stem.len() - stem.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (before, number) = stem.split_at(stem.len() - digits);
    Some((
        before,
        number.parse().ok().filter(|_| is_picture_name(name))?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_frames_has_numbered_pictures_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let found = || numbered(folder.path()).expect("read");
        let add = |name: &str| std::fs::write(folder.path().join(name), "").expect("written");
        add("f_0009.png");
        assert_eq!(found(), None, "one frame");
        add("f_0010.png");
        add(".DS_Store");
        assert_eq!(found(), Some(None));
        for name in ["f_0012.png", "f_0016.jpg", "f_0020.png", "f_30.png"] {
            add(name);
        }
        assert_eq!(
            found(),
            Some(Some("11, 13 to 15, 17 to 19, ...".to_owned()))
        );
        for other in [
            "note.txt",
            "g_1.png",
            "f_.png",
            "f_9.jpg",
            "f_99999999999999999999.png",
        ] {
            add(other);
            assert_eq!(found(), None, "{other}");
            std::fs::remove_file(folder.path().join(other)).expect("removed");
        }
        assert!(found().is_some());
        assert!(numbered(&folder.path().join("none")).is_err());
    }
}

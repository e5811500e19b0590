//! Pictures and clips, in words.

use super::Item;
use crate::shown::counted;

/// So many pictures and windows of clips, in words.
pub fn pictures_and_windows(pictures: u64, windows: u64) -> String {
    both(pictures, windows, "window of clips")
}

/// The same of items, of which each is a picture or a window.
pub fn items_in_words<'a>(items: impl IntoIterator<Item = &'a Item>) -> String {
    let Subjects { pictures, clips } = Subjects::of(items);
    pictures_and_windows(pictures, clips)
}

fn both(pictures: u64, others: u64, other: &str) -> String {
    let (of_pictures, of_others) = (counted(pictures, "picture"), counted(others, other));
    match (pictures, others) {
        (_, 0) => of_pictures,
        (0, _) => of_others,
        _ => format!("{of_pictures} and {of_others}"),
    }
}

/// What is measured one by one: pictures, and clips, whose windows count as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subjects {
    /// How many pictures there are.
    pub pictures: u64,
    /// How many clips.
    pub clips: u64,
}

impl Subjects {
    /// Of so many in all, of which some are clips.
    pub fn new(all: u64, clips: u64) -> Self {
        let clips = clips.min(all);
        Self {
            pictures: all - clips,
            clips,
        }
    }

    /// Of an item of each.
    pub fn of<'a>(items: impl IntoIterator<Item = &'a Item>) -> Self {
        let mut found = Self::default();
        for item in items {
            match item.is_of_clip() {
                true => found.clips += 1,
                false => found.pictures += 1,
            }
        }
        found
    }

    /// `12 pictures`, `3 clips`, `12 pictures and 3 clips`.
    pub fn counted(self) -> String {
        both(self.pictures, self.clips, "clip")
    }

    /// Any one of them.
    pub fn one(self) -> &'static str {
        match (self.pictures, self.clips) {
            (_, 0) => "picture",
            (0, _) => "clip",
            _ => "picture or clip",
        }
    }

    /// Several such.
    pub fn several(self) -> &'static str {
        match (self.pictures, self.clips) {
            (_, 0) => "pictures",
            (0, _) => "clips",
            _ => "pictures and clips",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Subjects, pictures_and_windows};

    #[test]
    fn clips_and_their_windows_are_not_called_pictures() {
        let words = |all, clips| {
            let subjects = Subjects::new(all, clips);
            let [one, several] = [subjects.one(), subjects.several()];
            format!("{}, {one}, {several}", subjects.counted())
        };
        assert_eq!(words(1, 0), "1 picture, picture, pictures");
        assert_eq!(words(3, 3), "3 clips, clip, clips");
        assert_eq!(
            words(5, 1),
            "4 pictures and 1 clip, picture or clip, pictures and clips"
        );
        // A report that says more clips than there are subjects.
        assert_eq!(words(1, 2), "1 clip, clip, clips");
        assert_eq!(words(0, 0), "0 pictures, picture, pictures");
        assert_eq!(pictures_and_windows(0, 1), "1 window of clips");
        assert_eq!(
            pictures_and_windows(1, 2),
            "1 picture and 2 windows of clips"
        );
    }
}

//! Pictures in small, each once, however often it is shown.

use std::collections::HashMap;

use super::super::export::jpeg;
use super::packed;
use crate::dataset::{self, Viewed};
use crate::digest::Digest;
use crate::monitor::Monitor;
use crate::recipe::latents::Window;
use crate::shown;

/// The longer side of a thumbnail, in px.
const SIDE_PX: u32 = 80;
const QUALITY: u8 = 55;

/// The thumbnails of a page.
#[derive(Default)]
pub(super) struct Thumbnails {
    /// As base64 of JPEG files.
    pub(super) files: Vec<String>,
    /// Which of them is a picture's or a clip's window's; `None`: it has none.
    places: HashMap<Key, Option<usize>>,
    /// How many are left out to keep the page small.
    without: usize,
}

type Key = (Digest, Option<Window>);

fn key(of: &Viewed<'_>) -> Key {
    (of.digest, of.views.first().and_then(|view| view.window))
}

impl Thumbnails {
    /// Of the wanted pictures, in their order, until they take more than `most` bytes. One that no longer decodes is told.
    pub(super) fn make<'a>(
        wanted: impl Iterator<Item = Viewed<'a>>,
        most: usize,
        monitor: &dyn Monitor,
    ) -> Self {
        let mut all = Self::default();
        let is_new = |of: &Viewed<'a>| all.places.insert(key(of), None).is_none();
        let wanted: Vec<Viewed<'a>> = wanted.filter(is_new).collect();
        let mut bytes = 0;
        for (of, made) in wanted.iter().zip(dataset::thumbnails(&wanted, SIDE_PX)) {
            let made = made.map_err(|e| e.to_string());
            match made.and_then(|picture| jpeg(&picture, QUALITY)) {
                Ok(jpeg) if bytes + jpeg.len() * 4 / 3 <= most => {
                    bytes += jpeg.len() * 4 / 3;
                    all.places.insert(key(of), Some(all.files.len()));
                    all.files.push(packed::base64(&jpeg));
                }
                Ok(_) => all.without += 1,
                Err(why) => {
                    let path = shown::path(of.picture);
                    monitor.problem(&format!("{path}: no thumbnail: {why}"));
                }
            }
        }
        all
    }

    /// Which one is a picture's.
    pub(super) fn of(&self, picture: &Viewed<'_>) -> Option<usize> {
        self.places.get(&key(picture)).copied().flatten()
    }

    /// What is left out, in a sentence.
    pub(super) fn left_out(&self) -> Option<String> {
        let without = self.without;
        (without > 0).then(|| format!("{without} thumbnails are left out to keep the page small"))
    }
}

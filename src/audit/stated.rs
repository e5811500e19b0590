//! Where SimpleTuner says that pictures are cropped, against the part that their latents were found to be of. What it says is no evidence
//! of the latents (see `foreign::cache::StatedCrop`), so nothing is looked for there; but SDXL is told it in training.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::LatentsFinding;
use super::pair::{Known, Paired};
use crate::foreign::cache::{self, LeftOut, StatedCrop, Trainer};
use crate::monitor::Monitor;
use crate::recipe::latents::View;
use crate::shown;

/// So many px beside each other are the same place: trainers round the size that is cropped otherwise, and a latent is as wide.
const SAME_PLACE: u32 = 8;

/// The crops of SimpleTuner's list against those of the latents.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StatedCrops {
    /// The lists.
    pub lists: Vec<PathBuf>,
    /// Tensors whose crop was found and is in a list.
    pub compared: usize,
    /// Those of them that are of another part of the picture.
    pub elsewhere: usize,
    /// The first of these.
    pub first: Option<OtherCrop>,
}

/// Latents of another part of their picture than a list says.
#[derive(Clone, Debug, Serialize)]
pub struct OtherCrop {
    /// The file.
    pub path: PathBuf,
    /// Left and top as the list has them, in px of the resized picture.
    pub stated: [u32; 2],
    /// Left and top as they were found.
    pub found: [u32; 2],
}

/// Compares the latents that were found in their pictures with the lists in these folders and beside the pictures.
pub(super) fn look(
    finding: &mut LatentsFinding,
    known: &Known,
    sample: &[Paired<'_>],
    folders: impl Iterator<Item = PathBuf>,
    unreadable: &mut Vec<LeftOut>,
    monitor: &dyn Monitor,
) {
    let theirs = sample
        .iter()
        .filter(|p| p.file.trainer == Trainer::Simpletuner);
    let pictures: BTreeMap<&Path, &Path> = theirs
        .filter_map(|p| {
            let picture = known.captions[p.caption].picture.as_deref()?;
            Some((p.file.path.as_path(), picture))
        })
        .collect();
    if pictures.is_empty() {
        return;
    }
    let beside = pictures.values().filter_map(|picture| picture.parent());
    let folders: BTreeSet<PathBuf> = folders.chain(beside.map(Path::to_owned)).collect();
    let mut crops = Vec::new();
    let mut said = StatedCrops::default();
    for list in folders.iter().flat_map(|folder| lists(folder)) {
        match cache::stated_crops(&list) {
            Ok(of_list) => {
                crops.extend(of_list);
                said.lists.push(list);
            }
            Err(error) => {
                let why = error.to_string();
                monitor.problem(&why);
                unreadable.push(LeftOut { path: list, why });
            }
        }
    }
    let views = std::mem::take(&mut finding.views);
    for (path, view) in &views {
        if let Some(picture) = pictures.get(path.as_path()) {
            said.compare(path, *view, picture, &crops);
        }
    }
    finding.stated = (said.compared > 0).then_some(said);
}

fn lists(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let lists = files.filter(|file| cache::is_list_of_crops(&file.file_name().to_string_lossy()));
    let mut paths: Vec<PathBuf> = lists.map(|file| file.path()).collect();
    paths.sort();
    paths
}

impl StatedCrops {
    fn compare(&mut self, path: &Path, view: View, picture: &Path, crops: &[StatedCrop]) {
        let name = picture.file_name().unwrap_or_default().to_string_lossy();
        let size = [view.bucket.width, view.bucket.height];
        let of_it = crops.iter().filter(|c| c.picture == name && c.size == size);
        let places: Vec<[u32; 2]> = of_it.map(|c| c.place).collect();
        // It mirrors nothing, and a picture of the same name elsewhere may have another crop.
        let Some(first) = places.first().filter(|_| !view.flip) else {
            return;
        };
        let found = [view.left, view.top];
        let is_there = |place: &[u32; 2]| {
            let mut sides = place.iter().zip(found);
            sides.all(|(stated, found)| stated.abs_diff(found) <= SAME_PLACE)
        };
        self.compared += 1;
        if !places.iter().any(is_there) {
            self.elsewhere += 1;
            self.first.get_or_insert(OtherCrop {
                path: path.to_owned(),
                stated: *first,
                found,
            });
        }
    }
}

/// As a person reads it, a line.
impl std::fmt::Display for StatedCrops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lists: Vec<String> = self
            .lists
            .iter()
            .map(|list| shown::path(list).to_string())
            .collect();
        let (lists, compared) = (lists.join(", "), self.compared);
        let Some(first) = &self.first else {
            return write!(f, "{lists} has the crops of {compared} where they are");
        };
        let ([x, y], [left, top]) = (first.stated, first.found);
        write!(
            f,
            "{lists} is wrong on {} of {compared} crops (SimpleTuner writes the middle for a random one, and tells it SDXL), first {}: left {x}, \
             top {y} instead of {left}, {top}",
            self.elsewhere,
            shown::path(&first.path),
        )
    }
}

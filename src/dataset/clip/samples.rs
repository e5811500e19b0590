//! From a clip to its samples: each window is one, with all of its crops.

use std::path::Path;

use super::windows::{left, windows};
use super::{ClipFile, is_video_name};
use crate::dataset::left_out::named;
use crate::dataset::picture::PictureError;
use crate::dataset::{Error, Folder};
use crate::digest::Digest;
use crate::experiment::ClipSettings;
use crate::monitor::Monitor;
use crate::recipe::latents::{Size, View};
use crate::shown;

/// A clip's samples.
pub(in crate::dataset) struct Samples {
    pub digest: Digest,
    pub size: Size,
    /// The views of each window; none of a clip that is too short.
    pub views: Vec<Vec<View>>,
    /// Frames, if some window does not fit into them.
    pub short: Option<u32>,
}

/// Whether a file or folder of a data set is a clip by its name alone. An animated picture is not: that is seen when it is opened.
pub(crate) fn is_clip(path: &Path) -> bool {
    is_video_name(&path.to_string_lossy()) || path.is_dir()
}

/// Looks at a clip.
///
/// # Errors
/// If it cannot be used.
pub(in crate::dataset) fn samples(
    folder: &Folder,
    settings: &ClipSettings,
    path: &Path,
) -> Result<Samples, Error> {
    let clip = ClipFile::open(path)?;
    let unusable = |problem| PictureError::Unusable {
        path: path.to_owned(),
        problem,
    };
    let views = folder.view_rules.views(clip.size);
    let views = views.map_err(|e| unusable(e.to_string()))?;
    let there = clip.frames_at(settings.rate);
    let windows = windows(settings, there).map_err(unusable)?;
    let in_window = |window| {
        let views = views.iter().map(|view| View {
            window: Some(window),
            ..*view
        });
        views.collect()
    };
    let left = left(settings, there);
    let longest = settings.frames.iter().max();
    Ok(Samples {
        digest: clip.digest,
        size: clip.size,
        views: windows.into_iter().map(in_window).collect(),
        short: longest
            .is_some_and(|&longest| longest > left)
            .then_some(left),
    })
}

/// Clips of a folder that are too short for a window: for all, or for some.
#[derive(Default)]
pub(in crate::dataset) struct Short {
    none: Vec<String>,
    some: Vec<String>,
}

impl Short {
    /// Adds a clip.
    pub(in crate::dataset) fn add(&mut self, folder: &Folder, path: &Path, samples: &Samples) {
        let Some(frames) = samples.short else { return };
        let below = path.strip_prefix(&folder.set.path).unwrap_or(path);
        let name = format!("{} ({frames})", below.display());
        match samples.views.is_empty() {
            true => self.none.push(name),
            false => self.some.push(name),
        }
    }

    /// Tells of them. A clip that gives nothing is a problem: the data set is smaller than a person may think.
    pub(in crate::dataset) fn tell(&self, folder: &Folder, monitor: &dyn Monitor) {
        let Some(settings) = folder.set.clip_settings() else {
            return;
        };
        let place = shown::path(&folder.set.path);
        let rate = settings.rate;
        if let Some(why) = self.without() {
            monitor.problem(&format!(
                "{place}: not used: {why} (frames at {rate} a second)"
            ));
        }
        // With `full` that is what was asked for.
        if !self.some.is_empty() && settings.frames.len() > 1 {
            monitor.note(&format!(
                "{place}: {} clips are too short for some of `frames` (at {rate} a second): {}",
                self.some.len(),
                named(&self.some)
            ));
        }
    }

    /// What is wrong with those that give nothing, if there are some.
    pub(in crate::dataset) fn without(&self) -> Option<String> {
        let count = self.none.len();
        let told = || {
            format!(
                "{} with fewer frames than `frames`: {}",
                shown::counted(count, "clip"),
                named(&self.none)
            )
        };
        (count > 0).then(told)
    }
}

#[cfg(test)]
#[path = "samples_tests.rs"]
mod tests;

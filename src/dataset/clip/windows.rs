//! Which windows of a clip there are. As musubi-tuner's `frame_extraction` (`src/musubi_tuner/dataset/image_video_dataset.py`), for each
//! length by itself; a window that two rules give is there once.

use std::collections::BTreeSet;

use crate::experiment::{ClipSettings, Windows};
use crate::recipe::latents::Window;

/// The most windows of one clip.
const MOST: usize = 10_000;

/// The frames that are left of a clip of `there` frames behind what is left out at its beginning.
pub(super) fn left(settings: &ClipSettings, there: u32) -> u32 {
    there.saturating_sub(skipped(settings))
}

/// The windows of a clip that has `there` frames at the settings' rate, by their beginning; none of one that is too short.
///
/// # Errors
/// If there are too many.
pub(super) fn windows(settings: &ClipSettings, there: u32) -> Result<Vec<Window>, String> {
    let (skipped, left) = (skipped(settings), left(settings, there));
    let mut places = BTreeSet::new();
    for &frames in &settings.frames {
        let Some(room) = left.checked_sub(frames) else {
            if settings.windows == Windows::Full && left > 0 {
                places.insert((0, (left - 1) / settings.step * settings.step + 1));
            }
            continue;
        };
        let every = |stride: u32| (0..=room).step_by(stride.max(1) as usize).take(MOST + 1);
        match settings.windows {
            Windows::Head | Windows::Full => _ = places.insert((0, frames)),
            Windows::Chunk => places.extend(every(frames).map(|start| (start, frames))),
            Windows::Slide(stride) => places.extend(every(stride).map(|start| (start, frames))),
            Windows::Uniform(count) => {
                let last = u64::from(count.saturating_sub(1).max(1));
                let start = |n| (u64::from(n) * u64::from(room) / last) as u32;
                places.extend((0..count).map(|n| (start(n), frames)));
            }
        }
        if places.len() > MOST {
            return Err(format!(
                "it has more than {MOST} windows by `windows = \"{}\"`: take fewer, or split the clip",
                settings.windows
            ));
        }
    }
    let window = |(start, frames)| Window {
        rate: settings.rate,
        start: start + skipped,
        frames,
    };
    Ok(places.into_iter().map(window).collect())
}

/// Frames that are left out at the beginning.
fn skipped(settings: &ClipSettings) -> u32 {
    // In bounds: a day at a thousand a second.
    (settings.start_seconds * settings.rate.frames_a_second()).round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::latents::Rate;

    fn places(windows: &str, frames: &[u32], there: u32) -> Vec<(u32, u32)> {
        let settings = settings(windows, frames, 0.0);
        let windows = super::windows(&settings, there).expect("windows");
        windows
            .iter()
            .map(|window| (window.start, window.frames))
            .collect()
    }

    fn settings(windows: &str, frames: &[u32], start_seconds: f64) -> ClipSettings {
        ClipSettings {
            frames: frames.to_vec(),
            step: 4,
            rate: Rate::new(16, 1).expect("a rate"),
            windows: windows.parse().expect("windows"),
            start_seconds,
        }
    }

    #[test]
    fn each_rule_places_windows_as_musubi_tuner_does() {
        assert_eq!(places("head", &[17], 40), [(0, 17)]);
        assert_eq!(places("head", &[33, 17], 32), [(0, 17)]);
        assert_eq!(places("chunk", &[17], 40), [(0, 17), (17, 17)]);
        assert_eq!(places("chunk", &[17], 34), [(0, 17), (17, 17)]);
        assert_eq!(places("slide:8", &[17], 40), [(0, 17), (8, 17), (16, 17)]);
        // numpy's linspace(0, 23, 4), cut to whole numbers.
        assert_eq!(
            places("uniform:4", &[17], 40),
            [(0, 17), (7, 17), (15, 17), (23, 17)]
        );
        // So little room that places coincide.
        assert_eq!(places("uniform:4", &[17], 18), [(0, 17), (1, 17)]);
        assert_eq!(places("full", &[81], 40), [(0, 37)]);
        assert_eq!(places("full", &[81], 100), [(0, 81)]);
        assert_eq!(places("full", &[81], 1), [(0, 1)]);
        assert_eq!(places("chunk", &[17], 16), []);
    }

    #[test]
    fn a_beginning_is_left_out_and_the_number_of_windows_is_bounded() {
        let late = settings("head", &[17], 1.5);
        let found = windows(&late, 41).expect("a window");
        assert_eq!((found[0].start, found.len()), (24, 1));
        assert_eq!(windows(&late, 40).expect("none").len(), 0);
        assert_eq!(windows(&late, 3).expect("none").len(), 0);
        let error = windows(&settings("slide:1", &[17], 0.0), u32::MAX).expect_err("too many");
        assert!(error.contains("more than 10000 windows"), "{error}");
    }
}

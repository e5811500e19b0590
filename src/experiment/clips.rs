//! Clips: what a family that makes videos is told of them, and what others must not be.

use super::check::{FieldProblem, wrong};
use super::raw::{Dataset, Raw, Windows};
use super::{DatasetSettings, Experiment};
use crate::models;
use crate::recipe::latents::Rate;
use crate::shown;

/// Frames a second where a data set says nothing: those of Wan 2.1 (`sample_fps` in `wan/configs/shared_config.py`), the one family of
/// videos there is.
const USUAL_RATE: Rate = Rate::whole(16);

/// What becomes of the clips of a data set.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipSettings {
    /// Lengths of windows, in frames.
    pub frames: Vec<u32>,
    /// A length is one more than a multiple of this.
    pub step: u32,
    /// Frames a second that clips are brought to.
    pub rate: Rate,
    /// Which windows there are.
    pub windows: Windows,
    /// So many seconds of each clip's beginning are left out.
    pub start_seconds: f64,
}

/// What a family can make of clips, and a data set says of them.
#[derive(Clone, Debug, PartialEq)]
pub enum ClipUse {
    /// The family makes pictures.
    Never,
    /// It makes videos, and the data set does not say how many frames of its clips are taken.
    NotSet,
    /// They are trained on.
    Windows(ClipSettings),
}

impl DatasetSettings {
    /// What becomes of its clips, if they are trained on.
    pub fn clip_settings(&self) -> Option<&ClipSettings> {
        match &self.clips {
            ClipUse::Windows(settings) => Some(settings),
            ClipUse::Never | ClipUse::NotSet => None,
        }
    }
}

impl Experiment {
    pub(super) fn clips(&self, set: &Dataset) -> ClipUse {
        match self.raw.frames_step() {
            None => ClipUse::Never,
            Some(step) => set.clips(step),
        }
    }
}

impl Raw {
    /// What the frames of a video are one more than a multiple of; None for a family that makes pictures.
    fn frames_step(&self) -> Option<u32> {
        // What is wrong with the name is told elsewhere.
        let family = models::family(&self.model.family).ok()?;
        let step = family.latents().factors.time?;
        u32::try_from(step).ok()
    }

    pub(super) fn check_clips(&self) -> Result<(), FieldProblem> {
        let step = self.frames_step();
        for (i, set) in self.dataset.iter().enumerate() {
            let checked = match step {
                Some(step) => set.check_clips(step),
                None => set.check_no_clips(&self.model.family),
            };
            checked.map_err(|(field, why)| (format!("dataset[{i}].{field}"), why))?;
        }
        self.check_sampled(step)
    }

    fn check_sampled(&self, step: Option<u32>) -> Result<(), FieldProblem> {
        let sample = &self.sample;
        let named = [
            ("sample.frames", sample.frames.is_some()),
            ("sample.frame_rate", sample.frame_rate.is_some()),
        ];
        let named = named.into_iter().find(|(_, is_named)| *is_named);
        match (step, named) {
            (None, Some((field, _))) => wrong(
                field,
                format!(
                    "family `{}` makes pictures; leave it out",
                    shown::text(&self.model.family)
                ),
            ),
            (Some(step), _) => match sample.frames.and_then(|n| not_a_length(n, step)) {
                Some(why) => wrong("sample.frames", why),
                None if sample.frame_rate.is_some() && self.sample_frames() == 1 => wrong(
                    "sample.frame_rate",
                    "one frame is a picture: set `frames`, such as to 17, or leave this out",
                ),
                None => Ok(()),
            },
            (None, None) => Ok(()),
        }
    }

    /// Frames of a preview: 1 of a family that makes pictures.
    pub(super) fn sample_frames(&self) -> u32 {
        let trained = || {
            let frames = self.dataset.first()?.frames.as_ref()?;
            frames.numbers().iter().copied().max()
        };
        match self.frames_step() {
            None => 1,
            Some(_) => self.sample.frames.or_else(trained).unwrap_or(1),
        }
    }

    /// Frames a second of a preview.
    pub(super) fn sample_rate(&self) -> Rate {
        let first = self.dataset.first();
        let named = self.sample.frame_rate;
        let named = named.or_else(|| first?.frame_rate);
        // The bounds of both fields are those of a rate.
        named.and_then(Rate::of).unwrap_or(USUAL_RATE)
    }
}

impl Dataset {
    fn named_for_clips(&self) -> [(&'static str, bool); 4] {
        [
            ("frames", self.frames.is_some()),
            ("frame_rate", self.frame_rate.is_some()),
            ("windows", self.windows.is_some()),
            ("clip_start", self.clip_start.is_some()),
        ]
    }

    fn clips(&self, step: u32) -> ClipUse {
        let rate = self.frame_rate.map_or(Some(USUAL_RATE), Rate::of);
        let (Some(frames), Some(rate)) = (&self.frames, rate) else {
            return ClipUse::NotSet;
        };
        ClipUse::Windows(ClipSettings {
            frames: frames.numbers().to_vec(),
            step,
            rate,
            windows: self.windows.unwrap_or_default(),
            start_seconds: self.clip_start.unwrap_or(0.0),
        })
    }

    fn check_no_clips(&self, family: &str) -> Result<(), FieldProblem> {
        let mut named = self.named_for_clips().into_iter();
        match named.find(|(_, is_named)| *is_named) {
            None => Ok(()),
            Some((field, _)) => wrong(
                field,
                format!(
                    "family `{}` makes pictures and is trained on pictures alone; leave it out",
                    shown::text(family)
                ),
            ),
        }
    }

    fn check_clips(&self, step: u32) -> Result<(), FieldProblem> {
        let Some(frames) = &self.frames else {
            let mut named = self.named_for_clips().into_iter();
            return match named.find(|(_, is_named)| *is_named) {
                None => Ok(()),
                Some((field, _)) => wrong(
                    field,
                    "no clip is read without `frames`: set it, such as to 17, or leave this out",
                ),
            };
        };
        let numbers = frames.numbers();
        if numbers.is_empty() {
            return wrong("frames", "expected at least one number, found none");
        }
        for (n, &count) in numbers.iter().enumerate() {
            if let Some(why) = not_a_length(count, step) {
                return wrong("frames", why);
            }
            if numbers[..n].contains(&count) {
                return wrong(
                    "frames",
                    format!("{count} is there twice; leave one of them out"),
                );
            }
        }
        if self.windows == Some(Windows::Full) && numbers.len() > 1 {
            let why = "with `windows = \"full\"` it is the most that is taken of a clip: expected one number";
            return wrong("frames", why);
        }
        Ok(())
    }
}

/// What is wrong with a number of frames, if anything.
fn not_a_length(count: u32, step: u32) -> Option<String> {
    if count > 0 && (count - 1).is_multiple_of(step) {
        return None;
    }
    let below = count.saturating_sub(1) / step * step + 1;
    let above = below.saturating_add(step);
    Some(format!(
        "expected 1 more than a multiple of {step}, such as {below} or {above}, found {count}"
    ))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn refusal(set: &str) -> String {
        let text = format!(
            "[model]\nfamily = \"sd3\"\nflavor = \"3-medium\"\npath = \"m\"\n[store]\npath = \"s\"\n\
             [train]\nsteps = 1\noutput = \"o\"\n[[dataset]]\npath = \"d\"\n{set}\n"
        );
        let parsed = Experiment::parse(Path::new("exp.toml"), text);
        parsed
            .err()
            .unwrap_or_else(|| panic!("{set} was taken"))
            .to_string()
    }

    /// A data set of a family of which frames are 4n + 1.
    fn checked(set: &str) -> Result<ClipUse, String> {
        let set: Dataset =
            toml::from_str(&format!("path = \"d\"\n{set}")).map_err(|e| e.to_string())?;
        set.check_clips(4)
            .map_err(|(field, why)| format!("`{field}`: {why}"))?;
        Ok(set.clips(4))
    }

    #[test]
    fn a_family_of_pictures_takes_no_option_of_clips() {
        for (field, line) in [
            ("frames", "frames = 17"),
            ("frame_rate", "frame_rate = 16"),
            ("windows", "windows = \"chunk\""),
            ("clip_start", "clip_start = 0.5"),
        ] {
            let error = refusal(line);
            let expected = format!("`dataset[0].{field}`: family `sd3` makes pictures");
            assert!(error.contains(&expected), "{error}");
        }
    }

    #[test]
    fn numbers_are_bounded() {
        for line in [
            "frames = 0",
            "frames = -17",
            "frames = [17, 0]",
            "frames = 17.5",
            "frame_rate = 0",
            "frame_rate = inf",
            "clip_start = -1.0",
        ] {
            let error = refusal(line);
            let field = line.split(' ').next().expect("a field");
            assert!(
                error.contains(&format!("dataset[0].{field}")) && error.contains("expected"),
                "{error}"
            );
            assert!(!error.contains("makes pictures"), "{error}");
        }
    }

    #[test]
    fn a_family_of_videos_is_told_which_windows() {
        assert_eq!(checked(""), Ok(ClipUse::NotSet));
        let Ok(ClipUse::Windows(plain)) = checked("frames = 17") else {
            panic!("clips are not read");
        };
        assert_eq!(
            (plain.frames, plain.step, plain.windows),
            (vec![17], 4, Windows::Head)
        );
        assert_eq!((plain.rate.numerator(), plain.rate.denominator()), (16, 1));
        let all = "frames = [1, 33]\nframe_rate = 23.976\nwindows = \"slide:8\"\nclip_start = 1.5";
        let Ok(ClipUse::Windows(all)) = checked(all) else {
            panic!("clips are not read");
        };
        assert_eq!((all.frames, all.windows), (vec![1, 33], Windows::Slide(8)));
        assert_eq!(
            (all.rate.to_string().as_str(), all.start_seconds),
            ("23.976", 1.5)
        );
    }

    #[test]
    fn what_would_have_no_effect_or_no_sense_is_refused() {
        for (line, expected) in [
            (
                "frame_rate = 16",
                "`frame_rate`: no clip is read without `frames`",
            ),
            (
                "frames = 16",
                "`frames`: expected 1 more than a multiple of 4, such as 13 or 17, found 16",
            ),
            ("frames = []", "at least one number"),
            ("frames = [17, 17]", "17 is there twice"),
            ("frames = \"17\"", "a number of frames"),
            (
                "frames = [17, 33]\nwindows = \"full\"",
                "expected one number",
            ),
            (
                "frames = 17\nwindows = \"heads\"",
                "expected \"head\", \"chunk\"",
            ),
        ] {
            let error = checked(line).expect_err(line);
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}

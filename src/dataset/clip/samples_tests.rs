//! A folder with clips and pictures, as a data set.

use std::path::Path;

use crate::dataset::tests::{Place, folder};
use crate::dataset::{Dataset, Folder, HeldOut, Item, clip, thumbnails};
use crate::experiment::{ClipSettings, ClipUse};
use crate::monitor::Recorder;
use crate::recipe::latents::Rate;

fn picture(place: &Place, name: &str, shade: u8) {
    let path = place.path().join(name);
    std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
    image::RgbImage::from_pixel(64, 64, image::Rgb([shade, 9, 9]))
        .save(path)
        .expect("saved");
}

fn of_clips(path: &Path, windows: &str, frames: &[u32]) -> Folder {
    let mut of = folder(path);
    of.set.clips = ClipUse::Windows(ClipSettings {
        frames: frames.to_vec(),
        step: 4,
        rate: Rate::new(16, 1).expect("a rate"),
        windows: windows.parse().expect("windows"),
        start_seconds: 0.0,
    });
    of
}

/// A folder with a picture, and clips of 11 and of 3 numbered frames.
fn place() -> Place {
    let place = Place::new();
    picture(&place, "a.png", 1);
    place.write("a.txt", "a picture");
    for n in 1..=11 {
        picture(&place, &format!("walk.1/f{n}.png"), 10 * n);
    }
    place.write("walk.1.txt", "a walk");
    for n in 1..=3 {
        picture(&place, &format!("jump/{n}.png"), 10 * n + 5);
    }
    place.write("jump.txt", "a jump");
    place
}

#[test]
fn clips_lie_beside_pictures_and_each_window_is_a_sample() {
    let place = place();
    let told = Recorder::default();
    let of = of_clips(place.path(), "chunk", &[5]);
    let data = Dataset::scan(&[of], &told).expect("a data set");
    let seen: Vec<_> = data
        .items
        .iter()
        .map(|item| {
            let window = item.views[0]
                .window
                .map(|window| (window.start, window.frames));
            (item.captions[0].as_str(), item.frames(), window)
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("a picture", 1, None),
            ("a walk", 5, Some((0, 5))),
            ("a walk", 5, Some((5, 5)))
        ]
    );
    let problems = told.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].contains("not used: 1 clip with fewer frames than `frames`: jump (3)"),
        "{problems:?}"
    );
    // Windows of one clip are on one side.
    let split = data.split(HeldOut::Count(1)).expect("a split");
    assert!(split.train == [0] || split.train == [1, 2], "{split:?}");
    let small: Vec<_> = thumbnails(&data.items.iter().map(Item::viewed).collect::<Vec<_>>(), 8);
    let small: Vec<u8> = small
        .into_iter()
        .map(|t| t.expect("a thumbnail").rgb[0])
        .collect();
    // The middle frames: the third, and the eighth.
    assert_eq!(small, [1, 30, 80]);
}

#[test]
fn a_folder_of_numbers_without_a_caption_is_no_clip() {
    let place = place();
    std::fs::remove_file(place.path().join("jump.txt")).expect("removed");
    let told = Recorder::default();
    let mut of = of_clips(place.path(), "head", &[9, 13]);
    let data = Dataset::scan(&[of.clone()], &told).expect("a data set");
    assert_eq!(data.items.len(), 2);
    assert!(told.problems().is_empty(), "{:?}", told.problems());
    let notes = told.notes().join("\n");
    assert!(
        notes.contains("1 folders inside that were not read") && notes.contains("jump"),
        "{notes}"
    );
    assert!(
        notes.contains("too short for some of `frames` (at 16 a second): walk.1 (11)"),
        "{notes}"
    );
    // Read as what it is then: pictures.
    of.set.recursive = true;
    of.set.default_caption = Some("a frame".to_owned());
    let data = Dataset::scan(&[of], &told).expect("a data set");
    assert_eq!(data.items.len(), 5);
}

#[test]
fn a_list_may_name_a_folder_of_frames_and_missing_frames_are_told() {
    let place = place();
    for name in ["walk.1.txt", "walk.1/f4.png", "walk.1/f5.png"] {
        std::fs::remove_file(place.path().join(name)).expect("removed");
    }
    for name in ["a.txt", "jump.txt"] {
        std::fs::remove_file(place.path().join(name)).expect("removed");
    }
    let line = |name: &str| format!("{{\"file_name\": \"{name}\", \"text\": \"t\"}}\n");
    place.write("metadata.jsonl", line("a.png") + &line("walk.1"));
    let told = Recorder::default();
    let of = of_clips(place.path(), "full", &[81]);
    let data = Dataset::scan(&[of], &told).expect("a data set");
    assert_eq!(
        data.items
            .iter()
            .map(|item| item.frames())
            .collect::<Vec<_>>(),
        [1, 9]
    );
    let problems = told.problems().join("\n");
    assert!(
        problems.contains("walk.1: frames are missing (4 to 5)"),
        "{problems}"
    );
}

#[test]
fn without_frames_clips_are_left_out_and_told() {
    let place = place();
    place.write("b.mp4", "x").write("b.txt", "b");
    let told = Recorder::default();
    let mut of = folder(place.path());
    of.set.clips = ClipUse::NotSet;
    assert_eq!(
        Dataset::scan(&[of.clone()], &told)
            .expect("a data set")
            .items
            .len(),
        1
    );
    let problems = told.problems().join("\n");
    assert!(
        problems.contains("1 clip (set `frames`, such as to 17, to train on clips): b.mp4"),
        "{problems}"
    );
    of.set.clips = ClipUse::Never;
    let told = Recorder::default();
    Dataset::scan(&[of], &told).expect("a data set");
    assert!(
        told.problems()
            .join("\n")
            .contains("cannot be decoded here")
    );
}

#[test]
fn a_clip_that_cannot_be_used_is_an_error_of_one_line() {
    let place = Place::new();
    place.write("b.mp4", "x").write("b.txt", "b");
    let error = Dataset::scan(
        &[of_clips(place.path(), "head", &[5])],
        &Recorder::default(),
    );
    let error = error.expect_err("no video").to_string();
    assert!(
        error.contains("b.mp4: not a clip that can be read") && !error.contains('\n'),
        "{error}"
    );
    let place = Place::new();
    for n in 1..=3 {
        picture(&place, &format!("jump/{n}.png"), n);
    }
    place.write("jump.txt", "a jump");
    let error = Dataset::scan(
        &[of_clips(place.path(), "head", &[5])],
        &Recorder::default(),
    );
    let error = error.expect_err("all too short").to_string();
    assert!(
        error.contains("1 clip with fewer frames than `frames`: jump (3)"),
        "{error}"
    );
    assert!(clip::ClipFile::open(&place.path().join("none.mp4")).is_err());
}

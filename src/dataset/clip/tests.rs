use std::path::Path;

use image::{Rgb, RgbImage};

use super::*;
use crate::recipe::latents::Resampling;

/// The n-th frame of a clip: one colour that tells the number, but for a stripe on the left.
fn frame(n: u32, size: (u32, u32)) -> RgbImage {
    RgbImage::from_fn(size.0, size.1, |x, _| match x {
        0 => Rgb([255, 0, 0]),
        _ => Rgb([(n * 10) as u8, 100, 50]),
    })
}

fn save(folder: &Path, name: &str, picture: &RgbImage) {
    picture.save(folder.join(name)).expect("saved");
}

fn window(start: u32, frames: u32) -> Window {
    let rate = Rate::new(16, 1).expect("a rate");
    Window {
        rate,
        start,
        frames,
    }
}

fn whole(size: Size, window: Window) -> View {
    View {
        resized: size,
        left: 0,
        top: 0,
        bucket: size,
        flip: false,
        resampling: Resampling::Spec,
        window: Some(window),
    }
}

/// The numbers that the frames of a chunk tell.
fn numbers(chunk: &FrameChunk) -> Vec<u8> {
    let frames = chunk.rgb.chunks_exact(3 * pixels(chunk.size));
    frames.map(|frame| frame[frame.len() - 3] / 10).collect()
}

#[test]
fn numbered_frames_come_in_their_order_some_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    for n in 1..=11 {
        save(folder.path(), &format!("walk_{n}.png"), &frame(n, (6, 4)));
    }
    let clip = ClipFile::open(folder.path()).expect("a clip");
    let size = clip.size;
    assert_eq!((size.width, size.height), (6, 4));
    assert_eq!(clip.frames_at(window(0, 1).rate), 11);
    let mut frames = clip.read(whole(size, window(1, 9))).expect("frames");
    assert_eq!(numbers(&frames.next(4).expect("four")), [2, 3, 4, 5]);
    assert_eq!(frames.left(), 5);
    assert_eq!(
        numbers(&frames.next(9).expect("the rest")),
        [6, 7, 8, 9, 10]
    );
    assert_eq!(frames.next(4).expect("none").frames, 0);
    let Err(error) = clip.read(whole(size, window(3, 9))) else {
        panic!("a window beyond the end was read");
    };
    assert!(error.to_string().contains("some of its 11"), "{error}");
}

#[test]
fn a_view_is_cropped_and_mirrored_and_its_planes_are_of_one_channel() {
    let folder = tempfile::tempdir().expect("a folder");
    for n in 0..5 {
        save(folder.path(), &format!("{n:04}.png"), &frame(n, (6, 4)));
    }
    let clip = ClipFile::open(folder.path()).expect("a clip");
    let bucket = Size {
        width: 2,
        height: 3,
    };
    let view = View {
        bucket,
        flip: true,
        ..whole(clip.size, window(0, 5))
    };
    let chunk = clip.read(view).and_then(|mut frames| frames.next(2));
    let chunk = chunk.expect("two frames");
    assert_eq!(chunk.rgb.len(), 2 * 3 * 2 * 3);
    // The red stripe lies on the right.
    assert_eq!(chunk.rgb[..6], [0, 100, 50, 255, 0, 0]);
    let planes = chunk.pixels();
    assert_eq!(planes.len(), chunk.rgb.len());
    assert_eq!(planes[..2], [-1.0, 1.0]);
    // Green of the first frame, behind two frames of red.
    assert_eq!(planes[12..14], [100.0 / 127.5 - 1.0, -1.0]);
}

#[test]
fn a_frame_that_changed_or_has_another_size_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    for n in 0..5 {
        save(folder.path(), &format!("{n}.png"), &frame(n, (6, 4)));
    }
    let clip = ClipFile::open(folder.path()).expect("a clip");
    let again = ClipFile::open(folder.path()).expect("a clip");
    assert_eq!(clip.digest, again.digest);
    save(folder.path(), "3.png", &frame(9, (6, 4)));
    let mut frames = clip.read(whole(clip.size, window(0, 5))).expect("frames");
    let error = frames.next(5).expect_err("a changed frame").to_string();
    assert!(error.contains("3.png has changed"), "{error}");
    assert_ne!(
        ClipFile::open(folder.path()).expect("a clip").digest,
        clip.digest
    );
    save(folder.path(), "4.png", &frame(4, (8, 4)));
    let Err(error) = ClipFile::open(folder.path()) else {
        panic!("frames of two sizes are a clip");
    };
    assert!(
        error
            .to_string()
            .contains("4.png: 8x4 pixels, expected 6x4"),
        "{error}"
    );
}

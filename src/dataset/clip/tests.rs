use std::path::Path;

use image::{Rgb, RgbImage};

use super::*;
use crate::recipe::latents::Resampling;

/// The n-th frame of a clip: one colour that tells the number, but for a stripe on the left.
pub(super) fn frame(n: u32, size: (u32, u32)) -> RgbImage {
    RgbImage::from_fn(size.0, size.1, |x, _| match x {
        0 => Rgb([255, 0, 0]),
        _ => Rgb([(n * 10) as u8, 100, 50]),
    })
}

fn save(folder: &Path, name: &str, picture: &RgbImage) {
    picture.save(folder.join(name)).expect("saved");
}

pub(super) fn window(start: u32, frames: u32) -> Window {
    let rate = Rate::new(16, 1).expect("a rate");
    Window {
        rate,
        start,
        frames,
    }
}

pub(super) fn whole(size: Size, window: Window) -> View {
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
pub(super) fn numbers(chunk: &FrameChunk) -> Vec<u8> {
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

/// A GIF of frames 0 to `count`, each shown for so many hundredths of a second.
fn gif(path: &Path, delays: &[u16]) {
    use image::codecs::gif::GifEncoder;
    let mut encoder = GifEncoder::new(std::fs::File::create(path).expect("made"));
    for (n, &delay) in (0..).zip(delays) {
        let picture = image::DynamicImage::ImageRgb8(frame(n, (6, 4))).to_rgba8();
        let delay = image::Delay::from_numer_denom_ms(u32::from(delay) * 10, 1);
        let frame = image::Frame::from_parts(picture, 0, 0, delay);
        encoder.encode_frame(frame).expect("written");
    }
}

#[test]
fn an_animation_is_brought_to_the_rate_by_its_own_times() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.gif");
    // 0.5 s, 0.25 s, what browsers show for 0.1 s, 0.4 s: 1.25 seconds are 20 frames.
    gif(&path, &[50, 25, 1, 40]);
    let clip = ClipFile::open(&path).expect("an animation");
    assert_eq!(clip.frames_at(window(0, 1).rate), 20);
    let chunk = clip
        .read(whole(clip.size, window(6, 14)))
        .and_then(|mut f| f.next(14));
    assert_eq!(
        numbers(&chunk.expect("frames")),
        [0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3]
    );
    let bytes = std::fs::read(&path).expect("read");
    std::fs::write(&path, &bytes[..bytes.len() - 30]).expect("written");
    let Err(error) = ClipFile::open(&path) else {
        panic!("an animation that is cut off was taken");
    };
    assert!(error.to_string().contains("not whole"), "{error}");
    save(folder.path(), "still.gif", &frame(1, (6, 4)));
    let Err(error) = ClipFile::open(&folder.path().join("still.gif")) else {
        panic!("a still picture was taken for a clip");
    };
    assert!(error.to_string().contains("a still picture"), "{error}");
}

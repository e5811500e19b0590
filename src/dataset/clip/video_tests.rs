use std::process::{Command, Stdio};

use super::*;
use crate::dataset::clip::tests::{frame, numbers, whole, window};
use crate::dataset::clip::{ClipFile, FrameChunk};

/// Whether there is an ffmpeg; says so where there is none.
fn has_ffmpeg() -> bool {
    let found = ffmpeg::on_path();
    if let Err(why) = &found {
        eprintln!("skipped: {why}");
    }
    found.is_ok()
}

/// A video of frames 0 to `count`, 25 a second, without loss, by ffmpeg with these options.
fn video(path: &Path, count: u32, options: &[&str]) {
    let folder = path.parent().expect("a folder");
    let raw = folder.join("raw.rgb");
    let frames = (0..count).flat_map(|n| frame(n, (16, 8)).into_raw());
    std::fs::write(&raw, frames.collect::<Vec<u8>>()).expect("written");
    let mut command = Command::new("ffmpeg");
    command.args([
        "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "16x8", "-r", "25",
    ]);
    command
        .arg("-i")
        .arg(&raw)
        .args(["-c:v", "png", "-pix_fmt", "rgb24"]);
    // As its own argument behind `file:`, so that the names of these tests may be anything.
    let mut file = std::ffi::OsString::from("file:");
    file.push(path);
    let status = command
        .args(options)
        .arg(file)
        .stdin(Stdio::null())
        .status();
    assert!(status.expect("ffmpeg").success());
}

fn all(clip: &ClipFile, window: Window) -> Result<FrameChunk, PictureError> {
    let mut frames = clip.read(whole(clip.size, window))?;
    frames.next(window.frames as usize)
}

fn refusal(path: &Path) -> String {
    match ClipFile::open(path) {
        Ok(_) => panic!("{} was taken", path.display()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_container_gives_the_nearest_frames_of_the_rate() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["a.mov", "a.mkv", "a.avi", "-i & 'odd' %d [x] \u{e9}.mkv"] {
        let path = folder.path().join(name);
        video(&path, 25, &[]);
        let clip = ClipFile::open(&path).expect("a video");
        assert_eq!(clip.frames_at(window(0, 1).rate), 16, "{name}");
        // Frame n of 25 a second begins at 16 n / 25 frames of 16 a second, and the last that is nearest to each is seen.
        let expected = [0, 2, 3, 5, 7, 8, 10, 11, 13, 14, 16, 17, 19, 21, 22, 24];
        let chunk = all(&clip, window(0, 16)).expect("frames");
        assert_eq!(numbers(&chunk), expected, "{name}");
        assert_eq!(
            numbers(&all(&clip, window(5, 5)).expect("frames")),
            expected[5..10]
        );
        let own = Window {
            rate: Rate::new(25, 1).expect("a rate"),
            ..window(20, 5)
        };
        assert_eq!(
            numbers(&all(&clip, own).expect("frames")),
            [20, 21, 22, 23, 24]
        );
    }
}

#[test]
fn frames_that_are_decoded_in_another_order_are_all_there() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["a.avi", "a.mov", "a.mkv"] {
        let path = folder.path().join(name);
        video(
            &path,
            25,
            &["-c:v", "mpeg4", "-pix_fmt", "yuv420p", "-bf", "2"],
        );
        let clip = ClipFile::open(&path).expect("a video");
        let there = clip.frames_at(window(0, 1).rate);
        assert_eq!(
            all(&clip, window(0, there)).expect(name).frames,
            16,
            "{name}"
        );
    }
}

#[test]
fn a_video_that_begins_late_is_whole_and_one_that_is_cut_off_is_not() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["a.mkv", "a.mov"] {
        let path = folder.path().join(name);
        video(&path, 25, &["-output_ts_offset", "5"]);
        let clip = ClipFile::open(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        let frames = all(&clip, window(0, 16)).expect("frames");
        assert_eq!(numbers(&frames)[..3], [0, 2, 3], "{name}");
    }
    let tags = |duration: &str| Tags {
        duration: Some(duration.to_owned()),
        ..Tags::default()
    };
    let stream = |duration: &str| Stream {
        start_time: Some("5.000000".to_owned()),
        tags: tags(duration),
        ..Stream::default()
    };
    let length = Moment {
        ticks: 1,
        tick: (1, 1),
    };
    let whole = |duration: &str| stream(duration).check_whole(25, length);
    assert_eq!(whole("00:00:06.000000000"), Ok(()));
    let why = whole("00:00:07.000000000").expect_err("half of it");
    assert!(why.contains("1.0 of the 2.0 seconds"), "{why}");
}

#[test]
fn a_late_window_is_the_same_from_a_seek() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("long.mkv");
    // At one a second, 25 frames are 25 seconds.
    video(&path, 25, &["-vf", "setpts=25*PTS", "-r", "1"]);
    let clip = ClipFile::open(&path).expect("a video");
    let rate = Rate::new(2, 1).expect("a rate");
    let late = Window {
        rate,
        start: 41,
        frames: 5,
    };
    assert!(f64::from(late.start) / rate.frames_a_second() > SEEK_SECONDS);
    // Shown from half a frame before it begins.
    assert_eq!(
        numbers(&all(&clip, late).expect("frames")),
        [20, 21, 21, 22, 22]
    );
}

#[test]
fn what_is_cut_off_or_damaged_is_refused() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for (name, options) in [
        ("a.mov", &["-movflags", "faststart"][..]),
        ("a.mkv", &[]),
        ("a.avi", &[]),
    ] {
        let path = folder.path().join(name);
        video(&path, 25, options);
        let whole_file = std::fs::read(&path).expect("read");
        std::fs::write(&path, &whole_file[..whole_file.len() * 2 / 3]).expect("written");
        let cut = ClipFile::open(&path).and_then(|clip| all(&clip, window(0, 16)));
        let error = cut.expect_err(name).to_string();
        assert!(!error.contains('\n') && error.contains("whole"), "{error}");
        std::fs::write(&path, &whole_file[..60]).expect("written");
        let error = refusal(&path);
        assert!(
            error.contains("ffprobe failed") || error.contains("it has no"),
            "{error}"
        );
    }
    let path = folder.path().join("a.mov");
    video(&path, 25, &[]);
    let mut bytes = std::fs::read(&path).expect("read");
    // Inside the second picture's own data.
    let second = bytes
        .windows(4)
        .enumerate()
        .filter(|(_, w)| w == b"IDAT")
        .nth(1);
    let at = second.expect("a picture").0 + 8;
    bytes[at..at + 6].fill(0x55);
    std::fs::write(&path, &bytes).expect("written");
    let clip = ClipFile::open(&path).expect("its times are whole");
    let error = all(&clip, window(0, 16)).expect_err("damaged").to_string();
    assert!(error.contains("damaged"), "{error}");
}

#[test]
fn a_turned_video_is_upright_and_its_pixels_are_square() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (flat, path) = (
        folder.path().join("flat.mov"),
        folder.path().join("turned.mov"),
    );
    video(&flat, 5, &[]);
    let turn = |before: &[&str], after: &[&str]| {
        let mut command = Command::new("ffmpeg");
        command
            .args(["-v", "error", "-y"])
            .args(before)
            .arg("-i")
            .arg(&flat);
        command
            .args(["-c", "copy"])
            .args(after)
            .arg(&path)
            .stdin(Stdio::null());
        command
            .stderr(Stdio::null())
            .status()
            .expect("ffmpeg")
            .success()
    };
    // The first of these options went when the second came.
    assert!(turn(&["-display_rotation", "270"], &[]) || turn(&[], &["-metadata:s:v", "rotate=90"]));
    let clip = ClipFile::open(&path).expect("a video");
    assert_eq!((clip.size.width, clip.size.height), (8, 16));
    let mut frames = clip.read(whole(clip.size, window(0, 1))).expect("frames");
    let chunk = frames.next(1).expect("a frame");
    // As ffmpeg itself turns it.
    let mut shown = Command::new("ffmpeg");
    shown.args(["-v", "error", "-i"]).arg(&path);
    shown.args(["-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]);
    let shown = shown.output();
    assert_eq!(chunk.rgb, shown.expect("ffmpeg").stdout);
    let path = folder.path().join("wide.mkv");
    video(&path, 5, &["-vf", "setsar=2/1"]);
    let clip = ClipFile::open(&path).expect("a video");
    assert_eq!((clip.size.width, clip.size.height), (32, 8));
    let chunk = all(&clip, window(0, 1)).expect("a frame");
    assert_eq!(chunk.rgb.len(), 3 * 32 * 8);
}

#[test]
fn what_would_be_shown_wrongly_is_refused_with_a_way_out() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.mov");
    video(&path, 5, &["-c:v", "qtrle", "-pix_fmt", "argb"]);
    assert!(refusal(&path).contains("transparent"), "{}", refusal(&path));
    std::fs::write(&path, "ffconcat version 1.0\nfile /etc/passwd\n").expect("written");
    assert!(refusal(&path).contains("not a clip"), "{}", refusal(&path));
    std::fs::write(&path, "").expect("written");
    assert!(refusal(&path).contains("empty"), "{}", refusal(&path));
    let sound = folder.path().join("sound.mkv");
    let status = Command::new("ffmpeg")
        .args(["-v", "error", "-f", "lavfi", "-i", "sine", "-t", "1"])
        .arg(&sound)
        .status();
    assert!(status.expect("ffmpeg").success());
    assert!(
        refusal(&sound).contains("it has no video"),
        "{}",
        refusal(&sound)
    );
}

#[test]
fn a_stream_is_looked_at_before_it_is_decoded() {
    let refusal = |field: &str| {
        let text = format!(r#"{{"width": 64, "height": 32, "pix_fmt": "yuv420p10le", {field}}}"#);
        let stream: Stream = serde_json::from_str(&text).expect("a stream");
        let sizes = stream.shown().and(stream.turns().map(|_| ()));
        stream.check().and(sizes).expect_err(field)
    };
    for (field, expected) in [
        (r#""color_transfer": "arib-std-b67""#, "high dynamic range"),
        (r#""color_transfer": "smpte2084""#, "high dynamic range"),
        (r#""field_order": "tt""#, "interlaced"),
        (r#""tags": {"alpha_mode": "1"}"#, "transparent"),
        (
            r#""side_data_list": [{}, {"rotation": 45}]"#,
            "turned by -45 degrees",
        ),
        (r#""side_data_list": [{"rotation": 1e99}]"#, "turned by"),
        (r#""sample_aspect_ratio": "4000000000:1""#, "wide to high"),
    ] {
        assert!(refusal(field).contains(expected), "{}", refusal(field));
    }
    for size in [(0, 4), (100_000, 100_000), (u32::MAX, u32::MAX)] {
        let stream = Stream {
            width: size.0,
            height: size.1,
            ..Stream::default()
        };
        assert!(
            stream
                .check()
                .expect_err("a size")
                .contains("pixels, expected 1 to")
        );
    }
    let turned = |degrees: f64| Stream {
        side_data_list: vec![SideData {
            rotation: Some(degrees),
        }],
        ..Stream::default()
    };
    let turns = [-90.0, 90.0, 180.0, -180.0, 270.0].map(|degrees| turned(degrees).turns());
    assert_eq!(turns, [Ok(1), Ok(3), Ok(2), Ok(2), Ok(1)]);
}

#[test]
fn packets_tell_the_times_of_what_is_shown() {
    let times = |packets: &str| Times::of(packets).map(|t| (t.first, t.ticks, t.count));
    // The first is decoded for the others alone.
    let packets = "pts=-2|dts=-4|duration=2|flags=KD\npts=4|dts=0|duration=2|flags=__\npts=0|dts=1|duration=2|flags=__\n";
    assert_eq!(times(packets), Some((Some(0), 6, 3)));
    // Without durations the last is shown as long as the others.
    assert_eq!(
        times("pts=1|flags=K_\npts=3|flags=_\npts=5|duration=N/A|flags=_\n"),
        Some((Some(1), 6, 3))
    );
    assert_eq!(
        times("pts=N/A|dts=0|flags=K_\npts=N/A|dts=1|duration=1|flags=_\n"),
        Some((None, 2, 2))
    );
    assert_eq!(times("pts=7|flags=K_"), Some((Some(7), 0, 1)));
    assert_eq!(
        times("pts=9223372036854775807|duration=9|flags=K_\npts=-9|flags=_"),
        Some((Some(-9), i64::MAX as u64, 2))
    );
    for none in ["", "pts=0|flags=KD", "junk\n|||", "pts=x|flags=K"] {
        assert_eq!(times(none), None, "{none}");
    }
    assert_eq!(clock("01:02:03.5"), Some(3723.5));
    assert_eq!((clock("3.5"), clock("a:b:c")), (None, None));
}

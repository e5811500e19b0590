//! Videos, through ffmpeg: their times from ffprobe, their frames as raw RGB.
//!
//! - Turned as the file says (phones); pixels that are not square are told by the size.
//! - To RGB by swscale, exactly rounded: by the matrix that the file names, else by that of BT.601, as ffmpeg and so all trainers have it.
//! - Frames of another rate, or at no constant one, are dropped and repeated as ffmpeg's `fps` has it.
//! - What would be shown wrongly is refused: interlaced, high dynamic range, transparent; and what is damaged, where trainers get the
//!   frames that a decoder makes up.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ffmpeg::{self, Ffmpeg};
use super::process::{self, Running};
use super::times::Moment;
use super::{Decode, identity};
use crate::dataset::picture::PictureError;
use crate::digest::Digest;
use crate::files;
use crate::recipe::latents::{Rate, Size, Window};
use crate::shown;

/// The most pixels of a frame: those of 8K.
const MOST_PIXELS: u64 = 8192 * 4320;
/// What ffprobe may say of a video's stream.
const STREAM_BYTES: usize = 1 << 20;
/// What it may say of its packets: over a million frames.
const PACKETS_BYTES: usize = 96 << 20;
/// A window that begins later than this is not decoded from the first frame on.
const SEEK_SECONDS: f64 = 10.0;
/// How long before the window decoding begins: much more than what a container's index may be off by.
const BEFORE_SECONDS: f64 = 3.0;
/// A video that is so much shorter than it promises was cut off.
const CUT_SECONDS: f64 = 0.2;
/// What ffprobe says of containers that were cut off, and goes on.
const CUT_OFF: [&str; 3] = ["ended prematurely", "partial file", "Truncat"];
/// How colours become RGB: the same numbers on every processor.
const TO_RGB: &str = "in_range=auto:out_range=pc:flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact";

/// A video, looked at but not decoded.
pub(super) struct Video {
    path: PathBuf,
    container: &'static str,
    ffmpeg: &'static Ffmpeg,
    pub digest: Digest,
    /// As it is shown.
    pub size: Size,
    /// As its frames come from ffmpeg, in pixels that need not be square.
    pub coded: Size,
    /// The size in the file.
    stored: Size,
    /// Quarters of a turn, clockwise.
    turns: u32,
    /// The time of its first frame, in ticks, where the container tells when frames are shown (AVI does not).
    first: Option<i64>,
    /// The end of its last frame, counted from the first.
    length: Moment,
}

/// ffmpeg's name of the container that a file begins as, if it is one of videos.
pub(super) fn container(head: &[u8]) -> Option<&'static str> {
    match head {
        [0x1a, 0x45, 0xdf, 0xa3, ..] => Some("matroska"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'A', b'V', b'I', ..] => Some("avi"),
        _ => {
            let is_box = |name| head.get(4..8) == Some(name);
            // QuickTime's older files begin with others than `ftyp`.
            let boxes: [&[u8]; 6] = [b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"];
            boxes.into_iter().any(is_box).then_some("mov")
        }
    }
}

#[derive(Deserialize)]
struct Probe {
    streams: Vec<Stream>,
}

/// What is asked of a stream. ffprobe leaves out what a stream has not.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Stream {
    width: u32,
    height: u32,
    time_base: String,
    sample_aspect_ratio: Option<String>,
    pix_fmt: Option<String>,
    color_transfer: Option<String>,
    field_order: Option<String>,
    side_data_list: Vec<SideData>,
    nb_frames: Option<String>,
    /// When its first frame is shown, in seconds.
    start_time: Option<String>,
    tags: Tags,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Tags {
    /// Matroska's length of a stream, which ffmpeg counts from time 0 to its end, whenever the stream begins.
    #[serde(rename = "DURATION")]
    duration: Option<String>,
    /// WebM's word on a second stream, of transparency, in the same track. Decoders leave it out.
    #[serde(alias = "ALPHA_MODE")]
    alpha_mode: Option<String>,
}

#[derive(Deserialize)]
struct SideData {
    rotation: Option<f64>,
}

impl Video {
    /// Reads the file once for its digest, and its packets' times.
    ///
    /// # Errors
    /// If there is no ffmpeg, or the file cannot be used.
    pub(super) fn open(path: &Path, container: &'static str) -> Result<Self, PictureError> {
        let io = |source| PictureError::Io {
            path: path.to_owned(),
            source,
        };
        let fail = |problem: String| PictureError::Unusable {
            path: path.to_owned(),
            problem,
        };
        let ffmpeg = ffmpeg::on_path().map_err(fail)?;
        let mut digest = blake3::Hasher::new();
        let file = files::open(path).map_err(io)?;
        digest.update_reader(file).map_err(io)?;
        let digest = identity(&ffmpeg.identity, &digest.finalize().into());
        Self::probe(path, container, ffmpeg, digest).map_err(fail)
    }

    fn probe(
        path: &Path,
        container: &'static str,
        ffmpeg: &'static Ffmpeg,
        digest: Digest,
    ) -> Result<Self, String> {
        let ask = |what: &[&str], limit| {
            let mut command = ffmpeg::on_file("ffprobe", container, &[], path);
            process::output(
                "ffprobe",
                command.args(["-select_streams", "V:0"]).args(what),
                limit,
            )
        };
        let (text, _) = ask(&["-show_streams", "-of", "json"], STREAM_BYTES)?;
        let probe: Probe = serde_json::from_str(&text)
            .map_err(|e| format!("what ffprobe says of it cannot be read: {e}"))?;
        let stream = probe.streams.into_iter().next();
        let stream = stream.ok_or("it has no video, only other streams")?;
        stream.check()?;
        let tick = fraction(&stream.time_base, '/').ok_or("its times have no unit")?;
        let entries = ["-show_entries", "packet=pts,dts,duration,flags"];
        let (packets, said) = ask(
            &[&entries[..], &["-of", "compact=p=0"]].concat(),
            PACKETS_BYTES,
        )?;
        if let Some(line) = said
            .lines()
            .find(|line| CUT_OFF.iter().any(|cut| line.contains(cut)))
        {
            return Err(format!("not whole: {}", shown::text(line.trim())));
        }
        let Times {
            first,
            ticks,
            count,
        } = Times::of(&packets).ok_or("it has no frames")?;
        let length = Moment { ticks, tick };
        stream.check_whole(count, length)?;
        let stored = Size {
            width: stream.width,
            height: stream.height,
        };
        let turns = stream.turns()?;
        let turn = |size: Size| match turns % 2 {
            0 => size,
            _ => Size {
                width: size.height,
                height: size.width,
            },
        };
        Ok(Self {
            path: path.to_owned(),
            container,
            ffmpeg,
            digest,
            size: turn(stream.shown()?),
            coded: turn(stored),
            stored,
            turns,
            first,
            length,
        })
    }

    /// How many frames it has at a rate.
    pub(super) fn frames_at(&self, rate: Rate) -> u32 {
        self.length.frame(rate).max(1)
    }

    /// Begins to decode a window.
    ///
    /// # Errors
    /// If ffmpeg cannot be started.
    pub(super) fn decoder(&self, window: Window) -> Result<Frames, String> {
        let seconds = f64::from(window.start) / window.rate.frames_a_second();
        let seek = format!("{:.3}", seconds - BEFORE_SECONDS);
        // Errors end it, where it would go on with what its decoder makes up; times are the file's own, also after a seek; turning is
        // done by a filter of ours.
        let mut before = vec!["-nostdin", "-xerror", "-copyts", "-noautorotate"];
        if seconds > SEEK_SECONDS && self.first.is_some() {
            before.extend(["-ss", &seek]);
        }
        let mut command = ffmpeg::on_file("ffmpeg", self.container, &before, &self.path);
        command.args([
            "-map",
            "0:V:0",
            "-an",
            "-sn",
            "-dn",
            "-vf",
            &self.filters(window),
        ]);
        command.args([self.ffmpeg.as_they_come, "passthrough"]);
        command.args(["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]);
        let bytes = 3 * self.coded.width as usize * self.coded.height as usize;
        let running = Running::start("ffmpeg", &mut command, bytes);
        Ok(Frames {
            running: running.map_err(|e| format!("ffmpeg cannot be started: {e}"))?,
            bytes,
            frame: Vec::new(),
            read: 0,
            expected: window.frames,
        })
    }

    /// The filters that make RGB frames of a window.
    fn filters(&self, window: Window) -> String {
        let (rate, (above, below)) = (window.rate, self.length.tick);
        let (start, end) = (
            window.start,
            u64::from(window.start) + u64::from(window.frames),
        );
        let Size { width, height } = self.stored;
        let turn = match self.turns {
            1 => ",transpose=clock",
            2 => ",hflip,vflip",
            3 => ",transpose=cclock",
            _ => "",
        };
        let first = match self.first {
            Some(first) => format!("round({first}*{above}/{below}/TB)"),
            None => "STARTPTS".to_owned(),
        };
        // Times from the first frame on, so that frames fall alike wherever decoding begins. The end of the last frame is rounded by
        // ffprobe and ffmpeg each in its own way, which may differ by one frame at another rate: the last is repeated once.
        format!(
            "setpts=PTS-{first},fps=fps={}/{}:round=near,tpad=stop=1:stop_mode=clone,\
             trim=start_pts={start}:end_pts={end},setpts=PTS-STARTPTS,scale={width}:{height}:{TO_RGB},format=rgb24{turn}",
            rate.numerator(),
            rate.denominator(),
        )
    }
}

impl Stream {
    fn check(&self) -> Result<(), String> {
        let pixels = u64::from(self.width) * u64::from(self.height);
        if pixels == 0 || pixels > MOST_PIXELS {
            return Err(format!(
                "{}x{} pixels, expected 1 to {MOST_PIXELS}: save it smaller",
                self.width, self.height
            ));
        }
        if let Some(order @ ("tt" | "bb" | "tb" | "bt")) = self.field_order.as_deref() {
            return Err(format!(
                "interlaced (`field_order` {order}), which would show as combs: deinterlace it first, as by `ffmpeg -i IN -vf yadif OUT`"
            ));
        }
        if let Some(curve @ ("smpte2084" | "arib-std-b67")) = self.color_transfer.as_deref() {
            return Err(format!(
                "high dynamic range (`color_transfer` {curve}), which would look washed out: convert it to standard range (BT.709) first"
            ));
        }
        let format = self.pix_fmt.as_deref().unwrap_or_default();
        let with_alpha = [
            "yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya8", "ya16",
        ];
        let beside = self
            .tags
            .alpha_mode
            .as_deref()
            .is_some_and(|mode| mode != "0");
        if beside || with_alpha.iter().any(|name| format.starts_with(name)) {
            return Err(format!(
                "transparent (`pix_fmt` {format}): lay it over a background first"
            ));
        }
        Ok(())
    }

    /// Compares what its header promises with what is there: a file that was cut off has a shorter clip.
    fn check_whole(&self, count: u64, length: Moment) -> Result<(), String> {
        let promised = self
            .nb_frames
            .as_deref()
            .and_then(|n| n.parse::<u64>().ok());
        if let Some(promised) = promised.filter(|&promised| promised > count) {
            return Err(format!(
                "not whole: it has {count} of the {promised} frames that its header tells"
            ));
        }
        let start = self.start_time.as_deref().and_then(|s| s.parse().ok());
        let promised = self.tags.duration.as_deref().and_then(clock);
        let promised = promised.map(|end| end - f64::max(start.unwrap_or(0.0), 0.0));
        let (above, below) = length.tick;
        let seconds = length.ticks as f64 * f64::from(above) / f64::from(below);
        match promised.filter(|promised| promised - seconds > CUT_SECONDS) {
            None => Ok(()),
            Some(promised) => Err(format!(
                "not whole: it has {seconds:.1} of the {promised:.1} seconds that its header tells"
            )),
        }
    }

    /// Quarters of a turn, clockwise. ffprobe counts degrees the other way round.
    fn turns(&self) -> Result<u32, String> {
        let turned = self.side_data_list.iter().find_map(|data| data.rotation);
        let degrees = -turned.unwrap_or(0.0);
        let quarters = (degrees / 90.0).round();
        // No angle that is told is larger than a turn or two.
        if (quarters * 90.0 - degrees).abs() > 1.0 || quarters.abs() > 8.0 {
            return Err(format!(
                "turned by {degrees} degrees, expected quarters of a turn: save it upright"
            ));
        }
        Ok((quarters as i32).rem_euclid(4) as u32)
    }

    /// Its size in square pixels, before it is turned.
    fn shown(&self) -> Result<Size, String> {
        let shape = self.sample_aspect_ratio.as_deref();
        let shape = shape.and_then(|shape| fraction(shape, ':'));
        // 0:1 where it is not known.
        let (above, below) = shape.filter(|(above, _)| *above > 0).unwrap_or((1, 1));
        let width = (f64::from(self.width) * f64::from(above) / f64::from(below)).round();
        if !(1.0..=MOST_PIXELS as f64).contains(&width) {
            return Err(format!(
                "its pixels are {above} to {below} wide to high: save it with square ones"
            ));
        }
        Ok(Size {
            width: width as u32,
            height: self.height,
        })
    }
}

/// Seconds of `00:00:10.480000000`.
fn clock(text: &str) -> Option<f64> {
    let mut parts = text
        .trim()
        .splitn(3, ':')
        .map(|part| part.parse::<f64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    Some(3600.0 * hours + 60.0 * minutes + seconds)
}

/// `16:9`, `1/25`. Nothing below the line is 0.
fn fraction(text: &str, line: char) -> Option<(u32, u32)> {
    let (above, below) = text.split_once(line)?;
    let below = below.parse().ok().filter(|&below| below > 0)?;
    Some((above.parse().ok()?, below))
}

/// What the packets of a video tell.
#[derive(Debug, PartialEq, Eq)]
struct Times {
    /// The first frame's time; None where it is not told when frames are shown, only when they are decoded.
    first: Option<i64>,
    /// From there to the end of the last.
    ticks: u64,
    /// Packets, those included that are not shown.
    count: u64,
}

impl Times {
    /// Of lines `pts=0|dts=-1|duration=2|flags=K_`; None where no frame is shown.
    fn of(packets: &str) -> Option<Self> {
        let (mut first, mut last, mut end) = (i64::MAX, i64::MIN, i64::MIN);
        let (mut count, mut shown, mut is_told) = (0, 0, true);
        for line in packets.lines() {
            let field = |name: &str| {
                let mut fields = line.split('|');
                fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
            };
            let number = |name| field(name).and_then(|n| n.parse::<i64>().ok());
            count += u64::from(field("flags").is_some());
            // Decoded and not shown: before the beginning that the container tells.
            if field("flags").is_none_or(|flags| flags.contains('D')) {
                continue;
            }
            let time = number("pts");
            is_told &= time.is_some();
            // Both span the same.
            let Some(time) = time.or_else(|| number("dts")) else {
                continue;
            };
            shown += 1;
            (first, last) = (first.min(time), last.max(time));
            let duration = number("duration").filter(|&duration| duration > 0);
            end = end.max(time.saturating_add(duration.unwrap_or(0)));
        }
        if shown == 0 {
            return None;
        }
        // A last frame of unknown duration is shown as long as the others.
        if end == last && shown > 1 {
            end = last.saturating_add(last.saturating_sub(first) / (shown - 1));
        }
        let ticks = u64::try_from(end.saturating_sub(first)).ok()?;
        Some(Self {
            first: is_told.then_some(first),
            ticks,
            count,
        })
    }
}

/// The frames of a window as they come from ffmpeg.
pub(super) struct Frames {
    running: Running,
    bytes: usize,
    frame: Vec<u8>,
    read: u32,
    expected: u32,
}

impl Decode for Frames {
    fn next(&mut self) -> Result<Cow<'_, [u8]>, String> {
        match self.running.block()? {
            Some(frame) if frame.len() == self.bytes => self.frame = frame,
            // Why it ended, it has said; if it thinks that all is well, the file told more frames than it has.
            _ => {
                let why = self.running.end().err();
                let (read, expected) = (self.read, self.expected);
                let why = why.unwrap_or_else(|| {
                    format!("it ends after {read} of the {expected} frames that its times promise")
                });
                return Err(format!("damaged or not whole: {why}"));
            }
        }
        self.read += 1;
        Ok(Cow::Borrowed(&self.frame))
    }

    fn finish(&mut self) -> Result<(), String> {
        match self.running.block()? {
            Some(_) => Err(
                "ffmpeg gives more frames than were asked for: its size may change on the way"
                    .to_owned(),
            ),
            None => self
                .running
                .end()
                .map(|_| ())
                .map_err(|why| format!("damaged or not whole: {why}")),
        }
    }
}

#[cfg(test)]
#[path = "video_tests.rs"]
mod tests;

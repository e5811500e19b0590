//! Clips: moving pictures, read frame by frame.
//!
//! A [`ClipFile`] is a folder of numbered frames; a GIF, WebP or PNG that is animated; or a video, which `ffmpeg` decodes. Each is
//! brought to the rate of a [`Window`]: its n-th frame is the last one that begins at most half a frame after n / rate, as ffmpeg's
//! filter `fps` has it. Frames of a folder have no times: each is one frame, whatever the rate.
//!
//! Frames come in order, some at a time, resized and cropped as pictures are. At no time do all of them lie in memory.

mod animation;
mod ffmpeg;
mod folder;
pub(super) mod numbered;
mod process;
pub(super) mod samples;
mod times;
mod video;
mod windows;

use std::borrow::Cow;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use self::folder::FrameFolder;
pub(crate) use self::samples::is_clip;
use self::video::Video;
use super::picture::{Animation, HEAD_BYTES, PictureError, fits};
use super::resize::resize;
use crate::digest::Digest;
use crate::files;
use crate::recipe::latents::{Rate, Size, View, Window};

/// Extensions of videos, in any case.
const VIDEOS: [&str; 6] = ["mp4", "m4v", "mov", "mkv", "webm", "avi"];
/// The version of how clips are read. It is part of what a clip is known by.
const READING: u32 = 1;

/// A clip, looked at but not decoded.
pub struct ClipFile {
    path: PathBuf,
    source: Source,
    /// What it is known by: the digest of its files' bytes, of the version of reading, and of what decodes them.
    pub digest: Digest,
    /// Its size as it is shown: turned as its file says, and with square pixels.
    pub size: Size,
    /// Bytes and time of its file before that was hashed; None of a folder.
    stamp: Option<(u64, SystemTime)>,
}

enum Source {
    Folder(FrameFolder),
    Animation(Animation),
    Video(Video),
}

/// Decodes the frames of one window.
trait Decode {
    /// The next frame as 8-bit RGB, row major.
    ///
    /// # Errors
    /// What is wrong with the clip. That it ends too early is such a thing.
    fn next(&mut self) -> Result<Cow<'_, [u8]>, String>;

    /// What is said once all frames were read.
    ///
    /// # Errors
    /// What is wrong with the clip after all.
    fn finish(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// The frames of one view of a clip, in order.
pub struct Frames {
    path: PathBuf,
    decoder: Box<dyn Decode>,
    /// The size of what the decoder gives.
    coded: Size,
    view: View,
    left: u32,
}

/// Frames that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameChunk {
    /// How many there are.
    pub frames: usize,
    /// The size of each.
    pub size: Size,
    /// 8-bit RGB: `[frames, height, width, 3]`, row major.
    pub rgb: Vec<u8>,
}

impl ClipFile {
    /// Looks at a clip: reads its files once for their digest, and its times; decodes nothing.
    ///
    /// # Errors
    /// If it cannot be read, is no clip, or is too large.
    pub fn open(path: &Path) -> Result<Self, PictureError> {
        let stamp = stamp(path);
        let (source, digest, size) = match kind(path)? {
            Kind::Folder => {
                let folder = FrameFolder::open(path)?;
                let (digest, size) = (folder.digest, folder.size);
                (Source::Folder(folder), digest, size)
            }
            Kind::Animation => {
                let animation = Animation::open(path)?;
                let (digest, size) = (identity("animation", &animation.file), animation.size);
                (Source::Animation(animation), digest, size)
            }
            Kind::Video(container) => {
                let video = Video::open(path, container)?;
                let (digest, size) = (video.digest, video.size);
                (Source::Video(video), digest, size)
            }
        };
        Ok(Self {
            path: path.to_owned(),
            source,
            digest,
            size,
            stamp,
        })
    }

    /// Whether it is the clip at `path`, one file whose bytes and time are as they were before it was hashed. Then it need not be opened
    /// anew.
    pub fn is_still(&self, path: &Path) -> bool {
        self.path == path && self.stamp.is_some() && stamp(path) == self.stamp
    }

    /// The same, if it is the clip that is known by `digest`.
    ///
    /// # Errors
    /// If its bytes have changed since, or another ffmpeg would decode them.
    pub fn expect(self, digest: &Digest) -> Result<Self, PictureError> {
        match self.digest == *digest {
            true => Ok(self),
            false => Err(PictureError::Changed { path: self.path }),
        }
    }

    /// How many frames it has at a rate; at least one.
    pub fn frames_at(&self, rate: Rate) -> u32 {
        match &self.source {
            Source::Folder(folder) => folder.len(),
            Source::Animation(animation) => animation::frames_at(animation, rate),
            Source::Video(video) => video.frames_at(rate),
        }
    }

    /// Begins to read the frames of a view, which names its window.
    ///
    /// # Errors
    /// If the window reaches beyond the clip's end, the view beyond its frames, or no decoder can be started.
    pub fn read(&self, view: View) -> Result<Frames, PictureError> {
        let window = view
            .window
            .ok_or_else(|| self.fail("a view of a clip without a window of frames".to_owned()))?;
        if !fits(view) {
            return Err(self.fail(format!("the view {view:?} reaches beyond the picture")));
        }
        let there = self.frames_at(window.rate);
        if window.frames == 0
            || window
                .start
                .checked_add(window.frames)
                .is_none_or(|end| end > there)
        {
            return Err(self.fail(format!(
                "frames {} to {} at {} frames a second, expected some of its {there}",
                window.start,
                u64::from(window.start) + u64::from(window.frames),
                window.rate
            )));
        }
        let (coded, decoder) = self.decoder(window)?;
        Ok(Frames {
            path: self.path.clone(),
            decoder,
            coded,
            view,
            left: window.frames,
        })
    }

    fn decoder(&self, window: Window) -> Result<(Size, Box<dyn Decode>), PictureError> {
        let fail = |problem| self.fail(problem);
        Ok(match &self.source {
            Source::Folder(folder) => (folder.size, Box::new(folder.decoder(window))),
            Source::Animation(of) => {
                let decoder = animation::decoder(of, window).map_err(fail)?;
                (of.size, Box::new(decoder))
            }
            Source::Video(video) => {
                let decoder = video.decoder(window).map_err(fail)?;
                (video.coded, Box::new(decoder))
            }
        })
    }

    fn fail(&self, problem: String) -> PictureError {
        let path = self.path.clone();
        PictureError::Unusable { path, problem }
    }
}

impl Frames {
    /// How many frames are still to come.
    pub fn left(&self) -> u32 {
        self.left
    }

    /// The next `count` frames: fewer where the window ends, none behind its end.
    ///
    /// # Errors
    /// If the clip is damaged, ends before its time, or its decoder dies or hangs.
    pub fn next(&mut self, count: usize) -> Result<FrameChunk, PictureError> {
        let frames = count.min(self.left as usize);
        let size = self.view.bucket;
        let mut rgb = Vec::with_capacity(frames * 3 * pixels(size));
        for _ in 0..frames {
            let fail = |problem| PictureError::Unusable {
                path: self.path.clone(),
                problem,
            };
            let frame = self.decoder.next().map_err(fail)?;
            let (to, by) = (self.view.resized, self.view.resampling);
            let frame = resize(frame, self.coded, to, by);
            crop(&frame, &self.view, &mut rgb);
            self.left -= 1;
            if self.left == 0 {
                self.decoder.finish().map_err(fail)?;
            }
        }
        Ok(FrameChunk { frames, size, rgb })
    }
}

impl FrameChunk {
    /// What a VAE takes: `[3, frames, height, width]`, row major, in [-1, 1].
    pub fn pixels(&self) -> Vec<f32> {
        let plane = pixels(self.size);
        let frames = || self.rgb.chunks_exact(3 * plane.max(1));
        let mut all = Vec::with_capacity(self.rgb.len());
        for channel in 0..3 {
            for frame in frames() {
                // The range that VAEs were trained on.
                let values = frame.iter().skip(channel).step_by(3);
                all.extend(values.map(|&value| f32::from(value) / 127.5 - 1.0));
            }
        }
        all
    }
}

/// What tells a change of a file without reading it.
fn stamp(path: &Path) -> Option<(u64, SystemTime)> {
    let found = std::fs::metadata(path)
        .ok()
        .filter(|found| found.is_file())?;
    Some((found.len(), found.modified().ok()?))
}

/// Whether a name is one of a video that can be read.
pub(super) fn is_video_name(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str());
    extension.is_some_and(|e| VIDEOS.contains(&e.to_lowercase().as_str()))
}

/// What a clip is read by.
enum Kind {
    Folder,
    Animation,
    /// By ffmpeg, in its container of this name.
    Video(&'static str),
}

/// What a path is, by its content.
fn kind(path: &Path) -> Result<Kind, PictureError> {
    let io = |source| PictureError::Io {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(io)?.is_dir() {
        return Ok(Kind::Folder);
    }
    let mut head = Vec::new();
    let file = files::open(path).map_err(io)?;
    file.take(HEAD_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(io)?;
    match video::container(&head) {
        Some(container) => Ok(Kind::Video(container)),
        None if Animation::may_be(&head) => Ok(Kind::Animation),
        None => Err(PictureError::Unusable {
            path: path.to_owned(),
            problem: match head.is_empty() {
                true => "the file is empty",
                false => "not a clip that can be read (MP4, MOV, MKV, WebM, AVI, or an animated GIF, WebP or PNG)",
            }
            .to_owned(),
        }),
    }
}

fn pixels(size: Size) -> usize {
    size.width as usize * size.height as usize
}

/// Adds the part of a resized frame that a view keeps.
fn crop(frame: &[u8], view: &View, to: &mut Vec<u8>) {
    let (width, resized) = (view.bucket.width as usize, view.resized.width as usize);
    for y in 0..view.bucket.height as usize {
        let start = ((view.top as usize + y) * resized + view.left as usize) * 3;
        let row = &frame[start..start + 3 * width];
        match view.flip {
            false => to.extend_from_slice(row),
            true => to.extend(row.rchunks_exact(3).flatten()),
        }
    }
}

/// What a clip is known by.
fn identity(decoder: &str, files: &Digest) -> Digest {
    let name = format!("plumb clip {READING}\n{decoder}\n");
    Digest::of(&[name.as_bytes(), files.as_bytes()].concat())
}

#[cfg(test)]
mod tests;

//! Animated GIF, WebP and PNG: how long each frame is shown, and the frames one by one, as a viewer shows them.

use std::io::{self, Cursor};
use std::path::Path;

use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{AnimationDecoder as _, DynamicImage, ImageDecoder as _, ImageFormat, ImageResult};

use super::containers::{be, gif_delays, gif_frames, png_chunks, webp_chunks, webp_is_whole};
use super::decode::{self, Alpha};
use super::guard::guarded;
use super::{Kind, MOST_PIXELS, PictureError, containers, kind, orientation, read};
use crate::digest::Digest;
use crate::recipe::latents::Size;

/// Frames that are shown no longer than this count as shown for a tenth of a second, as in all browsers.
const SHORTEST: u64 = 10_000;
const INSTEAD: u64 = 100_000;
/// The most frames of a file.
const MOST_FRAMES: usize = 100_000;

/// An animated picture, looked at but not decoded.
pub(in crate::dataset) struct Animation {
    bytes: Vec<u8>,
    format: ImageFormat,
    turn: Orientation,
    /// How long each frame is shown, in microseconds; never none.
    pub times: Vec<u64>,
    /// The digest of the file's bytes.
    pub file: Digest,
    /// Its size, turned as its orientation says.
    pub size: Size,
}

/// The frames of an animation, one by one.
pub(in crate::dataset) struct AnimationFrames {
    frames: image::Frames<'static>,
    turn: Orientation,
    size: Size,
}

impl Animation {
    /// Whether this is the beginning of a file that may be one.
    pub(in crate::dataset) fn may_be(head: &[u8]) -> bool {
        let may = [ImageFormat::Gif, ImageFormat::WebP, ImageFormat::Png];
        matches!(kind(head), Kind::Picture(format) if may.contains(&format))
    }

    /// Reads a file and its headers.
    ///
    /// # Errors
    /// If it cannot be read, is not animated, is not whole, or is too large.
    pub(in crate::dataset) fn open(path: &Path) -> Result<Self, PictureError> {
        let bytes = read(path)?;
        let fail = |problem: String| PictureError::Unusable {
            path: path.to_owned(),
            problem,
        };
        let format = match kind(&bytes) {
            Kind::Picture(format) if containers::is_animated(&bytes, format) => format,
            _ => return Err(fail("a still picture, expected an animation".to_owned())),
        };
        let ((width, height), _) = decode::header(&bytes, format).map_err(fail)?;
        let pixels = u64::from(width) * u64::from(height);
        if pixels == 0 || pixels > MOST_PIXELS {
            return Err(fail(format!(
                "{width}x{height} pixels, expected 1 to {MOST_PIXELS}: save it smaller"
            )));
        }
        let times =
            times(&bytes, format).map_err(|why| fail(format!("damaged or not whole: {why}")))?;
        if times.len() > MOST_FRAMES {
            let count = times.len();
            return Err(fail(format!(
                "{count} frames, expected at most {MOST_FRAMES}: split it"
            )));
        }
        let (turn, _) = orientation::orientations(&bytes, format);
        let (width, height) = match turn.to_exif() {
            5.. => (height, width),
            _ => (width, height),
        };
        Ok(Self {
            format,
            turn,
            times,
            file: Digest::of(&bytes),
            size: Size { width, height },
            bytes,
        })
    }

    /// Begins to decode.
    ///
    /// # Errors
    /// What the decoder says of the file.
    pub(in crate::dataset) fn decode(&self) -> Result<AnimationFrames, String> {
        // The decoders' frames have no way back to the first, and own what they read.
        let begin = || frames(Cursor::new(self.bytes.clone()), self.format);
        let frames = guarded(begin).map_err(decode::crashed)?;
        Ok(AnimationFrames {
            frames: frames.map_err(decode::broken)?,
            turn: self.turn,
            size: self.size,
        })
    }
}

impl AnimationFrames {
    /// The next frame as 8-bit RGB over white, row major.
    ///
    /// # Errors
    /// What is wrong with the file, or that it has no more frames.
    pub(in crate::dataset) fn next(&mut self) -> Result<Vec<u8>, String> {
        let next = guarded(|| self.frames.next()).map_err(decode::crashed)?;
        let frame = next.ok_or("damaged or not whole: it has fewer frames than it says")?;
        let frame = DynamicImage::ImageRgba8(frame.map_err(decode::broken)?.into_buffer());
        let (rgb, (width, height)) = decode::turned(frame, Alpha::Straight, self.turn)?;
        match (Size { width, height }) == self.size {
            true => Ok(rgb),
            false => Err("the header tells another size than a frame has".to_owned()),
        }
    }
}

fn frames(bytes: Cursor<Vec<u8>>, format: ImageFormat) -> ImageResult<image::Frames<'static>> {
    match format {
        ImageFormat::Gif => {
            let mut decoder = GifDecoder::new(bytes)?;
            decoder.set_limits(decode::limits())?;
            Ok(decoder.into_frames())
        }
        ImageFormat::WebP => {
            let mut decoder = WebPDecoder::new(bytes)?;
            decoder.set_limits(decode::limits())?;
            Ok(decoder.into_frames())
        }
        ImageFormat::Png => Ok(PngDecoder::with_limits(bytes, decode::limits())?
            .apng()?
            .into_frames()),
        _ => Err(io::Error::other("no kind that has animations").into()),
    }
}

/// How long each frame is shown, in microseconds.
fn times(bytes: &[u8], format: ImageFormat) -> Result<Vec<u64>, String> {
    let times: Vec<u64> = match format {
        ImageFormat::Gif => {
            if !gif_frames(bytes).1 {
                return Err("the end of the GIF is missing".to_owned());
            }
            // Hundredths of a second.
            let delays = gif_delays(bytes).into_iter();
            delays.map(|delay| u64::from(delay) * 10_000).collect()
        }
        ImageFormat::WebP => {
            if !webp_is_whole(bytes) {
                return Err("the end of the WebP is missing".to_owned());
            }
            let frames = webp_chunks(bytes).filter(|(kind, _)| *kind == b"ANMF");
            // Behind place and size, each of 3 bytes twice: milliseconds.
            let time = |content: &[u8]| {
                let time = content.get(12..15)?;
                Some(u64::from(u32::from_le_bytes([time[0], time[1], time[2], 0])) * 1000)
            };
            let times: Option<Vec<_>> = frames.map(|(_, content)| time(content)).collect();
            times.ok_or("a frame has no header")?
        }
        _ => {
            let frames = png_chunks(bytes).filter(|(kind, _)| *kind == b"fcTL");
            // Behind number, size and place: a fraction of a second, of which 0 below the line stands for 100.
            let time = |content: &[u8]| {
                let (above, below) = (be(content.get(20..22)?), be(content.get(22..24)?));
                let below = if below == 0 { 100 } else { below };
                Some(above as u64 * 1_000_000 / below as u64)
            };
            let times: Option<Vec<_>> = frames.map(|(_, content)| time(content)).collect();
            times.ok_or("a frame has no header")?
        }
    };
    if times.is_empty() {
        return Err("it has no frame".to_owned());
    }
    let shown = |time| if time <= SHORTEST { INSTEAD } else { time };
    Ok(times.into_iter().map(shown).collect())
}

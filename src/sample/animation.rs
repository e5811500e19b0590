//! Previews of clips: an animated WebP, without loss, that browsers and file managers play.
//!
//! The `image` crate writes still WebPs in pure Rust; an animation is these in a container, of which the parts are those of Google's
//! "WebP Container Specification". (Lossy animations would need libwebp, built from C.)

use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, RgbImage};

use super::Error;
use crate::recipe::latents::Rate;

/// The longest side of a WebP.
const MOST_SIDE: u32 = 16_383;
/// Before and behind the kind of file stands its length, in 32 bits.
const MOST_BYTES: usize = u32::MAX as usize - 1024;
/// In the header: this is an animation, and has Exif at its end.
const IS_ANIMATION: u8 = 0x02;
const HAS_EXIF: u8 = 0x08;
/// Of a frame: it replaces what was there instead of being laid over it.
const REPLACES: u8 = 0x02;

/// An animated WebP to which frames are added one by one.
pub struct AnimatedWebp {
    rate: Rate,
    size: Option<(u32, u32)>,
    frames: u64,
    /// The frames' chunks.
    chunks: Vec<u8>,
}

impl AnimatedWebp {
    /// An empty one, of so many frames a second.
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            size: None,
            frames: 0,
            chunks: Vec::new(),
        }
    }

    /// Adds a frame.
    ///
    /// # Errors
    /// If it is of another size than the first, or larger than a WebP can be.
    pub fn push(&mut self, frame: &RgbImage) -> Result<(), Error> {
        let (width, height) = frame.dimensions();
        let (expected_width, expected_height) = *self.size.get_or_insert((width, height));
        if (width, height) != (expected_width, expected_height) {
            return Err(Error::Animation(format!(
                "a frame of {width} x {height} px, expected {expected_width} x {expected_height} as the first"
            )));
        }
        if width == 0 || height == 0 || width.max(height) > MOST_SIDE {
            return Err(Error::Animation(format!(
                "frames of {width} x {height} px, expected sides of 1 to {MOST_SIDE}"
            )));
        }
        let mut still = Vec::new();
        let encoder = WebPEncoder::new_lossless(&mut still);
        encoder.encode(frame.as_raw(), width, height, ExtendedColorType::Rgb8)?;
        // Behind the file's own header; it has one chunk, the picture.
        let picture = still.get(12..).unwrap_or_default();
        if !picture.starts_with(b"VP8L") || self.chunks.len() + picture.len() > MOST_BYTES {
            return Err(Error::Animation(
                "the frames are more than a file of 4 GB can hold".to_owned(),
            ));
        }
        let mut content = Vec::with_capacity(16 + picture.len());
        // At the left and at the top.
        content.extend([0; 6]);
        content.extend(three(width - 1));
        content.extend(three(height - 1));
        content.extend(three(self.milliseconds()));
        content.push(REPLACES);
        content.extend_from_slice(picture);
        self.chunks.extend(chunk(b"ANMF", &content));
        self.frames += 1;
        Ok(())
    }

    /// How long the next frame is shown. Rounded so that all together last as long as they should.
    fn milliseconds(&self) -> u32 {
        let (above, below) = (
            u64::from(self.rate.numerator()),
            u64::from(self.rate.denominator()),
        );
        let end = |frames: u64| (2000 * frames * below + above) / (2 * above);
        let time = end(self.frames + 1) - end(self.frames);
        time.min(0xff_ffff) as u32
    }

    /// The file's bytes, with the content of an Exif chunk where there is one.
    ///
    /// # Errors
    /// If it has no frame.
    pub fn finish(self, exif: Option<Vec<u8>>) -> Result<Vec<u8>, Error> {
        let Some((width, height)) = self.size.filter(|_| self.frames > 0) else {
            return Err(Error::Animation("it has no frame".to_owned()));
        };
        let has_exif = exif.as_ref().map_or(0, |_| HAS_EXIF);
        let mut header = vec![IS_ANIMATION | has_exif, 0, 0, 0];
        header.extend(three(width - 1));
        header.extend(three(height - 1));
        let mut content = b"WEBP".to_vec();
        content.extend(chunk(b"VP8X", &header));
        // A background that no frame leaves free, and no end of repeating.
        content.extend(chunk(b"ANIM", &[0; 6]));
        content.extend(self.chunks);
        content.extend(exif.iter().flat_map(|exif| chunk(b"EXIF", exif)));
        Ok(chunk(b"RIFF", &content))
    }
}

/// The lower three bytes.
fn three(number: u32) -> [u8; 3] {
    let [a, b, c, _] = number.to_le_bytes();
    [a, b, c]
}

fn chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let mut chunk = Vec::with_capacity(9 + content.len());
    chunk.extend(name);
    chunk.extend((content.len() as u32).to_le_bytes());
    chunk.extend(content);
    // Chunks begin at even places.
    if content.len() % 2 == 1 {
        chunk.push(0);
    }
    chunk
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;
    use crate::dataset::clip::ClipFile;
    use crate::recipe::latents::{Resampling, View, Window};

    #[test]
    fn what_is_written_is_read_back_as_a_clip_to_the_bit_and_in_time() {
        let rate = Rate::new(16, 1).expect("a rate");
        let frame =
            |n: u32| RgbImage::from_fn(7, 5, |x, y| Rgb([(40 * x) as u8, (9 * n) as u8, y as u8]));
        let mut webp = AnimatedWebp::new(rate);
        for n in 0..17 {
            webp.push(&frame(n)).expect("added");
        }
        let other = webp.push(&RgbImage::new(7, 6)).expect_err("another size");
        assert!(
            other.to_string().contains("7 x 6 px, expected 7 x 5"),
            "{other}"
        );
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("preview.webp");
        std::fs::write(&path, webp.finish(None).expect("a file")).expect("written");
        let clip = ClipFile::open(&path).expect("a clip");
        assert_eq!(clip.frames_at(rate), 17);
        let view = View {
            resized: clip.size,
            left: 0,
            top: 0,
            bucket: clip.size,
            flip: false,
            resampling: Resampling::Spec,
            window: Some(Window {
                rate,
                start: 0,
                frames: 17,
            }),
        };
        let read = clip
            .read(view)
            .and_then(|mut frames| frames.next(17))
            .expect("frames");
        let written: Vec<u8> = (0..17).flat_map(|n| frame(n).into_raw()).collect();
        assert_eq!(read.rgb, written);
        // A second has 1000 milliseconds, of 62 and 63 each.
        let mut webp = AnimatedWebp::new(rate);
        let times = (0..16).map(|n| {
            webp.frames = n;
            webp.milliseconds()
        });
        assert_eq!(times.sum::<u32>(), 1000);
        assert!(AnimatedWebp::new(rate).finish(None).is_err());
    }
}

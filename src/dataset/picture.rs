//! Files to pixels.
//!
//! What a file holds is found from its content, never from its name. Dimensions are checked before anything is
//! decoded. Every picture becomes 8-bit RGB, turned as its EXIF orientation says:
//!
//! | in the file | becomes |
//! |---|---|
//! | grey | red = green = blue |
//! | palette | the palette's colours |
//! | transparency | laid over white |
//! | 16 bits a sample | rounded to 8 (after laying over white) |
//! | CMYK (JPEG, TIFF) | RGB as the decoder converts it, without a profile |
//! | a colour profile | ignored |
//! | several pages (TIFF) | the first |
//! | an animation | refused: which frame is meant is not ours to guess |
//! | floating-point samples | refused: their range is not known |

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{AnimationDecoder as _, DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::resize::resize;
use crate::digest::Digest;
use crate::recipe::latents::{Size, View};
use crate::shown;

/// The most pixels a picture may have: 134 million, such as 16384 x 8192. A bound on memory against hostile files.
const MOST_PIXELS: u64 = 1 << 27;
/// The largest file that is read.
const MOST_BYTES: u64 = 1 << 30;
/// What a decoder may allocate: 8 bytes for each of the most pixels, and some for itself.
const MOST_DECODER_BYTES: u64 = 8 * MOST_PIXELS + (64 << 20);

/// Why a picture cannot be used: always of one file, and with what to do.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", shown::path(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a picture, or not a whole one, or not of a supported kind.
    #[error("{}: {problem}", shown::path(path))]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// The file is not the one that was looked at before.
    #[error(
        "{} has changed since it was listed: run the command again",
        shown::path(path)
    )]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

/// A picture file, read and looked at but not decoded.
pub struct PictureFile {
    path: PathBuf,
    bytes: Vec<u8>,
    format: ImageFormat,
    /// The digest of the file's bytes: what the picture is known by.
    pub digest: Digest,
    /// Its size, turned as its orientation says.
    pub size: Size,
}

/// A view of a picture as the VAE reads it.
pub struct PreparedPicture {
    /// `[3, height, width]` of the view's bucket, row major, in [-1, 1].
    pub pixels: Vec<f32>,
    /// How the picture was resized, cropped and flipped for it.
    pub view: View,
    /// The size of the whole picture before resizing.
    pub original_size: Size,
    /// The digest of the picture's file.
    pub digest: Digest,
}

impl PictureFile {
    /// Reads a file and its header.
    ///
    /// # Errors
    /// If it cannot be read, is not a picture of a supported kind, is animated, or is too large.
    pub fn open(path: &Path) -> Result<Self, PictureError> {
        let bytes = read(path)?;
        let fail = |problem: String| PictureError::Unusable {
            path: path.to_owned(),
            problem,
        };
        if bytes.is_empty() {
            return Err(fail("the file is empty".to_owned()));
        }
        let format = image::guess_format(&bytes).map_err(|_| {
            fail("not a picture that can be read (PNG, JPEG, WebP, BMP, GIF or TIFF)".to_owned())
        })?;
        if is_animated(&bytes, format).map_err(|e| fail(broken(&e)))? {
            return Err(fail(
                "animated: save the frame that is meant as a picture of its own".to_owned(),
            ));
        }
        let mut decoder = decoder(&bytes, format).map_err(|e| fail(broken(&e)))?;
        let (width, height) = decoder.dimensions();
        let pixels = u64::from(width) * u64::from(height);
        if pixels == 0 || pixels > MOST_PIXELS {
            return Err(fail(format!(
                "{width}x{height} pixels, expected 1 to {MOST_PIXELS}: save it smaller"
            )));
        }
        // The orientations 5 to 8 of EXIF exchange width and height. One that cannot be read is none: the
        // pixels are there all the same.
        let turned = decoder.orientation().is_ok_and(|o| o.to_exif() >= 5);
        let (width, height) = if turned {
            (height, width)
        } else {
            (width, height)
        };
        let digest = Digest::of(&bytes);
        // It borrows the bytes.
        drop(decoder);
        Ok(Self {
            path: path.to_owned(),
            bytes,
            format,
            digest,
            size: Size { width, height },
        })
    }

    /// Decodes the picture and makes the pixels of one view.
    ///
    /// # Errors
    /// If the file does not decode.
    pub fn prepare(&self, view: View) -> Result<PreparedPicture, PictureError> {
        let rgb = self.decode()?;
        self.prepared(rgb, view)
    }

    /// As [`Self::prepare`] for several views; the picture is decoded once.
    ///
    /// # Errors
    /// If the file does not decode.
    pub fn prepare_all(&self, views: &[View]) -> Result<Vec<PreparedPicture>, PictureError> {
        let rgb = self.decode()?;
        views
            .iter()
            .map(|&view| self.prepared(rgb.clone(), view))
            .collect()
    }

    /// The picture as 8-bit RGB, row major, of [`Self::size`].
    ///
    /// # Errors
    /// If the file does not decode.
    pub fn decode(&self) -> Result<Vec<u8>, PictureError> {
        let fail = |problem: String| PictureError::Unusable {
            path: self.path.clone(),
            problem,
        };
        if self.format == ImageFormat::Jpeg && !jpeg_is_whole(&self.bytes) {
            return Err(fail(
                "broken or not whole: the end of the JPEG is missing".to_owned(),
            ));
        }
        let mut decoder = decoder(&self.bytes, self.format).map_err(|e| fail(broken(&e)))?;
        let orientation = decoder.orientation();
        let mut picture = DynamicImage::from_decoder(decoder).map_err(|e| fail(broken(&e)))?;
        if let Ok(orientation) = orientation {
            picture.apply_orientation(orientation);
        }
        let found = Size {
            width: picture.width(),
            height: picture.height(),
        };
        // The bucket was chosen by the size in the header.
        if found != self.size {
            return Err(fail(
                "the header tells another size than the picture has".to_owned(),
            ));
        }
        rgb8(picture).map_err(fail)
    }

    fn prepared(&self, rgb: Vec<u8>, view: View) -> Result<PreparedPicture, PictureError> {
        let View {
            resized,
            left,
            top,
            bucket,
            flip,
        } = view;
        let fail = |problem: String| PictureError::Unusable {
            path: self.path.clone(),
            problem,
        };
        let fits =
            |start: u32, side: u32, whole: u32| start.checked_add(side).is_some_and(|e| e <= whole);
        if !fits(left, bucket.width, resized.width) || !fits(top, bucket.height, resized.height) {
            return Err(fail(format!(
                "the view {view:?} reaches beyond the picture"
            )));
        }
        let rgb = resize(rgb, self.size, resized);
        let (width, height) = (bucket.width as usize, bucket.height as usize);
        let mut pixels = vec![0f32; 3 * width * height];
        for (c, plane) in pixels.chunks_exact_mut((width * height).max(1)).enumerate() {
            for (y, line) in plane.chunks_exact_mut(width).enumerate() {
                let start = ((top as usize + y) * resized.width as usize + left as usize) * 3;
                let row = rgb[start..start + 3 * width].chunks_exact(3);
                for (x, pixel) in row.enumerate() {
                    let x = if flip { width - 1 - x } else { x };
                    // The range that VAEs were trained on.
                    line[x] = f32::from(pixel[c]) / 127.5 - 1.0;
                }
            }
        }
        Ok(PreparedPicture {
            pixels,
            view,
            original_size: self.size,
            digest: self.digest,
        })
    }

    /// The same, if it is the file that is known by `digest`.
    ///
    /// # Errors
    /// If its bytes have changed since.
    pub fn expect(self, digest: &Digest) -> Result<Self, PictureError> {
        if self.digest == *digest {
            Ok(self)
        } else {
            Err(PictureError::Changed { path: self.path })
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, PictureError> {
    let io = |source| PictureError::Io {
        path: path.to_owned(),
        source,
    };
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length > MOST_BYTES {
        return Err(PictureError::Unusable {
            path: path.to_owned(),
            problem: format!("{length} bytes, expected at most {MOST_BYTES}: save it smaller"),
        });
    }
    std::fs::read(path).map_err(io)
}

fn broken(error: &image::ImageError) -> String {
    // An error is one line, and a decoder may quote bytes of the file.
    let text: String = error
        .to_string()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    format!("broken, not whole, or of an unsupported kind: {text}")
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MOST_DECODER_BYTES);
    limits
}

fn decoder(bytes: &[u8], format: ImageFormat) -> image::ImageResult<impl ImageDecoder + '_> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits());
    reader.into_decoder()
}

fn is_animated(bytes: &[u8], format: ImageFormat) -> image::ImageResult<bool> {
    Ok(match format {
        ImageFormat::Png => PngDecoder::with_limits(Cursor::new(bytes), limits())?.is_apng()?,
        ImageFormat::WebP => WebPDecoder::new(Cursor::new(bytes))?.has_animation(),
        ImageFormat::Gif => {
            let mut decoder = GifDecoder::new(Cursor::new(bytes))?;
            // Frames are decoded to count them: as large a picture as is refused anyway must not be.
            let (width, height) = decoder.dimensions();
            if u64::from(width) * u64::from(height) > MOST_PIXELS {
                return Ok(false);
            }
            decoder.set_limits(limits())?;
            decoder
                .into_frames()
                // Two frames are enough to know; the others are not decoded.
                .take(2)
                .try_fold(0, |n, frame| frame.map(|_| n + 1))?
                > 1
        }
        _ => false,
    })
}

/// Whether a JPEG's picture data has an end. The decoder fills what is missing with grey and says nothing.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    // Behind the two bytes that begin a file (SOI). The markers are those of ITU-T T.81, B.1.
    let mut at = 2;
    // Segments up to the picture data, which alone may be searched: an embedded preview has an end as well.
    while let Some(&[0xff, marker]) = bytes.get(at..at + 2).and_then(|b| b.as_array()) {
        match marker {
            // Fill bytes before a marker; markers without a length (TEM, restarts, SOI); the end; the beginning of picture data.
            0xff => at += 1,
            0x01 | 0xd0..=0xd8 => at += 2,
            0xd9 => return false,
            0xda => return bytes[at..].windows(2).any(|pair| pair == [0xff, 0xd9]),
            _ => {
                let Some(&length) = bytes.get(at + 2..at + 4).and_then(|b| b.as_array::<2>())
                else {
                    return false;
                };
                at += 2 + usize::from(u16::from_be_bytes(length));
            }
        }
    }
    false
}

/// Any supported picture as 8-bit RGB over white.
fn rgb8(picture: DynamicImage) -> Result<Vec<u8>, String> {
    use DynamicImage as D;
    Ok(match picture {
        D::ImageRgb8(b) => b.into_raw(),
        D::ImageLuma8(b) => b.as_raw().iter().flat_map(|&v| [v; 3]).collect(),
        D::ImageLumaA8(b) => b
            .pixels()
            .flat_map(|p| [over_white8(p.0[0], p.0[1]); 3])
            .collect(),
        D::ImageRgba8(b) => b
            .pixels()
            .flat_map(|p| [0, 1, 2].map(|c| over_white8(p.0[c], p.0[3])))
            .collect(),
        D::ImageLuma16(b) => b.as_raw().iter().flat_map(|&v| [to_8(v); 3]).collect(),
        D::ImageRgb16(b) => b.as_raw().iter().map(|&v| to_8(v)).collect(),
        D::ImageLumaA16(b) => b
            .pixels()
            .flat_map(|p| [to_8(over_white16(p.0[0], p.0[1])); 3])
            .collect(),
        D::ImageRgba16(b) => b
            .pixels()
            .flat_map(|p| [0, 1, 2].map(|c| to_8(over_white16(p.0[c], p.0[3]))))
            .collect(),
        _ => return Err("floating-point samples: save it with 8 or 16 bits a sample".to_owned()),
    })
}

/// `value` with opacity `alpha` over white, rounded.
fn over_white8(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

fn over_white16(value: u16, alpha: u16) -> u16 {
    let (value, alpha) = (u64::from(value), u64::from(alpha));
    ((value * alpha + 65_535 * (65_535 - alpha) + 32_767) / 65_535) as u16
}

/// Rounded to the nearest: 65535 is 255 times 257.
fn to_8(value: u16) -> u8 {
    ((u32::from(value) + 128) / 257) as u8
}

#[cfg(test)]
#[path = "picture_tests.rs"]
mod tests;

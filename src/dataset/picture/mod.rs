//! Files to pixels.
//!
//! What a file holds is found from its content, never from its name. Dimensions are checked before anything is
//! decoded. A damaged file is refused, never completed. Every picture becomes 8-bit RGB, turned as its orientation
//! says ([`orientation`]):
//!
//! | in the file | becomes |
//! |---|---|
//! | grey | red = green = blue |
//! | palette | the palette's colours |
//! | transparency | laid over white; colours that a TIFF says are multiplied by it are taken so |
//! | 16 bits a sample | rounded to 8 (after laying over white) |
//! | CMYK (JPEG, TIFF) | RGB as the decoder converts it, without a profile |
//! | a colour profile | ignored |
//! | several pages (TIFF) | the first |
//! | an animation of several frames | refused: which frame is meant is not ours to guess |
//! | floating-point samples | refused: their range is not known |

mod animation;
mod containers;
mod decode;
mod guard;
mod ifd;
mod jpeg;
mod kinds;
mod orientation;

use std::borrow::Cow;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use image::ImageFormat;
use image::metadata::Orientation;

pub(crate) use guard::guarded;

pub(super) use animation::{Animation, AnimationFrames};
pub(super) use kinds::{HEAD_BYTES, Kind, kind};

use self::decode::Alpha;
use super::clip::is_video_name;
use super::resize::resize;
use crate::digest::Digest;
use crate::files;
use crate::recipe::latents::{Resampling, Size, View};
use crate::shown;

/// The most pixels a picture may have: 134 million, such as 16384 x 8192. A bound on memory against hostile files.
const MOST_PIXELS: u64 = 1 << 27;
/// The largest file that is read.
const MOST_BYTES: u64 = 1 << 30;
/// What a decoder may allocate: 8 bytes for each of the most pixels, and some for itself.
const MOST_DECODER_BYTES: u64 = 8 * MOST_PIXELS + (64 << 20);
/// What decoding takes for each pixel: at most four samples of 16 bits, and the RGB made of them.
const BYTES_PER_PIXEL: u64 = 8 + 3;
/// The version of how files are read. Files of which the first version read other pixels have another identity, so that latents
/// made of those are not taken for theirs.
const READING: u32 = 2;

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
    /// The file holds several pictures, shown one after the other, where one is expected.
    #[error(
        "{}: animated: save the frame that is meant as a picture of its own",
        shown::path(path)
    )]
    Animated {
        /// The file.
        path: PathBuf,
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

/// A picture's pixels in a size, and by which filter.
type Resized<'a> = ((Size, Resampling), Cow<'a, [u8]>);

/// A picture file, read and looked at but not decoded.
pub struct PictureFile {
    path: PathBuf,
    bytes: Vec<u8>,
    format: ImageFormat,
    alpha: Alpha,
    turn: Orientation,
    /// What the picture is known by: the digest of the file's bytes, or of that and the version of reading, if the first version
    /// read other pixels from them.
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
    /// Whether the file says that its picture lies turned or mirrored in it, so that a program that does not read this sees another one.
    pub fn is_turned(&self) -> bool {
        self.turn != Orientation::NoTransforms
    }

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
        let format = match kind(&bytes) {
            Kind::Picture(format) => format,
            Kind::Known(name, remedy) => return Err(fail(format!("{name}: {remedy}"))),
            Kind::Unknown => {
                return Err(fail(
                    "not a picture that can be read (PNG, JPEG, WebP, BMP, GIF or TIFF)".to_owned(),
                ));
            }
        };
        if containers::is_animated(&bytes, format) {
            return Err(PictureError::Animated {
                path: path.to_owned(),
            });
        }
        let ((width, height), has_alpha) = decode::header(&bytes, format).map_err(fail)?;
        let pixels = u64::from(width) * u64::from(height);
        if pixels == 0 || pixels > MOST_PIXELS {
            return Err(fail(format!(
                "{width}x{height} pixels, expected 1 to {MOST_PIXELS}: save it smaller"
            )));
        }
        let alpha = decode::alpha(&bytes, format);
        let (turn, turn_before) = orientation::orientations(&bytes, format);
        // The orientations 5 to 8 of EXIF exchange width and height.
        let (width, height) = match turn.to_exif() {
            5.. => (height, width),
            _ => (width, height),
        };
        let mut digest = Digest::of(&bytes);
        if turn != turn_before || has_alpha && alpha != Alpha::Straight {
            digest = Digest::of(
                &[
                    format!("plumb picture {READING}").as_bytes(),
                    digest.as_bytes(),
                ]
                .concat(),
            );
        }
        Ok(Self {
            path: path.to_owned(),
            bytes,
            format,
            alpha,
            turn,
            digest,
            size: Size { width, height },
        })
    }

    /// Decodes the picture and makes the pixels of one view.
    ///
    /// # Errors
    /// If the file does not decode.
    pub fn prepare(&self, view: View) -> Result<PreparedPicture, PictureError> {
        let mut prepared = self.prepare_all(&[view])?;
        Ok(prepared.remove(0))
    }

    /// As [`Self::prepare`] for several views; the picture is decoded once.
    ///
    /// # Errors
    /// If the file does not decode.
    pub fn prepare_all(&self, views: &[View]) -> Result<Vec<PreparedPicture>, PictureError> {
        let rgb = self.decode()?;
        // The crops of a picture, mirrored or not, are of one size: it is resized once.
        let mut resized: Option<Resized<'_>> = None;
        let mut prepared = Vec::with_capacity(views.len());
        for &view in views {
            if !fits(view) {
                return Err(PictureError::Unusable {
                    path: self.path.clone(),
                    problem: format!("the view {view:?} reaches beyond the picture"),
                });
            }
            let how = (view.resized, view.resampling);
            let there = resized.take().filter(|(known, _)| *known == how);
            let (_, pixels) = resized.insert(there.unwrap_or_else(|| {
                let pixels = resize(Cow::Borrowed(&rgb), self.size, how.0, how.1);
                (how, pixels)
            }));
            prepared.push(self.prepared(pixels, view));
        }
        Ok(prepared)
    }

    /// The picture as 8-bit RGB, row major, of [`Self::size`].
    ///
    /// # Errors
    /// If the file does not decode, or is damaged.
    pub fn decode(&self) -> Result<Vec<u8>, PictureError> {
        let fail = |problem: String| PictureError::Unusable {
            path: self.path.clone(),
            problem,
        };
        let decoded = decode::rgb(&self.bytes, self.format, self.alpha, self.turn);
        let (rgb, (width, height)) = decoded.map_err(fail)?;
        // The bucket was chosen by the size in the header.
        if (Size { width, height }) != self.size {
            return Err(fail(
                "the header tells another size than the picture has".to_owned(),
            ));
        }
        Ok(rgb)
    }

    /// A view that fits, of the resized picture `rgb`.
    fn prepared(&self, rgb: &[u8], view: View) -> PreparedPicture {
        let View {
            resized,
            left,
            top,
            bucket,
            flip,
            ..
        } = view;
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
        PreparedPicture {
            pixels,
            view,
            original_size: self.size,
            digest: self.digest,
        }
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

/// Whether a view keeps no more than the resized picture has.
pub(super) fn fits(view: View) -> bool {
    let (bucket, resized) = (view.bucket, view.resized);
    let fits =
        |start: u32, side: u32, whole: u32| start.checked_add(side).is_some_and(|e| e <= whole);
    fits(view.left, bucket.width, resized.width) && fits(view.top, bucket.height, resized.height)
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
    // Bounded, as a file may grow, and one that is no file may never end.
    let mut bytes = Vec::new();
    let read = files::open(path).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes));
    read.map_err(io).map(|_| bytes)
}

/// An upper bound on the memory that decoding a picture takes, by its size and that of its file.
pub(super) fn decoding_bytes(path: &Path, size: Size) -> u64 {
    let pixels = u64::from(size.width) * u64::from(size.height);
    // A video is never read whole.
    let file = match is_video_name(&path.to_string_lossy()) {
        true => 0,
        false => file_bytes(path),
    };
    file.saturating_add(pixels.saturating_mul(BYTES_PER_PIXEL))
}

/// The size of a file, or 0: reading it will tell why.
pub(super) fn file_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod damage_tests;

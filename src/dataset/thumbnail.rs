//! Small pictures to show a person, of any that a training can use; of a clip, the frame in the middle of its window.

use std::borrow::Cow;

use super::Viewed;
use super::budget;
use super::clip::ClipFile;
use super::picture::{self, PictureError, PictureFile};
use super::resize::resize;
use crate::recipe::latents::{Resampling, Size, View, Window};

/// A picture in small: 8-bit RGB, row major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thumbnail {
    /// Its size.
    pub size: Size,
    /// 3 bytes a pixel.
    pub rgb: Vec<u8>,
}

/// Each whole picture with no side longer than `side` px, decoded on all cores within a bound on memory.
pub fn thumbnails(pictures: &[Viewed<'_>], side: u32) -> Vec<Result<Thumbnail, PictureError>> {
    let need = |of: &Viewed<'_>| picture::decoding_bytes(of.picture, of.size);
    budget::map_within(budget::DECODING_BYTES, pictures, need, |of| {
        let size = fitted(of.size, side);
        if let Some(window) = of.views.first().and_then(|view| view.window) {
            return still(of, window, size);
        }
        let file = PictureFile::open(of.picture)?.expect(&of.digest)?;
        let rgb = file.decode()?;
        Ok(Thumbnail {
            size,
            rgb: resize(Cow::Borrowed(&rgb), file.size, size, Resampling::Spec).into_owned(),
        })
    })
}

/// The frame in the middle of a window.
fn still(clip: &Viewed<'_>, window: Window, size: Size) -> Result<Thumbnail, PictureError> {
    let middle = Window {
        start: window.start + window.frames / 2,
        frames: 1,
        ..window
    };
    let view = View {
        resized: size,
        left: 0,
        top: 0,
        bucket: size,
        flip: false,
        resampling: Resampling::Spec,
        window: Some(middle),
    };
    let clip = ClipFile::open(clip.picture)?.expect(&clip.digest)?;
    let rgb = clip.read(view)?.next(1)?.rgb;
    Ok(Thumbnail { size, rgb })
}

/// The size with the same proportions whose longer side is at most `side`; never larger.
fn fitted(size: Size, side: u32) -> Size {
    let longer = size.width.max(size.height).max(1);
    if longer <= side {
        return size;
    }
    // At least a pixel, of a picture that is a line.
    let scaled = |length: u32| {
        let length = u64::from(length) * u64::from(side) / u64::from(longer);
        (length as u32).max(1)
    };
    Size {
        width: scaled(size.width),
        height: scaled(size.height),
    }
}

#[cfg(test)]
mod tests {
    use super::{Size, fitted};

    #[test]
    fn proportions_stay_and_nothing_grows_or_vanishes() {
        let size = |width, height| Size { width, height };
        assert_eq!(fitted(size(400, 200), 64), size(64, 32));
        assert_eq!(fitted(size(20, 64), 64), size(20, 64));
        assert_eq!(fitted(size(1, 16384), 64), size(1, 64));
        assert_eq!(fitted(size(u32::MAX, 1), 64), size(64, 1));
    }
}

//! Decoded samples to 8-bit RGB over white.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, ImageResult, Limits, RgbImage};

use super::containers::{gif_frames, webp_is_whole};
use super::guard::guarded;
use super::ifd::Ifd;
use super::{MOST_DECODER_BYTES, jpeg};
use crate::shown;

/// TIFF's tag of what the samples beside the colours mean.
const EXTRA_SAMPLES: u16 = 338;

/// What the colours beside an alpha channel are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alpha {
    /// Themselves.
    Straight,
    /// Multiplied by it.
    Premultiplied,
}

/// As a TIFF says it; everything else has straight alpha.
pub(super) fn alpha(bytes: &[u8], format: ImageFormat) -> Alpha {
    let said = || Ifd::first(bytes)?.entry(EXTRA_SAMPLES)?.number();
    match format {
        ImageFormat::Tiff if said() == Some(1.0) => Alpha::Premultiplied,
        _ => Alpha::Straight,
    }
}

/// The size that the header tells, and whether the picture has an alpha channel.
///
/// # Errors
/// What the decoder says of it.
pub(super) fn header(bytes: &[u8], format: ImageFormat) -> Result<((u32, u32), bool), String> {
    let header = guarded(|| {
        let decoder = decoder(bytes, format)?;
        Ok((decoder.dimensions(), decoder.color_type().has_alpha()))
    });
    header.map_err(crashed)?.map_err(broken)
}

/// The pixels, turned, row major; with their width and height.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn rgb(
    bytes: &[u8],
    format: ImageFormat,
    alpha: Alpha,
    turn: Orientation,
) -> Result<(Vec<u8>, (u32, u32)), String> {
    let damaged = |problem| format!("damaged or not whole: {problem}");
    match format {
        ImageFormat::Jpeg => jpeg::check(bytes).map_err(damaged)?,
        ImageFormat::Gif if !gif_frames(bytes).1 => {
            return Err(damaged("the end of the GIF is missing".to_owned()));
        }
        ImageFormat::WebP if !webp_is_whole(bytes) => {
            return Err(damaged("the end of the WebP is missing".to_owned()));
        }
        _ => {}
    }
    let decoded = guarded(|| DynamicImage::from_decoder(decoder(bytes, format)?));
    turned(decoded.map_err(crashed)?.map_err(broken)?, alpha, turn)
}

/// A decoded picture's pixels, turned, row major; with their width and height.
///
/// # Errors
/// If its samples cannot be used.
pub(super) fn turned(
    picture: DynamicImage,
    alpha: Alpha,
    turn: Orientation,
) -> Result<(Vec<u8>, (u32, u32)), String> {
    let size = (picture.width(), picture.height());
    let rgb = rgb8(picture, alpha)?;
    if turn == Orientation::NoTransforms {
        return Ok((rgb, size));
    }
    let rgb = RgbImage::from_raw(size.0, size.1, rgb).ok_or("it has too few pixels")?;
    let mut picture = DynamicImage::ImageRgb8(rgb);
    picture.apply_orientation(turn);
    let size = (picture.width(), picture.height());
    Ok((picture.into_bytes(), size))
}

pub(super) fn crashed(reason: String) -> String {
    let reason = shown::text(&reason).to_string();
    format!("its decoder failed ({reason}): save it anew as PNG or JPEG")
}

pub(super) fn broken(error: image::ImageError) -> String {
    // An error is one line, and a decoder may quote bytes of the file.
    let text = error.to_string();
    format!(
        "broken, not whole, or of an unsupported kind: {}",
        shown::text(&text)
    )
}

pub(super) fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MOST_DECODER_BYTES);
    limits
}

fn decoder(bytes: &[u8], format: ImageFormat) -> ImageResult<impl ImageDecoder + '_> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits());
    reader.into_decoder()
}

/// Any supported picture as 8-bit RGB over white.
fn rgb8(picture: DynamicImage, alpha: Alpha) -> Result<Vec<u8>, String> {
    use DynamicImage as D;
    let over8 = |value, opacity| over_white8(value, opacity, alpha);
    let over16 = |value, opacity| to_8(over_white16(value, opacity, alpha));
    Ok(match picture {
        D::ImageRgb8(b) => b.into_raw(),
        D::ImageLuma8(b) => b.as_raw().iter().flat_map(|&v| [v; 3]).collect(),
        D::ImageLumaA8(b) => b
            .pixels()
            .flat_map(|p| [over8(p.0[0], p.0[1]); 3])
            .collect(),
        D::ImageRgba8(b) => b
            .pixels()
            .flat_map(|p| [0, 1, 2].map(|c| over8(p.0[c], p.0[3])))
            .collect(),
        D::ImageLuma16(b) => b.as_raw().iter().flat_map(|&v| [to_8(v); 3]).collect(),
        D::ImageRgb16(b) => b.as_raw().iter().map(|&v| to_8(v)).collect(),
        D::ImageLumaA16(b) => b
            .pixels()
            .flat_map(|p| [over16(p.0[0], p.0[1]); 3])
            .collect(),
        D::ImageRgba16(b) => b
            .pixels()
            .flat_map(|p| [0, 1, 2].map(|c| over16(p.0[c], p.0[3])))
            .collect(),
        _ => return Err("floating-point samples: save it with 8 or 16 bits a sample".to_owned()),
    })
}

/// `value` with opacity `alpha` over white, rounded.
fn over_white8(value: u8, opacity: u8, alpha: Alpha) -> u8 {
    let (wide, opaque) = (u32::from(value), u32::from(opacity));
    match alpha {
        Alpha::Straight => ((wide * opaque + 255 * (255 - opaque) + 127) / 255) as u8,
        Alpha::Premultiplied => value.saturating_add(255 - opacity),
    }
}

fn over_white16(value: u16, opacity: u16, alpha: Alpha) -> u16 {
    let (wide, opaque) = (u64::from(value), u64::from(opacity));
    match alpha {
        Alpha::Straight => ((wide * opaque + 65_535 * (65_535 - opaque) + 32_767) / 65_535) as u16,
        Alpha::Premultiplied => value.saturating_add(65_535 - opacity),
    }
}

/// Rounded to the nearest: 65535 is 255 times 257.
fn to_8(value: u16) -> u8 {
    ((u32::from(value) + 128) / 257) as u8
}

//! How a picture lies in its file: EXIF's orientation, looked for in every place where Pillow's `ImageOps.exif_transpose` finds
//! it, which the trainers apply whose results people compare.
//!
//! EXIF comes first: a segment of a JPEG (several are joined), a chunk of a PNG before or behind its pixels, else a PNG's text
//! `Raw profile type exif`, a chunk of a WebP, a TIFF's own tag; `Exif\0\0` may stand before it. Where EXIF has none, XMP's
//! `tiff:Orientation` counts. A value other than 2 to 8 turns nothing.

use std::borrow::Cow;
use std::io::Read as _;

use image::ImageFormat;
use image::metadata::Orientation;

use super::containers::{jpeg_segments, png_chunks, webp_chunks};
use super::ifd::Ifd;

const TAG: u16 = 274;
const XMP_TAG: u16 = 700;
const PREFIX: &[u8] = b"Exif\0\0";
const XMP_KEYWORD: &[u8] = b"XML:com.adobe.xmp";
/// Pillow's bound on a PNG's text.
const MOST_TEXT_BYTES: u64 = 1 << 20;

/// What a file says of how its picture lies, found where it may stand.
#[derive(Default)]
struct Said<'a> {
    exif: Option<Cow<'a, [u8]>>,
    xmp: Option<Cow<'a, [u8]>>,
    /// The EXIF data that versions before looked at, and whether they read its number in any type.
    before: Option<&'a [u8]>,
}

/// The orientation to apply, and the one that was applied when [`super::READING`] was 1: the same but for files whose
/// orientation stands where it was not looked for then.
pub(super) fn orientations(bytes: &[u8], format: ImageFormat) -> (Orientation, Orientation) {
    let said = match format {
        ImageFormat::Jpeg => in_jpeg(bytes),
        ImageFormat::Png => in_png(bytes),
        ImageFormat::WebP => in_webp(bytes),
        ImageFormat::Tiff => in_tiff(bytes),
        _ => Said::default(),
    };
    let exif = said.exif.as_deref().map(without_prefix);
    let entry = exif.and_then(|exif| Ifd::first(exif)?.entry(TAG));
    let now = match (&entry, &said.xmp) {
        (Some(entry), _) => entry.number(),
        (None, Some(xmp)) => in_xmp(xmp),
        (None, None) => None,
    };
    let before = said.before.and_then(|exif| {
        let entry = Ifd::first(exif)?.entry(TAG)?;
        let is_tiff = format == ImageFormat::Tiff;
        (entry.count == 1 && (entry.kind == 3 || is_tiff && entry.kind == 4))
            .then(|| entry.number())?
    });
    (turn(now), turn(before))
}

fn turn(number: Option<f64>) -> Orientation {
    let whole = number.filter(|n| n.fract() == 0.0 && (2.0..=8.0).contains(n));
    whole
        .and_then(|n| Orientation::from_exif(n as u8))
        .unwrap_or(Orientation::NoTransforms)
}

/// EXIF data from its byte order on.
fn without_prefix(exif: &[u8]) -> &[u8] {
    let once = exif.strip_prefix(PREFIX).unwrap_or(exif);
    once.strip_prefix(PREFIX).unwrap_or(once)
}

fn in_jpeg(bytes: &[u8]) -> Said<'_> {
    let mut said = Said::default();
    for (marker, content) in jpeg_segments(bytes) {
        if marker != 0xe1 {
            continue;
        }
        if let Some(exif) = content.strip_prefix(PREFIX) {
            said.before = Some(exif);
            match &mut said.exif {
                // Longer data than a segment takes.
                Some(joined) => joined.to_mut().extend(exif),
                none => *none = Some(exif.into()),
            }
        } else if let Some(xmp) = content.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
            said.xmp = Some(xmp.into());
        }
    }
    said
}

fn in_png(bytes: &[u8]) -> Said<'_> {
    let (mut said, mut raw, mut pixels) = (Said::default(), None, false);
    for (kind, content) in png_chunks(bytes) {
        match kind {
            b"IDAT" => pixels = true,
            b"eXIf" => {
                said.exif = Some(content.into());
                if !pixels && said.before.is_none() {
                    said.before = Some(content);
                }
            }
            b"tEXt" | b"zTXt" | b"iTXt" => match png_text(kind, content) {
                Some((b"exif", text)) if kind == b"tEXt" => said.exif = Some(text),
                Some((b"Raw profile type exif", text)) => raw = from_hex(&text),
                Some((XMP_KEYWORD, text)) => said.xmp = Some(text),
                _ => {}
            },
            _ => {}
        }
    }
    said.exif = said.exif.or(raw.map(Cow::from));
    said
}

/// The keyword and the text of a chunk of text.
fn png_text<'a>(kind: &[u8], content: &'a [u8]) -> Option<(&'a [u8], Cow<'a, [u8]>)> {
    let split = |bytes: &'a [u8]| -> Option<(&'a [u8], &'a [u8])> {
        let end = bytes.iter().position(|&b| b == 0)?;
        Some((&bytes[..end], &bytes[end + 1..]))
    };
    let (keyword, rest) = split(content)?;
    let text = match kind {
        b"tEXt" => rest.into(),
        b"zTXt" => inflate(rest.strip_prefix(&[0])?)?.into(),
        _ => {
            let (&[compressed, method], rest) = rest.split_first_chunk()?;
            let (_language, rest) = split(rest)?;
            let (_translated, text) = split(rest)?;
            match (compressed, method) {
                (0, _) => text.into(),
                (_, 0) => inflate(text)?.into(),
                _ => return None,
            }
        }
    };
    Some((keyword, text))
}

fn inflate(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let read = flate2::read::ZlibDecoder::new(bytes).take(MOST_TEXT_BYTES);
    { read }.read_to_end(&mut text).ok().map(|_| text)
}

/// ImageMagick's profiles: an empty line, the name, the length, and lines of hexadecimal digits.
fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let lines = text.split(|&b| b == b'\n').skip(3);
    let digits: Vec<u8> = lines
        .flatten()
        .filter(|b| !b.is_ascii_whitespace())
        .copied()
        .collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks(2).map(byte).collect()
}

fn in_webp(bytes: &[u8]) -> Said<'_> {
    let mut said = Said::default();
    for (kind, content) in webp_chunks(bytes) {
        match kind {
            b"EXIF" if said.exif.is_none() => {
                said.exif = Some(content.into());
                said.before = Some(content);
            }
            b"XMP " if said.xmp.is_none() => said.xmp = Some(content.into()),
            _ => {}
        }
    }
    said
}

fn in_tiff(bytes: &[u8]) -> Said<'_> {
    let xmp = Ifd::first(bytes).and_then(|ifd| ifd.entry(XMP_TAG));
    Said {
        exif: Some(bytes.into()),
        xmp: xmp.map(|entry| entry.bytes().into()),
        before: Some(bytes),
    }
}

/// The first `tiff:Orientation` with a digit behind it, as an attribute or an element.
fn in_xmp(xmp: &[u8]) -> Option<f64> {
    const NAME: &[u8] = b"tiff:Orientation";
    let after = xmp
        .windows(NAME.len())
        .enumerate()
        .filter(|(_, name)| *name == NAME);
    after
        .filter_map(|(at, _)| {
            let rest = &xmp[at + NAME.len()..];
            let value = rest.strip_prefix(b"=\"").or(rest.strip_prefix(b">"))?;
            let digit = value.first().filter(|b| b.is_ascii_digit())?;
            Some(f64::from(digit - b'0'))
        })
        .next()
}

#[cfg(test)]
#[path = "orientation_tests.rs"]
mod tests;

//! What a file is by its first bytes, never by its name.

use image::ImageFormat;

/// Bytes of a file's beginning that tell its kind.
pub(crate) const HEAD_BYTES: usize = 64;

/// Kinds of files by their beginning: what it is, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A picture that can be decoded here.
    Picture(ImageFormat),
    /// Something known that cannot, with its name and what to do.
    Known(&'static str, &'static str),
    /// Anything else.
    Unknown,
}

const RESAVE: &str = "save it as PNG, JPEG or WebP";

/// The kind of a file that begins so.
pub(crate) fn kind(head: &[u8]) -> Kind {
    use ImageFormat as F;
    let known = |name| Kind::Known(name, RESAVE);
    match image::guess_format(head) {
        Ok(format @ (F::Png | F::Jpeg | F::WebP | F::Bmp | F::Gif | F::Tiff)) => {
            return Kind::Picture(format);
        }
        Ok(F::Avif) => return known("an AVIF picture"),
        _ => {}
    }
    // The box that begins files of the MPEG-4 kind, and their brands.
    if head.get(4..8) == Some(b"ftyp") {
        return match head.get(8..12) {
            Some(b"avif" | b"avis") => known("an AVIF picture"),
            Some(b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"mif1" | b"msf1") => {
                known("a HEIC picture")
            }
            _ => Kind::Known("a video", "save the frames that are meant as pictures"),
        };
    }
    let text = head.trim_ascii_start().to_ascii_lowercase();
    if text.starts_with(b"<!doctype html") || text.starts_with(b"<html") {
        return Kind::Known("a page of HTML", "download the picture itself");
    }
    match head {
        // TIFF with 64-bit offsets.
        [b'I', b'I', 43, 0, ..] | [b'M', b'M', 0, 43, ..] => Kind::Picture(F::Tiff),
        [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => known("a JPEG XL picture"),
        [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] | [0xff, 0x4f, 0xff, 0x51, ..] => {
            known("a JPEG 2000 picture")
        }
        [b'8', b'B', b'P', b'S', ..] => known("a Photoshop file"),
        _ if head.starts_with(b"version https://git-lfs") => {
            Kind::Known("a pointer of Git LFS", "run `git lfs pull`")
        }
        _ => Kind::Unknown,
    }
}

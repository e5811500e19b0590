//! The parts that picture files are made of, found without decoding: segments of a JPEG, chunks of a PNG or WebP, frames of a
//! GIF. Each stops at the first part that is not whole.

/// Big-endian, as JPEG and PNG count.
pub(super) fn be(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |n, &b| n << 8 | usize::from(b))
}

/// A JPEG's segments up to its first picture data: the marker and the content. The last one is the header of the picture data (0xda).
pub(super) fn jpeg_segments(bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut found = Vec::new();
    // Behind the two bytes that begin a file (SOI). The markers are those of ITU-T T.81, B.1.
    let mut at = 2;
    while let Some(segment) = jpeg_segment(bytes, &mut at) {
        found.push(segment);
        if segment.0 == 0xda {
            break;
        }
    }
    found
}

/// The next segment at or behind `at`, which moves on; `None` at the end of the picture or file.
pub(super) fn jpeg_segment<'a>(bytes: &'a [u8], at: &mut usize) -> Option<(u8, &'a [u8])> {
    loop {
        let marker = bytes.get(*at..*at + 2)?;
        match (marker[0], marker[1]) {
            // Junk between segments, which every decoder passes over; and markers without a length (TEM, restarts, SOI).
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => *at += 2,
            (0xff, 0xff) => *at += 1,
            (0xff, 0xd9) => return None,
            (0xff, marker) => {
                let length = be(bytes.get(*at + 2..*at + 4)?);
                let content = bytes.get(*at + 4..*at + 2 + length.max(2))?;
                *at += 2 + length.max(2);
                return Some((marker, content));
            }
            _ => *at += 1,
        }
    }
}

/// A PNG's chunks.
pub(super) fn png_chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut at = 8;
    std::iter::from_fn(move || {
        let length = be(bytes.get(at..at + 4)?);
        let kind = bytes.get(at + 4..at + 8)?;
        let content = bytes.get(at + 8..)?.get(..length)?;
        // Behind it a checksum.
        at += 12 + length;
        Some((kind, content))
    })
}

/// A WebP's chunks.
pub(super) fn webp_chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut at = 12;
    std::iter::from_fn(move || {
        let length = u32::from_le_bytes(*bytes.get(at + 4..at + 8)?.as_array()?) as usize;
        let kind = bytes.get(at..at + 4)?;
        let content = bytes.get(at + 8..)?.get(..length)?;
        at += 8 + length + length % 2;
        Some((kind, content))
    })
}

/// Whether a WebP is as long as it says.
pub(super) fn webp_is_whole(bytes: &[u8]) -> bool {
    let length = bytes.get(4..8).and_then(|length| length.as_array());
    length.is_some_and(|&length| u32::from_le_bytes(length) as usize + 8 <= bytes.len())
}

/// How many frames a GIF has, and whether the last is whole.
pub(super) fn gif_frames(bytes: &[u8]) -> (usize, bool) {
    let (delays, is_whole) = gif_parts(bytes);
    (delays.len(), is_whole)
}

/// How long each frame of a GIF is shown, in hundredths of a second.
pub(super) fn gif_delays(bytes: &[u8]) -> Vec<u16> {
    gif_parts(bytes).0
}

/// The delay of each frame, and whether the last is whole.
fn gif_parts(bytes: &[u8]) -> (Vec<u16>, bool) {
    let colours = |flags: u8| match flags & 0x80 {
        0 => 0,
        _ => 3 << ((flags & 7) + 1),
    };
    let Some(&flags) = bytes.get(10) else {
        return (Vec::new(), false);
    };
    let (mut at, mut frames, mut delay) = (13 + colours(flags), Vec::new(), 0);
    loop {
        match bytes.get(at) {
            Some(0x3b) => return (frames, true),
            // Some programs leave the end out.
            None => {
                let is_whole = !frames.is_empty();
                return (frames, is_whole);
            }
            // An extension: its kind, and blocks.
            Some(0x21) => {
                // How the next frame is shown: the delay stands behind the block's length and flags.
                if let Some(&[0xf9, 4, _, low, high]) = bytes.get(at + 1..at + 6) {
                    delay = u16::from_le_bytes([low, high]);
                }
                at += 2;
            }
            Some(0x2c) => {
                let Some(&flags) = bytes.get(at + 9) else {
                    return (frames, false);
                };
                frames.push(std::mem::take(&mut delay));
                // Its header, colours, and the width of its codes.
                at += 10 + colours(flags) + 1;
            }
            // Some programs write zeros between blocks.
            Some(0) => {
                at += 1;
                continue;
            }
            _ => return (frames, false),
        }
        // Blocks, each with its length before it; an empty one ends them.
        loop {
            match bytes.get(at) {
                None => return (frames, false),
                Some(0) => break,
                Some(&length) => at += 1 + usize::from(length),
            }
        }
        at += 1;
    }
}

/// Whether a file holds more than one picture, shown one after the other. As Pillow counts them.
pub(super) fn is_animated(bytes: &[u8], format: image::ImageFormat) -> bool {
    use image::ImageFormat as F;
    match format {
        F::Gif => gif_frames(bytes).0 > 1,
        F::WebP => {
            webp_chunks(bytes)
                .filter(|(kind, _)| *kind == b"ANMF")
                .count()
                > 1
        }
        F::Png => {
            let (mut frames, mut is_frame) = (0, false);
            for (kind, content) in png_chunks(bytes) {
                match kind {
                    b"acTL" => frames = content.get(..4).map_or(0, be),
                    // The still picture is the first frame, where a frame's header comes before it; else one beside them.
                    b"fcTL" => is_frame = true,
                    b"IDAT" => break,
                    _ => {}
                }
            }
            frames > 1 || frames == 1 && !is_frame
        }
        _ => false,
    }
}

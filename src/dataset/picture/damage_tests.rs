//! Damaged files are refused, sound ones of rare kinds are not.

use std::io::Cursor;

use super::*;

fn opened(name: &str, bytes: &[u8]) -> Result<(PictureFile, Vec<u8>), PictureError> {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("writes");
    let picture = PictureFile::open(&path)?;
    let rgb = picture.decode()?;
    Ok((picture, rgb))
}

/// A picture with noise in it, so that its data is long.
fn noisy() -> image::RgbImage {
    image::RgbImage::from_fn(160, 120, |x, y| {
        let noise = (x * 31 + y * 17).wrapping_mul(2_654_435_761) >> 28;
        image::Rgb([x + noise, 2 * y, 200 + noise - x].map(|v| v as u8))
    })
}

fn encoded(format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    noisy().write_to(&mut bytes, format).expect("encodes");
    bytes.into_inner()
}

/// Baseline and progressive, interleaved and not, with restarts: `NAME.file` of a golden made by libjpeg.
fn jpegs() -> Vec<(String, Vec<u8>)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/pictures");
    let mut files: Vec<_> = [
        "rgb.jpg",
        "rgb_420.jpg",
        "progressive.jpg",
        "grey.jpg",
        "cmyk.jpg",
    ]
    .iter()
    .map(|name| {
        (
            (*name).to_owned(),
            std::fs::read(Path::new(path).join(name)).expect("golden"),
        )
    })
    .collect();
    files.push(("noisy.jpg".to_owned(), encoded(ImageFormat::Jpeg)));
    files
}

/// Where the last picture data of a JPEG begins.
fn data(bytes: &[u8]) -> usize {
    let scan = bytes
        .windows(2)
        .rposition(|pair| pair == [0xff, 0xda])
        .expect("scan");
    scan + 2 + usize::from(bytes[scan + 3])
}

#[test]
fn a_jpeg_with_zeros_or_less_or_more_in_its_data_is_refused() {
    for (name, bytes) in jpegs() {
        assert!(opened(&name, &bytes).is_ok(), "{name}");
        let (start, end) = (data(&bytes), bytes.len() - 2);
        let length = end - start;
        let mut missed = Vec::new();
        for tenth in 1..10 {
            let at = start + length * tenth / 10;
            let cut = [&bytes[..at], &[0xff, 0xd9]].concat();
            let mut zeros = bytes.clone();
            zeros[at..end.min(at + length / 10 + 8)].fill(0);
            let doubled = [&bytes[..end], &bytes[at..]].concat();
            for (what, damaged) in [("cut", cut), ("zeros", zeros), ("doubled", doubled)] {
                if opened(&name, &damaged).is_ok() {
                    missed.push(format!("{what} {tenth}"));
                }
            }
        }
        // The codes may fall into step again before the end; then libjpeg hears nothing either.
        let in_step = missed.iter().filter(|what| what.starts_with("zeros"));
        assert!(
            in_step.count() == missed.len() && missed.len() < 2,
            "{name}: {missed:?}"
        );
    }
}

#[test]
fn checksums_and_ends_of_other_kinds_are_heard() {
    for format in [
        ImageFormat::Png,
        ImageFormat::Gif,
        ImageFormat::Bmp,
        ImageFormat::Tiff,
        ImageFormat::WebP,
    ] {
        let bytes = encoded(format);
        let name = format!("{format:?}");
        assert!(opened(&name, &bytes).is_ok(), "{name}");
        for percent in (2..100).step_by(7) {
            assert!(
                opened(&name, &bytes[..bytes.len() * percent / 100]).is_err(),
                "{name} {percent}"
            );
        }
    }
    let mut bytes = encoded(ImageFormat::Png);
    for at in (60..bytes.len() - 16).step_by(997) {
        bytes[at] ^= 1;
        assert!(opened("flipped.png", &bytes).is_err(), "{at}");
        bytes[at] ^= 1;
    }
}

#[test]
fn rare_kinds_are_read_as_pillow_reads_them() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/odd_pictures.safetensors"
    );
    let golden = std::fs::read(path).expect("golden");
    let golden = safetensors::SafeTensors::deserialize(&golden).expect("tensors");
    let mut count = 0;
    for (name, file) in golden.tensors() {
        let Some(name) = name.strip_suffix(".file") else {
            continue;
        };
        let (_, rgb) = opened(name, file.data()).expect(name);
        let expected = golden.tensor(&format!("{name}.rgb")).expect("pixels");
        let pairs = rgb.iter().zip(expected.data());
        let apart = pairs.map(|(a, b)| a.abs_diff(*b)).max().expect("pixels");
        // Pillow takes the alpha out of colours and puts it back, in whole numbers, and 16 bits by their upper half.
        let allowed = match name {
            name if name.contains("premultiplied") || name.contains("_16_") => 1,
            name if name.contains("lossy") => 12,
            _ => 0,
        };
        assert!(
            rgb.len() == expected.data().len() && apart <= allowed,
            "{name}: {apart}"
        );
        count += 1;
    }
    assert_eq!(count, 21);
}

#[test]
fn only_pictures_that_were_read_otherwise_have_a_new_identity() {
    let golden = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(name);
        std::fs::read(path).expect("golden")
    };
    let (turned, odd) = (
        golden("orientation.safetensors"),
        golden("odd_pictures.safetensors"),
    );
    let turned = safetensors::SafeTensors::deserialize(&turned).expect("tensors");
    let odd = safetensors::SafeTensors::deserialize(&odd).expect("tensors");
    let is_old = |tensors: &safetensors::SafeTensors<'_>, name: &str| {
        let file = tensors.tensor(&format!("{name}.file")).expect(name);
        opened(name, file.data()).expect(name).0.digest == Digest::of(file.data())
    };
    for same in [
        "jpeg_exif_le_6",
        "png_exif_be_3",
        "webp_exif_le_8",
        "tiff_le_5",
        "tiff_kind4_1_be",
        "png_exif_le_1",
        "png_xmp_attribute_1",
        "png_before_plain",
        "png_app1_text_plain",
        "jpeg_exif_9_and_xmp",
    ] {
        assert!(is_old(&turned, same), "{same}");
    }
    for other in [
        "png_after_plain",
        "png_before_prefix",
        "webp_prefix",
        "jpeg_xmp_element_2",
        "jpeg_kind4_1_le",
        "png_profile_compressed_plain",
        "tiff_xmp_attribute_6",
        "png_two_exif",
    ] {
        assert!(!is_old(&turned, other), "{other}");
    }
    assert!(is_old(&odd, "tiff_straight_8_le") && is_old(&odd, "tiff_unspecified_8_le"));
    assert!(!is_old(&odd, "tiff_premultiplied_8_le"));
}

/// Tiles, and a plane for each colour: the decoder panics on it.
#[test]
fn a_file_that_its_decoder_panics_on_is_one_line() {
    let mut tags = vec![
        (256u16, vec![40u32]),
        (257, vec![40]),
        (258, vec![8, 8, 8]),
        (259, vec![1]),
        (262, vec![2]),
    ];
    tags.extend([
        (277, vec![3]),
        (284, vec![2]),
        (322, vec![32]),
        (323, vec![32]),
    ]);
    let (tiles, tile) = (12u32, 32 * 32u32);
    let mut rest = vec![0x55; (tiles * tile) as usize];
    let start = 8 + 2 + 12 * (tags.len() as u32 + 2) + 4;
    tags.push((324, (0..tiles).map(|n| start + n * tile).collect()));
    tags.push((325, vec![tile; tiles as usize]));
    let mut bytes = b"II*\0\x08\0\0\0".to_vec();
    bytes.extend((tags.len() as u16).to_le_bytes());
    for (tag, values) in tags {
        bytes.extend(
            [
                &tag.to_le_bytes()[..],
                &[4, 0],
                &(values.len() as u32).to_le_bytes(),
            ]
            .concat(),
        );
        match values.as_slice() {
            [value] => bytes.extend(value.to_le_bytes()),
            values => {
                bytes.extend((start + rest.len() as u32).to_le_bytes());
                rest.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(rest);
    let error = opened("scan.tif", &bytes)
        .err()
        .expect("refused")
        .to_string();
    assert!(
        error.contains("scan.tif: its decoder failed (") && !error.contains('\n'),
        "{error}"
    );
}

#[test]
fn a_file_of_another_kind_is_called_so() {
    for (bytes, part) in [
        (
            &b"\0\0\0\x20ftypavif...."[..],
            "an AVIF picture: save it as PNG, JPEG or WebP",
        ),
        (b"\0\0\0\x18ftypheic....", "a HEIC picture"),
        (b"\0\0\0\x18ftypisom....", "a video"),
        (b"\xff\x0a....", "a JPEG XL picture"),
        (
            b"  <!DOCTYPE html><html>",
            "a page of HTML: download the picture itself",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a pointer of Git LFS: run `git lfs pull`",
        ),
    ] {
        let error = opened("a.jpg", bytes).err().expect("refused").to_string();
        assert!(error.contains(part), "{error}");
    }
}

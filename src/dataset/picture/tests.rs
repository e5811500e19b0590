use std::io::Write as _;

use super::*;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pictures")
}

fn size(width: u32, height: u32) -> Size {
    Size { width, height }
}

fn whole(size: Size) -> View {
    View {
        resized: size,
        left: 0,
        top: 0,
        bucket: size,
        flip: false,
        resampling: crate::recipe::latents::Resampling::Spec,
        window: None,
    }
}

/// The error of a file with this content.
fn refused(name: &str, bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("writes");
    let error = match PictureFile::open(&path) {
        Err(error) => error,
        Ok(picture) => picture.decode().expect_err(name),
    };
    let text = error.to_string();
    assert!(text.contains(name) && !text.contains('\n'), "{text}");
    text
}

#[test]
fn every_kind_of_file_reads_as_pillow_reads_it() {
    let golden = std::fs::read(folder().with_extension("safetensors")).expect("golden");
    let golden = safetensors::SafeTensors::deserialize(&golden).expect("tensors");
    assert!(golden.len() >= 28);
    for (name, expected) in golden.tensors() {
        let picture = PictureFile::open(&folder().join(&name)).expect("opens");
        let shape = size(expected.shape()[1] as u32, expected.shape()[0] as u32);
        assert_eq!(picture.size, shape, "{name}");
        let rgb = picture.decode().expect("decodes");
        assert_eq!(rgb.len(), expected.data().len(), "{name}");
        // Lossy files: decoders round differently, and chroma is interpolated differently.
        let allowed = match name.as_str() {
            "rgb_420.jpg" | "progressive.jpg" => 12,
            "cmyk.jpg" => 4,
            "cmyk.tiff" => 1,
            name if name.ends_with(".jpg") => 3,
            _ => 0,
        };
        let apart = rgb
            .iter()
            .zip(expected.data())
            .map(|(a, b)| a.abs_diff(*b))
            .max();
        assert!(apart.expect("pixels") <= allowed, "{name}: {apart:?}");
    }
}

#[test]
fn animations_floats_and_things_that_are_no_pictures_are_one_line() {
    for (name, part) in [
        ("animated.gif", "animated: save the frame"),
        ("animated.webp", "animated: save the frame"),
        ("animated.png", "animated: save the frame"),
        ("float.tiff", "of an unsupported kind"),
    ] {
        let bytes = std::fs::read(folder().join(name)).expect("golden");
        let error = refused(name, &bytes);
        assert!(error.contains(part), "{error}");
    }
    assert!(refused("empty.png", b"").contains("the file is empty"));
    assert!(refused("text.jpg", b"hello, this is text").contains("not a picture that can be read"));
    let missing = PictureFile::open(Path::new("/nowhere/a.png"))
        .err()
        .expect("refused")
        .to_string();
    assert!(
        missing.starts_with("cannot read /nowhere/a.png"),
        "{missing}"
    );
}

#[test]
fn a_file_cut_anywhere_is_one_line_and_never_a_panic() {
    for entry in std::fs::read_dir(folder()).expect("folder") {
        let path = entry.expect("entry").path();
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .expect("name")
            .to_owned();
        let bytes = std::fs::read(&path).expect("reads");
        for tenth in 0..10 {
            let cut = bytes.len() * tenth / 10;
            // A bitmap's or TIFF's last rows may lie before its end; no other kind is whole without it.
            if tenth < 9 || !(name.ends_with("bmp") || name.ends_with("tiff")) {
                refused(&name, &bytes[..cut]);
            }
        }
    }
}

#[test]
fn a_damaged_file_is_never_a_panic() {
    let folder_out = tempfile::tempdir().expect("folder");
    let path = folder_out.path().join("damaged");
    for entry in std::fs::read_dir(folder()).expect("folder") {
        let bytes = std::fs::read(entry.expect("entry").path()).expect("reads");
        for n in 0..60usize {
            let mut bytes = bytes.clone();
            let at = n.wrapping_mul(2_654_435_761) % bytes.len();
            bytes[at] ^= 1 << (n % 8);
            std::fs::write(&path, &bytes).expect("writes");
            if let Ok(picture) = PictureFile::open(&path)
                && let Ok(rgb) = picture.decode()
            {
                assert_eq!(
                    rgb.len(),
                    (picture.size.width * picture.size.height * 3) as usize
                );
            }
        }
    }
}

/// A valid PNG header that claims a size, and nothing else.
fn claims(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut crc = u32::MAX;
    for &byte in &header {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    let mut out = vec![0x89, b'P', b'N', b'G', 13, 10, 26, 10, 0, 0, 0, 13];
    out.extend(header);
    out.extend((!crc).to_be_bytes());
    out.extend([0, 0, 0, 0]);
    out.extend(b"IDAT");
    out.extend([0x35, 0xaf, 0x06, 0x1e]);
    out
}

#[test]
fn huge_pictures_are_refused_by_their_header_alone() {
    let error = refused("huge.png", &claims(30_000, 30_000));
    assert!(
        error.contains("30000x30000 pixels, expected 1 to 134217728"),
        "{error}"
    );
    refused("wide.png", &claims(u32::MAX >> 1, 1));
}

#[test]
fn a_picture_of_30000_pixels_side_and_one_of_a_single_pixel_are_prepared() {
    let folder = tempfile::tempdir().expect("folder");
    for (from, to) in [
        (size(30_000, 40), size(3000, 4)),
        (size(1, 1), size(64, 64)),
    ] {
        let path = folder.path().join("picture.png");
        image::RgbImage::from_pixel(from.width, from.height, image::Rgb([255, 0, 51]))
            .save(&path)
            .expect("saves");
        let picture = PictureFile::open(&path).expect("opens");
        assert_eq!(picture.size, from);
        let prepared = picture.prepare(whole(to)).expect("prepares");
        assert_eq!(prepared.original_size, from);
        let plane = (to.width * to.height) as usize;
        assert_eq!(prepared.pixels.len(), 3 * plane);
        for (n, value) in prepared.pixels.iter().enumerate() {
            assert_eq!(*value, [1.0, -1.0, 51.0 / 127.5 - 1.0][n / plane]);
        }
    }
}

#[test]
fn a_view_is_the_box_of_the_resized_picture_and_a_flip_mirrors_it() {
    let picture = PictureFile::open(&folder().join("rgb.png")).expect("opens");
    let all = picture.prepare(whole(picture.size)).expect("whole");
    let view = View {
        left: 5,
        top: 3,
        bucket: size(16, 8),
        ..whole(picture.size)
    };
    let [part, mirrored] = &*picture
        .prepare_all(&[view, View { flip: true, ..view }])
        .expect("both")
    else {
        panic!("two views")
    };
    for c in 0..3 {
        for y in 0..8 {
            for x in 0..16 {
                let value = all.pixels[(c * 17 + y + 3) * 24 + x + 5];
                assert_eq!(part.pixels[(c * 8 + y) * 16 + x], value);
                assert_eq!(mirrored.pixels[(c * 8 + y) * 16 + 15 - x], value);
            }
        }
    }
    for bad in [
        View { left: 9, ..view },
        View {
            top: u32::MAX,
            ..view
        },
    ] {
        assert!(picture.prepare(bad).is_err());
    }
}

#[test]
fn the_digest_is_of_the_bytes_and_tells_a_change() {
    let folder_out = tempfile::tempdir().expect("folder");
    let path = folder_out.path().join("a.png");
    std::fs::copy(folder().join("rgb.png"), &path).expect("copies");
    let digest = PictureFile::open(&path).expect("opens").digest;
    let moved = folder_out.path().join("b.jpg");
    std::fs::rename(&path, &moved).expect("renames");
    let same = PictureFile::open(&moved).expect("opens").expect(&digest);
    assert!(same.is_ok(), "a rename changes nothing");
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(&moved)
        .expect("opens");
    file.write_all(b"x").expect("writes");
    let error = PictureFile::open(&moved)
        .expect("opens")
        .expect(&digest)
        .err()
        .expect("changed");
    assert!(error.to_string().contains("has changed"), "{error}");
}

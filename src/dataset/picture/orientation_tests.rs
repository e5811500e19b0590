use super::super::PictureFile;

/// Every place, form and value, against `ImageOps.exif_transpose`.
#[test]
fn pictures_are_turned_as_pillow_turns_them() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/orientation.safetensors"
    );
    let golden = std::fs::read(path).expect("golden");
    let golden = safetensors::SafeTensors::deserialize(&golden).expect("tensors");
    let folder = tempfile::tempdir().expect("folder");
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (name, file) in golden.tensors() {
        let Some(name) = name.strip_suffix(".file") else {
            continue;
        };
        count += 1;
        let path = folder.path().join(name);
        std::fs::write(&path, file.data()).expect("writes");
        let expected = golden.tensor(&format!("{name}.rgb")).expect("pixels");
        let found = PictureFile::open(&path)
            .and_then(|picture| Ok((picture.size, picture.decode()?)))
            .map_err(|e| wrong.push(e.to_string()));
        let Ok((size, rgb)) = found else { continue };
        // The best JPEG still rounds.
        let allowed = if name.starts_with("jpeg") { 4 } else { 0 };
        let pairs = rgb.iter().zip(expected.data());
        let apart = pairs.map(|(a, b)| a.abs_diff(*b)).max();
        if [size.height as usize, size.width as usize] != expected.shape()[..2]
            || apart > Some(allowed)
        {
            wrong.push(format!("{name}: {size:?}, {apart:?} apart"));
        }
    }
    assert!(count > 400 && wrong.is_empty(), "{count} {wrong:#?}");
}

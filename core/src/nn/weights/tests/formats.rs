//! 8-bit floats, scaled weights and GGUF files, against what the reference libraries read from them
//! (`tools/goldens/weights.py`), and what is said of files that are not whole.

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::nn::weights::{BlockType, ElementType, cast};

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(file)
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>());
    values.expect("f32").into_iter().map(f32::to_bits).collect()
}

#[test]
fn eight_bit_floats_are_those_of_torch() {
    let weights = open(&golden("weights_fp8.safetensors"));
    let types = weights.storage().types;
    assert_eq!((types["F8_E4M3 scaled"], types["F8_E5M2"]), (2, 1));
    let expected: Vec<String> = weights
        .names()
        .into_iter()
        .filter(|n| n.ends_with(".expected"))
        .collect();
    assert_eq!(expected.len(), 4);
    // Scales and markers are no tensors.
    assert_eq!(
        weights.names().len(),
        2 * expected.len(),
        "{:?}",
        weights.names()
    );
    for name in expected {
        let ours = name.strip_suffix(".expected").expect("so it ends");
        let shape = weights.shape(ours).expect("there");
        let theirs = weights.get(&shape, &name).expect("there");
        assert_eq!(
            bits(&weights.get(&shape, ours).expect("there")),
            bits(&theirs),
            "{ours}"
        );
        // Rounded once, from the exact product.
        let half = weights.clone().with_dtype(DType::BF16).get(&shape, ours);
        let half = half.expect("there").to_dtype(DType::F32).expect("f32");
        let once = theirs
            .to_dtype(DType::BF16)
            .and_then(|t| t.to_dtype(DType::F32));
        assert_eq!(bits(&half), bits(&once.expect("f32")), "{ours}");
    }
}

#[test]
fn a_scale_is_part_of_the_digest() {
    let folder = tempfile::tempdir().expect("folder");
    let digest = |scale: Option<f32>| {
        let mut tensors: Vec<Named<'_>> =
            vec![("l.weight", Dtype::F8_E4M3, vec![2], vec![0x38, 0x40])];
        if let Some(scale) = scale {
            tensors.push(("l.scale_weight", Dtype::F32, vec![1], f32s(&[scale])));
        }
        open(&write(folder.path(), "a.safetensors", &tensors))
            .digest(&list(&[("l.weight", &[2])]))
            .expect("there")
    };
    assert_ne!(digest(None), digest(Some(1.0)));
    assert_ne!(digest(Some(1.0)), digest(Some(2.0)));
    assert_eq!(digest(Some(2.0)), digest(Some(2.0)));
    let mut bytes =
        b"{\"dtype\":\"F8_E4M3\",\"name\":\"l.weight\",\"scale\":1073741824,\"shape\":[2]}\n"
            .to_vec();
    bytes.extend([0x38, 0x40]);
    assert_eq!(
        crate::digest::Digest::of(&bytes),
        digest(Some(2.0)),
        "anyone can compute it"
    );
}

#[test]
fn halves_are_swapped_back() {
    let folder = tempfile::tempdir().expect("folder");
    let path = write(
        folder.path(),
        "a.safetensors",
        &[("m", Dtype::F32, vec![4, 1], f32s(&[1.0, 2.0, 3.0, 4.0]))],
    );
    let swapped = open(&path).renamed(|name: &str| Stored {
        swapped: true,
        ..name.into()
    });
    let read = swapped.get(&[4, 1], "m").expect("there").to_vec2::<f32>();
    assert_eq!(read.expect("f32"), [[3.0], [4.0], [1.0], [2.0]]);
    let other = write(
        folder.path(),
        "b.safetensors",
        &[("m", Dtype::F32, vec![4, 1], f32s(&[3.0, 4.0, 1.0, 2.0]))],
    );
    let used = list(&[("m", &[4, 1])]);
    assert_eq!(
        swapped.digest(&used).expect("there"),
        open(&other).digest(&used).expect("there")
    );
}

#[test]
fn every_block_type_is_decoded_as_gguf_does() {
    let weights = open(&golden("weights.gguf"));
    let expected = open(&golden("weights_gguf.safetensors"));
    assert_eq!(weights.names(), expected.names());
    assert_eq!(weights.names().len(), 14);
    assert_eq!(weights.metadata("general.architecture"), Some("t5encoder"));
    for name in weights.names() {
        let shape = weights.shape(&name).expect("there");
        let ours = weights.get(&shape, &name).expect("there");
        let theirs = expected.get(&shape, &name).expect("of the same shape");
        assert_eq!(bits(&ours), bits(&theirs), "{name}");
        let &[rows, columns] = shape.as_slice() else {
            panic!("a matrix")
        };
        if name == "reshaped.weight" {
            let text = refusal(weights.rows((rows, columns), &name, &[1]));
            assert!(text.contains("Q8_0 of shape [32, 16], and a row"), "{text}");
            continue;
        }
        let row = weights.rows((rows, columns), &name, &[2]).expect("there");
        let theirs = theirs.narrow(0, 2, 1).expect("a row");
        assert_eq!(bits(&row), bits(&theirs), "a row of {name}");
    }
    let part = |k, n| {
        let whole = move |name: &str| Stored {
            part: Some(super::TensorSlice::nth(k, n)),
            ..name.into()
        };
        weights.renamed(whole).get(&[1, 512], "Q4_K.weight")
    };
    let whole = expected.get(&[3, 512], "Q4_K.weight").expect("there");
    let row = whole.narrow(0, 1, 1).expect("a row");
    assert_eq!(bits(&part(1, 3).expect("a third")), bits(&row));
    let turned = weights.renamed(|name: &str| Stored {
        transposed: true,
        ..name.into()
    });
    assert!(refusal(turned.get(&[512, 3], "Q4_K.weight")).contains("and the transpose of it"));
}

/// Many blocks at once, over the boundaries of what is decoded together.
#[test]
fn large_quantised_tensors_are_decoded_as_candle_does() {
    use candle_core::quantized::{GgmlDType, QTensor};
    let values: Vec<f32> = (0..264_192u32).map(|i| (i as f32 * 0.37).sin()).collect();
    let source = Tensor::new(values.as_slice(), &Device::Cpu).expect("made");
    for (ours, theirs) in [
        (BlockType::Q4_0, GgmlDType::Q4_0),
        (BlockType::Q8_0, GgmlDType::Q8_0),
        (BlockType::Q3K, GgmlDType::Q3K),
        (BlockType::Q6K, GgmlDType::Q6K),
    ] {
        let quantised = QTensor::quantize(&source, theirs).expect("quantised");
        let from = cast::StoredNumbers {
            content: &super::super::content::Content::InMemory(
                quantised.data().expect("bytes").into_owned(),
            ),
            dtype: ElementType::Block(ours),
            scale: None,
        };
        let Ok(read) = cast::tensor(from, &[values.len()], DType::F32, &Device::Cpu) else {
            panic!("not decoded")
        };
        let theirs = quantised.dequantize(&Device::Cpu).expect("dequantised");
        assert_eq!(bits(&read), bits(&theirs), "{ours:?}");
    }
}

fn says(path: &Path, reason: &str) {
    let text = refusal(Weights::open(&[path.to_owned()]));
    assert!(text.starts_with(&path.display().to_string()), "{text}");
    assert!(text.contains(reason), "`{text}` does not say `{reason}`");
}

#[test]
fn scaled_files_that_are_not_whole_get_one_line_each() {
    let folder = tempfile::tempdir().expect("folder");
    let weight = || ("l.weight", Dtype::F8_E4M3, vec![2], vec![0x38, 0x40]);
    let check = |extra: &[Named<'_>], reason: &str| {
        let mut tensors = vec![weight()];
        tensors.extend_from_slice(extra);
        says(&write(folder.path(), "a.safetensors", &tensors), reason);
    };
    let mark = ("scaled_fp8", Dtype::F8_E4M3, vec![0], vec![]);
    check(&[mark], "`l.weight` has no scale (`l.scale_weight`)");
    check(
        &[("l.scale_weight", Dtype::F32, vec![2], f32s(&[1.0, 2.0]))],
        "the scale `l.scale_weight` has shape [2] (F32), expected one number",
    );
    check(
        &[("l.scale_weight", Dtype::F32, vec![], f32s(&[f32::NAN]))],
        "the scale `l.scale_weight` is NaN",
    );
    check(
        &[(
            "l.comfy_quant",
            Dtype::U8,
            vec![18],
            b"{\"format\":\"nvfp4\"}".to_vec(),
        )],
        "stored as nvfp4, expected float8_e4m3fn",
    );
    let nan = [("w", Dtype::F8_E4M3, vec![2], vec![0x38, 0x7f])];
    let text = refusal(open(&write(folder.path(), "b.safetensors", &nan)).get(&[2], "w"));
    assert!(text.contains("holds NaN at element 1"), "{text}");
}

/// `tools/goldens/torch_checkpoint.py`
#[test]
fn a_checkpoint_of_torch_holds_what_the_safetensors_file_does() {
    let (pickled, safe) = (
        open(&golden("checkpoint.pth")),
        open(&golden("checkpoint.safetensors")),
    );
    assert_eq!(pickled.names(), safe.names());
    assert_eq!(pickled.storage(), safe.storage());
    for name in safe.names() {
        let shape = safe.shape(&name).expect("there");
        assert_eq!(pickled.shape(&name).expect("there"), shape, "{name}");
        // A whole number is no weight, in either file.
        if name != "count" {
            let [ours, theirs] = [&pickled, &safe].map(|w| w.get(&shape, &name).expect("read"));
            assert_eq!(bits(&ours), bits(&theirs), "{name}");
        }
    }
    let list = [("lin.weight".to_owned(), vec![2, 3])];
    let digest = |weights: &Weights| weights.digest(&list).expect("digested");
    assert_eq!(digest(&pickled), digest(&safe));
}

#[test]
fn a_damaged_checkpoint_of_torch_gets_one_line() {
    let whole = std::fs::read(golden("checkpoint.pth")).expect("read");
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("model.pth");
    let check = |bytes: &[u8], reason: &str| {
        std::fs::write(&path, bytes).expect("written");
        says(&path, reason);
    };
    check(&whole[..whole.len() / 2], "its directory is missing");
    let replaced = |old: &[u8], new: &[u8]| {
        let at = whole
            .windows(old.len())
            .position(|w| w == old)
            .expect("there");
        let mut bytes = whole.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    // The zip file's checksum no longer fits.
    check(
        &replaced(b"FloatStorage", b"FlootStorage"),
        "its pickle cannot be read",
    );
    // Whatever byte is wrong, nothing panics, and what is read has the size that it says.
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        std::fs::write(&path, &bytes).expect("written");
        if let Ok(weights) = Weights::open(std::slice::from_ref(&path)) {
            for name in weights.names() {
                let shape = weights.shape(&name).expect("there");
                let _ = weights.get(&shape, &name);
            }
        }
    }
}

#[test]
fn files_of_other_kinds_are_recognised() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("model.safetensors");
    let check = |bytes: &[u8], reason: &str| {
        std::fs::write(&path, bytes).expect("written");
        says(&path, reason);
    };
    check(b"PK\x03\x04\0\0archive/data.pkl", "PyTorch checkpoint");
    check(
        b"version https://git-lfs.github.com/spec/v1\n",
        "Git LFS pointer",
    );
    check(b"<!DOCTYPE html>", "web page");
}

/// A GGUF header with these values and tensors, and its data.
fn gguf(
    values: &[(&str, u32, &[u8])],
    tensors: &[(&str, &[u64], u32, u64)],
    data: usize,
) -> Vec<u8> {
    let text = |s: &str| [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat();
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((values.len() as u64).to_le_bytes());
    for (key, kind, value) in values {
        bytes.extend(text(key));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(*value);
    }
    for (name, shape, kind, offset) in tensors {
        bytes.extend(text(name));
        bytes.extend((shape.len() as u32).to_le_bytes());
        bytes.extend(shape.iter().flat_map(|d| d.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
    bytes
}

#[test]
fn hostile_gguf_files_get_one_line_each() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("a.gguf");
    let check = |bytes: &[u8], reason: &str| {
        std::fs::write(&path, bytes).expect("written");
        says(&path, reason);
    };
    let one = |shape: &[u64], kind, offset, data| gguf(&[], &[("w", shape, kind, offset)], data);
    std::fs::write(&path, one(&[32, 2], 8, 0, 68)).expect("written");
    assert_eq!(open(&path).shape("w"), Some(vec![2, 32]));

    check(&one(&[32, 2], 8, 0, 67), "tensor `w` has 68 bytes");
    check(
        &one(&[32, 2], 20, 0, 68),
        "`w` is of GGML type 20 (IQ4_NL), expected F32",
    );
    check(
        &one(&[16, 4], 8, 0, 68),
        "tensor `w` cannot be Q8_0 of shape [4, 16]",
    );
    check(&one(&[u64::MAX, 2], 0, 0, 68), "tensor `w` cannot be F32");
    check(&one(&[1, 1, 1, 1, 1], 0, 0, 68), "`w` has 5 dimensions");
    check(
        &one(&[1], 0, 4, 68),
        "starts at byte 4 of the data, expected a multiple of 32",
    );
    check(&one(&[1], 0, u64::MAX - 31, 68), "tensor `w`");
    let two = |first: &str, second: &str, at| {
        gguf(&[], &[(first, &[16], 0, 0), (second, &[1], 0, at)], 96)
    };
    check(&two("a", "b", 32), "not below 64");
    check(&two("a", "a", 64), "`a` is listed twice");
    check(
        &gguf(&[("general.alignment", 4, &[0, 0, 0, 0])], &[], 0),
        "`general.alignment` is 0",
    );
    check(
        &gguf(&[("general.alignment", 4, &[0, 0, 0, 0x80])], &[], 0),
        "`general.alignment` is 2147483648",
    );
    check(&gguf(&[("x", 77, &[])], &[], 0), "`x` is of kind 77");
    let endless = [&9u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    check(&gguf(&[("x", 9, &endless)], &[], 0), "`x` is of kind 9");
    let endless = [&6u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    check(
        &gguf(&[("x", 9, &endless)], &[], 0),
        "the length of `x` overflows",
    );
    let endless = [&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    check(
        &gguf(&[("x", 9, &endless)], &[], 0),
        "the file is cut short or damaged",
    );
    let shape = [
        &5u32.to_le_bytes()[..],
        &1u64.to_le_bytes(),
        &7u32.to_le_bytes(),
    ]
    .concat();
    check(
        &gguf(
            &[("comfy.gguf.orig_shape.w", 9, &shape)],
            &[("w", &[1], 0, 0)],
            4,
        ),
        "not as many numbers",
    );
    let mut other = gguf(&[], &[], 0);
    other[4] = 1;
    check(&other, "its version is 1");
    check(b"GGUF", "cut short");
    let mut many = b"GGUF\x03\0\0\0".to_vec();
    many.extend(u64::MAX.to_le_bytes());
    many.extend(0u64.to_le_bytes());
    check(&many, "cut short");
}

proptest! {
    #[test]
    fn no_bytes_make_opening_a_gguf_file_panic(
        content in proptest::collection::vec(any::<u8>(), 0..200),
        at in 0usize..8448, bit in 0u8..8,
    ) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.gguf");
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(&content);
        std::fs::write(&path, bytes).expect("written");
        let _ = Weights::open(std::slice::from_ref(&path));
        // A whole file with one bit turned.
        let mut bytes = std::fs::read(golden("weights.gguf")).expect("there");
        bytes[at] ^= 1 << bit;
        std::fs::write(&path, bytes).expect("written");
        if let Ok(weights) = Weights::open(&[path]) {
            for name in weights.names() {
                let shape = weights.shape(&name).expect("there");
                if shape.iter().product::<usize>() < 1 << 20 {
                    let _ = weights.get(&shape, &name);
                }
            }
        }
    }
}

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::DType;
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};

mod changes;
mod formats;

use super::{Error, Stored, TensorSlice, Weights};

type Named<'a> = (&'a str, Dtype, Vec<usize>, Vec<u8>);

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn write(folder: &Path, file: &str, tensors: &[Named<'_>]) -> PathBuf {
    let path = folder.join(file);
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            (
                *name,
                TensorView::new(*dtype, shape.clone(), bytes).expect("consistent"),
            )
        })
        .collect();
    serialize_to_file(views, None, &path).expect("written");
    path
}

/// A file with this header text and this many bytes of data.
fn write_raw(folder: &Path, header: &str, data_bytes: usize) -> PathBuf {
    let path = folder.join("raw.safetensors");
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    std::fs::write(&path, bytes).expect("written");
    path
}

fn open(path: &Path) -> Weights {
    Weights::open(&[path.to_owned()]).expect("valid")
}

fn refusal<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => panic!("taken"),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n'), "more than one line: {text}");
            text
        }
    }
}

fn small(folder: &Path) -> PathBuf {
    let values = f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    write(
        folder,
        "a.safetensors",
        &[("block.0.w", Dtype::F32, vec![2, 3], values)],
    )
}

#[test]
fn every_source_type_is_read_exactly() {
    let folder = tempfile::tempdir().expect("folder");
    // More than one task's worth, odd in length, so that every boundary is crossed.
    let values: Vec<f32> = (0..300_001u32).map(|i| (i % 251) as f32 - 125.0).collect();
    let n = values.len();
    let halves = values
        .iter()
        .flat_map(|&v| f16::from_f32(v).to_le_bytes())
        .collect();
    let brains = values
        .iter()
        .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
        .collect();
    let doubles = values
        .iter()
        .flat_map(|&v| f64::from(v).to_le_bytes())
        .collect();
    let path = write(
        folder.path(),
        "a.safetensors",
        &[
            ("f32", Dtype::F32, vec![n], f32s(&values)),
            ("f16", Dtype::F16, vec![n], halves),
            ("bf16", Dtype::BF16, vec![n], brains),
            ("f64", Dtype::F64, vec![n], doubles),
        ],
    );
    for to in [DType::F32, DType::F16, DType::BF16] {
        let weights = open(&path).with_dtype(to);
        for name in ["f32", "f16", "bf16", "f64"] {
            let tensor = weights.get(&[n], name).expect("there");
            assert_eq!(tensor.dtype(), to);
            let read = tensor
                .to_dtype(DType::F32)
                .and_then(|t| t.to_vec1::<f32>())
                .expect("f32");
            assert_eq!(read, values, "{name} as {to:?}");
        }
    }
}

#[test]
fn scopes_and_maps_reach_parts_and_transposes() {
    let folder = tempfile::tempdir().expect("folder");
    let path = write(
        folder.path(),
        "a.safetensors",
        &[
            (
                "net.qkv",
                Dtype::F32,
                vec![6, 1],
                f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            ),
            (
                "net.p",
                Dtype::F32,
                vec![2, 3],
                f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            ),
        ],
    );
    let weights = open(&path).pp("net").renamed(|name| match name {
        "layer.k" => Stored {
            part: Some(TensorSlice::nth(1, 3)),
            ..Stored::from("qkv")
        },
        "layer.rest" => Stored {
            part: Some(TensorSlice {
                first: 2,
                count: 4,
                pieces: 6,
            }),
            ..Stored::from("qkv")
        },
        "layer.turned" => Stored {
            swapped: true,
            ..Stored::from("qkv")
        },
        "layer.p" => Stored {
            transposed: true,
            ..Stored::from("p")
        },
        other => other.into(),
    });
    let layer = weights.pp("layer");
    let read = |shape: &[usize], name| {
        layer
            .get(shape, name)
            .expect("there")
            .to_vec2::<f32>()
            .expect("f32")
    };
    assert_eq!(read(&[2, 1], "k"), [[3.0], [4.0]]);
    assert_eq!(read(&[4, 1], "rest"), [[3.0], [4.0], [5.0], [6.0]]);
    assert_eq!(
        read(&[6, 1], "turned"),
        [[4.0], [5.0], [6.0], [1.0], [2.0], [3.0]]
    );
    assert_eq!(read(&[3, 2], "p"), [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]);
    assert_eq!(layer.shape("k"), Some(vec![2, 1]));
    assert_eq!(layer.shape("rest"), Some(vec![4, 1]));
    assert_eq!(layer.shape("p"), Some(vec![3, 2]));
    // A map put on top is applied first.
    let twice = weights.renamed(|name: &str| name.replace("attention.key", "layer.k"));
    assert!(twice.pp("attention").contains("key"));
    assert!(!twice.pp("attention").contains("value"));
}

#[test]
fn rows_are_looked_up_without_the_rest() {
    let folder = tempfile::tempdir().expect("folder");
    let weights = open(&write(
        folder.path(),
        "a.safetensors",
        &[(
            "e",
            Dtype::F32,
            vec![3, 2],
            f32s(&[0.0, 1.0, 2.0, 3.0, f32::NAN, 5.0]),
        )],
    ));
    let rows = weights
        .rows((3, 2), "e", &[1, 0, 1])
        .expect("finite rows")
        .to_vec2::<f32>();
    assert_eq!(rows.expect("f32"), [[2.0, 3.0], [0.0, 1.0], [2.0, 3.0]]);
    assert!(refusal(weights.rows((3, 2), "e", &[3])).contains("row 3 of tensor `e`"));
    assert!(refusal(weights.rows((3, 2), "e", &[2])).contains("tensor `e`"));
}

#[test]
fn what_does_not_fit_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    let path = small(folder.path());
    let weights = open(&path);
    let file = path.display().to_string();
    let misshapen = refusal(weights.get(&[3, 2], "block.0.w"));
    assert_eq!(
        misshapen,
        format!("tensor `block.0.w` in {file} has shape [2, 3] (F32), expected [3, 2]")
    );
    let misnamed = refusal(weights.get(&[2, 3], "block.0.weight"));
    assert_eq!(
        misnamed,
        format!(
            "tensor `block.0.weight` is missing from {file} (the nearest name there: `block.0.w`)"
        )
    );
    assert_eq!(
        refusal(weights.get(&[2, 3], "something.else.entirely")),
        format!("tensor `something.else.entirely` is missing from {file}")
    );
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = vec![1.0f32; 200_000];
        values[150_001] = bad;
        let halves = values
            .iter()
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect();
        let path = write(
            folder.path(),
            "a.safetensors",
            &[
                ("w", Dtype::F32, vec![200_000], f32s(&values)),
                ("h", Dtype::F16, vec![200_000], halves),
            ],
        );
        for name in ["w", "h"] {
            let text = refusal(open(&path).get(&[200_000], name));
            let expected = format!(
                "tensor `{name}` in {} holds {bad} at element 150001",
                path.display()
            );
            assert!(text.starts_with(&expected), "{text}");
        }
    }
}

#[test]
fn integers_are_not_weights() {
    let folder = tempfile::tempdir().expect("folder");
    let path = write(
        folder.path(),
        "a.safetensors",
        &[("ids", Dtype::I64, vec![1], vec![0; 8])],
    );
    assert!(refusal(open(&path).get(&[1], "ids")).contains("`ids`"));
    assert!(
        refusal(open(&path).get(&[1], "ids"))
            .contains("I64, expected F32, F16, BF16, F64 or an 8-bit float")
    );
}

#[test]
fn hostile_files_get_one_line_each() {
    let folder = tempfile::tempdir().expect("folder");
    let check = |path: &Path, reason: &str| {
        let text = refusal(Weights::open(&[path.to_owned()]));
        assert!(text.starts_with(&path.display().to_string()), "{text}");
        assert!(text.contains(reason), "`{text}` does not say `{reason}`");
    };
    let raw = |header: &str, data: usize| write_raw(folder.path(), header, data);
    let bytes = |content: &[u8]| {
        let path = folder.path().join("bytes.safetensors");
        std::fs::write(&path, content).expect("written");
        path
    };
    check(&bytes(b"abc"), "it has 3 bytes");
    check(
        &bytes(&u64::MAX.to_le_bytes()),
        "its header claims 18446744073709551615 bytes, the limit is",
    );
    check(
        &bytes(&99_999_999u64.to_le_bytes()),
        "its header claims 99999999 bytes, 0 follow",
    );
    check(&raw("[1, 2]", 0), "its header is not a safetensors header");
    check(
        &raw(
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#,
            4,
        ),
        "not a safetensors header",
    );
    check(
        &raw(
            r#"{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#,
            4,
        ),
        "not a safetensors header",
    );
    check(
        &raw(
            r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
            4,
        ),
        "not a safetensors header",
    );
    check(
        &raw(
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
            4,
        ),
        "tensor `a` has 4 bytes",
    );
    check(
        &raw(
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
            4,
        ),
        "tensor `a` ends at byte 8 of 4",
    );
    check(
        &raw(
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
            4,
        ),
        "tensor `a` claims bytes 4 to 0",
    );
    check(
        &raw(
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            9,
        ),
        "its tensors end at byte 4 of 9",
    );
    let two = |b: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[8],"data_offsets":[0,8]}},"b":{{"dtype":"U8",{b}}}}}"#
        )
    };
    check(
        &raw(&two(r#""shape":[8],"data_offsets":[4,12]"#), 12),
        "tensor `b` claims bytes 4 to 12",
    );
    check(
        &raw(&two(r#""shape":[4],"data_offsets":[12,16]"#), 16),
        "tensor `b` claims bytes 12 to 16",
    );
    // Sizes that overflow.
    let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#;
    check(
        &raw(huge, 4),
        "tensor `a` has 4 bytes, which do not fit F32 of shape",
    );
    let max = two(r#""shape":[18446744073709551607],"data_offsets":[8,18446744073709551615]"#);
    check(
        &raw(&max, 8),
        "tensor `b` ends at byte 18446744073709551615 of 8",
    );
    // Cut at every length.
    let whole = std::fs::read(small(folder.path())).expect("read");
    for cut in 0..whole.len() {
        refusal(Weights::open(&[bytes(&whole[..cut])]));
    }
}

proptest! {
    #[test]
    fn no_bytes_make_opening_panic(content in proptest::collection::vec(any::<u8>(), 0..256), header in ".{0,64}") {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.safetensors");
        std::fs::write(&path, &content).expect("written");
        let _ = Weights::open(&[path]);
        let _ = Weights::open(&[write_raw(folder.path(), &header, 4)]);
    }
}

fn index(folder: &Path, map: &[(&str, &str)]) -> PathBuf {
    let path = folder.join("model.safetensors.index.json");
    let map: HashMap<_, _> = map.iter().copied().collect();
    let text = serde_json::json!({"metadata": {"total_size": 0}, "weight_map": map}).to_string();
    std::fs::write(&path, text).expect("written");
    path
}

#[test]
fn shards_are_one_and_their_folder_finds_them() {
    let folder = tempfile::tempdir().expect("folder");
    let one = |v: f32| f32s(&[v]);
    write(
        folder.path(),
        "model-1.safetensors",
        &[("a", Dtype::F32, vec![1], one(1.0))],
    );
    write(
        folder.path(),
        "model-2.safetensors",
        &[("b", Dtype::F32, vec![1], one(2.0))],
    );
    let index_path = index(
        folder.path(),
        &[("a", "model-1.safetensors"), ("b", "model-2.safetensors")],
    );
    for given in [index_path, folder.path().to_owned()] {
        let weights = open(&given);
        assert_eq!(weights.names(), ["a", "b"]);
        weights.get(&[1], "a").expect("there");
        assert_eq!(weights.unused(), ["b"]);
    }
    index(folder.path(), &[("a", "../elsewhere.safetensors")]);
    assert!(refusal(Weights::open(&[folder.path().to_owned()])).contains("not a plain file name"));
    index(folder.path(), &[("a", "model-3.safetensors")]);
    assert!(refusal(Weights::open(&[folder.path().to_owned()])).contains("model-3.safetensors"));
    std::fs::write(folder.path().join("model.safetensors.index.json"), "{}").expect("written");
    assert!(
        refusal(Weights::open(&[folder.path().to_owned()])).contains("is not a valid shard index")
    );
}

#[test]
fn a_tensor_in_two_files_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let a = write(
        folder.path(),
        "a.safetensors",
        &[("w", Dtype::F32, vec![1], f32s(&[1.0]))],
    );
    let b = write(
        folder.path(),
        "b.safetensors",
        &[("w", Dtype::F32, vec![1], f32s(&[1.0]))],
    );
    let text = refusal(Weights::open(&[a.clone(), b.clone()]));
    assert!(text.contains("tensor `w` is in both"), "{text}");
    assert!(
        text.contains(&a.display().to_string()) && text.contains(&b.display().to_string()),
        "{text}"
    );
    assert!(refusal(Weights::open(&[folder.path().to_owned()])).contains("has 2 weights files"));
    let empty = tempfile::tempdir().expect("folder");
    assert!(
        refusal(Weights::open(&[empty.path().to_owned()]))
            .contains("has no .safetensors or .gguf file")
    );
    refusal(Weights::open(&[]));
    refusal(Weights::open(&[empty.path().join("missing.safetensors")]));
}

fn list(names: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
    names
        .iter()
        .map(|(n, s)| ((*n).to_owned(), s.to_vec()))
        .collect()
}

#[test]
fn the_digest_is_that_of_the_encoder_not_of_its_files() {
    let folder = tempfile::tempdir().expect("folder");
    let matrix = f32s(&[1.0, 2.0, 3.0, 4.0]);
    let turned = f32s(&[1.0, 3.0, 2.0, 4.0]);
    let vector = f32s(&[5.0, 6.0]);
    let both = write(
        folder.path(),
        "both.safetensors",
        &[
            ("m", Dtype::F32, vec![2, 2], matrix.clone()),
            ("v", Dtype::F32, vec![2], vector.clone()),
        ],
    );
    let m = write(
        folder.path(),
        "m.safetensors",
        &[("net.m.weight", Dtype::F32, vec![2, 2], turned)],
    );
    let fused = f32s(&[0.0, 0.0, 5.0, 6.0]);
    let v = write(
        folder.path(),
        "v.safetensors",
        &[("net.v.fused", Dtype::F32, vec![4], fused)],
    );
    let used = list(&[("m", &[2, 2]), ("v", &[2])]);
    let digest = open(&both).digest(&used).expect("there");
    let elsewhere = Weights::open(&[v, m])
        .expect("valid")
        .pp("net")
        .renamed(|name| match name {
            "m" => Stored {
                transposed: true,
                ..Stored::from("m.weight")
            },
            _ => Stored {
                part: Some(TensorSlice::nth(1, 2)),
                ..Stored::from("v.fused")
            },
        });
    let reversed: Vec<_> = used.iter().rev().cloned().collect();
    assert_eq!(elsewhere.digest(&reversed).expect("there"), digest);
    // Anyone can compute it.
    let mut bytes = b"{\"dtype\":\"F32\",\"name\":\"m\",\"shape\":[2,2]}\n".to_vec();
    bytes.extend(&matrix);
    bytes.extend(b"{\"dtype\":\"F32\",\"name\":\"v\",\"shape\":[2]}\n");
    bytes.extend(&vector);
    assert_eq!(crate::digest::Digest::of(&bytes), digest);
    // Any bit, name, shape or type counts.
    let mut other = matrix.clone();
    other[0] ^= 1;
    let change = |name: &'static str, dtype, shape: &[usize], bytes: &[u8]| {
        let path = write(
            folder.path(),
            "c.safetensors",
            &[(name, dtype, shape.to_vec(), bytes.to_vec())],
        );
        open(&path).digest(&list(&[(name, shape)])).expect("there")
    };
    let mut all = vec![
        digest,
        change("m", Dtype::F32, &[2, 2], &matrix),
        change("m", Dtype::F32, &[2, 2], &other),
        change("n", Dtype::F32, &[2, 2], &matrix),
        change("m", Dtype::F32, &[4, 1], &matrix),
        change("m", Dtype::F64, &[2, 1], &matrix),
    ];
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 6);
}

#[test]
fn required_tensors_are_checked_by_the_header_alone() {
    let folder = tempfile::tempdir().expect("folder");
    let path = write(
        folder.path(),
        "a.safetensors",
        &[("w", Dtype::F32, vec![1], f32s(&[f32::NAN]))],
    );
    let weights = open(&path);
    weights.require(&list(&[("w", &[1])])).expect("there");
    assert_eq!(weights.unused(), ["w"]);
    assert!(refusal(weights.require(&list(&[("w", &[2])]))).contains("has shape [1]"));
    assert!(refusal(weights.require(&list(&[("x", &[1])]))).contains("`x` is missing"));
}

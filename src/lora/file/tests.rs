use safetensors::tensor::{Dtype, TensorView};

use super::write::fold;
use super::*;
use crate::lora::{Adapter, LinearShape};
use expect_test::{Expect, expect};

fn shape(name: &str, outputs: usize, inputs: usize) -> LinearShape {
    LinearShape {
        name: name.to_owned(),
        outputs,
        inputs,
        kernel: None,
        reached: true,
    }
}

/// Two adapters of rank 2 and one of rank 3, alpha twice the rank, B not zero.
fn set() -> AdapterSet {
    let shapes = [
        (shape("blocks.0.to_q", 4, 3), 2, 4.0),
        (shape("blocks.0.to_k", 4, 3), 2, 4.0),
        (shape("out", 5, 4), 3, 6.0),
    ];
    let mut set = AdapterSet::zeroed(shapes).unwrap();
    let values = (0..set.values().len())
        .map(|i| (i as f32 - 7.0) / 8.0)
        .collect();
    set.set_values(values).unwrap();
    set
}

fn options(dtype: SaveDtype) -> FileOptions {
    let metadata = BTreeMap::from([("plumb.provenance".to_owned(), "{\"seed\":1}".to_owned())]);
    FileOptions {
        component: "transformer",
        dtype,
        metadata,
    }
}

/// B A alpha / rank of an adapter, row major.
fn update(set: &AdapterSet, name: &str) -> Vec<f64> {
    let adapter = set.get(name).unwrap();
    let (a, b) = (&set.values()[adapter.a()], &set.values()[adapter.b()]);
    let mut out = Vec::new();
    for row in 0..adapter.outputs {
        for column in 0..adapter.inputs {
            let dot = |r| {
                f64::from(b[row * adapter.rank + r]) * f64::from(a[r * adapter.inputs + column])
            };
            out.push((0..adapter.rank).map(dot).sum::<f64>() * adapter.scale());
        }
    }
    out
}

#[test]
fn a_written_file_is_read_back_as_the_same_update_in_every_dtype() {
    let set = set();
    for dtype in [SaveDtype::F32, SaveDtype::F16, SaveDtype::Bf16] {
        let bytes = write(&set, &options(dtype)).unwrap();
        let file = read(&bytes, "lora.safetensors", "transformer").unwrap();
        assert_eq!(file.metadata["plumb.provenance"], "{\"seed\":1}");
        assert_eq!(file.metadata["format"], "pt");
        for adapter in set.adapters() {
            let read = file.adapters.get(&adapter.name).unwrap();
            assert_eq!((read.rank, read.alpha), (adapter.rank, adapter.rank as f64));
            assert_eq!(
                update(&file.adapters, &adapter.name),
                update(&set, &adapter.name),
                "{dtype:?}"
            );
        }
    }
}

#[test]
fn the_same_content_is_the_same_bytes_whatever_order_it_came_in() {
    let bytes = write(&set(), &options(SaveDtype::Bf16)).unwrap();
    assert_eq!(bytes, write(&set(), &options(SaveDtype::Bf16)).unwrap());
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    expect![[r#"{"__metadata__":{"format":"pt","lora_adapter_metadata":"{\"transformer.alpha_pattern\":{\"^out\":3},\"transformer.lora_alpha\":2,\"transformer.r\":2,\"transformer.rank_pattern\":{\"^out\":3},\"transformer.target_modules\":[\"blocks.0.to_k\",\"blocks.0.to_q\",\"out\"]}","modelspec.hash_sha256":"0xe840ebf55eaf3da8524a8d5b32189b1daf14a0332480d29737fef341a517581a","plumb.digests":"{\"content\":\"ae5e0495347d35daf29a7edb448c63ec346ddd9c9f6ebb316b3c509dcd6672f4\",\"rest\":\"17077fdfd91851fbd9477c27d4ffa7f77e5a3aa70adc0d11e4bf7ace18b055cb\"}","plumb.provenance":"{\"seed\":1}","plumb.version":"2","sshs_legacy_hash":"e3b0c442","sshs_model_hash":"e840ebf55eaf3da8524a8d5b32189b1daf14a0332480d29737fef341a517581a"},"transformer.blocks.0.to_k.lora_A.weight":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"transformer.blocks.0.to_k.lora_B.weight":{"dtype":"BF16","shape":[4,2],"data_offsets":[12,28]},"transformer.blocks.0.to_q.lora_A.weight":{"dtype":"BF16","shape":[2,3],"data_offsets":[28,40]},"transformer.blocks.0.to_q.lora_B.weight":{"dtype":"BF16","shape":[4,2],"data_offsets":[40,56]},"transformer.out.lora_A.weight":{"dtype":"BF16","shape":[3,4],"data_offsets":[56,80]},"transformer.out.lora_B.weight":{"dtype":"BF16","shape":[5,3],"data_offsets":[80,110]}}"#]]
        .assert_eq(std::str::from_utf8(&bytes[8..8 + header_bytes]).unwrap().trim_end());
}

#[test]
fn folding_keeps_the_product_and_scales_a_by_a_power_of_two() {
    for scale in [1.0, 2.0, 0.5, 0.0625, 1.0 / 3.0, -2.0, 100.0] {
        let (a, b) = fold(scale);
        assert_eq!(a.log2().fract(), 0.0, "{scale}");
        assert!((a * b - scale).abs() <= 1e-15 * scale.abs(), "{scale}");
    }
    assert_eq!(fold(1.0), (1.0, 1.0));
    assert_eq!(fold(0.0), (1.0, 0.0));
}

/// A file of f32 tensors made by hand.
fn file(metadata: &[(&str, &str)], tensors: &[(&str, &[usize], f32)]) -> Vec<u8> {
    let data: Vec<_> = tensors
        .iter()
        .map(|(_, shape, value)| value.to_le_bytes().repeat(shape.iter().product()))
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, shape, _), data)| {
        (
            *name,
            TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap(),
        )
    });
    let metadata = metadata
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    safetensors::serialize(views, Some(metadata)).unwrap()
}

fn check(bytes: &[u8], expected: Expect) {
    let got = match read(bytes, "l.safetensors", "transformer") {
        Ok(file) => {
            let line = |a: &Adapter| format!("{} r{} alpha {}", a.name, a.rank, a.alpha);
            file.adapters
                .adapters()
                .iter()
                .map(line)
                .collect::<Vec<_>>()
                .join("; ")
        }
        Err(error) => error.to_string(),
    };
    expected.assert_eq(&got);
}

const A: (&str, &[usize], f32) = ("transformer.q.lora_A.weight", &[2, 3], 1.0);
const B: (&str, &[usize], f32) = ("transformer.q.lora_B.weight", &[4, 2], 1.0);

#[test]
fn alpha_comes_from_its_tensor_or_the_metadata_or_is_the_rank() {
    let json = r#"{"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"v": 5, "^q": 7}, "transformer.r": 2}"#;
    let plain = r#"{"transformer.lora_alpha": 8}"#;
    check(&file(&[], &[A, B]), expect!["q r2 alpha 2"]);
    check(
        &file(&[("lora_adapter_metadata", plain)], &[A, B]),
        expect!["q r2 alpha 8"],
    );
    check(
        &file(&[("lora_adapter_metadata", json)], &[A, B]),
        expect!["q r2 alpha 7"],
    );
    check(
        &file(
            &[("lora_adapter_metadata", json)],
            &[A, B, ("transformer.q.alpha", &[], 3.0)],
        ),
        expect![
            "l.safetensors: tensor `transformer.q.lora_A.weight`: the alpha of `q` is 3 by its `.alpha` tensor and 7 by metadata `lora_adapter_metadata`; only one of them can be meant, remove the other"
        ],
    );
    check(
        &file(
            &[("lora_adapter_metadata", json)],
            &[A, B, ("transformer.q.alpha", &[], 7.0)],
        ),
        expect!["q r2 alpha 7"],
    );
    check(
        &file(
            &[],
            &[
                ("base_model.model.q.lora_A.weight", &[2, 3], 1.0),
                ("q.lora_B.weight", &[4, 2], 1.0),
            ],
        ),
        expect!["q r2 alpha 2"],
    );
}

#[test]
fn a_file_that_is_no_lora_of_this_naming_gets_one_clear_line() {
    check(
        b"",
        expect!["l.safetensors: not a safetensors file: it is empty"],
    );
    check(
        &[255; 64],
        expect![
            "l.safetensors: not a safetensors file: its header claims 18446744073709551615 bytes, the limit is 100000000"
        ],
    );
    let whole = file(&[], &[A, B]);
    check(
        &whole[..whole.len() - 4],
        expect![
            "l.safetensors: not a safetensors file: its tensors have 56 bytes by its header, 52 follow: it is cut short"
        ],
    );
    check(
        &file(&[("a", "b")], &[]),
        expect!["l.safetensors: expected adapters, found no tensor"],
    );
    check(
        &file(&[], &[A]),
        expect!["l.safetensors: adapter on `q`: expected a lora_B tensor, found none"],
    );
    check(
        &file(&[], &[B]),
        expect!["l.safetensors: adapter on `q`: expected a lora_A tensor, found none"],
    );
    check(
        &file(&[], &[A, ("transformer.q.lora_B.weight", &[4, 3], 1.0)]),
        expect![
            "l.safetensors: tensor `transformer.q.lora_B.weight`: expected rank 2 as lora_A has, found 3 columns"
        ],
    );
    check(
        &file(&[], &[("transformer.q.lora_A.weight", &[2, 3, 1], 1.0), B]),
        expect![
            "l.safetensors: tensor `transformer.q.lora_A.weight`: expected two dimensions, or four of a square window, none 0, found [2, 3, 1]"
        ],
    );
    check(
        &file(
            &[],
            &[
                ("transformer.q.lora_A.weight", &[0, 3], 1.0),
                ("transformer.q.lora_B.weight", &[4, 0], 1.0),
            ],
        ),
        expect![
            "l.safetensors: tensor `transformer.q.lora_A.weight`: expected two dimensions, or four of a square window, none 0, found [0, 3]"
        ],
    );
    check(
        &file(
            &[],
            &[A, ("transformer.q.lora_B.weight", &[4, 2], f32::NAN)],
        ),
        expect![
            "l.safetensors: tensor `transformer.q.lora_B.weight`: number 0 is NaN, expected finite numbers"
        ],
    );
    check(
        &file(&[], &[A, B, ("q.lora_A.weight", &[2, 3], 1.0)]),
        expect!["adapter on `q` is there twice"],
    );
    check(
        &file(&[], &[("lora_unet_x.lora_down.weight", &[2, 3], 1.0)]),
        expect![
            "l.safetensors: tensor `lora_unet_x.lora_down.weight`: expected names like `transformer.<module>.lora_A.weight`, found the naming of kohya's scripts; convert the file first"
        ],
    );
    check(
        &file(
            &[],
            &[A, B, ("transformer.q.lora_magnitude_vector", &[4], 1.0)],
        ),
        expect![
            "l.safetensors: tensor `transformer.q.lora_magnitude_vector`: expected names like `transformer.<module>.lora_A.weight`, found another kind of tensor"
        ],
    );
    check(
        &file(&[("lora_adapter_metadata", "[]")], &[A, B]),
        expect![
            "l.safetensors: metadata `lora_adapter_metadata`: expected a JSON object, found a list of 0"
        ],
    );
    check(
        &file(
            &[("lora_adapter_metadata", r#"{"lora_alpha": "x"}"#)],
            &[A, B],
        ),
        expect![[
            r#"l.safetensors: metadata `lora_adapter_metadata`, `lora_alpha`: expected a number, found "x""#
        ]],
    );
}

#[test]
fn a_number_that_the_dtype_cannot_hold_is_refused() {
    let mut set = set();
    set.values_mut()[0] = 1e30;
    assert!(write(&set, &options(SaveDtype::Bf16)).is_ok());
    let error = write(&set, &options(SaveDtype::F16))
        .unwrap_err()
        .to_string();
    expect!["adapters to write: tensor `transformer.blocks.0.to_k.lora_A.weight`: number 0 is 2000000000000000000000000000000, which F16 cannot hold"]
        .assert_eq(&error);
}

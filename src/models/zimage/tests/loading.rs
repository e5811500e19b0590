//! What a checkpoint is, and what is said of one that does not fit.

use super::*;
use crate::models;
use expect_test::{Expect, expect};

#[test]
fn the_linears_are_those_of_diffusers() {
    for name in MODELS {
        let golden = golden(name);
        let model = golden.model();
        let linears = model.linears().iter().map(|linear| {
            let shape = serde_json::json!([linear.outputs, linear.inputs]);
            (linear.name.clone(), shape)
        });
        let ours: serde_json::Map<_, _> = linears.collect();
        assert_eq!(serde_json::Value::Object(ours), golden.json("linears"));
    }
}

#[test]
fn folders_and_single_files_are_told_from_other_families() {
    for name in MODELS {
        let folder = golden(name).folder();
        let single = golden_path(&format!("zimage_{name}_single.safetensors"));
        for path in [folder.path(), &single] {
            let opened = models::detect(path).unwrap();
            let names: Vec<_> = opened.flavors().iter().map(|flavor| flavor.name).collect();
            assert_eq!(
                (opened.family.name, &names[..]),
                ("zimage", &["base", "turbo"][..])
            );
        }
    }
}

fn check_damage(damage: &dyn Fn(&mut HashMap<String, Tensor>), expected: Expect) {
    let golden = golden("one");
    let mut weights = golden.weights();
    damage(&mut weights);
    let folder = golden.folder_with(&weights, &golden.metadata["config"]);
    let asked = message(load(folder.path()).map(|_| ()), folder.path());
    expected.assert_eq(&asked);
    // Said of it as well where no family is named: not that it is none of another.
    let opened = models::detect(folder.path()).map(|_| ());
    if let Err(found) = opened {
        assert_eq!(message::<()>(Err(found), folder.path()), asked);
    }
}

#[test]
fn weights_that_do_not_fit_get_one_clear_line() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    check_damage(
        &|weights| {
            weights.remove("cap_pad_token");
        },
        expect![
            "tensor `cap_pad_token` is missing from ./transformer/diffusion_pytorch_model.safetensors"
        ],
    );
    check_damage(
        &|weights| {
            weights.insert(
                "context_refiner.0.adaLN_modulation.0.bias".to_owned(),
                zeros(&[2]),
            );
        },
        expect![
            "./transformer/diffusion_pytorch_model.safetensors: 1 tensor that this network does not have, the first is `context_refiner.0.adaLN_modulation.0.bias`; the file is of another architecture or damaged"
        ],
    );
    check_damage(
        &|weights| {
            weights.insert(
                "layers.0.feed_forward.w2.weight".to_owned(),
                zeros(&[42, 16]),
            );
        },
        expect![
            "tensor `layers.0.feed_forward.w2.weight` in ./transformer/diffusion_pytorch_model.safetensors has shape [42, 16] (F32), expected [16, 42]"
        ],
    );
    check_damage(
        &|weights| {
            let nan = zeros(&[1, 16]).affine(1.0, f64::NAN).unwrap();
            weights.insert("x_pad_token".to_owned(), nan);
        },
        expect![
            "tensor `x_pad_token` in ./transformer/diffusion_pytorch_model.safetensors holds NaN at element 0: the file is damaged"
        ],
    );
}

#[test]
fn single_files_of_other_networks_are_told_what_they_are() {
    let path = golden_path("zimage_two_single.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let said = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let mut weights = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        change(&mut weights);
        let path = folder.path().join("model.safetensors");
        candle_core::safetensors::save(&weights, &path).unwrap();
        message(models::detect(&path).map(|_| ()), folder.path())
    };
    let one = Tensor::zeros((1, 4), DType::F32, &Device::Cpu).unwrap();
    expect!["tensor `layers.1.attention.qkv.weight` is missing from ./model.safetensors"]
        .assert_eq(&said(&|weights| {
            weights.remove("layers.1.attention.qkv.weight").unwrap();
        }));
    // Lumina 2 has Z-Image's other names.
    expect![
        "./model.safetensors: not a model of family `zimage`: it has no tensor for `cap_pad_token`"
    ]
    .assert_eq(&said(&|weights| {
        weights.remove("x_pad_token").unwrap();
        weights.remove("cap_pad_token").unwrap();
    }));
    expect!["./model.safetensors: not a model of family `zimage`: it has `siglip_pad_token`, so it is Z-Image Omni, which is given pictures as well; plumb does not train it"].assert_eq(&said(&|weights| {
        weights.insert("siglip_pad_token".to_owned(), one.clone());
    }));
}

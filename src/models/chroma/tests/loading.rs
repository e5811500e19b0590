//! What a checkpoint is, and what is said of one that does not fit.

use super::*;
use crate::models;
use expect_test::{Expect, expect};

#[test]
fn the_linears_are_those_of_diffusers_without_the_approximators() {
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
fn folders_and_single_files_are_told_from_flux1s() {
    let family = |path: &Path| models::detect(path).unwrap().family.name;
    for name in MODELS {
        let folder = golden(name).folder();
        let single = golden_path(&format!("chroma_{name}_single.safetensors"));
        for path in [folder.path(), &single] {
            let opened = models::detect(path).unwrap();
            let names: Vec<_> = opened.flavors().iter().map(|flavor| flavor.name).collect();
            assert_eq!(
                (opened.family.name, &names[..]),
                ("chroma", &["hd", "base"][..])
            );
        }
    }
    for flux in ["flux1_dev_single", "flux1_schnell_single"] {
        assert_eq!(
            family(&golden_path(&format!("{flux}.safetensors"))),
            "flux1"
        );
    }
    let single = golden_path("chroma_one_single.safetensors");
    let asked = testing::open(&FLUX1, &single).map(|_| ());
    expect!["./chroma_one_single.safetensors: not a model of family `flux1`: it has tensors `distilled_guidance_layer.*`, which Chroma has: family `chroma`"]
        .assert_eq(&message(asked, single.parent().unwrap()));
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
            weights.remove("distilled_guidance_layer.layers.0.linear_2.bias");
        },
        expect![
            "tensor `distilled_guidance_layer.layers.0.linear_2.bias` is missing from ./transformer/diffusion_pytorch_model.safetensors"
        ],
    );
    check_damage(
        &|weights| {
            weights.insert(
                "single_transformer_blocks.0.norm.linear.bias".to_owned(),
                zeros(&[2]),
            );
        },
        expect![
            "./transformer/diffusion_pytorch_model.safetensors: 1 tensor that this network does not have, the first is `single_transformer_blocks.0.norm.linear.bias`; the file is of another architecture or damaged"
        ],
    );
    check_damage(
        &|weights| {
            let name = "distilled_guidance_layer.out_proj.weight".to_owned();
            weights.insert(name, zeros(&[24, 32]));
        },
        expect![
            "tensor `distilled_guidance_layer.out_proj.weight` in ./transformer/diffusion_pytorch_model.safetensors has shape [24, 32] (F32), expected [32, 24]"
        ],
    );
    check_damage(
        &|weights| {
            let nan = zeros(&[24]).affine(1.0, f64::NAN).unwrap();
            weights.insert("distilled_guidance_layer.norms.0.weight".to_owned(), nan);
        },
        expect![
            "tensor `distilled_guidance_layer.norms.0.weight` in ./transformer/diffusion_pytorch_model.safetensors holds NaN at element 0: the file is damaged"
        ],
    );
}

#[test]
fn a_damaged_single_file_is_told_as_chromas() {
    let path = golden_path("chroma_two_single.safetensors");
    let mut weights = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    weights
        .remove("distilled_guidance_layer.norms.1.scale")
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    candle_core::safetensors::save(&weights, &path).unwrap();
    expect!["tensor `distilled_guidance_layer.norms.1.scale` is missing from ./model.safetensors"]
        .assert_eq(&message(models::detect(&path).map(|_| ()), folder.path()));
    weights.retain(|name, _| !name.starts_with("distilled_guidance_layer."));
    candle_core::safetensors::save(&weights, &path).unwrap();
    expect!["./model.safetensors: not a model of family `flux1`: it has no tensor for `time_text_embed.text_embedder.linear_1.weight`"].assert_eq(&message(models::detect(&path).map(|_| ()), folder.path()));
}

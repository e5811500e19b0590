//! What a checkpoint is, and what is said of one that does not fit.

use super::*;
use crate::models;
use crate::models::flux1::FLUX1;
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
fn folders_and_single_files_are_told_from_flux1s() {
    for name in MODELS {
        let folder = golden(name).folder();
        let single = golden_path(&format!("flux2_{name}_single.safetensors"));
        for path in [folder.path(), &single] {
            let opened = models::detect(path).unwrap();
            assert_eq!(opened.family.name, "flux2");
            assert_eq!(opened.flavors().len(), 4);
        }
    }
    let single = golden_path("flux2_two_single.safetensors");
    let asked = testing::open(&FLUX1, &single).map(|_| ());
    expect!["./flux2_two_single.safetensors: not a model of family `flux1`: it has tensors `double_stream_modulation_img.*`, which FLUX.2 has: family `flux2`"]
        .assert_eq(&message(asked, single.parent().unwrap()));
}

fn check_damage(damage: &dyn Fn(&mut HashMap<String, Tensor>), expected: Expect) {
    let golden = golden("one");
    let mut weights = golden.weights();
    damage(&mut weights);
    let folder = golden.folder_with(&weights, &golden.metadata["config"]);
    let asked = message(load(folder.path()).map(|_| ()), folder.path());
    expected.assert_eq(&asked);
}

#[test]
fn weights_that_do_not_fit_get_one_clear_line() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    check_damage(
        &|weights| {
            weights.remove("single_stream_modulation.linear.weight");
        },
        expect![
            "tensor `single_stream_modulation.linear.weight` is missing from ./transformer/diffusion_pytorch_model.safetensors"
        ],
    );
    check_damage(
        &|weights| {
            weights.insert("x_embedder.bias".to_owned(), zeros(&[32]));
        },
        expect![
            "./transformer/diffusion_pytorch_model.safetensors: 1 tensor that this network does not have, the first is `x_embedder.bias`; the file is of another architecture or damaged"
        ],
    );
    check_damage(
        &|weights| {
            let name = "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight";
            weights.insert(name.to_owned(), zeros(&[96, 32]));
        },
        expect![
            "tensor `single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight` in ./transformer/diffusion_pytorch_model.safetensors has shape [96, 32] (F32), expected [288, 32]"
        ],
    );
}

#[test]
fn a_single_file_with_a_guidance_embedding_is_told_as_dev() {
    let path = golden_path("flux2_two_single.safetensors");
    let mut weights = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let like = weights["time_in.in_layer.weight"].clone();
    weights.insert("guidance_in.in_layer.weight".to_owned(), like);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    candle_core::safetensors::save(&weights, &path).unwrap();
    expect![[r#"./model.safetensors: not a model of family `flux2`: a model with a guidance embedding, as FLUX.2-dev is: its text encoder, Mistral, is not among those that this program knows; use one of FLUX.2 klein"#]]
        .assert_eq(&message(load(&path).map(|_| ()), folder.path()));
}

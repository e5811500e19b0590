//! What a checkpoint is, and what is said of one that does not fit.

use super::*;
use crate::models;
use expect_test::{Expect, expect};

#[test]
fn the_linears_are_those_of_diffusers() {
    for name in MODELS {
        let golden = golden(name);
        let model = golden.model();
        let ours: serde_json::Map<_, _> = model
            .linears()
            .iter()
            .map(|linear| {
                (
                    linear.name.clone(),
                    serde_json::json!([linear.outputs, linear.inputs]),
                )
            })
            .collect();
        assert_eq!(serde_json::Value::Object(ours), golden.json("linears"));
    }
}

#[test]
fn a_flavor_is_told_from_the_architecture() {
    for name in MODELS {
        let folder = golden(name).folder();
        let single = golden_path(&format!("flux1_{name}_single.safetensors"));
        for path in [folder.path(), &single] {
            let opened = models::detect(path).unwrap();
            let names: Vec<_> = opened.flavors().iter().map(|flavor| flavor.name).collect();
            // kontext has dev's very shapes.
            let expected = match name {
                "dev" => &["dev", "kontext"][..],
                _ => &[name][..],
            };
            assert_eq!((opened.family.name, &names[..]), ("flux1", expected));
        }
    }
    let folder = golden("dev").folder();
    let opened = testing::open(&FLUX1, folder.path()).unwrap();
    let schnell = FLUX1.flavor("schnell").unwrap();
    expect![".: the weights are those of flavor `dev`, `kontext`, not of `schnell`"]
        .assert_eq(&message(opened.check_flavor(schnell), folder.path()));
}

fn check_damage(damage: &dyn Fn(&mut HashMap<String, Tensor>), expected: Expect) {
    let golden = golden("schnell");
    let mut weights = golden.weights();
    damage(&mut weights);
    let folder = golden.folder_with(&weights, &golden.metadata["config"]);
    expected.assert_eq(&message(load(folder.path()).map(|_| ()), folder.path()));
}

#[test]
fn weights_that_do_not_fit_get_one_clear_line() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    check_damage(
        &|weights| {
            weights.remove("single_transformer_blocks.1.proj_mlp.bias");
        },
        expect![
            "tensor `single_transformer_blocks.1.proj_mlp.bias` is missing from ./transformer/diffusion_pytorch_model.safetensors"
        ],
    );
    check_damage(
        &|weights| {
            weights.insert("double_blocks.0.x".to_owned(), zeros(&[2]));
        },
        expect![
            "./transformer/diffusion_pytorch_model.safetensors: 1 tensor that this network does not have, the first is `double_blocks.0.x`; the file is of another architecture or damaged"
        ],
    );
    check_damage(
        &|weights| {
            weights.insert("norm_out.linear.weight".to_owned(), zeros(&[32, 64]));
        },
        expect![
            "tensor `norm_out.linear.weight` in ./transformer/diffusion_pytorch_model.safetensors has shape [32, 64] (F32), expected [64, 32]"
        ],
    );
    check_damage(
        &|weights| {
            let nan = zeros(&[64]).affine(1.0, f64::NAN).unwrap();
            weights.insert("norm_out.linear.bias".to_owned(), nan);
        },
        expect![
            "tensor `norm_out.linear.bias` in ./transformer/diffusion_pytorch_model.safetensors holds NaN at element 0: the file is damaged"
        ],
    );
}

#[test]
fn a_path_that_is_no_such_model_gets_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let found = |result: Result<Components, Error>| message(result.map(|_| ()), folder.path());
    expect![".: not a model of family `flux1`: expected a folder with `transformer/`, or a safetensors file with tensors `double_blocks.*` or `model.diffusion_model.double_blocks.*`"].assert_eq(&found(FLUX1.components(folder.path())));
    let save = |name: &str, shape: &[usize]| {
        let tensor = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        candle_core::safetensors::save(&HashMap::from([(name, tensor)]), &path).unwrap();
    };
    save("joint_blocks.0.x", &[2]);
    expect!["./model.safetensors: not a model of family `flux1`: expected a folder with `transformer/`, or a safetensors file with tensors `double_blocks.*` or `model.diffusion_model.double_blocks.*`"].assert_eq(&found(FLUX1.components(&path)));
    save("double_blocks.0.x", &[2]);
    expect!["./model.safetensors: not a model of family `flux1`: it has no tensor for `x_embedder.weight`"].assert_eq(&message(models::detect(&path).map(|_| ()), folder.path()));
}

#[test]
fn a_fused_matrix_of_another_size_is_refused_by_its_own_name() {
    let path = golden_path("flux1_dev_single.safetensors");
    let mut weights = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let name = "single_blocks.0.linear1.weight";
    let fused = weights[name].narrow(0, 0, 8).unwrap().contiguous().unwrap();
    weights.insert(name.to_owned(), fused);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    candle_core::safetensors::save(&weights, &path).unwrap();
    expect!["tensor `single_blocks.0.linear1.weight` in ./model.safetensors has shape [8, 32] (BF16), expected [224, 32]"].assert_eq(&message(load(&path).map(|_| ()), folder.path()));
}

#[test]
fn latent_statistics_are_the_vaes_own_or_the_familys() {
    let folder = golden("dev").folder();
    let read = || {
        let components = FLUX1.components(folder.path()).unwrap();
        FLUX1.latent_statistics(&components, 2).unwrap()
    };
    assert_eq!(read(), STATISTICS);
    let vae = folder.path().join("vae");
    std::fs::create_dir(&vae).unwrap();
    let config = r#"{"scaling_factor": 0.5, "shift_factor": 0.25}"#;
    std::fs::write(vae.join("config.json"), config).unwrap();
    let own = LatentStatistics::Shared {
        scale: 0.5,
        shift: 0.25,
    };
    assert_eq!(read(), own);
    let config = r#"{"scaling_factor": 0.5, "latents_mean": [1, -2], "latents_std": [4, 0.5]}"#;
    std::fs::write(vae.join("config.json"), config).unwrap();
    let own = LatentStatistics::PerChannel {
        scale: 0.5,
        mean: vec![1.0, -2.0],
        std: vec![4.0, 0.5],
    };
    assert_eq!(read(), own);
}

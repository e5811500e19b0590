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
        assert_eq!(Json::Object(ours), golden.json("linears"));
    }
}

#[test]
fn a_flavor_is_told_from_the_architecture() {
    let flavors = |name| {
        let folder = golden(name).folder();
        let opened = models::detect(folder.path()).unwrap();
        let names: Vec<_> = opened.flavors().iter().map(|flavor| flavor.name).collect();
        format!("{} {}", opened.family.name, names.join(" "))
    };
    assert_eq!(flavors("plain"), "sd3 3-medium");
    assert_eq!(flavors("qk_norm"), "sd3 3.5-large 3.5-large-turbo");
    assert_eq!(flavors("dual"), "sd3 3.5-medium");
}

#[test]
fn another_flavor_than_the_one_named_is_refused() {
    let folder = golden("qk_norm").folder();
    let opened = testing::open(&SD3, folder.path()).unwrap();
    let check = |name| opened.check_flavor(SD3.flavor(name).unwrap());
    check("3.5-large").unwrap();
    check("3.5-large-turbo").unwrap();
    expect![
        "./: the weights are those of flavor `3.5-large`, `3.5-large-turbo`, not of `3-medium`"
    ]
    .assert_eq(&message(check("3-medium"), folder.path()).replacen(".:", "./:", 1));
    expect!["model flavor of family `sd3`: expected one of `3-medium`, `3.5-medium`, `3.5-large`, `3.5-large-turbo`, found `3`"]
        .assert_eq(&message(SD3.flavor("3"), folder.path()));
    expect!["model family: expected one of `sd3`, `flux1`, `chroma`, `flux2`, `sdxl`, `sd1`, `zimage`, `wan`, `fake`, found `flux`"]
        .assert_eq(&message(models::family("flux").map(|_| ()), folder.path()));
}

fn check_damage(damage: &dyn Fn(&mut HashMap<String, Tensor>), expected: Expect) {
    let golden = golden("plain");
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
            weights.remove("transformer_blocks.1.attn.add_q_proj.bias");
        },
        expect![
            "tensor `transformer_blocks.1.attn.add_q_proj.bias` is missing from ./transformer/diffusion_pytorch_model.safetensors"
        ],
    );
    check_damage(
        &|weights| {
            weights.insert(
                "transformer_blocks.2.attn.to_q.weight".to_owned(),
                zeros(&[24, 24]),
            );
        },
        expect![
            "./transformer/diffusion_pytorch_model.safetensors: 1 tensor that this network does not have, the first is `transformer_blocks.2.attn.to_q.weight`; the file is of another architecture or damaged"
        ],
    );
    check_damage(
        &|weights| {
            weights.insert("norm_out.linear.weight".to_owned(), zeros(&[24, 48]));
        },
        expect![
            "tensor `norm_out.linear.weight` in ./transformer/diffusion_pytorch_model.safetensors has shape [24, 48] (F32), expected [48, 24]"
        ],
    );
    check_damage(
        &|weights| {
            let nan = zeros(&[48]).affine(1.0, f64::NAN).unwrap();
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
    expect!["cannot read ./model.safetensors: No such file or directory (os error 2)"]
        .assert_eq(&message(models::detect(&path).map(|_| ()), folder.path()));
    let found = |result: Result<Components, Error>| message(result.map(|_| ()), folder.path());
    expect![".: not a model of family `sd3`: expected a folder with `transformer/`, or a safetensors file with tensors `joint_blocks.*` or `model.diffusion_model.joint_blocks.*`"].assert_eq(&found(SD3.components(folder.path())));
    let save = |name: &str| {
        let tensor = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
        candle_core::safetensors::save(&HashMap::from([(name, tensor)]), &path).unwrap();
    };
    save("double_blocks.0.x");
    expect!["./model.safetensors: not a model of family `sd3`: expected a folder with `transformer/`, or a safetensors file with tensors `joint_blocks.*` or `model.diffusion_model.joint_blocks.*`"].assert_eq(&found(SD3.components(&path)));
    save("joint_blocks.0.x");
    expect!["./model.safetensors: not a model of family `sd3`: it has no tensor for `pos_embed.proj.weight`"].assert_eq(&message(models::detect(&path).map(|_| ()), folder.path()));
    save("no_blocks.0.x");
    let nobody = message(models::detect(&path).map(|_| ()), folder.path());
    assert!(
        nobody.contains("expected a folder with `transformer/` or `unet/`"),
        "{nobody}"
    );
}

#[test]
fn the_parts_of_a_single_file_are_found_by_prefix() {
    let components = SD3
        .components(&golden_path("sd3_dual_single.safetensors"))
        .unwrap();
    assert_eq!(
        components.get("transformer").unwrap().prefix,
        "model.diffusion_model."
    );
    assert_eq!(components.parts.len(), 1);
    assert_eq!(SD3.latent_statistics(&components, 16).unwrap(), STATISTICS);
    let folder = golden("dual").folder();
    assert_eq!(
        SD3.open(components).unwrap().tensors(),
        testing::open(&SD3, folder.path()).unwrap().tensors()
    );
}

#[test]
fn latent_statistics_are_the_vaes_own() {
    let folder = golden("plain").folder();
    let vae = folder.path().join("vae");
    std::fs::create_dir(&vae).unwrap();
    let read = |config: &str| {
        std::fs::write(vae.join("config.json"), config).unwrap();
        SD3.latent_statistics(&SD3.components(folder.path()).unwrap(), 16)
    };
    let found = read(r#"{"scaling_factor": 0.5, "shift_factor": 0.25}"#).unwrap();
    assert_eq!(
        found,
        LatentStatistics::Shared {
            scale: 0.5,
            shift: 0.25
        }
    );
    assert_eq!(
        read(r#"{"scaling_factor": 2, "shift_factor": null}"#).unwrap(),
        LatentStatistics::Shared {
            scale: 2.0,
            shift: 0.0
        }
    );
    expect!["./vae/config.json: `scaling_factor`: expected a number, found no such field"]
        .assert_eq(&message(read("{}"), folder.path()));
    let config = r#"{"scaling_factor": 2, "latents_mean": 0.5, "latents_std": [1]}"#;
    expect!["./vae/config.json: `latents_mean`: expected a list of numbers, found 0.5"]
        .assert_eq(&message(read(config), folder.path()));
    let config = r#"{"scaling_factor": 2, "latents_mean": [0.5], "latents_std": null}"#;
    expect!["./vae/config.json: `latents_mean`: expected `latents_std` beside it"]
        .assert_eq(&message(read(config), folder.path()));
    let config = r#"{"scaling_factor": 2, "latents_mean": [0.5], "latents_std": [1]}"#;
    expect!["./vae/config.json: `latents_mean`: expected 16 numbers, one a channel, found 1"]
        .assert_eq(&message(read(config), folder.path()));
}

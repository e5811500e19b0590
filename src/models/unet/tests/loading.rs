//! What a checkpoint is, and what is said of one that does not fit.

use super::*;
use crate::models;
use expect_test::{Expect, expect};

#[test]
fn what_can_carry_an_adapter_is_every_linear_and_convolution_of_diffusers() {
    for name in MODELS {
        let golden = golden(name);
        let model = golden.model();
        let ours: serde_json::Map<_, _> = model
            .linears()
            .iter()
            .map(|linear| {
                let mut shape = vec![linear.outputs, linear.inputs];
                shape.extend(linear.kernel.map_or(vec![], |side| vec![side; 2]));
                (linear.name.clone(), serde_json::json!(shape))
            })
            .collect();
        assert_eq!(serde_json::Value::Object(ours), golden.json("linears"));
    }
}

#[test]
fn a_family_is_told_from_the_architecture() {
    for (name, family) in [("sdxl", "sdxl"), ("sd1", "sd1"), ("sd2", "sd1")] {
        let folder = golden(name).folder();
        let opened = models::detect(folder.path()).unwrap();
        assert_eq!(opened.family.name, family);
        // Fine-tunes that are bases themselves have the shapes of what they were made from.
        assert_eq!(opened.flavors().len(), opened.family.flavors.len());
    }
    for name in ["sdxl", "sd1"] {
        let components = family(name).components(&single_file(name)).unwrap();
        let unet = components.get("unet").unwrap();
        assert_eq!(unet.prefix, "model.diffusion_model.");
        let opened = family(name).open(components).unwrap();
        opened.check_whole().unwrap();
        assert_eq!(opened.flavors().len(), opened.family.flavors.len());
    }
    let folder = golden("sd1").folder();
    let wrong = testing::load(&SDXL, folder.path());
    expect!["./unet: not a model of family `sdxl`: its UNet has no embedding of pooled vectors and sizes, so it is not an SDXL"]
        .assert_eq(&message(wrong.map(|_| ()), folder.path()));
}

/// Its encoder, its pads and a single file's heads are others than SD1's, and its tensors would load all the same.
#[test]
fn stable_diffusion_2_is_not_taken_for_1() {
    let golden = golden("sd1");
    let config: serde_json::Value = serde_json::from_str(&golden.metadata["config"]).unwrap();
    let mut config = config.as_object().unwrap().clone();
    config.insert("cross_attention_dim".to_owned(), 1024.into());
    let config = serde_json::Value::from(config).to_string();
    let folder = golden.folder_with(&golden.weights(), &config);
    let loaded = testing::load(family("sd1"), folder.path()).map(|_| ());
    expect!["./unet: not a model of family `sd1`: its UNet takes a context of width 1024, so it is a Stable Diffusion 2, which there is no recipe for"]
        .assert_eq(&message(loaded, folder.path()));
}

fn check_damage(damage: &dyn Fn(&mut HashMap<String, Tensor>), expected: Expect) {
    let golden = golden("sdxl");
    let mut weights = golden.weights();
    damage(&mut weights);
    let folder = golden.folder_with(&weights, &golden.metadata["config"]);
    let loaded = testing::load(&SDXL, folder.path()).map(|_| ());
    expected.assert_eq(&message(loaded, folder.path()));
}

#[test]
fn weights_that_do_not_fit_get_one_clear_line() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    check_damage(
        &|weights| {
            weights.remove("mid_block.resnets.1.time_emb_proj.bias");
        },
        expect![
            "tensor `mid_block.resnets.1.time_emb_proj.bias` is missing from ./unet/diffusion_pytorch_model.safetensors"
        ],
    );
    check_damage(
        &|weights| {
            weights.insert("up_blocks.7.resnets.0.conv1.weight".to_owned(), zeros(&[1]));
        },
        expect![
            "./unet/diffusion_pytorch_model.safetensors: 1 tensor that this network does not have, the first is `up_blocks.7.resnets.0.conv1.weight`; the file is of another architecture or damaged"
        ],
    );
    check_damage(
        &|weights| {
            weights.insert("conv_in.weight".to_owned(), zeros(&[8, 4, 1, 1]));
        },
        expect![
            "tensor `conv_in.weight` in ./unet/diffusion_pytorch_model.safetensors has shape [8, 4, 1, 1] (F32), expected [8, 4, 3, 3]"
        ],
    );
}

#[test]
fn latent_statistics_are_the_familys_where_no_config_tells() {
    for (family, name, scale) in [(&SDXL, "sdxl", 0.13025), (&SD1, "sd1", 0.18215)] {
        let components = family.components(&single_file(name)).unwrap();
        let found = family.latent_statistics(&components, 4).unwrap();
        assert_eq!(found, LatentStatistics::Shared { scale, shift: 0.0 });
    }
}

//! What a checkpoint is, and what is said of one that does not fit.

use super::*;
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
            weights.remove("blocks.0.scale_shift_table");
        },
        expect![
            "tensor `blocks.0.scale_shift_table` is missing from ./transformer/diffusion_pytorch_model.safetensors"
        ],
    );
    check_damage(
        &|weights| {
            weights.insert("blocks.1.attn1.to_q.bias".to_owned(), zeros(&[26]));
        },
        expect![
            "./transformer/diffusion_pytorch_model.safetensors: 1 tensor that this network does not have, the first is `blocks.1.attn1.to_q.bias`; the file is of another architecture or damaged"
        ],
    );
    check_damage(
        &|weights| {
            weights.insert(
                "patch_embedding.weight".to_owned(),
                zeros(&[26, 4, 2, 2, 2]),
            );
        },
        expect![
            "tensor `patch_embedding.weight` in ./transformer/diffusion_pytorch_model.safetensors has shape [26, 4, 2, 2, 2] (F32), expected [26, 4, 1, 2, 2]"
        ],
    );
}

fn check_config(change: &dyn Fn(&mut serde_json::Value), expected: Expect) {
    let golden = golden("one");
    let mut config = golden.json("config");
    change(&mut config);
    let folder = golden.folder_with(&golden.weights(), &config.to_string());
    let asked = message(load(folder.path()).map(|_| ()), folder.path());
    expected.assert_eq(&asked);
}

#[test]
fn models_that_are_given_a_picture_are_refused() {
    check_config(
        &|config| config["added_kv_proj_dim"] = 26.into(),
        expect![
            "./transformer/config.json: `added_kv_proj_dim`: expected none (text to video), found 26 (a model that is given a picture)"
        ],
    );
    check_config(
        &|config| config["in_channels"] = 36.into(),
        expect![
            "./transformer/config.json: `in_channels`: expected as many as go out, 4, found 36 (a model that is given a picture or a video beside the noise: I2V, Fun, VACE)"
        ],
    );
    check_config(
        &|config| {
            config["in_channels"] = 48.into();
            config["out_channels"] = 48.into();
        },
        expect![
            "./transformer/config.json: `in_channels`: expected 16, found 48: Wan 2.2 TI2V-5B, which has a timestep for each token and another VAE"
        ],
    );
    check_config(
        &|config| config["qk_norm"] = serde_json::Value::Null,
        expect!["./transformer/config.json: `qk_norm`: expected rms_norm_across_heads, found none"],
    );
}

#[test]
fn models_that_are_given_more_than_noise_and_a_caption_are_refused_by_name() {
    let of_wan = "; of Wan, text to video is trained here: 2.1 (1.3B, 14B) and 2.2 (A14B)";
    let golden = golden("one");
    let refused = |name: &str, shape: &[usize]| {
        let mut weights = golden.weights();
        let tensor = Tensor::zeros(shape, candle_core::DType::F32, &candle_core::Device::Cpu);
        weights.insert(name.to_owned(), tensor.unwrap());
        let folder = golden.folder_with(&weights, &golden.metadata["config"]);
        message(load(folder.path()).map(|_| ()), folder.path())
    };
    let width = golden.weights()["patch_embedding.weight"].dim(0).unwrap();
    for (name, channels, what) in [
        ("vace_blocks.0.before_proj.weight", 0, "VACE"),
        ("motion_encoder.dec.weight", 0, "Animate"),
        ("casual_audio_encoder.weights", 0, "S2V"),
        ("ref_conv.weight", 0, "Fun Control"),
        (
            "patch_embedding.weight",
            36,
            "image to video (I2V) or Fun InP",
        ),
        ("patch_embedding.weight", 48, "Wan 2.2 TI2V-5B"),
    ] {
        let shape = match channels {
            0 => vec![1],
            channels => vec![width, channels, 1, 2, 2],
        };
        let said = refused(name, &shape);
        let start = format!("./transformer: it is {what}");
        assert!(said.starts_with(&start) && said.ends_with(of_wan), "{said}");
    }
}

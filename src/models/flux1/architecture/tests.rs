#![expect(clippy::disallowed_methods, reason = "fixtures need no durable writes")]

use super::*;
use crate::lora::LinearShape;
use crate::lora::targets::select;
use crate::models::flux1::FLUX1;
use crate::models::testing::listed;
use expect_test::{Expect, expect};

fn read(config: &str) -> Result<Architecture, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, config).unwrap();
    Architecture::from_config(&path).map_err(|error| {
        error
            .to_string()
            .replace(&folder.path().display().to_string(), ".")
    })
}

fn released(guidance: bool) -> Architecture {
    read(&format!(r#"{{"_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.30.0.dev0",
        "attention_head_dim": 128, "guidance_embeds": {guidance}, "in_channels": 64, "joint_attention_dim": 4096,
        "num_attention_heads": 24, "num_layers": 19, "num_single_layers": 38, "patch_size": 1,
        "pooled_projection_dim": 768}}"#))
    .unwrap()
}

#[test]
fn the_released_configs_give_the_released_networks() {
    let dev = released(true);
    assert_eq!((dev.width(), dev.latent_channels()), (3072, 16));
    assert_eq!(FLUX1.latents().channels, dev.latent_channels());
    // As published: 11.90 and 11.89 billion.
    assert_eq!(listed(&dev).1, 11_901_408_320);
    assert_eq!(listed(&released(false)).1, 11_891_178_560);
    assert_eq!(listed(&dev).0.0.len(), 1160);
}

fn linears(architecture: &Architecture) -> Vec<LinearShape> {
    listed(architecture).0.1
}

/// The counts that other programs' files have: every linear in blocks (kohya's 304 fused ones are these), and q, k, v and
/// out of the picture.
#[test]
fn presets_adapt_as_many_modules_as_other_programs_do() {
    let linears = linears(&released(true));
    let count = |target: &str| select(&linears, &[target.to_owned()], FLUX1.presets).unwrap();
    let parameters = |rank: usize, target: &str| -> usize {
        let sizes = count(target).into_iter();
        sizes
            .map(|linear| rank * (linear.inputs + linear.outputs))
            .sum()
    };
    assert_eq!(count("blocks").len(), 494);
    assert_eq!(parameters(16, "blocks"), 85_917_696);
    assert_eq!(count("attention").len(), 19 * 8 + 38 * 3);
    assert_eq!(count("attention+mlp").len(), 19 * 12 + 38 * 5);
    assert_eq!(count("all-linear").len(), 504);
    let blog = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"].map(str::to_owned);
    assert_eq!(select(&linears, &blog, FLUX1.presets).unwrap().len(), 190);
}

fn check(config: &str, expected: Expect) {
    let got = match read(config) {
        Ok(found) => format!(
            "{} linears of width {}",
            linears(&found).len(),
            found.width()
        ),
        Err(error) => error,
    };
    expected.assert_eq(&got);
}

#[test]
fn a_config_that_does_not_fit_gets_one_clear_line() {
    check("{}", expect!["502 linears of width 3072"]);
    check(
        r#"{"_class_name": "SD3Transformer2DModel"}"#,
        expect![
            "./config.json: `_class_name`: expected `FluxTransformer2DModel`, found `SD3Transformer2DModel`"
        ],
    );
    check(
        r#"{"num_layers": "12"}"#,
        expect![[r#"./config.json: invalid type: string "12", expected usize"#]],
    );
    check(
        r#"{"num_layers": 0}"#,
        expect!["./config.json: `num_layers`: expected 1 to 1024, found 0"],
    );
    check(
        r#"{"num_attention_heads": 18446744073709551615}"#,
        expect![
            "./config.json: `num_attention_heads`: expected 1 to 1048576, found 18446744073709551615"
        ],
    );
    check(
        r#"{"qk_norm": "rms_norm"}"#,
        expect![
            "./config.json: unknown field `qk_norm`, expected one of `patch_size`, `in_channels`, `out_channels`, `num_layers`, `num_single_layers`, `attention_head_dim`, `num_attention_heads`, `joint_attention_dim`, `pooled_projection_dim`, `guidance_embeds`, `axes_dims_rope`"
        ],
    );
    check(
        r#"{"patch_size": 2}"#,
        expect![
            "./config.json: `patch_size`: expected 1 (patches are made before this network), found 2"
        ],
    );
    check(
        r#"{"in_channels": 384, "out_channels": 64}"#,
        expect![
            "./config.json: `in_channels`: expected as many as go out, 64, found 384 (FLUX.1 Fill, which is given a masked picture and its mask beside the noisy one; plumb does not train it)"
        ],
    );
    check(
        r#"{"in_channels": 63}"#,
        expect!["./config.json: `in_channels`: expected a multiple of 4, found 63"],
    );
    check(
        r#"{"axes_dims_rope": [16, 56, 55]}"#,
        expect![
            "./config.json: `axes_dims_rope`: expected 3 even numbers that add up to attention_head_dim = 128, found [16, 56, 55]"
        ],
    );
    check(
        r#"{"axes_dims_rope": [16, 56, 54]}"#,
        expect![
            "./config.json: `axes_dims_rope`: expected 3 even numbers that add up to attention_head_dim = 128, found [16, 56, 54]"
        ],
    );
    check(
        r#"{"axes_dims_rope": [16, 56]}"#,
        expect!["./config.json: invalid length 2, expected an array of length 3"],
    );
}

#![expect(clippy::disallowed_methods, reason = "fixtures need no durable writes")]

use super::*;
use crate::lora::targets::select;
use crate::models::chroma::CHROMA;
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

#[test]
fn the_released_config_gives_the_released_network() {
    let released = read(
        r#"{"_class_name": "ChromaTransformer2DModel", "_diffusers_version": "0.34.0.dev0",
        "approximator_hidden_dim": 5120, "approximator_layers": 5, "approximator_num_channels": 64,
        "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56], "in_channels": 64,
        "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 19,
        "num_single_layers": 38, "out_channels": null, "patch_size": 1}"#,
    )
    .unwrap();
    assert_eq!((released.trunk.width(), released.vectors()), (3072, 344));
    assert_eq!(CHROMA.latents().channels, released.trunk.latent_channels());
    let (lists, parameters) = listed(&released);
    // As published: 8.9 billion.
    assert_eq!(parameters, 8_899_983_424);
    // The numbers of other programs: q, k, v and out of everything, and all linears in blocks.
    let count = |target: &str| {
        select(&lists.1, &[target.to_owned()], CHROMA.presets)
            .unwrap()
            .len()
    };
    assert_eq!(count("attention"), 19 * 8 + 38 * 3);
    assert_eq!(count("attention+mlp"), 19 * 12 + 38 * 5);
    assert_eq!(count("blocks"), 19 * 12 + 38 * 5);
    assert_eq!(count("all-linear"), 19 * 12 + 38 * 5 + 3);
}

fn check(config: &str, expected: Expect) {
    let got = match read(config) {
        Ok(found) => format!(
            "{} vectors of width {}",
            found.vectors(),
            found.trunk.width()
        ),
        Err(error) => error,
    };
    expected.assert_eq(&got);
}

#[test]
fn a_config_that_does_not_fit_gets_one_clear_line() {
    check("{}", expect!["344 vectors of width 3072"]);
    check(
        r#"{"_class_name": "FluxTransformer2DModel"}"#,
        expect![
            "./config.json: `_class_name`: expected `ChromaTransformer2DModel`, found `FluxTransformer2DModel`"
        ],
    );
    check(
        r#"{"guidance_embeds": true}"#,
        expect![
            "./config.json: unknown field `guidance_embeds`, expected one of `patch_size`, `in_channels`, `out_channels`, `num_layers`, `num_single_layers`, `attention_head_dim`, `num_attention_heads`, `joint_attention_dim`, `axes_dims_rope`, `approximator_num_channels`, `approximator_hidden_dim`, `approximator_layers`"
        ],
    );
    check(
        r#"{"approximator_num_channels": 12}"#,
        expect!["./config.json: `approximator_num_channels`: expected a multiple of 8, found 12"],
    );
    check(
        r#"{"approximator_layers": 0}"#,
        expect!["./config.json: `approximator_layers`: expected 1 to 1024, found 0"],
    );
    check(
        r#"{"num_layers": 0}"#,
        expect!["./config.json: `num_layers`: expected 1 to 1024, found 0"],
    );
    check(
        r#"{"approximator_hidden_dim": 18446744073709551615}"#,
        expect![
            "./config.json: `approximator_hidden_dim`: expected 1 to 1048576, found 18446744073709551615"
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
}

#![expect(clippy::disallowed_methods, reason = "fixtures need no durable writes")]

use super::*;
use crate::lora::targets::select;
use crate::models::testing::listed;
use crate::models::zimage::ZIMAGE;
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
        r#"{"_class_name": "ZImageTransformer2DModel", "_diffusers_version": "0.36.0.dev0",
        "all_f_patch_size": [1], "all_patch_size": [2], "axes_dims": [32, 48, 48],
        "axes_lens": [1536, 512, 512], "cap_feat_dim": 2560, "dim": 3840, "in_channels": 16,
        "n_heads": 30, "n_kv_heads": 30, "n_layers": 30, "n_refiner_layers": 2, "norm_eps": 1e-05,
        "qk_norm": true, "rope_theta": 256.0, "t_scale": 1000.0}"#,
    )
    .unwrap();
    assert_eq!(
        (released.width, released.inner(), released.vector()),
        (3840, 10240, 256)
    );
    assert_eq!(ZIMAGE.latents().channels, released.channels);
    let (lists, parameters) = listed(&released);
    // As published: 6 billion.
    assert_eq!(parameters, 6_154_908_736);
    // The numbers of other programs: musubi-tuner's are those in `layers` alone.
    let count = |target: &str| {
        select(&lists.1, &[target.to_owned()], ZIMAGE.presets)
            .unwrap()
            .len()
    };
    assert_eq!(count("attention"), 34 * 4);
    assert_eq!(count("attention+mlp"), 34 * 7);
    assert_eq!(count("blocks"), 30 * 8);
    assert_eq!(count("all-linear"), 34 * 7 + 32 + 6);
}

fn check(config: &str, expected: Expect) {
    let got = match read(config) {
        Ok(found) => format!("{} layers of width {}", found.layers, found.width),
        Err(error) => error,
    };
    expected.assert_eq(&got);
}

#[test]
fn a_config_that_does_not_fit_gets_one_clear_line() {
    check("{}", expect!["30 layers of width 3840"]);
    check(
        r#"{"_class_name": "Lumina2Transformer2DModel"}"#,
        expect![
            "./config.json: `_class_name`: expected `ZImageTransformer2DModel`, found `Lumina2Transformer2DModel`"
        ],
    );
    check(
        r#"{"guidance_embeds": true}"#,
        expect![
            "./config.json: unknown field `guidance_embeds`, expected one of `all_patch_size`, `all_f_patch_size`, `in_channels`, `dim`, `n_layers`, `n_refiner_layers`, `n_heads`, `n_kv_heads`, `norm_eps`, `qk_norm`, `cap_feat_dim`, `siglip_feat_dim`, `rope_theta`, `t_scale`, `axes_dims`, `axes_lens`"
        ],
    );
    check(
        r#"{"siglip_feat_dim": 1152}"#,
        expect![
            "./config.json: `siglip_feat_dim`: expected none, found a number (Z-Image Omni, which is given pictures as well; plumb does not train it)"
        ],
    );
    check(
        r#"{"all_patch_size": [2, 4], "all_f_patch_size": [1, 1]}"#,
        expect!["./config.json: `all_patch_size`: expected [2], found [2, 4]"],
    );
    check(
        r#"{"n_kv_heads": 6}"#,
        expect!["./config.json: `n_kv_heads`: expected as many as n_heads, 30, found 6"],
    );
    check(
        r#"{"qk_norm": false}"#,
        expect!["./config.json: `qk_norm`: expected true, found false"],
    );
    check(
        r#"{"n_layers": 0}"#,
        expect!["./config.json: `n_layers`: expected 1 to 1024, found 0"],
    );
    check(
        r#"{"n_heads": 7}"#,
        expect!["./config.json: `n_kv_heads`: expected as many as n_heads, 7, found 30"],
    );
    check(
        r#"{"axes_dims": [31, 49, 48]}"#,
        expect![
            "./config.json: `axes_dims`: expected three even numbers that add up to dim / n_heads = 128, found [31, 49, 48]"
        ],
    );
    check(
        r#"{"norm_eps": 0}"#,
        expect!["./config.json: `norm_eps`: expected a number above 0, found 0"],
    );
    check(
        r#"{"dim": 18446744073709551615}"#,
        expect!["./config.json: `dim`: expected 1 to 1048576, found 18446744073709551615"],
    );
}

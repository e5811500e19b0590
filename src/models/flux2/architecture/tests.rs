#![expect(clippy::disallowed_methods, reason = "fixtures need no durable writes")]

use super::*;
use crate::lora::targets::select;
use crate::models::flux2::FLUX2;
use crate::models::testing::listed;
use crate::models::{Architecture as _, Flavor};
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

fn released(double: usize, single: usize, heads: usize, context: usize) -> Architecture {
    let config = format!(
        r#"{{"_class_name": "Flux2Transformer2DModel", "_diffusers_version": "0.37.0.dev0",
        "attention_head_dim": 128, "axes_dims_rope": [32, 32, 32, 32], "eps": 1e-06, "guidance_embeds": false,
        "in_channels": 128, "joint_attention_dim": {context}, "mlp_ratio": 3.0, "num_attention_heads": {heads},
        "num_layers": {double}, "num_single_layers": {single}, "out_channels": null, "patch_size": 1,
        "rope_theta": 2000, "timestep_guidance_channels": 256}}"#
    );
    read(&config).unwrap()
}

#[test]
fn the_released_configs_give_the_released_networks() {
    let of_size = |size: &str| {
        let ends = |flavor: &&Flavor| flavor.name.ends_with(size);
        FLUX2.flavors.iter().filter(ends).collect::<Vec<_>>()
    };
    for (size, other, (double, single, heads, context), parameters) in [
        ("4b", "9b", (5, 20, 24, 7680), 3_875_544_576),
        ("9b", "4b", (8, 24, 32, 12288), 9_078_581_248),
    ] {
        let own = released(double, single, heads, context);
        assert_eq!(own.inner, 3 * own.width());
        assert_eq!(FLUX2.latents().channels, own.latent_channels());
        let (lists, found) = listed(&own);
        assert_eq!(found, parameters, "{size}");
        let count = |target: &str| {
            let chosen = select(&lists.1, &[target.to_owned()], FLUX2.presets);
            chosen.unwrap().len()
        };
        assert_eq!(count("attention"), double * 8 + single * 2);
        assert_eq!(count("blocks"), double * 12 + single * 2);
        assert_eq!(count("all-linear"), double * 12 + single * 2 + 9);
        assert!(of_size(size).iter().all(|flavor| own.could_be(flavor)));
        assert!(!of_size(other).iter().any(|flavor| own.could_be(flavor)));
    }
}

fn check(config: &str, expected: Expect) {
    let got = match read(config) {
        Ok(found) => format!("width {}, {} inside", found.width(), found.inner),
        Err(error) => error,
    };
    expected.assert_eq(&got);
}

#[test]
fn a_config_that_does_not_fit_gets_one_clear_line() {
    check(
        "{}",
        expect![
            "./config.json: `guidance_embeds`: expected false, found true (a model with a guidance embedding, as FLUX.2-dev is: its text encoder, Mistral, is not among those that this program knows; use one of FLUX.2 klein)"
        ],
    );
    check(
        r#"{"guidance_embeds": false, "mlp_ratio": 2.5}"#,
        expect!["width 6144, 15360 inside"],
    );
    check(
        r#"{"_class_name": "FluxTransformer2DModel"}"#,
        expect![
            "./config.json: `_class_name`: expected `Flux2Transformer2DModel`, found `FluxTransformer2DModel`"
        ],
    );
    for (fields, expected) in [
        (
            r#""axes_dims_rope": [16, 56, 56]"#,
            expect!["./config.json: invalid length 3, expected an array of length 4"],
        ),
        (
            r#""axes_dims_rope": [32, 32, 32, 31]"#,
            expect![
                "./config.json: `axes_dims_rope`: expected 4 even numbers that add up to attention_head_dim = 128, found [32, 32, 32, 31]"
            ],
        ),
        (
            r#""eps": 1e-5"#,
            expect!["./config.json: `eps`: expected 0.000001, found 0.00001"],
        ),
        (
            r#""mlp_ratio": 1e30"#,
            expect![
                "./config.json: `mlp_ratio`: expected 1 to 64, found 1000000000000000000000000000000"
            ],
        ),
        (
            r#""rope_theta": 0"#,
            expect!["./config.json: `rope_theta`: expected a number above 1, found 0"],
        ),
        (
            r#""patch_size": 2"#,
            expect!["./config.json: `patch_size`: expected 1, found 2"],
        ),
        (
            r#""num_layers": 0"#,
            expect!["./config.json: `num_layers`: expected 1 to 1024, found 0"],
        ),
        (
            r#""num_attention_heads": 18446744073709551615"#,
            expect![
                "./config.json: `num_attention_heads`: expected 1 to 1048576, found 18446744073709551615"
            ],
        ),
    ] {
        check(
            &format!(r#"{{"guidance_embeds": false, {fields}}}"#),
            expected,
        );
    }
}

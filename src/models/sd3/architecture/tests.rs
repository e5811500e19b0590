#![expect(clippy::disallowed_methods, reason = "fixtures need no durable writes")]

use super::*;
use expect_test::{Expect, expect};

fn check(config: &str, expected: Expect) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, config).unwrap();
    let got = match Architecture::from_config(&path) {
        Ok(found) => format!(
            "{} linears of width {}",
            crate::models::testing::listed(&found).0.1.len(),
            found.width()
        ),
        Err(error) => error
            .to_string()
            .replace(&folder.path().display().to_string(), "."),
    };
    expected.assert_eq(&got);
}

#[test]
fn the_released_configs_give_the_released_networks() {
    let medium = r#"{"_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.31.0", "attention_head_dim": 64,
        "caption_projection_dim": 1536, "dual_attention_layers": [0,1,2,3,4,5,6,7,8,9,10,11,12], "in_channels": 16,
        "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 24, "out_channels": 16, "patch_size": 2,
        "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "qk_norm": "rms_norm", "sample_size": 128}"#;
    // 5 in front, 14 per block, 4 per second attention, 3 that the last block lacks, 2 at the end.
    check(medium, expect!["392 linears of width 1536"]);
    check(
        r#"{"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"}"#,
        expect!["536 linears of width 2432"],
    );
}

#[test]
fn a_config_that_does_not_fit_gets_one_clear_line() {
    check("{}", expect!["256 linears of width 1152"]);
    check(
        "[]",
        expect![
            "./config.json: expected a JSON object: invalid type: sequence, expected a map at line 1 column 0"
        ],
    );
    check(
        r#"{"_class_name": "FluxTransformer2DModel"}"#,
        expect![
            "./config.json: `_class_name`: expected `SD3Transformer2DModel`, found `FluxTransformer2DModel`"
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
        r#"{"guidance_embeds": true}"#,
        expect![
            "./config.json: unknown field `guidance_embeds`, expected one of `sample_size`, `patch_size`, `in_channels`, `num_layers`, `attention_head_dim`, `num_attention_heads`, `joint_attention_dim`, `caption_projection_dim`, `pooled_projection_dim`, `out_channels`, `pos_embed_max_size`, `dual_attention_layers`, `qk_norm`"
        ],
    );
    check(
        r#"{"qk_norm": "layer_norm"}"#,
        expect!["./config.json: `qk_norm`: expected null or `rms_norm`, found `layer_norm`"],
    );
    check(
        r#"{"dual_attention_layers": [18]}"#,
        expect![
            "./config.json: `dual_attention_layers`: expected numbers below num_layers = 18, found 18"
        ],
    );
    check(
        r#"{"caption_projection_dim": 64}"#,
        expect![
            "./config.json: `caption_projection_dim`: expected num_attention_heads * attention_head_dim = 1152, found 64"
        ],
    );
}

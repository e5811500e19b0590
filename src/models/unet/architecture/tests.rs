#![expect(clippy::disallowed_methods, reason = "fixtures need no durable writes")]

use super::*;
use crate::lora::targets;
use crate::models::Family;
use crate::models::testing::listed;
use crate::models::unet::{SD1, SDXL};
use expect_test::{Expect, expect};

/// As published with SDXL base 1.0 (fields that are null or default left out).
const SDXL_CONFIG: &str = r#"{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.19.0.dev0", "act_fn": "silu",
    "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64, "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "center_input_sample": false,
    "class_embed_type": null, "conv_in_kernel": 3, "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "downsample_padding": 1,
    "dual_cross_attention": false, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
    "mid_block_only_cross_attention": null, "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05, "norm_num_groups": 32, "num_attention_heads": null, "num_class_embeds": null,
    "only_cross_attention": false, "out_channels": 4, "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0, "resnet_time_scale_shift": "default", "sample_size": 128,
    "time_embedding_type": "positional", "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "upcast_attention": null,
    "use_linear_projection": true}"#;

/// As published with Stable Diffusion 1.5.
const SD1_CONFIG: &str = r#"{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false,
    "cross_attention_dim": 768, "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
    "CrossAttnDownBlock2D", "DownBlock2D"], "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0,
    "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32,
    "out_channels": 4, "sample_size": 64, "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D",
    "CrossAttnUpBlock2D"]}"#;

fn read(config: &str) -> Result<Architecture, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, config).unwrap();
    let read = Architecture::from_config(&path);
    read.map_err(|error| {
        let folder = folder.path().display().to_string();
        error.to_string().replace(&folder, ".")
    })
}

/// Tensors, parameters, and modules that each preset adapts.
fn count(config: &str, family: &Family) -> String {
    let ((tensors, linears), parameters) = listed(&read(config).unwrap());
    let mut line = format!("{} tensors, {parameters} parameters", tensors.len());
    for preset in family.presets {
        let name = preset.name;
        let chosen = targets::select(&linears, &[name.to_owned()], family.presets).unwrap();
        line += &format!("; {name} {}", chosen.len());
    }
    line
}

/// The counts of tensors and parameters are those of the released files; `transformer` is what kohya's scripts call 722
/// and 192 modules (a linear or a convolution each).
#[test]
fn the_released_configs_give_the_released_networks() {
    expect!["1680 tensors, 2567463684 parameters; attention 560; attention+mlp 700; transformer 722; all-linear 743; all 794"].assert_eq(&count(SDXL_CONFIG, &SDXL));
    expect!["686 tensors, 859520964 parameters; attention 128; attention+mlp 160; transformer 192; all-linear 184; all 282"].assert_eq(&count(SD1_CONFIG, &SD1));
}

fn check(from: &str, to: &str, expected: Expect) {
    assert!(SDXL_CONFIG.contains(from), "{from}");
    let found = read(&SDXL_CONFIG.replace(from, to));
    expected.assert_eq(&found.map_or_else(|why| why, |_| "taken".to_owned()));
}

#[test]
fn a_config_that_does_not_fit_gets_one_clear_line() {
    check(
        "\"in_channels\": 4",
        "\"in_channels\": 9",
        expect![
            "./config.json: `in_channels`: expected out_channels = 4, found 9: models for inpainting are not supported"
        ],
    );
    check(
        "\"silu\"",
        "\"gelu\"",
        expect![[r#"./config.json: `act_fn`: expected "silu", found "gelu""#]],
    );
    check(
        "[5, 10, 20]",
        "[5, 10]",
        expect![
            "./config.json: `attention_head_dim`: expected a list of 3 whole numbers, found [5,10]"
        ],
    );
    check(
        "[5, 10, 20]",
        "[5, 10, 0]",
        expect!["./config.json: `attention_head_dim`: 1280 channels cannot be split into 0 heads"],
    );
    check(
        "[5, 10, 20]",
        "\"five\"",
        expect![[
            r#"./config.json: `attention_head_dim`: expected a list of 3 whole numbers, found "five""#
        ]],
    );
    check(
        "[320, 640, 1280]",
        "[320, 640, 1281]",
        expect![
            "./config.json: `block_out_channels`: expected even multiples of norm_num_groups = 32, found 1281"
        ],
    );
    check(
        "[320, 640, 1280]",
        "[320, 640, 18446744073709551615]",
        expect![
            "./config.json: `block_out_channels`: expected even multiples of norm_num_groups = 32, found 18446744073709551615"
        ],
    );
    check(
        "\"act_fn\"",
        "\"act_fun\"",
        expect!["./config.json: `act_fun`: unknown field"],
    );
    check(
        "2816",
        "12",
        expect![
            "./config.json: `projection_class_embeddings_input_dim`: expected 6 * addition_time_embed_dim = 1536 and the pooled vector's channels, at most 65536, found 12"
        ],
    );
    check(
        "text_time",
        "text_image",
        expect![[
            r#"./config.json: `addition_embed_type`: expected null or "text_time", found "text_image""#
        ]],
    );
    check(
        "\"CrossAttnUpBlock2D\", \"UpBlock2D\"]",
        "\"UpBlock2D\", \"UpBlock2D\"]",
        expect!["./config.json: `up_block_types`: expected the reverse of `down_block_types`"],
    );
    check(
        "UNet2DConditionModel",
        "UNet2DModel",
        expect![
            "./config.json: `_class_name`: expected `UNet2DConditionModel`, found `UNet2DModel`"
        ],
    );
    check(
        "\"layers_per_block\": 2",
        "\"layers_per_block\": 0",
        expect!["./config.json: `layers_per_block`: expected 1 to 64, found 0"],
    );
}

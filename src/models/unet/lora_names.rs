//! The UNets of SDXL and SD1: native code numbers input and output blocks through, three to a level (two residual blocks
//! and what leads to the next level down; three residual blocks up), diffusers counts levels and blocks in them.

use super::{OUTER, RESNET};
use crate::lora::formats::{AiToolkitNaming, Naming, Row, Spelling};

/// Residual blocks in a level on the way down; there is one more on the way up.
const LAYERS: usize = 2;

/// In a transformer, of one name on both sides.
const TRANSFORMER: &[&str] = &[
    "proj_in",
    "proj_out",
    "transformer_blocks.{}.attn1.to_q",
    "transformer_blocks.{}.attn1.to_k",
    "transformer_blocks.{}.attn1.to_v",
    "transformer_blocks.{}.attn1.to_out.0",
    "transformer_blocks.{}.attn2.to_q",
    "transformer_blocks.{}.attn2.to_k",
    "transformer_blocks.{}.attn2.to_v",
    "transformer_blocks.{}.attn2.to_out.0",
    "transformer_blocks.{}.ff.net.0.proj",
    "transformer_blocks.{}.ff.net.2",
];

/// SDXL: transformers in the two lower of three levels. kohya's scripts train Stability's network.
pub(super) fn sdxl() -> Naming {
    Naming {
        family: "sdxl",
        kohya: Spelling::Native,
        implementation: "https://github.com/Stability-AI/generative-models",
        base_version: Some("sdxl_base_v1-0"),
        metadata_marks: &["sdxl", "stable-diffusion-xl"],
        widths: &[(".attn2.to_k", 2048)],
        rows: rows(&[false, true, true], true),
        ..naming()
    }
}

/// SD1: transformers in all of four levels but the lowest. kohya's scripts train diffusers' network.
pub(super) fn sd1() -> Naming {
    Naming {
        family: "sd1",
        kohya: Spelling::Diffusers,
        base_version: Some("sd_v1"),
        metadata_marks: &["sd_v1", "sd_1.5", "stable-diffusion-v1"],
        widths: &[(".attn2.to_k", 768)],
        rows: rows(&[true, true, true, false], false),
        ..naming()
    }
}

fn naming() -> Naming {
    Naming {
        family: "",
        component: "unet",
        kohya: Spelling::Native,
        network_module: "networks.lora",
        implementation: "diffusers",
        base_version: None,
        metadata_marks: &[],
        widths: &[],
        only_where_stated: false,
        ai_toolkit: AiToolkitNaming::Kohya,
        ai_toolkit_modules: &[
            ".attentions.",
            ".resnets.",
            ".downsamplers.",
            ".upsamplers.",
        ],
        rows: Vec::new(),
    }
}

/// `attention`: which levels have transformers, from the picture's side down; `sizes`: whether sizes and crops are
/// embedded.
fn rows(attention: &[bool], sizes: bool) -> Vec<Row> {
    let is_there = |ours: &str| sizes || !ours.starts_with("add_embedding.");
    let mut rows: Vec<Row> = OUTER
        .iter()
        .filter(|(ours, _)| is_there(ours) && !is_norm(ours))
        .map(|(ours, native)| Row::new(*ours, *native))
        .collect();
    let levels = attention.len();
    for (level, &attends) in attention.iter().enumerate() {
        for layer in 0..LAYERS {
            let native = format!("input_blocks.{}", 1 + level * (LAYERS + 1) + layer);
            layer_rows(
                &mut rows,
                &format!("down_blocks.{level}"),
                layer,
                &native,
                attends,
            );
        }
        if level + 1 < levels {
            let block = 1 + level * (LAYERS + 1) + LAYERS;
            rows.push(Row::new(
                format!("down_blocks.{level}.downsamplers.0.conv"),
                format!("input_blocks.{block}.0.op"),
            ));
        }
    }
    resnet_rows(&mut rows, "mid_block.resnets.0", "middle_block.0");
    transformer_rows(&mut rows, "mid_block.attentions.0", "middle_block.1");
    resnet_rows(&mut rows, "mid_block.resnets.1", "middle_block.2");
    for (level, &attends) in attention.iter().rev().enumerate() {
        for layer in 0..=LAYERS {
            let native = format!("output_blocks.{}", level * (LAYERS + 1) + layer);
            layer_rows(
                &mut rows,
                &format!("up_blocks.{level}"),
                layer,
                &native,
                attends,
            );
        }
        if level + 1 < levels {
            let block = level * (LAYERS + 1) + LAYERS;
            let place = if attends { 2 } else { 1 };
            rows.push(Row::new(
                format!("up_blocks.{level}.upsamplers.0.conv"),
                format!("output_blocks.{block}.{place}.conv"),
            ));
        }
    }
    rows
}

fn layer_rows(rows: &mut Vec<Row>, block: &str, layer: usize, native: &str, attends: bool) {
    resnet_rows(
        rows,
        &format!("{block}.resnets.{layer}"),
        &format!("{native}.0"),
    );
    if attends {
        transformer_rows(
            rows,
            &format!("{block}.attentions.{layer}"),
            &format!("{native}.1"),
        );
    }
}

fn resnet_rows(rows: &mut Vec<Row>, ours: &str, native: &str) {
    let row = |(our_part, part): &(&str, &str)| {
        Row::new(format!("{ours}.{our_part}"), format!("{native}.{part}"))
    };
    let modules = RESNET.iter().filter(|(part, _)| !is_norm(part));
    rows.extend(modules.map(row));
}

/// A norm carries no adapter.
fn is_norm(module: &str) -> bool {
    module.contains("norm")
}

fn transformer_rows(rows: &mut Vec<Row>, ours: &str, native: &str) {
    let row = |part: &&str| Row::new(format!("{ours}.{part}"), format!("{native}.{part}"));
    rows.extend(TRANSFORMER.iter().map(row));
}

//! What the modules of each family are called in LoRA files.
//!
//! Sources: for sd3 the tables by which its single files are read; for flux1 Black Forest Labs' `flux/model.py`; for
//! sdxl and sd1 Stability's `openaimodel.py`, whose blocks are numbered through where diffusers counts levels. Which
//! name goes into which kind of file: kohya's `networks/lora*.py`, ComfyUI's `comfy/lora.py`, ai-toolkit's
//! `toolkit/lora_special.py`.

mod flux1;
mod unet;

use std::sync::LazyLock;

use super::sd3;
use crate::lora::formats::{Naming, Row, Spelling};

/// The namings of all families.
pub fn namings() -> &'static [Naming] {
    static NAMINGS: LazyLock<[Naming; 4]> =
        LazyLock::new(|| [sd3(), flux1::naming(), unet::sdxl(), unet::sd1()]);
    NAMINGS.as_slice()
}

/// Queries, keys and values in one linear.
const THIRDS: &[usize] = &[1, 1, 1];

fn sd3() -> Naming {
    let row = |(ours, native, third): (String, String, Option<usize>)| {
        let row = Row::new(ours, native);
        match third {
            Some(third) => row.part(third, THIRDS),
            None => row,
        }
    };
    let in_block = sd3::BLOCK.iter().map(|(ours, native, third)| {
        let ours = format!("transformer_blocks.{{}}.{ours}");
        (ours, format!("joint_blocks.{{}}.{native}"), *third)
    });
    let outer = sd3::OUTER
        .iter()
        .map(|(ours, native)| ((*ours).to_owned(), (*native).to_owned(), None));
    let is_norm = |name: &str| {
        let last = name.rsplit('.').next().unwrap_or(name);
        last.starts_with("norm_")
    };
    let has_halves =
        |name: &str| name.ends_with("norm1_context.linear") || name == "norm_out.linear";
    let rows = in_block
        .chain(outer)
        .filter(|(ours, ..)| !is_norm(ours))
        .map(|names| {
            let swapped = has_halves(&names.0);
            if swapped {
                row(names).swapped()
            } else {
                row(names)
            }
        });
    Naming {
        family: "sd3",
        component: "transformer",
        kohya: Spelling::Native,
        network_module: "networks.lora_sd3",
        implementation: "https://github.com/Stability-AI/sd3.5",
        base_version: None,
        metadata_marks: &["stable-diffusion-3"],
        widths: &[(".attn.to_q", 1536), (".attn.to_q", 2432)],
        ai_toolkit_as_kohya: false,
        ai_toolkit_modules: &["transformer_blocks."],
        rows: rows.collect(),
    }
}

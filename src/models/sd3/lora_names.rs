//! SD3: the tables by which its single files are read.

use super::{BLOCK, OUTER};
use crate::lora::formats::{AiToolkitNaming, Naming, Row, Spelling};
use crate::models::lora_names::THIRDS;

pub(super) fn naming() -> Naming {
    let row = |(ours, native, third): (String, String, Option<usize>)| {
        let row = Row::new(ours, native);
        match third {
            Some(third) => row.part(third, THIRDS),
            None => row,
        }
    };
    let in_block = BLOCK.iter().map(|(ours, native, third)| {
        let ours = format!("transformer_blocks.{{}}.{ours}");
        (ours, format!("joint_blocks.{{}}.{native}"), *third)
    });
    let outer = OUTER
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
        metadata_marks: &["stable-diffusion-3", "sd3"],
        widths: &[(".attn.to_q", 1536), (".attn.to_q", 2432)],
        only_where_stated: false,
        ai_toolkit: AiToolkitNaming::Diffusers,
        ai_toolkit_modules: &["transformer_blocks."],
        rows: rows.collect(),
    }
}

//! Wan: the tables by which its single files are read.

use super::DENOISER;
use super::names::{BLOCK, OUTER};
use crate::lora::formats::{AiToolkitNaming, Naming, Row, Spelling};

pub(super) fn naming() -> Naming {
    let in_block = BLOCK.iter().map(|(ours, native)| {
        Row::new(
            format!("blocks.{{}}.{ours}"),
            format!("blocks.{{}}.{native}"),
        )
    });
    let outer = OUTER.iter().map(|(ours, native)| Row::new(*ours, *native));
    Naming {
        family: "wan",
        component: DENOISER,
        kohya: Spelling::Native,
        // musubi-tuner's.
        network_module: "networks.lora_wan",
        implementation: "https://github.com/Wan-Video/Wan2.1",
        base_version: Some("wan"),
        metadata_marks: &["wan"],
        widths: &[(".attn1.to_q", 1536), (".attn1.to_q", 5120)],
        only_where_stated: false,
        ai_toolkit: AiToolkitNaming::Native,
        ai_toolkit_modules: &["blocks."],
        rows: in_block.chain(outer).collect(),
    }
}

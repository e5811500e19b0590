//! Z-Image: trainers name its modules as diffusers does, which is how its authors do; ComfyUI, and diffusion-pipe with it, fuses queries,
//! keys and values.

use super::DENOISER;
use super::names::{BLOCKS, LINEARS, MODULATION, OUTER};
use crate::lora::formats::{AiToolkitNaming, Naming, Row, Spelling};
use crate::models::lora_names::THIRDS;

pub(super) fn naming() -> Naming {
    let mut rows = Vec::new();
    for (blocks, modulated) in BLOCKS {
        let row = |ours: &str, comfy: &str| {
            Row::new(
                format!("{blocks}.{{}}.{ours}"),
                format!("{blocks}.{{}}.{comfy}"),
            )
        };
        rows.extend(LINEARS.iter().map(|(ours, comfy, third)| {
            let row = row(ours, comfy);
            match third {
                Some(index) => row.part(*index, THIRDS),
                None => row,
            }
        }));
        if *modulated {
            rows.push(row(MODULATION, MODULATION));
        }
    }
    rows.extend(OUTER.iter().map(|(ours, comfy)| Row::new(*ours, *comfy)));
    Naming {
        family: "zimage",
        component: DENOISER,
        // musubi-tuner has diffusers' names, of which ComfyUI passes over queries, keys, values and outputs: this is what its
        // convert_z_image_lora_to_comfy.py makes of them.
        kohya: Spelling::Native,
        network_module: "networks.lora_zimage",
        implementation: "https://github.com/Tongyi-MAI/Z-Image",
        base_version: Some("zimage"),
        metadata_marks: &["z-image", "zimage", "z_image"],
        widths: &[(".attention.to_q", 3840)],
        only_where_stated: false,
        ai_toolkit: AiToolkitNaming::DiffusersBehindComfys,
        // It adapts linears in `layers` alone.
        ai_toolkit_modules: &["layers."],
        rows,
    }
}

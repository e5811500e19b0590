//! FLUX.2: double blocks fuse queries, keys and values of each stream in the authors' code. What single blocks fuse is one module in
//! diffusers too.

use super::DENOISER;
use super::names::{DOUBLE, OUTER, SINGLE};
use crate::lora::formats::{AiToolkitNaming, Naming, Spelling};
use crate::models::flux1::lora_names::rows;

pub(super) fn naming() -> Naming {
    Naming {
        family: "flux2",
        component: DENOISER,
        kohya: Spelling::Native,
        network_module: "networks.lora_flux_2",
        implementation: "https://github.com/black-forest-labs/flux2",
        base_version: None,
        metadata_marks: &["flux-2", "flux2", "flux.2", "flux_2"],
        widths: &[
            (".attn.to_q", 3072),
            (".attn.to_q", 4096),
            (".attn.to_out", 12288),
            (".attn.to_out", 16384),
            (".linear_out", 9216),
            (".linear_out", 12288),
        ],
        // The queries, keys and values of double blocks alone are named and, in the smaller model, as wide as FLUX.1's.
        only_where_stated: true,
        ai_toolkit: AiToolkitNaming::Native,
        ai_toolkit_modules: &["transformer_blocks."],
        rows: rows(DOUBLE, (SINGLE, &[]), OUTER),
    }
}

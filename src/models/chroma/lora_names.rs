//! Chroma: FLUX.1's modules without those that made its modulations. The approximator carries no adapter.

use super::DENOISER;
use crate::lora::formats::{AiToolkitNaming, Naming};
use crate::models::flux1::lora_names;

/// FLUX.1's modules that Chroma does not have.
fn is_flux1s_alone(ours: &str) -> bool {
    let modulations = [
        ".norm1.linear",
        ".norm1_context.linear",
        ".norm.linear",
        "norm_out.linear",
    ];
    ours.starts_with("time_text_embed.") || modulations.iter().any(|end| ours.ends_with(end))
}

pub(super) fn naming() -> Naming {
    let mut naming = lora_names::naming();
    naming.rows.retain(|row| !is_flux1s_alone(row.ours()));
    Naming {
        family: "chroma",
        component: DENOISER,
        implementation: "https://huggingface.co/lodestones/Chroma",
        base_version: Some("chroma"),
        metadata_marks: &["chroma"],
        only_where_stated: true,
        // Its own code has the author's names.
        ai_toolkit: AiToolkitNaming::Native,
        ai_toolkit_modules: &["transformer_blocks."],
        ..naming
    }
}

//! What the modules of each family are called in LoRA files: a table in each family's folder.
//!
//! Sources: for zimage ComfyUI's `z_image_to_diffusers`; for sd3 the tables by which its single files are read; for flux1 Black Forest Labs' `flux/model.py`; for
//! sdxl and sd1 Stability's `openaimodel.py`, whose blocks are numbered through where diffusers counts levels. Which
//! name goes into which kind of file: kohya's `networks/lora*.py`, ComfyUI's `comfy/lora.py`, ai-toolkit's
//! `toolkit/lora_special.py`.

use std::sync::LazyLock;

use super::families;
use crate::lora::formats::Naming;

/// The namings of all families.
pub fn namings() -> &'static [Naming] {
    static NAMINGS: LazyLock<Vec<Naming>> =
        LazyLock::new(|| families().map(|family| (family.naming)()).collect());
    &NAMINGS
}

/// Queries, keys and values in one linear.
pub(super) const THIRDS: &[usize] = &[1, 1, 1];

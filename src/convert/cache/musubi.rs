//! The cache of musubi-tuner for FLUX.1 Kontext [dev]: `dataset/cache_io.py` `save_text_encoder_output_cache_flux_kontext`.

use super::CacheError;
use super::values::{Source, Text};
use crate::foreign::cache::safetensors;
use crate::text::spec::Dtype;

pub(super) fn text(
    source: &Source<'_>,
    text: &Text<'_>,
) -> Result<Result<Vec<u8>, String>, CacheError> {
    let numbers = match source.dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
    };
    let tensors = [
        source.write(&format!("t5_vec_{numbers}"), &text.made.context)?,
        source.write(&format!("clip_l_pooler_{numbers}"), &text.made.pooled)?,
    ];
    let (_, architecture) = source.names.musubi.unwrap_or_default();
    let metadata = [
        ("architecture", architecture.to_owned()),
        ("caption1", text.caption.to_owned()),
        ("format_version", "1.0.1".to_owned()),
    ];
    Ok(safetensors(&tensors, &metadata))
}

//! The cache of musubi-tuner for FLUX.1 Kontext [dev]: `dataset/cache_io.py` `save_text_encoder_output_cache_flux_kontext`,
//! `save_latent_cache_flux_kontext` and `save_latent_cache_common`.

use super::CacheError;
use super::values::{Source, Text};
use crate::dataset::Item;
use crate::foreign::cache::safetensors;
use crate::text::spec::Dtype;

type Made = Result<Result<Vec<u8>, String>, CacheError>;

/// Of the layout of its files.
const FORMAT_VERSION: &str = "1.0.1";

pub(super) fn text(source: &Source<'_>, text: &Text<'_>) -> Made {
    let numbers = numbers(source);
    let tensors = [
        source.write(&format!("t5_vec_{numbers}"), &text.made.context)?,
        source.write(&format!("clip_l_pooler_{numbers}"), &text.made.pooled)?,
    ];
    let metadata = [
        ("architecture", architecture(source)),
        ("caption1", text.caption.to_owned()),
        ("format_version", FORMAT_VERSION.to_owned()),
    ];
    Ok(safetensors(&tensors, &metadata))
}

/// A picture's latents and those of its reference, which the tuner calls control, as the denoiser takes them.
pub(super) fn latents(source: &Source<'_>, item: &Item) -> Made {
    let view = item.views[0];
    let Some((reference, beside)) = item.reference_beside(view) else {
        return Ok(Err("it has no reference picture".to_owned()));
    };
    let target = source.scaled(item, view)?;
    let control = source.cache.reader.reference(reference, beside)?;
    let control = source.cache.geometry.normalize(&control)?;
    let mut tensors = Vec::new();
    for (name, latents) in [("latents", target), ("latents_control", control)] {
        let (_, height, width) = latents.dims3()?;
        let name = format!("{name}_1x{height}x{width}_{}", numbers(source));
        tensors.push(source.write(&name, &latents)?);
    }
    let metadata = [
        ("architecture", architecture(source)),
        ("width", item.size.width.to_string()),
        ("height", item.size.height.to_string()),
        ("format_version", FORMAT_VERSION.to_owned()),
    ];
    Ok(safetensors(&tensors, &metadata))
}

fn architecture(source: &Source<'_>) -> String {
    source.names.musubi.unwrap_or_default().1.to_owned()
}

/// The end of a tensor's name.
fn numbers(source: &Source<'_>) -> &'static str {
    match source.dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
    }
}

//! The cache of musubi-tuner: `dataset/cache_io.py` `save_text_encoder_output_cache_{flux_kontext,flux_2,wan,z_image}`,
//! `save_latent_cache_{flux_kontext,flux_2,wan,z_image}` and `save_latent_cache_common`.

use candle_core::Tensor;

use super::CacheError;
use super::values::{Source, Text};
use crate::dataset::Item;
use crate::foreign::cache::{ToWrite, safetensors};
use crate::models::cache_names::{MusubiLatents, MusubiNames, MusubiTexts};
use crate::text::spec::Dtype;

type Made = Result<Result<Vec<u8>, String>, CacheError>;

/// Of the layout of its files.
const FORMAT_VERSION: &str = "1.0.1";

pub(super) fn text(source: &Source<'_>, text: &Text<'_>, names: &MusubiNames) -> Made {
    let numbers = numbers(source);
    let context = &text.made.context;
    let tensors = match names.texts {
        MusubiTexts::T5AndPooled => vec![
            source.write(&format!("t5_vec_{numbers}"), context)?,
            source.write(&format!("clip_l_pooler_{numbers}"), &text.made.pooled)?,
        ],
        MusubiTexts::Rows(name) => vec![source.write(&format!("{name}_{numbers}"), context)?],
        MusubiTexts::TrueRows(name) => match text.true_rows()? {
            Ok(rows) => vec![source.write(&format!("{name}_{numbers}"), &rows)?],
            Err(why) => return Ok(Err(why)),
        },
    };
    let metadata = [
        ("architecture", architecture(source, names)),
        ("caption1", text.caption.to_owned()),
        ("format_version", FORMAT_VERSION.to_owned()),
    ];
    Ok(safetensors(&tensors, &metadata))
}

/// A picture's latents, or those of a clip's window, as the tuner reads them; and those of a reference, which it calls control.
pub(super) fn latents(source: &Source<'_>, item: &Item, names: &MusubiNames) -> Made {
    let view = item.views[0];
    let tensors = match names.latents {
        MusubiLatents::Pairs => match pair(source, item)? {
            Some(pair) => pair,
            None => return Ok(Err("it has no reference picture".to_owned())),
        },
        MusubiLatents::Patches => vec![named(source, "latents", &source.joined(item, view)?)?],
        MusubiLatents::Pictures => {
            let latents = source.as_stored(item, view, names.statistics)?;
            vec![named(source, "latents_1x", &latents)?]
        }
        MusubiLatents::Clips => vec![named(source, "latents", &source.scaled(item, view)?)?],
    };
    let mut metadata = vec![
        ("architecture", architecture(source, names)),
        ("width", item.size.width.to_string()),
        ("height", item.size.height.to_string()),
        ("format_version", FORMAT_VERSION.to_owned()),
    ];
    if view.window.is_some() {
        metadata.push(("frame_count", view.frames().to_string()));
    }
    Ok(safetensors(&tensors, &metadata))
}

fn pair(source: &Source<'_>, item: &Item) -> Result<Option<Vec<ToWrite>>, CacheError> {
    let view = item.views[0];
    let Some((reference, beside)) = item.reference_beside(view) else {
        return Ok(None);
    };
    let target = source.scaled(item, view)?;
    let control = source.cache.reader.reference(reference, beside)?;
    let control = source.cache.geometry.normalize(&control)?;
    Ok(Some(vec![
        named(source, "latents_1x", &target)?,
        named(source, "latents_control_1x", &control)?,
    ]))
}

/// A tensor under a name with its axes behind the channels, of which `latents_1x` has the first already.
fn named(source: &Source<'_>, name: &str, latents: &Tensor) -> candle_core::Result<ToWrite> {
    let axes = latents.dims()[1..].iter().map(usize::to_string);
    let axes = axes.collect::<Vec<_>>().join("x");
    let between = if name.ends_with('x') { "" } else { "_" };
    let name = format!("{name}{between}{axes}_{}", numbers(source));
    source.write(&name, latents)
}

fn architecture(source: &Source<'_>, names: &MusubiNames) -> String {
    names.architecture(source.flavor).1.to_owned()
}

/// The end of a tensor's name.
fn numbers(source: &Source<'_>) -> &'static str {
    match source.dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
    }
}

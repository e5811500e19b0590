//! The cache of SimpleTuner: `_format_text_embedding` of `models/{sd3,flux,sdxl,chroma,wan,flux2,z_image}/model.py`,
//! `caching/text_embeds.py` `create_hash`, `caching/vae.py` `generate_vae_cache_filename` and `process_video_latents`; latents as
//! `models/foundation_mixins.py` and `models/flux2/model.py` scale them.

use candle_core::Tensor;

use super::CacheError;
use super::values::{Source, Text};
use crate::dataset::Item;
use crate::foreign::cache::{ToWrite, torch_dict, torch_tensor};
use crate::models::cache_names::{SimpleTunerNames, SimpleTunerTexts};

type Made = Result<Result<Vec<u8>, String>, CacheError>;

pub(super) fn text(source: &Source<'_>, text: &Text<'_>, names: &SimpleTunerNames) -> Made {
    let context = match names.tensors {
        SimpleTunerTexts::Masked(_, rows) => match text.filled_up(rows)? {
            Ok(context) => context,
            Err(why) => return Ok(Err(why)),
        },
        _ => text.made.context.clone(),
    };
    let rows = context.dim(0)?;
    let mask = |name: &str, mask: &[i64]| ToWrite::whole(name, vec![1, rows], mask);
    let mut tensors = vec![source.write("prompt_embeds", &context.unsqueeze(0)?)?];
    match names.tensors {
        SimpleTunerTexts::Pooled | SimpleTunerTexts::PooledAndMask => {
            tensors.push(source.write("pooled_prompt_embeds", &text.made.pooled)?);
        }
        SimpleTunerTexts::Alone => {}
        SimpleTunerTexts::MaskAside => {
            let slot = text.outputs.keys().next().map_or("", String::as_str);
            tensors.push(mask("attention_mask", &text.mask(slot, rows)));
        }
        SimpleTunerTexts::Masked(name, _) => tensors.push(mask(name, &text.seen(rows))),
    }
    if names.tensors == SimpleTunerTexts::PooledAndMask {
        let ids = Tensor::zeros((1, rows, 3), context.dtype(), context.device())?;
        tensors.push(source.write("time_ids", &ids)?);
        tensors.push(mask("attention_masks", &text.mask("t5", rows)));
    }
    Ok(torch_dict(&tensors))
}

pub(super) fn latents(source: &Source<'_>, item: &Item) -> Made {
    let latents = source.joined(item, item.views[0])?;
    Ok(torch_tensor(&source.write("latents", &latents)?))
}

//! The cache of SimpleTuner: `_format_text_embedding` of `models/{sd3,flux,sdxl}/model.py`, `caching/text_embeds.py` `create_hash`,
//! `caching/vae.py` `generate_vae_cache_filename`; latents as `models/foundation_mixins.py` scales them.

use candle_core::Tensor;

use super::CacheError;
use super::values::{Source, Text};
use crate::dataset::Item;
use crate::foreign::cache::{ToWrite, torch_dict, torch_tensor};

type Made = Result<Result<Vec<u8>, String>, CacheError>;

pub(super) fn text(source: &Source<'_>, text: &Text<'_>) -> Made {
    let context = &text.made.context;
    let mut tensors = vec![
        source.write("prompt_embeds", &context.unsqueeze(0)?)?,
        source.write("pooled_prompt_embeds", &text.made.pooled)?,
    ];
    if source.names.simpletuner.masks {
        let rows = context.dim(0)?;
        let ids = Tensor::zeros((1, rows, 3), context.dtype(), context.device())?;
        tensors.push(source.write("time_ids", &ids)?);
        let mask = text.mask("t5", rows);
        tensors.push(ToWrite::whole("attention_masks", vec![1, rows], &mask));
    }
    Ok(torch_dict(&tensors))
}

pub(super) fn latents(source: &Source<'_>, item: &Item) -> Made {
    let latents = source.scaled(item, item.views[0])?;
    Ok(torch_tensor(&source.write("latents", &latents)?))
}

//! What exactly the denoiser receives for a caption, from the code that trains.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::{Error, shapes};
use crate::base_model::BaseModel;
use crate::cache::{Source, tensors};
use crate::encode::{EncodeOptions, encode_captions, tokenize};
use crate::monitor::Monitor;
use crate::recipe::rules::DenoiserMask;
use crate::store::Store;

/// Writes what the denoiser receives for a caption to `out`, encoding the caption first if the store lacks it.
///
/// Tensors: `context` [1, tokens, width], `pooled` [1, width]; of each encoder `SLOT.hidden` [tokens, width],
/// `SLOT.pooled` [width] (what the store holds, as f32) and `SLOT.token_ids` [tokens] (I64, pads included).
/// Where the denoiser masks pads, `mask` [1, tokens] has 1 for rows that it sees. Metadata: caption, recipe, mask (`none`
/// where the denoiser gets none), each encoder's spec and token count.
///
/// # Errors
/// If the caption cannot be encoded, or the file cannot be written.
pub fn conditioning(
    base: &BaseModel,
    store: &Store,
    caption: &str,
    options: &EncodeOptions,
    out: &Path,
    monitor: &dyn Monitor,
) -> Result<BTreeMap<String, Vec<usize>>, Error> {
    encode_captions(base, store, &[caption.to_owned()], options, monitor)?;
    let source = Source::open(base, store)?;
    let outputs = source.outputs(caption)?;
    let made = source.assemble(&outputs)?;
    let mut made_of = BTreeMap::from([
        ("context".to_owned(), made.context.unsqueeze(0)?),
        ("pooled".to_owned(), made.pooled.unsqueeze(0)?),
    ]);
    let mask = match base.recipe.assembly().mask {
        DenoiserMask::None => "none",
        DenoiserMask::Pads => "pads",
    };
    if let Some(count) = made.token_count {
        let tokens = made.context.dims()[0];
        let seen: Vec<u8> = (0..tokens).map(|row| u8::from(row < count)).collect();
        made_of.insert(
            "mask".to_owned(),
            Tensor::from_vec(seen, (1, tokens), &Device::Cpu)?,
        );
    }
    let mut facts = BTreeMap::from([
        ("caption".to_owned(), caption.to_owned()),
        ("mask".to_owned(), mask.to_owned()),
        ("recipe".to_owned(), base.recipe.name().to_string()),
        (
            "recipe_fingerprint".to_owned(),
            base.recipe.fingerprint().to_string(),
        ),
    ]);
    for encoder in &base.encoders {
        let slot = &encoder.slot;
        let tokens = tokenize(encoder, caption)?;
        let ids: Vec<i64> = tokens.ids.iter().map(|&id| i64::from(id)).collect();
        made_of.insert(
            format!("{slot}.token_ids"),
            Tensor::from_vec(ids, tokens.ids.len(), &Device::Cpu)?,
        );
        facts.insert(format!("{slot}.spec"), encoder.fingerprint.to_string());
        facts.insert(format!("{slot}.token_count"), tokens.count.to_string());
        if let Some(output) = outputs.get(slot) {
            let parts = [("hidden", &output.hidden), ("pooled", &output.pooled)];
            for (name, tensor) in parts
                .into_iter()
                .filter_map(|(n, t)| t.as_ref().map(|t| (n, t)))
            {
                made_of.insert(format!("{slot}.{name}"), tensor.clone());
            }
        }
    }
    tensors::write_safetensors(out, &made_of, &facts)?;
    Ok(shapes(&made_of))
}

//! What exactly the denoiser receives for a caption, from the code that trains.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::{Error, shapes};
use crate::base_model::{BaseModel, TextEncoderPart};
use crate::cache::{Conditioning, EncoderOutput, ModelCache, tensors};
use crate::encode::{EncodeOptions, encode_captions, tell_of_no_run, tokenize};
use crate::monitor::Monitor;
use crate::shown;
use crate::store::Store;
use crate::text::Tokens;

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
    // Through the store, as training reads it: what is shown is what is trained on, its precision included.
    let stats = encode_captions(base, store, &[caption.to_owned()], options, monitor)?;
    tell_of_no_run(&stats, monitor);
    let source = ModelCache::open_of(base, store, std::iter::once(caption), &[])?;
    let outputs = source.outputs(caption)?;
    let mut file = File::default();
    file.add_conditioning(&source.assemble(&outputs)?)?;
    for encoder in &base.encoders {
        let tokens = tokenize(encoder, caption)?;
        file.add_encoder(encoder, &tokens, outputs.get(&encoder.slot))?;
    }
    let mask = shown::word(&base.recipe.assembly().mask);
    file.add_fact("caption", caption);
    file.add_fact("mask", mask);
    file.add_fact("recipe", base.recipe.name());
    file.add_fact("recipe_fingerprint", base.recipe.fingerprint());
    tensors::write_safetensors(out, &file.tensors, &file.facts)?;
    Ok(shapes(&file.tensors))
}

/// The file to write: tensors, and metadata by key.
#[derive(Default)]
struct File {
    tensors: BTreeMap<String, Tensor>,
    facts: BTreeMap<String, String>,
}

impl File {
    fn add_tensor(&mut self, name: &str, tensor: Tensor) {
        self.tensors.insert(name.to_owned(), tensor);
    }

    fn add_fact(&mut self, name: &str, fact: impl ToString) {
        self.facts.insert(name.to_owned(), fact.to_string());
    }

    /// What the denoiser receives, as a batch of one.
    fn add_conditioning(&mut self, made: &Conditioning) -> candle_core::Result<()> {
        self.add_tensor("context", made.context.unsqueeze(0)?);
        self.add_tensor("pooled", made.pooled.unsqueeze(0)?);
        if let Some(count) = made.token_count {
            let tokens = made.context.dim(0)?;
            let seen: Vec<u8> = (0..tokens).map(|row| u8::from(row < count)).collect();
            self.add_tensor("mask", Tensor::from_vec(seen, (1, tokens), &Device::Cpu)?);
        }
        Ok(())
    }

    /// What an encoder was given and made of it.
    fn add_encoder(
        &mut self,
        encoder: &TextEncoderPart,
        tokens: &Tokens,
        output: Option<&EncoderOutput>,
    ) -> candle_core::Result<()> {
        let slot = &encoder.slot;
        // I64: the type of torch's token ids.
        let ids: Vec<i64> = tokens.ids.iter().map(|&id| i64::from(id)).collect();
        let ids = Tensor::from_vec(ids, tokens.ids.len(), &Device::Cpu)?;
        self.add_tensor(&format!("{slot}.token_ids"), ids);
        self.add_fact(&format!("{slot}.spec"), encoder.fingerprint);
        self.add_fact(&format!("{slot}.token_count"), tokens.count);
        let (hidden, pooled) =
            output.map_or((None, None), |o| (o.hidden.clone(), o.pooled.clone()));
        for (name, tensor) in [("hidden", hidden), ("pooled", pooled)] {
            if let Some(tensor) = tensor {
                self.add_tensor(&format!("{slot}.{name}"), tensor);
            }
        }
        Ok(())
    }
}

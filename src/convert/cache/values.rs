//! The numbers that go into a cache, as the store and the recipe have them.

use candle_core::{Result, Tensor};

use super::{CacheOptions, CacheTarget};
use crate::base_model::BaseModel;
use crate::cache::{self, Conditioning, EncoderOutputs, ModelCache, tensors};
use crate::dataset::Item;
use crate::foreign::cache::{NumberType, ToWrite};
use crate::models::cache_names::CacheNames;
use crate::recipe::latents::View;
use crate::recipe::rules::DenoiserMask;
use crate::text::spec::Dtype;

/// Where numbers come from, and how they are written.
pub(super) struct Source<'a> {
    pub(super) cache: ModelCache<'a>,
    pub(super) target: CacheTarget,
    pub(super) names: &'static CacheNames,
    pub(super) dtype: Dtype,
    /// Whether the denoiser masks pads.
    pub(super) masked: bool,
    /// Whether the store has the blank caption, which stands for one that is dropped.
    pub(super) has_blank: bool,
}

/// A caption's.
pub(super) struct Text<'a> {
    pub(super) caption: &'a str,
    pub(super) outputs: EncoderOutputs,
    pub(super) made: Conditioning,
}

impl<'a> Source<'a> {
    pub(super) fn new(
        (base, names): (&'a BaseModel, &'static CacheNames),
        cache: ModelCache<'a>,
        options: &CacheOptions<'_>,
    ) -> Self {
        Self {
            has_blank: cache.outputs("").is_ok(),
            cache,
            target: options.target,
            names,
            dtype: options.dtype,
            masked: base.recipe.assembly().mask == DenoiserMask::Pads,
        }
    }

    pub(super) fn text<'t>(&self, caption: &'t str) -> std::result::Result<Text<'t>, cache::Error> {
        let outputs = self.cache.outputs(caption)?;
        let made = self.cache.assemble(&outputs)?;
        Ok(Text {
            caption,
            outputs,
            made,
        })
    }

    /// The mean of a view's latents, as the VAE gives them.
    pub(super) fn mean(
        &self,
        item: &Item,
        view: View,
    ) -> std::result::Result<Tensor, cache::Error> {
        Ok(self.cache.reader.moments(item, view)?.mean)
    }

    /// The same as the denoiser takes them.
    pub(super) fn scaled(
        &self,
        item: &Item,
        view: View,
    ) -> std::result::Result<Tensor, cache::Error> {
        Ok(self.cache.geometry.normalize(&self.mean(item, view)?)?)
    }

    /// `tensor` as the options say that numbers are stored.
    pub(super) fn write(&self, name: &str, tensor: &Tensor) -> Result<ToWrite> {
        write(name, tensor, self.dtype)
    }
}

impl Text<'_> {
    /// 1 for each of `rows` rows that is no pad of this encoder.
    pub(super) fn mask(&self, slot: &str, rows: usize) -> Vec<i64> {
        let count = self.outputs.get(slot).map_or(0, |o| o.token_count);
        (0..rows).map(|row| i64::from(row < count)).collect()
    }

    /// The shape of an encoder's sequence, (rows, width); none where it is absent.
    pub(super) fn hidden(&self, slot: &str) -> Option<(usize, usize)> {
        let hidden = self.outputs.get(slot)?.hidden.as_ref()?;
        hidden.dims2().ok()
    }
}

pub(super) fn write(name: &str, tensor: &Tensor, dtype: Dtype) -> Result<ToWrite> {
    let stored = match dtype {
        Dtype::F32 => NumberType::F32,
        Dtype::F16 => NumberType::F16,
        Dtype::Bf16 => NumberType::Bf16,
    };
    let made = tensors::to_bytes(tensor, dtype)?;
    Ok(ToWrite::new(name, stored, made.shape, made.bytes))
}

//! The numbers that go into a cache, as the store and the recipe have them.

use candle_core::{Result, Tensor};

use super::{CacheOptions, Form};
use crate::base_model::BaseModel;
use crate::cache::{self, Conditioning, EncoderOutputs, ModelCache, tensors};
use crate::dataset::Item;
use crate::foreign::cache::{NumberType, ToWrite};
use crate::recipe::latents::{LatentStatistics, View};
use crate::recipe::rules::DenoiserMask;
use crate::text::spec::Dtype;

/// Where numbers come from, and how they are written.
pub(super) struct Source<'a> {
    pub(super) cache: ModelCache<'a>,
    pub(super) form: Form,
    /// The base model's flavor.
    pub(super) flavor: &'a str,
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
        (base, form): (&'a BaseModel, Form),
        cache: ModelCache<'a>,
        options: &CacheOptions<'_>,
    ) -> Self {
        Self {
            has_blank: cache.outputs("").is_ok(),
            cache,
            form,
            flavor: &base.recipe.name().flavor,
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

    /// The same, joined to patches where the trainers store those.
    pub(super) fn joined(
        &self,
        item: &Item,
        view: View,
    ) -> std::result::Result<Tensor, cache::Error> {
        Ok(self.cache.geometry.joined(&self.scaled(item, view)?)?)
    }

    /// So that what a trainer makes of them by these (scale, shift), is what the denoiser takes.
    pub(super) fn as_stored(
        &self,
        item: &Item,
        view: View,
        statistics: Option<(f64, f64)>,
    ) -> std::result::Result<Tensor, cache::Error> {
        let Some((scale, shift)) = statistics else {
            return self.scaled(item, view);
        };
        let own = LatentStatistics::Shared { scale, shift };
        if self.cache.geometry.statistics == own {
            return self.mean(item, view);
        }
        // A VAE with factors of its own, which the trainer does not ask for.
        Ok(self.scaled(item, view)?.affine(1.0 / scale, shift)?)
    }

    /// `tensor` as the options say that numbers are stored.
    pub(super) fn write(&self, name: &str, tensor: &Tensor) -> Result<ToWrite> {
        write(name, tensor, self.dtype)
    }
}

impl Text<'_> {
    /// The context's rows of true tokens alone, where all others are zeros.
    pub(super) fn true_rows(&self) -> Result<std::result::Result<Tensor, String>> {
        let counts = self.outputs.values().map(|output| output.token_count);
        let rows = self.made.context.dim(0)?;
        let count = counts.max().unwrap_or(0).min(rows);
        let rest = self.made.context.narrow(0, count, rows - count)?;
        if rest.abs()?.sum_all()?.to_scalar::<f32>()? != 0.0 {
            return Ok(Err(format!(
                "{} rows of pads that are no zeros follow its true tokens, and the file has rows of true tokens alone",
                rows - count
            )));
        }
        Ok(Ok(self.made.context.narrow(0, 0, count)?))
    }

    /// The context with rows of zeros behind it, which the denoiser does not see, up to `rows`.
    pub(super) fn filled_up(&self, rows: usize) -> Result<std::result::Result<Tensor, String>> {
        let context = &self.made.context;
        let (own, width) = context.dims2()?;
        let Some(missing) = rows.checked_sub(own) else {
            return Ok(Err(format!(
                "it has {own} rows, and the trainer's cache has {rows}: shorten the caption, or `max_tokens`"
            )));
        };
        let zeros = Tensor::zeros((missing, width), context.dtype(), context.device())?;
        Ok(Ok(Tensor::cat(&[context, &zeros], 0)?))
    }

    /// 1 for each of `rows` rows that the denoiser sees.
    pub(super) fn seen(&self, rows: usize) -> Vec<i64> {
        let seen = self.made.token_count.unwrap_or(rows);
        (0..rows).map(|row| i64::from(row < seen)).collect()
    }

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

pub(in crate::convert) fn write(name: &str, tensor: &Tensor, dtype: Dtype) -> Result<ToWrite> {
    let stored = match dtype {
        Dtype::F32 => NumberType::F32,
        Dtype::F16 => NumberType::F16,
        Dtype::Bf16 => NumberType::Bf16,
    };
    let made = tensors::to_bytes(tensor, dtype)?;
    Ok(ToWrite::new(name, stored, made.shape, made.bytes))
}

//! What a micro-batch feeds the denoiser. [`draw`] gives latents from the stored posterior, noise and a noise level; [`condition`]
//! gives the caption's conditioning; [`denoiser_batches`] puts the two together, whatever conditioning they are given. Every
//! draw is keyed by (seed, stream, number of the micro-batch, place of the sample in it).
//!
//! Samples of one micro-batch may have contexts of different lengths (a recipe without a fixed T5 length); those
//! of one length make a [`DenoiserBatch`]. The loss of a micro-batch is the mean over its samples, so each of its batches counts by
//! its number of samples.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::{Error, VALIDATION_SIGMAS};
use crate::base_model::BaseModel;
use crate::cache::{Conditioning, EncoderOutputs, ModelCache, StoredLatents, batch, drop_caption};
use crate::dataset::Item;
use crate::diffusion::{Level, LossWeighting, Process, TimestepSpec, add_noise};
use crate::models::ConditioningTensors;
use crate::recipe::Recipe;
use crate::recipe::latents::View;
use crate::recipe::rules::Dropout;
use crate::rng::{Rng, Stream};
use crate::vae::LatentGeometry;

/// What the draws depend on, beside the pictures and captions.
#[derive(Clone)]
pub struct DrawOptions {
    /// The Experiment's seed.
    pub seed: u64,
    /// What the denoiser predicts, and along which path of noise.
    pub process: Process,
    /// The density of a flow's noise levels.
    pub timesteps: TimestepSpec,
    /// How much each noise level counts.
    pub weighting: LossWeighting,
    /// The gamma of min-SNR weighting (Hang et al., arXiv:2303.09556), for DDPM only; without it `weighting` holds.
    pub min_snr_gamma: Option<f64>,
    /// The standard deviation of what is added to the noise, one number for each channel of a sample; 0 for none.
    pub noise_offset: f64,
    /// Whether the denoiser has an embedding of each picture's size and crop.
    pub size_conditioning: bool,
    /// The guidance embedding's input, where the denoiser has one.
    pub embedded_guidance: Option<f64>,
    /// Probability with which a caption is dropped.
    pub caption_dropout: f64,
}

impl DrawOptions {
    /// What a training of this Experiment draws by.
    pub fn of(base: &BaseModel) -> Self {
        let train = &base.settings.train;
        Self {
            seed: train.seed,
            timesteps: train.timesteps,
            process: base.settings.process,
            weighting: train.loss_weighting,
            min_snr_gamma: train.min_snr_gamma,
            noise_offset: train.noise_offset,
            size_conditioning: base.flavor.size_conditioning,
            embedded_guidance: train.guidance,
            caption_dropout: train.caption_dropout,
        }
    }

    /// The noise levels that [`VALIDATION_SIGMAS`] are of this model.
    pub fn validation_levels(&self) -> Vec<f64> {
        let levels = VALIDATION_SIGMAS.into_iter();
        levels.map(|share| self.timesteps.band.at(share)).collect()
    }

    /// The same with a loss that counts every noise level alike.
    #[must_use]
    pub fn unweighted(&self) -> Self {
        Self {
            weighting: LossWeighting::None,
            min_snr_gamma: None,
            ..self.clone()
        }
    }
}

/// Samples with contexts of one length, ready for the denoiser. All tensors are f32.
pub struct DenoiserBatch {
    /// The denoiser's latents, [batch, channels, height, width], or with frames before the height.
    pub latents: Tensor,
    /// Standard normals in the shape of `latents`, each channel of a sample shifted by the noise offset.
    pub noise: Tensor,
    /// The mixture the denoiser sees.
    pub noisy: Tensor,
    /// What it should predict.
    pub target: Tensor,
    /// [batch], in [0, 1]: the noise's factor in the mixture.
    pub sigmas: Tensor,
    /// [batch]: the denoiser's timestep input.
    pub timesteps: Tensor,
    /// [batch]: how much each sample counts.
    pub weights: Tensor,
    /// Context, pooled, and the inputs of other embeddings.
    pub conditioning: ConditioningTensors,
    /// The part of the micro-batch's samples that this batch has, in (0, 1]: the weight of its loss.
    pub share: f64,
}

/// A micro-batch's number and the place of a sample in it: what its draws are keyed by.
#[derive(Clone, Copy, Debug)]
pub struct DrawKey {
    /// The micro-batch, counted over the whole run.
    pub micro_batch: u64,
    /// The sample's place in the micro-batch, from 0.
    pub sample: u64,
}

impl DrawKey {
    fn rng(self, seed: u64, stream: Stream) -> Rng {
        Rng::new(seed, stream, self.micro_batch, self.sample)
    }
}

/// What is drawn for a sample: all but its conditioning.
#[derive(Clone)]
pub struct Drawn {
    /// As the denoiser sees them: normalized, `[channels, height, width]`, or with frames before the height.
    latents: Tensor,
    noise: Tensor,
    level: Level,
    /// Height and width of the picture, top and left of the crop, height and width of the crop, in px.
    time_ids: [f32; 6],
    /// What the denoiser is given beside them, normalized as they are, of a size of its own.
    reference: Option<Tensor>,
}

/// Reads and draws the micro-batch of this number, made of `items`.
///
/// # Errors
/// If an entry is missing or damaged, or shapes do not fit.
pub fn micro_batch(
    source: &ModelCache<'_>,
    items: &[&Item],
    micro_batch: u64,
    options: &DrawOptions,
) -> std::result::Result<Vec<DenoiserBatch>, Error> {
    let sample = |(sample, item): (usize, &&Item)| {
        let sample = sample as u64;
        let key = DrawKey {
            micro_batch,
            sample,
        };
        let drawn = draw(source, item, key, options)?;
        Ok((drawn, condition(source, item, key, options)?))
    };
    // Side by side: what is read for the first time is compared with its digest, which is most of the work.
    let samples: Vec<std::result::Result<_, Error>> =
        items.par_iter().enumerate().map(sample).collect();
    // Of several errors, that of the first sample.
    let samples = samples.into_iter().collect::<std::result::Result<_, _>>()?;
    Ok(denoiser_batches(samples, options)?)
}

/// The samples of a micro-batch by the length of their contexts, a batch for each length, the shortest first. Where pads are masked,
/// one batch for all.
///
/// # Errors
/// If shapes do not fit.
pub fn denoiser_batches(
    samples: Vec<(Drawn, Conditioning)>,
    options: &DrawOptions,
) -> Result<Vec<DenoiserBatch>> {
    let in_micro_batch = samples.len() as f64;
    // In order of length: in a hash map's order gradients would be summed differently from run to run.
    let mut by_length = BTreeMap::<usize, Vec<_>>::new();
    for (drawn, conditioning) in samples {
        let length = match conditioning.token_count {
            None => conditioning.context.dim(0)?,
            Some(_) => 0,
        };
        let group = by_length.entry(length).or_default();
        group.push((drawn, conditioning));
    }
    let groups = by_length.into_values();
    groups
        .map(|samples| denoiser_batch(&samples, in_micro_batch, options))
        .collect()
}

/// Latents, noise and a noise level for a picture.
///
/// # Errors
/// If its latents are missing or damaged.
pub fn draw(
    source: &ModelCache<'_>,
    item: &Item,
    key: DrawKey,
    options: &DrawOptions,
) -> std::result::Result<Drawn, Error> {
    let view = any_view(item, &mut key.rng(options.seed, Stream::Augment))?;
    let moments = source.reader.moments(item, view)?;
    Ok(Drawn {
        reference: reference(source, item, view)?,
        ..draw_from(&source.geometry, &moments, key, options)?
    })
}

/// The denoiser's latents of what it is given beside this view of a picture.
fn reference(
    source: &ModelCache<'_>,
    item: &Item,
    view: View,
) -> std::result::Result<Option<Tensor>, crate::cache::Error> {
    let Some((reference, view)) = item.reference_beside(view) else {
        return Ok(None);
    };
    let mean = source.reader.reference(reference, view)?;
    Ok(Some(source.geometry.normalize(&mean)?))
}

/// As [`draw`], for what the store has of the picture, without a reference.
fn draw_from(
    geometry: &LatentGeometry,
    moments: &StoredLatents,
    key: DrawKey,
    options: &DrawOptions,
) -> Result<Drawn> {
    let rng = |stream| key.rng(options.seed, stream);
    let mean = &moments.mean;
    let count = mean.elem_count();
    let normals = |stream| Tensor::from_vec(rng(stream).normals(count), mean.dims(), &Device::Cpu);
    let latents = match &moments.logvar {
        // A sample of the VAE's posterior, drawn anew at each step: the store keeps mean and log-variance, no frozen sample.
        Some(logvar) if geometry.draws_from_posterior() => {
            let spread = ((logvar * 0.5)?.exp()? * normals(Stream::Posterior)?)?;
            geometry.normalize(&(mean + spread)?)?
        }
        _ => geometry.normalize(mean)?,
    };
    let mut noise = normals(Stream::Noise)?;
    if options.noise_offset > 0.0 {
        // One number a channel, the same for all its pixels.
        let mut shape = vec![1; mean.rank()];
        shape[0] = mean.dim(0)?;
        let offsets = rng(Stream::NoiseOffset).normals(shape[0]);
        let offsets = Tensor::from_vec(offsets, shape, &Device::Cpu)?;
        noise = noise.broadcast_add(&(offsets * options.noise_offset)?)?;
    }
    let mut draws = rng(Stream::Timestep);
    let numbers = || (draws.uniform(), draws.normal());
    let tokens = geometry.tokens(geometry.extents(&latents)?);
    Ok(Drawn {
        level: options.process.draw(&options.timesteps, numbers, tokens)?,
        latents,
        noise,
        time_ids: moments.time_ids,
        reference: None,
    })
}

/// The conditioning of one of a picture's captions, which may be dropped.
///
/// # Errors
/// If an entry is missing or damaged, or shapes do not fit.
pub fn condition(
    source: &ModelCache<'_>,
    item: &Item,
    key: DrawKey,
    options: &DrawOptions,
) -> std::result::Result<Conditioning, Error> {
    let rng = |stream| key.rng(options.seed, stream);
    let outputs = source.outputs(any_caption(item, &mut rng(Stream::Caption)))?;
    // A stream of its own: turning dropout on must not change which caption is picked.
    let mut rng = rng(Stream::CaptionDropout);
    let dropped = dropped_slots(source.recipe, &outputs, options.caption_dropout, &mut rng);
    if dropped.is_empty() {
        return Ok(source.assemble(&outputs)?);
    }
    let empty = source.outputs("")?;
    let outputs = drop_caption(source.recipe, &outputs, Some(&empty), &dropped)?;
    Ok(source.assemble(&outputs)?)
}

/// One of a picture's views. Nothing is drawn where there is one.
fn any_view(item: &Item, rng: &mut Rng) -> std::result::Result<View, Error> {
    let number = match item.views.len() {
        0 | 1 => 0,
        count => rng.below(count as u64) as usize,
    };
    let view = item.views.get(number).copied();
    Ok(view.ok_or_else(|| crate::cache::Error::NoLatents {
        picture: item.picture.clone(),
    })?)
}

/// One of a picture's captions, empty if it has none. Nothing is drawn where there is one.
fn any_caption<'a>(item: &'a Item, rng: &mut Rng) -> &'a str {
    let number = match item.captions.len() {
        0 | 1 => 0,
        count => rng.below(count as u64) as usize,
    };
    item.captions.get(number).map_or("", String::as_str)
}

fn dropped_slots<'a>(
    recipe: &Recipe,
    outputs: &'a EncoderOutputs,
    probability: f64,
    rng: &mut Rng,
) -> BTreeSet<&'a str> {
    if probability <= 0.0 {
        return BTreeSet::new();
    }
    let slots = outputs.keys().map(String::as_str);
    match recipe.assembly().dropout {
        Dropout::Together if rng.uniform() < probability => slots.collect(),
        Dropout::Together => BTreeSet::new(),
        Dropout::EachEncoder => slots.filter(|_| rng.uniform() < probability).collect(),
    }
}

fn denoiser_batch(
    samples: &[(Drawn, Conditioning)],
    in_micro_batch: f64,
    options: &DrawOptions,
) -> Result<DenoiserBatch> {
    let drawn = || samples.iter().map(|(drawn, _)| drawn);
    let stack = |f: &dyn Fn(&Drawn) -> &Tensor| {
        Tensor::stack(&drawn().map(|s| f(s).clone()).collect::<Vec<_>>(), 0)
    };
    let numbers = |f: &dyn Fn(Level) -> f64| {
        let values: Vec<f32> = drawn().map(|s| f(s.level) as f32).collect();
        Tensor::from_vec(values, samples.len(), &Device::Cpu)
    };
    let weight = |level| {
        options
            .process
            .weight(level, options.weighting, options.min_snr_gamma)
    };
    let (latents, noise) = (stack(&|s| &s.latents)?, stack(&|s| &s.noise)?);
    let levels: Vec<Level> = drawn().map(|s| s.level).collect();
    let captions: Vec<&Conditioning> = samples.iter().map(|(_, caption)| caption).collect();
    let mut conditioning = batch(&captions)?;
    if let Some(guidance) = options.embedded_guidance {
        conditioning.guidance = Some(numbers(&|_| guidance)?);
    }
    conditioning.reference = references(samples)?;
    if options.size_conditioning {
        let ids: Vec<f32> = drawn().flat_map(|s| s.time_ids).collect();
        let ids = Tensor::from_vec(ids, (samples.len(), 6), &Device::Cpu)?;
        conditioning.time_ids = Some(ids);
    }
    Ok(DenoiserBatch {
        noisy: add_noise(&latents, &noise, &levels)?,
        target: options.process.target(&latents, &noise, &levels)?,
        sigmas: numbers(&|level| level.sigma)?,
        timesteps: numbers(&|level| level.timestep)?,
        weights: numbers(&weight)?,
        conditioning,
        share: samples.len() as f64 / in_micro_batch,
        latents,
        noise,
    })
}

/// The references of a batch, all of one size; none where no sample has one.
fn references(samples: &[(Drawn, Conditioning)]) -> Result<Option<Tensor>> {
    let all = samples
        .iter()
        .filter_map(|(drawn, _)| drawn.reference.clone());
    let all: Vec<Tensor> = all.collect();
    match all.len() {
        0 => Ok(None),
        some if some == samples.len() => Tensor::stack(&all, 0).map(Some),
        some => bail!("{some} of {} samples have a reference", samples.len()),
    }
}

/// A view of a picture as a measurement sees it, read once for any number of draws of noise.
pub struct StillPicture {
    latents: Tensor,
    time_ids: [f32; 6],
    reference: Option<Tensor>,
}

impl StillPicture {
    /// The mean of the posterior of `item`'s `view`.
    ///
    /// # Errors
    /// If its latents are missing or damaged.
    pub fn read(
        source: &ModelCache<'_>,
        item: &Item,
        view: View,
    ) -> std::result::Result<Self, crate::cache::Error> {
        let StoredLatents { mean, time_ids, .. } = source.reader.moments(item, view)?;
        Ok(Self {
            latents: source.geometry.normalize(&mean)?,
            time_ids,
            reference: reference(source, item, view)?,
        })
    }

    /// Mixed with noise from `rng` at `share`: 0 for none, 1 for noise only.
    ///
    /// # Errors
    /// If the noise cannot be held.
    pub fn draw(&self, share: f64, rng: &mut Rng, process: Process) -> Result<Drawn> {
        let latents = &self.latents;
        let noise = rng.normals(latents.elem_count());
        Ok(Drawn {
            latents: latents.clone(),
            noise: Tensor::from_vec(noise, latents.dims(), &Device::Cpu)?,
            level: process.level(share),
            time_ids: self.time_ids,
            reference: self.reference.clone(),
        })
    }
}

/// A held-out picture with its first caption, read once for all noise levels and draws.
pub struct HeldOut<'a> {
    source: &'a ModelCache<'a>,
    item: &'a Item,
    conditioning: Conditioning,
    views: RefCell<Vec<(View, StillPicture)>>,
}

impl<'a> HeldOut<'a> {
    /// Reads its caption's embeddings.
    ///
    /// # Errors
    /// If they are missing or damaged.
    pub fn read(
        source: &'a ModelCache<'a>,
        item: &'a Item,
    ) -> std::result::Result<Self, crate::cache::Error> {
        let first = item.captions.first().map_or("", String::as_str);
        Ok(Self {
            source,
            item,
            conditioning: source.conditioning(first)?,
            views: RefCell::default(),
        })
    }

    /// A batch of it, the `number`-th of the held-out pictures: the mean of its posterior, mixed with noise at `share` (0 for none, 1 for
    /// noise only) of the levels that the model is for, which is the `level`-th noise level. The noise depends on `number` and `level` alone, so losses of different steps
    /// compare; the loss is not weighted by the noise level.
    ///
    /// # Errors
    /// If its latents are missing or damaged.
    pub fn batch(
        &self,
        number: u64,
        (level, share): (u64, f64),
        options: &DrawOptions,
    ) -> std::result::Result<DenoiserBatch, Error> {
        // Not the Experiment's seed: validation losses of trainings with different seeds are comparable.
        let mut rng = Rng::new(0, Stream::Validation, level, number);
        let view = any_view(self.item, &mut rng)?;
        let mut views = self.views.borrow_mut();
        let place = match views.iter().position(|(known, _)| *known == view) {
            Some(place) => place,
            None => {
                views.push((view, StillPicture::read(self.source, self.item, view)?));
                views.len() - 1
            }
        };
        let share = options.timesteps.band.at(share);
        let drawn = views[place].1.draw(share, &mut rng, options.process)?;
        let sample = (drawn, self.conditioning.clone());
        Ok(denoiser_batch(&[sample], 1.0, &options.unweighted())?)
    }
}

#[cfg(test)]
#[path = "inputs_tests.rs"]
mod tests;

//! What a micro-batch feeds the denoiser. [`draw`] gives latents from the stored posterior, noise and a noise level; [`condition`]
//! gives the caption's conditioning; [`parts`] puts the two together, whatever conditioning they are given. Every
//! draw is keyed by (seed, stream, micro-batch, place in it).
//!
//! Samples of one micro-batch may have contexts of different lengths (a recipe without a fixed T5 length); those
//! of one length make a *part*, and the parts of a micro-batch share its loss by their number of samples.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Result, Tensor};

use super::Error;
use crate::cache::{Conditioning, EncoderOutputs, ModelCache, StoredLatents, batch, drop_caption};
use crate::dataset::Item;
use crate::diffusion::{Level, LossWeighting, Process, TimestepSpec, add_noise};
use crate::models::ConditioningTensors;
use crate::recipe::Recipe;
use crate::recipe::latents::View;
use crate::recipe::rules::Dropout;
use crate::rng::{Rng, Stream};
use crate::vae::LatentGeometry;

/// What the draws depend on, beside the pictures.
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
    /// The most that a noise level of DDPM may count, as a signal-to-noise ratio.
    pub min_snr_gamma: Option<f64>,
    /// The standard deviation by which the noise of each channel is moved.
    pub noise_offset: f64,
    /// Whether the denoiser has an embedding of each picture's size and crop.
    pub size_conditioning: bool,
    /// The guidance embedding's input, where the denoiser has one.
    pub embedded_guidance: Option<f64>,
    /// Probability with which a caption is dropped.
    pub caption_dropout: f64,
}

/// Samples with contexts of one length, ready for the denoiser. All tensors are f32.
pub struct Part {
    /// The denoiser's latents, [batch, channels, height, width], or with frames before the height.
    pub latents: Tensor,
    /// As many standard normals, moved by the noise offset.
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
    /// The share of the micro-batch that this part is.
    pub share: f64,
}

/// A micro-batch's number and the place of a sample in it: what its draws are keyed by.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The micro-batch, counted over the whole run.
    pub micro_batch: u64,
    /// From 0.
    pub sample: u64,
}

impl Place {
    fn rng(self, seed: u64, stream: Stream) -> Rng {
        Rng::new(seed, stream, self.micro_batch, self.sample)
    }
}

/// What is drawn for a sample: all but its conditioning.
pub struct Drawn {
    latents: Tensor,
    noise: Tensor,
    level: Level,
    time_ids: [f32; 6],
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
) -> std::result::Result<Vec<Part>, Error> {
    let mut samples = Vec::with_capacity(items.len());
    for (sample, item) in (0..).zip(items) {
        let place = Place {
            micro_batch,
            sample,
        };
        let drawn = draw(source, item, place, options)?;
        samples.push((drawn, condition(source, item, place, options)?));
    }
    Ok(parts(samples, options)?)
}

/// The samples of a micro-batch by the length of their contexts, each length a part.
///
/// # Errors
/// If shapes do not fit.
pub fn parts(samples: Vec<(Drawn, Conditioning)>, options: &DrawOptions) -> Result<Vec<Part>> {
    let all = samples.len() as f64;
    let mut by_length = BTreeMap::<usize, Vec<_>>::new();
    for (drawn, conditioning) in samples {
        let length = conditioning.context.dim(0)?;
        let same = by_length.entry(length).or_default();
        same.push((drawn, conditioning));
    }
    let parts = by_length.into_values();
    parts.map(|samples| part(&samples, all, options)).collect()
}

/// Latents, noise and a noise level for a picture.
///
/// # Errors
/// If its latents are missing or damaged.
pub fn draw(
    source: &ModelCache<'_>,
    item: &Item,
    place: Place,
    options: &DrawOptions,
) -> std::result::Result<Drawn, Error> {
    let view = any_view(item, &mut place.rng(options.seed, Stream::Augment))?;
    let moments = source.reader.moments(item, view)?;
    Ok(draw_from(&source.geometry, &moments, place, options)?)
}

/// As above, for what the store has of the picture.
fn draw_from(
    geometry: &LatentGeometry,
    moments: &StoredLatents,
    place: Place,
    options: &DrawOptions,
) -> Result<Drawn> {
    let rng = |stream| place.rng(options.seed, stream);
    let (mean, logvar) = (&moments.mean, &moments.logvar);
    let count = mean.elem_count();
    let normals = |stream| Tensor::from_vec(rng(stream).normals(count), mean.dims(), &Device::Cpu);
    let spread = ((logvar * 0.5)?.exp()? * normals(Stream::Posterior)?)?;
    let latents = geometry.normalize(&(mean + spread)?)?;
    let mut noise = normals(Stream::Noise)?;
    if options.noise_offset > 0.0 {
        let mut shape = vec![1; mean.rank()];
        shape[0] = mean.dim(0)?;
        let offsets = rng(Stream::NoiseOffset).normals(shape[0]);
        let offsets = Tensor::from_vec(offsets, shape, &Device::Cpu)?;
        noise = noise.broadcast_add(&(offsets * options.noise_offset)?)?;
    }
    let mut draws = rng(Stream::Timestep);
    let draws = (draws.uniform(), draws.normal());
    let tokens = geometry.tokens(geometry.extents(&latents)?);
    Ok(Drawn {
        level: options.process.draw(&options.timesteps, draws, tokens),
        latents,
        noise,
        time_ids: moments.time_ids,
    })
}

/// The conditioning of one of a picture's captions, which may be dropped.
///
/// # Errors
/// If an entry is missing or damaged, or shapes do not fit.
pub fn condition(
    source: &ModelCache<'_>,
    item: &Item,
    place: Place,
    options: &DrawOptions,
) -> std::result::Result<Conditioning, Error> {
    let rng = |stream| place.rng(options.seed, stream);
    let outputs = source.outputs(any_caption(item, &mut rng(Stream::Caption)))?;
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

/// One of a picture's captions, as above.
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

fn part(samples: &[(Drawn, Conditioning)], of: f64, options: &DrawOptions) -> Result<Part> {
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
    let captions: Vec<&Conditioning> = samples.iter().map(|(_, told)| told).collect();
    let mut conditioning = batch(&captions)?;
    if let Some(guidance) = options.embedded_guidance {
        conditioning.guidance = Some(numbers(&|_| guidance)?);
    }
    if options.size_conditioning {
        let ids: Vec<f32> = drawn().flat_map(|s| s.time_ids).collect();
        let ids = Tensor::from_vec(ids, (samples.len(), 6), &Device::Cpu)?;
        conditioning.time_ids = Some(ids);
    }
    Ok(Part {
        noisy: add_noise(&latents, &noise, &levels)?,
        target: options.process.target(&latents, &noise, &levels)?,
        sigmas: numbers(&|level| level.sigma)?,
        timesteps: numbers(&|level| level.timestep)?,
        weights: numbers(&weight)?,
        conditioning,
        share: samples.len() as f64 / of,
        latents,
        noise,
    })
}

/// The part that validates `item`, whose number among the held-out pictures is `number`: the posterior's mean, mixed with noise
/// at `share` (0: none, 1: all noise), the noise level with the number `level`. The noise depends on the two numbers alone, and
/// every level counts the same.
///
/// # Errors
/// As [`micro_batch`].
pub fn validation_part(
    source: &ModelCache<'_>,
    item: &Item,
    number: u64,
    (level, share): (u64, f64),
    options: &DrawOptions,
) -> std::result::Result<Part, Error> {
    let mut rng = Rng::new(0, Stream::Validation, level, number);
    let view = any_view(item, &mut rng)?;
    let StoredLatents { mean, time_ids, .. } = source.reader.moments(item, view)?;
    let noise = Tensor::from_vec(rng.normals(mean.elem_count()), mean.dims(), &Device::Cpu)?;
    let drawn = Drawn {
        latents: source.geometry.normalize(&mean)?,
        noise,
        level: options.process.level(share),
        time_ids,
    };
    let first = item.captions.first().map_or("", String::as_str);
    let options = DrawOptions {
        weighting: LossWeighting::None,
        min_snr_gamma: None,
        ..*options
    };
    let sample = (drawn, source.conditioning(first)?);
    Ok(part(&[sample], 1.0, &options)?)
}

#[cfg(test)]
#[path = "inputs_tests.rs"]
mod tests;

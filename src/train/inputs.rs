//! What a micro-batch feeds the denoiser: latents drawn from the stored posterior, noise, noise levels and
//! conditioning. Every draw is keyed by (seed, stream, micro-batch, place in it).
//!
//! Samples of one micro-batch may have contexts of different lengths (a recipe without a fixed T5 length); those
//! of one length make a *part*, and the parts of a micro-batch share its loss by their number of samples.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Result, Tensor};

use super::set::{Moments, Pair, PairSource};
use crate::conditioning::{Conditioning, Outputs, assemble, batch, drop_caption};
use crate::diffusion::{Level, LossWeighting, Process, TimestepSpec, add_noise};
use crate::models::ConditioningTensors;
use crate::recipe::Recipe;
use crate::recipe::rules::Dropout;
use crate::rng::{Rng, Stream};

/// What the draws depend on, beside the pairs.
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
    /// Whether the denoiser is told each picture's size and crop.
    pub size_conditioning: bool,
    /// The guidance that the denoiser is told, where it is told one.
    pub told_guidance: Option<f64>,
    /// Probability with which a caption is dropped.
    pub caption_dropout: f64,
}

/// Samples with contexts of one length, ready for the denoiser. All tensors are f32.
pub struct Part {
    /// Scaled latents, [batch, channels, height, width].
    pub latents: Tensor,
    /// As many standard normals, moved by the noise offset.
    pub noise: Tensor,
    /// The mixture the denoiser sees.
    pub noisy: Tensor,
    /// What it should predict.
    pub target: Tensor,
    /// [batch], in [0, 1]: the noise's factor in the mixture.
    pub sigmas: Tensor,
    /// [batch]: what the denoiser is told.
    pub timesteps: Tensor,
    /// [batch]: how much each sample counts.
    pub weights: Tensor,
    /// Context, pooled, and what else the denoiser is told.
    pub conditioning: ConditioningTensors,
    /// The share of the micro-batch that this part is.
    pub share: f64,
}

struct Sample {
    latents: Tensor,
    noise: Tensor,
    level: Level,
    conditioning: Conditioning,
    time_ids: [f32; 6],
}

/// Reads and draws micro-batch number `index`, made of `pairs`.
///
/// # Errors
/// If an entry is missing or damaged, or shapes do not fit.
pub fn micro_batch(
    source: &PairSource<'_>,
    pairs: &[&Pair],
    index: u64,
    options: &DrawOptions,
) -> std::result::Result<Vec<Part>, super::Error> {
    let mut by_length = BTreeMap::<usize, Vec<Sample>>::new();
    for (place, pair) in pairs.iter().enumerate() {
        let sample = draw(source, pair, index, place as u64, options)?;
        by_length
            .entry(sample.conditioning.context.dim(0)?)
            .or_default()
            .push(sample);
    }
    let all = pairs.len() as f64;
    let parts = by_length.into_values();
    Ok(parts
        .map(|samples| part(&samples, all, options))
        .collect::<Result<_>>()?)
}

fn draw(
    source: &PairSource<'_>,
    pair: &Pair,
    index: u64,
    place: u64,
    options: &DrawOptions,
) -> std::result::Result<Sample, super::Error> {
    let rng = |stream| Rng::new(options.seed, stream, index, place);
    let Moments {
        mean,
        logvar,
        time_ids,
    } = source.moments(pair, &mut rng(Stream::Augment))?;
    let count = mean.elem_count();
    let normals = |stream| Tensor::from_vec(rng(stream).normals(count), mean.dims(), &Device::Cpu);
    let spread = ((&logvar * 0.5)?.exp()? * normals(Stream::Posterior)?)?;
    let latents = source.space().normalize(&(&mean + spread)?)?;
    let mut noise = normals(Stream::Noise)?;
    if options.noise_offset > 0.0 {
        let channels = mean.dim(0)?;
        let offsets = rng(Stream::NoiseOffset).normals(channels);
        let offsets = Tensor::from_vec(offsets, (channels, 1, 1), &Device::Cpu)?;
        noise = noise.broadcast_add(&(offsets * options.noise_offset)?)?;
    }
    let mut draws = rng(Stream::Timestep);
    let draws = (draws.uniform(), draws.normal());
    let (_, height, width) = latents.dims3()?;
    let level = options
        .process
        .draw(&options.timesteps, draws, (height, width));
    let outputs = source.outputs(&pair.caption)?;
    let dropped = dropped_slots(
        source.recipe(),
        &outputs,
        options.caption_dropout,
        &mut rng(Stream::CaptionDropout),
    );
    let outputs = match dropped.is_empty() {
        true => outputs,
        false => drop_caption(
            source.recipe(),
            &outputs,
            Some(&source.outputs("")?),
            &dropped,
        )?,
    };
    let conditioning = assemble(source.recipe(), &outputs, source.context_width())?;
    Ok(Sample {
        latents,
        noise,
        level,
        conditioning,
        time_ids,
    })
}

fn dropped_slots<'a>(
    recipe: &Recipe,
    outputs: &'a Outputs,
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

fn part(samples: &[Sample], of: f64, options: &DrawOptions) -> Result<Part> {
    let stack = |f: &dyn Fn(&Sample) -> &Tensor| {
        Tensor::stack(&samples.iter().map(|s| f(s).clone()).collect::<Vec<_>>(), 0)
    };
    let numbers = |f: &dyn Fn(Level) -> f64| {
        let values: Vec<f32> = samples.iter().map(|s| f(s.level) as f32).collect();
        Tensor::from_vec(values, samples.len(), &Device::Cpu)
    };
    let weight = |level| {
        options
            .process
            .weight(level, options.weighting, options.min_snr_gamma)
    };
    let (latents, noise) = (stack(&|s| &s.latents)?, stack(&|s| &s.noise)?);
    let levels: Vec<Level> = samples.iter().map(|s| s.level).collect();
    let captions: Vec<&Conditioning> = samples.iter().map(|s| &s.conditioning).collect();
    let mut conditioning = batch(&captions)?;
    if let Some(guidance) = options.told_guidance {
        conditioning.guidance = Some(numbers(&|_| guidance)?);
    }
    if options.size_conditioning {
        let ids: Vec<f32> = samples.iter().flat_map(|s| s.time_ids).collect();
        let ids = Tensor::from_vec(ids, (samples.len(), 6), &Device::Cpu)?;
        conditioning.time_ids = Some(ids);
    }
    Ok(Part {
        noisy: add_noise(&latents, &noise, &levels)?,
        target: options.process.target(&latents, &noise, &levels)?,
        sigmas: numbers(&|level| level.take)?,
        timesteps: numbers(&|level| level.timestep)?,
        weights: numbers(&weight)?,
        conditioning,
        share: samples.len() as f64 / of,
        latents,
        noise,
    })
}

/// The part that validates `pair` at the level numbered so, at that share of the way to noise: the posterior's mean,
/// and noise that depends on nothing but the pair's number and the level's. Every level counts the same.
///
/// # Errors
/// As [`micro_batch`].
pub fn validation_part(
    source: &PairSource<'_>,
    pair: &Pair,
    number: u64,
    (level, share): (u64, f64),
    options: &DrawOptions,
) -> std::result::Result<Part, super::Error> {
    let mut rng = Rng::new(0, Stream::Validation, level, number);
    let Moments { mean, time_ids, .. } = source.moments(pair, &mut rng)?;
    let noise = Tensor::from_vec(rng.normals(mean.elem_count()), mean.dims(), &Device::Cpu)?;
    let sample = Sample {
        latents: source.space().normalize(&mean)?,
        noise,
        level: options.process.level(share),
        time_ids,
        conditioning: assemble(
            source.recipe(),
            &source.outputs(&pair.caption)?,
            source.context_width(),
        )?,
    };
    let options = DrawOptions {
        weighting: LossWeighting::None,
        min_snr_gamma: None,
        ..*options
    };
    Ok(part(&[sample], 1.0, &options)?)
}

//! What a micro-batch feeds the denoiser: latents drawn from the stored posterior, noise, noise levels and
//! conditioning. Every draw is keyed by (seed, stream, micro-batch, place in it).
//!
//! Samples of one micro-batch may have contexts of different lengths (a recipe without a fixed T5 length); those
//! of one length make a *part*, and the parts of a micro-batch share its loss by their number of samples.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Result, Tensor};

use super::set::{Pair, PairSource};
use crate::conditioning::{Conditioning, Outputs, assemble, drop_caption};
use crate::diffusion::{LossWeighting, TimestepSpec, add_noise, network_timestep, velocity_target};
use crate::models::ConditioningTensors;
use crate::recipe::Recipe;
use crate::recipe::rules::Dropout;
use crate::rng::{Rng, Stream};

/// What the draws depend on, beside the pairs.
pub struct DrawOptions {
    /// The Experiment's seed.
    pub seed: u64,
    /// The density of the noise levels.
    pub timesteps: TimestepSpec,
    /// How much each noise level counts.
    pub weighting: LossWeighting,
    /// Probability with which a caption is dropped.
    pub caption_dropout: f64,
}

/// Samples with contexts of one length, ready for the denoiser. All tensors are f32.
pub struct Part {
    /// Scaled latents, [batch, channels, height, width].
    pub latents: Tensor,
    /// As many standard normals.
    pub noise: Tensor,
    /// The mixture the denoiser sees.
    pub noisy: Tensor,
    /// The velocity it should predict.
    pub target: Tensor,
    /// [batch], in [0, 1].
    pub sigmas: Tensor,
    /// [batch], `1000 * sigma`.
    pub timesteps: Tensor,
    /// [batch]: how much each sample counts.
    pub weights: Tensor,
    /// Context and pooled.
    pub conditioning: ConditioningTensors,
    /// The share of the micro-batch that this part is.
    pub share: f64,
}

struct Sample {
    latents: Tensor,
    noise: Tensor,
    sigma: f64,
    conditioning: Conditioning,
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
        .map(|samples| part(&samples, all, options.weighting))
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
    let (mean, logvar) = source.moments(pair, &mut rng(Stream::Augment))?;
    let count = mean.elem_count();
    let normals = |stream| Tensor::from_vec(rng(stream).normals(count), mean.dims(), &Device::Cpu);
    let spread = ((&logvar * 0.5)?.exp()? * normals(Stream::Posterior)?)?;
    let latents = source.space().normalize(&(&mean + spread)?)?;
    let mut level = rng(Stream::Timestep);
    let (uniform, normal) = (level.uniform(), level.normal());
    let sigma = options.timesteps.sigma(uniform, normal);
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
        noise: normals(Stream::Noise)?,
        sigma,
        conditioning,
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

fn part(samples: &[Sample], of: f64, weighting: LossWeighting) -> Result<Part> {
    let stack = |f: &dyn Fn(&Sample) -> &Tensor| {
        Tensor::stack(&samples.iter().map(|s| f(s).clone()).collect::<Vec<_>>(), 0)
    };
    let numbers = |f: &dyn Fn(f64) -> f64| {
        let values: Vec<f32> = samples.iter().map(|s| f(s.sigma) as f32).collect();
        Tensor::from_vec(values, samples.len(), &Device::Cpu)
    };
    let (latents, noise) = (stack(&|s| &s.latents)?, stack(&|s| &s.noise)?);
    let sigmas: Vec<f64> = samples.iter().map(|s| s.sigma).collect();
    Ok(Part {
        noisy: add_noise(&latents, &noise, &sigmas)?,
        target: velocity_target(&latents, &noise)?,
        sigmas: numbers(&|s| s)?,
        timesteps: numbers(&network_timestep)?,
        weights: numbers(&|s| weighting.weight(s))?,
        conditioning: ConditioningTensors {
            context: stack(&|s| &s.conditioning.context)?,
            pooled: stack(&|s| &s.conditioning.pooled)?,
        },
        share: samples.len() as f64 / of,
        latents,
        noise,
    })
}

/// The part that validates `pair` at `sigma`: the posterior's mean, and noise that depends on nothing but the
/// pair's number and the level's.
///
/// # Errors
/// As [`micro_batch`].
pub fn validation_part(
    source: &PairSource<'_>,
    pair: &Pair,
    number: u64,
    (level, sigma): (u64, f64),
) -> std::result::Result<Part, super::Error> {
    let mut rng = Rng::new(0, Stream::Validation, level, number);
    let (mean, _) = source.moments(pair, &mut rng)?;
    let noise = Tensor::from_vec(rng.normals(mean.elem_count()), mean.dims(), &Device::Cpu)?;
    let sample = Sample {
        latents: source.space().normalize(&mean)?,
        noise,
        sigma,
        conditioning: assemble(
            source.recipe(),
            &source.outputs(&pair.caption)?,
            source.context_width(),
        )?,
    };
    Ok(part(&[sample], 1.0, LossWeighting::None)?)
}

//! The pictures an Experiment's `[sample]` section asks for, from entries that are in the store.

use candle_core::Result as TensorResult;
use image::{ImageFormat, RgbImage};

use crate::base::{self, Base};
use crate::conditioning::{self, Conditioning, assemble, drop_caption};
use crate::experiment::Experiment;
use crate::lora::Bound;
use crate::models::Denoiser;
use crate::sample::{self, SampleOptions};
use crate::train::PairSource;

/// Why there is no preview.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VAE.
    #[error(transparent)]
    Base(#[from] base::Error),
    /// An entry.
    #[error(transparent)]
    Conditioning(#[from] conditioning::Error),
    /// A computation.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
    /// The picture cannot be written as PNG.
    #[error("{0}")]
    Picture(#[from] image::ImageError),
}

/// How an Experiment's previews are sampled; the flavor fills what it leaves open.
pub fn options(experiment: &Experiment, base: &Base) -> SampleOptions {
    let sample = &experiment.raw.sample;
    let side = experiment
        .raw
        .dataset
        .first()
        .map_or(base.flavor.resolution_px, |d| d.resolution);
    let (width, height) = (sample.width.unwrap_or(side), sample.height.unwrap_or(side));
    let factor = base.latent_space().factor;
    let (told_guidance, guidance) = match base.flavor.told_guidance {
        Some(authors) => (
            Some(sample.guidance.unwrap_or(authors)),
            sample.true_cfg.unwrap_or(base.flavor.guidance),
        ),
        None => (None, sample.guidance.unwrap_or(base.flavor.guidance)),
    };
    SampleOptions {
        width,
        height,
        process: base.process,
        sampler: sample.sampler.unwrap_or(base.flavor.sampler),
        steps: sample.steps.unwrap_or(base.flavor.steps as usize),
        guidance,
        told_guidance,
        spacing: base.flavor.spacing,
        shift: sample
            .shift
            .unwrap_or(base.flavor.shift)
            .at(height as usize / factor, width as usize / factor),
        size_conditioning: base.flavor.size_conditioning,
        seed: sample.seed,
        number: 0,
    }
}

/// Every caption that sampling needs in the store beside the prompts: the negative or the empty one.
pub fn negative(experiment: &Experiment) -> &str {
    experiment
        .raw
        .sample
        .negative_prompt
        .as_deref()
        .unwrap_or("")
}

/// One picture for each prompt, with its prompt.
///
/// # Errors
/// If an entry is missing, or the model fails.
pub fn pictures(
    experiment: &Experiment,
    base: &Base,
    source: &PairSource<'_>,
    denoiser: &dyn Denoiser,
    adapters: &Bound,
    each_step: &dyn Fn(),
) -> Result<Vec<(String, RgbImage)>, Error> {
    let options = options(experiment, base);
    let unconditional = unconditional(experiment, source, options.guidance)?;
    let decoder = base.vae.load_decoder(denoiser.device())?;
    let mut made = Vec::new();
    for (number, prompt) in experiment.raw.sample.prompts.iter().enumerate() {
        let conditional = assemble(
            source.recipe(),
            &source.outputs(prompt)?,
            source.context_width(),
        )?;
        let options = SampleOptions {
            number: number as u64,
            ..options
        };
        let latents = sample::sample(
            denoiser,
            adapters,
            source.space(),
            &conditional,
            unconditional.as_ref(),
            &options,
            each_step,
        )?;
        made.push((
            prompt.clone(),
            sample::decode(&decoder, source.space(), &latents)?,
        ));
    }
    Ok(made)
}

/// What guidance steers away from: the negative prompt, else what the recipe calls unconditional.
fn unconditional(
    experiment: &Experiment,
    source: &PairSource<'_>,
    guidance: f64,
) -> Result<Option<Conditioning>, Error> {
    if guidance == 1.0 {
        return Ok(None);
    }
    let outputs = source.outputs(negative(experiment))?;
    let made = |outputs| -> TensorResult<_> {
        assemble(source.recipe(), &outputs, source.context_width())
    };
    if experiment.raw.sample.negative_prompt.is_some() {
        return Ok(Some(made(outputs)?));
    }
    let all = outputs.keys().map(String::as_str).collect();
    Ok(Some(made(drop_caption(
        source.recipe(),
        &outputs,
        Some(&outputs),
        &all,
    )?)?))
}

/// A picture as the bytes of a PNG file.
///
/// # Errors
/// If the encoder fails.
pub fn png(picture: &RgbImage) -> Result<Vec<u8>, Error> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

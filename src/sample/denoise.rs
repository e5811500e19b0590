//! From noise to a picture, by the steps of a sampler with classifier-free guidance. All noise is drawn from the seed on the host,
//! so it is the same everywhere.

use candle_core::{DType, Device, Result, Tensor, bail};
use image::RgbImage;

use super::Error;
use crate::autograd::Tape;
use crate::cache::{Conditioning, batch};
use crate::diffusion::{
    Band, Process, Sampler, SamplerRun, Spacing, TRAINED_STEPS, guide, rescale_guided,
};
use crate::lora::Bound;
use crate::models::{self, ConditioningTensors, Denoiser};
use crate::rng::{Rng, Stream};
use crate::vae::{Extents, LatentDecoder, LatentGeometry};

/// How one picture is sampled.
#[derive(Clone, Debug)]
pub struct SampleOptions {
    /// Its extents, in px.
    pub pixels: Extents,
    /// What the denoiser predicts.
    pub process: Process,
    /// The rule of a step.
    pub sampler: Sampler,
    /// Steps of the sampler.
    pub steps: usize,
    /// Scale of classifier-free guidance; 1 is none.
    pub guidance: f64,
    /// How far each guided prediction is brought back to the spread of the conditional one, 0 to 1.
    pub guidance_rescale: f64,
    /// The guidance embedding's input, where the denoiser has one.
    pub embedded_guidance: Option<f64>,
    /// Shift of a flow's noise levels.
    pub shift: f64,
    /// Where a flow's sampler stops.
    pub spacing: Spacing,
    /// Whether the denoiser has an embedding of the picture's size.
    pub size_conditioning: bool,
    /// The denoiser's latents of the picture that it is given beside the noisy one, [1, channels, height, width].
    pub reference: Option<Tensor>,
    /// What the noise derives from.
    pub seed: u64,
    /// The picture's number among those of one seed: each gets other noise.
    pub number: u64,
}

/// Samples latents as the denoiser sees them, a batch of one.
///
/// `unconditional` is needed unless the guidance is 1. `each_step` is called after every step.
///
/// # Errors
/// If the size does not fit the model, the model fails, or what it makes is not finite.
pub fn sample(
    denoiser: &dyn Denoiser,
    adapters: &Bound,
    geometry: &LatentGeometry,
    conditional: &Conditioning,
    unconditional: Option<&Conditioning>,
    options: &SampleOptions,
    each_step: &dyn Fn(),
) -> std::result::Result<Tensor, Error> {
    let noise = start_noise(geometry, options)?;
    sample_from(
        denoiser,
        adapters,
        noise,
        conditional,
        unconditional,
        options,
        each_step,
    )
}

/// As [`sample`], from given start noise.
///
/// # Errors
/// As [`sample`].
pub fn sample_from(
    denoiser: &dyn Denoiser,
    adapters: &Bound,
    noise: Tensor,
    conditional: &Conditioning,
    unconditional: Option<&Conditioning>,
    options: &SampleOptions,
    each_step: &dyn Fn(),
) -> std::result::Result<Tensor, Error> {
    let mut sampling = Sampling::start(noise, conditional, unconditional, options)?;
    let all = (Band::WHOLE, options.guidance);
    sampling.advance((denoiser, adapters), all, each_step)?;
    Ok(sampling.finish()?)
}

/// A sample under way. Between two steps, another network may take over.
pub struct Sampling {
    conditional: Conditioning,
    unconditional: Option<Conditioning>,
    options: SampleOptions,
    run: SamplerRun,
    latents: Tensor,
    /// Steps done.
    done: usize,
}

impl Sampling {
    /// Of start noise, a batch of one.
    ///
    /// # Errors
    /// If the sampler does not fit the process.
    pub fn start(
        noise: Tensor,
        conditional: &Conditioning,
        unconditional: Option<&Conditioning>,
        options: &SampleOptions,
    ) -> Result<Self> {
        Ok(Self {
            conditional: conditional.clone(),
            unconditional: unconditional.cloned(),
            run: SamplerRun::new(
                options.sampler,
                options.process,
                options.steps,
                options.shift,
                options.spacing,
            )?,
            options: options.clone(),
            latents: noise,
            done: 0,
        })
    }

    /// Takes the steps from here on whose noise levels are in the band, under this guidance.
    ///
    /// # Errors
    /// If the guidance needs the unconditional entry and there is none, the model fails, or what it makes is not finite.
    pub fn advance(
        &mut self,
        (denoiser, adapters): (&dyn Denoiser, &Bound),
        (levels, guidance): (Band, f64),
        each_step: &dyn Fn(),
    ) -> std::result::Result<(), Error> {
        let options = &self.options;
        // A guidance of 1 gives the conditional prediction: half of the work is saved.
        let guided = match (guidance == 1.0, &self.unconditional) {
            (true, _) => None,
            (false, Some(unconditional)) => Some(unconditional),
            (false, None) => {
                let what = format!("a guidance of {guidance} needs the unconditional entry");
                return Err(candle_core::Error::Msg(what).into());
            }
        };
        let model = Model {
            denoiser,
            adapters,
            time_ids: options.size_conditioning.then(|| whole_picture(options)),
            guidance: options.embedded_guidance,
            reference: options.reference.as_ref(),
        };
        while self.done < self.run.num_steps() {
            let timestep = self.run.timestep(self.done);
            if !levels.has(timestep / TRAINED_STEPS as f64) {
                break;
            }
            let latents = &self.latents;
            let prediction = match guided {
                None => model.predict(latents, timestep, &self.conditional)?,
                Some(unconditional) => {
                    let (with, without) =
                        model.predict_both(latents, timestep, &self.conditional, unconditional)?;
                    let guided = guide(&without, &with, guidance)?;
                    match options.guidance_rescale {
                        0.0 => guided,
                        rescale => rescale_guided(&guided, &with, rescale)?,
                    }
                }
            };
            let noise = || step_noise(latents, options, self.done);
            self.latents = self.run.step(self.done, latents, &prediction, noise)?;
            self.done += 1;
            // What is NaN once stays so, and would be a black picture.
            if !is_finite(&self.latents)? {
                let steps = self.run.num_steps();
                return Err(Error::NotFinite {
                    what: format!("sampler step {} of {steps}: the prediction is", self.done),
                    why: "the weights are damaged, or overflow in the type that they compute in"
                        .to_owned(),
                });
            }
            each_step();
        }
        Ok(())
    }

    /// The latents after the last step.
    ///
    /// # Errors
    /// If there are steps left: no network was given for their noise levels.
    pub fn finish(self) -> Result<Tensor> {
        if self.done < self.run.num_steps() {
            bail!(
                "step {} of {} was not taken: no network is for its noise level",
                self.done + 1,
                self.run.num_steps()
            );
        }
        Ok(self.latents)
    }
}

/// Turns what the denoiser made, a batch of one, into the frames of a clip, one after the other; a picture is one of one frame.
///
/// # Errors
/// If the decoder or `take` fails, or a pixel is not finite.
pub fn decode(
    decoder: &LatentDecoder,
    geometry: &LatentGeometry,
    latents: &Tensor,
    take: &mut dyn FnMut(RgbImage) -> std::result::Result<(), Error>,
) -> std::result::Result<(), Error> {
    let latents = geometry.denormalize(latents)?.to_device(decoder.device())?;
    let mut failed = None;
    let decoded = decoder.decode(&latents, &mut |pixels| {
        frame(&pixels.squeeze(0)?)
            .and_then(&mut *take)
            .map_err(|error| {
                // The decoder knows candle's errors alone.
                let told = candle_core::Error::Msg(error.to_string());
                failed = Some(error);
                told
            })
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(decoded?),
    }
}

/// A frame that the VAE's decoder made.
fn frame(pixels: &Tensor) -> std::result::Result<RgbImage, Error> {
    if !is_finite(pixels)? {
        return Err(Error::NotFinite {
            what: "a pixel that the VAE made is".to_owned(),
            why: "its decoder's weights are damaged, or the latents are too large for it"
                .to_owned(),
        });
    }
    Ok(picture(pixels)?)
}

/// Whether each number is.
fn is_finite(tensor: &Tensor) -> Result<bool> {
    let numbers = tensor
        .flatten_all()?
        .to_dtype(DType::F32)?
        .to_vec1::<f32>()?;
    Ok(numbers.iter().all(|number| number.is_finite()))
}

/// Pixels in [-1, 1], [channels, height, width], as 8-bit RGB.
pub(super) fn picture(pixels: &Tensor) -> Result<RgbImage> {
    let (channels, height, width) = pixels.dims3()?;
    if channels != 3 {
        bail!("expected a decoder of 3 channels, found {channels}");
    }
    let values = pixels.permute((1, 2, 0))?.flatten_all()?.to_vec1::<f32>()?;
    let bytes = values
        .iter()
        // The VAE's range is [-1, 1]; rounding, not cutting, as diffusers' `VaeImageProcessor`.
        .map(|v| ((v.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8)
        .collect();
    match RgbImage::from_raw(width as u32, height as u32, bytes) {
        Some(picture) => Ok(picture),
        None => bail!("a picture of {width} x {height} px has another number of bytes"),
    }
}

pub(super) fn start_noise(geometry: &LatentGeometry, options: &SampleOptions) -> Result<Tensor> {
    geometry.check(options.pixels)?;
    let shape = geometry.shape(geometry.latents(options.pixels));
    let mut rng = Rng::new(options.seed, Stream::Sample, 0, options.number);
    let values = rng.normals(shape.iter().product());
    // On the host in f32, on which every device agrees.
    Tensor::from_vec(values, shape, &Device::Cpu)?.unsqueeze(0)
}

/// The noise of step `i`, in the shape of `like`.
fn step_noise(like: &Tensor, options: &SampleOptions, i: usize) -> Result<Tensor> {
    let mut rng = Rng::new(options.seed, Stream::SampleStep, i as u64, options.number);
    Tensor::from_vec(rng.normals(like.elem_count()), like.shape(), like.device())
}

/// The size of a picture that was neither resized nor cropped, as [`ConditioningTensors::time_ids`] has it.
fn whole_picture(options: &SampleOptions) -> [f32; 6] {
    let (height, width) = (options.pixels.height as f32, options.pixels.width as f32);
    [height, width, 0.0, 0.0, height, width]
}

/// A denoiser with what stays the same from step to step.
struct Model<'a> {
    denoiser: &'a dyn Denoiser,
    adapters: &'a Bound,
    time_ids: Option<[f32; 6]>,
    guidance: Option<f64>,
    reference: Option<&'a Tensor>,
}

impl Model<'_> {
    fn predict(
        &self,
        latents: &Tensor,
        timestep: f64,
        conditioning: &Conditioning,
    ) -> Result<Tensor> {
        self.forward(latents, timestep, batch(&[conditioning])?)
    }

    /// Both branches of guidance, as one batch where their contexts are equally long.
    fn predict_both(
        &self,
        latents: &Tensor,
        timestep: f64,
        with: &Conditioning,
        without: &Conditioning,
    ) -> Result<(Tensor, Tensor)> {
        // Filling up the shorter one would change what it attends to, unless its pads are masked.
        let masked = with.token_count.is_some() && without.token_count.is_some();
        if with.context.dims() != without.context.dims() && !masked {
            return Ok((
                self.predict(latents, timestep, with)?,
                self.predict(latents, timestep, without)?,
            ));
        }
        let inputs = batch(&[with, without])?;
        let both = self.forward(&Tensor::cat(&[latents, latents], 0)?, timestep, inputs)?;
        Ok((both.narrow(0, 0, 1)?, both.narrow(0, 1, 1)?))
    }

    fn forward(
        &self,
        latents: &Tensor,
        timestep: f64,
        mut inputs: ConditioningTensors,
    ) -> Result<Tensor> {
        let (rows, device) = (latents.dim(0)?, latents.device());
        let same = |number: f64| Tensor::from_vec(vec![number as f32; rows], rows, device);
        let timesteps = same(timestep)?;
        if let Some(ids) = self.time_ids {
            inputs.time_ids = Some(Tensor::from_vec(ids.repeat(rows), (rows, 6), device)?);
        }
        inputs.guidance = self.guidance.map(same).transpose()?;
        if let Some(reference) = self.reference {
            inputs.reference = Some(reference.repeat((rows, 1, 1, 1))?);
        }
        let prediction = models::predict(
            self.denoiser,
            &Tape::off(self.denoiser.kernels()),
            self.adapters,
            latents,
            &timesteps,
            &inputs,
        )?;
        // The sampler's own arithmetic is on a few numbers: done on the host in f32, it is the same whatever computes the network.
        let prediction = prediction.into_tensor().to_device(&Device::Cpu)?;
        prediction.to_dtype(latents.dtype())
    }
}

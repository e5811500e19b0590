//! The pictures or clips an Experiment's `[sample]` section asks for, from entries that are in the store.

use candle_core::{Device, Tensor};
use image::imageops::{self, FilterType};
use image::{ImageFormat, RgbImage};

use super::denoise::{Sampling, picture, start_noise};
use super::metadata::Texts;
use super::networks::Stage;
use super::sheet::{SheetRow, contact_sheet};
use super::{AnimatedWebp, Error, SampleOptions, decode};
use crate::base_model::BaseModel;
use crate::cache::{self, Conditioning, ModelCache, drop_caption};
use crate::dataset::{self, PictureFile, Preview};
use crate::diffusion::SamplerRun;
use crate::experiment::SampleSettings;
use crate::models::memory::{CallShape, context_tokens};
use crate::nn::Kernels;
use crate::recipe::latents::Rate;
use crate::store::Store;
use crate::vae::{Extents, LatentGeometry};

/// Takes a frame of the clip of the prompt of this number. All of a clip are of one size; a picture has one.
pub type TakeFrame<'a> = dyn FnMut(usize, RgbImage) -> Result<(), Error> + 'a;

/// What a store has of what previews read: of their prompts, of what guidance steers away from, and of their references.
///
/// # Errors
/// If the store cannot be read.
pub fn open<'a>(
    base: &'a BaseModel,
    store: &Store,
    references: &[Preview],
) -> Result<ModelCache<'a>, cache::Error> {
    let settings = &base.settings.sample;
    let texts = settings.prompts.iter().chain(&settings.negative_prompt);
    // And the empty caption, which stands for none.
    let texts = texts.map(String::as_str).chain([""]);
    ModelCache::open_of(base, store, texts, &dataset::viewed(&[], references))
}

/// How the first preview is sampled; the others differ in their `number`.
pub fn options(base: &BaseModel) -> SampleOptions {
    let (settings, geometry) = (&base.settings.sample, base.latent_geometry());
    let pixels = Extents {
        frames: settings.frames as usize,
        ..Extents::picture(settings.height as usize, settings.width as usize)
    };
    SampleOptions {
        pixels,
        process: base.settings.process,
        sampler: settings.sampler,
        steps: settings.steps,
        guidance: settings.guidance,
        guidance_rescale: settings.guidance_rescale,
        embedded_guidance: settings.embedded_guidance,
        spacing: settings.spacing,
        shift: shift(base, &geometry, pixels),
        size_conditioning: settings.size_conditioning,
        reference: None,
        seed: settings.seed,
        number: 0,
    }
}

/// The largest call of the denoiser, for a plan of its memory.
pub fn call(base: &BaseModel, references: &[Preview]) -> CallShape {
    let (settings, geometry) = (&base.settings.sample, base.latent_geometry());
    let guided = settings.guidance != 1.0 || settings.guidance_of_other != 1.0;
    let numbers = 0..settings.prompts.len();
    let given = numbers.map(|number| reference(references, number));
    let sizes = given.map(|given| {
        let latents = geometry.latents(planned(base, given, 0).pixels);
        let view = given.and_then(|preview| preview.reference.views.first());
        let reference = view.map(|view| geometry.latents(Extents::from(view.bucket)));
        (latents, reference)
    });
    let tokens = |of: &Extents| geometry.tokens(*of);
    let largest = sizes
        .max_by_key(|(latents, reference)| tokens(latents) + reference.as_ref().map_or(0, tokens));
    let (latents, reference) = largest.unwrap_or((Extents::picture(1, 1), None));
    CallShape {
        // Both branches of guidance.
        samples: if guided { 2 } else { 1 },
        latents,
        reference,
        context: context_tokens(&base.recipe),
    }
}

/// Refuses extents and steps that the base model does not have, which it alone tells.
///
/// # Errors
/// If there are such.
pub fn check(base: &BaseModel) -> Result<(), Error> {
    let (options, geometry) = (options(base), base.latent_geometry());
    let wrong = |what: String| Error::Setting {
        file: base.experiment.file.clone(),
        what,
    };
    let (height, width) = geometry.multiples();
    for (field, found, multiple) in [
        ("width", options.pixels.width, width),
        ("height", options.pixels.height, height),
    ] {
        if !found.is_multiple_of(multiple) {
            return Err(wrong(format!(
                "`sample.{field}`: expected a multiple of {multiple} px for this model, found {found}"
            )));
        }
    }
    let frames = geometry.check(options.pixels);
    frames.map_err(|error| wrong(format!("`sample.frames`: {error}")))?;
    let SampleOptions {
        sampler,
        process,
        steps,
        shift,
        spacing,
        ..
    } = options;
    let run = SamplerRun::new(sampler, process, steps, shift, spacing);
    run.map_err(|error| wrong(format!("`sample.steps`: {error}")))?;
    Ok(())
}

/// The shift of a picture's noise levels.
fn shift(base: &BaseModel, geometry: &LatentGeometry, pixels: Extents) -> f64 {
    let settings = &base.settings.sample;
    let tokens = geometry.tokens(geometry.latents(pixels));
    settings.shift.of_sampling(tokens, settings.steps)
}

/// How the preview of this number is sampled, of the size that goes with its reference, whose latents are not read.
pub(super) fn planned(base: &BaseModel, reference: Option<&Preview>, number: u64) -> SampleOptions {
    let options = SampleOptions {
        number,
        ..options(base)
    };
    let Some(preview) = reference else {
        return options;
    };
    let pixels = Extents::from(preview.size);
    SampleOptions {
        pixels,
        shift: shift(base, &base.latent_geometry(), pixels),
        ..options
    }
}

/// The reference of the preview of this number, of none, one for all, or one for each.
pub(super) fn reference(references: &[Preview], number: usize) -> Option<&Preview> {
    references.get(number).or(references.first())
}

/// The latents of a preview's reference, as the denoiser takes them.
fn given(source: &ModelCache<'_>, preview: &Preview) -> Result<Option<Tensor>, Error> {
    // A preview is given one view.
    let Some(&view) = preview.reference.views.first() else {
        return Ok(None);
    };
    let latents = source.reader.reference(&preview.reference, view)?;
    let latents = source.geometry.normalize(&latents)?;
    Ok(Some(latents.unsqueeze(0)?))
}

/// One picture or clip for each prompt, decoded frame by frame. `references` are none, one for all prompts, or one for each. `stages` are
/// the networks in the order in which a sample meets them: each is in memory while all samples are in it. `on`: where frames are
/// decoded.
///
/// # Errors
/// If an entry is missing, or the model or `take` fails.
pub fn pictures(
    (base, source): (&BaseModel, &ModelCache<'_>),
    references: &[Preview],
    stages: &[Stage<'_>],
    on: (&Device, &Kernels),
    each_step: &dyn Fn(),
    take: &mut TakeFrame<'_>,
) -> Result<(), Error> {
    let prompts = &base.settings.sample.prompts;
    check_number(references.len(), prompts.len())?;
    let unconditional = unconditional(stages, &base.settings.sample, source)?;
    let mut samples = Vec::new();
    for (number, prompt) in prompts.iter().enumerate() {
        let reference = reference(references, number);
        let options = SampleOptions {
            reference: reference.map_or(Ok(None), |of| given(source, of))?,
            ..planned(base, reference, number as u64)
        };
        let noise = start_noise(&source.geometry, &options)?;
        let conditional = source.conditioning(prompt)?;
        samples.push(Sampling::start(
            noise,
            &conditional,
            unconditional.as_ref(),
            &options,
        )?);
    }
    for stage in stages {
        stage.network.with(&mut |denoiser, adapters| {
            for (number, sample) in samples.iter_mut().enumerate() {
                let what = (stage.levels, stage.guidance);
                let advanced = sample.advance((denoiser, adapters), what, each_step);
                let why = || base.why_not_finite(denoiser.dtype(), !adapters.is_empty());
                advanced.map_err(|error| of_prompt(error, number, Some(&why)))?;
            }
            Ok(())
        })?;
    }
    let decoder = base.vae.load_decoder(on.0, on.1)?;
    for (number, sample) in samples.into_iter().enumerate() {
        let latents = sample.finish()?;
        let decoded = decode(&decoder, &source.geometry, &latents, &mut |frame| {
            take(number, frame)
        });
        decoded.map_err(|error| of_prompt(error, number, None))?;
    }
    Ok(())
}

/// The same error, with the prompt whose picture has no numbers, and why that may be of this base model.
fn of_prompt(error: Error, number: usize, known: Option<&dyn Fn() -> String>) -> Error {
    match error {
        Error::NotFinite { what, why } => Error::NotFinite {
            what: format!("prompt {}, {what}", number + 1),
            why: known.map_or(why, |known| known()),
        },
        other => other,
    }
}

/// A preview without a reference of its own would get another's.
fn check_number(references: usize, prompts: usize) -> Result<(), Error> {
    match references {
        0 | 1 => Ok(()),
        some if some == prompts => Ok(()),
        some => Err(Error::References {
            references: some,
            prompts,
        }),
    }
}

/// What guidance steers away from: the negative prompt, else what the recipe calls unconditional.
fn unconditional(
    stages: &[Stage<'_>],
    settings: &SampleSettings,
    source: &ModelCache<'_>,
) -> Result<Option<Conditioning>, Error> {
    // Not even read: without guidance the store need not have the empty caption.
    if stages.iter().all(|stage| stage.guidance == 1.0) {
        return Ok(None);
    }
    if let Some(negative) = &settings.negative_prompt {
        return Ok(Some(source.conditioning(negative)?));
    }
    let outputs = source.outputs("")?;
    // What training shows for a dropped caption, in every encoder: zeros or the empty caption's embeddings, as the recipe says.
    let every_slot = outputs.keys().map(String::as_str).collect();
    let dropped = drop_caption(source.recipe, &outputs, Some(&outputs), &every_slot)?;
    Ok(Some(source.assemble(&dropped)?))
}

/// What each preview is given, to stand beside it on a sheet: the reference as the denoiser's latents are of it, no larger than the preview.
/// None where there are no references.
///
/// # Errors
/// If a picture cannot be read, or has changed since it was listed.
pub fn shown_references(
    references: &[Preview],
    prompts: &[String],
) -> Result<Vec<KeptFrames>, Error> {
    check_number(references.len(), prompts.len())?;
    let of_prompts = (0..prompts.len()).filter_map(|number| reference(references, number));
    let shown = |preview: &Preview| {
        let mut kept = KeptFrames::default();
        if let Some(&view) = preview.reference.views.first() {
            let file = PictureFile::open(&preview.reference.picture);
            let file = file.and_then(|file| file.expect(&preview.reference.digest));
            let prepared = file.and_then(|file| file.prepare(view));
            let prepared = prepared.map_err(dataset::Error::Picture)?;
            let size = prepared.view.bucket;
            let shape = (3, size.height as usize, size.width as usize);
            let picture = picture(&Tensor::from_vec(prepared.pixels, shape, &Device::Cpu)?)?;
            let (width, height) = picture.dimensions();
            let within = |most: u32, side: u32| f64::from(most) / f64::from(side);
            let scale = within(preview.size.width, width).min(within(preview.size.height, height));
            let side = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
            kept.push(&match scale < 1.0 {
                true => imageops::resize(&picture, side(width), side(height), FilterType::Triangle),
                false => picture,
            })?;
        }
        Ok(kept)
    };
    of_prompts.map(shown).collect()
}

/// The frames of a clip, each compressed without loss.
#[derive(Clone, Default)]
pub struct KeptFrames(Vec<Vec<u8>>);

impl KeptFrames {
    /// Adds a frame.
    ///
    /// # Errors
    /// If the encoder fails.
    pub fn push(&mut self, frame: &RgbImage) -> Result<(), Error> {
        self.0.push(png(frame)?);
        Ok(())
    }

    /// The frame of this number, the last one where there are not so many; None of none.
    fn at(&self, number: usize) -> Result<Option<RgbImage>, Error> {
        let kept = self.0.get(number).or(self.0.last());
        let read = kept.map(|bytes| image::load_from_memory(bytes));
        Ok(read.transpose()?.map(|picture| picture.into_rgb8()))
    }
}

/// A row of a contact sheet, in each column a picture or clip.
pub struct ClipRow {
    /// The words at its left.
    pub label: String,
    /// The frames of each column.
    pub columns: Vec<KeptFrames>,
}

impl ClipRow {
    /// A row for each prompt, which begins with its reference, where there are any.
    pub fn beside(prompts: &[String], references: &[KeptFrames]) -> Vec<Self> {
        let row = |(number, prompt): (usize, &String)| Self {
            label: prompt.clone(),
            columns: references.get(number).cloned().into_iter().collect(),
        };
        prompts.iter().enumerate().map(row).collect()
    }
}

/// A contact sheet, see [`contact_sheet`], of as many frames as the longest clip has. A shorter one stands still at its end.
pub struct ClipSheet<'a> {
    /// Above it all.
    pub title: &'a str,
    /// Above the columns.
    pub heads: &'a [&'a str],
    /// Below that.
    pub rows: &'a [ClipRow],
}

impl ClipSheet<'_> {
    /// How many frames it has, at least one.
    pub fn count(&self) -> usize {
        let columns = self.rows.iter().flat_map(|row| &row.columns);
        columns
            .map(|frames| frames.0.len())
            .max()
            .unwrap_or(0)
            .max(1)
    }

    /// One of them.
    ///
    /// # Errors
    /// If a kept frame cannot be read.
    pub fn frame(&self, number: usize) -> Result<RgbImage, Error> {
        let of_row = |row: &ClipRow| {
            let mut pictures = Vec::new();
            for frames in &row.columns {
                pictures.extend(frames.at(number)?);
            }
            Ok(SheetRow {
                label: row.label.clone(),
                pictures,
            })
        };
        let rows = self.rows.iter().map(of_row);
        let rows = rows.collect::<Result<Vec<_>, Error>>()?;
        Ok(contact_sheet(self.title, self.heads, &rows))
    }

    /// As [`ClipWriter::finish`], without texts.
    ///
    /// # Errors
    /// As there.
    pub fn file(&self, rate: Rate) -> Result<(&'static str, Vec<u8>), Error> {
        let mut file = ClipWriter::new(rate);
        for number in 0..self.count() {
            file.push(self.frame(number)?)?;
        }
        file.finish(None)
    }
}

/// The file of a picture or clip, to which frames are added one by one.
pub struct ClipWriter {
    rate: Rate,
    /// The first frame, until there is a second.
    first: Option<RgbImage>,
    clip: Option<AnimatedWebp>,
}

impl ClipWriter {
    /// An empty one, of so many frames a second.
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            first: None,
            clip: None,
        }
    }

    /// Adds a frame.
    ///
    /// # Errors
    /// If the encoder fails.
    pub fn push(&mut self, frame: RgbImage) -> Result<(), Error> {
        if let Some(clip) = &mut self.clip {
            return clip.push(&frame);
        }
        let Some(first) = self.first.take() else {
            self.first = Some(frame);
            return Ok(());
        };
        let clip = self.clip.insert(AnimatedWebp::new(self.rate));
        clip.push(&first)?;
        clip.push(&frame)
    }

    /// The end of the file's name, and its bytes: a PNG of one frame, an animated WebP of several. `texts`: what it says of its making.
    ///
    /// # Errors
    /// If there is no frame, or the encoder fails.
    pub fn finish(self, texts: Option<&Texts>) -> Result<(&'static str, Vec<u8>), Error> {
        match (self.first, self.clip) {
            (Some(picture), _) => {
                let file = png(&picture)?;
                Ok((
                    "png",
                    texts.map(|texts| texts.in_png(&file)).unwrap_or(file),
                ))
            }
            (None, Some(clip)) => Ok(("webp", clip.finish(texts.map(Texts::exif))?)),
            (None, None) => Err(Error::Animation("it has no frame".to_owned())),
        }
    }
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

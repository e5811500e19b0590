//! The pictures or clips an Experiment's `[sample]` section asks for, from entries that are in the store.

use image::{ImageFormat, RgbImage};

use super::sheet::{SheetRow, contact_sheet};
use super::{AnimatedWebp, Error, SampleOptions, decode, sample};
use crate::base_model::BaseModel;
use crate::cache::{Conditioning, ModelCache, drop_caption};
use crate::dataset::Preview;
use crate::experiment::SampleSettings;
use crate::lora::Bound;
use crate::models::Denoiser;
use crate::recipe::latents::Rate;
use crate::vae::{Extents, LatentGeometry};

/// What was sampled from a prompt.
pub struct Sampled {
    /// The prompt.
    pub prompt: String,
    /// Its frames, all of one size: one of a picture; never none.
    pub frames: Vec<RgbImage>,
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

/// The shift of a picture's noise levels.
fn shift(base: &BaseModel, geometry: &LatentGeometry, pixels: Extents) -> f64 {
    let settings = &base.settings.sample;
    let tokens = geometry.tokens(geometry.latents(pixels));
    settings.shift.of_sampling(tokens, settings.steps)
}

/// The same beside a reference, of that preview's size.
///
/// # Errors
/// If the store lacks the reference's latents.
fn beside(
    base: &BaseModel,
    source: &ModelCache<'_>,
    preview: &Preview,
) -> Result<SampleOptions, Error> {
    let geometry = &source.geometry;
    let pixels = Extents::from(preview.size);
    let mut reference = None;
    // A preview is given one view.
    if let Some(&view) = preview.reference.views.first() {
        let latents = source.reader.reference(&preview.reference, view)?;
        reference = Some(geometry.normalize(&latents)?.unsqueeze(0)?);
    }
    Ok(SampleOptions {
        pixels,
        shift: shift(base, geometry, pixels),
        reference,
        ..options(base)
    })
}

/// One picture or clip for each prompt. `references` are none, one for all prompts, or one for each.
///
/// # Errors
/// If an entry is missing, or the model fails.
pub fn pictures(
    (base, source): (&BaseModel, &ModelCache<'_>),
    references: &[Preview],
    denoiser: &dyn Denoiser,
    adapters: &Bound,
    each_step: &dyn Fn(),
) -> Result<Vec<Sampled>, Error> {
    let settings = &base.settings.sample;
    check_number(references.len(), settings.prompts.len())?;
    let unconditional = unconditional(settings, source)?;
    let decoder = base
        .vae
        .load_decoder(denoiser.device(), denoiser.kernels())?;
    let mut made = Vec::new();
    for (number, prompt) in settings.prompts.iter().enumerate() {
        let conditional = source.conditioning(prompt)?;
        let reference = references.get(number).or(references.first());
        let options = SampleOptions {
            number: number as u64,
            ..match reference {
                Some(reference) => beside(base, source, reference)?,
                None => options(base),
            }
        };
        let latents = sample(
            denoiser,
            adapters,
            &source.geometry,
            &conditional,
            unconditional.as_ref(),
            &options,
            each_step,
        )?;
        made.push(Sampled {
            prompt: prompt.clone(),
            frames: decode(&decoder, &source.geometry, &latents)?,
        });
    }
    Ok(made)
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
    settings: &SampleSettings,
    source: &ModelCache<'_>,
) -> Result<Option<Conditioning>, Error> {
    // Not even read: without guidance the store need not have the empty caption.
    if settings.guidance == 1.0 {
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

/// A row of a contact sheet, in each column a picture or clip.
pub struct ClipRow {
    /// The words at its left.
    pub label: String,
    /// The frames of each column.
    pub columns: Vec<Vec<RgbImage>>,
}

/// A contact sheet, see [`contact_sheet`]: as many frames as the longest clip has. A shorter one stands still at its end.
pub fn sheets(title: &str, heads: &[&str], rows: &[ClipRow]) -> Vec<RgbImage> {
    let columns = rows.iter().flat_map(|row| &row.columns);
    let count = columns.map(Vec::len).max().unwrap_or(1);
    let frame = |n: usize| {
        let rows: Vec<SheetRow> = rows.iter().map(|row| row.at(n)).collect();
        contact_sheet(title, heads, &rows)
    };
    (0..count).map(frame).collect()
}

impl ClipRow {
    fn at(&self, frame: usize) -> SheetRow {
        let columns = self.columns.iter();
        let shown = columns.filter_map(|frames| frames.get(frame).or(frames.last()));
        SheetRow {
            label: self.label.clone(),
            pictures: shown.cloned().collect(),
        }
    }
}

/// The end of the name of a file of `frames`, and its bytes: a PNG of one frame, an animated WebP of several.
///
/// # Errors
/// If there is no frame, or an encoder fails.
pub fn file(frames: &[RgbImage], rate: Rate) -> Result<(&'static str, Vec<u8>), Error> {
    if let [picture] = frames {
        return Ok(("png", png(picture)?));
    }
    let mut webp = AnimatedWebp::new(rate);
    for frame in frames {
        webp.push(frame)?;
    }
    Ok(("webp", webp.finish()?))
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

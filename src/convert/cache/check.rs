//! What the trainers' caches cannot hold.

use std::path::PathBuf;

use super::{CacheOptions, CacheTarget, Form};
use crate::base_model::BaseModel;
use crate::dataset::{Item, PictureFile};
use crate::models::cache_names::{AiToolkitTexts, MusubiLatents, MusubiTexts, SimpleTunerTexts};
use crate::models::{self, Family};
use crate::recipe::rules::DenoiserMask;
use crate::shown;
use crate::text::spec::Dtype;

/// The trainer's cache of the model's family, if it can hold what the recipe makes.
pub(super) fn model(base: &BaseModel, options: &CacheOptions<'_>) -> Result<Form, String> {
    let (target, family) = (options.target, base.denoiser.family);
    let form = family.caches.and_then(|names| {
        let form = Form::of(target, names)?;
        Some((names, form))
    });
    let Some((names, form)) = form else {
        return Err(format!(
            "{} and {}: that cache is not written; of this trainer's those of {} are",
            target.name(),
            family.name,
            written(target)
        ));
    };
    if target == CacheTarget::Kohya && options.dtype == Dtype::Bf16 {
        return Err(
            "kohya's files are numpy's, which has no bf16: f32 holds the same numbers".to_owned(),
        );
    }
    let assembly = base.recipe.assembly();
    if !shows(form, family.masks_pads, assembly.mask) {
        return Err(format!(
            "`assembly.mask` is {}, which {} has no place for in its cache of {}: other rows would be seen than the recipe says",
            shown::word(&assembly.mask),
            target.name(),
            family.name
        ));
    }
    if assembly.context != names.context || assembly.pooled != names.pooled {
        return Err(format!(
            "`assembly.context` or `assembly.pooled` deviates, and {} joins the encoders itself, in the usual order",
            target.name()
        ));
    }
    Ok(form)
}

/// The families whose cache is written for a trainer.
fn written(target: CacheTarget) -> String {
    let is_written = |family: &&'static Family| {
        let names = family.caches;
        names.is_some_and(|names| Form::of(target, names).is_some())
    };
    let names: Vec<&str> = models::families()
        .filter(is_written)
        .map(|family| family.name)
        .collect();
    names.join(", ")
}

/// Whether a trainer that trains from the cache has its denoiser see what this mask lets it see. `masked`: whether the family's denoiser
/// masks pads where its authors train it.
fn shows(form: Form, masked: bool, mask: DenoiserMask) -> bool {
    use DenoiserMask::{None as All, Pads, PadsButOne};
    let allowed: &[DenoiserMask] = match form {
        Form::Kohya(names) if names.masks => &[All, Pads],
        Form::Musubi(names) => match names.texts {
            // Those that are left out are not seen, or are filled up with zeros that are.
            MusubiTexts::TrueRows(_) if masked => &[Pads],
            _ => &[All],
        },
        Form::AiToolkit(names) => match names.tensors {
            AiToolkitTexts::Listed => &[Pads],
            AiToolkitTexts::Masked(_) => &[PadsButOne],
            _ => &[All],
        },
        Form::Simpletuner(names) => match names.tensors {
            SimpleTunerTexts::PooledAndMask => &[All, Pads],
            SimpleTunerTexts::Masked(..) => &[Pads, PadsButOne],
            _ => &[All],
        },
        Form::Kohya(_) => &[All],
    };
    allowed.contains(&mask)
}

/// Whether a picture has what a cache can hold of one.
pub(super) fn item(item: &Item, form: Form, target: CacheTarget) -> Result<(), String> {
    let (views, captions) = (item.views.len(), item.captions.len());
    if captions != 1 {
        return Err(format!(
            "it has {captions} captions, and a picture's cache holds one"
        ));
    }
    let pairs = matches!(form, Form::Musubi(names) if names.latents == MusubiLatents::Pairs);
    // Of a picture alone it gets the embeddings, for which no crop counts.
    if pairs && item.reference.is_none() {
        return Ok(());
    }
    let is_clip = item.views.iter().any(|view| view.window.is_some());
    if is_clip && !matches!(form, Form::Musubi(_)) {
        return Err(format!(
            "it is a clip, and {} names no frames in its cache: which ones it takes of a clip it decides itself",
            target.name()
        ));
    }
    if !pairs && item.reference.is_some() {
        return Err(format!(
            "it has a reference picture, whose latents are not written for {}",
            target.name()
        ));
    }
    let mirrored = item.views.iter().filter(|v| v.flip).count();
    if views - mirrored != 1 {
        return Err(format!(
            "it has {} crops, and {} keeps one: `crops = 1`",
            views - mirrored,
            target.name()
        ));
    }
    if mirrored > 0 && target != CacheTarget::Kohya {
        return Err(format!(
            "it is there mirrored as well, which is not written for {}: `flip = false`",
            target.name()
        ));
    }
    if target == CacheTarget::Kohya {
        let picture = PictureFile::open(&item.picture).map_err(|e| e.to_string())?;
        if picture.is_turned() {
            return Err(
                "its EXIF data say that it lies turned, which kohya's scripts do not read: save it upright"
                    .to_owned(),
            );
        }
    }
    Ok(())
}

/// That no file is there, unless they may be replaced.
pub(super) fn free<'a>(
    files: impl Iterator<Item = &'a PathBuf>,
    options: &CacheOptions<'_>,
) -> Result<(), (PathBuf, String)> {
    let mut there = Vec::new();
    for file in files {
        if file.exists() {
            there.push(file.clone());
        }
        let Some(old) = older(file, options.target).filter(|old| old.exists()) else {
            continue;
        };
        let new = shown::path(file).to_string();
        return Err((
            old,
            format!(
                "kohya's scripts take this file of an older version of theirs before {new}: remove it"
            ),
        ));
    }
    match there.first() {
        Some(first) if !options.overwrite => Err((
            first.clone(),
            format!(
                "is there already, with {} more: --overwrite replaces them",
                there.len() - 1
            ),
        )),
        _ => Ok(()),
    }
}

/// `a.npz` of `a_0128x0128_sdxl.npz`.
fn older(file: &std::path::Path, target: CacheTarget) -> Option<PathBuf> {
    let name = file.file_name()?.to_str()?;
    let stem = name.strip_suffix("_sdxl.npz")?.rsplit_once('_')?.0;
    (target == CacheTarget::Kohya).then(|| file.with_file_name(format!("{stem}.npz")))
}

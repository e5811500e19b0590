//! What the trainers' caches cannot hold, and how a trainer is to be set for what is written.

use std::path::PathBuf;

use super::{CacheOptions, CacheTarget};
use crate::base_model::BaseModel;
use crate::dataset::{Item, PictureFile};
use crate::experiment::{DatasetSettings, Experiment};
use crate::models::cache_names::CacheNames;
use crate::recipe::rules::DenoiserMask;
use crate::shown;
use crate::text::spec::Dtype;

/// Whether the trainer has such a cache for the model, and can hold what the recipe makes.
pub(super) fn model(
    base: &BaseModel,
    options: &CacheOptions<'_>,
) -> Result<&'static CacheNames, String> {
    let (target, family) = (options.target, base.denoiser.family.name);
    let names = base.denoiser.family.caches.ok_or_else(|| {
        format!(
            "{} and {family}: caches of this family are not written for any trainer yet",
            target.name()
        )
    })?;
    if target == CacheTarget::Musubi && names.musubi.is_none() {
        return Err(format!(
            "{} and {family}: of musubi's caches that of FLUX.1 Kontext [dev] alone is written",
            target.name()
        ));
    }
    if target == CacheTarget::Kohya && options.dtype == Dtype::Bf16 {
        return Err(
            "kohya's files are numpy's, which has no bf16: f32 holds the same numbers".to_owned(),
        );
    }
    let assembly = base.recipe.assembly();
    let has_mask = match target {
        CacheTarget::Kohya => names.kohya.masks,
        CacheTarget::Simpletuner => names.simpletuner.masks,
        CacheTarget::Musubi | CacheTarget::AiToolkit => false,
    };
    if assembly.mask == DenoiserMask::Pads && !has_mask {
        return Err(format!(
            "`assembly.mask` is pads, and {} has no mask for the denoiser of {family}: the pads would be seen",
            target.name()
        ));
    }
    if assembly.context != names.context || assembly.pooled != names.pooled {
        return Err(format!(
            "`assembly.context` or `assembly.pooled` deviates, and {} joins the encoders itself, in the usual order",
            target.name()
        ));
    }
    Ok(names)
}

/// Whether a picture has what a cache can hold of one.
pub(super) fn item(item: &Item, target: CacheTarget) -> Result<(), String> {
    let (views, captions) = (item.views.len(), item.captions.len());
    if captions != 1 {
        return Err(format!(
            "it has {captions} captions, and a picture's cache holds one"
        ));
    }
    // Of a picture alone it gets the embeddings, for which no crop counts.
    if target == CacheTarget::Musubi && item.reference.is_none() {
        return Ok(());
    }
    if target != CacheTarget::Musubi && item.reference.is_some() {
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

/// How the trainer is to be set, for it to find the cache and mean the same by it.
pub(super) fn settings(
    experiment: &Experiment,
    base: &BaseModel,
    options: &CacheOptions<'_>,
) -> Vec<String> {
    let masked = base.recipe.assembly().mask == DenoiserMask::Pads;
    match options.target {
        CacheTarget::Kohya => kohya_settings(experiment, masked),
        CacheTarget::Musubi => musubi_settings(experiment, options),
        CacheTarget::AiToolkit => vec![
            "cache_latents_to_disk: true, cache_text_embeddings: true, no shuffle_tokens, no random_triggers".to_owned(),
            "copy the folders _latent_cache and _t_e_cache beside the pictures, if --out is another folder".to_owned(),
        ],
        CacheTarget::Simpletuner => {
            let side = experiment.datasets().first().map_or(0, |s| s.resolution.width);
            let out = options.out.display();
            let mut lines = vec![
                format!("text_embeds: cache_dir = \"{out}/text\"; images: cache_dir_vae = \"{out}/vae\""),
                format!(
                    "resolution = {side}, resolution_type = \"pixel\", crop = true, crop_aspect = \"square\", crop_style = \"center\""
                ),
            ];
            if masked {
                lines.push("--flux_attention_masked_training".to_owned());
            }
            lines
        }
    }
}

fn musubi_settings(experiment: &Experiment, options: &CacheOptions<'_>) -> Vec<String> {
    let sets = experiment.datasets();
    let has_references = |set: &DatasetSettings| set.references.is_some();
    let mut lines = vec![format!("cache_directory = \"{}\"", options.out.display())];
    if !sets.iter().all(has_references) {
        lines.push(
            "cache the latents of pictures without references with flux_kontext_cache_latents.py, which takes them from control_directory"
                .to_owned(),
        );
    }
    if sets.iter().any(|set| has_references(set) && set.bucket) {
        lines.push(
            "batch_size = 1, unless its buckets are those of the Experiment: pictures of one batch must have latents of one size"
                .to_owned(),
        );
    }
    lines
}

fn kohya_settings(experiment: &Experiment, masked: bool) -> Vec<String> {
    let set = |set: &DatasetSettings| {
        let (width, height) = (set.resolution.width, set.resolution.height);
        let buckets = match set.bucket {
            true => format!(
                "enable_bucket = true, min_bucket_reso = {}, max_bucket_reso = {}, bucket_reso_steps = {}, bucket_no_upscale = {}",
                set.min_bucket_px, set.max_bucket_px, set.bucket_step_px, set.no_upscale
            ),
            false => "enable_bucket = false".to_owned(),
        };
        let flip = if set.flip { ", flip_aug = true" } else { "" };
        format!("resolution = [{width}, {height}], {buckets}{flip}")
    };
    let mut lines: Vec<String> = experiment.datasets().iter().map(set).collect();
    lines.dedup();
    let mask = if masked { " --apply_t5_attn_mask" } else { "" };
    lines.push(format!(
        "--cache_latents_to_disk --cache_text_encoder_outputs_to_disk{mask}"
    ));
    lines.push("copy the files beside the pictures, if --out is another folder".to_owned());
    lines
}

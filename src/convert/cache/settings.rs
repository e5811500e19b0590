//! How a trainer is to be set for what is written.

use super::{CacheOptions, Form};
use crate::base_model::BaseModel;
use crate::dataset::Item;
use crate::experiment::{DatasetSettings, Experiment};
use crate::models::cache_names::{MusubiLatents, MusubiNames, SimpleTunerTexts};
use crate::recipe::rules::DenoiserMask;

/// How the trainer is to be set, for it to find the cache and mean the same by it.
pub(super) fn of(
    experiment: &Experiment,
    base: &BaseModel,
    form: Form,
    (items, options): (&[Item], &CacheOptions<'_>),
) -> Vec<String> {
    let masked = base.recipe.assembly().mask == DenoiserMask::Pads;
    match form {
        Form::Kohya(_) => kohya_settings(experiment, masked),
        Form::Musubi(names) => musubi_settings(experiment, names, items, options),
        Form::AiToolkit(_) => vec![
            "cache_latents_to_disk: true, cache_text_embeddings: true, no shuffle_tokens, no random_triggers".to_owned(),
            "copy the folders _latent_cache and _t_e_cache beside the pictures, if --out is another folder".to_owned(),
        ],
        Form::Simpletuner(names) => {
            let side = experiment.datasets().first().map_or(0, |s| s.resolution.width);
            let out = options.out.display();
            let mut lines = vec![
                format!("text_embeds: cache_dir = \"{out}/text\"; images: cache_dir_vae = \"{out}/vae\""),
                format!(
                    "resolution = {side}, resolution_type = \"pixel\", crop = true, crop_aspect = \"square\", crop_style = \"center\""
                ),
            ];
            if masked && names.tensors == SimpleTunerTexts::PooledAndMask {
                lines.push("--flux_attention_masked_training".to_owned());
            }
            lines
        }
    }
}

fn musubi_settings(
    experiment: &Experiment,
    names: &MusubiNames,
    items: &[Item],
    options: &CacheOptions<'_>,
) -> Vec<String> {
    let sets = experiment.datasets();
    let has_references = |set: &DatasetSettings| set.references.is_some();
    let pairs = names.latents == MusubiLatents::Pairs;
    let out = options.out.display();
    let is_clip = |item: &&Item| item.views.iter().any(|view| view.window.is_some());
    let clips = items.iter().filter(is_clip).count();
    let mut lines = Vec::new();
    if clips < items.len() {
        lines.push(format!("cache_directory = \"{out}\""));
    }
    if clips > 0 {
        lines.push(format!(
            "the data set of clips: cache_directory = \"{out}/clips\""
        ));
    }
    if pairs && !sets.iter().all(has_references) {
        lines.push(
            "cache the latents of pictures without references with flux_kontext_cache_latents.py, which takes them from control_directory"
                .to_owned(),
        );
    }
    if sets
        .iter()
        .any(|set| set.bucket && (!pairs || has_references(set)))
    {
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

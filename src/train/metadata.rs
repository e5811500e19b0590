//! What a LoRA file says of its training in the keys that kohya's scripts write (`ss_`) and other programs show, beside
//! our own provenance. No dates and no paths: the same Experiment makes the same file.

use std::collections::BTreeMap;

use serde_json::json;

use super::length::Length;
use super::set::TrainingSet;
use crate::diffusion::Prediction;
use crate::experiment::{LrDecay, Settings};
use crate::models::schedule::word;
use crate::recipe::latents::Size;

/// Tags of a folder that are listed: the commonest. Sentences as captions have as many as there are pictures.
const MAX_TAGS: usize = 1000;

/// The keys of a training after `step` steps.
pub(super) fn training(
    settings: &Settings,
    set: &TrainingSet<'_>,
    length: Length,
    step: u64,
) -> BTreeMap<String, String> {
    let (train, adapter) = (&settings.train, &settings.adapter);
    // Readers compare with what kohya's scripts write: Python's `str()` of booleans, numbers and tuples.
    let python = |value: bool| if value { "True" } else { "False" }.to_owned();
    let schedule = match train.lr_schedule {
        LrDecay::Constant if length.warmup_steps > 0 => "constant_with_warmup",
        LrDecay::Constant => "constant",
        LrDecay::Cosine => "cosine",
        LrDecay::Linear => "linear",
    };
    let folders = folders(set);
    let repeated: u32 = set.items().iter().map(|item| item.repeats).sum();
    let mut keys = BTreeMap::from([
        ("ss_output_name", train.name.clone()),
        ("ss_seed", train.seed.to_string()),
        ("ss_steps", step.to_string()),
        ("ss_max_train_steps", length.steps.to_string()),
        ("ss_learning_rate", format!("{:?}", train.learning_rate)),
        // kohya's scripts have a rate each for the denoiser and for text encoders; only the denoiser is trained here.
        ("ss_unet_lr", format!("{:?}", train.learning_rate)),
        ("ss_lr_scheduler", schedule.to_owned()),
        ("ss_lr_warmup_steps", length.warmup_steps.to_string()),
        ("ss_optimizer", train.optimizer.to_string()),
        ("ss_max_grad_norm", format!("{:?}", train.max_grad_norm)),
        ("ss_total_batch_size", train.batch_size.to_string()),
        ("ss_batch_size_per_device", train.batch_size.to_string()),
        (
            "ss_gradient_accumulation_steps",
            train.gradient_accumulation.to_string(),
        ),
        (
            "ss_gradient_checkpointing",
            python(train.gradient_checkpointing == Some(true)),
        ),
        (
            "ss_caption_dropout_rate",
            format!("{:?}", train.caption_dropout),
        ),
        ("ss_network_dropout", format!("{:?}", adapter.dropout)),
        ("ss_num_train_images", repeated.to_string()),
        ("ss_num_validation_images", set.held_out().len().to_string()),
        ("ss_resolution", python_size(set.resolution())),
        ("ss_dataset_dirs", folders.sizes),
        ("ss_tag_frequency", folders.tags),
    ]);
    match settings.process.prediction {
        // The key is of Stability's model specification, for Stable Diffusion's two kinds only.
        Prediction::Flow => {}
        Prediction::Epsilon | Prediction::Velocity => {
            let prediction = word(settings.process.prediction).to_owned();
            keys.insert("modelspec.prediction_type", prediction);
            let zero = python(settings.process.zero_terminal_snr);
            keys.insert("ss_zero_terminal_snr", zero);
            // No script of kohya's writes it, and others read it.
            let velocity = settings.process.prediction == Prediction::Velocity;
            keys.insert("ss_v_parameterization", python(velocity));
        }
    }
    keys.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

/// As kohya's scripts print it: width first.
fn python_size(size: Size) -> String {
    format!("({}, {})", size.width, size.height)
}

/// The two keys about folders of pictures, as JSON.
struct Folders {
    /// Folder -> repeats and number of pictures.
    sizes: String,
    /// Folder -> tag -> pictures that have it. A tag is what is between commas in a caption.
    tags: String,
}

#[derive(Default)]
struct Folder<'a> {
    repeats: u32,
    pictures: usize,
    tags: BTreeMap<&'a str, usize>,
}

fn folders(set: &TrainingSet<'_>) -> Folders {
    let mut folders: BTreeMap<String, Folder<'_>> = BTreeMap::new();
    for item in set.items() {
        // The name alone: a path would tell others of this machine and change the file with it.
        let name = item.picture.parent().and_then(|folder| folder.file_name());
        let name = name.unwrap_or_default().to_string_lossy().into_owned();
        let folder = folders.entry(name).or_default();
        // Two data sets may share a folder's name; the format has one number for both.
        folder.repeats = folder.repeats.max(item.repeats);
        folder.pictures += 1;
        // Of variants of a caption, the first has all its tags.
        let first = item.captions.first().map_or("", String::as_str);
        for tag in first.split(',').map(str::trim) {
            if !tag.is_empty() {
                *folder.tags.entry(tag).or_default() += 1;
            }
        }
    }
    let sizes: BTreeMap<_, _> = folders
        .iter()
        .map(|(name, folder)| {
            let size = json!({ "n_repeats": folder.repeats, "img_count": folder.pictures });
            (name, size)
        })
        .collect();
    let tags: BTreeMap<_, _> = folders
        .iter()
        .map(|(name, folder)| (name, commonest(&folder.tags)))
        .collect();
    Folders {
        sizes: json!(sizes).to_string(),
        tags: json!(tags).to_string(),
    }
}

fn commonest<'a>(tags: &BTreeMap<&'a str, usize>) -> BTreeMap<&'a str, usize> {
    let mut sorted: Vec<_> = tags.iter().map(|(tag, count)| (*tag, *count)).collect();
    // Ties by name: the same data make the same file.
    sorted.sort_by_key(|(tag, count)| (std::cmp::Reverse(*count), *tag));
    sorted.truncate(MAX_TAGS);
    sorted.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_written_width_first() {
        let wide = Size {
            width: 1344,
            height: 832,
        };
        assert_eq!(python_size(wide), "(1344, 832)");
    }

    #[test]
    fn the_commonest_tags_are_listed() {
        let names: Vec<String> = (0..MAX_TAGS + 2).map(|i| format!("tag {i:04}")).collect();
        let mut tags: BTreeMap<&str, usize> = names.iter().map(|n| (n.as_str(), 1)).collect();
        tags.insert("tag 1001", 3);
        let listed = commonest(&tags);
        assert_eq!((listed.len(), listed["tag 1001"]), (MAX_TAGS, 3));
        assert!(listed.contains_key("tag 0998") && !listed.contains_key("tag 0999"));
    }
}

//! Whose a config is, by what is in it.

use super::{Sources, diffusers, kohya, musubi};
use crate::foreign::config::read::{Document, Script};
use crate::foreign::config::tree::Node;
use crate::foreign::config::{Error, Trainer};

/// The trainer of the first file that tells.
///
/// # Errors
/// If none does.
pub(in crate::foreign::config) fn detect(sources: &Sources) -> Result<Trainer, Error> {
    let documents = (0..sources.count()).filter_map(|file| sources.document(file));
    let mut found = documents.filter_map(|document| match document {
        Document::Values(node) => of_values(node),
        Document::Script(script) => of_script(script),
    });
    found.next().ok_or_else(|| {
        let names: Vec<&str> = Trainer::ALL.into_iter().map(Trainer::name).collect();
        Error::UnknownTrainer {
            file: sources.path(0).to_owned(),
            known: names.join(", "),
        }
    })
}

fn of_values(node: &Node) -> Option<Trainer> {
    let has = |key: &str| node.has(key);
    let inside = |key: &str, inner: &str| node.get(key).is_some_and(|n| n.has(inner));
    let first = |inner: &str| node.items().first().is_some_and(|item| item.has(inner));
    let dashed = |key: &str| has(key) || has(&format!("--{key}"));
    if inside("config", "process") {
        return Some(Trainer::AiToolkit);
    }
    if dashed("model_family") || dashed("data_backend_config") || first("instance_data_dir") {
        return Some(Trainer::SimpleTuner);
    }
    if has("training_method") || has("concept_file_name") || inside("unet", "model_name") {
        return Some(Trainer::OneTrainer);
    }
    if inside("model", "type") || has("directory") || has("micro_batch_size_per_gpu") {
        return Some(Trainer::DiffusionPipe);
    }
    if musubi::is_data_set(node) || musubi::is_config_file(node) {
        return Some(Trainer::Musubi);
    }
    if kohya::is_data_set(node) || kohya::is_config_file(node) {
        return Some(Trainer::Kohya);
    }
    None
}

fn of_script(script: &Script) -> Option<Trainer> {
    let mut words = script.commands.iter().flatten();
    let by_name = words.find_map(|word| {
        let name = word.text.rsplit(['/', '\\']).next()?;
        if kohya::SCRIPTS.contains(&name) {
            return Some(Trainer::Kohya);
        }
        if musubi::SCRIPTS.contains(&name) {
            return Some(Trainer::Musubi);
        }
        diffusers::is_script(name).then_some(Trainer::Diffusers)
    });
    if by_name.is_some() {
        return by_name;
    }
    let has = |option: &str| {
        let mut words = script.commands.iter().flatten();
        words.any(|word| word.text.split('=').next() == Some(option))
    };
    if has("--dit") {
        return Some(Trainer::Musubi);
    }
    if has("--network_module") || has("--network_dim") || has("--dataset_config") {
        return Some(Trainer::Kohya);
    }
    if has("--instance_data_dir") || has("--instance_prompt") {
        return Some(Trainer::Diffusers);
    }
    let env = ["MODEL_FAMILY", "DATALOADER_CONFIG", "TRACKER_PROJECT_NAME"];
    let is_env = script
        .variables
        .iter()
        .any(|(name, ..)| env.contains(&name.as_str()));
    (is_env || has("--model_family")).then_some(Trainer::SimpleTuner)
}

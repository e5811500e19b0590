//! Which files of a repository are used.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::{Address, Error};
use crate::files;

/// The file that makes a repository a pipeline.
const INDEX: &str = "model_index.json";

/// Parts of a pipeline that this program reads.
const PARTS: &[&str] = &[
    "transformer",
    "unet",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "tokenizer",
    "tokenizer_2",
    "tokenizer_3",
    // Its configuration says what the denoiser predicts.
    "scheduler",
];

/// What is read of a part beside its weights.
const SMALL_FILES: &[&str] = &[
    "config.json",
    "scheduler_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "added_tokens.json",
    "special_tokens_map.json",
];

/// The files of a repository that `address` means.
///
/// - A file inside: that one.
/// - A folder inside, or a repository that is one part: its weights, configuration and tokenizer.
/// - A pipeline: the same of every part (of its scheduler the configuration) and `model_index.json`; not the single files that may lie beside it.
///
/// # Errors
/// If there is no such file or folder, or it has no weights.
pub fn wanted(address: &Address, files: &[String]) -> Result<Vec<String>, Error> {
    let nothing = |reason: String| Error::Nothing {
        address: address.clone(),
        reason,
    };
    let below = |folder: &str| in_folder(folder, files);
    let chosen: Vec<String> = match &address.inside {
        Some(inside) if files.contains(inside) => return Ok(vec![inside.clone()]),
        Some(inside) => below(&format!("{inside}/")),
        None if files.iter().any(|f| f == INDEX) => {
            let parts = PARTS.iter().flat_map(|part| below(&format!("{part}/")));
            parts.chain([INDEX.to_owned()]).collect()
        }
        None => below(""),
    };
    let is_weights = |name: &String| name.ends_with(".safetensors") || name.ends_with(".gguf");
    // A tokenizer's folder, for `[model.files]`, has no weights.
    let has_tokenizer = chosen.iter().any(|f| !f.ends_with("config.json"));
    if chosen.iter().any(is_weights) || address.inside.is_some() && has_tokenizer {
        return Ok(chosen);
    }
    let weights: Vec<&String> = files.iter().filter(|f| is_weights(f)).collect();
    Err(nothing(match weights.as_slice() {
        [] => "the repository has no safetensors or GGUF file there".to_owned(),
        weights => {
            let names = weights.iter().take(8).map(|f| format!("`{f}`"));
            format!(
                "it does not say which file is meant; name one, such as {SCHEME}{}/{}; it has {}",
                address.repo,
                weights[0],
                names.collect::<Vec<_>>().join(", "),
                SCHEME = super::SCHEME,
            )
        }
    }))
}

/// A part that a pipeline's `model_index.json` names, of those that this program reads, and that `listed` has nothing of: a
/// download that broke off must not look like a model without that part.
pub(super) fn missing_part(pipeline: &Path, listed: &[String]) -> Option<String> {
    let index = files::read(&pipeline.join(INDEX), files::MAX_CONFIG_BYTES).ok()?;
    let index: serde_json::Map<String, Value> = serde_json::from_slice(&index).ok()?;
    let is_named = |part: &&&str| {
        let class = index.get(**part).and_then(|entry| entry.get(1));
        class.is_some_and(Value::is_string)
    };
    let is_there = |part: &str| listed.iter().any(|f| f.starts_with(&format!("{part}/")));
    let missing = PARTS.iter().filter(is_named).find(|part| !is_there(part));
    missing.map(|part| (*part).to_owned())
}

/// What is used of one folder (a prefix that is empty or ends with `/`).
fn in_folder(folder: &str, files: &[String]) -> Vec<String> {
    let inside: BTreeSet<&str> = files
        .iter()
        .filter_map(|file| file.strip_prefix(folder))
        .filter(|name| !name.contains('/'))
        .collect();
    let mut chosen: Vec<&str> = inside
        .iter()
        .copied()
        .filter(|name| SMALL_FILES.contains(name))
        .collect();
    chosen.extend(weights(&inside));
    chosen
        .into_iter()
        .map(|name| format!("{folder}{name}"))
        .collect()
}

/// One set of weights: an index with its shards, a file of the usual name, or the only one there is. Variants
/// (`model.fp16.safetensors`) are the same weights once more.
fn weights<'a>(inside: &BTreeSet<&'a str>) -> Vec<&'a str> {
    for stem in ["model", "diffusion_pytorch_model"] {
        let index = format!("{stem}.safetensors.index.json");
        if let Some(index) = inside.get(index.as_str()) {
            let is_shard = |name: &&&str| {
                let number = name.strip_prefix(stem).and_then(|n| n.strip_prefix('-'));
                number.is_some_and(|n| n.ends_with(".safetensors"))
            };
            let shards = inside.iter().filter(is_shard).copied();
            return shards.chain([*index]).collect();
        }
        let single = format!("{stem}.safetensors");
        if let Some(single) = inside.get(single.as_str()) {
            return vec![single];
        }
    }
    let weights: Vec<&str> = inside
        .iter()
        .copied()
        .filter(|name| name.ends_with(".safetensors") || name.ends_with(".gguf"))
        .collect();
    match weights.as_slice() {
        [only] => vec![only],
        // Several: which is meant is for the person to say.
        _ => Vec::new(),
    }
}

//! What a checkpoint is: family and flavors, parts, whether every tensor is there and used, the recipe it needs, what
//! else must be named beside it, and the memory it takes.
//!
//! Only headers, configurations and tokenizers are read. [`check`] fails only on a path that cannot be read; all
//! else that is wrong is in the [`Report`].
//!
//! - `denoiser`: a denoiser with whatever lies beside it
//! - `part`: one text encoder or VAE, in a model or alone
//! - `memory`: bytes in memory while encoding and training

mod denoiser;
mod memory;
mod part;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::base_model::NeededFile;
use crate::models;
use crate::nn::weights::{self, Weights};
use crate::shown;

pub use memory::{ADAPTER_RANK, Asked, Memory, NetworkMemory, TrainMemory};
pub use part::StoredNetwork;

/// Why a path could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its files cannot be read, or are no weights.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// It is a folder without weights or parts.
    #[error(
        "{}: no model here: expected a folder as diffusers writes it (with model_index.json, transformer/ or unet/, vae/, ...), a folder with one safetensors file, or a file",
        shown::path(path)
    )]
    Nothing {
        /// The folder.
        path: PathBuf,
    },
    /// A folder's denoiser is no network that this program knows.
    #[error("{what}")]
    Denoiser {
        /// Which field of which file, what was expected and found.
        what: String,
    },
    /// Nothing that this program knows.
    #[error(
        "{}: not a model, text encoder, VAE or LoRA that plumb knows; its first tensors are {names}{reasons}",
        shown::path(path)
    )]
    Unknown {
        /// The file or folder.
        path: PathBuf,
        /// A few of its tensors.
        names: String,
        /// Why no family takes it, as the end of a sentence, or nothing.
        reasons: String,
    },
}

/// What kind of thing lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A denoiser, with other parts or alone.
    Model,
    /// A text encoder or VAE alone.
    Part,
    /// A LoRA.
    Lora,
}

/// What lies at a path.
#[derive(Debug, Serialize)]
pub struct Report {
    /// As it was given.
    pub path: PathBuf,
    /// A model, a part of one, or a LoRA.
    pub kind: Kind,
    /// What it is, as a sentence.
    pub summary: String,
    /// A model's family; absent for parts and LoRAs.
    pub family: Option<&'static str>,
    /// The flavors it may be, by its architecture.
    pub flavors: Vec<&'static str>,
    /// The recipes that belong to it, as `plumb recipe show` takes them.
    pub recipes: Vec<String>,
    /// The networks found in it: the denoiser first, then encoders and the VAE.
    pub parts: Vec<StoredNetwork>,
    /// Tensors of a single file that belong to no part, and are not read.
    pub ignored: Vec<String>,
    /// What must be named under `[model.files]` beside it.
    pub needs: Vec<NeededFile>,
    /// What it says of how it was trained, each as `what: value (place)`.
    pub says: Vec<String>,
    /// Lines for `[model]` that it says itself and that are not its flavor's: what is trained where they are left out.
    pub lines: Vec<String>,
    /// Estimated peaks, where enough of the model is there to tell.
    pub memory: Option<Memory>,
    /// What to know, and to do with it.
    pub notes: Vec<String>,
    /// What is wrong with it, each in one line.
    pub problems: Vec<String>,
}

/// Looks at a file or folder. A training's memory is that of what is asked for, if something is.
///
/// # Errors
/// If it cannot be read, or is nothing that this program knows.
pub fn check(path: &Path, asked: Option<Asked>) -> Result<Report, Error> {
    let refused = match denoiser::check(path, asked) {
        Ok(report) => return Ok(report),
        Err(refused) => refused,
    };
    let weights = match Weights::open(&[path.to_owned()]) {
        Err(weights::Error::NotFound { .. }) if path.is_dir() => {
            // A denoiser is there, and what is wrong with it is why none was found.
            return Err(match of_folder(&refused) {
                Some(what) => Error::Denoiser { what },
                None => Error::Nothing {
                    path: path.to_owned(),
                },
            });
        }
        other => other?,
    };
    if let Some(report) = lora(path, &weights) {
        return Ok(report);
    }
    if let Some(report) = part::lone(path, &weights) {
        return Ok(report);
    }
    let names: Vec<String> = weights
        .names()
        .iter()
        // Enough to recognise whose file it is, in an error of one line.
        .take(3)
        .map(|n| format!("`{n}`"))
        .collect();
    Err(Error::Unknown {
        path: path.to_owned(),
        names: names.join(", "),
        reasons: reasons(&refused),
    })
}

fn lora(path: &Path, weights: &Weights) -> Option<Report> {
    // Of peft and diffusers (`lora_A`), and of kohya's scripts (`lora_down`).
    const SIGNS: [&str; 4] = [
        ".lora_A.",
        ".lora_down.",
        ".lora_B.weight",
        ".lora_up.weight",
    ];
    let names = weights.names();
    let is_lora = names
        .iter()
        .any(|name| SIGNS.iter().any(|sign| name.contains(sign)));
    is_lora.then(|| Report {
        summary: format!(
            "a LoRA of {}, not a base model",
            shown::counted(weights.names().len(), "tensor")
        ),
        notes: vec![format!("plumb inspect lora {}", path.display())],
        ..Report::of(path, Kind::Lora)
    })
}

impl Report {
    fn of(path: &Path, kind: Kind) -> Self {
        Self {
            path: path.to_owned(),
            kind,
            summary: String::new(),
            family: None,
            flavors: Vec::new(),
            recipes: Vec::new(),
            parts: Vec::new(),
            ignored: Vec::new(),
            needs: Vec::new(),
            says: Vec::new(),
            lines: Vec::new(),
            memory: None,
            notes: Vec::new(),
            problems: Vec::new(),
        }
    }
}

/// What is wrong with a folder's denoiser: what the family of its class says, or that there is none of its class.
fn of_folder(refused: &[models::Error]) -> Option<String> {
    let of_its_own = |error: &&models::Error| !matches!(error, models::Error::OtherClass { .. });
    let own = told(refused.iter().filter(of_its_own));
    match refused.first()? {
        models::Error::OtherClass { path, found, .. } if own.is_empty() => Some(format!(
            "{}: `_class_name`: `{}` is a network of no family that plumb knows",
            shown::path(path),
            shown::text(found)
        )),
        _ => Some(own.join("; ")),
    }
}

/// Why no family takes a path, as the end of a sentence.
fn reasons(refused: &[models::Error]) -> String {
    let lines = told(refused.iter());
    match lines.is_empty() {
        true => String::new(),
        false => format!(" ({})", lines.join("; ")),
    }
}

/// The errors' words, each once: a file that cannot be read, no family can read.
fn told<'a>(errors: impl Iterator<Item = &'a models::Error>) -> Vec<String> {
    let mut lines = Vec::new();
    for line in errors.map(ToString::to_string) {
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}

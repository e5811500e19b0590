//! Looking inside: a caption's tokens, what the denoiser receives for a caption or a picture, what a LoRA was trained with, what
//! a checkpoint is. Everything comes from the same code as training.

mod conditioning;
mod latents;
mod lora;
pub mod model;
mod tokens;

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::Tensor;

pub use conditioning::conditioning;
pub use latents::{PictureReport, latents};
pub use lora::{LoraReport, lora};
pub use tokens::{TokenReport, tokens};

use crate::cache;
use crate::dataset::{self, PictureError};
use crate::{convert, digest, encode, store};

/// Why something could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A caption or picture cannot be encoded.
    #[error(transparent)]
    Encode(#[from] encode::Error),
    /// The pictures' rules.
    #[error(transparent)]
    Dataset(#[from] dataset::Error),
    /// The picture cannot be used.
    #[error("{}: {why}", path.display())]
    Picture {
        /// The picture.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The picture's file.
    #[error(transparent)]
    PictureFile(#[from] PictureError),
    /// An entry, or the file that is written.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A tensor.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
    /// A key.
    #[error("{0}")]
    Canonical(#[from] digest::Error),
    /// The LoRA.
    #[error(transparent)]
    Lora(#[from] convert::Error),
    /// What a LoRA's file says of its making.
    #[error("{}: its `{key}` metadata cannot be read: {source}", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The metadata key.
        key: &'static str,
        /// What is wrong.
        source: serde_json::Error,
    },
}

fn shapes(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Vec<usize>> {
    tensors
        .iter()
        .map(|(name, t)| (name.clone(), t.dims().to_vec()))
        .collect()
}

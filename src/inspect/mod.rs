//! Looking inside: a caption's tokens, what the denoiser receives for a caption or a picture, what a LoRA was trained with, what
//! a checkpoint is, what another program has to know to read a store. Everything comes from the same code as training.

pub mod captions;
mod conditioning;
pub mod diff;
mod entry;
mod export;
mod latents;
mod lora;
mod manifest;
pub mod model;
mod neighbors;
pub mod report;
mod spec_title;
mod store;
mod tokens;
mod truncation;
pub mod vectors;

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::Tensor;

pub use conditioning::conditioning;
pub use entry::{
    EntryAddress, EntryReport, PartReport, PictureUse, RunUse, entries_of, entries_of_caption,
    entry, pictures_of,
};
pub use export::{ExportReport, ExportedEncoder, export};
pub use latents::{PictureReport, latents};
pub use lora::{LoraReport, lora};
pub use manifest::{Listed, ManifestReport, manifest};
pub use neighbors::{
    Contradictions, NearPair, NearestCaptions, Neighbor, NeighborOptions, Neighbors, SameCaption,
    SamePicture, contradictions, nearest_to, neighbors,
};
pub use spec_title::spec_title;
pub use store::{AlikeSpec, Leftovers, RunReport, SpecReport, StoreReport, experiments, store};
pub use tokens::{TokenReport, tokens};
pub use truncation::{CaptionCut, CutCaption, EncoderCuts, TruncationReport, truncation};

use crate::shown;
use crate::{cache, convert, dataset, encode};

/// Why something could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A caption or picture cannot be encoded.
    #[error(transparent)]
    Encode(#[from] encode::Error),
    /// The picture's file, or the data set's rules.
    #[error(transparent)]
    Dataset(#[from] dataset::Error),
    /// The picture cannot be used under these rules.
    #[error("{}: {why}", shown::path(path))]
    Picture {
        /// The picture.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// An entry, what is made of it, or the file that is written.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// The store lacks what the Experiment needs.
    #[error("{0}")]
    Refused(Box<cache::Refusal>),
    /// Vectors that do not fit into memory are kept in a file without a name meanwhile.
    #[error("cannot keep vectors in a temporary file: {0}; TMPDIR names another folder")]
    Rows(std::io::Error),
    /// The LoRA.
    #[error(transparent)]
    Lora(#[from] convert::Error),
    /// Another trainer's cache.
    #[error(transparent)]
    Audit(#[from] crate::audit::Error),
    /// What a LoRA's file says of its making.
    #[error("{}: its `{key}` metadata cannot be read: {source}", shown::path(path))]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The metadata key.
        key: &'static str,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Cache(error.into())
    }
}

fn shapes(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Vec<usize>> {
    tensors
        .iter()
        .map(|(name, t)| (name.clone(), t.dims().to_vec()))
        .collect()
}

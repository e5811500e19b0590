//! Why a probe could not be made.

use std::path::PathBuf;

use super::FEWEST_PICTURES;
use crate::models::memory::DoesNotFit;
use crate::{base_model, cache, dataset, encode, recipe, shown, store};

/// Why a probe could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Experiment has no pictures.
    #[error(
        "{}: a probe compares recipes on captioned pictures, and there is no [[dataset]]: name a folder of them",
        shown::path(file)
    )]
    NoPictures {
        /// The Experiment file.
        file: PathBuf,
    },
    /// It has too few.
    #[error(
        "{}: expected at least {FEWEST_PICTURES} different {things} that can be used, found {found}: fewer tell nothing",
        shown::path(file)
    )]
    TooFew {
        /// The Experiment file.
        file: PathBuf,
        /// Different pictures and clips that can be used, in words.
        found: String,
        /// What they are.
        things: &'static str,
    },
    /// The bands do not divide the draws.
    #[error(
        "--bands {bands}: expected a divisor of the {draws} draws, so that each band has as many"
    )]
    Bands {
        /// As asked for.
        bands: u32,
        /// The draws a picture.
        draws: u32,
    },
    /// What the others are to be compared with is no variant.
    #[error(
        "--against {}: expected a variant of {family}/{flavor} ({known}), or `experiment`",
        shown::text(found)
    )]
    Against {
        /// As written.
        found: String,
        /// The base model's family.
        family: String,
        /// Its flavor.
        flavor: String,
        /// The variants.
        known: String,
    },
    /// No other recipe is left.
    #[error("there is no recipe to compare {against} with: {why}")]
    NothingToCompare {
        /// What would be compared with.
        against: String,
        /// Why.
        why: String,
    },
    /// A recipe.
    #[error(transparent)]
    Recipe(#[from] recipe::Error),
    /// The base model.
    #[error(transparent)]
    Base(#[from] base_model::Error),
    /// The pictures and captions.
    #[error(transparent)]
    Dataset(#[from] dataset::Error),
    /// Encoding what the store lacks.
    #[error(transparent)]
    Encode(#[from] encode::Error),
    /// Reading it again.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The denoiser under a recipe.
    #[error("{label}: {source}")]
    Denoiser {
        /// The recipe.
        label: String,
        /// What is wrong.
        source: candle_core::Error,
    },
    /// There is not enough memory.
    #[error(transparent)]
    Memory(#[from] DoesNotFit),
    /// A loss is no number.
    #[error(
        "{}: the loss under {label} is NaN or infinite: {why}",
        shown::path(picture)
    )]
    NotFinite {
        /// The picture's file.
        picture: PathBuf,
        /// The recipe.
        label: String,
        /// Why that may be, and what to do.
        why: String,
    },
    /// Tensors.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
}

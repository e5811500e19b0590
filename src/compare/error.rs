//! Why two LoRAs are not compared.

use std::path::PathBuf;

use crate::digest::Digest;
use crate::{
    base_model, cache, convert, dataset, encode, lora, models, recipe, sample, shown, store, train,
};

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Both names lead to one LoRA.
    #[error(
        "{} and {} are the same LoRA ({}): there is nothing to compare",
        shown::path(a),
        shown::path(b),
        digest.short()
    )]
    SameLora {
        /// The one file.
        a: PathBuf,
        /// The other, which may be a copy.
        b: PathBuf,
        /// The digest of both.
        digest: Digest,
    },
    /// A LoRA is of another base model than the one that it would be measured on.
    #[error(
        "{}: was trained on the base model {}, and {of} is {}: their losses say nothing about each other",
        shown::path(lora),
        trained_on.short(),
        found.short()
    )]
    OtherBase {
        /// The LoRA.
        lora: PathBuf,
        /// The digest of the denoiser that it says it was trained on.
        trained_on: Digest,
        /// Whose the other base model is, in words.
        of: String,
        /// The other one's digest.
        found: Digest,
    },
    /// There is no Experiment to take the base model and the pictures from.
    #[error(
        "{}: {why}; name an Experiment with the base model and the pictures, --data EXPERIMENT",
        shown::path(lora)
    )]
    NoExperiment {
        /// The LoRA whose Experiment it would be.
        lora: PathBuf,
        /// Why it is not known.
        why: String,
    },
    /// No picture is kept from training.
    #[error(
        "{experiment}: holds no picture out of the training, so there is nothing to validate with; name an Experiment with pictures that neither LoRA was trained from, --data EXPERIMENT"
    )]
    NoPictures {
        /// The Experiment, in words.
        experiment: String,
    },
    /// The pictures are what a LoRA was trained from.
    #[error(
        "{experiment}: all that it has, {pictures}, is what {} was trained from: the loss tells how well it knows that by heart; name an Experiment with others, --data EXPERIMENT",
        shown::path(lora)
    )]
    TrainedOn {
        /// The Experiment with the pictures, in words.
        experiment: String,
        /// How many there are, in words.
        pictures: String,
        /// The LoRA.
        lora: PathBuf,
    },
    /// A LoRA's recipe cannot be made again.
    #[error(
        "{}: the recipe that it was trained with cannot be made by this plumb: {why}; --recipe NAME measures both under another one",
        shown::path(lora)
    )]
    NoRecipe {
        /// The LoRA.
        lora: PathBuf,
        /// What it lacks, or comes to.
        why: String,
    },
    /// The base model.
    #[error(transparent)]
    Base(#[from] base_model::Error),
    /// The recipe that was asked for.
    #[error(transparent)]
    Recipe(#[from] recipe::Error),
    /// The denoiser.
    #[error(transparent)]
    Model(#[from] models::Error),
    /// There is not enough memory.
    #[error(transparent)]
    Memory(#[from] models::memory::DoesNotFit),
    /// A LoRA's file.
    #[error(transparent)]
    Convert(#[from] convert::Error),
    /// A LoRA's adapters.
    #[error(transparent)]
    Lora(#[from] lora::Error),
    /// The pictures.
    #[error(transparent)]
    Dataset(#[from] dataset::Error),
    /// A caption or picture cannot be encoded.
    #[error(transparent)]
    Encode(#[from] encode::Error),
    /// An entry.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// A batch cannot be made.
    #[error(transparent)]
    Batch(#[from] train::Error),
    /// Previews, or what a LoRA says of its making.
    #[error(transparent)]
    Sample(#[from] sample::Error),
    /// A computation.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
    /// The store, or a file that cannot be written.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A loss is no number.
    #[error(
        "{}: the loss of {} is {loss}: {why}",
        shown::path(by),
        shown::path(picture)
    )]
    NotFinite {
        /// The LoRA, or the base model where it is measured alone.
        by: PathBuf,
        /// The picture.
        picture: PathBuf,
        /// NaN or an infinity.
        loss: f64,
        /// Why that may be, and what to do.
        why: String,
    },
}

//! What can end a training.

use std::path::PathBuf;

use crate::refusal::Refusal;
use crate::{
    base, conditioning, dataset, digest, embed, latents, lora, models, payload, plan, preview,
    store,
};

use super::checkpoint;

/// Why a training ended early, or never began.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store does not hold what is needed.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The Experiment asks for something that cannot be.
    #[error("{}: {what}", file.display())]
    Experiment {
        /// The file.
        file: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// The loss became NaN or infinite.
    #[error(
        "step {step}: the loss is {loss}: the training diverged; a lower `train.learning_rate` or a smaller `train.max_grad_norm` helps"
    )]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// Latents were there at the start and are gone or damaged now.
    #[error("{}: its latents are damaged or gone from the store; `plumb store check --read-data` says more, `plumb encode` makes them again", picture.display())]
    Lost {
        /// The picture.
        picture: PathBuf,
    },
    /// A file of the run cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The base model.
    #[error(transparent)]
    Base(#[from] base::Error),
    /// The base model's denoiser.
    #[error(transparent)]
    Model(#[from] models::Error),
    /// The pictures.
    #[error(transparent)]
    Dataset(#[from] dataset::Error),
    /// The latents' keys.
    #[error(transparent)]
    Latents(#[from] latents::Error),
    /// The captions' keys.
    #[error(transparent)]
    Embed(#[from] embed::Error),
    /// An entry.
    #[error(transparent)]
    Conditioning(#[from] conditioning::Error),
    /// The adapters.
    #[error(transparent)]
    Lora(#[from] lora::Error),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A preview.
    #[error(transparent)]
    Preview(#[from] preview::Error),
    /// There is not enough memory.
    #[error(transparent)]
    Memory(#[from] plan::Refused),
    /// A dump.
    #[error(transparent)]
    Payload(#[from] payload::Error),
    /// A computation.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
    /// An id.
    #[error("{0}")]
    Canonical(#[from] digest::Error),
}

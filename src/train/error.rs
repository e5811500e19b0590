//! What can end a training.

use std::path::PathBuf;

use super::{checkpoint, output, plan};
use crate::cache::{self, Refusal};
use crate::shown;
use crate::{base_model, dataset, lora, models, ranks, sample, store};

/// Why a training ended early, or never began.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store does not hold what is needed.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The Experiment asks for something that cannot be.
    #[error("{}: {what}", shown::path(file))]
    Experiment {
        /// The Experiment's file.
        file: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// What was computed with the LoRA as it is became NaN or infinite.
    #[error("step {step}: {what}: {why}")]
    Diverged {
        /// The step, from 1; 0 before the first.
        step: u64,
        /// What is not finite, with its verb and what it is.
        what: String,
        /// Why that may be, and what to do.
        why: String,
    },
    /// The loss was finite, and what it was to change was not.
    #[error("step {step}: {what} NaN or infinite: {DIVERGED}")]
    NotFinite {
        /// The step, from 1.
        step: u64,
        /// What is not finite, with its verb.
        what: String,
    },
    /// A file of the run cannot be read or written.
    #[error("{}: {source}", shown::path(path))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The base model.
    #[error(transparent)]
    Base(#[from] base_model::Error),
    /// The base model's denoiser.
    #[error(transparent)]
    Model(#[from] models::Error),
    /// The pictures.
    #[error(transparent)]
    Dataset(#[from] dataset::Error),
    /// An entry, or a file of tensors.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// The adapters.
    #[error(transparent)]
    Lora(#[from] lora::Error),
    /// The adapters in a type of few numbers.
    #[error(
        "{0}; set `adapter.save_precision` to \"bf16\" or \"f32\" and run the command again, which trains no step anew"
    )]
    SavePrecision(lora::Error),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The folder of the run.
    #[error(transparent)]
    Output(#[from] output::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A preview.
    #[error(transparent)]
    Preview(#[from] sample::Error),
    /// There is not enough memory.
    #[error(transparent)]
    Memory(#[from] plan::DoesNotFit),
    /// Other ranks.
    #[error(transparent)]
    Ranks(#[from] ranks::Error),
    /// A rank is about to train something else.
    #[error(
        "rank {rank} would not train the same LoRA as rank 0: {what}; start all ranks with the same plumb, Experiment, data and base model, on devices of one kind"
    )]
    Unlike {
        /// Which.
        rank: usize,
        /// What differs, with both values.
        what: String,
    },
    /// A rank's numbers became others.
    #[error(
        "rank {rank} has other numbers than rank 0 after step {step}, so the LoRA would be neither's: processors, GPUs or libraries compute differently there; train on machines that are alike"
    )]
    Drifted {
        /// Which.
        rank: usize,
        /// The step after which they were compared.
        step: u64,
    },
    /// A computation.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
}

/// Why what a training has learned is not finite, and what to do.
pub(super) const DIVERGED: &str =
    "the training diverged; a lower `train.learning_rate` or a smaller `train.max_grad_norm` helps";

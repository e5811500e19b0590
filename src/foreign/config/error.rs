//! Why a config cannot be brought in, each as one clear line.

use std::path::PathBuf;

use crate::shown;

/// Why a config cannot be brought in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read, or is in no format of a config.
    #[error("{}: {why}", shown::path(file))]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why not.
        why: String,
    },
    /// Nothing in it tells whose it is.
    #[error(
        "{}: nothing in it tells which trainer's it is; say so with --from (one of {known})",
        shown::path(file)
    )]
    UnknownTrainer {
        /// The file.
        file: PathBuf,
        /// The trainers' names.
        known: String,
    },
    /// A file is not of the trainer that it is said to be of.
    #[error("{}: it is no config of {trainer}: {why}", shown::path(file))]
    OtherTrainer {
        /// The file.
        file: PathBuf,
        /// Whose it was read as.
        trainer: &'static str,
        /// What is missing in it.
        why: String,
    },
    /// The base model is of no family that plumb trains, or is not named.
    #[error("{}: {why}", shown::path(file))]
    NoModel {
        /// The file.
        file: PathBuf,
        /// What was found, and what to do.
        why: String,
    },
    /// A shipped file is wrong, or the Experiment would not hold: a fault of plumb's.
    #[error(
        "{}: {why}; this is a fault of plumb, please report it",
        shown::path(file)
    )]
    Internal {
        /// The config.
        file: PathBuf,
        /// What went wrong.
        why: String,
    },
}

//! What can be wrong with weights, each with the file and the tensor it is about.

use std::path::PathBuf;

use crate::shown;

use super::ElementType;

/// Why weights could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened, read or listed.
    #[error("cannot read {}: {error}", shown::path(path))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file was changed while it was in use.
    #[error(
        "{} was changed while it was in use: what was read of it may be of two versions; begin again",
        shown::path(path)
    )]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The weights are not those that were read whole before.
    #[error(
        "{files} holds other weights ({found}) than were read there before ({remembered}), and nothing told so: what was remembered is corrected now; run this again"
    )]
    Remembered {
        /// The files, as [`super::Weights::describe`] names them.
        files: String,
        /// The digest that was remembered, shortened.
        remembered: String,
        /// The digest of what is there, shortened.
        found: String,
    },
    /// No weights where they were looked for.
    #[error("no weights in {}: {reason}", shown::path(path))]
    NotFound {
        /// The folder, or what was given.
        path: PathBuf,
        /// What is there instead, and what to do.
        reason: String,
    },
    /// The file is not a whole and consistent safetensors file, GGUF file or shard index.
    #[error("{} is not a valid {kind} file: {reason}", shown::path(path))]
    Format {
        /// The file.
        path: PathBuf,
        /// The kind of file it was read as.
        kind: &'static str,
        /// What is wrong with it, as a clause about the file.
        reason: String,
    },
    /// Two files hold a tensor of the same name.
    #[error(
        "tensor `{}` is in both {} and {}: give one of them",
        shown::text(tensor),
        shown::path(first),
        shown::path(second)
    )]
    Duplicate {
        /// Its name in both files.
        tensor: String,
        /// The file that was opened first.
        first: PathBuf,
        /// The one opened after it.
        second: PathBuf,
    },
    /// A tensor that the network needs is not there.
    #[error("tensor `{}` is missing from {files}{near}", shown::text(tensor))]
    Missing {
        /// The name looked for in the files.
        tensor: String,
        /// The files, as [`super::Weights::describe`] names them.
        files: String,
        /// The nearest name that is there, as a half sentence, or nothing.
        near: String,
    },
    /// A tensor is there in another shape.
    #[error(
        "tensor `{}` in {} has shape {found:?} ({dtype}), expected {expected:?}",
        shown::text(tensor),
        shown::path(path)
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// The shape the network needs, as the file would store it.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
        /// The element type in the file.
        dtype: ElementType,
    },
    /// A tensor's element type is not one that weights are read from.
    #[error(
        "tensor `{}` in {} is {found}, expected F32, F16, BF16, F64 or an 8-bit float",
        shown::text(tensor),
        shown::path(path)
    )]
    ElementType {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// The element type in the file.
        found: ElementType,
    },
    /// A part of a quantised tensor, or its transpose, does not consist of whole blocks.
    #[error(
        "tensor `{}` in {} is {dtype} of shape {shape:?}, and {needed} of it is needed: its blocks of numbers cannot be taken apart",
        shown::text(tensor),
        shown::path(path)
    )]
    Blocks {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// Its element type, one of GGUF's block formats.
        dtype: ElementType,
        /// Its shape in the file.
        shape: Vec<usize>,
        /// What of it the network needs: a part, a half, a row, or the transpose.
        needed: &'static str,
    },
    /// A weight is NaN or infinite.
    #[error(
        "tensor `{}` in {} holds {value} at element {index}: the file is damaged",
        shown::text(tensor),
        shown::path(path)
    )]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// NaN or an infinity.
        value: f32,
        /// Its row-major position among the elements read.
        index: usize,
    },
    /// A row was asked for that the tensor does not have.
    #[error(
        "row {row} of tensor `{}` in {} was asked for, it has {rows}",
        shown::text(tensor),
        shown::path(path)
    )]
    Row {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// The row asked for, from 0.
        row: u32,
        /// How many rows it has.
        rows: usize,
    },
    /// The tensor could not be made on the device.
    #[error(
        "tensor `{}` in {} cannot be loaded: {error}",
        shown::text(tensor),
        shown::path(path)
    )]
    Device {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// What the backend said.
        error: Box<candle_core::Error>,
    },
    /// A network could not bring what it loaded into the form that it computes with.
    #[error("{0}")]
    Form(Box<candle_core::Error>),
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Form(Box::new(error))
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        Self::wrap(error)
    }
}

//! LoRA files in the naming of diffusers and PEFT, as bytes: `transformer.<module>.lora_A.weight` [rank, inputs]
//! and `.lora_B.weight` [outputs, rank]; of a convolution [rank, inputs, height, width] and [outputs, rank, 1, 1].
//!
//! A file of this naming has no alpha tensors, and readers differ in where they look for alpha: diffusers in the
//! `lora_adapter_metadata` JSON, ComfyUI nowhere. So alpha / rank is folded into A and B and the JSON says
//! `lora_alpha = r`: every reader then applies the same update. The factor on A is a power of two, and so is the one
//! on B if alpha / rank is, so folding costs no precision in the usual cases.
//!
//! The same adapters, options and metadata give the same bytes.

mod read;
pub(super) mod stored;
mod write;

use std::collections::BTreeMap;

pub use read::read;
pub(super) use read::{alpha, linear_shape, metadata_config};
pub(super) use stored::{header_bytes, names};
pub use write::write;
pub(super) use write::{
    EncodedTensor, adapter_metadata, commonest_rank, encode, fold, to_safetensors,
};

use super::{AdapterSet, Error};

/// Key of the JSON in which diffusers and PEFT keep rank, alpha and targets.
pub(super) const ADAPTER_METADATA: &str = "lora_adapter_metadata";

/// What PEFT's wrapper of a network puts in front of every module's name.
pub(super) const PEFT_COMPONENT: &str = "base_model.model";

/// How a LoRA file stores its numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SaveDtype {
    /// As they are trained: nothing is rounded.
    F32,
    /// 11 bits of precision; what most files have.
    F16,
    /// 8 bits of precision, the range of f32.
    #[default]
    Bf16,
}

impl SaveDtype {
    /// safetensors' name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// Bytes of one number.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// How a LoRA file is written.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// The part of the pipeline that the adapters belong to: the first part of every tensor's name.
    pub component: &'static str,
    /// How A and B are stored; there are no other tensors.
    pub dtype: SaveDtype,
    /// What the file's metadata says besides rank, alpha and hashes, which are added.
    pub metadata: BTreeMap<String, String>,
}

/// A LoRA file that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraFile {
    /// The adapters under the file's module names.
    pub adapters: AdapterSet,
    /// The file's metadata, as it is.
    pub metadata: BTreeMap<String, String>,
}

/// A or B of an adapter: rows, columns, and for a convolution height and width; row major.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Two dimensions, of a convolution four; none is 0.
    pub shape: Vec<usize>,
    /// As many as the product of `shape`.
    pub values: Vec<f32>,
}

impl Matrix {
    /// The first dimension: the rank of A, the outputs of B.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }

    /// Numbers in a row, whatever its dimensions.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }
}

pub(super) fn tensor_error(origin: &str, tensor: &str, what: String) -> Error {
    Error::FileTensor {
        origin: origin.to_owned(),
        tensor: tensor.to_owned(),
        what,
    }
}

#[cfg(test)]
mod tests;

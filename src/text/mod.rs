//! Text encoders: token ids in, hidden states and pooled vectors out, as an
//! [`EncoderSpec`](crate::recipe::spec::EncoderSpec) says.
//!
//! There is one CLIP text tower (`clip.rs`) and one T5 encoder (`t5.rs`). All that published recipes disagree
//! about (which layer, which norm, which row is pooled, what is masked) is data, so one network serves every
//! recipe, and what a recipe does not ask for is not computed.
//!
//! # Batches do not change numbers
//!
//! The sequences of a call are sorted by length and laid end to end as rows (`batch.rs`). Everything but
//! attention works on rows, and attention sees one sequence at a time; the kernels compute a row in the same
//! order whatever its neighbours are. So each caption's output is, on a CPU, bit for bit what it would be
//! alone, and no pad is computed that no row asked for.

mod batch;
mod clip;
mod names;
mod t5;
#[cfg(test)]
mod tests;
pub mod tokenizer;

use candle_core::{DType, Tensor};

use crate::digest::Digest;
use crate::nn;
use crate::nn::weights::{self, DigestMemo, Weights};
use crate::recipe::spec::{self, Architecture, ForwardRules};

use clip::ClipTextTower;
use t5::T5Encoder;
pub use tokenizer::{Tokenizer, TokenizerKind, Tokens};

/// Why a caption could not be encoded, or an encoder not loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A weights file, or one of its tensors, does not fit.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// The backend failed.
    #[error("the text encoder failed: {0}")]
    Backend(Box<candle_core::Error>),
    /// The spec contradicts itself.
    #[error("the encoder's spec cannot be: {0}")]
    Spec(String),
    /// No tensor looks like this encoder.
    #[error("{files} has no {encoder}: no tensor is called `{anchor}`")]
    NotThere {
        /// The files.
        files: String,
        /// The kind of encoder.
        encoder: &'static str,
        /// The name, or end of a name, that was looked for.
        anchor: &'static str,
    },
    /// Several encoders of one kind and size are there.
    #[error("{files} has more than one {encoder} (below {prefixes}): name the one that is meant")]
    Ambiguous {
        /// The files.
        files: String,
        /// The kind of encoder.
        encoder: &'static str,
        /// Where they are.
        prefixes: String,
    },
    /// There are tensors that the architecture has no place for.
    #[error(
        "{files} has {count} tensors that the encoder's configuration has no place for, the first is `{first}`: {hint}"
    )]
    Unexpected {
        /// The files.
        files: String,
        /// How many.
        count: usize,
        /// The first by name.
        first: String,
        /// What is likely wrong.
        hint: String,
    },
    /// `text_projection` is stored in the other orientation than its name says.
    #[error(
        "`{tensor}` in {files} is stored transposed ({reason}): pooled vectors would be wrong; use a file with OpenCLIP's own names or one that Hugging Face libraries wrote"
    )]
    TransposedProjection {
        /// The files.
        files: String,
        /// The tensor's name there.
        tensor: String,
        /// How it is known.
        reason: String,
    },
    /// The file is one of another family that has the same names.
    #[error(
        "{files} is a UMT5 encoder ({tables} relative attention tables, T5 has 1): it is not supported"
    )]
    Umt5 {
        /// The files.
        files: String,
        /// How many tables it has.
        tables: usize,
    },
    /// Two names of one tensor hold different values.
    #[error(
        "`{first}` and `{second}` in {files} should be the same tensor and differ: it is not clear which one is meant"
    )]
    Untied {
        /// The files.
        files: String,
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// A token id is not in the vocabulary.
    #[error(
        "caption {caption}: token {position} is {id}, the embedding table has {vocab_size} rows: the tokenizer does not belong to this encoder"
    )]
    Vocabulary {
        /// Index in the call.
        caption: usize,
        /// Index in the caption.
        position: usize,
        /// The token.
        id: u32,
        /// The vocabulary's size.
        vocab_size: usize,
    },
    /// More tokens than the encoder has positions for.
    #[error(
        "caption {caption} has {tokens} tokens, the encoder has {limit} positions: set the recipe's max_tokens to at most {limit}"
    )]
    TooLong {
        /// Index in the call.
        caption: usize,
        /// Tokens, pads included.
        tokens: usize,
        /// Rows of the position embedding.
        limit: usize,
    },
    /// The count of tokens before the pads cannot be.
    #[error("caption {caption} counts {count} tokens before its pads, of {tokens}")]
    Count {
        /// Index in the call.
        caption: usize,
        /// Tokens before the pads.
        count: usize,
        /// Tokens, pads included.
        tokens: usize,
    },
    /// The row to pool does not exist.
    #[error(
        "caption {caption} has no end-of-text token {id} to pool at: the tokenizer does not belong to this encoder"
    )]
    NoEos {
        /// Index in the call.
        caption: usize,
        /// The token that was looked for.
        id: u32,
    },
    /// The output holds a NaN or an infinity.
    #[error("the {output} output for caption {caption} is not finite: the weights are damaged, or overflow in {} (compute in f32)", dtype.as_str())]
    NonFinite {
        /// Index in the call.
        caption: usize,
        /// `hidden` or `pooled`.
        output: &'static str,
        /// The type that was computed in.
        dtype: DType,
    },
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Backend(Box::new(error))
    }
}

/// What an encoder makes of a caption, in the type it computed in.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The sequence, `[tokens, width]`, if the rules keep one.
    pub hidden: Option<Tensor>,
    /// The pooled vector, `[width]`, if the rules take one.
    pub pooled: Option<Tensor>,
}

/// Where an encoder's weights are between calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// In memory. (Embedding tables stay in the file: of them only some rows are needed.)
    Resident,
    /// In the file: each call reads one layer at a time, once, for all its captions. For an encoder larger
    /// than memory, called with many captions.
    Streamed,
}

/// A text encoder, ready to run.
pub struct TextEncoder {
    network: Network,
    dtype: DType,
    notes: Vec<String>,
}

enum Network {
    Clip(ClipTextTower),
    T5(T5Encoder),
}

impl TextEncoder {
    /// Finds the encoder among `weights` by its names (Hugging Face's, OpenCLIP's, alone or below a prefix),
    /// checks that all of it is there and nothing more, and loads what `rules` need. It computes in the
    /// weights' type, on their device.
    ///
    /// # Errors
    /// If `architecture` and `rules` do not fit each other or the files.
    pub fn load(
        architecture: &Architecture,
        rules: &ForwardRules,
        weights: &Weights,
        residency: Residency,
    ) -> Result<Self, Error> {
        let dtype = weights.dtype();
        let mut notes = Vec::new();
        let network = match Plan::new(architecture, rules, weights)? {
            Plan::Clip(plan) => {
                notes.extend(plan.notes.iter().cloned());
                Network::Clip(ClipTextTower::load(plan, residency)?)
            }
            Plan::T5(plan) => Network::T5(T5Encoder::load(plan, residency)?),
        };
        Ok(Self {
            network,
            dtype,
            notes,
        })
    }

    /// What a person should know about the files that were loaded; usually nothing.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Encodes captions. The result does not depend on which captions are encoded together.
    ///
    /// # Errors
    /// If a caption's tokens do not fit the encoder, or an output is not finite.
    pub fn encode(&self, captions: &[Tokens]) -> Result<Vec<Encoded>, Error> {
        for (caption, tokens) in captions.iter().enumerate() {
            let len = tokens.ids.len();
            if tokens.count == 0 || tokens.count > len {
                return Err(Error::Count {
                    caption,
                    count: tokens.count,
                    tokens: len,
                });
            }
        }
        let encoded = match &self.network {
            Network::Clip(tower) => tower.encode(captions)?,
            Network::T5(encoder) => encoder.encode(captions)?,
        };
        for (caption, encoded) in encoded.iter().enumerate() {
            self.check_finite(caption, encoded)?;
        }
        Ok(encoded)
    }

    fn check_finite(&self, caption: usize, encoded: &Encoded) -> Result<(), Error> {
        let outputs = [("hidden", &encoded.hidden), ("pooled", &encoded.pooled)];
        for (output, tensor) in outputs {
            let Some(tensor) = tensor else { continue };
            // 0 x is 0 where x is finite and NaN where it is not, in any type, on any device.
            let sum = tensor.affine(0.0, 0.0)?.sum_all()?.to_dtype(DType::F32)?;
            if sum.to_scalar::<f32>()? != 0.0 {
                return Err(Error::NonFinite {
                    caption,
                    output,
                    dtype: self.dtype,
                });
            }
        }
        Ok(())
    }
}

/// An encoder found in files, checked by their headers and not loaded.
pub struct Located {
    /// Under canonical names.
    pub weights: Weights,
    /// Canonical name and shape of every tensor that the rules need.
    pub tensors: TensorList,
    /// What a person should know about the files; usually nothing.
    pub notes: Vec<String>,
}

impl Located {
    /// How many numbers a loaded encoder keeps in memory: embedding tables stay in the file.
    pub fn resident_parameters(&self) -> u64 {
        let is_table =
            |name: &str| name.ends_with("token_embedding.weight") || name == "shared.weight";
        let resident = self.tensors.iter().filter(|(name, _)| !is_table(name));
        resident
            .map(|(_, shape)| shape.iter().product::<usize>() as u64)
            .sum()
    }
}

/// Finds an encoder among `weights`, as [`TextEncoder::load`] does.
///
/// # Errors
/// As [`TextEncoder::load`], but values are not checked.
pub fn locate(
    architecture: &Architecture,
    rules: &ForwardRules,
    weights: &Weights,
) -> Result<Located, Error> {
    Ok(match Plan::new(architecture, rules, weights)? {
        Plan::Clip(plan) => Located {
            weights: plan.weights,
            tensors: plan.used,
            notes: plan.notes,
        },
        Plan::T5(plan) => Located {
            weights: plan.weights,
            tensors: plan.used,
            notes: Vec::new(),
        },
    })
}

/// The digest of the weights that `rules` use of the encoder among `weights`: the same for the same encoder
/// in another file, shard layout or naming. With a `memo`, a file that has not changed is not read again.
///
/// # Errors
/// As [`locate`].
pub fn weights_digest(
    architecture: &Architecture,
    rules: &ForwardRules,
    weights: &Weights,
    memo: Option<&mut DigestMemo>,
) -> Result<Digest, Error> {
    let found = locate(architecture, rules, weights)?;
    Ok(match memo {
        Some(memo) => memo.digest(&found.weights, &found.tensors)?,
        None => found.weights.digest(&found.tensors)?,
    })
}

/// An encoder found in files and checked by their headers, not loaded.
enum Plan {
    Clip(clip::Plan),
    T5(t5::Plan),
}

impl Plan {
    fn new(
        architecture: &Architecture,
        rules: &ForwardRules,
        weights: &Weights,
    ) -> Result<Self, Error> {
        match (architecture, rules) {
            (Architecture::ClipText(architecture), ForwardRules::ClipText(rules)) => {
                clip::Plan::new(architecture, rules, weights).map(Self::Clip)
            }
            (Architecture::T5Encoder(architecture), ForwardRules::T5Encoder(rules)) => {
                t5::Plan::new(architecture, rules, weights).map(Self::T5)
            }
            (Architecture::ClipText(_), ForwardRules::T5Encoder(_)) => Err(Error::Spec(
                "the network is a CLIP text tower, the forward rules are T5's".into(),
            )),
            (Architecture::T5Encoder(_), ForwardRules::ClipText(_)) => Err(Error::Spec(
                "the network is a T5 encoder, the forward rules are CLIP's".into(),
            )),
        }
    }
}

/// Canonical names and shapes.
pub type TensorList = Vec<(String, Vec<usize>)>;

/// Checks that a spec's number is one that a network can be made of.
fn positive(field: &str, value: usize) -> Result<usize, Error> {
    match value {
        0 => Err(Error::Spec(format!("{field} is 0"))),
        // Larger than any network, and small enough that no product of two sizes overflows.
        value if value > 1 << 28 => Err(Error::Spec(format!("{field} is {value}"))),
        value => Ok(value),
    }
}

/// Checks that ids are rows of the embedding table.
fn check_vocabulary(captions: &[Tokens], vocab_size: usize) -> Result<(), Error> {
    for (caption, tokens) in captions.iter().enumerate() {
        if let Some(position) = tokens.ids.iter().position(|&id| id as usize >= vocab_size) {
            return Err(Error::Vocabulary {
                caption,
                position,
                id: tokens.ids[position],
                vocab_size,
            });
        }
    }
    Ok(())
}

fn activate(activation: spec::Activation, x: &Tensor) -> candle_core::Result<Tensor> {
    match curve(activation) {
        Some(curve) => curve.apply(x),
        None => x.relu(),
    }
}

/// `activation(gate) * x`.
fn activate_gated(
    activation: spec::Activation,
    gate: &Tensor,
    x: &Tensor,
) -> candle_core::Result<Tensor> {
    match curve(activation) {
        Some(curve) => curve.apply_gated(gate, x),
        None => gate.relu()? * x,
    }
}

/// The kernel's name for an activation; `None` for relu.
fn curve(activation: spec::Activation) -> Option<nn::Activation> {
    match activation {
        spec::Activation::QuickGelu => Some(nn::Activation::QuickGelu),
        spec::Activation::Gelu => Some(nn::Activation::GeluErf),
        spec::Activation::GeluNew => Some(nn::Activation::GeluTanh),
        spec::Activation::Silu => Some(nn::Activation::Silu),
        spec::Activation::Relu => None,
    }
}

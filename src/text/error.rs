//! Why a caption could not be encoded, or an encoder not loaded.

use candle_core::DType;

use crate::monitor::Signal;
use crate::nn::weights;
use crate::shown;

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
        /// The files, as [`Weights::describe`](crate::nn::weights::Weights::describe) names them.
        files: String,
        /// The kind of encoder.
        encoder: &'static str,
        /// The name, or end of a name, that was looked for.
        anchor: &'static str,
    },
    /// Several encoders of one kind and size are there.
    #[error("{files} has more than one {encoder} (below {prefixes}): name the one that is meant")]
    Ambiguous {
        /// The files, as [`Weights::describe`](crate::nn::weights::Weights::describe) names them.
        files: String,
        /// The kind of encoder.
        encoder: &'static str,
        /// Where they are.
        prefixes: String,
    },
    /// There are tensors that the architecture has no place for.
    #[error(
        "{files} has {} that the encoder's configuration has no place for, the first is `{first}`: {hint}",
        shown::counted(*count, "tensor")
    )]
    Unexpected {
        /// The files, as [`Weights::describe`](crate::nn::weights::Weights::describe) names them.
        files: String,
        /// How many such tensors there are.
        count: usize,
        /// The first by name.
        first: String,
        /// What is likely wrong.
        hint: String,
    },
    /// Two names of one tensor hold different values.
    #[error(
        "`{first}` and `{second}` in {files} should be the same tensor and differ: it is not clear which one is meant"
    )]
    Untied {
        /// The files, as [`Weights::describe`](crate::nn::weights::Weights::describe) names them.
        files: String,
        /// One of the names, as the files have it.
        first: String,
        /// The other name.
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
        /// The token's id, which no row has.
        id: u32,
        /// Rows of the embedding table.
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
    /// The work was to end before it was done.
    #[error("ended by {0}")]
    Stopped(Signal),
    /// A caption of pads alone.
    #[error(
        "a caption is empty and has no token here, so that there is nothing to attend to, for which no reference has a result: let the recipe's `tokens.template` put tokens around it, or use no empty captions, no `caption_dropout` and no guidance"
    )]
    NoToken,
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
    /// What only one kind of encoder can find wrong, as a whole sentence.
    #[error("{0}")]
    OfKind(String),
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

impl Error {
    /// As it is called where the captions begin at `first` of the call.
    pub(super) fn of_captions_from(mut self, first: usize) -> Self {
        if let Self::Vocabulary { caption, .. }
        | Self::TooLong { caption, .. }
        | Self::Count { caption, .. }
        | Self::NonFinite { caption, .. } = &mut self
        {
            *caption += first;
        }
        self
    }
}

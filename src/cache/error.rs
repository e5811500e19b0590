//! Why something could not be read from the cache.

use std::path::PathBuf;

use crate::digest::Fingerprint;
use crate::shown;
use crate::store;

/// Why an embedding or latents could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store lacks an encoder's entry of a caption.
    #[error("{slot}: the store has no entry of `{caption}` (entry {}); encode it first", entry.short())]
    NoCaption {
        /// The encoder's slot in the recipe: `clip_l`, `t5`.
        slot: String,
        /// The whole caption.
        caption: String,
        /// The fingerprint that the entry would have.
        entry: Fingerprint,
    },
    /// Latents were there at the start and are gone or damaged now.
    #[error(
        "{}: its latents are damaged or gone from the store; `plumb store check --read-data` says more, `plumb encode` makes them again",
        shown::path(picture)
    )]
    NoLatents {
        /// The picture's file.
        picture: PathBuf,
    },
    /// The store cannot be read, or a file not be written.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// An entry is not what the encoder makes.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
}

//! The store seen as what training needs of it: each encoder's embeddings of captions, and the latents of pictures.
//!
//! `encode` fills it, `train` and `sample` read it; all three name entries by [`Specs`], so they mean the same ones. Nothing here
//! encodes anything: an entry that is not there is an error for the caller to report, or a [`Refusal`] that says in which fields
//! the store differs.
//!
//! - [`Specs`]: the fingerprints that entries are filed under
//! - [`Manifest`]: which entries an Experiment uses; [`EntryList`]: which entries a run in the store uses
//! - [`Description`]: what it takes to read them in another program
//! - [`Reader`]: embeddings and latents as tensors, by their specs alone; [`ModelCache`]: the same for one base model, with its recipe
//! - [`conditioning`]: what the denoiser receives of a caption's embeddings
//! - [`difference`]: how much two outputs differ, true tokens, pads and pooled apart
//! - [`tensors`]: between tensors and the store's bytes

pub mod conditioning;
mod description;
pub mod difference;
mod error;
mod manifest;
mod read;
mod refusal;
mod specs;
pub mod tensors;

pub use conditioning::{
    Conditioning, EncoderOutput, EncoderOutputs, EncoderPlace, assemble, batch, drop_caption,
    places,
};
pub use description::Description;
pub use error::Error;
pub use manifest::{EntryList, Manifest, captions};
pub use read::{CutCaptions, ModelCache, Reader, StoredLatents, time_ids};
pub use refusal::{MissingEntries, NearestSpec, Refusal, refuse_if_missing, refuse_without_store};
pub use specs::{EncoderId, Specs};

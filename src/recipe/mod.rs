//! Recipes: how a base model expects its conditioning to be made.
//!
//! [`Recipe::resolve`] takes a shipped recipe ([`data`]) and the deviations a person named, and gives rules
//! ([`rules`]) of which each field knows where it comes from. With a checkpoint's architecture, weights and
//! tokenizer, each encoder's rules become an [`EncoderSpec`](spec::EncoderSpec), whose fingerprint keys the store.
//! [`diff`] shows in which fields two of anything differ; [`explain`] says what each field does; [`candidates`] are recipes near one.
//!
//! Nothing here opens a checkpoint's weights, knows a store, or computes a tensor.

pub mod candidates;
mod checks;
pub mod data;
pub mod diff;
mod encoder;
mod error;
pub mod explain;
pub mod latents;
mod name;
mod resolve;
pub mod rules;

pub use candidates::Candidate;
pub use data::{Claim, Field, Status};
pub use diff::Diff;
pub use encoder::EncoderRecipe;
pub use error::Error;
pub use name::{REFERENCE, RecipeName};
pub use resolve::{Deviation, Listing, RECIPE_VERSION, Recipe, list};

pub use crate::text::spec;

#[cfg(test)]
mod tests;

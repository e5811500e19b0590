//! What other trainers write: their caches of embeddings and latents, and their configs.
//!
//! Only the formats stand here, read as hostile files are: within bounds, without running anything that is in them. What made a
//! cache, and what a config's fields come to, is for the modules above.

pub mod cache;

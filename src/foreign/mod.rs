//! What other trainers write: their caches of embeddings and latents, and their configs.
//!
//! All of it is read as hostile files are: within bounds, without running anything that is in them. What made a cache is for the
//! modules above; what a config's settings come to is data, which [`config`] looks up.

pub mod cache;
pub mod config;

#[cfg(test)]
mod fuzz_tests;

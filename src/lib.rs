//! Plumb: caption embeddings that are exactly what a diffusion model expects, computed once, kept in a store
//! that cannot be misread, and LoRAs trained from that store.
//!
//! # Where things are, bottom up
//!
//! | layer | modules | may use |
//! |---|---|---|
//! | L0 vocabulary | [`digest`], [`files`], [`rng`], [`monitor`], [`shown`] | nothing of ours |
//! | L1 bytes | [`store`] | L0; no candle; parquet only here |
//! | L2 numerics | [`device`], [`autograd`], [`nn`], [`lora`], [`optim`], [`diffusion`], [`ranks`] | L0; candle starts here; no files but `nn::weights` |
//! | L3 networks and what they are fed | [`text`], [`recipe`], [`vae`], [`models`] | L2, and those before them in this list; no store, no clock, no randomness |
//! | L4 what a user names | [`experiment`], [`base_model`], [`dataset`], [`foreign`] | all below |
//! | L5 the store as tensors | [`cache`] | all below |
//! | L6 verbs | [`convert`], [`encode`], [`worker`], [`sample`], [`train`], [`probe`], [`compare`], [`audit`], [`inspect`] | all below, and verbs before them in this list |
//! | L7 | `src/bin/plumb` | the public interface above, clap, the terminal |
//!
//! Vocabulary, devices and `nn` are a crate of their own, `plumb-core`, so that tests compile what computes optimised, and the rest quickly.
//! `tests/it/tidy.rs` holds this table against the sources of both. Below L7 nothing prints, reads the environment
//! or looks at the clock.

#![cfg_attr(
    test,
    expect(
        clippy::disallowed_methods,
        reason = "tests make and damage files as they need"
    )
)]

pub use plumb_core::{device, digest, files, monitor, nn, rng, shown};

pub mod store;

pub mod autograd;
pub mod diffusion;
pub mod lora;
pub mod optim;
pub mod ranks;

pub mod models;
pub mod recipe;
pub mod text;
pub mod vae;

pub mod base_model;
pub mod dataset;
pub mod experiment;
pub mod foreign;

pub mod cache;

pub mod audit;
pub mod compare;
pub mod convert;
pub mod encode;
pub mod inspect;
pub mod probe;
pub mod sample;
pub mod train;
pub mod worker;

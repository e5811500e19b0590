//! Plumb: caption embeddings that are exactly what a diffusion model expects, computed once, kept in a store
//! that cannot be misread, and LoRAs trained from that store.
//!
//! # Where things are, bottom up
//!
//! | layer | modules | may use |
//! |---|---|---|
//! | L0 vocabulary | [`digest`], [`rng`], [`monitor`] | nothing of ours |
//! | L1 descriptions and bytes | [`recipe`], [`store`] | L0; no candle; parquet only in `store` |
//! | L2 numerics | [`device`], [`autograd`], [`nn`], [`lora`], [`optim`], [`diffusion`] | L0; candle starts here; no files but `nn::weights` |
//! | L3 networks | [`text`], [`vae`], [`models`] | L2, `recipe`; no store, no clock, no randomness |
//! | L4 verbs | [`experiment`], [`base`], [`dataset`], [`material`], [`manifest`], [`embed`], [`latents`], [`hub`], [`conditioning`], [`train`], [`sample`], [`preview`], [`payload`], [`plan`], [`refusal`], [`inspect`], [`model_check`], [`convert`] | all below |
//! | L5 | `src/bin/plumb` | the public interface above, clap, the terminal |
//!
//! `tests/it/tidy.rs` holds this table against the sources. Below L5 nothing prints, reads the environment
//! or looks at the clock.

#![cfg_attr(
    test,
    expect(
        clippy::disallowed_methods,
        reason = "tests make and damage files as they need"
    )
)]

pub mod digest;
pub mod monitor;
pub mod rng;

pub mod recipe;
pub mod store;

pub mod autograd;
pub mod device;
pub mod diffusion;
pub mod lora;
pub mod nn;
pub mod optim;

pub mod models;
pub mod text;
pub mod vae;

pub mod base;
pub mod conditioning;
pub mod convert;
pub mod dataset;
pub mod embed;
pub mod experiment;
pub mod hub;
pub mod inspect;
pub mod latents;
pub mod manifest;
pub mod material;
pub mod model_check;
pub mod payload;
pub mod plan;
pub mod preview;
pub mod refusal;
pub mod sample;
pub mod train;

//! Which recipe a base model expects, measured: the loss of the frozen base on pictures and captions under one recipe and under others,
//! with the same noise at the same timesteps, so that what is left is the recipe's difference.
//!
//! - [`report`]: what is found, as a file

pub mod report;

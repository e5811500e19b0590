#![expect(clippy::disallowed_methods, reason = "fixtures need no durable writes")]

mod adapters;
mod file;
mod forward;
mod loading;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value as Json;

use super::*;
use crate::autograd::Tape;
use crate::lora::Bound;
use crate::models::Components;
use crate::models::testing::{self, Golden, Inputs, Model, difference, golden_path, message};
use crate::nn::Kernels;

pub(super) const MODELS: [&str; 3] = ["plain", "qk_norm", "dual"];

/// What `tools/goldens/sd3.py` wrote.
pub(super) fn golden(name: &str) -> Golden {
    Golden::read(&SD3, &format!("sd3_{name}"))
}

pub(super) fn load(path: &Path) -> Result<Model, Error> {
    testing::load(&SD3, path)
}

#![expect(clippy::disallowed_methods, reason = "fixtures need no durable writes")]

mod adapters;
mod forward;
mod kontext;
mod loading;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::autograd::Tape;
use crate::lora::Bound;
use crate::models::Components;
use crate::models::testing::{self, Golden, Inputs, Model, difference, golden_path, message};
use crate::nn::Kernels;

pub(super) const MODELS: [&str; 2] = ["dev", "schnell"];

/// What `tools/goldens/flux1.py` wrote.
pub(super) fn golden(name: &str) -> Golden {
    Golden::read(&FLUX1, &format!("flux1_{name}"))
}

pub(super) fn load(path: &Path) -> Result<Model, Error> {
    testing::load(&FLUX1, path)
}

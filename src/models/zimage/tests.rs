mod adapters;
mod forward;
mod loading;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::models::testing::{self, Golden, Inputs, Model, difference, golden_path, message};

pub(super) const MODELS: [&str; 2] = ["two", "one"];

/// What `tools/goldens/zimage.py` wrote.
pub(super) fn golden(name: &str) -> Golden {
    Golden::read(&ZIMAGE, &format!("zimage_{name}"))
}

pub(super) fn load(path: &Path) -> Result<Model, Error> {
    testing::load(&ZIMAGE, path)
}

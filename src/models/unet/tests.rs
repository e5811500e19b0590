mod adapters;
mod forward;
mod loading;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::autograd::Tape;
use crate::lora::Bound;
use crate::models::testing::{self, Golden, difference, golden_path, message};
use crate::nn::Kernels;

/// The miniatures' heads and groups, where a single file does not tell them.
const SMALL: Variant = Variant {
    heads: Heads::Channels(4),
    groups: 4,
    size_channels: 6,
    ..SDXL_VARIANT
};
static SMALL_SDXL: Family = Family {
    open: |component| names::open(component, SMALL),
    ..SDXL
};
static SMALL_SD1: Family = Family {
    open: |component| {
        let heads = Heads::Count(2);
        names::open(
            component,
            Variant {
                heads,
                groups: 4,
                ..SD1_VARIANT
            },
        )
    },
    ..SD1
};

const MODELS: [&str; 3] = ["sdxl", "sd1", "sd2"];

fn family(name: &str) -> &'static Family {
    match name {
        "sdxl" => &SMALL_SDXL,
        _ => &SMALL_SD1,
    }
}

/// What `tools/goldens/unet.py` wrote.
fn golden(name: &str) -> Golden {
    Golden::read(family(name), &format!("unet_{name}"))
}

fn single_file(name: &str) -> std::path::PathBuf {
    golden_path(&format!("unet_{name}_single.safetensors"))
}

//! Files of 8-bit weights with one scale per tensor, as ComfyUI's converters write them.
//!
//! Beside `NAME.weight` such a file has its scale, `NAME.scale_weight` (with `NAME.scale_input` for products in 8
//! bits, and one tensor `scaled_fp8` that marks the whole) or, since late 2025, `NAME.weight_scale` (with
//! `NAME.input_scale`, and `NAME.comfy_quant`, JSON that says the format). The weight is the stored number times
//! the scale. What only says how other tensors are stored is taken out of the list of tensors here.

use std::collections::{BTreeMap, BTreeSet};

use half::{bf16, f16};

use super::element::ElementType;
use super::file::TensorEntry;
use crate::shown;

const MARKER: &str = "scaled_fp8";
const SCALES: [&str; 2] = ["scale_weight", "weight_scale"];
const INPUTS: [&str; 2] = ["scale_input", "input_scale"];
const LAYER_MARKER: &str = "comfy_quant";
/// A layer's format is one small JSON object.
const MAX_FORMAT_BYTES: usize = 1 << 16;

/// Reads an entry's bytes.
type ReadEntry<'a> = &'a dyn Fn(&TensorEntry) -> Result<Vec<u8>, String>;

/// Gives scaled weights their scales, and takes scales and markers out of `tensors`.
pub(super) fn absorb(
    tensors: &mut BTreeMap<String, TensorEntry>,
    read: ReadEntry<'_>,
) -> Result<(), String> {
    let leaf = |name: &str| {
        name.rsplit_once('.')
            .map_or(name, |(_, leaf)| leaf)
            .to_owned()
    };
    let mut markers = BTreeSet::new();
    let mut marked = Vec::new();
    let mut scales = Vec::new();
    for (name, entry) in &*tensors {
        let leaf = leaf(name);
        let layer = name.strip_suffix(&leaf).unwrap_or_default();
        if leaf == MARKER {
            marked.push(layer.to_owned());
        } else if leaf == LAYER_MARKER {
            check_format(name, entry, read)?;
            marked.push(layer.to_owned());
        // A tensor that is only called like a scale (a learned `scale_weight`) has no weight beside it.
        } else if !tensors.contains_key(&format!("{layer}weight")) {
            continue;
        } else if SCALES.contains(&leaf.as_str()) {
            scales.push((format!("{layer}weight"), scale(name, entry, read)?));
        } else if !INPUTS.contains(&leaf.as_str()) {
            continue;
        }
        markers.insert(name.clone());
    }
    tensors.retain(|name, _| !markers.contains(name));
    for (weight, scale) in scales {
        if let Some(entry) = tensors.get_mut(&weight) {
            entry.scale = Some(scale);
        }
    }
    // Without its scale such a weight loads, and is wrong by a factor: a marked file must have all of them.
    let is_bare = |(name, entry): &(&String, &TensorEntry)| {
        let is_marked = marked.iter().any(|scope| name.starts_with(scope));
        let is_small = matches!(entry.dtype, ElementType::F8E4M3 | ElementType::F8E5M2);
        is_marked && is_small && entry.scale.is_none()
    };
    match tensors.iter().find(is_bare) {
        Some((name, _)) => Err(format!(
            "it is marked as having scaled 8-bit weights, and `{}` has no scale (`{}{}`)",
            shown::text(name),
            shown::text(name.strip_suffix("weight").unwrap_or(name)),
            SCALES[0]
        )),
        None => Ok(()),
    }
}

/// The one number of the scale tensor `name`.
fn scale(name: &str, entry: &TensorEntry, read: ReadEntry<'_>) -> Result<f32, String> {
    let shown = shown::text(name);
    // What is longer is no scale, and not read.
    let bytes = match entry.end - entry.start {
        2 | 4 => read(entry)?,
        _ => Vec::new(),
    };
    let value = match (entry.dtype, bytes.as_slice()) {
        (ElementType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (ElementType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (ElementType::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        _ => {
            return Err(format!(
                "the scale `{shown}` has shape {:?} ({}), expected one number (F32, F16 or BF16): scales per row or block are not read",
                entry.shape, entry.dtype
            ));
        }
    };
    if value.is_finite() {
        Ok(value)
    } else {
        Err(format!("the scale `{shown}` is {value}"))
    }
}

fn check_format(name: &str, entry: &TensorEntry, read: ReadEntry<'_>) -> Result<(), String> {
    let name = shown::text(name);
    let bytes = match entry.end - entry.start {
        0..=MAX_FORMAT_BYTES => read(entry)?,
        _ => Vec::new(),
    };
    let parsed: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
    let format = parsed.as_ref().and_then(|v| v.get("format")?.as_str());
    match format {
        Some("float8_e4m3fn" | "float8_e5m2") => Ok(()),
        Some(other) => Err(format!(
            "`{name}` says that the weight is stored as {}, expected float8_e4m3fn or float8_e5m2: use another version of the file",
            shown::text(other)
        )),
        None => Err(format!("`{name}` is not JSON with a `format`")),
    }
}

//! Adapters to bytes.

use std::collections::BTreeMap;

use half::{bf16, f16};
use serde_json::json;

use super::{ADAPTER_METADATA, FileOptions, SaveDtype, tensor_error};
use crate::lora::{Adapter, AdapterSet, Error};

/// The bytes of a LoRA file.
///
/// # Errors
/// If a number is not finite, or is too large for the chosen dtype.
pub fn write(set: &AdapterSet, options: &FileOptions) -> Result<Vec<u8>, Error> {
    let mut metadata = options.metadata.clone();
    metadata.insert("format".to_owned(), "pt".to_owned());
    metadata.insert(
        ADAPTER_METADATA.to_owned(),
        adapter_metadata(set, options.component),
    );
    let mut tensors = BTreeMap::new();
    for adapter in set.adapters() {
        let (factor_a, factor_b) = fold(adapter.scale());
        for (part, shape, range, factor) in [
            ('A', [adapter.rank, adapter.inputs], adapter.a(), factor_a),
            ('B', [adapter.outputs, adapter.rank], adapter.b(), factor_b),
        ] {
            let name = format!("{}.{}.lora_{part}.weight", options.component, adapter.name);
            let bytes = encode(&set.values()[range], factor, options.dtype)
                .map_err(|what| tensor_error("adapters to write", &name, what))?;
            tensors.insert(name, (shape, bytes));
        }
    }
    Ok(to_safetensors(&metadata, &tensors, options.dtype))
}

/// Factors (on A, on B) whose product is `scale`; the one on A is a power of two, about the root of the scale, so
/// that neither becomes too small for f16.
pub(super) fn fold(scale: f64) -> (f64, f64) {
    if scale == 0.0 {
        return (1.0, 0.0);
    }
    let factor_a = (scale.abs().log2() / 2.0).round().exp2();
    (factor_a, scale / factor_a)
}

fn encode(values: &[f32], factor: f64, dtype: SaveDtype) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(values.len() * if dtype == SaveDtype::F32 { 4 } else { 2 });
    for (index, &value) in values.iter().enumerate() {
        let scaled = (f64::from(value) * factor) as f32;
        let finite = match dtype {
            SaveDtype::F32 => {
                bytes.extend(scaled.to_le_bytes());
                scaled.is_finite()
            }
            SaveDtype::F16 => {
                bytes.extend(f16::from_f32(scaled).to_le_bytes());
                f16::from_f32(scaled).is_finite()
            }
            SaveDtype::Bf16 => {
                bytes.extend(bf16::from_f32(scaled).to_le_bytes());
                bf16::from_f32(scaled).is_finite()
            }
        };
        if !finite {
            return Err(format!(
                "number {index} is {scaled}, which {dtype:?} cannot hold"
            ));
        }
    }
    Ok(bytes)
}

/// What PEFT's LoraConfig is made from, each key with the component in front, as diffusers writes it.
fn adapter_metadata(set: &AdapterSet, component: &str) -> String {
    let rank = commonest_rank(set);
    let odd = |adapter: &&Adapter| adapter.rank != rank;
    // `^`: PEFT takes these names as the end of a module's name otherwise.
    let pattern: BTreeMap<_, _> = set
        .adapters()
        .iter()
        .filter(odd)
        .map(|adapter| (format!("^{}", adapter.name), adapter.rank))
        .collect();
    let modules: Vec<_> = set.adapters().iter().map(|adapter| &adapter.name).collect();
    let fields = BTreeMap::from([
        ("r", json!(rank)),
        ("lora_alpha", json!(rank)),
        ("rank_pattern", json!(pattern)),
        ("alpha_pattern", json!(pattern)),
        ("target_modules", json!(modules)),
    ]);
    let named: BTreeMap<_, _> = fields
        .into_iter()
        .map(|(key, value)| (format!("{component}.{key}"), value))
        .collect();
    json!(named).to_string()
}

/// The rank of most adapters; of equally many the smallest; 1 if there are none.
pub(in crate::lora) fn commonest_rank(set: &AdapterSet) -> usize {
    let mut counts = BTreeMap::new();
    for adapter in set.adapters() {
        *counts.entry(adapter.rank).or_insert(0) += 1;
    }
    let most = counts.values().copied().max();
    counts
        .into_iter()
        .find(|(_, count)| Some(*count) == most)
        .map_or(1, |(rank, _)| rank)
}

/// The format keeps metadata in a map without an order; here it is sorted, so that equal content is equal bytes.
fn to_safetensors(
    metadata: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, ([usize; 2], Vec<u8>)>,
    dtype: SaveDtype,
) -> Vec<u8> {
    let dtype = format!("{dtype:?}").to_ascii_uppercase();
    let mut header = format!("{{\"__metadata__\":{}", json!(metadata));
    let mut offset = 0;
    for (name, (shape, bytes)) in tensors {
        let end = offset + bytes.len();
        header.push_str(&format!(
            ",{}:{{\"dtype\":\"{dtype}\",\"shape\":[{},{}],\"data_offsets\":[{offset},{end}]}}",
            json!(name),
            shape[0],
            shape[1],
        ));
        offset = end;
    }
    header.push('}');
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut out = Vec::with_capacity(8 + header.len() + offset);
    out.extend((header.len() as u64).to_le_bytes());
    out.extend(header.as_bytes());
    for (_, bytes) in tensors.values() {
        out.extend(bytes);
    }
    out
}

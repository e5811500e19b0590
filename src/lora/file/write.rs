//! Adapters to bytes.

use std::collections::BTreeMap;

use half::{bf16, f16};
use serde_json::json;

use super::{ADAPTER_METADATA, FileOptions, SaveDtype, tensor_error};
use crate::lora::peft::{StatedModule, stated};
use crate::lora::{AdapterSet, Error, metadata, seal};

/// The bytes of a LoRA file.
///
/// # Errors
/// If a number is not finite, or is too large for the chosen dtype.
pub fn write(set: &AdapterSet, options: &FileOptions) -> Result<Vec<u8>, Error> {
    let mut metadata = options.metadata.clone();
    // alpha / rank is folded into the tensors, so alpha is the rank.
    let folded = set.adapters().iter().map(|adapter| StatedModule {
        name: &adapter.name,
        rank: adapter.rank,
        alpha: adapter.rank as f64,
    });
    metadata.insert(
        ADAPTER_METADATA.to_owned(),
        adapter_metadata(&folded.collect::<Vec<_>>(), options.component),
    );
    let factors = set.adapters().iter().flat_map(|adapter| {
        let (on_a, on_b) = fold(adapter.scale());
        [on_a, on_b]
    });
    let mut tensors = Vec::new();
    for ((name, shape, range), factor) in set.tensors().zip(factors) {
        let name = format!("{}.{name}", options.component);
        tensors.push(encode(
            name,
            shape,
            &set.values()[range],
            factor,
            options.dtype,
        )?);
    }
    Ok(to_safetensors(metadata, tensors))
}

/// Factors (on A, on B) whose product is `scale`; the one on A is a power of two, about the root of the scale, so
/// that neither becomes too small for f16.
pub(in crate::lora) fn fold(scale: f64) -> (f64, f64) {
    // An alpha of 0: B becomes zeros. The logarithm below would be infinite.
    if scale == 0.0 {
        return (1.0, 0.0);
    }
    let factor_a = (scale.abs().log2() / 2.0).round().exp2();
    (factor_a, scale / factor_a)
}

/// A tensor as it will be in a file.
pub(in crate::lora) struct EncodedTensor {
    name: String,
    dtype: SaveDtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
    /// Whether every number is what was to be stored, and not the nearest that the dtype has.
    pub(in crate::lora) exact: bool,
}

/// A tensor's numbers, multiplied by `factor` and rounded once to `dtype`.
pub(in crate::lora) fn encode(
    name: String,
    shape: Vec<usize>,
    values: &[f32],
    factor: f64,
    dtype: SaveDtype,
) -> Result<EncodedTensor, Error> {
    let mut bytes = Vec::with_capacity(values.len() * dtype.size());
    let mut exact = true;
    for (index, &value) in values.iter().enumerate() {
        let product = f64::from(value) * factor;
        let scaled = product as f32;
        let stored = match dtype {
            SaveDtype::F32 => {
                bytes.extend(scaled.to_le_bytes());
                scaled
            }
            SaveDtype::F16 => {
                let half = f16::from_f32(scaled);
                bytes.extend(half.to_le_bytes());
                half.to_f32()
            }
            SaveDtype::Bf16 => {
                let half = bf16::from_f32(scaled);
                bytes.extend(half.to_le_bytes());
                half.to_f32()
            }
        };
        // Against the product in f64, so that its own rounding to f32 counts too.
        exact &= f64::from(stored) == product;
        if !stored.is_finite() {
            let what = format!(
                "number {index} is {scaled}, which {} cannot hold",
                dtype.name()
            );
            return Err(tensor_error("adapters to write", &name, what));
        }
    }
    Ok(EncodedTensor {
        name,
        dtype,
        shape,
        bytes,
        exact,
    })
}

/// What PEFT's LoraConfig is made from, each key with the component in front, as diffusers writes it.
pub(in crate::lora) fn adapter_metadata(modules: &[StatedModule<'_>], component: &str) -> String {
    let named: BTreeMap<_, _> = stated(modules)
        .into_iter()
        .map(|(key, value)| (format!("{component}.{key}"), value))
        .collect();
    json!(named).to_string()
}

/// The rank of most adapters; of equally many the smallest; 1 if there are none.
pub(in crate::lora) fn commonest_rank(ranks: impl Iterator<Item = usize>) -> usize {
    let mut counts = BTreeMap::new();
    for rank in ranks {
        *counts.entry(rank).or_insert(0) += 1;
    }
    let most = counts.values().copied().max();
    counts
        .into_iter()
        .find(|(_, count)| Some(*count) == most)
        .map_or(1, |(rank, _)| rank)
}

/// A file of these tensors: wider numbers first and then by name, as the format's own library orders them. The hashes
/// that other tools look for are added to the metadata.
pub(in crate::lora) fn to_safetensors(
    mut metadata: BTreeMap<String, String>,
    mut tensors: Vec<EncodedTensor>,
) -> Vec<u8> {
    tensors.sort_by(|left, right| {
        let by_size = right.dtype.size().cmp(&left.dtype.size());
        by_size.then_with(|| left.name.cmp(&right.name))
    });
    let data: Vec<&[u8]> = tensors.iter().map(|t| t.bytes.as_slice()).collect();
    metadata.insert("format".to_owned(), "pt".to_owned());
    let trained: BTreeMap<_, _> = metadata
        .iter()
        .filter(|(key, _)| key.starts_with("ss_"))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let hashes = metadata::hashes(&header(&trained, &tensors), &data);
    let data_hash = hashes["sshs_model_hash"].clone();
    metadata.extend(hashes);
    seal::add(&mut metadata, entries(&tensors), &data_hash);
    let mut out = header(&metadata, &tensors);
    for bytes in data {
        out.extend(bytes);
    }
    out
}

/// The tensors as the header has them.
fn entries(tensors: &[EncodedTensor]) -> Vec<seal::Entry<'_>> {
    let mut offset = 0;
    let entry = |tensor: &'_ EncodedTensor| {
        let start = offset;
        offset += tensor.bytes.len();
        [start, offset]
    };
    let places: Vec<_> = tensors.iter().map(entry).collect();
    let named = tensors.iter().zip(places);
    named
        .map(|(t, place)| {
            (
                t.name.as_str(),
                t.dtype.name().to_owned(),
                &t.shape[..],
                place,
            )
        })
        .collect()
}

/// The length and the header. The format keeps metadata in a map without an order; here it is sorted, so that equal
/// content is equal bytes.
fn header(metadata: &BTreeMap<String, String>, tensors: &[EncodedTensor]) -> Vec<u8> {
    let mut header = format!("{{\"__metadata__\":{}", json!(metadata));
    for (name, dtype, shape, place) in entries(tensors) {
        header.push_str(&format!(
            ",{}:{{\"dtype\":\"{dtype}\",\"shape\":{},\"data_offsets\":{}}}",
            json!(name),
            json!(shape),
            json!(place),
        ));
    }
    header.push('}');
    // The format's own library pads so, that the numbers are aligned.
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out
}

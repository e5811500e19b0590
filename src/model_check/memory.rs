//! Bytes in memory while encoding and training: of weights, adapters and optimizer. What a batch adds (activations,
//! latents, the program itself) is left out, and the report says so.

use serde::Serialize;

use crate::lora::{LinearShape, targets};
use crate::models::Family;

/// The rank that a training's estimate is for.
pub const ADAPTER_RANK: usize = 16;

/// What encoding and training take.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Memory {
    /// Each network that encodes, with its weights loaded; one is in memory at a time.
    pub encode: Vec<Use>,
    /// The largest of them.
    pub encode_bytes: u64,
    /// What is in memory together while training.
    pub train: Vec<Use>,
    /// Its sum.
    pub train_bytes: u64,
    /// Left out of both.
    pub left_out: &'static str,
}

/// One thing in memory.
#[derive(Clone, Debug, Serialize)]
pub struct Use {
    /// What it is.
    pub what: String,
    /// How many numbers.
    pub parameters: u64,
    /// The type that they are kept in.
    pub dtype: &'static str,
    /// Their bytes.
    pub bytes: u64,
}

impl Use {
    pub(super) fn new(what: impl Into<String>, parameters: u64, dtype: candle_core::DType) -> Self {
        Self {
            what: what.into(),
            parameters,
            dtype: dtype.as_str(),
            bytes: parameters * dtype.size_in_bytes() as u64,
        }
    }
}

impl Memory {
    pub(super) fn new(encode: Vec<Use>, train: Vec<Use>) -> Self {
        Self {
            encode_bytes: encode.iter().map(|u| u.bytes).max().unwrap_or(0),
            train_bytes: train.iter().map(|u| u.bytes).sum(),
            encode,
            train,
            left_out: "what a batch adds (activations, which grow with batch size and resolution; `gradient_checkpointing` keeps one block's)",
        }
    }
}

/// What training keeps of a denoiser with these tensors (canonical names and shapes): weights as it loads them, and
/// adapters of [`ADAPTER_RANK`] on the default targets with gradient and both moments of AdamW.
pub(super) fn train(family: &dyn Family, tensors: &[(String, Vec<usize>)]) -> Vec<Use> {
    // As `train::run` loads and updates them.
    let dtype = candle_core::DType::F32;
    let count = |shape: &[usize]| shape.iter().product::<usize>() as u64;
    let weights = tensors.iter().map(|(_, shape)| count(shape)).sum();
    let mut list = vec![Use::new("denoiser", weights, dtype)];
    let linear = |(name, shape): &(String, Vec<usize>)| match shape.as_slice() {
        &[outputs, inputs] => Some(LinearShape {
            name: name.strip_suffix(".weight")?.to_owned(),
            outputs,
            inputs,
            kernel: None,
            reached: true,
        }),
        _ => None,
    };
    let linears: Vec<LinearShape> = tensors.iter().filter_map(linear).collect();
    let preset = family.presets().first().map(|p| p.name.to_owned());
    let chosen = preset.and_then(|p| targets::select(&linears, &[p], family.presets()).ok());
    if let Some(chosen) = chosen {
        let adapter = |l: &LinearShape| (ADAPTER_RANK * (l.outputs + l.inputs)) as u64;
        let adapters: u64 = chosen.iter().map(adapter).sum();
        list.push(Use::new(
            format!(
                "adapters of rank {ADAPTER_RANK} on {} linears, gradients, AdamW",
                chosen.len()
            ),
            4 * adapters,
            dtype,
        ));
    }
    list
}

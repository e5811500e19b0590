mod config;
mod fake;
mod files;
mod golden;
mod long;
mod refusals;

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::Value;

use super::clip::ClipTextNetwork;
use super::t5::T5Network;
use super::tokenizer::Tokens;
use super::{Encoded, Network, Residency, TextEncoder};
use crate::nn::weights::Weights;

/// One setting and the names of its inputs and outputs.
#[derive(Deserialize)]
struct Case {
    model: String,
    ids: String,
    counts: String,
    architecture: Value,
    forward: Value,
    hidden: Option<String>,
    pooled: Option<String>,
}

impl Case {
    fn network(&self) -> std::sync::Arc<dyn Network> {
        super::network(self.architecture.clone(), self.forward.clone())
            .expect("in the form of specs")
    }

    /// The network, in a file of CLIPs.
    fn clip(&self) -> ClipTextNetwork {
        let (_, architecture) = super::untagged(self.architecture.clone(), "").expect("a kind");
        let (_, forward) = super::untagged(self.forward.clone(), "").expect("a kind");
        ClipTextNetwork {
            architecture: serde_json::from_value(architecture).expect("a CLIP"),
            forward: serde_json::from_value(forward).expect("a CLIP's rules"),
        }
    }

    /// The network, in a file of T5s.
    fn t5(&self) -> T5Network {
        let (_, architecture) = super::untagged(self.architecture.clone(), "").expect("a kind");
        let (_, forward) = super::untagged(self.forward.clone(), "").expect("a kind");
        T5Network {
            architecture: serde_json::from_value(architecture).expect("a T5"),
            forward: serde_json::from_value(forward).expect("a T5's rules"),
        }
    }
}

/// A file that `tools/goldens/encoders.py` wrote.
struct Golden {
    path: PathBuf,
    tensors: std::collections::HashMap<String, Tensor>,
}

impl Golden {
    fn open(file: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(file);
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu).expect("a golden file");
        Self { path, tensors }
    }

    fn cases(&self) -> Vec<Case> {
        self.cases_as()
    }

    fn cases_as<T: serde::de::DeserializeOwned>(&self) -> Vec<T> {
        let bytes = std::fs::read(&self.path).expect("read");
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("header");
        let metadata = header.metadata().clone().expect("metadata");
        serde_json::from_str(&metadata["cases"]).expect("cases in the form of specs")
    }

    fn weights(&self, model: &str) -> Weights {
        let prefix = format!("{model}/");
        let weights = Weights::open(std::slice::from_ref(&self.path)).expect("opens");
        // The file's other tensors are not the encoder's: it gets a file of its own.
        let own: std::collections::HashMap<_, _> = self
            .tensors
            .iter()
            .filter_map(|(name, t)| Some((name.strip_prefix(&prefix)?.to_owned(), t.clone())))
            .collect();
        assert!(weights.names().len() > own.len() && !own.is_empty());
        weights_of(&own)
    }

    fn row(&self, name: &str, row: usize) -> Tensor {
        self.tensors[name]
            .get(row)
            .expect("as many rows as captions")
    }
}

/// The captions of tokens.safetensors.
pub(super) fn token_captions() -> Vec<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokens.safetensors");
    let bytes = std::fs::read(path).expect("golden");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut text = file.tensor("text").expect("text").data();
    let lengths = file.tensor("lengths").expect("lengths");
    let lengths = lengths.data().chunks_exact(4);
    lengths
        .map(|length| {
            let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
            let (caption, rest) = text.split_at(length);
            text = rest;
            String::from_utf8(caption.to_vec()).expect("UTF-8")
        })
        .collect()
}

/// Weights of a file that holds just these tensors.
fn weights_of(tensors: &std::collections::HashMap<String, Tensor>) -> Weights {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("model.safetensors");
    candle_core::safetensors::save(tensors, &path).expect("written");
    // The map outlives the file's name.
    Weights::open(&[path]).expect("valid")
}

fn captions(golden: &Golden, case: &Case) -> Vec<Tokens> {
    let integers = |name: &str| golden.tensors[name].to_dtype(DType::U32).expect("integers");
    let ids = integers(&case.ids).to_vec2::<u32>().expect("a matrix");
    let counts = integers(&case.counts).to_vec1::<u32>().expect("a vector");
    let tokens = |(ids, count): (Vec<u32>, u32)| Tokens {
        ids,
        count: count as usize,
        truncated: false,
        total: count as usize,
    };
    ids.into_iter().zip(counts).map(tokens).collect()
}

fn encode(network: &dyn Network, weights: &Weights, tokens: &[Tokens]) -> Vec<Encoded> {
    TextEncoder::load(network, weights, Residency::Resident)
        .and_then(|encoder| encoder.encode(tokens))
        .expect("encodes")
}

/// The largest difference relative to the root mean square of `expected`, which must be within `tolerance`.
fn compare(found: &Tensor, expected: &Tensor, tolerance: f32, what: &str) -> f32 {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let scalar =
        |t: candle_core::Result<Tensor>| t.and_then(|t| t.to_scalar::<f32>()).expect("f32");
    let rms = scalar(expected.sqr().and_then(|t| t.mean_all()?.sqrt()));
    let difference = scalar((found - expected).and_then(|t| t.abs()?.max_all()));
    assert!(
        rms > 0.1,
        "{what}: the expected output is too small to mean anything"
    );
    let relative = difference / rms;
    assert!(
        relative <= tolerance,
        "{what}: off by {relative:e} of its root mean square"
    );
    relative
}

#![expect(clippy::disallowed_methods, reason = "fixtures need no durable writes")]

mod adapters;
mod file;
mod forward;
mod loading;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value as Json;

use super::*;
use crate::autograd::{Tape, Value};
use crate::lora::Bound;
use crate::models::{BaseWeights, ConditioningTensors};

pub(super) const MODELS: [&str; 3] = ["plain", "qk_norm", "dual"];

/// What `tools/goldens/sd3.py` wrote: a model of diffusers with inputs, outputs, adapters and gradients.
pub(super) struct Golden {
    name: &'static str,
    tensors: HashMap<String, Tensor>,
    metadata: HashMap<String, String>,
}

pub(super) fn golden_path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file)
}

impl Golden {
    pub(super) fn read(name: &'static str) -> Self {
        let path = golden_path(&format!("sd3_{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        Self {
            name,
            tensors,
            metadata: header.metadata().clone().unwrap(),
        }
    }

    pub(super) fn json(&self, key: &str) -> Json {
        serde_json::from_str(&self.metadata[key]).unwrap()
    }

    pub(super) fn get(&self, name: &str) -> Tensor {
        self.tensors[&format!("golden.{name}")]
            .to_dtype(DType::F32)
            .unwrap()
    }

    /// The `i`th set of inputs.
    pub(super) fn inputs(&self, i: usize) -> Inputs {
        let get = |what: &str| self.get(&format!("{i}.{what}"));
        Inputs {
            latents: get("latents"),
            timesteps: get("timesteps"),
            conditioning: ConditioningTensors {
                context: get("context"),
                pooled: get("pooled"),
            },
            target: get("target"),
        }
    }

    /// The model's own tensors, in bf16.
    pub(super) fn weights(&self) -> HashMap<String, Tensor> {
        let own = self
            .tensors
            .iter()
            .filter(|(name, _)| !name.starts_with("golden."));
        own.map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect()
    }

    /// Writes the model as diffusers would, and gives the folder.
    pub(super) fn folder(&self) -> tempfile::TempDir {
        self.folder_with(&self.weights(), &self.metadata["config"])
    }

    pub(super) fn folder_with(
        &self,
        weights: &HashMap<String, Tensor>,
        config: &str,
    ) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let transformer = folder.path().join("transformer");
        std::fs::create_dir(&transformer).unwrap();
        std::fs::write(transformer.join("config.json"), config).unwrap();
        let file = transformer.join("diffusion_pytorch_model.safetensors");
        candle_core::safetensors::save(weights, file).unwrap();
        folder
    }

    pub(super) fn model(&self) -> Box<dyn Denoiser> {
        load(self.folder().path()).unwrap()
    }
}

pub(super) struct Inputs {
    pub(super) latents: Tensor,
    pub(super) timesteps: Tensor,
    pub(super) conditioning: ConditioningTensors,
    pub(super) target: Tensor,
}

impl Inputs {
    pub(super) fn call(&self, model: &dyn Denoiser, tape: &Tape, adapters: &Bound) -> Value {
        let latents = Value::constant(self.latents.clone());
        model
            .forward(
                tape,
                adapters,
                &latents,
                &self.timesteps,
                &self.conditioning,
            )
            .unwrap()
    }
}

pub(super) fn load(path: &Path) -> Result<Box<dyn Denoiser>, Error> {
    Sd3.load(&Sd3.components(path)?, DType::F32, &Device::Cpu)
}

/// The largest difference relative to the largest expected number.
pub(super) fn error_of(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let flat = |t: &Tensor| {
        t.to_dtype(DType::F64)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f64>()
            .unwrap()
    };
    let (found, expected) = (flat(found), flat(expected));
    let scale = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let worst = found
        .iter()
        .zip(&expected)
        .map(|(f, e)| (f - e).abs())
        .fold(0.0, f64::max);
    if scale == 0.0 { worst } else { worst / scale }
}

/// The weights of a golden under canonical names.
pub(super) fn base(path: &Path) -> BaseWeights {
    Sd3.weights(&Sd3.components(path).unwrap()).unwrap()
}

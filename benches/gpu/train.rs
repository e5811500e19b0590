//! Training steps.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use plumb::device;
use plumb::diffusion::{Level, Prediction, Process, add_noise};
use plumb::lora::{AdapterSet, targets};
use plumb::models::{
    self, ConditioningTensors, Error, Family, OpenedDenoiser, Source, WeightStorage,
};
use plumb::nn::{Frozen, Kernels};
use plumb::optim::{Optimizer, OptimizerOptions, clip_gradient_norm};
use plumb::rng::{Rng, Stream};
use plumb::train::graphs::Graphs;
use plumb::train::inputs::DenoiserBatch;
use plumb::train::plan::{self, Machine, MemoryRequest};
use plumb::train::step::Pass;
use plumb::vae::Extents;
use serde_json::{Value, json};

use super::{Backend, Result, Timings, count, text};

/// Random weights, as large as keeps activations near 1.
struct Random {
    device: Device,
    kernels: Kernels,
    dtype: DType,
    storage: WeightStorage,
    numbers: Cell<u64>,
}

impl Random {
    fn normals(&self, shape: &[usize], spread: f64, centre: f64) -> candle_core::Result<Tensor> {
        let (centre, spread) = (centre as f32, spread as f32);
        let made = match self.device {
            // The CPU's generator of candle cannot be seeded; ours can.
            Device::Cpu => {
                let number = self.numbers.replace(self.numbers.get() + 1);
                let values =
                    Rng::new(1, Stream::AdapterInit, 0, number).normals(shape.iter().product());
                Tensor::from_vec(values, shape, &Device::Cpu)?
                    .affine(spread.into(), centre.into())?
            }
            _ => Tensor::randn(centre, spread, shape, &self.device)?,
        };
        made.to_dtype(self.dtype)
    }
}

impl Source for Random {
    fn tensor(&self, shape: &[usize], name: &str) -> std::result::Result<Tensor, Error> {
        let inputs: usize = shape.iter().skip(1).product();
        let norm = shape.len() == 1 && name.contains("norm") && name.ends_with("weight");
        // Gains near 1, biases near 0, matrices such that a layer keeps the size of its input.
        let made = match (shape.len(), norm) {
            (_, true) => self.normals(shape, 0.02, 1.0),
            (1, _) => self.normals(shape, 0.02, 0.0),
            _ => self.normals(shape, 0.7 / (inputs as f64).sqrt(), 0.0),
        };
        made.map_err(|source| Error::Device {
            what: format!("making `{name}`"),
            source,
        })
    }

    fn matrix(&self, shape: [usize; 2], name: &str) -> std::result::Result<Frozen, Error> {
        let made = self.tensor(&shape, name)?;
        match self.storage {
            WeightStorage::Fp8 { in_both_orders } if Frozen::fits_fp8(shape) => {
                let place = (&self.device, &self.kernels);
                let kept = Frozen::fp8(&made, self.dtype, place, in_both_orders);
                kept.map_err(|source| Error::Device {
                    what: format!("rounding `{name}`"),
                    source,
                })
            }
            _ => Ok(made.into()),
        }
    }

    fn kernels(&self) -> Kernels {
        self.kernels.clone()
    }
}

/// The model of a config, as a folder with no weights worth reading.
pub(crate) fn opened(
    family: &'static Family,
    config: &Path,
    folder: &Path,
) -> Result<OpenedDenoiser> {
    let part = folder.join(family.denoiser());
    std::fs::create_dir_all(&part)?;
    std::fs::copy(config, part.join("config.json"))?;
    // A family opens no folder without a file of weights.
    let nothing = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
    let file = part.join("diffusion_pytorch_model.safetensors");
    candle_core::safetensors::save(&[("nothing", nothing)].into(), file)?;
    Ok(family.open(family.components(folder)?)?)
}

/// Training steps: forward, backward, clipping and AdamW, inputs brought from the host.
pub(super) fn train(case: &Value, backend: &Backend) -> Result<Value> {
    let Backend { device, kernels } = backend;
    let family = models::family(text(case, "family")?)?;
    let folder = tempfile::tempdir()?;
    let config = PathBuf::from(text(case, "config")?);
    let opened = opened(family, &config, folder.path())?;
    let shape: Value = serde_json::from_slice(&std::fs::read(&config)?)?;
    let (batch, rank) = (count(case, "batch")?, count(case, "rank")?);
    let px = count(case, "px")?;
    let latents = family.latents().latents(Extents::picture(px, px));
    let context = count(case, "tokens")?;
    let dtype = device::usual_dtype(device);

    let storage = match case["fp8"].as_bool() {
        Some(true) => WeightStorage::Fp8 {
            in_both_orders: !device.is_cpu(),
        },
        _ => WeightStorage::Whole,
    };
    let preset = text(case, "targets")?.to_owned();
    let adapted = targets::select(opened.linears(), &[preset], family.presets)?;
    let wanted = MemoryRequest {
        other_expert: None,
        denoiser: &opened,
        adapted: &adapted,
        rank,
        optimizer: OptimizerOptions::default(),
        samples: batch,
        latents,
        reference: None,
        context,
        dtype,
        storage,
        machine: Machine::of(device),
        own_kernels: kernels.are_there(),
        apart: 0,
        checkpointing: case["checkpointing"].as_bool(),
    };
    let free = device::free_bytes(device).unwrap_or(u64::MAX);
    let plan = plan::make(&wanted, free)?;

    let source = Random {
        device: device.clone(),
        kernels: kernels.clone(),
        dtype,
        storage,
        numbers: Cell::new(0),
    };
    let denoiser = opened.build(&source)?;
    let adapters = AdapterSet::new(&adapted, rank, rank as f64, 0)?;
    let values = adapters.to_device(device)?;
    let mut optimizer =
        Optimizer::new(OptimizerOptions::default(), adapters.values().len(), device)?;
    let micro_batch = denoiser_batch(&shape, (batch, px, latents, context))?;
    let pass = Pass {
        denoiser: denoiser.as_ref(),
        adapters: &adapters,
        values: &values,
        dropout: (0.0, 0),
        recompute: plan.recompute.clone(),
        offload: plan.offload,
    };
    let (mut number, mut loss) = (0, 0.0);
    let (mut graphs, _) = Graphs::of(&pass)?;
    let timings = Timings::of(device, case, || {
        let gradient = values.zeros_like()?;
        loss = match &mut graphs {
            Some(graphs) => graphs.backward(&pass, &micro_batch, number, 1.0, &gradient)?,
            None => pass.backward(&micro_batch, number, 1.0, &gradient)?.loss,
        };
        clip_gradient_norm(kernels, &gradient, Some(1.0))?;
        optimizer.step(kernels, &values, &gradient, 1e-4)?;
        number += 1;
        Ok(())
    })?;
    Ok(json!({
        "seconds": timings,
        "loss": loss,
        "graphs": graphs.as_mut().map(Graphs::notes),
        "blocks_checkpointed": plan.checkpointed.0,
        "blocks": plan.checkpointed.1,
        "planned_bytes": plan.bytes.total(),
        "adapter_parameters": adapters.values().len(),
    }))
}

/// A micro-batch on the host.
fn denoiser_batch(
    shape: &Value,
    (batch, px, extents, tokens): (usize, usize, Extents, usize),
) -> Result<DenoiserBatch> {
    let size = |keys: &[&str]| {
        let found = keys.iter().find_map(|key| shape[*key].as_u64());
        found.map(|v| v as usize).ok_or(format!("no {keys:?}"))
    };
    let size_embedding = shape["addition_embed_type"].is_string();
    let guided = shape["guidance_embeds"].as_bool() == Some(true);
    // Of FLUX the config has the channels of a token, four latents'.
    let channels = match shape["axes_dims_rope"].is_array() {
        true => size(&["in_channels"])? / 4,
        false => size(&["in_channels"])?,
    };
    // SDXL joins the pooled vector with six embedded sizes (`add_embedding` in diffusers): its config has the sum.
    let pooled = match size_embedding {
        true => {
            size(&["projection_class_embeddings_input_dim"])?
                - 6 * size(&["addition_time_embed_dim"])?
        }
        false => size(&["pooled_projection_dim"])?,
    };
    let normals = |dims: &[usize], number| {
        let values = Rng::new(0, Stream::Noise, 0, number).normals(dims.iter().product());
        Tensor::from_vec(values, dims, &Device::Cpu)
    };
    let dims = [batch, channels, extents.height, extents.width];
    let latents = normals(&dims, 0)?;
    let noise = normals(&dims, 1)?;
    let sigmas: Vec<f64> = (0..batch)
        .map(|i| (i as f64 + 0.5) / batch as f64)
        .collect();
    let numbers = |f: &dyn Fn(f64) -> f64| {
        let values: Vec<f32> = sigmas.iter().map(|&s| f(s) as f32).collect();
        Tensor::from_vec(values, batch, &Device::Cpu)
    };
    let levels: Vec<Level> = sigmas.iter().map(|&s| Level::of_flow(s)).collect();
    let width = size(&["joint_attention_dim", "cross_attention_dim"])?;
    let mut conditioning = ConditioningTensors::new(
        normals(&[batch, tokens, width], 2)?,
        normals(&[batch, pooled], 3)?,
    );
    if guided {
        conditioning.guidance = Some(numbers(&|_| 1.0)?);
    }
    if size_embedding {
        let px = px as f32;
        let ids = [px, px, 0.0, 0.0, px, px].repeat(batch);
        conditioning.time_ids = Some(Tensor::from_vec(ids, (batch, 6), &Device::Cpu)?);
    }
    Ok(DenoiserBatch {
        noisy: add_noise(&latents, &noise, &levels)?,
        target: Process::new(Prediction::Flow).target(&latents, &noise, &levels)?,
        sigmas: numbers(&|s| s)?,
        timesteps: numbers(&|s| s * 1000.0)?,
        weights: numbers(&|_| 1.0)?,
        conditioning,
        share: 1.0,
        latents,
        noise,
    })
}

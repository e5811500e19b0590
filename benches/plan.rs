//! `benches plan`: what the memory plan does with the released models on GPUs of several sizes, as a table. Computed from shapes;
//! no GPU is asked.

use std::path::Path;

use candle_core::DType;
use plumb::lora::targets;
use plumb::models::{self, WeightStorage};
use plumb::nn::Quantization;
use plumb::optim::OptimizerOptions;
use plumb::train::plan::{self, Machine, MemoryPlan, MemoryRequest};
use plumb::vae::Extents;

use crate::gpu::opened;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const SIZES_GB: [u64; 6] = [8, 12, 16, 24, 48, 80];
/// What the desktop and other programs take of a GPU's memory; a guess.
const OTHERS_GB: f64 = 0.5;
const RANK: usize = 16;

/// A model's name, family, config, pixels along a side and tokens of its context.
const MODELS: [(&str, &str, &str, usize, usize); 3] = [
    ("FLUX.1-dev, 1024 px", "flux1", "flux1-dev", 1024, 512),
    ("SD3.5 Large, 1024 px", "sd3", "sd3.5-large", 1024, 333),
    ("SDXL, 1024 px", "sdxl", "sdxl", 1024, 77),
];

pub(crate) fn run() -> Result<()> {
    let sizes: Vec<String> = SIZES_GB.iter().map(|gb| format!("{gb} GB")).collect();
    println!(
        "| rank {RANK} on the attention, batch 1 | {} |",
        sizes.join(" | ")
    );
    println!("|{}", "---|".repeat(1 + sizes.len()));
    for (name, family, config, px, tokens) in MODELS {
        for (storage, weights) in [
            (WeightStorage::Whole, "bf16"),
            (WeightStorage::Quantized(Quantization::Fp8), "fp8"),
            (WeightStorage::Quantized(Quantization::Nf4), "nf4"),
        ] {
            let cells = SIZES_GB.map(|gb| planned(family, config, (px, tokens), storage, gb));
            let cells: Vec<String> = cells.into_iter().collect::<Result<_>>()?;
            println!("| {name}, {weights} | {} |", cells.join(" | "));
        }
    }
    Ok(())
}

fn planned(
    family: &str,
    config: &str,
    (px, tokens): (usize, usize),
    storage: WeightStorage,
    gb: u64,
) -> Result<String> {
    let family = models::family(family)?;
    let folder = tempfile::tempdir()?;
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gpu/models");
    let config = models.join(format!("{config}.json"));
    let denoiser = opened(family, &config, folder.path())?;
    let targets = ["attention".to_owned()];
    let adapted = targets::select(denoiser.linears(), &targets, family.presets)?;
    let request = MemoryRequest {
        other_expert: None,
        denoiser: &denoiser,
        adapted: &adapted,
        rank: RANK,
        optimizer: OptimizerOptions::default(),
        samples: 1,
        latents: family.latents().latents(Extents::picture(px, px)),
        reference: None,
        context: tokens,
        dtype: DType::BF16,
        storage,
        machine: Machine::Gpu,
        // As without `--own-kernels`.
        own_kernels: false,
        apart: 0,
        checkpointing: None,
    };
    let free = (gb as f64 - OTHERS_GB) * 1e9;
    Ok(match plan::make(&request, free as u64) {
        Ok(plan) => described(&plan),
        Err(plan::DoesNotFit { .. }) => "does not fit".to_owned(),
    })
}

/// In the fewest words; with what it takes where nothing is saved.
fn described(plan: &MemoryPlan) -> String {
    let mut text = match plan.checkpointed {
        (0, _) => format!("plain, {:.1} GB", plan.bytes.total() as f64 / 1e9),
        (some, all) if some == all => "checkpointing".to_owned(),
        (some, all) => format!("checkpointing {some}/{all}"),
    };
    if plan.offload {
        text += " + offload";
    }
    if let WeightStorage::InFile { .. } = plan.storage {
        text += " + block swap";
    }
    text
}

//! One LoRA training step against diffusers + peft on the same cores, weights and shapes, each case in a process
//! of its own so that its peak memory is its own, ours and theirs in turn.
//!
//! `PLUMB_PYTHON=python cargo bench -- train [tiny|100m]`; the 100 M-parameter model is written to
//! `target/peer` by the peer's script, `benches/peer/train_diffusers_peft.py`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use candle_core::{Device, Tensor};
use plumb::diffusion::{Level, Prediction, Process, add_noise};
use plumb::lora::{AdapterSet, Recompute, targets};
use plumb::models::{self, Component, Components, ConditioningTensors};
use plumb::nn::Kernels;
use plumb::optim::{Optimizer, OptimizerOptions};
use plumb::rng::{Rng, Stream};
use plumb::train::inputs::DenoiserBatch;
use plumb::train::step::Pass;
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Set in the child process, which measures this case instead of starting the peer.
const CASE: &str = "PLUMB_BENCH_CASE";
/// Steps that do not count: the first allocates what later ones reuse.
const WARM_UP: usize = 2;

pub(crate) fn run(filter: &str) -> Result<()> {
    if let Ok(case) = std::env::var(CASE) {
        println!("{}", measure(&serde_json::from_str(&case)?)?);
        return Ok(());
    }
    let python = std::env::var("PLUMB_PYTHON")
        .map_err(|_| "set PLUMB_PYTHON to a python with diffusers and peft")?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    println!(
        "| model | batch | checkpointing | ours, s/step | theirs | times as fast | ours, peak MiB | theirs | of their memory |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for model in ["tiny", "100m"].into_iter().filter(|m| m.contains(filter)) {
        for theirs in peer(&python, root, model)? {
            let ours = child(&theirs)?;
            let number = |v: &Value, key: &str| v[key].as_f64().unwrap_or(f64::NAN);
            let (a, b) = (number(&ours, "step_s"), number(&theirs, "step_s"));
            let (m, n) = (
                number(&ours, "peak_rss_mib"),
                number(&theirs, "peak_rss_mib"),
            );
            println!(
                "| {model} | {} | {} | {a:.4} | {b:.4} | {:.2} | {m:.0} | {n:.0} | {:.2} |",
                theirs["batch"],
                theirs["checkpointing"],
                b / a,
                m / n
            );
        }
    }
    Ok(())
}

/// The peer's lines, one a case.
fn peer(python: &str, root: &Path, model: &str) -> Result<Vec<Value>> {
    let script = root.join("benches/peer/train_diffusers_peft.py");
    let output = Command::new(python)
        .arg(script)
        .args(["--models", model])
        .arg("--tiny")
        .arg(root.join("assets/tiny-sd3"))
        .arg("--folder")
        .arg(root.join("target/peer/mmdit-100m"))
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let text = String::from_utf8(output.stdout)?;
    text.lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

fn child(case: &Value) -> Result<Value> {
    let output = Command::new(std::env::current_exe()?)
        .args(["train"])
        .env(CASE, case.to_string())
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Trains some steps of a case and gives the median seconds of one and the peak resident size.
fn measure(case: &Value) -> Result<Value> {
    let folder = PathBuf::from(case["path"].as_str().ok_or("no path")?);
    let batch = case["batch"].as_u64().ok_or("no batch")? as usize;
    let (family, rank) = (
        models::family("sd3")?,
        case["rank"].as_u64().ok_or("no rank")? as usize,
    );
    let config = folder.join("config.json");
    let shape: Value = serde_json::from_slice(&std::fs::read(&config)?)?;
    let denoiser = Component::new(folder.clone(), Some(config));
    let components = Components {
        path: folder,
        parts: [("transformer", denoiser)].into(),
        tokenizers: [].into(),
        scheduler: None,
    };
    let opened = family.open(components)?;
    let denoiser = opened.load(&models::Placement::default())?;
    let wanted = [case["targets"].as_str().ok_or("no targets")?.to_owned()];
    let linears = targets::select(opened.linears(), &wanted, family.presets)?;
    let adapters = AdapterSet::new(&linears, rank, rank as f64, 0)?;
    let device = Device::Cpu;
    let values = adapters.to_device(&device)?;
    let mut optimizer = Optimizer::new(
        OptimizerOptions::default(),
        adapters.values().len(),
        &device,
    )?;
    let micro_batch = denoiser_batch(&shape, batch)?;
    let mut seconds = Vec::new();
    let steps = case["steps"].as_u64().unwrap_or(5) as usize;
    for step in 0..WARM_UP + steps {
        let start = Instant::now();
        let gradient = values.zeros_like()?;
        let recompute = match case["checkpointing"].as_bool() {
            Some(true) => Recompute::EveryBlock,
            _ => Recompute::Never,
        };
        let pass = Pass {
            denoiser: denoiser.as_ref(),
            adapters: &adapters,
            values: &values,
            dropout: (0.0, 0),
            recompute,
            offload: false,
        };
        pass.backward(&micro_batch, step as u64, 1.0, &gradient)?;
        optimizer.step(&Kernels::NONE, &values, &gradient, 1e-4)?;
        if step >= WARM_UP {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(json!({ "step_s": seconds[seconds.len() / 2], "peak_rss_mib": peak_mib()? }))
}

fn denoiser_batch(shape: &Value, batch: usize) -> Result<DenoiserBatch> {
    let size = |key: &str| {
        shape[key]
            .as_u64()
            .map(|v| v as usize)
            .ok_or(format!("no {key}"))
    };
    let (side, channels) = (size("sample_size")?, size("in_channels")?);
    let normals = |dims: &[usize], number| {
        let values = Rng::new(0, Stream::Noise, 0, number).normals(dims.iter().product());
        Tensor::from_vec(values, dims, &Device::Cpu)
    };
    let latents = normals(&[batch, channels, side, side], 0)?;
    let noise = normals(&[batch, channels, side, side], 1)?;
    let sigmas: Vec<f64> = (0..batch)
        .map(|i| (i as f64 + 0.5) / batch as f64)
        .collect();
    let numbers = |f: &dyn Fn(f64) -> f64| {
        Tensor::from_vec(
            sigmas.iter().map(|&s| f(s) as f32).collect::<Vec<_>>(),
            batch,
            &Device::Cpu,
        )
    };
    let levels: Vec<Level> = sigmas.iter().map(|&s| Level::of_flow(s)).collect();
    Ok(DenoiserBatch {
        noisy: add_noise(&latents, &noise, &levels)?,
        target: Process::new(Prediction::Flow).target(&latents, &noise, &levels)?,
        sigmas: numbers(&|s| s)?,
        timesteps: numbers(&|s| s * 1000.0)?,
        weights: numbers(&|_| 1.0)?,
        conditioning: ConditioningTensors::new(
            // 77 rows of CLIP and 77 of T5, as the peer's script makes.
            normals(&[batch, 154, size("joint_attention_dim")?], 2)?,
            normals(&[batch, size("pooled_projection_dim")?], 3)?,
        ),
        share: 1.0,
        latents,
        noise,
    })
}

/// The largest resident size of this process so far, in MiB.
fn peak_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        // The high-water mark of a process cannot be taken back: hence a process for each case.
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}

//! Wan's VAE against diffusers': a clip to latents, the same random weights at full size, f32, the same cores.
//!
//! `PLUMB_PYTHON=python cargo bench -- vae [FILTER]` prints one table. Each side runs in a process of its own, so that its peak memory
//! is its own. A case with `ours` has no other side: it shows that a longer clip takes no more memory.

use std::path::Path;
use std::process::Command;

use candle_core::{Device, Tensor};
use plumb::nn::weights::Weights;
use plumb::recipe::latents::WanArchitecture;
use plumb::vae::causal::{Encoder, names};
use serde_json::{Value, json};

use crate::encode::{Failure, Seconds, write_weights};

/// Frames and side in px.
const CASES: [(&str, usize, usize); 4] = [
    ("17 frames, 256 px", 17, 256),
    ("1 frame, 256 px", 1, 256),
    ("17 frames, 128 px, ours", 17, 128),
    ("81 frames, 128 px, ours", 81, 128),
];

/// Runs the cases whose name contains `filter`; or the one that a process of ours is started for.
pub(crate) fn run(filter: &str) -> Result<(), Failure> {
    if let Some(case) = filter.strip_prefix("child ") {
        return child(&serde_json::from_str(case)?);
    }
    let python = std::env::var("PLUMB_PYTHON").unwrap_or_else(|_| "python3".into());
    let folder = tempfile::tempdir()?;
    let released = WanArchitecture::parse("{}", "defaults")?;
    let mut tensors = names::encoder_tensors(&released.encoder);
    tensors.extend(names::decoder_tensors(&released));
    write_weights(&folder.path().join("model.safetensors"), &tensors)?;
    println!(
        "| clip | plumb s | diffusers s | times as fast | by processor time | plumb, peak MiB | diffusers | beyond the loaded model, plumb | diffusers | difference |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (name, frames, side) in CASES.iter().filter(|case| case.0.contains(filter)) {
        let alone = name.ends_with("ours");
        println!(
            "| {name} {}",
            compare(&python, folder.path(), (*frames, *side), alone)?
        );
    }
    Ok(())
}

fn compare(
    python: &str,
    folder: &Path,
    (frames, side): (usize, usize),
    alone: bool,
) -> Result<String, Failure> {
    let case = json!({ "folder": folder, "frames": frames, "side": side });
    let mut ours = Command::new(std::env::current_exe()?);
    ours.args(["vae", &format!("child {case}")]);
    let ours = answer(&mut ours)?;
    let of = |side: &Value, field: &str| side[field].as_f64().unwrap_or(f64::NAN);
    let beyond = |side: &Value| of(side, "peak_mib") - of(side, "loaded_mib");
    let (s, peak) = (of(&ours, "seconds"), of(&ours, "peak_mib"));
    if alone {
        let beyond = beyond(&ours);
        return Ok(format!("| {s:.2} | | | | {peak:.0} | | {beyond:.0} | | |"));
    }
    let mut theirs = Command::new(python);
    theirs.arg("benches/peer/vae_diffusers.py").arg(folder);
    theirs.args([frames, side, rayon::current_num_threads()].map(|n| n.to_string()));
    let theirs = answer(&mut theirs)?;
    Ok(format!(
        "| {s:.2} | {:.2} | {:.2} | {:.2} | {peak:.0} | {:.0} | {:.0} | {:.0} | {:.1e} |",
        of(&theirs, "seconds"),
        of(&theirs, "seconds") / s,
        of(&theirs, "processor") / of(&ours, "processor"),
        of(&theirs, "peak_mib"),
        beyond(&ours),
        beyond(&theirs),
        difference(folder)?
    ))
}

/// The last line of what a side prints.
fn answer(command: &mut Command) -> Result<Value, Failure> {
    let output = command.stderr(std::process::Stdio::inherit()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().ok_or("a side said nothing")?;
    Ok(serde_json::from_str(line)?)
}

/// The largest difference of any latent, relative to the root mean square of the peer's.
fn difference(folder: &Path) -> Result<f32, Failure> {
    let read = |name: &str| -> Result<Tensor, Failure> {
        let mut file = candle_core::safetensors::load(folder.join(name), &Device::Cpu)?;
        Ok(file.remove("mean").ok_or("no mean")?)
    };
    let (ours, theirs) = (read("ours.safetensors")?, read("output.safetensors")?);
    let rms = theirs.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>()?;
    Ok((ours - theirs)?
        .abs()?
        .flatten_all()?
        .max(0)?
        .to_scalar::<f32>()?
        / rms)
}

/// Our side: encodes the clip, read four frames at a time.
fn child(case: &Value) -> Result<(), Failure> {
    let folder = Path::new(case["folder"].as_str().ok_or("no folder")?);
    let number = |field: &str| case[field].as_u64().map(|n| n as usize).ok_or("no number");
    let (frames, side) = (number("frames")?, number("side")?);
    let released = WanArchitecture::parse("{}", "defaults")?;
    let weights = Weights::open(&[folder.join("model.safetensors")])?;
    let encoder = Encoder::load(&released.encoder, &weights)?;
    encoder.begin().push(&clip(0, 1, 64)?)?;
    let (loaded, start) = (mib("VmRSS:")?, Seconds::now());
    let mut encoding = encoder.begin();
    for first in (0..frames).step_by(4) {
        encoding.push(&clip(first, 4.min(frames - first), side)?)?;
    }
    let mean = encoding.finish()?.mean;
    let taken = start.since();
    candle_core::safetensors::save(
        &[("mean", mean)].into_iter().collect(),
        folder.join("ours.safetensors"),
    )?;
    let peak = mib("VmHWM:")?;
    println!(
        "{}",
        json!({ "seconds": taken.clock, "processor": taken.processor, "loaded_mib": loaded, "peak_mib": peak })
    );
    Ok(())
}

/// `count` frames from `first` on, [count, 3, side, side].
fn clip(first: usize, count: usize, side: usize) -> Result<Tensor, Failure> {
    let size = 3 * side * side;
    let numbers = (first * size..(first + count) * size).map(|n| (n as f64 * 1.3).sin() as f32);
    Ok(Tensor::from_vec(
        numbers.collect::<Vec<_>>(),
        (count, 3, side, side),
        &Device::Cpu,
    )?)
}

/// A field of this process's memory, on Linux.
fn mib(field: &str) -> Result<f64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.ok_or("no such field")?.parse::<f64>()? / 1024.0)
}

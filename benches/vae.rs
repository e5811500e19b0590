//! Wan's VAE against diffusers': clips to latents and back, the same random weights at full size, f32, the same cores, in turn.
//!
//! `PLUMB_PYTHON=python cargo bench -- vae [FILTER]` prints one table. Each side runs in a process of its own, so that its peak memory
//! is its own. A case with `ours` has no other side: it shows that a longer clip takes no more memory.

use std::path::Path;
use std::process::Command;

use candle_core::{Device, Tensor};
use plumb::nn::weights::Weights;
use plumb::recipe::latents::WanArchitecture;
use plumb::vae::causal::{Decoder, Encoder, names};
use serde_json::{Value, json};

use crate::encode::write_weights;
use crate::turns::{Failure, Side, Turns, answer, largest_difference, mib, turns};

/// Frames and side in px; whether back from latents; turns of each side.
const CASES: [(&str, usize, usize, bool, usize); 6] = [
    ("encode 17 frames, 256 px", 17, 256, false, 3),
    ("decode 17 frames, 256 px", 17, 256, true, 3),
    ("encode 1 frame, 256 px", 1, 256, false, 5),
    ("decode 1 frame, 256 px", 1, 256, true, 5),
    ("encode 17 frames, 128 px, ours", 17, 128, false, 1),
    ("encode 81 frames, 128 px, ours", 81, 128, false, 1),
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
    for &(name, frames, side, back, turns) in CASES.iter().filter(|case| case.0.contains(filter)) {
        let case = json!({
            "folder": folder.path(), "frames": frames, "side": side, "decode": back, "threads": rayon::current_num_threads(),
        });
        let other = (!name.ends_with("ours")).then_some(&*python);
        println!("| {name} {}", compare(other, &case, turns)?);
    }
    Ok(())
}

/// Runs a case, both sides if there is another, and gives its line of the table.
fn compare(python: Option<&str>, case: &Value, count: usize) -> Result<String, Failure> {
    let mut ours = Command::new(std::env::current_exe()?);
    let mut ours = Side::start(ours.args(["vae", &format!("child {case}")]))?;
    let loaded = ours.json()?;
    let of = |side: &Value, field: &str| side[field].as_f64().unwrap_or(f64::NAN);
    let Some(python) = python else {
        let s = ours.turn()?.clock;
        let peak = of(&ours.finish()?, "peak_mib");
        let beyond = peak - of(&loaded, "loaded_mib");
        return Ok(format!("| {s:.2} | | | | {peak:.0} | | {beyond:.0} | | |"));
    };
    let mut theirs = Command::new(python);
    theirs.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peer/vae_diffusers.py"));
    let mut theirs = Side::start(theirs.arg(case.to_string()))?;
    let their_loaded = theirs.json()?;
    let mut measured = Turns::default();
    for _ in 0..turns(count) {
        measured.push(ours.turn()?, theirs.turn()?);
    }
    let (ours, theirs) = (ours.finish()?, theirs.finish()?);
    let (m, n) = (of(&ours, "peak_mib"), of(&theirs, "peak_mib"));
    let [s, t] = measured.seconds();
    Ok(format!(
        "| {s:.2} | {t:.2} | {} | {} | {m:.0} | {n:.0} | {:.0} | {:.0} | {:.1e} |",
        measured.clock(),
        measured.processor(),
        m - of(&loaded, "loaded_mib"),
        n - of(&their_loaded, "loaded_mib"),
        difference(Path::new(case["folder"].as_str().unwrap_or_default()))?
    ))
}

/// The largest difference of any latent, or of any pixel of the last frame, relative to the root mean square of the peer's.
fn difference(folder: &Path) -> Result<f32, Failure> {
    let read = |name: &str| -> Result<Tensor, Failure> {
        let mut file = candle_core::safetensors::load(folder.join(name), &Device::Cpu)?;
        Ok(file.remove("result").ok_or("no result")?)
    };
    let (ours, theirs) = (read("ours.safetensors")?, read("output.safetensors")?);
    let rms = theirs.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>()?;
    Ok(largest_difference(&ours, &theirs)? / rms)
}

/// Our side: encodes the clip, read four frames at a time, or decodes latents, of which each frame is let go as it comes.
fn child(case: &Value) -> Result<(), Failure> {
    let folder = Path::new(case["folder"].as_str().ok_or("no folder")?);
    let number = |field: &str| case[field].as_u64().map(|n| n as usize).ok_or("no number");
    let (frames, side) = (number("frames")?, number("side")?);
    let released = WanArchitecture::parse("{}", "defaults")?;
    let weights = Weights::open(&[folder.join("model.safetensors")])?;
    if case["decode"].as_bool() == Some(true) {
        let decoder = Decoder::load(&released, &weights)?;
        let channels = released.encoder.z_dim;
        let latents = |frames: usize, side: usize| waves(&[1, channels, frames, side, side], 0);
        decoder.decode(&latents(1, 8)?, &mut |_| Ok(()))?;
        println!("{}", json!({ "loaded_mib": mib("VmRSS:")? }));
        let given = latents(1 + frames / 4, side / 8)?;
        return answer(|| {
            let mut last = None;
            decoder.decode(&given, &mut |frame| {
                last = Some(frame);
                Ok(())
            })?;
            save(folder, &last.ok_or("no frame")?)
        });
    }
    let encoder = Encoder::load(&released.encoder, &weights)?;
    encoder.begin().push(&clip(0, 1, 64)?)?;
    println!("{}", json!({ "loaded_mib": mib("VmRSS:")? }));
    answer(|| {
        let mut encoding = encoder.begin();
        for first in (0..frames).step_by(4) {
            encoding.push(&clip(first, 4.min(frames - first), side)?)?;
        }
        save(folder, &encoding.finish()?.mean)
    })
}

fn save(folder: &Path, result: &Tensor) -> Result<(), Failure> {
    let result = [("result", result.clone())].into_iter().collect();
    Ok(candle_core::safetensors::save(
        &result,
        folder.join("ours.safetensors"),
    )?)
}

/// `count` frames from `first` on, [count, 3, side, side].
fn clip(first: usize, count: usize, side: usize) -> Result<Tensor, Failure> {
    waves(&[count, 3, side, side], first * 3 * side * side)
}

/// Numbers in [-1, 1] in a tensor of this shape, from the `first` on.
fn waves(shape: &[usize], first: usize) -> Result<Tensor, Failure> {
    let count: usize = shape.iter().product();
    let numbers = (first..first + count).map(|n| (n as f64 * 1.3).sin() as f32);
    Ok(Tensor::from_vec(numbers.collect(), shape, &Device::Cpu)?)
}

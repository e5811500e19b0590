//! One LoRA training step against diffusers + peft on the same cores, weights, inputs and shapes, each side in a process of its own so
//! that its peak memory is its own, ours and theirs step by step in turn.
//!
//! `PLUMB_PYTHON=python cargo bench -- train [NAME]`; the models of 100 million random parameters are written to `target/peer` by the
//! peer's script, `benches/peer/train_diffusers_peft.py`. `NAME,batch,checkpointing` names one case: `wan,1,false`.

use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device, Tensor, safetensors};
use plumb::diffusion::{Level, Prediction, Process, add_noise};
use plumb::lora::{AdapterSet, Recompute, targets};
use plumb::models::{self, Component, Components, ConditioningTensors};
use plumb::nn::Kernels;
use plumb::optim::{Optimizer, OptimizerOptions};
use plumb::rng::{Rng, Stream};
use plumb::train::inputs::DenoiserBatch;
use plumb::train::step::Pass;
use serde_json::{Value, json};

use crate::turns::{Failure, Side, Turns, answer, largest_difference, turns};

type Result<T> = std::result::Result<T, Failure>;

/// Turns of each side, after one that does not count: the first steps allocate what later ones reuse.
const TURNS: usize = 7;
const RANK: usize = 16;
const INPUTS: &str = "inputs.safetensors";
const OURS: &str = "ours.safetensors";
const PREDICTION: &str = "prediction";

/// A model, and what a step of it is given.
struct Model {
    name: &'static str,
    family: &'static str,
    /// The preset of linears that are adapted.
    targets: &'static str,
    /// Channels, frames where there are, height and width of the latents.
    latents: &'static [usize],
    /// Rows and width.
    context: [usize; 2],
    pooled: usize,
    /// In one turn: a step of a small one is too short to be measured.
    steps: usize,
}

/// Of 256 px but for `tiny`, which is of 128 px; `wan` is given clips of 5 frames.
const MODELS: [Model; 5] = [
    Model {
        name: "tiny",
        family: "sd3",
        targets: "attention+mlp",
        latents: &[16, 16, 16],
        context: [154, 128],
        pooled: 112,
        steps: 20,
    },
    Model {
        name: "100m",
        family: "sd3",
        targets: "attention+mlp",
        latents: &[16, 32, 32],
        context: [154, 4096],
        pooled: 2048,
        steps: 1,
    },
    Model {
        name: "z-image",
        family: "zimage",
        targets: "attention+mlp",
        latents: &[16, 32, 32],
        context: [90, 2560],
        pooled: 0,
        steps: 1,
    },
    Model {
        name: "klein",
        family: "flux2",
        targets: "blocks",
        latents: &[32, 32, 32],
        context: [512, 7680],
        pooled: 0,
        steps: 1,
    },
    Model {
        name: "wan",
        family: "wan",
        targets: "blocks",
        latents: &[16, 2, 32, 32],
        context: [512, 4096],
        pooled: 0,
        steps: 1,
    },
];

pub(crate) fn run(filter: &str) -> Result<()> {
    if let Some(case) = filter.strip_prefix("child ") {
        return child(&serde_json::from_str(case)?);
    }
    let python = std::env::var("PLUMB_PYTHON")
        .map_err(|_| "set PLUMB_PYTHON to a python with diffusers and peft")?;
    println!(
        "{} turns each; a ratio (least..most of turns) above 1 is in plumb's favour; memory is the whole process at its peak, \
         theirs also less what Python and torch take before they load a model",
        turns(TURNS)
    );
    println!(
        "| model | batch | checkpointing | plumb, s a step | diffusers + peft | times as fast | by processor time | \
         plumb, peak MiB | theirs | less Python | plumb of theirs | difference |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for model in &MODELS {
        for (batch, checkpointing) in [(1, false), (1, true), (4, false), (4, true)] {
            let case = format!("{},{batch},{checkpointing}", model.name);
            if case.starts_with(filter) {
                println!("{}", compare(&python, model, batch, checkpointing)?);
            }
        }
    }
    Ok(())
}

/// Runs a case, both sides, and gives its line of the table.
fn compare(python: &str, model: &Model, batch: usize, checkpointing: bool) -> Result<String> {
    let folder = written(python, model)?;
    let scratch = tempfile::tempdir()?;
    let inputs = scratch.path().join(INPUTS);
    safetensors::save(&inputs_of(model, batch)?.into_iter().collect(), &inputs)?;
    let mut case = json!({
        "folder": folder, "inputs": inputs, "checkpointing": checkpointing, "rank": RANK, "steps": model.steps,
        "family": model.family, "preset": model.targets, "threads": rayon::current_num_threads(),
    });
    let mut ours = Command::new(std::env::current_exe()?);
    let mut ours = Side::start(ours.args(["train", &format!("child {case}")]))?;
    let begun = ours.json()?;
    case["targets"] = begun["targets"].clone();
    let mut theirs = Command::new(python);
    let mut theirs = Side::start(theirs.arg(script()).arg(case.to_string()))?;
    let found = theirs.json()?;
    if begun["values"] != found["values"] {
        return Err(format!(
            "the adapters differ: {} values, and theirs {}",
            begun["values"], found["values"]
        )
        .into());
    }
    let of = |side: &Value, field: &str| side[field].as_f64().unwrap_or(f64::NAN);
    let difference = difference(scratch.path())?;
    let mut measured = Turns::default();
    for turn in 0..=turns(TURNS) {
        let (ours, theirs) = (ours.turn()?, theirs.turn()?);
        if turn > 0 {
            measured.push(ours, theirs);
        }
    }
    let (m, n) = (ours.finish()?, theirs.finish()?);
    let (m, n) = (of(&m, "peak_mib"), of(&n, "peak_mib"));
    let [s, t] = measured.seconds().map(|s| s / model.steps as f64);
    Ok(format!(
        "| {} | {batch} | {checkpointing} | {s:.4} | {t:.4} | {} | {} | {m:.0} | {n:.0} | {:.0} | {:.2} | {difference:.1e} |",
        model.name,
        measured.clock(),
        measured.processor(),
        n - of(&found, "imported_mib"),
        m / n
    ))
}

/// The largest difference of any number of the first predictions, before anything is trained, relative to the root mean square of the
/// peer's.
fn difference(folder: &Path) -> Result<f32> {
    let read = |name: &str| -> Result<Tensor> {
        let mut file = safetensors::load(folder.join(name), &Device::Cpu)?;
        Ok(file.remove(PREDICTION).ok_or("no prediction")?)
    };
    let (ours, theirs) = (read(OURS)?, read("theirs.safetensors")?);
    let rms = theirs.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>()?;
    Ok(largest_difference(&ours, &theirs)? / rms)
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peer/train_diffusers_peft.py")
}

/// The model's folder, which the peer's script writes where it is not there.
fn written(python: &str, model: &Model) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if model.name == "tiny" {
        return Ok(root.join("assets/tiny-sd3/transformer"));
    }
    let folder = root.join("target/peer").join(model.name);
    if !folder.join("config.json").is_file() {
        let mut command = Command::new(python);
        let command = command
            .arg(script())
            .args(["--write", model.name])
            .arg(&folder);
        if !command.status()?.success() {
            return Err("the model was not written".into());
        }
    }
    Ok(folder)
}

/// What both sides are given: [batch, ..] each.
fn inputs_of(model: &Model, batch: usize) -> Result<Vec<(&'static str, Tensor)>> {
    let normals = |dims: &[usize], number| {
        let dims = [&[batch], dims].concat();
        let values = Rng::new(0, Stream::Noise, 0, number).normals(dims.iter().product());
        Tensor::from_vec(values, dims, &Device::Cpu)
    };
    let sigmas: Vec<f32> = (0..batch)
        .map(|i| (i as f32 + 0.5) / batch as f32)
        .collect();
    let mut inputs = vec![
        ("latents", normals(model.latents, 0)?),
        ("noise", normals(model.latents, 1)?),
        ("context", normals(&model.context, 2)?),
        ("sigmas", Tensor::from_vec(sigmas, batch, &Device::Cpu)?),
    ];
    if model.pooled > 0 {
        inputs.push(("pooled", normals(&[model.pooled], 3)?));
    }
    Ok(inputs)
}

/// Our side of a case.
fn child(case: &Value) -> Result<()> {
    let text = |field: &str| case[field].as_str().ok_or(format!("no {field}"));
    let number = |field: &str| {
        let number = case[field].as_u64().map(|n| n as usize);
        number.ok_or(format!("no {field}"))
    };
    let folder = PathBuf::from(text("folder")?);
    let (family, rank) = (models::family(text("family")?)?, number("rank")?);
    let config = folder.join("config.json");
    let components = Components {
        parts: [(
            "transformer",
            Component::new(folder.clone(), Some(config.clone())),
        )]
        .into(),
        path: folder,
        tokenizers: [].into(),
        scheduler: None,
    };
    let opened = family.open(components)?;
    let denoiser = opened.load(&models::Placement::default())?;
    let wanted = [text("preset")?.to_owned()];
    let linears = targets::select(opened.linears(), &wanted, family.presets)?;
    let adapters = AdapterSet::new(&linears, rank, rank as f64, 0)?;
    let device = Device::Cpu;
    let values = adapters.to_device(&device)?;
    let options = OptimizerOptions::default();
    let mut optimizer = Optimizer::new(options, adapters.values().len(), &device)?;
    let batch = denoiser_batch(Path::new(text("inputs")?))?;
    let recompute = match case["checkpointing"].as_bool() {
        Some(true) => Recompute::EveryBlock,
        _ => Recompute::Never,
    };
    let mut steps = 0;
    let mut step = || -> Result<Tensor> {
        let gradient = values.zeros_like()?;
        let pass = Pass {
            denoiser: denoiser.as_ref(),
            adapters: &adapters,
            values: &values,
            dropout: (0.0, 0),
            recompute: recompute.clone(),
            offload: false,
        };
        let found = pass.backward(&batch, steps, 1.0, &gradient)?;
        optimizer.step(&Kernels::NONE, &values, &gradient, 1e-4)?;
        steps += 1;
        Ok(found.prediction)
    };
    let names: Vec<_> = linears.iter().map(|linear| &linear.name).collect();
    let first = [(PREDICTION, step()?)].into_iter().collect();
    safetensors::save(&first, Path::new(text("inputs")?).with_file_name(OURS))?;
    println!(
        "{}",
        json!({ "values": adapters.values().len(), "targets": names })
    );
    let in_a_turn = number("steps")?;
    answer(|| (0..in_a_turn).try_for_each(|_| step().map(drop)))
}

fn denoiser_batch(inputs: &Path) -> Result<DenoiserBatch> {
    let mut given = safetensors::load(inputs, &Device::Cpu)?;
    let mut take = |name: &str| given.remove(name).ok_or(format!("no {name}"));
    let (latents, noise, context) = (take("latents")?, take("noise")?, take("context")?);
    let (sigmas, batch) = (take("sigmas")?, latents.dim(0)?);
    let pooled = match take("pooled") {
        Ok(pooled) => pooled,
        Err(_) => Tensor::zeros((batch, 0), DType::F32, &Device::Cpu)?,
    };
    let numbers = sigmas.to_vec1::<f32>()?;
    let levels: Vec<Level> = numbers
        .iter()
        .map(|&s| Level::of_flow(f64::from(s)))
        .collect();
    Ok(DenoiserBatch {
        noisy: add_noise(&latents, &noise, &levels)?,
        target: Process::new(Prediction::Flow).target(&latents, &noise, &levels)?,
        timesteps: (&sigmas * 1000.0)?,
        weights: sigmas.ones_like()?,
        sigmas,
        conditioning: ConditioningTensors::new(context, pooled),
        share: 1.0,
        latents,
        noise,
    })
}

//! A LoRA file through the network: written, read back, and loaded by diffusers.

use std::process::Command;

use super::*;
use crate::lora::{AdapterSet, FileOptions, LinearShape, SaveDtype, file, metadata, targets};

/// Adapters as after training: B is not zero, ranks and alphas differ, alpha is not the rank.
fn trained(model: &dyn Denoiser, preset: &str) -> AdapterSet {
    let chosen = targets::select(model.linears(), &[preset.to_owned()], Sd3.presets()).unwrap();
    let odd = |linear: &LinearShape| linear.name.ends_with("to_k");
    let shapes = chosen.into_iter().map(|linear| match odd(&linear) {
        true => (linear, 3, 1.0),
        false => (linear, 4, 8.0),
    });
    let mut set = AdapterSet::zeroed(shapes).unwrap();
    let normals =
        crate::rng::Rng::new(9, crate::rng::Stream::AdapterInit, 0, 0).normals(set.values().len());
    for (value, normal) in set.values_mut().iter_mut().zip(normals) {
        *value = 0.1 * normal;
    }
    set
}

fn write(set: &AdapterSet, dtype: SaveDtype) -> Vec<u8> {
    let info = metadata::FileInfo {
        architecture: "stable-diffusion-3-5-medium",
        base_version: "5-medium",
        title: "test",
        resolution: (1024, 1024),
    };
    let options = FileOptions {
        component: Sd3.lora_component(),
        dtype,
        metadata: metadata::standard(set, &info),
    };
    file::write(set, &options).unwrap()
}

fn predict(model: &dyn Denoiser, inputs: &Inputs, set: &AdapterSet) -> Tensor {
    let tape = Tape::off();
    let bound = set.bind(&tape, DType::F32, &Device::Cpu, None).unwrap();
    inputs.call(model, &tape, &bound).tensor().clone()
}

#[test]
fn a_saved_lora_read_back_gives_the_same_prediction() {
    let golden = Golden::read("dual");
    let (model, inputs) = (golden.model(), golden.inputs(0));
    let set = trained(&*model, "all-linear");
    let expected = predict(&*model, &inputs, &set);
    let without = inputs.call(&*model, &Tape::off(), &Bound::none());
    assert!(
        error_of(without.tensor(), &expected) > 1e-2,
        "the adapters do nothing"
    );
    for (dtype, limit) in [
        (SaveDtype::F32, 1e-6),
        (SaveDtype::F16, 1e-2),
        (SaveDtype::Bf16, 1e-1),
    ] {
        let read = file::read(&write(&set, dtype), "lora", Sd3.lora_component()).unwrap();
        read.adapters.check(model.linears()).unwrap();
        let error = error_of(&predict(&*model, &inputs, &read.adapters), &expected);
        println!("{dtype:?}: {error:.1e}");
        assert!(error < limit, "{dtype:?}: {error:.1e}");
    }
}

/// Runs where `PLUMB_PYTHON` names a Python with diffusers and peft.
#[test]
fn diffusers_loads_a_saved_lora_and_predicts_the_same() {
    let Ok(python) = std::env::var("PLUMB_PYTHON") else {
        println!("skipped: set PLUMB_PYTHON to a Python with diffusers and peft");
        return;
    };
    for name in MODELS {
        let golden = Golden::read(name);
        let (folder, inputs) = (golden.folder(), golden.inputs(0));
        let model = load(folder.path()).unwrap();
        for (preset, dtype) in [
            ("all-linear", SaveDtype::F32),
            ("attention", SaveDtype::Bf16),
        ] {
            let bytes = write(&trained(&*model, preset), dtype);
            // What the file holds, which in bf16 is not quite what was trained.
            let set = file::read(&bytes, "lora", Sd3.lora_component())
                .unwrap()
                .adapters;
            let (lora, dump) = (
                folder.path().join("lora.safetensors"),
                folder.path().join("dump.safetensors"),
            );
            std::fs::write(&lora, bytes).unwrap();
            let dumped = HashMap::from([
                ("latents", inputs.latents.clone()),
                ("timesteps", inputs.timesteps.clone()),
                ("context", inputs.conditioning.context.clone()),
                ("pooled", inputs.conditioning.pooled.clone()),
                ("output", predict(&*model, &inputs, &set)),
            ]);
            candle_core::safetensors::save(&dumped, &dump).unwrap();
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/check_lora.py");
            let run = Command::new(&python)
                .arg(script)
                .arg(&lora)
                .arg(folder.path())
                .arg(&dump)
                .output()
                .unwrap();
            let printed = String::from_utf8_lossy(&run.stdout);
            println!("{name} {preset} {dtype:?}: {}", printed.trim());
            assert!(
                run.status.success(),
                "{printed}{}",
                String::from_utf8_lossy(&run.stderr)
            );
        }
    }
}

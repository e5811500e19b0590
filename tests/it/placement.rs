//! Where and how the base model is kept while it is trained: memory plans, quantized weights, types and devices.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use crate::world::World;

fn tensors(world: &World, path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(world.path(path), &Device::Cpu).expect("a safetensors file")
}

fn encoded() -> World {
    let world = World::new();
    world.run(&["encode", "exp.toml"]).expect(0);
    world
}

/// What the first step saw and made.
fn first_step(world: &World) -> HashMap<String, Tensor> {
    let dump = ["--stop-after", "1", "--dump-step", "1", "step.safetensors"];
    world
        .run(&[&["train", "exp.toml", "--restart"], &dump[..]].concat())
        .expect(0);
    tensors(world, "step.safetensors")
}

/// The cosine between the gradients of two steps, all adapters together.
fn cosine(a: &HashMap<String, Tensor>, b: &HashMap<String, Tensor>) -> f64 {
    let dot = |x: &Tensor, y: &Tensor| {
        let product = (x * y).and_then(|t| t.sum_all());
        f64::from(
            product
                .and_then(|t| t.to_scalar::<f32>())
                .expect("a number"),
        )
    };
    let names = a.keys().filter(|name| name.starts_with("gradient."));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for name in names {
        ab += dot(&a[name], &b[name]);
        aa += dot(&a[name], &a[name]);
        bb += dot(&b[name], &b[name]);
    }
    ab / (aa * bb).sqrt()
}

fn loss(step: &HashMap<String, Tensor>) -> f32 {
    step["loss"].to_vec1::<f32>().expect("a loss")[0]
}

#[test]
fn less_memory_means_more_work_and_the_same_bits_until_it_is_refused_with_advice() {
    let world = encoded();
    let train = |memory: &str| world.run(&["train", "exp.toml", "--restart", "--memory", memory]);
    let lora = || world.read("out/lora.safetensors");
    let plenty = train("10").expect(0);
    assert!(
        !plenty.stderr.contains("gradient checkpointing"),
        "{}",
        plenty.stderr
    );
    let whole = lora();
    train("0.017").expect(0).says("gradient checkpointing on");
    assert!(lora() == whole, "gradient checkpointing made another LoRA");
    train("0.012")
        .expect(0)
        .says("every other weight matrix is read from its file when it is used");
    assert!(lora() == whole, "weights read when used made another LoRA");
    train("0.002")
        .expect(1)
        .says("it does not fit")
        .says("lower `train.batch_size` (2)")
        .says("A smaller rank does not");
    world.edit("seed = 5", "seed = 5\ngradient_checkpointing = false");
    train("0.008")
        .expect(1)
        .says("leave out `gradient_checkpointing = false`");
    train("0")
        .expect(2)
        .says("--memory: expected a number of GB above 0");
}

#[test]
fn who_predicts_keeps_to_the_memory_and_makes_the_same_picture() {
    let world = encoded();
    world.run(&["train", "exp.toml"]).expect(0);
    let sample = |memory: &str| {
        let lora = ["--lora", "out/lora.safetensors", "--out", "drawn"];
        world.run(&[&["sample", "exp.toml", "--memory", memory], &lora[..]].concat())
    };
    let drawn = || world.sampled("drawn/seed0-000.png");
    let plenty = sample("10").expect(0);
    assert!(!plenty.stderr.contains("block swap"), "{}", plenty.stderr);
    let whole = drawn();
    sample("0.012").expect(0).says("block swap: ");
    assert!(
        drawn() == whole,
        "weights read when used made another picture"
    );
    sample("0.001")
        .expect(1)
        .says("it does not fit")
        .says("1.0 MB free");
    world.edit(
        "flavor = \"3.5-large\"",
        "flavor = \"3.5-large\"\ncompute = \"fp8\"",
    );
    sample("0.001").expect(1).says("it does not fit");
    // A training says what whole weights would help.
    world
        .run(&["train", "exp.toml", "--restart", "--memory", "0.008"])
        .expect(1)
        .says("leave out `[model] compute = \"fp8\"`: whole weights are read from their files");
}

#[test]
fn packed_weights_train_near_the_whole_model_and_say_so() {
    let world = encoded();
    world.edit("[recipe]\n", "weights = \"none\"\n[recipe]\n");
    let mut last = "none";
    let mut quantized = |kind: &'static str| {
        world.edit(
            &format!("weights = {last:?}"),
            &format!("weights = {kind:?}"),
        );
        last = kind;
        first_step(&world)
    };
    let (int8, fp8, nf4) = (quantized("int8"), quantized("fp8"), quantized("nf4"));
    world.run(&["train", "exp.toml", "--restart"]).expect(0);
    let shown = world
        .run(&["inspect", "lora", "out/lora.safetensors"])
        .expect(0);
    shown.says("weights = \"nf4\"");
    world.edit("weights = \"nf4\"\n", "");
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("`model.weights`: the checkpoint \"nf4\"");
    let whole = first_step(&world);
    let off = [&int8, &fp8, &nf4].map(|step| (loss(step) / loss(&whole) - 1.0).abs());
    assert!(off[0] < 0.01 && off[1] < 0.02 && off[2] < 0.1, "{off:?}");
    let along = [&int8, &fp8, &nf4].map(|step| cosine(step, &whole));
    assert!(
        along[0] > 0.999 && along[1] > 0.99 && along[2] > 0.9,
        "{along:?}"
    );
    assert!(along.iter().all(|c| *c < 1.0 - 1e-9), "{along:?}");
}

#[test]
fn products_in_fp8_train_near_the_whole_model_and_say_so() {
    let world = encoded();
    let whole = first_step(&world);
    world.edit("[recipe]\n", "compute = \"fp8\"\n[recipe]\n");
    let rounded = first_step(&world);
    world
        .run(&["train", "exp.toml", "--restart"])
        .expect(0)
        .says("a CPU rounds numbers as a GPU does, and is no faster for it");
    let shown = world
        .run(&["inspect", "lora", "out/lora.safetensors"])
        .expect(0);
    shown.says("compute = \"fp8\"").says("products in fp8");
    let off = (loss(&rounded) / loss(&whole) - 1.0).abs();
    let along = cosine(&rounded, &whole);
    assert!(off < 0.02 && off > 0.0, "{off}");
    assert!(along > 0.97 && along < 1.0 - 1e-9, "{along}");
    // However often a matrix is kept, the numbers are the same.
    world.edit(
        "compute = \"fp8\"\n",
        "compute = \"fp8\"\nweights = \"fp8\"\n",
    );
    let kept_once = first_step(&world);
    assert_eq!(loss(&kept_once), loss(&rounded));
    world.edit("weights = \"fp8\"", "weights = \"nf4\"");
    world
        .run(&["train", "exp.toml"])
        .expect(2)
        .says("model.weights")
        .says("expected `fp8`, or nothing, beside `compute = \"fp8\"`, found nf4");
    world.edit("compute = \"fp8\"\nweights = \"nf4\"\n", "");
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("`model.compute`: the checkpoint \"fp8\"");
    world.edit("[recipe]\n", "compute = \"bf16\"\n[recipe]\n");
    world
        .run(&["train", "exp.toml"])
        .expect(2)
        .says("`model.compute`: unknown value `bf16`; expected one of fp8");
}

#[test]
fn a_step_in_fp8_is_as_near_to_torchaos_as_its_own_are_to_each_other() {
    let world = encoded();
    world.edit("[recipe]\n", "compute = \"fp8\"\n[recipe]\n");
    world.edit(
        "rank = 2",
        "rank = 2\nalpha = 3.0\ntargets = [\"all-linear\"]",
    );
    world.replay_step_by("tools/replay_step_fp8.py", 2, &crate::world::tiny_sd3());
}

/// As a GPU does, by the same tensor operations.
#[test]
fn a_step_in_bf16_is_near_one_in_f32() {
    let world = encoded();
    let exact = first_step(&world);
    world.edit("seed = 5", "seed = 5\ncompute = \"bf16\"");
    let rounded = first_step(&world);
    let off = (loss(&rounded) / loss(&exact) - 1.0).abs();
    let along = cosine(&rounded, &exact);
    assert!(off < 0.01 && off > 0.0, "{off}");
    assert!(along > 0.995, "{along}");
    world.run(&["sample", "exp.toml"]).expect(0);
    world.edit("compute = \"bf16\"", "compute = \"f16\"");
    world
        .run(&["train", "exp.toml"])
        .expect(2)
        .says("train.compute")
        .says("expected f32 or bf16");
}

#[test]
fn a_device_that_is_not_there_is_refused_by_name() {
    let world = World::new();
    world
        .run(&["encode", "exp.toml", "--device", "gpu"])
        .expect(2)
        .says("expected `auto`, `cpu`, `cuda` or `cuda:N`, found `gpu`");
    world
        .run(&["encode", "exp.toml", "--device", "cuda:4096"])
        .expect(1)
        .says("CUDA");
    world
        .run(&["encode", "exp.toml", "--device", "cpu"])
        .expect(0);
}

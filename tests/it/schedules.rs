//! What a checkpoint says of its noise schedule is told, trained, sampled, written into the LoRA, and held on to when a run goes on.

use std::collections::HashMap;
use std::path::Path;

use safetensors::SafeTensors;

use crate::world::World;

const V: [(&str, &str); 2] = [
    (
        "\"prediction_type\": \"epsilon\"",
        "\"prediction_type\": \"v_prediction\"",
    ),
    (
        "\"rescale_betas_zero_snr\": false",
        "\"rescale_betas_zero_snr\": true",
    ),
];

fn edit(world: &World, file: &str, from: &str, to: &str) {
    let text = String::from_utf8(world.read(file)).expect("UTF-8");
    assert!(text.contains(from), "{file} has no {from}");
    world.write(file, &text.replace(from, to));
}

/// A world with a copy of a bundled miniature.
fn world(family: &str, flavor: &str, asset: &str) -> World {
    let world = World::new();
    let asset = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("assets/{asset}"));
    world.copy_folder(&asset, "base");
    world.edit("family = \"sd3\"", &format!("family = \"{family}\""));
    world.edit("flavor = \"3.5-large\"", &format!("flavor = \"{flavor}\""));
    let path = format!("{:?}", crate::world::tiny_sd3().display().to_string());
    world.edit(&path, "\"base\"");
    world
}

fn metadata(world: &World) -> HashMap<String, String> {
    let bytes = world.read("out/lora.safetensors");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
    header.metadata().clone().expect("metadata")
}

fn tensors(world: &World) -> Vec<u8> {
    let bytes = world.read("out/lora.safetensors");
    let (length, _) = SafeTensors::read_metadata(&bytes).expect("a header");
    bytes[8 + length..].to_vec()
}

const SCHEDULER: &str = "base/scheduler/scheduler_config.json";

#[test]
fn a_folder_that_says_v_is_trained_and_sampled_as_v() {
    let world = world("sdxl", "base-1.0", "tiny-sdxl");
    let check = world.run(&["model", "check", "base"]).expect(0);
    assert!(!check.stdout.contains("prediction = "));
    check.says(
        "it says   prediction epsilon (`prediction_type` in base/scheduler/scheduler_config.json)",
    );
    for (from, to) in V {
        edit(&world, SCHEDULER, from, to);
    }
    world
        .run(&["model", "check", "base"])
        .expect(0)
        .says("prediction = \"v\"\n")
        .says("zero_terminal_snr = true\n");
    world.run(&["encode", "exp.toml"]).expect(0);
    world
        .run(&["train", "exp.toml", "--stop-after", "2"])
        .expect(0)
        .says("the model says that it predicts v (`prediction_type` in ");
    // The run goes on neither with another schedule nor with other latents.
    let config = world.read(SCHEDULER);
    edit(&world, SCHEDULER, V[1].1, V[1].0);
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("`model.zero_terminal_snr`: the checkpoint true, the Experiment false");
    world.write_bytes(SCHEDULER, &config);
    for (file, from, to, what) in [
        (
            "base/vae/config.json",
            "0.8578",
            "0.8579",
            "the VAE's scaling and shift of latents: the checkpoint",
        ),
        (
            "base/unet/config.json",
            "\"norm_eps\": 1e-05",
            "\"norm_eps\": 1e-03",
            "the denoiser's config.json: the checkpoint",
        ),
    ] {
        edit(&world, file, from, to);
        world.run(&["train", "exp.toml"]).expect(1).says(what);
        edit(&world, file, to, from);
    }
    world
        .run(&["train", "exp.toml"])
        .expect(0)
        .says("going on after step 2");
    let found = metadata(&world);
    assert_eq!(found["modelspec.prediction_type"], "v");
    assert_eq!(found["ss_zero_terminal_snr"], "True");
    world
        .run(&[
            "sample",
            "exp.toml",
            "--lora",
            "out/lora.safetensors",
            "--out",
            "samples",
        ])
        .expect(0)
        .says("the model says that it predicts v");
    let (claimed, picture) = (tensors(&world), world.sampled("samples/seed0-000.png"));

    // The same from a model that says nothing, with the lines that `model check` writes.
    std::fs::remove_dir_all(world.path("base/scheduler")).expect("removed");
    std::fs::remove_dir_all(world.path("out")).expect("removed");
    world.edit(
        "path = \"base\"",
        "path = \"base\"\nprediction = \"v\"\nzero_terminal_snr = true",
    );
    world.run(&["train", "exp.toml"]).expect(0);
    assert!(tensors(&world) == claimed);
    world
        .run(&[
            "sample",
            "exp.toml",
            "--lora",
            "out/lora.safetensors",
            "--out",
            "samples",
        ])
        .expect(0);
    assert!(world.sampled("samples/seed0-000.png") == picture);
}

#[test]
fn an_experiment_that_says_otherwise_is_refused_and_told_what_to_do() {
    let world = world("sdxl", "base-1.0", "tiny-sdxl");
    world.edit("path = \"base\"", "path = \"base\"\nprediction = \"v\"");
    for command in ["encode", "train", "sample"] {
        world
            .run(&[command, "exp.toml"])
            .expect(2)
            .says("`model.prediction`: the Experiment says v, the model base says epsilon");
    }
    let config = String::from_utf8(world.read(SCHEDULER)).expect("UTF-8");
    world.write("right.json", &config.replace(V[0].0, V[0].1));
    world.edit(
        "[recipe]",
        "[model.files]\nscheduler = \"right.json\"\n[recipe]",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
    assert_eq!(metadata(&world)["modelspec.prediction_type"], "v");

    // The LoRA on the model as it says itself: it has an effect, and not the one that it was trained for.
    world.edit("scheduler = \"right.json\"", "");
    world.edit("prediction = \"v\"", "");
    let warned = "out/lora.safetensors says that it was trained with prediction v (`modelspec.prediction_type`), this model with prediction epsilon: its effect will not be the one that it was trained for";
    world
        .run(&["sample", "exp.toml", "--lora", "out/lora.safetensors"])
        .expect(0)
        .says(warned);
    world.edit("rank = 2", "from = \"out/lora.safetensors\"");
    world.edit("output = \"out\"", "output = \"again\"");
    world.run(&["train", "exp.toml"]).expect(0).says(warned);
    world
        .run(&["sample", "exp.toml", "--steps", "1000"])
        .expect(2)
        .says("exp.toml: `sample.steps`: expected 1 to 999 sampler steps, found 1000");
}

#[test]
fn a_flows_shift_is_the_models_where_nobody_names_another() {
    let world = world("sd3", "3.5-large", "tiny-sd3");
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
    let usual = tensors(&world);
    edit(&world, SCHEDULER, "\"shift\": 3.0", "\"shift\": 5.0");
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("`train.shift`: the checkpoint 3.0, the Experiment 5.0");
    world
        .run(&["train", "exp.toml", "--restart"])
        .expect(0)
        .says("shifted by 5, others of its flavor by 3 (`shift` in ");
    let shifted = tensors(&world);
    assert!(shifted != usual);
    world.edit("seed = 5", "seed = 5\nshift = 5.0");
    edit(&world, SCHEDULER, "\"shift\": 5.0", "\"shift\": 3.0");
    world.run(&["train", "exp.toml", "--restart"]).expect(0);
    assert!(tensors(&world) == shifted);
    edit(
        &world,
        SCHEDULER,
        "FlowMatchEulerDiscreteScheduler",
        "DDPMScheduler",
    );
    world
        .run(&["model", "check", "base"])
        .expect(3)
        .says("expected a scheduler of rectified flow, found `DDPMScheduler`");
}

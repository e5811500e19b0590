//! Latents against pixels, and against what the VAE makes, through whole commands.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use plumb::base_model::BaseModel;
use plumb::experiment::Experiment;
use plumb::monitor::Silent;
use plumb::nn::weights::DigestMemo;
use plumb::store::Store;
use plumb::train::TrainingSet;
use plumb::vae::Extents;
use serde_json::json;

use crate::world::{World, tiny_sd3};

/// What the first training step saw.
fn first_step(world: &World) -> HashMap<String, Tensor> {
    let args = [
        "train",
        "exp.toml",
        "--restart",
        "--dump-step",
        "1",
        "step.safetensors",
    ];
    world.run(&args).expect(0).says("memory: peak");
    let step = world.path("step.safetensors");
    candle_core::safetensors::load(step, &Device::Cpu).expect("a dump")
}

#[test]
fn wide_pictures_make_wide_latents_from_the_plan_to_the_previews() {
    let world = World::new();
    for n in 0..3 {
        world.picture(&format!("pictures/p{n}.png"), 128, 32, [200, 30, 30 + n]);
    }
    world.edit("seed = 5", "seed = 5\nsample_every = 4");
    world.edit("]\nsteps = 2", "]\nsteps = 2\nwidth = 128\nheight = 32");
    world.run(&["encode", "exp.toml"]).expect(0);
    let experiment = Experiment::open(&world.path("exp.toml"), &Default::default()).expect("valid");
    let mut memo = DigestMemo::open(&world.path("memo.json"));
    let base = BaseModel::open(&experiment, &mut memo).expect("the bundled model");
    let store = Store::open(&world.path("store")).expect("the store");
    let set = TrainingSet::open(&experiment, &base, &store, &Silent).expect("encoded");
    assert_eq!(set.largest_latents(), (Extents::picture(4, 16), None));
    assert_eq!(set.resolution().width, 64);

    let step = first_step(&world);
    for name in ["latents", "noise", "noisy_latents", "prediction", "target"] {
        assert_eq!(step[name].dims(), [2, 16, 4, 16], "{name}");
    }
    let shown = world
        .run(&["inspect", "lora", "out/lora.safetensors", "--json"])
        .expect(0)
        .json();
    // What was asked for, as kohya's scripts write it, not the buckets that it came to.
    assert_eq!(shown["metadata"]["ss_resolution"], "(64, 64)");
    assert_eq!(shown["metadata"]["modelspec.resolution"], "64x64");
    world.run(&["sample", "exp.toml"]).expect(0);
    let sampled = world.sampled("out/samples/seed0-000.png");
    let sampled = image::load_from_memory(&sampled).expect("a PNG");
    assert_eq!((sampled.width(), sampled.height()), (128, 32));
    world.edit("width = 128", "width = 120");
    world
        .run(&["sample", "exp.toml"])
        .expect(2)
        .says("`sample.width`: expected a multiple of 16 px for this model, found 120");
}

/// A world whose base model is a copy, with its VAE's configuration changed so.
fn with_vae_config(world: &World, change: impl FnOnce(&mut serde_json::Value)) {
    let config = tiny_sd3().join("vae/config.json");
    let config = std::fs::read(config).expect("a config");
    let mut config = serde_json::from_slice(&config).expect("JSON");
    change(&mut config);
    world.write("model/vae/config.json", &config.to_string());
}

fn own_model() -> World {
    let world = World::new();
    world.copy_folder(&tiny_sd3(), "model");
    let bundled = format!("path = {:?}", tiny_sd3().display().to_string());
    world.edit(&bundled, "path = \"model\"");
    world
}

#[test]
fn a_mean_and_a_deviation_a_channel_change_what_is_trained_on_and_nothing_that_is_stored() {
    let (scale, shift) = (1.2181, 0.0647);
    let mean: Vec<f64> = (0..16).map(|c| f64::from(c) * 0.25 - 2.0).collect();
    let std: Vec<f64> = (0..16).map(|c| 0.5 + f64::from(c) * 0.1).collect();
    let world = own_model();
    world.run(&["encode", "exp.toml"]).expect(0);
    let before = first_step(&world);
    with_vae_config(&world, |config| {
        config["shift_factor"] = json!(null);
        config["latents_mean"] = json!(mean);
        config["latents_std"] = json!(std);
    });
    let encoded = world
        .run(&["encode", "exp.toml", "--json"])
        .expect(0)
        .json();
    assert_eq!(encoded["pictures"]["encoded"], 0);
    let after = first_step(&world);
    for c in 0..16 {
        let channel = |step: &HashMap<String, Tensor>| {
            let channel = step["latents"]
                .narrow(1, c, 1)
                .and_then(|t| t.flatten_all());
            channel.and_then(|t| t.to_vec1::<f32>()).expect("a channel")
        };
        for (before, after) in channel(&before).into_iter().zip(channel(&after)) {
            let latent = f64::from(before) / scale + shift;
            let expected = (latent - mean[c]) * scale / std[c];
            assert!(
                (f64::from(after) - expected).abs() < 1e-5,
                "channel {c}: {after}, expected {expected}"
            );
        }
    }
    world.run(&["sample", "exp.toml"]).expect(0);
}

#[test]
fn statistics_of_another_number_of_channels_are_one_line() {
    let world = own_model();
    let change = |config: &mut serde_json::Value| {
        config["shift_factor"] = json!(null);
        config["latents_mean"] = json!([0.5, 1.5]);
        config["latents_std"] = json!([1.0, 2.0]);
    };
    with_vae_config(&world, change);
    let line = "`latents_mean`: expected 16 numbers, one a channel, found 2";
    let refused = world.run(&["encode", "exp.toml"]).expect(1);
    refused.says("model/vae/config.json").says(line);
}

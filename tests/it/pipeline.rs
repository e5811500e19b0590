//! Whole pipelines on the bundled miniature: encode, train, sample, and what must hold between them.

use serde_json::Value;

use crate::util::listing;
use crate::world::World;

/// How many entries `plumb encode` made: (per encoder, pictures).
fn encoded(report: &Value) -> (Vec<u64>, u64) {
    let count = |v: &Value| v["encoded"].as_u64().expect("a number");
    let captions = report["captions"].as_array().expect("a list");
    (
        captions.iter().map(count).collect(),
        count(&report["pictures"]),
    )
}

#[test]
fn only_what_changed_is_encoded_again() {
    let world = World::new();
    let encode = || {
        encoded(
            &world
                .run(&["encode", "exp.toml", "--json"])
                .expect(0)
                .json(),
        )
    };
    // Three captions, the prompt and the empty caption.
    assert_eq!(encode(), (vec![5, 5, 5], 3));
    assert_eq!(encode(), (vec![0, 0, 0], 0));
    world.write("pictures/p1.txt", "another caption");
    assert_eq!(encode(), (vec![1, 1, 1], 0), "a changed caption");
    std::fs::rename(world.path("pictures"), world.path("moved")).expect("moved");
    world.edit("path = \"pictures\"", "path = \"moved\"\nrepeats = 3");
    world.edit("batch_size = 2", "batch_size = 1");
    assert_eq!(
        encode(),
        (vec![0, 0, 0], 0),
        "a moved folder, repeats and batch size"
    );
    world.edit("repeats = 3", "flip = true");
    assert_eq!(encode(), (vec![0, 0, 0], 3), "mirrored pictures");
    world.edit("variant = \"reference\"", "variant = \"diffusers\"");
    let (captions, pictures) = encode();
    assert_eq!((captions[2], pictures), (5, 0), "another T5 length");
}

#[test]
fn captions_of_a_file_are_encoded_alone() {
    let world = World::new();
    world.write(
        "captions.txt",
        "one\r\ntwo\n\none\n\u{1F600} \u{4F60}\u{597D}\n",
    );
    let report = world
        .run(&["encode", "exp.toml", "--captions", "captions.txt", "--json"])
        .expect(0)
        .json();
    assert_eq!(
        report["captions"][0]["captions"], 4,
        "one, two, the empty one, and the last"
    );
    assert_eq!(report["pictures"], Value::Null);
}

#[test]
fn a_resumed_run_makes_the_same_lora_as_an_uninterrupted_one() {
    let world = World::new();
    world.run(&["encode", "exp.toml"]).expect(0);
    world
        .run(&["train", "exp.toml"])
        .expect(0)
        .says("4 steps done");
    let whole = world.read("out/lora.safetensors");
    world.run(&["train", "exp.toml", "--restart"]).expect(0);
    assert!(
        world.read("out/lora.safetensors") == whole,
        "the same run made another LoRA"
    );

    std::fs::remove_dir_all(world.path("out")).expect("removed");
    world
        .run(&["train", "exp.toml", "--stop-after", "3"])
        .expect(0)
        .says("run the same command again");
    assert!(!world.path("out/lora.safetensors").exists());
    world
        .run(&["train", "exp.toml"])
        .expect(0)
        .says("the first 3 of them before");
    assert!(
        world.read("out/lora.safetensors") == whole,
        "a resumed run made another LoRA"
    );
}

#[test]
fn gradient_checkpointing_changes_no_bit() {
    let world = World::new();
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
    let plain = world.read("out/checkpoints/step-00000004.safetensors");
    world.edit("seed = 5", "seed = 5\ngradient_checkpointing = true");
    world.run(&["train", "exp.toml", "--restart"]).expect(0);
    assert!(world.read("out/checkpoints/step-00000004.safetensors") == plain);
}

#[test]
fn a_mismatch_is_refused_before_the_first_step_with_a_diff_and_the_command_that_mends_it() {
    let world = World::new();
    world
        .run(&["train", "exp.toml"])
        .expect(4)
        .says("plumb encode exp.toml");
    world.run(&["encode", "exp.toml"]).expect(0);
    world.edit(
        "[store]",
        "[recipe.deviate]\nt5.tokens.max_tokens = 154\n[store]",
    );
    let ran = world.run(&["train", "exp.toml"]).expect(4);
    ran.says("deviates: t5.tokens.max_tokens = 154 instead of none")
        .says("t5: 5 of 5 entries are missing")
        .says("tokens.max_tokens")
        .says("[recipe.deviate]")
        .says("plumb encode exp.toml");
    assert!(
        !world.path("out").exists(),
        "something was written before the refusal"
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
}

#[test]
fn a_new_caption_is_refused_by_name() {
    let world = World::new();
    world.run(&["encode", "exp.toml"]).expect(0);
    world.write("pictures/p0.txt", "never encoded");
    world
        .run(&["train", "exp.toml"])
        .expect(4)
        .says("clip_l: 1 of 5 entries is missing")
        .says("`never encoded`");
}

#[test]
fn a_checkpoint_of_another_training_is_not_continued() {
    let world = World::new();
    world.run(&["encode", "exp.toml"]).expect(0);
    world
        .run(&["train", "exp.toml", "--stop-after", "2"])
        .expect(0);
    world.edit("learning_rate = 0.01", "learning_rate = 0.02");
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("`train.learning_rate`: the checkpoint 0.01, the Experiment 0.02")
        .says("--restart");
}

#[test]
fn a_lora_tells_how_it_was_made_and_warns_under_another_recipe() {
    let world = World::new();
    world.edit(
        "[store]",
        "[recipe.deviate]\nt5.tokens.max_tokens = 80\n[store]",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
    let shown = world
        .run(&["inspect", "lora", "out/lora.safetensors", "--json"])
        .expect(0)
        .json();
    let made = &shown["provenance"];
    assert_eq!(
        made["recipe"]["deviations"][0]["field"],
        "t5.tokens.max_tokens"
    );
    assert_eq!((&made["seed"], &made["step"]), (&5.into(), &4.into()));
    assert!(
        made["experiment"]
            .as_str()
            .expect("text")
            .contains("max_tokens = 80")
    );
    for id in ["base", "manifest", "recipe_fingerprint", "latents"] {
        assert_eq!(made[id].as_str().map(str::len), Some(64), "{id}");
    }
    for (key, value) in [
        ("ss_steps", "4"),
        ("ss_learning_rate", "0.01"),
        ("ss_resolution", "(64, 64)"),
        (
            "ss_dataset_dirs",
            r#"{"pictures":{"img_count":3,"n_repeats":1}}"#,
        ),
        (
            "ss_tag_frequency",
            r#"{"pictures":{"a red circle number 0":1,"a red circle number 1":1,"a red circle number 2":1}}"#,
        ),
    ] {
        assert_eq!(shown["metadata"][key], value, "{key}");
    }
    world.edit("max_tokens = 80", "max_tokens = 90");
    let lora = [
        "sample",
        "exp.toml",
        "--lora",
        "out/lora.safetensors",
        "--steps",
        "1",
    ];
    world
        .run(&lora)
        .expect(0)
        .says("was trained with another recipe")
        .says("t5.tokens.max_tokens");
}

#[test]
fn samples_are_pictures_and_depend_on_nothing_but_their_seed() {
    let world = World::new();
    world.run(&["sample", "exp.toml"]).expect(0);
    let first = world.sampled("out/samples/seed0-000.png");
    assert_eq!(image::load_from_memory(&first).expect("a PNG").width(), 64);
    world
        .run(&["sample", "exp.toml", "--out", "again"])
        .expect(0);
    assert!(world.sampled("again/seed0-000.png") == first);
    world
        .run(&["sample", "exp.toml", "--out", "other", "--seed", "1"])
        .expect(0);
    assert!(world.sampled("other/seed1-000.png") != first);
}

#[test]
fn validation_is_the_same_for_the_same_weights_and_previews_are_written() {
    let world = World::new();
    world.edit(
        "seed = 5",
        "seed = 5\nvalidation_share = 0.3\nvalidate_every = 2\nsample_every = 2",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
    let lines = |w: &World| -> Vec<Value> {
        let text = String::from_utf8(w.read("out/metrics.jsonl")).expect("UTF-8");
        text.lines()
            .map(|l| serde_json::from_str(l).expect("a line of JSON"))
            .collect()
    };
    let validations = |all: &[Value]| -> Vec<Value> {
        all.iter()
            .filter(|l| l["kind"] == "validation")
            .map(|l| l["loss"].clone())
            .collect()
    };
    let first = lines(&world);
    assert_eq!(first.iter().filter(|l| l["kind"] == "step").count(), 4);
    assert_eq!(validations(&first).len(), 3);
    world.run(&["train", "exp.toml", "--restart"]).expect(0);
    assert_eq!(validations(&lines(&world)), validations(&first));
    let files = listing(&world.path("out"));
    assert!(
        files.contains(&"previews/step-00000004.png".to_owned()),
        "{files:?}"
    );
    assert!(
        files
            .iter()
            .any(|f| f.starts_with("tensorboard/events.out.tfevents.")),
        "{files:?}"
    );
}

#[test]
fn the_last_checkpoints_are_kept() {
    let world = World::new();
    world.edit(
        "checkpoint_every = 2",
        "checkpoint_every = 1\nkeep_checkpoints = 2",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
    let kept: Vec<String> = listing(&world.path("out/checkpoints"));
    assert_eq!(
        kept,
        ["step-00000003.safetensors", "step-00000004.safetensors"]
    );
}

#[test]
fn a_dumped_step_has_what_the_step_saw_and_made() {
    let world = World::new();
    world.run(&["encode", "exp.toml"]).expect(0);
    world
        .run(&["train", "exp.toml", "--dump-step", "2", "step.safetensors"])
        .expect(0);
    let tensors =
        candle_core::safetensors::load(world.path("step.safetensors"), &candle_core::Device::Cpu);
    let tensors = tensors.expect("a safetensors file");
    for name in [
        "latents",
        "noise",
        "noisy_latents",
        "timestep",
        "context",
        "pooled",
        "prediction",
        "target",
        "loss",
    ] {
        assert!(tensors.contains_key(name), "{name}");
    }
    let adapters = tensors.keys().filter(|k| k.starts_with("adapter.")).count();
    let gradients = tensors
        .keys()
        .filter(|k| k.starts_with("gradient."))
        .count();
    assert!(
        adapters > 0 && adapters == gradients,
        "{adapters} adapters, {gradients} gradients"
    );
}

#[test]
fn a_dumped_step_replays_in_diffusers_and_peft() {
    let world = World::new();
    world.edit(
        "caption_dropout = 0.3",
        "caption_dropout = 0.3\nbatch_size = 3\nloss_weighting = \"cosmap\"",
    );
    world.edit("batch_size = 2\n", "");
    world.edit(
        "rank = 2",
        "rank = 2\nalpha = 3.0\ntargets = [\"all-linear\"]",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world.replay_step(3, &crate::world::tiny_sd3());
}

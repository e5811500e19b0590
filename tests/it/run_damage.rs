//! Damage in the files of a run: it goes on to the same LoRA, or says what is wrong; never to another LoRA in silence.

use serde_json::Value;

use crate::world::World;

const LORA: &str = "out/lora.safetensors";
const LAST: &str = "out/checkpoints/step-00000003.safetensors";

/// A training that was stopped after three of four steps, with checkpoints after the second and the third; and the LoRA that it
/// will come to.
fn stopped() -> (World, Vec<u8>) {
    let world = World::new();
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
    let whole = world.read(LORA);
    std::fs::remove_dir_all(world.path("out")).expect("removed");
    world
        .run(&["train", "exp.toml", "--stop-after", "3"])
        .expect(0);
    world.copy_folder(&world.path("out"), "before");
    (world, whole)
}

/// The run as it was when it was stopped.
fn put_back(world: &World) {
    std::fs::remove_dir_all(world.path("out")).expect("removed");
    world.copy_folder(&world.path("before"), "out");
}

#[test]
fn a_damaged_checkpoint_is_said_and_the_one_before_it_is_taken() {
    let (world, whole) = stopped();
    let sound = world.read(LAST);
    let place = |text: &str| {
        let found = sound.windows(text.len()).position(|w| w == text.as_bytes());
        found.unwrap_or_else(|| panic!("no `{text}`"))
    };
    // `src/train/checkpoint_tests.rs` flips a bit of each byte; here are some of each part.
    let flips = [
        0,
        place("digest") + 2,
        place("digest") + 12,
        place("\\\"step\\\":") + 9,
        place("on a CPU") + 1,
        place("data_offsets") + 16,
        sound.len() - 4000,
        sound.len() - 1,
    ];
    let damaged = flips.map(|at| {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        bytes
    });
    let cut = sound[..sound.len() / 2].to_vec();
    for (number, bytes) in damaged.into_iter().chain([cut, Vec::new()]).enumerate() {
        put_back(&world);
        world.write_bytes(LAST, &bytes);
        world
            .run(&["train", "exp.toml"])
            .expect(3)
            .says("step-00000003.safetensors: is damaged")
            .says("going on from step 2 instead");
        assert!(world.read(LORA) == whole, "case {number}: another LoRA");
    }
    // What is damaged is gone, and the next start has nothing to say.
    world.run(&["train", "exp.toml"]).expect(0);
}

#[test]
fn where_no_checkpoint_is_sound_the_way_to_begin_anew_is_told() {
    let (world, whole) = stopped();
    for file in [LAST, "out/checkpoints/step-00000002.safetensors"] {
        let mut bytes = world.read(file);
        let end = bytes.len() - 9;
        bytes[end] ^= 0x40;
        world.write_bytes(file, &bytes);
    }
    let ran = world.run(&["train", "exp.toml"]).expect(1);
    assert_eq!(ran.stderr.matches("error: ").count(), 1);
    ran.says("none of the checkpoints (there are 2) is sound")
        .says("--restart");
    assert!(!world.path(LORA).exists());
    world.run(&["train", "exp.toml", "--restart"]).expect(0);
    assert!(world.read(LORA) == whole);
}

#[test]
fn a_checkpoint_of_another_run_in_the_folder_is_refused_by_what_differs() {
    let (world, _) = stopped();
    world.edit("seed = 5", "seed = 6");
    world.edit("output = \"out\"", "output = \"other\"");
    world.run(&["train", "exp.toml"]).expect(0);
    world.edit("output = \"other\"", "output = \"out\"");
    world.edit("seed = 6", "seed = 5");
    let foreign = world.read("other/checkpoints/step-00000004.safetensors");
    world.write_bytes("out/checkpoints/step-00000004.safetensors", &foreign);
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("`train.seed`: the checkpoint 6, the Experiment 5");
}

#[test]
fn damaged_metrics_cost_their_lines_and_never_the_lora() {
    let (world, whole) = stopped();
    let lines = world.read("out/metrics.jsonl");
    let steps = |world: &World| -> Vec<u64> {
        let text = String::from_utf8(world.read("out/metrics.jsonl")).expect("UTF-8");
        let lines = text.lines().map(|l| serde_json::from_str(l).expect("JSON"));
        lines
            .map(|l: Value| l["step"].as_u64().expect("a step"))
            .collect()
    };
    let mut not_text = lines.clone();
    not_text[3] = 0xff;
    let ahead = String::from_utf8(lines.clone()).expect("text");
    let ahead = ahead.replace("\"step\":3", "\"step\":9");
    let cases: [(&str, Vec<u8>, &[u64], bool); 5] = [
        ("torn", lines[..lines.len() - 7].to_vec(), &[1, 2, 4], false),
        ("not text", not_text, &[2, 3, 4], true),
        ("steps ahead", ahead.into_bytes(), &[1, 2, 4], false),
        (
            "no line end",
            lines[..lines.len() - 1].to_vec(),
            &[1, 2, 3, 4],
            false,
        ),
        ("gone", Vec::new(), &[4], false),
    ];
    for (name, bytes, expected, told) in cases {
        put_back(&world);
        world.write_bytes("out/metrics.jsonl", &bytes);
        let ran = world.run(&["train", "exp.toml"]).expect(0);
        let said = ran.stderr.contains("metrics.jsonl");
        assert_eq!(said, told, "{name}: {}", ran.stderr);
        assert_eq!(steps(&world), expected, "{name}");
        assert!(world.read(LORA) == whole, "{name}: another LoRA");
    }
}

#[test]
fn a_training_that_diverges_leaves_no_lora_and_no_checkpoint_of_it() {
    let world = World::new();
    world.edit("learning_rate = 0.01", "learning_rate = 1e30");
    world.edit("checkpoint_every = 2", "checkpoint_every = 1");
    world.run(&["encode", "exp.toml"]).expect(0);
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("the training diverged")
        .says("`train.learning_rate`");
    assert!(!world.path(LORA).exists());
    // What there is can be read, and leads to the same end.
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("the training diverged");
}

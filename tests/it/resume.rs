//! Going on with a training: when it is the same, when it is longer, and when it is another, which is said by name.

use crate::util::Ran;
use crate::world::World;

const LORA: &str = "out/lora.safetensors";

fn encoded() -> World {
    let world = World::new();
    world.run(&["encode", "exp.toml"]).expect(0);
    world
}

fn train(world: &World) -> Ran {
    world.run(&["train", "exp.toml"])
}

/// The LoRA of an uninterrupted run of the Experiment as it is.
fn straight(world: &World) -> Vec<u8> {
    // Under the same name: the Experiment's text is in the LoRA.
    let rename = |from, to| std::fs::rename(world.path(from), world.path(to)).expect("renamed");
    rename("out", "other");
    train(world).expect(0);
    let lora = world.read(LORA);
    std::fs::remove_dir_all(world.path("out")).expect("removed");
    rename("other", "out");
    lora
}

#[test]
fn steps_raised_after_the_end_go_on_to_the_lora_of_a_longer_run() {
    let world = encoded();
    world.edit("seed = 5", "seed = 5\nwarmup_steps = 2");
    train(&world).expect(0);
    world.edit("steps = 4", "steps = 6");
    train(&world)
        .expect(0)
        .says("going on after step 4, to 6 steps instead of 4")
        .says("6 steps done, the first 4 of them before");
    assert!(world.read(LORA) == straight(&world), "another LoRA");
    // Once more, and from a stop in the middle.
    world.edit("steps = 6", "steps = 9");
    world
        .run(&["train", "exp.toml", "--stop-after", "1"])
        .expect(0);
    world.edit("steps = 9", "steps = 8");
    train(&world).expect(0).says("going on after step 7");
    assert!(world.read(LORA) == straight(&world), "another LoRA");
}

#[test]
fn a_longer_run_whose_rates_depend_on_its_length_says_so_and_its_lora_too() {
    for set in ["lr_schedule = \"cosine\"", "warmup_steps = 0.5"] {
        let world = encoded();
        world.edit("seed = 5", &format!("seed = 5\n{set}"));
        train(&world).expect(0);
        world.edit("steps = 4", "steps = 6");
        train(&world)
            .expect(0)
            .says("the LoRA will not be that of 6 steps from the start");
        assert!(world.read(LORA) != straight(&world), "{set}");
        let shown = ["inspect", "lora", LORA, "--json"];
        let made = world.run(&shown).expect(0).json()["provenance"].clone();
        assert_eq!(made["history"][0]["until"], 4, "{set}");
        assert_eq!(made["history"][0]["steps"], 4, "{set}");
        world
            .run(&shown[..3])
            .expect(0)
            .says("until step 4")
            .says("as a training of 4 steps");
    }
}

#[test]
fn fewer_steps_than_are_done_are_refused_in_one_line() {
    let world = encoded();
    train(&world).expect(0);
    world.edit("steps = 4", "steps = 3");
    train(&world)
        .expect(2)
        .says("`train.steps`: expected at least the 4 steps that the run in `train.output` has done, found 3")
        .says("--restart");
}

/// It changes how the LoRA is written and no step: one whose numbers a type cannot hold is not lost.
#[test]
fn a_finished_run_is_written_again_in_another_type() {
    let world = encoded();
    let precision = |from: &str, to: &str| world.edit(from, to);
    precision(
        "rank = 2",
        "rank = 2\nsave_precision = \"f16\"\nalpha = 1e6",
    );
    world.edit("learning_rate = 0.01", "learning_rate = 1e3");
    let refused = train(&world).expect(1);
    let line = refused.stderr.lines().last().unwrap_or_default();
    assert!(
        line.contains("which F16 cannot hold") && line.contains("`adapter.save_precision`"),
        "{}",
        refused.stderr
    );
    precision("save_precision = \"f16\"", "save_precision = \"f32\"");
    train(&world).expect(0).says("going on after step 4");
    assert!(world.path(LORA).exists());
}

#[test]
fn epochs_and_a_share_of_warm_up_are_the_steps_that_they_come_to() {
    let world = encoded();
    // Three pictures of three sizes: three micro-batches an epoch, two a step.
    world.edit(
        "steps = 4\nbatch_size = 2",
        "epochs = 3\nbatch_size = 2\ngradient_accumulation = 2\nwarmup_steps = 0.5",
    );
    let ran = train(&world).expect(0);
    let told = ran.stderr.lines().find(|line| line.contains(" epochs of "));
    let told = told.expect("the length is told").to_owned();
    let steps: u64 = told
        .split_once(": ")
        .and_then(|(_, steps)| steps.split_once(' '))
        .and_then(|(steps, _)| steps.parse().ok())
        .unwrap_or_else(|| panic!("{told}"));
    let by_epochs = world.read("out/checkpoints/step-00000002.safetensors");
    world.edit("epochs = 3", &format!("steps = {steps}"));
    world.edit(
        "warmup_steps = 0.5",
        &format!("warmup_steps = {}", steps / 2),
    );
    world.run(&["train", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml", "--restart"]).expect(0);
    assert!(
        world.read("out/checkpoints/step-00000002.safetensors") == by_epochs,
        "{told}"
    );
    // Repeats make an epoch longer, and are another training.
    world.edit(&format!("steps = {steps}"), "epochs = 3");
    world.edit("path = \"pictures\"", "path = \"pictures\"\nrepeats = 2");
    train(&world)
        .expect(1)
        .says("how often pictures or clips come in an epoch")
        .says("`dataset[0].repeats`: the checkpoint 1, the Experiment 2");
}

/// Everything that changes a number is seen, and told in the words of the Experiment.
#[test]
fn what_differs_is_named_with_both_values() {
    let world = encoded();
    world
        .run(&["train", "exp.toml", "--stop-after", "2"])
        .expect(0);
    let original = String::from_utf8(world.read("exp.toml")).expect("text");
    let cases: [(&str, &str, &[&str]); 10] = [
        (
            "learning_rate = 0.01",
            "learning_rate = 0.005",
            &["`train.learning_rate`: the checkpoint 0.01, the Experiment 0.005"],
        ),
        (
            "learning_rate = 0.01",
            "",
            &["the checkpoint 0.01, the Experiment 0.0001 (the default)"],
        ),
        (
            "rank = 2",
            "rank = 3",
            &["`adapter.rank`: the checkpoint 2, the Experiment 3"],
        ),
        (
            "rank = 2",
            "rank = 2\nalpha = 1.0",
            &["`adapter.alpha`: the checkpoint 2.0, the Experiment 1.0"],
        ),
        (
            "rank = 2",
            "rank = 2\ntargets = [\"all-linear\"]",
            &[
                "`adapter.targets`: the checkpoint [] (the default), the Experiment [\"all-linear\"]",
            ],
        ),
        (
            "seed = 5",
            "seed = 6",
            &["`train.seed`: the checkpoint 5, the Experiment 6"],
        ),
        (
            "seed = 5",
            "seed = 5\nshift = 1.5",
            &["`train.shift`: the checkpoint 3.0, the Experiment 1.5"],
        ),
        (
            "seed = 5",
            "seed = 5\nwarmup_steps = 0.5",
            &["`train.warmup_steps`: the checkpoint 0 (the default), the Experiment 2"],
        ),
        (
            "seed = 5",
            "seed = 5\nvalidation_share = 0.3\nvalidate_every = 1",
            &["`train.validation_share`: the checkpoint 0.0 (the default), the Experiment 0.3"],
        ),
        // What a change of steps alone would not have: it is named, and the steps are not.
        (
            "steps = 4\nbatch_size = 2",
            "steps = 8\nbatch_size = 1",
            &["`train.batch_size`: the checkpoint 2, the Experiment 1"],
        ),
    ];
    for (from, to, said) in cases {
        world.edit(from, to);
        let mut ran = train(&world).expect(1).says("--restart");
        assert!(!ran.stderr.contains("train.steps"), "{}", ran.stderr);
        for said in said {
            ran = ran.says(said);
        }
        world.write("exp.toml", &original);
    }
    // Not numbers: the run goes on.
    world.edit(
        "seed = 5",
        "seed = 5\nname = \"other\"\nshift = 3.0\nkeep_checkpoints = 1",
    );
    world.edit("rank = 2", "rank = 2\nalpha = 2.0");
    world
        .run(&["train", "exp.toml"])
        .expect(0)
        .says("going on after step 2");
}

#[test]
fn other_data_in_the_same_entries_are_seen() {
    let world = encoded();
    world
        .run(&["train", "exp.toml", "--stop-after", "2"])
        .expect(0);
    // The same captions, each with another picture: not one entry of the store is another.
    let (zero, one) = (world.read("pictures/p0.txt"), world.read("pictures/p1.txt"));
    world.write_bytes("pictures/p0.txt", &one);
    world.write_bytes("pictures/p1.txt", &zero);
    train(&world)
        .expect(1)
        .says("the captions")
        .says("--restart");
    world.write_bytes("pictures/p0.txt", &zero);
    world.write_bytes("pictures/p1.txt", &one);
    // The same pictures in another order: an epoch is shuffled by their places.
    for (from, to) in [("p0", "z0"), ("p1", "p0"), ("z0", "p1")] {
        for ending in ["png", "txt"] {
            let path = |name: &str| world.path(&format!("pictures/{name}.{ending}"));
            std::fs::rename(path(from), path(to)).expect("renamed");
        }
    }
    train(&world)
        .expect(1)
        .says("the pictures or clips, or their order");
}

#[test]
fn another_recipe_is_told_field_by_field_though_the_entries_are_the_same() {
    let world = encoded();
    world
        .run(&["train", "exp.toml", "--stop-after", "2"])
        .expect(0);
    world.edit(
        "variant = \"reference\"",
        "variant = \"reference\"\n[recipe.deviate]\nassembly.dropout = \"each_encoder\"",
    );
    let ran = train(&world);
    // Another field where this recipe drops its captions so already.
    ran.expect(1).says("the recipe's `assembly.dropout`");
}

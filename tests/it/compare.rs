//! `plumb compare`: two LoRAs of one base model on pictures that neither was trained from.

use serde_json::Value;

use crate::world::World;

/// Two trainings of four steps that hold out one of three pictures: `a` and `b`, whose Experiments are `a.toml` and `b.toml`.
fn two_runs(change: (&str, &str)) -> World {
    let world = World::new();
    world.edit(
        "seed = 5",
        "seed = 5\nvalidation_share = 0.3\nvalidate_every = 4",
    );
    let text = String::from_utf8(world.read("exp.toml")).expect("UTF-8");
    let (from, to) = change;
    assert!(text.contains(from));
    let out = |name: &str| format!("output = {name:?}");
    let (a, b) = (out("a"), out("b"));
    world.write("a.toml", &text.replace("output = \"out\"", &a));
    world.write(
        "b.toml",
        &text.replace("output = \"out\"", &b).replace(from, to),
    );
    for experiment in ["a.toml", "b.toml"] {
        world.run(&["encode", experiment]).expect(0);
        world.run(&["train", experiment]).expect(0);
    }
    world
}

const ANOTHER_SEED: (&str, &str) = ("seed = 5", "seed = 6");
const ANOTHER_LENGTH: (&str, &str) = (
    "variant = \"reference\"",
    "variant = \"reference\"\n[recipe.deviate]\nt5.tokens.min_tokens = 100",
);

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("no number: {value}"))
}

/// The validation loss that a training ended with.
pub(crate) fn validated(world: &World, run: &str) -> f64 {
    let lines = String::from_utf8(world.read(&format!("{run}/metrics.jsonl"))).expect("UTF-8");
    let mut lines = lines
        .lines()
        .rev()
        .map(|l| serde_json::from_str::<Value>(l).expect("JSON"));
    let last = lines.find(|line| line.get("losses").is_some());
    number(&last.expect("a validation")["loss"])
}

#[test]
fn each_loss_is_what_its_training_validated_and_the_difference_is_theirs() {
    let world = two_runs(ANOTHER_SEED);
    let report = world.run(&["--json", "compare", "a", "b"]).expect(0).json();
    assert_eq!(report["pictures"], 1);
    for (side, run) in [("a", "a"), ("b", "b")] {
        let (found, expected) = (number(&report[side]["loss"]), validated(&world, run));
        assert!(
            (found - expected).abs() < 1e-9,
            "{run}: {found}, {expected}"
        );
        assert_eq!(report[side]["is_own"], true);
        assert_eq!(report[side]["steps"], 4);
    }
    let mean = number(&report["difference"]["mean"]);
    let losses = number(&report["b"]["loss"]) - number(&report["a"]["loss"]);
    assert!(
        mean != 0.0 && (mean - losses).abs() < 1e-12,
        "{mean}, {losses}"
    );
    assert_eq!(
        report["difference"]["interval"],
        Value::Null,
        "of one picture"
    );
    assert_eq!(report["levels"].as_array().map(Vec::len), Some(10));
    let expected = serde_json::json!([{ "field": "train.seed", "a": 5, "b": 6 }]);
    assert_eq!(report["differences"], expected);

    world
        .run(&["compare", "a", "b", "--memory", "0.001"])
        .expect(1)
        .says("it does not fit");
    // The other way round, from the files and with the Experiment named.
    let files = ["b/lora.safetensors", "a/lora.safetensors"];
    let turned = world.run(&[&["--json", "compare"], &files[..], &["--data", "a.toml"]].concat());
    let turned = turned.expect(0).json();
    assert_eq!(number(&turned["difference"]["mean"]), -mean);
    world
        .run(&["compare", "a", "b"])
        .expect(0)
        .says("train.seed: A 5, B 6")
        .says("too few for an interval");
}

#[test]
fn each_is_measured_under_its_own_recipe_or_both_under_one() {
    let world = two_runs(ANOTHER_LENGTH);
    let compare = |more: &[&str]| {
        let ran = world
            .run(&[&["--json", "compare", "a", "b"], more].concat())
            .expect(0);
        match more.is_empty() {
            true => ran.says("with different recipes").json(),
            false => ran.json(),
        }
    };
    let own = compare(&[]);
    let fingerprint = |report: &Value, side: &str| report[side]["under"]["fingerprint"].clone();
    assert_ne!(fingerprint(&own, "a"), fingerprint(&own, "b"));
    assert!((number(&own["b"]["loss"]) - validated(&world, "b")).abs() < 1e-9);
    assert_eq!(
        own["differences"][0]["field"],
        "recipe.t5.tokens.min_tokens"
    );
    // A's recipe for both: as A's training had it, and B as a program samples it that knows A's recipe only.
    let one = compare(&["--recipe", "experiment", "--base"]);
    assert_eq!(fingerprint(&one, "a"), fingerprint(&one, "b"));
    assert_eq!(one["a"]["loss"], own["a"]["loss"]);
    assert_ne!(one["b"]["loss"], own["b"]["loss"]);
    assert_eq!(
        (&one["a"]["is_own"], &one["b"]["is_own"]),
        (&true.into(), &false.into())
    );
    assert!(number(&one["base"]) > 0.0 && own["base"].is_null());
    // The reference's, by name, is A's too.
    let named = compare(&["--recipe", "reference"]);
    assert_eq!(named["b"]["loss"], one["b"]["loss"]);
    world
        .run(&["compare", "a", "b", "--recipe", "kohja"])
        .expect(2)
        .says("kohja");
}

#[test]
fn previews_stand_side_by_side() {
    let world = two_runs(ANOTHER_SEED);
    world
        .run(&["compare", "a", "b", "--out", "sheet"])
        .expect(0)
        .says("sheet/compare.png");
    let sheet = image::open(world.path("sheet/compare.png")).expect("a picture");
    // A label, and three pictures of the model's own size with gaps.
    assert!(sheet.width() > 3 * 128, "{}", sheet.width());
    // More draws of noise measure more than the first one alone.
    let draws = |n: &str| {
        let ran = world.run(&["--json", "compare", "a", "b", "--draws", n]);
        number(&ran.expect(0).json()["a"]["loss"])
    };
    assert_ne!(draws("1"), draws("2"));
}

#[test]
fn what_cannot_be_compared_is_refused_by_name() {
    let world = two_runs(ANOTHER_SEED);
    std::fs::copy(
        world.path("a/lora.safetensors"),
        world.path("copy.safetensors"),
    )
    .expect("copied");
    world
        .run(&["compare", "a", "copy.safetensors"])
        .expect(2)
        .says("are the same LoRA");
    // A damaged file.
    let mut bytes = world.read("b/lora.safetensors");
    let last = bytes.len() - 3;
    bytes[last] ^= 0x10;
    world.write_bytes("damaged.safetensors", &bytes);
    world
        .run(&["compare", "a", "damaged.safetensors"])
        .expect(1)
        .says("damaged.safetensors");
    // A LoRA that lies elsewhere than its Experiment says.
    std::fs::create_dir(world.path("moved")).expect("a folder");
    std::fs::copy(
        world.path("a/lora.safetensors"),
        world.path("moved/lora.safetensors"),
    )
    .expect("copied");
    world
        .run(&["compare", "moved", "b"])
        .expect(2)
        .says("it lies elsewhere now; name an Experiment");
    world
        .run(&["compare", "moved", "b", "--data", "a.toml"])
        .expect(0);
    // A name that leads nowhere.
    world
        .run(&["compare", "a", "nothing-here", "--data", "a.toml"])
        .expect(1)
        .says("nothing-here");
}

#[test]
fn pictures_that_were_trained_from_are_refused() {
    let world = World::new();
    let text = String::from_utf8(world.read("exp.toml")).expect("UTF-8");
    for (name, seed) in [("a", "seed = 5"), ("b", "seed = 6")] {
        let text = text
            .replace("\"out\"", &format!("{name:?}"))
            .replace("seed = 5", seed);
        world.write(&format!("{name}.toml"), &text);
        world.run(&["encode", &format!("{name}.toml")]).expect(0);
        world.run(&["train", &format!("{name}.toml")]).expect(0);
    }
    world
        .run(&["compare", "a", "b"])
        .expect(2)
        .says("error: the Experiment in a/lora.safetensors: all that it has, 3 pictures, is what")
        .says("--data EXPERIMENT");
    // Beside a new picture they are told, and the exit status says so.
    world.write("more.toml", &text);
    world.picture("pictures/new.png", 64, 64, [9, 200, 200]);
    world.write("pictures/new.txt", "a new one");
    world
        .run(&["compare", "a", "b", "--data", "more.toml"])
        .expect(3)
        .says("was trained from 3 of the 4 pictures");
    // The new one alone is what neither has seen.
    std::fs::create_dir(world.path("unseen")).expect("a folder");
    for file in ["new.png", "new.txt"] {
        let from = world.path(&format!("pictures/{file}"));
        std::fs::copy(from, world.path(&format!("unseen/{file}"))).expect("copied");
    }
    world.write("unseen.toml", &text.replace("\"pictures\"", "\"unseen\""));
    world
        .run(&["compare", "a", "b", "--data", "unseen.toml"])
        .expect(0);
}

#[test]
fn loras_of_another_base_model_are_refused() {
    let world = two_runs(ANOTHER_SEED);
    world.copy_folder(&crate::world::tiny_sd3(), "other");
    let weights = "other/transformer/diffusion_pytorch_model.safetensors";
    let mut bytes = world.read(weights);
    // The lowest bit of a number of the last tensor.
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    world.write_bytes(weights, &bytes);
    let text = String::from_utf8(world.read("b.toml")).expect("UTF-8");
    let base = format!("{:?}", crate::world::tiny_sd3().display().to_string());
    world.write(
        "c.toml",
        &text.replace(&base, "\"other\"").replace("\"b\"", "\"c\""),
    );
    world.run(&["encode", "c.toml"]).expect(0);
    world.run(&["train", "c.toml"]).expect(0);
    world
        .run(&["compare", "a", "c"])
        .expect(1)
        .says("was trained on the base model")
        .says("that of a/lora.safetensors");
    world
        .run(&["compare", "a", "b", "--data", "c.toml"])
        .expect(1)
        .says("that of c.toml");
}

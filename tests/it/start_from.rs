//! A training that starts from a LoRA.

use std::collections::BTreeMap;

use plumb::convert::{ReadLora, read_lora};
use safetensors::tensor::SafeTensors;

use crate::world::World;

/// A world with a LoRA of four steps as `first.safetensors`, and an Experiment that starts from `from` and changes nothing.
struct Started {
    world: World,
}

/// So small that it changes no number.
const NO_RATE: &str = "1e-30";

impl Started {
    fn new(adapter: &str) -> Self {
        let world = World::new();
        world.edit("rank = 2", adapter);
        world.edit(
            "seed = 5",
            "seed = 5\nvalidation_share = 0.4\nvalidate_every = 4",
        );
        world.run(&["encode", "exp.toml"]).expect(0);
        world.run(&["train", "exp.toml"]).expect(0);
        std::fs::rename(
            world.path("out/lora.safetensors"),
            world.path("first.safetensors"),
        )
        .expect("moved");
        std::fs::rename(world.path("out"), world.path("first")).expect("moved");
        world.edit(
            "learning_rate = 0.01",
            &format!("learning_rate = {NO_RATE}"),
        );
        Self { world }
    }

    /// Trains on from a LoRA with these lines under `[adapter]`, into a folder of its own.
    fn train(&self, from: &str, adapter: &str, out: &str) -> Vec<f64> {
        self.set(from, adapter, out);
        self.world.run(&["train", "exp.toml"]).expect(0);
        self.validation(out)
    }

    fn set(&self, from: &str, adapter: &str, out: &str) {
        let text = String::from_utf8(self.world.read("exp.toml")).expect("UTF-8");
        let start = text.find("[adapter]").expect("there");
        let end = text.find("[train]").expect("there");
        let section = format!("[adapter]\nfrom = {from:?}\n{adapter}\n\n");
        let text = format!("{}{section}{}", &text[..start], &text[end..]);
        let line = text
            .lines()
            .find(|line| line.starts_with("output = "))
            .expect("there")
            .to_owned();
        self.world.write(
            "exp.toml",
            &text.replace(&line, &format!("output = {out:?}")),
        );
    }

    /// The validation losses of a run, in order.
    fn validation(&self, out: &str) -> Vec<f64> {
        let text =
            String::from_utf8(self.world.read(&format!("{out}/metrics.jsonl"))).expect("UTF-8");
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        lines
            .filter(|line| line.get("losses").is_some())
            .map(|line| line["loss"].as_f64().expect("a loss"))
            .collect()
    }

    fn tensors(&self, file: &str) -> BTreeMap<String, Vec<u8>> {
        let bytes = self.world.read(file);
        let stored = SafeTensors::deserialize(&bytes).expect("sound");
        stored
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, view.data().to_vec()))
            .collect()
    }

    /// The first LoRA as PEFT saves one, in a folder.
    fn as_peft(&self, folder: &str) {
        let bytes = self.world.read("first.safetensors");
        let stored = SafeTensors::deserialize(&bytes).expect("sound");
        let renamed = stored.tensors().into_iter().map(|(name, view)| {
            let module = name.strip_prefix("transformer.").expect("ours").to_owned();
            (format!("base_model.model.{module}"), view)
        });
        let bytes = safetensors::serialize(renamed, None).expect("bytes");
        self.world
            .write_bytes(&format!("{folder}/adapter_model.safetensors"), &bytes);
        let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2}"#;
        self.world
            .write(&format!("{folder}/adapter_config.json"), config);
    }
}

#[test]
fn a_run_that_started_from_another_lora_says_which_the_file_names() {
    let started = Started::new("rank = 2");
    let world = &started.world;
    started.train("first.safetensors", "", "on");
    std::fs::copy(
        world.path("on/lora.safetensors"),
        world.path("second.safetensors"),
    )
    .expect("copied");
    started.set("second.safetensors", "", "on");
    let ran = world.run(&["train", "exp.toml"]).expect(1);
    let said = "`adapter.from`: the checkpoint a LoRA of digest ";
    let line = ran.stderr.lines().find(|line| line.contains(said));
    let (_, rest) = line
        .unwrap_or_default()
        .split_once(said)
        .unwrap_or_default();
    let (digest, rest) = rest.split_once(", the Experiment ").unwrap_or_default();
    assert!(
        digest.len() == 12 && rest.contains("second.safetensors, a LoRA of digest "),
        "{}",
        ran.stderr
    );
}

#[test]
fn it_starts_as_the_lora_left_off_whatever_its_naming() {
    let started = Started::new("rank = 2\nalpha = 4.0");
    let world = &started.world;
    world
        .run(&[
            "export",
            "lora",
            "first.safetensors",
            "--format",
            "kohya",
            "--out",
            "k.safetensors",
        ])
        .expect(0);
    started.as_peft("peft");
    let last = *started.validation("first").last().expect("validated");
    let first = started.tensors("first.safetensors");
    for (from, out) in [
        ("first.safetensors", "a"),
        ("k.safetensors", "b"),
        ("peft", "c"),
    ] {
        let losses = started.train(from, "", out);
        assert_eq!(losses, [last, last], "{from}");
        assert!(
            started.tensors(&format!("{out}/lora.safetensors")) == first,
            "{from}"
        );
    }
    // Another alpha is another way to write the same update; the first training's own one gives its numbers back.
    for (alpha, out) in [("alpha = 4.0", "d"), ("alpha = 1.0", "e")] {
        let losses = started.train("first.safetensors", alpha, out);
        assert!(
            (losses[0] - last).abs() < 1e-6,
            "{alpha}: {losses:?}, {last}"
        );
        assert!(
            started.tensors(&format!("{out}/lora.safetensors")) == first,
            "{alpha}"
        );
    }
    world.edit(NO_RATE, "0.01");
    let losses = started.train("first.safetensors", "", "f");
    assert!(losses[0] == last && losses[1] != last, "{losses:?}");
    assert!(started.tensors("f/lora.safetensors") != first);
}

#[test]
fn where_it_started_stands_in_the_new_lora() {
    let started = Started::new("rank = 2");
    let world = &started.world;
    started.train("first.safetensors", "", "a");
    started.train("a/lora.safetensors", "", "b");
    let told = world
        .run(&["--json", "inspect", "lora", "b/lora.safetensors"])
        .expect(0)
        .json();
    let from = &told["provenance"]["from"];
    let digest = |file: &str| {
        let read = read_lora(&world.path(file), &ReadLora::default()).expect(file);
        serde_json::json!(read.digest)
    };
    assert_eq!(from[0]["source"], digest("a/lora.safetensors"));
    assert_eq!(from[1]["source"], digest("first.safetensors"));
    let made = &from[0]["made"];
    assert_eq!(
        (&made["step"], &made["base"]),
        (&4.into(), &told["provenance"]["base"])
    );
    assert_eq!(
        made["recipe_fingerprint"],
        told["provenance"]["recipe_fingerprint"]
    );
    world
        .run(&["inspect", "lora", "b/lora.safetensors"])
        .expect(0)
        .says("started from")
        .says("trained by plumb for 4 steps");

    // Of another program's LoRA, what that said.
    let export = [
        "export",
        "lora",
        "first.safetensors",
        "--format",
        "kohya",
        "--out",
        "k.safetensors",
    ];
    world.run(&export).expect(0);
    let bytes = world.read("k.safetensors");
    let stored = SafeTensors::deserialize(&bytes).expect("sound");
    let said = [
        ("ss_output_name", "style"),
        ("ss_base_model_version", "sd3"),
    ];
    let said = said
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into_iter()
        .collect();
    let foreign = safetensors::serialize(stored.tensors(), Some(said)).expect("bytes");
    world.write_bytes("foreign.safetensors", &foreign);
    started.train("foreign.safetensors", "", "c");
    let told = world
        .run(&["--json", "inspect", "lora", "c/lora.safetensors"])
        .expect(0)
        .json();
    let from = &told["provenance"]["from"][0];
    assert_eq!(
        (&from["format"], &from["said"]["ss_output_name"]),
        (&"kohya".into(), &"style".into())
    );
}

#[test]
fn what_does_not_fit_is_refused_by_field() {
    let started = Started::new("rank = 2");
    let world = &started.world;
    let refused = |adapter: &str, text: &str| {
        started.set("first.safetensors", adapter, "x");
        world.run(&["train", "exp.toml"]).expect(2).says(text);
        assert!(!world.path("x/lora.safetensors").exists());
    };
    refused("rank = 8", "adapter.rank: expected 2, as ");
    refused("targets = [\"to_q\"]", "it has besides");
    refused("targets = [\"all-linear\"]", "it lacks");
    started.set(
        "first.safetensors",
        "rank = 2\ntargets = [\"attention\"]",
        "y",
    );
    world.run(&["train", "exp.toml"]).expect(0);
    started.set("none.safetensors", "", "z");
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("none.safetensors: cannot be read");
}

#[test]
fn a_run_does_not_go_on_from_another_lora() {
    let started = Started::new("rank = 2");
    let world = &started.world;
    started.train("first.safetensors", "", "a");
    started.set("first.safetensors", "", "b");
    world
        .run(&["train", "exp.toml", "--stop-after", "2"])
        .expect(0);
    // The same LoRA under another name is the same.
    std::fs::copy(
        world.path("first.safetensors"),
        world.path("copy.safetensors"),
    )
    .expect("copied");
    started.set("copy.safetensors", "", "b");
    world
        .run(&["train", "exp.toml", "--stop-after", "1"])
        .expect(0)
        .says("3 steps done, the first 2 of them before");
    let export = [
        "export",
        "lora",
        "first.safetensors",
        "--format",
        "kohya",
        "--out",
        "k.safetensors",
    ];
    world.run(&export).expect(0);
    started.set("k.safetensors", "", "b");
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("`adapter.from`: the checkpoint");
}

/// Modules and shapes of a miniature are those of several families: what the file says of itself counts.
#[test]
fn a_lora_of_another_family_is_refused_where_it_would_be_used() {
    let started = Started::new("rank = 2");
    let world = &started.world;
    let bytes = world.read("first.safetensors");
    let stored = SafeTensors::deserialize(&bytes).expect("sound");
    let said = [("modelspec.architecture", "flux-1-dev/lora")];
    let said = said.map(|(k, v)| (k.to_owned(), v.to_owned()));
    let said = said.into_iter().collect();
    let other = safetensors::serialize(stored.tensors(), Some(said)).expect("bytes");
    world.write_bytes("other.safetensors", &other);
    let refused = "other.safetensors: expected a LoRA for `sd3`, found one for `flux1`, as its metadata says (`modelspec.architecture`)";
    started.set("other.safetensors", "", "x");
    for args in [
        &["train", "exp.toml"][..],
        &["sample", "exp.toml", "--lora", "other.safetensors"],
        &["audit", "--lora", "other.safetensors", "exp.toml"],
    ] {
        world.run(args).expect(1).says(refused);
    }
    assert!(!world.path("x/lora.safetensors").exists());
}

//! FLUX.1 Kontext from pairs of pictures to a LoRA, on the bundled miniature of FLUX.1: its weights are dev's, which have the same shapes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use crate::world::{World, tiny_sd3};

fn tiny_flux() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-flux")
}

/// Three captioned pictures in `pictures`, and a reference of each in `references`.
pub(crate) fn world() -> World {
    let world = World::new();
    std::fs::create_dir(world.path("references")).expect("a folder");
    for (n, color) in [[90, 10, 10], [10, 90, 10], [10, 10, 90]]
        .into_iter()
        .enumerate()
    {
        let width = 64 + 16 * n as u32;
        world.picture(&format!("references/p{n}.jpg"), width, 64, color);
    }
    for (from, to) in [
        (
            format!("path = {:?}", tiny_sd3().display().to_string()),
            format!("path = {:?}", tiny_flux().display().to_string()),
        ),
        (
            "family = \"sd3\"".to_owned(),
            "family = \"flux1\"".to_owned(),
        ),
        ("\"3.5-large\"".to_owned(), "\"kontext\"".to_owned()),
        (
            "path = \"pictures\"".to_owned(),
            "path = \"pictures\"\nreferences = \"references\"".to_owned(),
        ),
    ] {
        world.edit(&from, &to);
    }
    world
}

fn tensors(world: &World, path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(world.path(path), &Device::Cpu).expect("a safetensors file")
}

#[test]
fn pairs_are_encoded_trained_resumed_and_sampled() {
    let world = world();
    world.edit("bucket_step = 16", "bucket_step = 16\nflip = true");
    world.edit(
        "seed = 5",
        "seed = 5\nsample_every = 2\nvalidation_share = 0.3\nvalidate_every = 2",
    );
    world.edit(
        "prompts = [\"a blue square\"]",
        "prompts = [\"a blue square\"]\nreferences = [\"references/p2.jpg\"]",
    );
    world
        .run(&["train", "exp.toml"])
        .expect(4)
        .says("plumb encode exp.toml");
    let report = world
        .run(&["encode", "exp.toml", "--json"])
        .expect(0)
        .json();
    // Each picture and its reference, both also mirrored; the preview's is one of these.
    assert_eq!(report["pictures"]["views"], 12, "{report}");
    let references = serde_json::json!({"pairs": 3, "without": 0, "different": 3});
    assert_eq!(report["references"], references, "{report}");
    world
        .run(&["train", "exp.toml"])
        .expect(0)
        .says("caution: nothing but the values of its weights tells kontext from dev")
        .says("3 of 3 pictures stand beside a reference")
        .says("4 steps done");
    let whole = world.read("out/lora.safetensors");
    assert!(world.path("out/previews/step-00000004.png").is_file());
    std::fs::remove_dir_all(world.path("out")).expect("removed");
    world
        .run(&["train", "exp.toml", "--stop-after", "2"])
        .expect(0);
    world
        .run(&["train", "exp.toml"])
        .expect(0)
        .says("the first 2 of them before");
    assert!(world.read("out/lora.safetensors") == whole);

    let lora = ["sample", "exp.toml", "--lora", "out/lora.safetensors"];
    let sample = |args: &[&str], out: &str| {
        let args = [&lora[..], args, &["--out", out]].concat();
        world.run(&args).expect(0);
        world.sampled(&format!("{out}/seed0-000.png"))
    };
    let own = sample(&[], "own");
    let size = image::load_from_memory(&own).expect("a PNG");
    // The reference's own: 96 x 64, in a bucket of about 64 x 64.
    assert_eq!((size.width(), size.height()), (80, 48));
    let other = sample(&["--reference", "references/p1.jpg"], "other");
    assert!(own != other);

    // Two LoRAs are compared beside the references that they were validated beside.
    world.edit("seed = 5", "seed = 6");
    world.edit("output = \"out\"", "output = \"b\"");
    world.run(&["train", "exp.toml"]).expect(0);
    let report = world
        .run(&["--json", "compare", "out", "b"])
        .expect(0)
        .json();
    for (side, run) in [("a", "out"), ("b", "b")] {
        let found = report[side]["loss"].as_f64().expect("a loss");
        let expected = crate::compare::validated(&world, run);
        assert!(
            (found - expected).abs() < 1e-9,
            "{run}: {found}, {expected}"
        );
    }
}

#[test]
fn what_is_given_beside_is_the_mean_and_the_same_part_of_the_reference() {
    let world = world();
    world.edit("batch_size = 2", "batch_size = 1");
    // The same pictures: what stands beside is then the posterior's mean of what is trained on.
    for n in 0..3 {
        std::fs::remove_file(world.path(&format!("references/p{n}.jpg"))).expect("removed");
        let from = world.path(&format!("pictures/p{n}.png"));
        std::fs::copy(from, world.path(&format!("references/p{n}.png"))).expect("copied");
    }
    let said = "3 references the same as the picture beside it";
    world.run(&["encode", "exp.toml"]).expect(0).says(said);
    let dump = ["train", "exp.toml", "--dump-step", "1", "step.safetensors"];
    world.run(&dump).expect(0);
    let step = tensors(&world, "step.safetensors");
    let (latents, reference) = (&step["latents"], &step["reference"]);
    assert_eq!(latents.dims(), reference.dims());
    let apart = (latents - reference).and_then(|d| d.abs()?.max_all()?.to_scalar::<f32>());
    let spread = reference
        .abs()
        .and_then(|r| r.max_all()?.to_scalar::<f32>());
    let (apart, spread) = (apart.expect("a number"), spread.expect("a number"));
    // One of them is drawn.
    assert!(apart > 0.0 && apart < spread, "{apart} of {spread}");
    assert_eq!(step["prediction"].dims(), latents.dims());
    musubi_finds_pairs(&world);
}

/// The cache of the tuner that trains this model, as our reader reads it. That the tuner reads it: tools/foreign/load.py.
fn musubi_finds_pairs(world: &World) {
    let export = ["--json", "export", "cache", "exp.toml", "--for", "musubi"];
    let export = [&export[..], &["--out", "cache"]].concat();
    let report = world.run(&export).expect(0).json();
    assert_eq!(
        (&report["texts"], &report["latents"]),
        (&3.into(), &3.into())
    );
    for sample in crate::shards::round_trip(world).unwrap_or_default() {
        assert_eq!(sample["reference"]["file"], sample["picture"]["file"]);
    }
    let inspect = ["inspect", "latents", "exp.toml", "--picture"];
    let inspect = [&inspect[..], &["pictures/p0.png", "--out", "l.st"]].concat();
    world.run(&inspect).expect(0);
    let config = std::fs::read(tiny_flux().join("vae/config.json")).expect("a config");
    let config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
    let factor = |name: &str| config[name].as_f64().expect("a number");
    let mean = (&tensors(world, "l.st")["mean"] - factor("shift_factor")).expect("numbers");
    let mean = (mean * factor("scaling_factor")).expect("numbers");
    let cached = tensors(world, "cache/p0_0064x0064_fk.safetensors");
    for name in ["latents_1x8x8_float32", "latents_control_1x8x8_float32"] {
        let apart = (&cached[name].unsqueeze(0).expect("one") - &mean).expect("of one shape");
        let apart = apart.abs().and_then(|d| d.max_all()?.to_scalar::<f32>());
        assert!(apart.expect("a number") < 1e-5, "{name}");
    }
    let audit = ["audit", "cache", "exp.toml", "--device", "cpu"];
    let ran = world.run(&audit).expect(0);
    ran.says("3 compared: 3 scaled as the denoiser takes them, 3 the mean")
        .says("the base model (flux1 kontext) expects this");
    world.edit("bucket_step = 16", "bucket_step = 16\nflip = true");
    world.run(&["encode", "exp.toml"]).expect(0);
    let mirrored = "it is there mirrored as well, which is not written for musubi-tuner";
    world.run(&export).expect(2).says(mirrored);
}

#[test]
fn a_dumped_step_beside_a_reference_replays_in_diffusers_and_peft() {
    let world = world();
    world.edit(
        "rank = 2",
        "rank = 2\nalpha = 3.0\ntargets = [\"all-linear\"]",
    );
    // torch rounds the frequencies of its sinusoids to f32: at a guidance of 2.5 the angles, up to 2500, differ by 1e-4 from ours.
    world.edit(
        "seed = 5",
        "seed = 5\nguidance = 1.5\nshift = \"resolution\"",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world.replay_step(2, &tiny_flux());
}

#[test]
fn exchanged_references_end_a_run_though_the_store_has_all_of_them() {
    let world = world();
    for n in 0..3 {
        world.picture(&format!("pictures/p{n}.png"), 64, 64, [30, 40 * n as u8, 9]);
        world.picture(
            &format!("references/p{n}.jpg"),
            64,
            64,
            [90, 9, 40 * n as u8],
        );
    }
    world.run(&["encode", "exp.toml"]).expect(0);
    world
        .run(&["train", "exp.toml", "--stop-after", "2"])
        .expect(0);
    let exchange = |a: &str, b: &str| {
        let (a, b) = (format!("references/{a}"), format!("references/{b}"));
        let (of_a, of_b) = (world.read(&a), world.read(&b));
        world.write_bytes(&a, &of_b);
        world.write_bytes(&b, &of_a);
    };
    exchange("p0.jpg", "p1.jpg");
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("the reference pictures");
    exchange("p0.jpg", "p1.jpg");
    world.run(&["train", "exp.toml"]).expect(0);
}

#[test]
fn one_reference_of_many_pictures_is_encoded_once() {
    let world = world();
    for n in 0..3 {
        world.picture(&format!("pictures/p{n}.png"), 64, 64, [30, 40 * n as u8, 9]);
        world.picture(&format!("references/p{n}.jpg"), 64, 64, [90, 9, 9]);
    }
    let report = world
        .run(&["encode", "exp.toml", "--json"])
        .expect(0)
        .json();
    assert_eq!(report["pictures"]["encoded"], 4, "{report}");
    assert_eq!(report["references"]["different"], 1, "{report}");
}

#[test]
fn references_that_are_not_encoded_are_refused_and_the_manifest_has_those_that_are() {
    let world = world();
    world.edit("references = \"references\"", "without_references = true");
    world.run(&["encode", "exp.toml"]).expect(0);
    world
        .run(&["train", "exp.toml", "--stop-after", "1"])
        .expect(0)
        .says("0 of 3 pictures stand beside a reference; the others are trained on as text to picture");
    world.edit("without_references = true", "references = \"references\"");
    world
        .run(&["train", "exp.toml"])
        .expect(4)
        .says("latents: 3 of 6 entries are missing")
        .says("references/p0.jpg");
    world
        .run(&["encode", "exp.toml"])
        .expect(0)
        .says("6 pictures: 3 encoded, 3 there already")
        .says("3 pairs of a picture and its reference; 3 different references");
    let manifest = world.run(&["inspect", "manifest", "exp.toml", "--json"]);
    let manifest = manifest.expect(0).json();
    let first = &manifest["pictures"][0];
    let entry = first["reference"]["views"][0]["entry"].as_str();
    let told = world.run(&[
        "inspect",
        "entry",
        "exp.toml",
        entry.expect("a fingerprint"),
    ]);
    told.expect(0)
        .says("of ./references/p0.jpg, the reference of ./pictures/p0.png");
    let views = |of: &serde_json::Value| of["views"].as_array().map(Vec::len);
    assert_eq!(views(&first["reference"]), views(first));
    assert_ne!(
        first["reference"]["views"][0]["entry"],
        first["views"][0]["entry"]
    );
}

#[test]
fn who_says_too_little_or_too_much_of_references_is_told_which_line() {
    let world = world();
    let refused = |from: &str, to: &str, said: &str| {
        world.edit(from, to);
        world.run(&["encode", "exp.toml"]).expect(2).says(said);
        world.edit(to, from);
    };
    let line = "references = \"references\"";
    refused(
        line,
        "repeats = 1",
        "`dataset[0].references`: this flavor is given a reference picture beside each one",
    );
    refused(
        line,
        "references = \"references\"\nwithout_references = true",
        "`dataset[0].without_references`: there are references as well",
    );
    refused(
        line,
        "references = \"references\"\nreference_column = \"source\"",
        "`dataset[0].reference_column`: expected `references`, a folder, or `reference_column`, found both",
    );
    refused(
        line,
        "references = \"references\"\nreference_size = \"preferred\"\ncrops = 2",
        "`dataset[0].crops`: with `reference_size = \"preferred\"` a crop would stand beside the whole reference",
    );
    refused(
        "flavor = \"kontext\"",
        "flavor = \"dev\"",
        "`dataset[0].references`: flavor `dev` is given no reference pictures; leave it out",
    );
    refused(
        "steps = 2",
        "steps = 2\nreferences = [\"a.png\", \"b.png\", \"c.png\"]",
        "`sample.references`: expected one for all prompts, or one for each of 1, found 3",
    );
    let twice = ["--reference", "a.png", "--reference", "b.png"];
    let sample = [&["sample", "exp.toml"][..], &twice].concat();
    world
        .run(&sample)
        .expect(2)
        .says("`sample.references`: expected one for all prompts");
    world.edit("flavor = \"kontext\"", "flavor = \"dev\"");
    world.edit(line, "repeats = 1");
    world
        .run(&["sample", "exp.toml", "--reference", "references/p0.jpg"])
        .expect(2)
        .says("`sample.references`: flavor `dev` is given no reference pictures");
}

#[test]
fn a_model_that_is_called_kontext_and_used_as_dev_is_told() {
    let world = world();
    world.copy_folder(&tiny_flux(), "FLUX.1-Kontext-dev");
    world.edit(
        &format!("path = {:?}", tiny_flux().display().to_string()),
        "path = \"FLUX.1-Kontext-dev\"",
    );
    world.edit("flavor = \"kontext\"", "flavor = \"dev\"");
    world.edit("references = \"references\"", "repeats = 1");
    world
        .run(&["encode", "exp.toml"])
        .expect(0)
        .says("FLUX.1-Kontext-dev is called after flavor `kontext`");
    world
        .run(&["model", "check", "FLUX.1-Kontext-dev"])
        .expect(0)
        .says("dev or kontext: only the values of the weights differ, so you say which")
        .says("flavor = \"dev\"  # or \"kontext\"");
}

//! Whole pipelines of FLUX.1, on a random miniature: its denoiser is a golden, the rest is that of the bundled SD3.5.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use crate::world::{World, tiny_sd3};

fn golden() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/flux1_tiny.safetensors")
}

/// A world with a base model `flux` of this flavor beside its pictures.
fn world(flavor: &str) -> World {
    let world = World::new();
    for (from, to) in [
        ("text_encoder", "text_encoder"),
        ("text_encoder_3", "text_encoder_2"),
        ("tokenizer", "tokenizer"),
        ("tokenizer_3", "tokenizer_2"),
        ("vae", "vae"),
    ] {
        world.copy_folder(&tiny_sd3().join(from), &format!("flux/{to}"));
    }
    let bytes = std::fs::read(golden()).expect("the golden");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let mut config = header.metadata().as_ref().expect("metadata")["config"].clone();
    let mut weights = candle_core::safetensors::load(golden(), &Device::Cpu).expect("the golden");
    if flavor == "schnell" {
        config = config.replace("\"guidance_embeds\": true", "\"guidance_embeds\": false");
        weights.retain(|name, _| !name.contains("guidance_embedder"));
    }
    world.write("flux/transformer/config.json", &config);
    let file = world.path("flux/transformer/diffusion_pytorch_model.safetensors");
    candle_core::safetensors::save(&weights, file).expect("saved");
    world.edit(
        &format!("path = {:?}", tiny_sd3().display().to_string()),
        "path = \"flux\"",
    );
    world.edit("family = \"sd3\"", "family = \"flux1\"");
    world.edit("flavor = \"3.5-large\"", &format!("flavor = {flavor:?}"));
    world.edit("steps = 4", "steps = 3");
    world
}

fn tensors(world: &World, path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(world.path(path), &Device::Cpu).expect("a safetensors file")
}

#[test]
fn dev_is_encoded_trained_resumed_and_sampled() {
    let world = world("dev");
    let report = world
        .run(&["encode", "exp.toml", "--json"])
        .expect(0)
        .json();
    let slots: Vec<_> = report["captions"]
        .as_array()
        .expect("a list")
        .iter()
        .collect();
    assert_eq!(slots.len(), 2, "T5 and CLIP-L: {report}");
    world
        .run(&["train", "exp.toml"])
        .expect(0)
        .says("3 steps done");
    let whole = world.read("out/lora.safetensors");
    world
        .train_in_two("2", &whole)
        .says("the first 2 of them before");

    let lora = tensors(&world, "out/lora.safetensors");
    // Two blocks' attention: eight linears in the double one, three in the single one.
    assert_eq!(lora.len(), 2 * (8 + 3));
    for name in [
        "transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight",
        "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight",
    ] {
        assert!(lora.contains_key(name), "{name}: {:?}", lora.keys());
    }
    let args = ["sample", "exp.toml", "--lora", "out/lora.safetensors"];
    world.run(&args).expect(0);
    let with = world.sampled("out/samples/seed0-000.png");
    assert_eq!(image::load_from_memory(&with).expect("a PNG").width(), 64);
    world
        .run(&["sample", "exp.toml", "--out", "without"])
        .expect(0);
    assert!(world.sampled("without/seed0-000.png") != with);
}

#[test]
fn the_denoiser_gets_t5s_rows_and_clips_pooled_row_and_no_other() {
    let world = world("dev");
    let out = [
        "inspect",
        "conditioning",
        "exp.toml",
        "--caption",
        "a cat",
        "--out",
        "c.safetensors",
    ];
    world.run(&out).expect(0);
    let made = tensors(&world, "c.safetensors");
    assert_eq!(made["context"].dims(), [1, 512, 128]);
    assert_eq!(made["pooled"].dims(), [1, 48]);
    assert!(!made.contains_key("clip_l.hidden"));
    assert!(!made.contains_key("mask"));
}

#[test]
fn another_t5_length_is_refused_until_it_is_encoded() {
    let world = world("dev");
    world.run(&["encode", "exp.toml"]).expect(0);
    world.edit(
        "[store]",
        "[recipe.deviate]\nt5.tokens.min_tokens = 256\nt5.tokens.max_tokens = 256\n[store]",
    );
    world
        .run(&["train", "exp.toml"])
        .expect(4)
        .says("deviates: t5.tokens.max_tokens = 256 instead of 512")
        .says("t5: 5 of 5 entries are missing")
        .says("plumb encode exp.toml");
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
}

#[test]
fn masked_pads_are_a_deviation_that_needs_no_new_entries_and_changes_the_lora() {
    let world = world("dev");
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
    let whole = world.read("out/checkpoints/step-00000003.safetensors");
    world.edit(
        "[store]",
        "[recipe.deviate]\nassembly.mask = \"pads\"\n[store]",
    );
    world
        .run(&[
            "train",
            "exp.toml",
            "--restart",
            "--dump-step",
            "1",
            "step.safetensors",
        ])
        .expect(0)
        .says("deviates: assembly.mask = pads instead of none");
    assert!(world.read("out/checkpoints/step-00000003.safetensors") != whole);
    let step = tensors(&world, "step.safetensors");
    let counts = step["token_counts"].to_vec1::<u32>().expect("counts");
    assert!(
        counts.iter().all(|&count| count > 1 && count < 40),
        "{counts:?}"
    );
    let out = [
        "inspect",
        "conditioning",
        "exp.toml",
        "--caption",
        "a cat",
        "--out",
        "c.safetensors",
    ];
    world.run(&out).expect(0);
    let mask = tensors(&world, "c.safetensors")["mask"].clone();
    let seen = mask.to_dtype(DType::F32).and_then(|m| m.sum_all());
    let seen = seen.and_then(|m| m.to_scalar::<f32>()).expect("a number");
    assert_eq!(mask.dims(), [1, 512]);
    assert!(seen > 1.0 && seen < 40.0, "{seen}");
}

#[test]
fn a_model_without_mask_refuses_one() {
    let world = World::new();
    world.edit(
        "[store]",
        "[recipe.deviate]\nassembly.mask = \"pads\"\n[store]",
    );
    world
        .run(&["encode", "exp.toml"])
        .expect(2)
        .says("expected the context of one encoder");
}

#[test]
fn schnell_is_trained_with_a_caution_and_without_guidance() {
    let world = world("schnell");
    world.run(&["encode", "exp.toml"]).expect(0);
    world
        .run(&["train", "exp.toml", "--dump-step", "1", "step.safetensors"])
        .expect(0)
        .says("caution: schnell is distilled");
    let step = tensors(&world, "step.safetensors");
    assert_eq!(step["context"].dims()[1], 256);
    assert!(!step.contains_key("guidance"));
    world.run(&["sample", "exp.toml"]).expect(0);
    world.edit("seed = 5", "seed = 5\nguidance = 1.0");
    world
        .run(&["train", "exp.toml"])
        .expect(2)
        .says("train.guidance")
        .says("`schnell` has none");
    world.edit("flavor = \"schnell\"", "flavor = \"dev\"");
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("the weights are those of flavor `schnell`, not of `dev`");
}

#[test]
fn dev_is_told_one_in_training_and_as_asked_in_sampling() {
    let world = world("dev");
    world.run(&["encode", "exp.toml"]).expect(0);
    let told = |expected: f32| {
        world
            .run(&[
                "train",
                "exp.toml",
                "--restart",
                "--dump-step",
                "1",
                "step.safetensors",
            ])
            .expect(0);
        let guidance = tensors(&world, "step.safetensors")["guidance"].clone();
        let guidance = guidance.to_vec1::<f32>().expect("numbers");
        assert!(guidance.iter().all(|&g| g == expected), "{guidance:?}");
    };
    told(1.0);
    world.edit("seed = 5", "seed = 5\nguidance = 3.5");
    told(3.5);
    let sample = |out: &str| {
        world.run(&["sample", "exp.toml", "--out", out]).expect(0);
        world.sampled(&format!("{out}/seed0-000.png"))
    };
    let usual = sample("usual");
    world.edit("steps = 2", "steps = 2\nguidance = 3.5");
    assert!(sample("same") == usual, "3.5 is the default");
    world.edit("steps = 2\nguidance = 3.5", "steps = 2\nguidance = 1.0");
    assert!(sample("less") != usual);
    world.edit("guidance = 1.0", "guidance = 3.5\ntrue_cfg = 2.0");
    assert!(sample("twice") != usual);
}

#[test]
fn a_dumped_step_of_flux_replays_in_diffusers_and_peft() {
    let world = world("dev");
    world.edit(
        "rank = 2",
        "rank = 2\nalpha = 3.0\ntargets = [\"all-linear\"]",
    );
    world.edit(
        "seed = 5",
        "seed = 5\nguidance = 2.0\nshift = \"resolution\"",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world.replay_step(2, &world.path("flux"));
}

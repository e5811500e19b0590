//! Whole pipelines of Chroma, on a random miniature: its denoiser is a golden, T5 and the VAE are those of the bundled SD3.5.

use std::collections::HashMap;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};

use crate::flux_files::authors;
use crate::layouts::{gguf, part_of};
use crate::single_files::cosine;
use crate::world::{World, tiny_sd3};

/// A world with a base model `chroma` beside its pictures.
pub(crate) fn world() -> World {
    let world = World::new();
    for (from, to) in [
        ("text_encoder_3", "text_encoder"),
        ("tokenizer_3", "tokenizer"),
        ("vae", "vae"),
    ] {
        world.copy_folder(&tiny_sd3().join(from), &format!("chroma/{to}"));
    }
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/chroma_tiny.safetensors");
    let bytes = std::fs::read(&golden).expect("the golden");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let config = header.metadata().as_ref().expect("metadata")["config"].clone();
    world.write("chroma/transformer/config.json", &config);
    let file = "chroma/transformer/diffusion_pytorch_model.safetensors";
    world.write_bytes(file, &bytes);
    world.edit(
        &format!("path = {:?}", tiny_sd3().display().to_string()),
        "path = \"chroma\"",
    );
    world.edit("family = \"sd3\"", "family = \"chroma\"");
    world.edit("flavor = \"3.5-large\"", "flavor = \"hd\"");
    world.edit("steps = 4", "steps = 3");
    for n in 0..3 {
        world.picture(&format!("pictures/p{n}.png"), 64, 64, [60 * n, 30, 30]);
    }
    world.write(
        "pictures/p2.txt",
        "a far longer caption of a red circle, number 2",
    );
    world
}

fn tensors(world: &World, path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(world.path(path), &Device::Cpu).expect("a safetensors file")
}

fn conditioning(world: &World, caption: &str) -> HashMap<String, Tensor> {
    let args = [
        "inspect",
        "conditioning",
        "exp.toml",
        "--caption",
        caption,
        "--out",
        "c.safetensors",
    ];
    world.run(&args).expect(0);
    tensors(world, "c.safetensors")
}

#[test]
fn chroma_is_encoded_trained_resumed_and_sampled() {
    let world = world();
    let report = world
        .run(&["encode", "exp.toml", "--json"])
        .expect(0)
        .json();
    assert_eq!(report["captions"].as_array().map(Vec::len), Some(1));
    world
        .run(&["train", "exp.toml", "--dump-step", "1", "step.safetensors"])
        .expect(0)
        .says("3 steps done");
    // Captions of different lengths in one call, each with as many rows as it has tokens and one.
    let step = tensors(&world, "step.safetensors");
    let counts = step["token_counts"].to_vec1::<u32>().expect("counts");
    assert_eq!(counts.len(), 2);
    let longest = *counts.iter().max().expect("two") as usize;
    assert_eq!(step["context"].dims(), [2, longest, 128]);
    assert!(!step.contains_key("guidance"));

    let whole = world.read("out/lora.safetensors");
    world.train_in_two("2", &whole);
    let lora = tensors(&world, "out/lora.safetensors");
    assert_eq!(lora.len(), 2 * (8 + 3));
    assert!(!lora.keys().any(|name| name.contains("distilled")));
    let args = ["sample", "exp.toml", "--lora", "out/lora.safetensors"];
    world.run(&args).expect(0);
    let with = world.sampled("out/samples/seed0-000.png");
    world
        .run(&["sample", "exp.toml", "--out", "without"])
        .expect(0);
    assert!(world.sampled("without/seed0-000.png") != with);
}

/// Guided by a second pass, whose caption has another length.
#[test]
fn sampling_is_guided_by_a_negative_prompt() {
    let world = world();
    world.run(&["encode", "exp.toml"]).expect(0);
    let sample = |out: &str| {
        world.run(&["sample", "exp.toml", "--out", out]).expect(0);
        world.sampled(&format!("{out}/seed0-000.png"))
    };
    let usual = sample("usual");
    world.edit("steps = 2", "steps = 2\nguidance = 1.0");
    assert!(sample("alone") != usual);
    world.edit(
        "guidance = 1.0",
        "guidance = 4.0\nnegative_prompt = \"blurred, and much more that nobody wants to see\"",
    );
    assert!(sample("negative") != usual);
    world.edit(
        "negative_prompt = \"blurred, and much more that nobody wants to see\"",
        "",
    );
    assert!(sample("same") == usual, "4 is the default");
}

#[test]
fn the_denoiser_gets_the_captions_rows_and_one_pad() {
    let world = world();
    let made = conditioning(&world, "a cat");
    let tokens = made["t5.token_ids"].dims()[0];
    let ids = made["t5.token_ids"].to_vec1::<i64>().expect("ids");
    let count = ids.iter().filter(|&&id| id != 0).count();
    assert_eq!(tokens, 512);
    assert_eq!(made["context"].dims(), [1, count + 1, 128]);
    assert_eq!(made["mask"].dims(), [1, count + 1]);
    assert_eq!(made["pooled"].dims(), [1, 0]);
    assert_eq!(conditioning(&world, "")["context"].dims(), [1, 2, 128]);
    // The author's pad attends to everything, transformers' to the caption; the caption's rows are the same.
    world.edit("variant = \"reference\"", "variant = \"diffusers\"");
    let other = conditioning(&world, "a cat");
    let rows = |t: &Tensor| {
        let rows = t.squeeze(0).and_then(|t| t.to_dtype(DType::F32));
        rows.and_then(|t| t.to_vec2::<f32>()).expect("rows")
    };
    let (ours, theirs) = (rows(&made["context"]), rows(&other["context"]));
    let apart = |at: usize| {
        let pairs = ours[at].iter().zip(&theirs[at]);
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max)
    };
    assert!((0..count).all(|at| apart(at) < 1e-4));
    assert!(apart(count) > 1e-3, "{}", apart(count));
}

/// All of T5's rows, and a mask for the denoiser: the same LoRA but for the order in which sums are rounded, from a larger
/// store.
#[test]
fn kept_rows_that_are_not_seen_change_nothing() {
    let world = world();
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
    let few = tensors(&world, "out/lora.safetensors");
    world.edit(
        "[store]",
        "[recipe.deviate]\nt5.forward.pad_rows = \"keep\"\n[store]",
    );
    world
        .run(&["train", "exp.toml", "--restart"])
        .expect(4)
        .says("deviates: t5.forward.pad_rows = keep instead of one");
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml", "--restart"]).expect(0);
    let all = tensors(&world, "out/lora.safetensors");
    for (name, tensor) in few {
        let numbers = |t: &Tensor| t.flatten_all().and_then(|t| t.to_dtype(DType::F32));
        let numbers = |t: &Tensor| {
            numbers(t)
                .and_then(|t| t.to_vec1::<f32>())
                .expect("numbers")
        };
        for (few, all) in numbers(&tensor).iter().zip(numbers(&all[&name])) {
            assert!((few - all).abs() < 1e-5, "{name}: {few} {all}");
        }
    }
}

/// As converters to GGUF write it: the author's names without a prefix, FLUX.1's architecture, vectors and what is around the blocks
/// unquantized.
#[test]
fn a_denoiser_in_gguf_is_trained_and_sampled_near_the_whole_one() {
    let prediction = |world: &World| {
        world.run(&["encode", "exp.toml"]).expect(0);
        let dump = ["train", "exp.toml", "--dump-step", "1", "step.safetensors"];
        world.run(&dump).expect(0);
        tensors(world, "step.safetensors").remove("prediction")
    };
    let exact = prediction(&world());
    let world = world();
    let own = part_of(&world.path("chroma"), "transformer");
    let file = "chroma1-hd-Q8_0.gguf";
    let blocks = |name: &str| name.contains("blocks.").then_some(GgmlDType::Q8_0);
    world.write_bytes(file, &gguf(&authors(own), "flux", blocks));
    let lines = [
        ("t5", "text_encoder/model.safetensors"),
        ("t5_config", "text_encoder/config.json"),
        ("t5_tokenizer", "tokenizer"),
        ("vae", "vae/diffusion_pytorch_model.safetensors"),
        ("vae_config", "vae/config.json"),
    ]
    .map(|(key, path)| format!("{key} = \"chroma/{path}\"\n"))
    .concat();
    world.edit(
        "path = \"chroma\"",
        &format!("path = \"{file}\"\n[model.files]\n{lines}"),
    );
    world
        .run(&["model", "check", file])
        .expect(0)
        .says("a model of family chroma, a GGUF file")
        .says("x Q8_0")
        .says("every tensor is there and has its place");
    let near = prediction(&world).expect("a prediction");
    let along = cosine(&near, &exact.expect("a prediction"));
    assert!((0.999..1.0).contains(&along), "cosine {along}");
    assert_eq!(tensors(&world, "out/lora.safetensors").len(), 2 * 11);
    world
        .run(&["sample", "exp.toml", "--lora", "out/lora.safetensors"])
        .expect(0);
}

#[test]
fn no_target_is_on_the_approximator() {
    let world = world();
    world.run(&["encode", "exp.toml"]).expect(0);
    world.edit(
        "rank = 2",
        "rank = 2\ntargets = [\"distilled_guidance_layer.*\"]",
    );
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("adapter target `distilled_guidance_layer.*` fits none of the 20 linears");
}

#[test]
fn a_mask_that_wants_rows_that_are_not_there_is_refused() {
    let world = world();
    world.edit(
        "[store]",
        "[recipe.deviate]\nassembly.mask = \"none\"\n[store]",
    );
    world
        .run(&["encode", "exp.toml"])
        .expect(2)
        .says("t5.forward.pad_rows = one and assembly.mask = none");
}

#[test]
fn a_dumped_step_of_chroma_replays_in_diffusers_and_peft() {
    let world = world();
    world.edit(
        "rank = 2",
        "rank = 2\nalpha = 3.0\ntargets = [\"all-linear\"]",
    );
    world.edit("seed = 5", "seed = 5\nshift = \"resolution\"");
    world.run(&["encode", "exp.toml"]).expect(0);
    world.replay_step(2, &world.path("chroma"));
}

//! Whole pipelines of Z-Image, on a random miniature: its denoiser and its Qwen3 are goldens, the VAE is that of the bundled FLUX.1.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use crate::layouts::{Tensors, part_of, prefixed, save};
use crate::single_files::{encoded, is_the_same};
use crate::world::{World, tiny_sd3};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn metadata(bytes: &[u8]) -> HashMap<String, String> {
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes).expect("a header");
    header.metadata().clone().expect("metadata")
}

/// Qwen3 with its tokenizer, as the golden of diffusers' pipelines has them; and that golden's cases.
fn encoder(world: &World) -> serde_json::Value {
    let file = golden("qwen3_pipelines.safetensors");
    let cases = &metadata(&std::fs::read(&file).expect("the golden"))["cases"];
    let cases: serde_json::Value = serde_json::from_str(cases).expect("JSON");
    let all = candle_core::safetensors::load(&file, &Device::Cpu).expect("tensors");
    let own = all
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("model/")?.to_owned(), tensor)));
    let own: HashMap<String, Tensor> = own.collect();
    let config = cases[0]["config"].to_string();
    world.write("zimage/text_encoder/config.json", &config);
    let weights = world.path("zimage/text_encoder/model.safetensors");
    candle_core::safetensors::save(&own, weights).expect("saved");
    world.copy_folder(&golden("tokenizers/qwen3"), "zimage/tokenizer");
    cases[0].clone()
}

/// A world with a base model `zimage` beside its pictures.
pub(crate) fn world() -> World {
    let world = World::new();
    encoder(&world);
    let flux = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-flux/vae");
    world.copy_folder(&flux, "zimage/vae");
    let bytes = std::fs::read(golden("zimage_tiny.safetensors")).expect("the golden");
    world.write(
        "zimage/transformer/config.json",
        &metadata(&bytes)["config"],
    );
    world.write_bytes(
        "zimage/transformer/diffusion_pytorch_model.safetensors",
        &bytes,
    );
    world.write(
        "zimage/scheduler/scheduler_config.json",
        r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 6.0, "use_dynamic_shifting": false}"#,
    );
    world.edit(
        &format!("path = {:?}", tiny_sd3().display().to_string()),
        "path = \"zimage\"",
    );
    world.edit("family = \"sd3\"", "family = \"zimage\"");
    world.edit("flavor = \"3.5-large\"", "flavor = \"base\"");
    world.edit("steps = 4", "steps = 3");
    for n in 0..3 {
        world.picture(&format!("pictures/p{n}.png"), 64, 64, [60 * n, 30, 30]);
    }
    // Of more than 32 tokens of the small vocabulary: it is filled up to 64.
    world.write(
        "pictures/p2.txt",
        "a far longer caption of a red circle with a lot more to say of it than of the others, number 2",
    );
    world
}

fn tensors(world: &World, path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(world.path(path), &Device::Cpu).expect("a safetensors file")
}

fn conditioning(world: &World, caption: &str) -> HashMap<String, Tensor> {
    let caption = ["--caption", caption, "--out", "c.safetensors"];
    world
        .run(&[&["inspect", "conditioning", "exp.toml"], &caption[..]].concat())
        .expect(0);
    tensors(world, "c.safetensors")
}

#[test]
fn zimage_is_encoded_trained_resumed_and_sampled() {
    let world = world();
    world.encode();
    world
        .run(&["train", "exp.toml", "--dump-step", "1", "step.safetensors"])
        .expect(0)
        .says("3 steps done");
    // Captions of different lengths in one call, each with as many rows as it has tokens.
    let step = tensors(&world, "step.safetensors");
    let counts = step["token_counts"].to_vec1::<u32>().expect("counts");
    let longest = *counts.iter().max().expect("two") as usize;
    assert_eq!(step["context"].dims(), [2, longest, 16]);

    let whole = world.read("out/lora.safetensors");
    world.train_in_two("2", &whole);
    assert_eq!(tensors(&world, "out/lora.safetensors").len(), 2 * 3 * 4);
    let args = ["sample", "exp.toml", "--lora", "out/lora.safetensors"];
    world.run(&args).expect(0);
    let with = world.sampled("out/samples/seed0-000.png");
    let plain = ["sample", "exp.toml", "--out", "without"];
    world.run(&plain).expect(0);
    assert!(world.sampled("without/seed0-000.png") != with);
}

/// From text to rows, through the program.
#[test]
fn captions_are_conditioned_as_by_diffusers_pipeline() {
    let world = world();
    let case = encoder(&world);
    let file = golden("qwen3_pipelines.safetensors");
    let golden = candle_core::safetensors::load(file, &Device::Cpu).expect("tensors");
    let length = format!(
        "[recipe.deviate]\nqwen3.tokens.min_tokens = {0}\nqwen3.tokens.max_tokens = {0}\n[store]",
        case["length"]
    );
    world.edit("[store]", &length);
    let captions = case["captions"].as_array().expect("captions");
    for (number, caption) in captions.iter().enumerate() {
        let made = conditioning(&world, caption.as_str().expect("a text"));
        let expected = &golden[&format!("z_image.{number}")];
        assert_eq!(made["context"].dims()[1], expected.dims()[0], "{caption}");
        let numbers = |t: &Tensor| {
            let flat = t.flatten_all().and_then(|t| t.to_dtype(DType::F32));
            flat.and_then(|t| t.to_vec1::<f32>()).expect("numbers")
        };
        let (ours, theirs) = (numbers(&made["context"]), numbers(expected));
        for (a, b) in ours.iter().zip(theirs) {
            assert!((a - b).abs() < 1e-4, "{caption}: {a} {b}");
        }
    }
}

/// diffusers' pipelines put the template around "" as around any caption, which the golden's captions hold; without one there is no
/// result to be equal to.
#[test]
fn an_empty_caption_without_a_template_is_refused() {
    let world = world();
    world.edit(
        "[store]",
        "[recipe.deviate]\nqwen3.tokens.template = \"{caption}\"\n[store]",
    );
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("a caption is empty and has no token here")
        .says("let the recipe's `tokens.template` put tokens around it");
}

/// As ComfyUI saves a checkpoint: its `SD1ClipModel` names the encoder `qwen3_4b`, which holds a `transformer` and a number that CLIP
/// has a use for.
#[test]
fn one_file_of_comfyui_is_the_folder() {
    let folder = world();
    encoded(&folder);
    folder.run(&["train", "exp.toml"]).expect(0);
    folder
        .run(&["sample", "exp.toml", "--out", "samples"])
        .expect(0);
    let single = world();
    let mut all = Tensors::new();
    for (part, prefix) in [
        ("transformer", "model.diffusion_model."),
        ("text_encoder", "text_encoders.qwen3_4b.transformer."),
        ("vae", "vae."),
    ] {
        all.extend(prefixed(part_of(&single.path("zimage"), part), prefix));
    }
    let scale = Tensor::new(4.6055f32, &Device::Cpu).expect("a number");
    all.insert("text_encoders.qwen3_4b.logit_scale".to_owned(), scale);
    save(&all, &single.path("zimage.safetensors"));
    let lines = [
        ("qwen3_config", "text_encoder/config.json"),
        ("qwen3_tokenizer", "tokenizer"),
        ("vae_config", "vae/config.json"),
        ("scheduler", "scheduler/scheduler_config.json"),
    ]
    .map(|(key, path)| format!("{key} = \"zimage/{path}\"\n"))
    .concat();
    single.edit(
        "path = \"zimage\"",
        &format!("path = \"zimage.safetensors\"\n[model.files]\n{lines}"),
    );
    is_the_same(&folder, &single);
}

#[test]
fn a_dumped_step_of_zimage_replays_in_diffusers_and_peft() {
    let world = world();
    world.edit(
        "rank = 2",
        "rank = 2\nalpha = 3.0\ntargets = [\"all-linear\"]",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world.replay_step(2, &world.path("zimage"));
}

/// A training adapter: in the steps, in no preview and not in the LoRA, and no other for a run that goes on.
#[test]
fn turbo_is_trained_above_a_training_adapter() {
    let world = world();
    world.edit("flavor = \"base\"", "flavor = \"turbo\"");
    // What ai-toolkit adapts: the blocks over picture and caption together.
    world.edit("rank = 2", "rank = 2\ntargets = [\"blocks\"]");
    world.run(&["encode", "exp.toml"]).expect(0);
    world
        .run(&["train", "exp.toml"])
        .expect(0)
        .says("caution: turbo is distilled to eight steps without guidance");
    // Any LoRA will do as the adapter: this one, named by another program.
    let export = [
        "export",
        "lora",
        "out/lora.safetensors",
        "--format",
        "ai-toolkit",
    ];
    world
        .run(&[&export[..], &["--out", "adapter.safetensors"]].concat())
        .expect(0);
    assert!(
        tensors(&world, "adapter.safetensors")
            .keys()
            .all(|name| name.starts_with("diffusion_model.layers."))
    );
    let numbers = || {
        let all = tensors(&world, "out/lora.safetensors");
        let all: std::collections::BTreeMap<_, _> = all.into_iter().collect();
        let flat = |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>());
        all.values()
            .flat_map(|t| flat(t).expect("numbers"))
            .collect::<Vec<_>>()
    };
    let alone = numbers();
    world.edit(
        "seed = 5",
        "seed = 5\nsample_every = 3\ntraining_adapter = \"adapter.safetensors\"",
    );
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("`train.training_adapter`: the checkpoint nothing, the Experiment");
    world
        .run(&["train", "exp.toml", "--restart"])
        .expect(0)
        .says("which is left out of previews and of the LoRA");
    assert!(numbers() != alone);
    world
        .run(&["inspect", "lora", "out/lora.safetensors"])
        .expect(0)
        .says("a training adapter that is left out here");
    // Before the first step the preview is the base model's, whatever lies beneath the training.
    let first = world.read("out/previews/step-00000000.png");
    world.edit("\ntraining_adapter = \"adapter.safetensors\"", "");
    world.run(&["train", "exp.toml", "--restart"]).expect(0);
    assert!(world.read("out/previews/step-00000000.png") == first);
    assert!(numbers() == alone);
}

#[test]
fn a_step_above_a_training_adapter_replays_in_diffusers_and_peft() {
    let world = world();
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
    std::fs::copy(
        world.path("out/lora.safetensors"),
        world.path("a.safetensors"),
    )
    .expect("copied");
    world.edit("seed = 5", "seed = 5\ntraining_adapter = \"a.safetensors\"");
    world.edit("output = \"out\"", "output = \"above\"");
    world.replay_step(2, &world.path("zimage"));
}

/// A cache as musubi-tuner writes it, of the rows that the program makes.
fn musubi_cache(world: &World, folder: &str) {
    for n in 0..3 {
        let caption = world.read(&format!("pictures/p{n}.txt"));
        let caption = String::from_utf8(caption).expect("UTF-8");
        let made = conditioning(world, &caption);
        let rows = made["context"].squeeze(0).expect("one caption");
        let numbers = rows.flatten_all().and_then(|t| t.to_vec1::<f32>());
        let bytes: Vec<u8> = numbers
            .expect("numbers")
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        let shape = rows.dims().to_vec();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &bytes);
        let metadata = [
            ("architecture", "z_image"),
            ("caption1", caption.as_str()),
            ("format_version", "1.0.1"),
        ];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let file = safetensors::serialize(
            [("varlen_llm_embed_float32", view.expect("a view"))],
            Some(HashMap::from(metadata)),
        );
        let path = format!("{folder}/p{n}_zi_te.safetensors");
        world.write_bytes(&path, &file.expect("a file"));
    }
}

/// musubi-tuner's cache is the authors' conditioning; one of a template with an empty thought has its shapes but for a few rows more.
#[test]
fn an_audit_names_the_template_of_a_cache() {
    let world = world();
    musubi_cache(&world, "right");
    world.run(&["audit", "right", "exp.toml"]).expect(0);
    let thought = "<|im_start|>user\\n{caption}<|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n";
    let deviate = format!("[recipe.deviate]\nqwen3.tokens.template = \"{thought}\"\n[store]");
    world.edit("[store]", &deviate);
    musubi_cache(&world, "thoughtful");
    world.edit(&deviate, "[store]");
    world
        .run(&["audit", "thoughtful", "exp.toml"])
        .expect(3)
        .says("as musubi makes it, with tokens.template <|im_start|>user");
}

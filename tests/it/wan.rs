//! The whole way with Wan, on a random miniature: stills and clips of numbered frames to a LoRA and a sampled clip.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use crate::world::{World, tiny_sd3};

/// A world with a base model `wan` (`tools/tiny_wan.py`), two stills and two clips of six frames.
pub(crate) fn world() -> World {
    let world = World::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let file = golden.join("wan_tiny.safetensors");
    let bytes = std::fs::read(&file).expect("the golden");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let configs = header.metadata().clone().expect("metadata");
    let all = candle_core::safetensors::load(&file, &Device::Cpu).expect("tensors");
    for (part, name) in [
        ("transformer", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ] {
        world.write(&format!("wan/{part}/config.json"), &configs[part]);
        let prefix = format!("{part}/");
        let own = all
            .iter()
            .filter_map(|(key, tensor)| Some((key.strip_prefix(&prefix)?, tensor.clone())));
        let own: HashMap<&str, Tensor> = own.collect();
        let weights = world.path(&format!("wan/{part}/{name}.safetensors"));
        candle_core::safetensors::save(&own, weights).expect("saved");
    }
    world.copy_folder(&golden.join("tokenizers/umt5"), "wan/tokenizer");
    for clip in ["clip", "other"] {
        std::fs::create_dir(world.path(&format!("pictures/{clip}"))).expect("a folder");
        for n in 0..6 {
            let frame = format!("pictures/{clip}/{n:04}.png");
            world.picture(&frame, 64, 64, [40 * n, 30, 20 * clip.len() as u8]);
        }
        let caption = format!("a circle that turns red, {clip}");
        world.write(&format!("pictures/{clip}.txt"), &caption);
    }
    std::fs::remove_file(world.path("pictures/p2.png")).expect("removed");
    std::fs::remove_file(world.path("pictures/p2.txt")).expect("removed");
    let base = format!("path = {:?}", tiny_sd3().display().to_string());
    world.edit(&base, "path = \"wan\"");
    world.edit("family = \"sd3\"", "family = \"wan\"");
    world.edit("flavor = \"3.5-large\"", "flavor = \"t2v-1.3b\"");
    world.edit("bucket_step = 16", "bucket_step = 16\nframes = 5");
    world.edit("steps = 4", "steps = 3\nsample_every = 3");
    world
}

pub(crate) fn tensors(world: &World, path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(world.path(path), &Device::Cpu).expect("a safetensors file")
}

/// Frames of an animated WebP.
fn frames(bytes: &[u8]) -> usize {
    bytes.windows(4).filter(|four| four == b"ANMF").count()
}

#[test]
fn wan_is_encoded_trained_resumed_and_sampled() {
    let world = world();
    world.encode();
    let samples = crate::shards::round_trip(&world).unwrap_or_default();
    let clips = samples
        .iter()
        .filter(|s| s["views"][0]["view"]["window"].is_object());
    assert!(samples.is_empty() || clips.count() > 1, "{samples:?}");
    let dump = ["--dump-step", "1", "step.safetensors"];
    world
        .run(&[&["train", "exp.toml"], &dump[..]].concat())
        .expect(0)
        .says("3 steps done");
    // A still is one frame of latents, five frames are two; the context has 512 rows whatever the caption.
    let step = tensors(&world, "step.safetensors");
    let shape = step["latents"].dims();
    assert!(
        shape.len() == 5 && shape[1] == 4 && [1, 2].contains(&shape[2]),
        "{shape:?}"
    );
    assert_eq!(step["context"].dims()[1..], [512, 16]);

    let whole = world.read("out/lora.safetensors");
    let preview = world.read("out/previews/step-00000003.webp");
    world.train_in_two("2", &whole);
    assert_eq!(frames(&preview), 5);

    let args = ["sample", "exp.toml", "--lora", "out/lora.safetensors"];
    world
        .run(&args)
        .expect(0)
        .says("out/samples/seed0-000.webp");
    let with = world.sampled("out/samples/seed0-000.webp");
    assert_eq!(frames(&with), 5);
    let plain = ["sample", "exp.toml", "--out", "without"];
    world.run(&plain).expect(0);
    assert!(world.sampled("without/seed0-000.webp") != with);
    // One frame is a picture.
    world.edit("prompts", "frames = 1\nprompts");
    world.run(&plain).expect(0);
    let picture = image::open(world.path("without/seed0-000.png")).expect("a picture");
    assert_eq!((picture.width(), picture.height()), (64, 64));
}

#[test]
fn what_is_no_video_is_refused() {
    let world = world();
    for (from, to, field) in [
        ("frames = 5", "frames = 6", "`dataset[0].frames`"),
        ("prompts", "frames = 8\nprompts", "`sample.frames`"),
    ] {
        world.edit(from, to);
        world
            .run(&["encode", "exp.toml"])
            .expect(2)
            .says(field)
            .says("expected 1 more than a multiple of 4");
        world.edit(to, from);
    }
    std::fs::remove_dir_all(world.path("wan/vae")).expect("removed");
    world.copy_folder(&tiny_sd3().join("vae"), "wan/vae");
    world
        .run(&["encode", "exp.toml"])
        .expect(2)
        .says("it is a VAE of pictures (`AutoencoderKL`), and the models of family `wan`");
}

#[test]
fn a_dumped_step_of_wan_replays_in_diffusers_and_peft() {
    let world = world();
    world.run(&["encode", "exp.toml"]).expect(0);
    world.replay_step(2, &world.path("wan"));
    // Its matrices are too small for that.
    world.edit("family = \"wan\"", "family = \"wan\"\ncompute = \"fp8\"");
    world
        .run(&["train", "exp.toml", "--restart", "--stop-after", "1"])
        .expect(0)
        .says("`[model] compute` has no effect: each of the model's");
}

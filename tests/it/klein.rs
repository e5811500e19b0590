//! FLUX.2 klein through the whole program, on a random miniature that diffusers made: its denoiser, Qwen3 and VAE are goldens, and so is
//! what diffusers' pipeline makes of them (`tools/goldens/flux2.py`).

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use image::{Rgb, RgbImage};
use plumb::base_model::BaseModel;
use plumb::cache::{Conditioning, ModelCache, assemble, drop_caption};
use plumb::lora::Bound;
use plumb::models::Placement;
use plumb::nn::Kernels;
use plumb::sample::{SampleOptions, previews, sample_from};
use plumb::store::Store;

use crate::tiny_world::close;
use crate::world::{World, tiny_sd3};

const CAPTION: &str = "a red circle, number 2";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.safetensors"))
}

/// What diffusers' pipeline makes of the miniature.
fn of_diffusers() -> HashMap<String, Tensor> {
    let all = candle_core::safetensors::load(golden("flux2_pipeline"), &Device::Cpu);
    let named = |(name, tensor): (String, Tensor)| {
        let name = name.strip_prefix("golden.").expect("a golden").to_owned();
        (name, tensor)
    };
    all.expect("the golden").into_iter().map(named).collect()
}

/// A part of a model in diffusers' layout, of a golden's tensors and config.
fn part(world: &World, from: &str, folder: &str, file: &str) {
    let bytes = std::fs::read(golden(from)).expect("the golden");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let config = &header.metadata().as_ref().expect("metadata")["config"];
    world.write(&format!("klein/{folder}/config.json"), config);
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).expect("tensors");
    let own: HashMap<_, _> = (tensors.into_iter())
        .filter(|(name, _)| !name.starts_with("golden."))
        .collect();
    candle_core::safetensors::save(
        &own,
        world.path(&format!("klein/{folder}/{file}.safetensors")),
    )
    .expect("saved");
}

/// A world with a base model `klein` beside its pictures.
pub(crate) fn world() -> World {
    let world = World::new();
    let weights = "diffusion_pytorch_model";
    part(&world, "flux2_tiny", "transformer", weights);
    part(&world, "vae_flux2", "vae", weights);
    part(&world, "flux2_tiny_text", "text_encoder", "model");
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers/qwen3");
    world.copy_folder(&tokenizer, "klein/tokenizer");
    for (from, to) in [
        (
            format!("path = {:?}", tiny_sd3().display().to_string()),
            "path = \"klein\"".to_owned(),
        ),
        ("\"sd3\"".to_owned(), "\"flux2\"".to_owned()),
        ("\"3.5-large\"".to_owned(), "\"klein-base-4b\"".to_owned()),
        ("steps = 4".to_owned(), "steps = 3".to_owned()),
    ] {
        world.edit(&from, &to);
    }
    for n in 0..3 {
        world.picture(&format!("pictures/p{n}.png"), 64, 64, [60 * n, 30, 30]);
    }
    world.write("pictures/p2.txt", CAPTION);
    world
}

fn tensors(world: &World, path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(world.path(path), &Device::Cpu).expect("a safetensors file")
}

#[test]
fn klein_is_encoded_trained_resumed_and_sampled() {
    let world = world();
    world.encode();
    world
        .run(&["train", "exp.toml", "--dump-step", "1", "step.safetensors"])
        .expect(0)
        .says("3 steps done");
    let step = tensors(&world, "step.safetensors");
    assert_eq!(step["context"].dims(), [2, 512, 48]);
    assert_eq!(step["latents"].dims(), [2, 4, 8, 8]);
    assert!(!step.contains_key("token_counts") && !step.contains_key("guidance"));
    let whole = world.read("out/lora.safetensors");
    world.train_in_two("2", &whole);
    let lora = tensors(&world, "out/lora.safetensors");
    // Eight linears of a double block's attention, two of a single block.
    assert_eq!(lora.len(), 2 * (8 + 2));
    assert!(lora.contains_key(
        "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight"
    ));
    let args = ["sample", "exp.toml", "--lora", "out/lora.safetensors"];
    world.run(&args).expect(0);
    let with = world.sampled("out/samples/seed0-000.png");
    world
        .run(&["sample", "exp.toml", "--out", "without"])
        .expect(0);
    assert!(world.sampled("without/seed0-000.png") != with);
}

#[test]
fn a_dumped_step_of_klein_replays_in_diffusers_and_peft() {
    let world = world();
    world.run(&["encode", "exp.toml"]).expect(0);
    world.replay_step(2, &world.path("klein"));
}

/// Pictures beside references, one of them without: pairs and the others are micro-batches of their own.
#[test]
fn klein_is_trained_on_pairs_and_on_pictures_alone_and_sampled_beside_a_reference() {
    let world = world();
    std::fs::create_dir_all(world.path("references")).expect("a folder");
    std::fs::create_dir_all(world.path("alone")).expect("a folder");
    for n in 0..3 {
        world.picture(&format!("references/p{n}.png"), 64, 64, [20, 60 * n, 90]);
    }
    world.picture("alone/q.png", 64, 64, [5, 6, 7]);
    world.write("alone/q.txt", "nothing beside");
    world.edit(
        "path = \"pictures\"",
        "path = \"pictures\"\nreferences = \"references\"",
    );
    world.edit(
        "[adapter]",
        "[[dataset]]\npath = \"alone\"\nresolution = 64\nbucket_step = 16\n[adapter]",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0).says(
        "a reference stands beside 3 of 4 pictures; the others are trained on as text to picture",
    );
    let sample = |args: &[&str], out: &str| {
        let args = [&["sample", "exp.toml", "--out", out], args].concat();
        world.run(&args).expect(0);
        world.sampled(&format!("{out}/seed0-000.png"))
    };
    let alone = sample(&[], "without");
    let beside = sample(&["--reference", "references/p1.png"], "beside");
    assert!(alone != beside && beside != sample(&["--reference", "references/p2.png"], "other"));

    world.edit("references = \"references\"", "without_references = true");
    world
        .run(&["encode", "exp.toml"])
        .expect(2)
        .says("`klein-base-4b` is trained without references where none are named; leave it out");
}

/// Targets of one bucket beside references of several sizes: a micro-batch has those of one size, and each pair comes once.
#[test]
fn references_of_several_sizes_are_trained_beside_targets_of_one() {
    let world = world();
    std::fs::create_dir_all(world.path("references")).expect("a folder");
    for (n, (width, height)) in [(100, 67), (64, 64), (100, 67)].into_iter().enumerate() {
        let shade = 60 * n as u8;
        world.picture(&format!("pictures/p{n}.png"), 64, 64, [shade, 9, 90]);
        let reference = format!("references/p{n}.png");
        world.picture(&reference, width, height, [20, shade, 90]);
    }
    world.edit(
        "path = \"pictures\"",
        "path = \"pictures\"\nreferences = \"references\"\nreference_size = \"preferred\"",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    let mut seen = BTreeSet::new();
    for step in ["1", "2"] {
        let dump = [
            "--dump-step",
            step,
            "step.safetensors",
            "--stop-after",
            step,
        ];
        _ = std::fs::remove_dir_all(world.path("out"));
        let ran = world.run(&[&["train", "exp.toml"], &dump[..]].concat());
        ran.expect(0).says("2 micro-batches an epoch");
        let step = tensors(&world, "step.safetensors");
        let (targets, references) = (step["latents"].dims(), step["reference"].dims());
        assert_eq!(targets[2..], step["noise"].dims()[2..]);
        seen.insert((targets.to_vec(), references.to_vec()));
    }
    let samples: Vec<usize> = seen.iter().map(|(targets, _)| targets[0]).collect();
    let references: Vec<usize> = seen.iter().map(|(_, references)| references[0]).collect();
    assert_eq!(
        (samples.iter().sum::<usize>(), &samples),
        (3, &references),
        "{seen:?}"
    );
}

#[test]
fn a_dumped_step_of_klein_beside_a_reference_replays_in_diffusers_and_peft() {
    let world = world();
    std::fs::create_dir_all(world.path("references")).expect("a folder");
    for n in 0..3 {
        world.picture(&format!("references/p{n}.png"), 100, 67, [20, 60 * n, 90]);
    }
    world.edit(
        "path = \"pictures\"",
        "path = \"pictures\"\nreferences = \"references\"\nreference_size = \"preferred\"",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world.replay_step(1, &world.path("klein"));
}

pub(crate) fn conditioning(source: &ModelCache<'_>, caption: &str) -> Conditioning {
    let outputs = source.outputs(caption).expect("encoded");
    assemble(source.recipe, &outputs, source.context_width).expect("assembled")
}

/// What a store has of captions, and of the reference that previews are made beside.
pub(crate) fn cache<'a>(base: &'a BaseModel, store: &Store, captions: &[&str]) -> ModelCache<'a> {
    let previews = plumb::sample::references(base, &plumb::monitor::Silent).expect("references");
    let viewed = plumb::dataset::viewed(&[], &previews);
    ModelCache::open_of(base, store, captions.iter().copied(), &viewed).expect("a store")
}

/// The latents of the one reference that previews are made beside.
pub(crate) fn reference(base: &BaseModel, source: &ModelCache<'_>) -> Tensor {
    let previews = plumb::sample::references(base, &plumb::monitor::Silent).expect("references");
    let reference = &previews[0].reference;
    let latents = source.reader.reference(reference, reference.views[0]);
    let latents = source.geometry.normalize(&latents.expect("encoded"));
    latents.and_then(|t| t.unsqueeze(0)).expect("latents")
}

/// Contexts, latents and pixels, alone and beside a reference, with guidance, and with the shift that goes by tokens and steps.
#[test]
fn klein_is_what_its_pipeline_makes() {
    let (world, golden) = (world(), of_diffusers());
    world.edit(
        "]\nsteps = 2",
        "]\nreferences = [\"edit.png\"]\nwidth = 64\nheight = 64\nsteps = 6",
    );
    // `edit_pixel` of the golden's script.
    let pixel = |x: u32, y: u32, c: u32| ((x * (c + 1) * 3 + y * 5) % 256) as u8;
    let edit = RgbImage::from_fn(100, 67, |x, y| Rgb([0, 1, 2].map(|c| pixel(x, y, c))));
    edit.save(world.path("edit.png")).expect("saved");
    world.run(&["encode", "exp.toml"]).expect(0);
    let base = world.base();
    let store = Store::open_or_create(&world.path("store")).expect("a store");
    let source = cache(&base, &store, &[CAPTION, ""]);
    let said = conditioning(&source, CAPTION);
    let empty = source.outputs("").expect("encoded");
    let all: BTreeSet<&str> = empty.keys().map(String::as_str).collect();
    let dropped = drop_caption(source.recipe, &empty, Some(&empty), &all).expect("outputs");
    let nothing = assemble(source.recipe, &dropped, source.context_width).expect("assembled");
    for (n, made) in [&said, &nothing].into_iter().enumerate() {
        assert_eq!(made.context.dims(), [512, 48]);
        let every_eighth = Tensor::arange_step(0u32, 512, 8, &Device::Cpu).expect("rows");
        let rows = made.context.index_select(&every_eighth, 0).expect("rows");
        let theirs = golden["context"].get(n).expect("a row");
        close("context", &rows, &theirs, 2e-5);
    }
    let denoiser = base.denoiser.load(&Placement::default()).expect("loads");
    let latents = sample_from(
        denoiser.as_ref(),
        &Bound::none(),
        golden["noise"].clone(),
        &said,
        Some(&nothing),
        &previews::options(&base),
        &|| (),
    );
    let latents = latents.expect("sampled");
    // diffusers' are scaled back already.
    let scaled = source.geometry.denormalize(&latents).expect("scaled");
    close("latents", &scaled, &golden["latents"], 1e-3);
    let beside = SampleOptions {
        reference: Some(reference(&base, &source)),
        ..previews::options(&base)
    };
    let latents = sample_from(
        denoiser.as_ref(),
        &Bound::none(),
        golden["noise"].clone(),
        &said,
        Some(&nothing),
        &beside,
        &|| (),
    );
    let scaled = source.geometry.denormalize(&latents.expect("sampled"));
    let scaled = scaled.expect("scaled");
    close("edited latents", &scaled, &golden["edit.latents"], 1e-3);
    let decoder = base.vae.load_decoder(&Device::Cpu, &Kernels::NONE);
    let mut pixels = Vec::new();
    let decoded = decoder
        .expect("the VAE")
        .decode(&golden["latents"], &mut |picture| {
            pixels.push(picture.clamp(-1f32, 1f32)?);
            Ok(())
        });
    decoded.expect("a picture");
    close("pixels", &pixels[0], &golden["pixels"], 1e-4);
}

#[test]
fn recipe_diff_shows_what_the_script_of_diffusers_does() {
    let world = world();
    let ran = world.run(&[
        "recipe",
        "diff",
        "flux2/klein-base-4b",
        "flux2/klein-base-4b:diffusers-script",
    ]);
    ran.says("qwen3.forward.hidden_layers")
        .says("[9, 18, 27]")
        .says("[10, 20, 30]");
}

/// A cache that diffusers' own code made with the layers of its script, as a folder of safetensors and under musubi-tuner's names.
#[test]
fn an_audit_names_a_cache_of_other_layers() {
    let world = world();
    let script = of_diffusers()["script"].clone();
    for (folder, name, tensor, like) in [
        ("plain", "p2", "prompt_embeds", "diffusers-script"),
        ("musubi", "p2_f2k4b_te", "ctx_vec_bfloat16", "musubi"),
    ] {
        std::fs::create_dir(world.path(folder)).expect("a folder");
        let path = world.path(&format!("{folder}/{name}.safetensors"));
        let entry = HashMap::from([(tensor, script.clone())]);
        // By which musubi-tuner's files are known.
        let musubi = [
            ("architecture", "flux_2_klein_4b"),
            ("caption1", CAPTION),
            ("format_version", "1.0.1"),
        ];
        let of_musubi = musubi.iter().filter(|_| like == "musubi");
        let metadata = of_musubi.map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let bytes = safetensors::serialize(&entry, Some(metadata.collect())).expect("a file");
        std::fs::write(path, bytes).expect("written");
        let args = ["--json", "audit", folder, "exp.toml", "--device", "cpu"];
        let report = world.run(&args).expect(3).json();
        let found = &report["encoders"][0];
        assert_eq!(
            (&found["slot"], &found["verdict"]),
            (&"qwen3".into(), &"reproduced".into()),
            "{found}"
        );
        assert_eq!(found["like"], like, "{found}");
        world
            .run(&["audit", folder, "exp.toml", "--device", "cpu"])
            .expect(3)
            .says("diffusers-script")
            .says("expects forward.hidden_layers 9+18+27 (here: 10+20+30)");
    }
}

/// Joined to channels and scaled, as musubi-tuner and ai-toolkit keep them.
#[test]
fn an_audit_knows_latents_whose_patches_were_joined() {
    let world = world();
    world.run(&["encode", "exp.toml"]).expect(0);
    world
        .run(&["train", "exp.toml", "--dump-step", "1", "step.safetensors"])
        .expect(0);
    std::fs::create_dir(world.path("cache")).expect("a folder");
    let of_all = tensors(&world, "step.safetensors")["latents"].clone();
    let (b, c, h, w) = of_all.dims4().expect("latents");
    let joined = of_all
        .reshape((b, c, h / 2, 2, w / 2, 2))
        .and_then(|t| {
            t.permute((0, 1, 3, 5, 2, 4))?
                .reshape((b, 4 * c, h / 2, w / 2))
        })
        .expect("joined");
    // Which pictures the step drew is not told: each file is of one of the three.
    for n in 0..3 {
        let entry = HashMap::from([("latents", joined.get(0).expect("one"))]);
        let path = world.path(&format!("cache/p{n}.safetensors"));
        candle_core::safetensors::save(&entry, path).expect("saved");
    }
    let args = ["--json", "audit", "cache", "exp.toml", "--device", "cpu"];
    let report = world.run(&args).json();
    let latents = &report["pictures"];
    assert_eq!(latents["compared"], 3, "{report}");
    assert_eq!(latents["scaling"][0], serde_json::json!(["of_denoiser", 1]));
    assert_eq!(latents["moment"][0], serde_json::json!(["mean", 1]));
    assert_eq!(latents["others"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_vae_without_the_batch_norm_is_refused() {
    let world = world();
    let file = "klein/vae/diffusion_pytorch_model.safetensors";
    let mut weights = tensors(&world, file);
    weights.remove("bn.running_var").expect("a tensor");
    candle_core::safetensors::save(&weights, world.path(file)).expect("saved");
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("tensor `bn.running_var` is missing from");
    let class = String::from_utf8(world.read("klein/vae/config.json")).expect("UTF-8");
    world.write(
        "klein/vae/config.json",
        &class.replace("AutoencoderKLFlux2", "AutoencoderKL"),
    );
    world
        .run(&["encode", "exp.toml"])
        .expect(2)
        .says("a batch norm (`bn.running_mean`, `bn.running_var`), by which its latents are scaled, and this one has none");
    let ones = Tensor::ones(16, DType::F32, &Device::Cpu).expect("ones");
    let negative = ones.affine(-1.0, 0.0).expect("negative");
    weights.insert("bn.running_var".to_owned(), negative);
    candle_core::safetensors::save(&weights, world.path(file)).expect("saved");
    world.write("klein/vae/config.json", &class);
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("`bn.running_var`: expected variances of at least 0, found -1");
}

/// The mistake that a cache of another trainer was reported with: 9B's denoiser and 4B's text encoder.
#[test]
fn a_text_encoder_of_another_size_is_refused() {
    let world = world();
    world.edit(
        "[store]",
        "[recipe.deviate]\nqwen3.forward.hidden_layers = [9, 18]\n[store]",
    );
    world.run(&["encode", "exp.toml"]).expect(2).says(
        "the recipe's `assembly.context` does not fit this checkpoint's denoiser: expected rows of 48 numbers, found 32 of qwen3",
    );
}

#[test]
fn a_vae_without_a_config_whose_norms_have_other_groups_is_refused_by_name() {
    let world = world();
    std::fs::remove_file(world.path("klein/vae/config.json")).expect("removed");
    world
        .run(&["encode", "exp.toml"])
        .expect(2)
        .says("klein/vae: it has no config.json, so that its norms are taken to have 32 groups");
}

//! Wan 2.2's two experts, on a random miniature: each trained in its part of the noise levels, both sampled with, neither taken for another
//! model; and UniPC on a network against diffusers' pipeline (`tools/goldens/wan_pipeline.py`).

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use plumb::base_model::BaseModel;
use plumb::cache::Conditioning;
use plumb::diffusion::Band;
use plumb::experiment::Experiment;
use plumb::lora::Bound;
use plumb::models::Placement;
use plumb::nn::weights::DigestMemo;
use plumb::sample::{Sampling, previews};

use crate::wan::{tensors, world as world_of_21};
use crate::world::World;

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// The world of Wan 2.1, with a second network beside the first: its numbers times 1.25.
fn world() -> World {
    let world = world_of_21();
    let config = world.read("wan/transformer/config.json");
    world.write_bytes("wan/transformer_2/config.json", &config);
    let first = tensors(&world, &format!("wan/transformer/{WEIGHTS}"));
    let larger = |tensor: Tensor| tensor.to_dtype(DType::F32)? * 1.25;
    let second = first
        .into_iter()
        .map(|(name, tensor)| (name, larger(tensor).expect("a tensor")));
    let second: HashMap<String, Tensor> = second.collect();
    let path = world.path(&format!("wan/transformer_2/{WEIGHTS}"));
    candle_core::safetensors::save(&second, path).expect("saved");
    world
}

fn high(world: &World) {
    world.edit("\"t2v-1.3b\"", "\"2.2-t2v-a14b-high\"");
    world.edit("\nsteps = 2", "\nsteps = 4");
    world.edit("steps = 3\nsample_every", "steps = 2\nsample_every");
    world.edit("sample_every = 3", "sample_every = 2");
}

#[test]
fn each_expert_is_trained_at_its_levels_and_both_are_sampled_with() {
    let world = world();
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("it holds two experts (`transformer/` and `transformer_2/`), so it is of flavor `2.2-t2v-a14b-high` or `2.2-t2v-a14b-low`");
    high(&world);
    world.run(&["encode", "exp.toml"]).expect(0);
    let train = |step: &str, from: f64, to: f64| {
        let dump = ["--dump-step", step, "step.safetensors"];
        let ran = world.run(&[&["train", "exp.toml"], &dump[..]].concat());
        ran.expect(0)
            .says(&format!(
                "this expert is for noise levels from {from} to {to}"
            ))
            .says("steered away from the authors' negative prompt");
        let sigmas = &tensors(&world, "step.safetensors")["sigma"];
        let sigmas = sigmas
            .flatten_all()
            .and_then(|s| s.to_vec1::<f32>())
            .expect("numbers");
        assert!(
            sigmas.iter().all(|s| (from..=to).contains(&f64::from(*s))),
            "{sigmas:?}"
        );
    };
    train("1", 0.875, 1.0);
    world
        .run(&["inspect", "lora", "out/lora.safetensors"])
        .expect(0)
        .says("2.2-t2v-a14b-high");
    // Previews passed through both experts, so they need both.
    assert!(world.path("out/previews/step-00000002.webp").is_file());

    world.edit("-high\"", "-low\"");
    world.edit("output = \"out\"", "output = \"low\"");
    world.edit("rank = 2", "rank = 2\nfrom = \"out/lora.safetensors\"");
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("it says that it is of flavor `2.2-t2v-a14b-high`, and the Experiment is of `2.2-t2v-a14b-low`");
    world.edit("\nfrom = \"out/lora.safetensors\"", "");
    train("2", 0.0, 0.875);

    let sample = |loras: &[&str]| {
        let args = ["sample", "exp.toml", "--out", "made"];
        let loras = loras.iter().flat_map(|lora| ["--lora", *lora]);
        let args: Vec<&str> = args.into_iter().chain(loras).collect();
        world.run(&args).expect(0);
        world.read("made/seed0-000.webp")
    };
    let (of_high, of_low) = ("out/lora.safetensors", "low/lora.safetensors");
    let made = [
        sample(&[]),
        sample(&[of_high]),
        sample(&[of_low]),
        sample(&[of_low, of_high]),
    ];
    for (n, one) in made.iter().enumerate() {
        assert!(!made[..n].contains(one), "{n} is as one before");
    }
    // Whichever expert the Experiment is of, a sample is the same.
    world.edit("-low\"", "-high\"");
    assert!(sample(&[of_high, of_low]) == made[3]);
}

#[test]
fn what_is_sampled_with_two_experts_is_said_and_checked() {
    let world = world();
    high(&world);
    let sample = || {
        let args = ["sample", "exp.toml", "--out", "made"];
        let ran = world.run(&args).expect(0);
        (world.read("made/seed0-000.webp"), ran)
    };
    let (steered, ran) = sample();
    ran.says("steered away from the authors' negative prompt");
    world
        .run(&["model", "check", "wan"])
        .expect(0)
        .says("2.2-t2v-a14b-high or 2.2-t2v-a14b-low")
        .says("transformer_2");
    world
        .run(&["model", "check", "wan", "--for", "exp.toml"])
        .expect(0)
        .says("5 frames of 64 x 64 px")
        .says("for 2 clips at a time and adapters of rank 2");
    world.edit("prompts = ", "negative_prompt = \"\"\nprompts = ");
    assert!(sample().0 != steered, "it was steered away from nothing");
    let copied = std::fs::copy(
        world.path(&format!("wan/transformer/{WEIGHTS}")),
        world.path(&format!("wan/transformer_2/{WEIGHTS}")),
    );
    copied.expect("copied");
    world
        .run(&["sample", "exp.toml"])
        .expect(2)
        .says("are two networks");
}

/// One network, and two, take the steps that diffusers' pipeline takes.
#[test]
fn samples_are_those_of_the_pipeline_of_diffusers() {
    let golden =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/wan_pipeline.safetensors");
    let golden = candle_core::safetensors::load(golden, &Device::Cpu).expect("the golden");
    let world = world();
    high(&world);
    world.edit(
        "steps = 4",
        "steps = 8\nshift = 3.0\nwidth = 64\nheight = 64",
    );
    let experiment = Experiment::open(&world.path("exp.toml"), &Default::default()).expect("valid");
    let mut memo = DigestMemo::open(&world.path("memo.json"));
    let base = BaseModel::open(&experiment, &mut memo).expect("the miniature");
    let other = base.other_expert().expect("found").expect("an expert");
    let captions = ["caption", "negative"].map(|name| {
        let rows = &golden[name];
        let pads = 512 - rows.dim(0).expect("rows");
        Conditioning {
            context: rows.pad_with_zeros(0, 0, pads).expect("padded"),
            pooled: Tensor::zeros(0, DType::F32, &Device::Cpu).expect("nothing"),
            token_count: None,
        }
    });
    let [first, second] = [&*base.denoiser, &other.denoiser]
        .map(|opened| opened.load(&Placement::default()).expect("loads"));
    let options = previews::options(&base);
    let (high, low) = (base.flavor.expert, other.flavor.expert);
    let levels = [high, low].map(|expert| expert.expect("an expert").levels);
    for (name, stages) in [
        ("one", vec![(&first, Band::WHOLE, 4.0)]),
        (
            "two",
            vec![(&first, levels[0], 4.0), (&second, levels[1], 3.0)],
        ),
    ] {
        let noise = golden["noise"].clone();
        let started = Sampling::start(noise, &captions[0], Some(&captions[1]), &options);
        let mut sampling = started.expect("started");
        for (network, levels, guidance) in stages {
            let with = (network.as_ref(), &Bound::none());
            let advanced = sampling.advance(with, (levels, guidance), &|| ());
            advanced.expect("sampled");
        }
        let made = sampling.finish().expect("all steps");
        let (theirs, off) = (&golden[name], |a: &Tensor, b: &Tensor| {
            (a - b)?.abs()?.max_all()?.to_scalar::<f32>()
        });
        let scale = theirs
            .abs()
            .and_then(|t| t.max_all()?.to_scalar::<f32>())
            .expect("a scale");
        let error = off(&made, theirs).expect("a distance") / scale;
        assert!(error < 1e-5, "{name}: off by {error}");
    }
}

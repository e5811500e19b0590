//! Wan 2.2's two experts, on a random miniature: each trained in its part of the noise levels, both sampled with, neither taken for another
//! model; and UniPC on a network against diffusers' pipeline (`tools/goldens/wan_pipeline.py`).

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use plumb::cache::Conditioning;
use plumb::diffusion::Band;
use plumb::lora::Bound;
use plumb::models::Placement;
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
            .says("steered away from the authors' negative prompt")
            .says("the other expert in previews");
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
        world.sampled("made/seed0-000.webp")
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
    both_in_one_file(&world, [of_high, of_low], &|lora| {
        sample(&[lora]) == made[3]
    });
}

/// As ai-toolkit writes them where `split_multistage_loras` is off.
fn both_in_one_file(world: &World, loras: [&str; 2], is_the_same: &dyn Fn(&str) -> bool) {
    let mut all = HashMap::new();
    for (lora, part) in loras.into_iter().zip(["transformer_1", "transformer_2"]) {
        let export = ["export", "lora", lora, "--format", "ai-toolkit", "--out"];
        world
            .run(&[&export[..], &["one.safetensors"]].concat())
            .expect(0);
        for (name, tensor) in tensors(world, "one.safetensors") {
            let name = name.replace("diffusion_model.", &format!("diffusion_model.{part}."));
            all.insert(name, tensor);
        }
    }
    let save = |tensors: &HashMap<String, Tensor>, to: &str| {
        candle_core::safetensors::save(tensors, world.path(to)).expect("saved");
    };
    save(&all, "both.safetensors");
    assert!(is_the_same("both.safetensors"));
    let import = |more: &[&str]| {
        let import = ["import", "lora", "both.safetensors"];
        world.run(&[&import[..], more].concat())
    };
    import(&[]).expect(1).says(
        "adapters of two experts in one file, `transformer_1.` for high noise and `transformer_2.` for low noise, expected those of one",
    );
    import(&["--expert", "low_noise"]).expect(0);
    let low = tensors(world, "both-low_noise-diffusers.safetensors");
    let own = tensors(world, loras[1]);
    for (name, tensor) in &low {
        let off = (tensor - &own[name]).and_then(|d| d.abs()?.max_all()?.to_scalar::<f32>());
        assert_eq!(off.expect("a number"), 0.0, "{name}");
    }
    assert_eq!(low.len(), own.len());
    // One half alone says whose it is; names of both kinds are of nobody.
    all.retain(|name, _| name.contains(".transformer_2."));
    save(&all, "half.safetensors");
    let half = [
        "import",
        "lora",
        "half.safetensors",
        "--expert",
        "high_noise",
    ];
    let said = "expected adapters of expert high_noise, found those of low_noise alone";
    world.run(&half).expect(1).says(said);
    let first = all.keys().next().expect("a tensor").clone();
    let tensor = all.remove(&first).expect("a tensor");
    all.insert(first.replace(".transformer_2.", "."), tensor);
    save(&all, "half.safetensors");
    world
        .run(&half)
        .expect(1)
        .says("which are whose is not known");
}

/// Both networks with one head of the 128 channels that a single file is taken to have: every channel of the miniature eight times.
fn widen(world: &World) {
    let wide = |name: &str, tensor: Tensor| -> candle_core::Result<Tensor> {
        // What comes from the frequencies and the caption, and what goes to the latents.
        let stays = match name {
            _ if name.starts_with("proj_out.") => Some(0),
            "condition_embedder.text_embedder.linear_1.weight"
            | "condition_embedder.time_embedder.linear_1.weight" => Some(1),
            _ => None,
        };
        let sizes = tensor.dims().iter().enumerate();
        let times = sizes.map(
            |(at, size)| match [16, 96].contains(size) && stays != Some(at) {
                true => 8,
                false => 1,
            },
        );
        let times: Vec<usize> = times.collect();
        let scale = match times[..] {
            [_, inputs] => 1.0 / inputs as f64,
            _ => 1.0,
        };
        tensor.to_dtype(DType::F32)?.repeat(times)? * scale
    };
    for folder in ["transformer", "transformer_2"] {
        let file = format!("wan/{folder}/{WEIGHTS}");
        let tensors = tensors(world, &file).into_iter();
        let tensors = tensors.map(|(name, tensor)| {
            let tensor = wide(&name, tensor).and_then(|t| t.contiguous());
            (name, tensor.expect("a tensor"))
        });
        let tensors: HashMap<String, Tensor> = tensors.collect();
        candle_core::safetensors::save(&tensors, world.path(&file)).expect("saved");
        let config = format!("wan/{folder}/config.json");
        let text = String::from_utf8(world.read(&config)).expect("UTF-8");
        let text = text.replace("\"attention_head_dim\": 8", "\"attention_head_dim\": 128");
        let text = text.replace("\"num_attention_heads\": 2", "\"num_attention_heads\": 1");
        world.write(&config, &text);
    }
}

/// As ComfyUI has them: two networks, a text encoder and a VAE, each one file, the networks under the names of the authors' code.
#[test]
fn both_experts_as_single_files_make_what_the_folder_makes() {
    let world = world();
    high(&world);
    world.edit("sample_every = 2", "sample_every = 0");
    let sample = |out: &str| {
        world.run(&["sample", "exp.toml", "--out", out]).expect(0);
        world.sampled(&format!("{out}/seed0-000.webp"))
    };
    widen(&world);
    let of_folder = sample("folder");
    let authors = [
        ("attn1.norm_", "self_attn.norm_"),
        ("attn2.norm_", "cross_attn.norm_"),
        ("attn1.to_out.0", "self_attn.o"),
        ("attn2.to_out.0", "cross_attn.o"),
        ("attn1.to_", "self_attn."),
        ("attn2.to_", "cross_attn."),
        ("ffn.net.0.proj", "ffn.0"),
        ("ffn.net.2", "ffn.2"),
        (".norm2.", ".norm3."),
        (
            "condition_embedder.time_embedder.linear_1",
            "time_embedding.0",
        ),
        (
            "condition_embedder.time_embedder.linear_2",
            "time_embedding.2",
        ),
        ("condition_embedder.time_proj", "time_projection.1"),
        (
            "condition_embedder.text_embedder.linear_1",
            "text_embedding.0",
        ),
        (
            "condition_embedder.text_embedder.linear_2",
            "text_embedding.2",
        ),
        ("proj_out", "head.head"),
    ];
    let file = |name: &str| format!("wan2.2_t2v_{name}_noise_14B.safetensors");
    for (folder, name) in [("transformer", "high"), ("transformer_2", "low")] {
        let own = tensors(&world, &format!("wan/{folder}/{WEIGHTS}"));
        let renamed = own.into_iter().map(|(name, tensor)| {
            let name = authors
                .iter()
                .fold(name, |name, (from, to)| name.replace(from, to));
            let name = match name.as_str() {
                "scale_shift_table" => "head.modulation".to_owned(),
                _ => name.replace("scale_shift_table", "modulation"),
            };
            (name, tensor)
        });
        let renamed: HashMap<String, Tensor> = renamed.collect();
        candle_core::safetensors::save(&renamed, world.path(&file(name))).expect("saved");
        std::fs::remove_dir_all(world.path(&format!("wan/{folder}"))).expect("removed");
    }
    let high = file("high");
    world.edit("path = \"wan\"", &format!("path = {high:?}"));
    let files = "[model.files]\nvae = \"wan/vae\"\numt5 = \"wan/text_encoder\"\numt5_tokenizer = \"wan/tokenizer\"\n";
    world.edit("[recipe]", &format!("{files}[recipe]"));
    world.run(&["sample", "exp.toml"]).expect(2).says(
        "add low_noise = \"...\" (the file of flavor `2.2-t2v-a14b-low`) under [model.files]",
    );
    let low = format!("[model.files]\nlow_noise = {:?}", file("low"));
    world.edit("[model.files]", &low);
    assert!(sample("files") == of_folder);
    world.edit(&low, &low.replace("_low_", "_high_"));
    world.run(&["sample", "exp.toml"]).expect(1).says(
        "by its name it is of flavor `2.2-t2v-a14b-high`, and flavor `2.2-t2v-a14b-low` is another network",
    );
}

#[test]
fn what_is_sampled_with_two_experts_is_said_and_checked() {
    let world = world();
    high(&world);
    let sample = || {
        let args = ["sample", "exp.toml", "--out", "made"];
        let ran = world.run(&args).expect(0);
        (world.sampled("made/seed0-000.webp"), ran)
    };
    let (steered, ran) = sample();
    ran.says("steered away from the authors' negative prompt");
    world
        .run(&["model", "check", "wan"])
        .expect(0)
        .says("2.2-t2v-a14b-high or 2.2-t2v-a14b-low")
        .says("transformer_2")
        .says("the other expert in previews");
    world
        .run(&["model", "check", "wan", "--for", "exp.toml"])
        .expect(0)
        .says("5 frames of 64 x 64 px")
        .says("for 2 clips at a time and adapters of rank 2")
        .says("the other expert in previews");
    world.edit("sample_every = 2", "sample_every = 0");
    let alone = world.run(&["model", "check", "wan", "--for", "exp.toml"]);
    let alone = alone.expect(0).stdout;
    assert!(!alone.contains("the other expert"), "{alone}");
    let index = |ratio: &str| {
        let text = format!("{{\"_class_name\": \"WanPipeline\", \"boundary_ratio\": {ratio}}}");
        world.write("wan/model_index.json", &text);
    };
    index("0.9");
    world.run(&["sample", "exp.toml"]).expect(1).says(
        "model_index.json: `boundary_ratio`: expected 0.875, the noise level at which flavor `2.2-t2v-a14b-high` and the other network change, found 0.9",
    );
    index("0.875");
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
    let base = world.base();
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

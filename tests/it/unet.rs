//! SDXL and Stable Diffusion 1.5: whole pipelines on miniatures put together from the encoders and the VAE of
//! assets/tiny-sd3 and a UNet of `tools/goldens/unet.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use plumb::diffusion::{Level, LossWeighting, Prediction, Process, add_noise};
use plumb::lora::{AdapterSet, Recompute};
use plumb::models::{self, ConditioningTensors};
use plumb::nn::Kernels;
use plumb::optim::{Optimizer, OptimizerOptions};
use plumb::train::inputs::DenoiserBatch;
use plumb::train::step::Pass;
use serde_json::Value;

use crate::world::{World, tiny_sd3};

struct Golden {
    tensors: HashMap<String, Tensor>,
    config: String,
}

impl Golden {
    fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}"));
        let bytes = std::fs::read(&path).expect("the golden");
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
        let config = header.metadata().as_ref().expect("metadata")["config"].clone();
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu).expect("tensors");
        Self { tensors, config }
    }

    fn get(&self, name: &str) -> Tensor {
        self.tensors[&format!("golden.curve.{name}")].clone()
    }

    /// Writes the UNet as diffusers would, below `folder`.
    fn write(&self, folder: &Path) {
        let unet = folder.join("unet");
        std::fs::create_dir_all(&unet).expect("a folder");
        std::fs::write(unet.join("config.json"), &self.config).expect("written");
        let own = self
            .tensors
            .iter()
            .filter(|(n, _)| !n.starts_with("golden."));
        let own: HashMap<_, _> = own.map(|(n, t)| (n.clone(), t.clone())).collect();
        let file = unet.join("diffusion_pytorch_model.safetensors");
        candle_core::safetensors::save(&own, file).expect("written");
    }
}

/// A world whose base model is of this family.
fn world(family: &str, flavor: &str, golden: &str) -> World {
    let world = World::new();
    for part in [
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "vae",
    ] {
        world.copy_folder(&tiny_sd3().join(part), &format!("base/{part}"));
    }
    Golden::read(golden).write(&world.path("base"));
    let experiment = World::experiment()
        .replace("family = \"sd3\"", &format!("family = \"{family}\""))
        .replace("flavor = \"3.5-large\"", &format!("flavor = \"{flavor}\""))
        .replace(&format!("{:?}", tiny_sd3().display().to_string()), "\"base\"")
        .replace("seed = 5", "seed = 5\nmin_snr_gamma = 5.0\nnoise_offset = 0.05\nvalidate_every = 4\nvalidation_share = 0.3")
        .replace("rank = 2", "rank = 2\ntargets = [\"attention\", \"conv1\"]");
    world.write("exp.toml", &experiment);
    world
}

fn sdxl() -> World {
    world("sdxl", "base-1.0", "unet_world.safetensors")
}

fn sd1() -> World {
    world("sd1", "1.5", "unet_world_sd1.safetensors")
}

fn tensors(path: PathBuf) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).expect("tensors")
}

#[test]
fn sdxl_is_encoded_trained_resumed_and_sampled() {
    let world = sdxl();
    world
        .run(&["train", "exp.toml"])
        .expect(4)
        .says("plumb encode exp.toml");
    world.run(&["encode", "exp.toml"]).expect(0);
    world
        .run(&["train", "exp.toml", "--dump-step", "1", "step.safetensors"])
        .expect(0);
    let whole = world.read("out/lora.safetensors");
    let lora = tensors(world.path("out/lora.safetensors"));
    assert!(
        lora.keys().all(|name| name.starts_with("unet.")),
        "{:?}",
        lora.keys()
    );
    let shape = |name: &str| lora[name].dims().to_vec();
    let attention = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k";
    assert_eq!(shape(&format!("{attention}.lora_A.weight")), [2, 112]);
    let conv = "unet.up_blocks.0.resnets.1.conv1";
    assert_eq!(shape(&format!("{conv}.lora_A.weight")), [2, 24, 3, 3]);
    assert_eq!(shape(&format!("{conv}.lora_B.weight")), [16, 2, 1, 1]);

    world.train_in_two("3", &whole);

    let picture = |out: &str, sampler: &str| {
        world.edit(
            "steps = 2\n",
            &format!("steps = 2\nsampler = \"{sampler}\"\n"),
        );
        let lora = ["--lora", "out/lora.safetensors"];
        let ran = world.run(&[&["sample", "exp.toml", "--out", out, "--json"], &lora[..]].concat());
        let report: Value = ran.expect(0).json();
        world.edit(&format!("sampler = \"{sampler}\"\n"), "");
        let file = report["pictures"][0]["file"]
            .as_str()
            .expect("a file")
            .to_owned();
        world.read(&file)
    };
    let ancestral = picture("first", "euler_ancestral");
    assert!(
        ancestral == picture("second", "euler_ancestral"),
        "a seed is not enough"
    );
    assert!(ancestral != picture("third", "dpmpp2m_karras"));
}

#[test]
fn a_step_is_told_each_pictures_size_crop_and_bucket() {
    let world = sdxl();
    world.run(&["encode", "exp.toml"]).expect(0);
    let dump = ["--dump-step", "1", "step.safetensors"];
    world
        .run(&[&["train", "exp.toml", "--stop-after", "1"], &dump[..]].concat())
        .expect(0);
    let step = tensors(world.path("step.safetensors"));
    let ids = step["time_ids"].to_vec2::<f32>().expect("numbers");
    // Pictures of 64 high and 64, 80 or 96 wide.
    for told in &ids {
        assert_eq!(told[0], 64.0);
        assert!([64.0, 80.0, 96.0].contains(&told[1]), "{told:?}");
        let latents = step["latents"].dims();
        assert_eq!(
            told[4..],
            [8.0 * latents[2] as f32, 8.0 * latents[3] as f32]
        );
    }
    let steps = step["timestep"].to_vec1::<f32>().expect("numbers");
    assert!(
        steps
            .iter()
            .all(|t| t.fract() == 0.0 && (0.0..1000.0).contains(t)),
        "{steps:?}"
    );
    // Min-SNR of 5 for a network that predicts noise.
    let (sigma, weight) = (&step["sigma"], &step["loss_weight"]);
    let pairs = sigma.to_vec1::<f32>().expect("numbers").into_iter();
    for (take, weight) in pairs.zip(weight.to_vec1::<f32>().expect("numbers")) {
        let ratio = (1.0 - take * take) / (take * take);
        assert!(
            (weight - ratio.min(5.0) / ratio).abs() < 1e-4,
            "{take} {weight}"
        );
    }
}

/// With a convolution's adapter, min-SNR and a noise offset.
#[test]
fn a_dumped_step_of_a_unet_replays_in_diffusers_and_peft() {
    for world in [sdxl(), sd1()] {
        world.run(&["encode", "exp.toml"]).expect(0);
        world.replay_step(3, &world.path("base"));
    }
}

#[test]
fn sd1_is_encoded_trained_and_sampled_with_clip_skip_by_name() {
    let world = sd1();
    world.run(&["encode", "exp.toml"]).expect(0);
    world.edit(
        "[store]",
        "[recipe.deviate]\nclip_l.forward.hidden_layer = -2\n[store]",
    );
    world
        .run(&["train", "exp.toml"])
        .expect(4)
        .says("deviates: clip_l.forward.hidden_layer = -2 instead of -1");
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
    let lora = tensors(world.path("out/lora.safetensors"));
    assert!(
        lora.contains_key(
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
        )
    );
    world
        .run(&["sample", "exp.toml", "--lora", "out/lora.safetensors"])
        .expect(0);
}

#[test]
fn options_of_another_kind_of_model_are_refused_by_name() {
    let world = sdxl();
    for (from, to, why) in [
        (
            "seed = 5",
            "seed = 5\nshift = 3.0",
            "`train.shift`: this option is for models of rectified flow",
        ),
        (
            "seed = 5",
            "seed = 5\ntimestep_sampling = \"logit_normal\"",
            "use `uniform`",
        ),
        (
            "[recipe]",
            "zero_terminal_snr = true\n[recipe]",
            "set `prediction = \"v\"`",
        ),
    ] {
        world.edit(from, to);
        world.run(&["encode", "exp.toml"]).expect(2).says(why);
        world.edit(to, from);
    }
    world.edit(
        "[recipe]",
        "prediction = \"v\"\nzero_terminal_snr = true\n[recipe]",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
    world.run(&["sample", "exp.toml"]).expect(0);

    let flow = World::new();
    flow.edit("seed = 5", "seed = 5\nmin_snr_gamma = 5.0");
    flow.run(&["encode", "exp.toml"])
        .expect(2)
        .says("`train.min_snr_gamma`: this option is for DDPM models");
    flow.edit("\nmin_snr_gamma = 5.0", "");
    flow.edit("steps = 2\n", "steps = 2\nsampler = \"ddim\"\n");
    flow.run(&["sample", "exp.toml"])
        .expect(2)
        .says("use `euler` or `unipc`");
}

/// Losses of 20 steps of AdamW on a LoRA, against diffusers and peft.
#[test]
fn twenty_steps_lose_what_they_lose_in_diffusers_and_peft() {
    let golden = Golden::read("unet_world.safetensors");
    let numbers = |name: &str| golden.get(name).to_vec1::<f32>().expect("numbers");
    let process = Process::new(Prediction::Epsilon);
    check_curve(
        &golden,
        process,
        Some(5.0),
        &numbers("timesteps"),
        &numbers("losses"),
    );
}

/// The same for v-prediction along a schedule that ends in pure noise, a step there included: `tools/goldens/unet_vpred.py`.
#[test]
fn twenty_steps_of_v_prediction_with_pure_noise_too() {
    let golden = Golden::read("unet_world.safetensors");
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/unet_world_vpred.safetensors");
    let curve = candle_core::safetensors::load(path, &Device::Cpu).expect("tensors");
    let numbers = |name: &str| curve[name].to_vec1::<f32>().expect("numbers");
    let process = Process {
        prediction: Prediction::Velocity,
        zero_terminal_snr: true,
    };
    let timesteps = numbers("timesteps");
    assert!(timesteps.contains(&999.0));
    check_curve(&golden, process, None, &timesteps, &numbers("losses"));
}

fn check_curve(
    golden: &Golden,
    process: Process,
    min_snr_gamma: Option<f64>,
    steps: &[f32],
    losses: &[f32],
) {
    let folder = tempfile::tempdir().expect("a folder");
    golden.write(folder.path());
    let family = models::family("sdxl").expect("a family");
    let components = family.components(folder.path()).expect("a model");
    let opened = family.open(components).expect("a UNet");
    let denoiser = opened.load(&models::Placement::default()).expect("loaded");
    let there = |name: &str| golden.tensors.contains_key(&format!("golden.curve.{name}"));
    let chosen = opened
        .linears()
        .iter()
        .filter(|l| there(&format!("{}.lora_A.weight", l.name)));
    let mut adapters = AdapterSet::zeroed(chosen.map(|l| (l.clone(), 4, 4.0))).expect("adapters");
    let values = adapters.tensors().flat_map(|(name, ..)| {
        let flat = golden
            .get(&name)
            .flatten_all()
            .and_then(|t| t.to_vec1::<f32>());
        flat.expect("values")
    });
    let start = values.collect();
    adapters.set_values(start).expect("as many");
    let values = adapters.to_device(&Device::Cpu).expect("values");
    let mut optimizer = Optimizer::new(
        OptimizerOptions::default(),
        adapters.values().len(),
        &Device::Cpu,
    )
    .expect("a state");
    assert_eq!(losses.len(), 20);
    for (i, (&timestep, &expected)) in steps.iter().zip(losses).enumerate() {
        let batch = denoiser_batch(golden, process, min_snr_gamma, (i, f64::from(timestep)));
        let gradient = values.zeros_like().expect("zeros");
        let pass = Pass {
            denoiser: denoiser.as_ref(),
            adapters: &adapters,
            values: &values,
            dropout: (0.0, 0),
            recompute: Recompute::Never,
            offload: false,
        };
        let made = pass
            .backward(&batch, i as u64, 1.0, &gradient)
            .expect("a step");
        let error = (made.loss / f64::from(expected) - 1.0).abs();
        assert!(
            error < 1e-4,
            "step {i}: {} instead of {expected}",
            made.loss
        );
        optimizer
            .step(&Kernels::NONE, &values, &gradient, 1e-2)
            .expect("a step");
    }
}

/// What step `i` of the curve sees.
fn denoiser_batch(
    golden: &Golden,
    process: Process,
    min_snr_gamma: Option<f64>,
    (i, timestep): (usize, f64),
) -> DenoiserBatch {
    let levels = [process.level((timestep + 0.5) / 1000.0)];
    let latents = golden.get("latents");
    let noise = golden.get("noises").narrow(0, i, 1).expect("a noise");
    let number = |f: &dyn Fn(Level) -> f64| {
        Tensor::new(&[f(levels[0]) as f32], &Device::Cpu).expect("a number")
    };
    let mut conditioning = ConditioningTensors::new(golden.get("context"), golden.get("pooled"));
    conditioning.time_ids = Some(golden.get("time_ids"));
    DenoiserBatch {
        noisy: add_noise(&latents, &noise, &levels).expect("noisy"),
        target: process.target(&latents, &noise, &levels).expect("a target"),
        sigmas: number(&|level| level.sigma),
        timesteps: number(&|level| level.timestep),
        weights: number(&|level| process.weight(level, LossWeighting::None, min_snr_gamma)),
        conditioning,
        share: 1.0,
        latents,
        noise,
    }
}

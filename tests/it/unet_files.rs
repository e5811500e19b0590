//! SDXL and Stable Diffusion 1.5 as their authors published them: one file with the original names of every part gives
//! the same LoRA and pictures as the folder that diffusers makes of it.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use plumb::models;
use plumb::rng::{Rng, Stream};
use serde_json::{Value, json};

use crate::layouts::{Tensors, open_clip, original_unet, original_vae, part, prefixed, save};
use crate::single_files::{encoded, is_the_same};
use crate::world::{World, tiny_sd3};

/// What differs between the two.
struct Kind {
    family: &'static str,
    flavor: &'static str,
    golden: &'static str,
    /// The lines that name what no single file has.
    files: &'static [(&'static str, &'static str)],
}

const SDXL: Kind = Kind {
    family: "sdxl",
    flavor: "base-1.0",
    golden: "unet_world.safetensors",
    files: &[
        ("clip_l_config", "text_encoder/config.json"),
        ("clip_g_config", "text_encoder_2/config.json"),
        ("clip_l_tokenizer", "tokenizer"),
        ("vae_config", "vae/config.json"),
    ],
};

const SD1: Kind = Kind {
    family: "sd1",
    flavor: "1.5",
    golden: "unet_world_sd1.safetensors",
    files: &[
        ("clip_l_config", "text_encoder/config.json"),
        ("clip_l_tokenizer", "tokenizer"),
        ("vae_config", "vae/config.json"),
    ],
};

impl Kind {
    /// The config of a miniature whose widths mean in a single file what they mean here: SDXL's heads have 64 channels,
    /// SD1 has 8 heads, norms have 32 groups, and a size has 256 channels.
    fn config(&self) -> Value {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(format!("tests/golden/{}", self.golden));
        let bytes = std::fs::read(path).expect("the golden");
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
        let config = &header.metadata().as_ref().expect("metadata")["config"];
        let mut config: Value = serde_json::from_str(config).expect("JSON");
        config["block_out_channels"] = json!([64, 128]);
        config["norm_num_groups"] = json!(32);
        if self.family == "sdxl" {
            config["attention_head_dim"] = json!([1, 2]);
            config["addition_time_embed_dim"] = json!(256);
            config["projection_class_embeddings_input_dim"] = json!(6 * 256 + 64);
        } else {
            config["attention_head_dim"] = json!(8);
        }
        config
    }

    /// Random weights in bf16 under diffusers' names.
    fn unet(&self, world: &World) -> Tensors {
        world.write("base/unet/config.json", &self.config().to_string());
        let file = world.path("base/unet/diffusion_pytorch_model.safetensors");
        let nothing = Tensor::zeros(1, DType::F32, &Device::Cpu).expect("a tensor");
        save(&HashMap::from([("x".to_owned(), nothing)]), &file);
        let family = models::family(self.family).expect("a family");
        let components = family.components(&world.path("base")).expect("a model");
        let opened = family.open(components).expect("an architecture");
        let tensor = |(n, (name, shape)): (usize, (String, Vec<usize>))| {
            let count = shape.iter().product();
            let inputs: usize = shape[1..].iter().product();
            let (centre, spread) = match shape.len() {
                1 if name.contains("norm") && name.ends_with("weight") => (1.0, 0.1),
                1 => (0.0, 0.1),
                _ => (0.0, 1.0 / (inputs as f64).sqrt()),
            };
            let values = Rng::new(3, Stream::AdapterInit, 0, n as u64).normals(count);
            let made = Tensor::from_vec(values, shape, &Device::Cpu)
                .and_then(|t| t.affine(spread, centre)?.to_dtype(DType::BF16));
            (name, made.expect("a tensor"))
        };
        let made: Tensors = opened
            .tensors()
            .iter()
            .cloned()
            .enumerate()
            .map(tensor)
            .collect();
        save(&made, &file);
        made
    }

    fn world(&self) -> World {
        let world = World::new();
        world.edit("family = \"sd3\"", &format!("family = {:?}", self.family));
        world.edit(
            "flavor = \"3.5-large\"",
            &format!("flavor = {:?}", self.flavor),
        );
        world
    }

    fn point_at(world: &World, path: &str) {
        let bundled = format!("path = {:?}", tiny_sd3().display().to_string());
        world.edit(&bundled, path);
    }

    /// A folder of diffusers, encoded, trained and sampled; and its UNet.
    fn folder(&self) -> (World, Tensors) {
        let (world, unet) = self.new_folder();
        let (captions, pictures) = encoded(&world);
        assert!(
            captions.iter().all(|&n| n == 5) && pictures == 3,
            "{captions:?}"
        );
        world.run(&["train", "exp.toml"]).expect(0);
        world
            .run(&["sample", "exp.toml", "--out", "samples"])
            .expect(0);
        (world, unet)
    }

    /// A folder of diffusers, and its UNet.
    fn new_folder(&self) -> (World, Tensors) {
        let world = self.world();
        for part in [
            "text_encoder",
            "text_encoder_2",
            "tokenizer",
            "tokenizer_2",
            "vae",
        ] {
            world.copy_folder(&tiny_sd3().join(part), &format!("base/{part}"));
        }
        let unet = self.unet(&world);
        Self::point_at(&world, "path = \"base\"");
        (world, unet)
    }

    /// The single file beside configurations and tokenizers.
    fn single(&self, unet: Tensors, encoders: Tensors) -> World {
        let world = self.world();
        let mut all = prefixed(original_unet(unet), "model.diffusion_model.");
        all.extend(prefixed(original_vae(part("vae")), "first_stage_model."));
        all.extend(encoders);
        save(&all, &world.path("model.safetensors"));
        let line = |(key, file): &(&str, &str)| {
            format!(
                "{key} = {:?}\n",
                tiny_sd3().join(file).display().to_string()
            )
        };
        let lines: String = self.files.iter().map(line).collect();
        let path = format!("path = \"model.safetensors\"\n[model.files]\n{lines}");
        Self::point_at(&world, &path);
        world
    }
}

/// A CLIP as the originals keep it, without what they do not have.
fn clip_l(prefix: &str) -> Tensors {
    let mut clip = part("text_encoder");
    clip.remove("text_projection.weight");
    prefixed(clip, prefix)
}

#[test]
fn stabilitys_file_of_sdxl_is_the_folder() {
    let (folder, unet) = SDXL.folder();
    let mut encoders = clip_l("conditioner.embedders.0.transformer.");
    let clip_g = open_clip(part("text_encoder_2"));
    encoders.extend(prefixed(clip_g, "conditioner.embedders.1.model."));
    is_the_same(&folder, &SDXL.single(unet, encoders));
}

#[test]
fn compviss_file_of_sd1_is_the_folder() {
    let (folder, unet) = SD1.folder();
    is_the_same(
        &folder,
        &SD1.single(unet, clip_l("cond_stage_model.transformer.")),
    );
}

/// ComfyUI's marks, as NoobAI's files have them; and the metadata that kohya's scripts write.
#[test]
fn a_single_file_that_says_v_is_trained_as_v() {
    for (kind, version) in [(&SDXL, "sdxl_base_v1-0"), (&SD1, "sd_v1_v")] {
        let (world, unet) = kind.new_folder();
        drop(world);
        let encoders = match kind.family {
            "sdxl" => {
                let mut encoders = clip_l("conditioner.embedders.0.transformer.");
                let clip_g = open_clip(part("text_encoder_2"));
                encoders.extend(prefixed(clip_g, "conditioner.embedders.1.model."));
                let nothing = Tensor::zeros(0, DType::F32, &Device::Cpu).expect("a tensor");
                encoders.insert("v_pred".to_owned(), nothing.clone());
                encoders.insert("ztsnr".to_owned(), nothing);
                encoders
            }
            _ => clip_l("cond_stage_model.transformer."),
        };
        let world = kind.single(unet, encoders);
        if kind.family == "sd1" {
            let tensors = world.read("model.safetensors");
            let tensors = safetensors::SafeTensors::deserialize(&tensors).expect("tensors");
            let says = ("modelspec.prediction_type".to_owned(), "v".to_owned());
            let bytes = safetensors::serialize(tensors.tensors(), Some(HashMap::from([says])));
            world.write_bytes("model.safetensors", &bytes.expect("bytes"));
        }
        // Its text encoders are smaller than the published ones.
        let check = world
            .run(&["model", "check", "model.safetensors"])
            .expect(3);
        assert!(!check.stdout.contains("not read"), "{}", check.stdout);
        check.says("prediction = \"v\"\n");
        world.run(&["encode", "exp.toml"]).expect(0);
        world
            .run(&["train", "exp.toml", "--stop-after", "1"])
            .expect(0)
            .says("the model says that it predicts v");
        world.edit("steps = 4", "steps = 1");
        world.run(&["train", "exp.toml", "--restart"]).expect(0);
        let lora = world.read("out/lora.safetensors");
        let (_, header) = safetensors::SafeTensors::read_metadata(&lora).expect("a header");
        let found = header.metadata().clone().expect("metadata");
        let zero = if kind.family == "sdxl" {
            "True"
        } else {
            "False"
        };
        assert_eq!(found["modelspec.prediction_type"], "v");
        assert_eq!(found["ss_zero_terminal_snr"], zero);
        assert_eq!(found["ss_base_model_version"], version);
    }
}

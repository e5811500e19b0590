//! From a folder with such a model to a LoRA and pictures, by the verbs of the library.

#![expect(clippy::disallowed_methods, reason = "fixtures need no durable writes")]

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage};

use super::{FAKE, TIME_CHANNELS};
use crate::convert::{ReadLora, read_lora};
use crate::encode::{self, EncodeOptions, Selection};
use crate::experiment::Experiment;
use crate::inspect;
use crate::models::{self, Placement};
use crate::monitor::{Silent, never};
use crate::nn::Kernels;
use crate::nn::weights::DigestMemo;
use crate::rng::{Rng, Stream};
use crate::sample::{self, LoraUse};
use crate::train::{self, TrainOptions};

/// The bundled miniature's latents, and the width of its CLIP.
const CHANNELS: usize = 16;
const HIDDEN: usize = 24;
const POOLED: usize = 48;

fn write_denoiser(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let config = format!(
        r#"{{"_class_name": "FakePixels", "channels": {CHANNELS}, "hidden": {HIDDEN}, "pooled": {POOLED}}}"#
    );
    std::fs::write(folder.join("config.json"), config).unwrap();
    let mut tensors = HashMap::new();
    for (number, (name, outputs, inputs)) in [
        ("to_hidden", HIDDEN, CHANNELS),
        ("time", HIDDEN, TIME_CHANNELS),
        ("caption", HIDDEN, POOLED),
        ("to_pixels", CHANNELS, HIDDEN),
    ]
    .into_iter()
    .enumerate()
    {
        let values = Rng::new(7, Stream::AdapterInit, 0, number as u64).normals(outputs * inputs);
        let weight = Tensor::from_vec(values, (outputs, inputs), &Device::Cpu).unwrap();
        let weight = weight.affine(0.2, 0.0).unwrap();
        let bias = Tensor::zeros(outputs, weight.dtype(), &Device::Cpu).unwrap();
        tensors.insert(format!("{name}.weight"), weight);
        tensors.insert(format!("{name}.bias"), bias);
    }
    let file = folder.join("diffusion_pytorch_model.safetensors");
    candle_core::safetensors::save(&tensors, file).unwrap();
}

/// A model whose encoder, tokenizer and VAE are those of the bundled SD3, two pictures, and an Experiment.
fn write_world(folder: &Path) -> Experiment {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-sd3");
    for part in ["vae", "text_encoder", "tokenizer"] {
        let to = folder.join("base").join(part);
        std::fs::create_dir_all(&to).unwrap();
        for file in std::fs::read_dir(bundled.join(part)).unwrap() {
            let file = file.unwrap().path();
            std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
        }
    }
    write_denoiser(&folder.join("base/transformer"));
    std::fs::create_dir(folder.join("pictures")).unwrap();
    for (name, color) in [("a", [200, 30, 30]), ("b", [30, 30, 200])] {
        let picture = RgbImage::from_pixel(64, 64, Rgb(color));
        picture
            .save(folder.join(format!("pictures/{name}.png")))
            .unwrap();
        std::fs::write(folder.join(format!("pictures/{name}.txt")), name).unwrap();
    }
    let text = r#"
[model]
family = "fake"
flavor = "only"
path = "base"

[store]
path = "store"

[[dataset]]
path = "pictures"
resolution = 64
bucket_step = 16

[adapter]
rank = 2

[train]
output = "out"
steps = 30
batch_size = 2
learning_rate = 0.02

[sample]
prompts = ["a"]
"#;
    let file = folder.join("exp.toml");
    std::fs::write(&file, text).unwrap();
    Experiment::open(&file, &Default::default()).unwrap()
}

#[test]
fn a_family_that_is_added_in_one_place_goes_the_whole_way() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = write_world(folder.path());
    let mut memo = DigestMemo::open(&folder.path().join("memo.json"));
    let options = EncodeOptions {
        device: Device::Cpu,
        kernels: Kernels::NONE,
        resident_limit_bytes: u64::MAX,
        wait: std::time::Duration::ZERO,
        clock: || 0.0,
        stop: never,
    };

    let encoded = encode::run(
        &experiment,
        Selection::default(),
        &options,
        &mut memo,
        &Silent,
    )
    .unwrap();
    assert_eq!(encoded.captions.len(), 1);

    let placement = Placement::default();
    let options_of_training = TrainOptions {
        restart: false,
        dump_step: None,
        stop_after: None,
        clock: || 0.0,
        placement,
        memory_bytes: 1 << 30,
        wait: std::time::Duration::ZERO,
        stop: never,
    };
    let trained = train::run(&experiment, &options_of_training, &mut memo, &Silent).unwrap();
    assert_eq!((trained.modules, trained.step), (4, 30));
    let lora = trained.lora.unwrap();

    let read = read_lora(&lora, &ReadLora::default()).unwrap();
    assert_eq!(read.lora.naming.family, "fake");
    let drawn = folder.path().join("drawn");
    let draw = |lora: Option<&Path>, name: &str| {
        let folder = drawn.join(name);
        let used = lora.map(|path| LoraUse::parse(path.to_owned()).unwrap());
        let used: Vec<_> = used.into_iter().collect();
        let report = sample::run(
            &experiment,
            &used,
            &folder,
            (&options, 1 << 30),
            &mut memo_of(&drawn),
            &Silent,
        );
        std::fs::read(&report.unwrap().pictures[0].file).unwrap()
    };
    assert!(draw(None, "before") != draw(Some(&lora), "after"));

    let base = folder.path().join("base");
    let opened = models::detect(&base).unwrap();
    assert_eq!(opened.family.name, FAKE.name);
    let report = inspect::model::check(&base, None).unwrap();
    assert_eq!((report.family, report.problems), (Some("fake"), Vec::new()));
    assert_eq!(report.recipes, ["fake/only"]);
}

fn memo_of(folder: &Path) -> DigestMemo {
    std::fs::create_dir_all(folder).unwrap();
    DigestMemo::open(&folder.join("memo.json"))
}

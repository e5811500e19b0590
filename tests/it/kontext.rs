//! FLUX.1 Kontext from pairs of pictures to a LoRA, on the bundled miniature of FLUX.1: its weights are dev's, which have the same shapes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use plumb::dataset::OwnSize;
use plumb::experiment::Experiment;
use plumb::lora::Bound;
use plumb::models::Placement;
use plumb::recipe::latents::Size;
use plumb::sample::{SampleOptions, previews, sample_from};
use plumb::store::Store;

use crate::klein::{cache, conditioning, reference};
use crate::peers::Script;
use crate::tiny_world::close;
use crate::world::{World, tiny_sd3};

fn tiny_flux() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-flux")
}

/// Three captioned pictures in `pictures`, and a reference of each in `references`.
pub(crate) fn world() -> World {
    let world = World::new();
    std::fs::create_dir(world.path("references")).expect("a folder");
    for (n, color) in [[90, 10, 10], [10, 90, 10], [10, 10, 90]]
        .into_iter()
        .enumerate()
    {
        let width = 64 + 16 * n as u32;
        world.picture(&format!("references/p{n}.jpg"), width, 64, color);
    }
    for (from, to) in [
        (
            format!("path = {:?}", tiny_sd3().display().to_string()),
            format!("path = {:?}", tiny_flux().display().to_string()),
        ),
        (
            "family = \"sd3\"".to_owned(),
            "family = \"flux1\"".to_owned(),
        ),
        ("\"3.5-large\"".to_owned(), "\"kontext\"".to_owned()),
        (
            "path = \"pictures\"".to_owned(),
            "path = \"pictures\"\nreferences = \"references\"".to_owned(),
        ),
    ] {
        world.edit(&from, &to);
    }
    world
}

/// How many pixels of a written picture are about of a colour.
fn pixels_of(world: &World, path: &str, color: [u8; 3]) -> usize {
    let picture = image::open(world.path(path))
        .expect("a picture")
        .into_rgb8();
    let near = |p: &&image::Rgb<u8>| p.0.iter().zip(color).all(|(a, b)| a.abs_diff(b) < 30);
    picture.pixels().filter(near).count()
}

fn tensors(world: &World, path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(world.path(path), &Device::Cpu).expect("a safetensors file")
}

#[test]
fn pairs_are_encoded_trained_resumed_and_sampled() {
    let world = world();
    world.edit("bucket_step = 16", "bucket_step = 16\nflip = true");
    world.edit(
        "seed = 5",
        "seed = 5\nsample_every = 2\nvalidation_share = 0.3\nvalidate_every = 2",
    );
    world.edit(
        "prompts = [\"a blue square\"]",
        "prompts = [\"a blue square\"]\nreferences = [\"references/p2.jpg\"]",
    );
    world
        .run(&["train", "exp.toml"])
        .expect(4)
        .says("plumb encode exp.toml");
    let report = world
        .run(&["encode", "exp.toml", "--json"])
        .expect(0)
        .json();
    // Each picture and its reference, both also mirrored; the preview's is one of these.
    assert_eq!(report["pictures"]["views"], 12, "{report}");
    let references = serde_json::json!({"pairs": 3, "without": 0, "different": 3});
    assert_eq!(report["references"], references, "{report}");
    world
        .run(&["train", "exp.toml"])
        .expect(0)
        .says("caution: nothing but the values of its weights tells kontext from dev")
        .says("a reference stands beside 3 of 3 pictures")
        .says("4 steps done");
    let whole = world.read("out/lora.safetensors");
    // The reference stands beside what was drawn from it: half of its squares are blue.
    let preview = "out/previews/step-00000004.png";
    assert!(pixels_of(&world, preview, [10, 10, 90]) > 80 * 48 / 4);
    std::fs::remove_dir_all(world.path("out")).expect("removed");
    world
        .run(&["train", "exp.toml", "--stop-after", "2"])
        .expect(0);
    world
        .run(&["train", "exp.toml"])
        .expect(0)
        .says("the first 2 of them before");
    assert!(world.read("out/lora.safetensors") == whole);

    let lora = ["sample", "exp.toml", "--lora", "out/lora.safetensors"];
    let sample = |args: &[&str], out: &str| {
        let args = [&lora[..], args, &["--out", out]].concat();
        world.run(&args).expect(0);
        world.sampled(&format!("{out}/seed0-000.png"))
    };
    let own = sample(&[], "own");
    let size = image::load_from_memory(&own).expect("a PNG");
    // The reference's own: 96 x 64, in a bucket of about 64 x 64.
    assert_eq!((size.width(), size.height()), (80, 48));
    let other = sample(&["--reference", "references/p1.jpg"], "other");
    assert!(own != other);

    // Two LoRAs are compared beside the references that they were validated beside.
    world.edit("seed = 5", "seed = 6");
    world.edit("output = \"out\"", "output = \"b\"");
    world.run(&["train", "exp.toml"]).expect(0);
    let report = world
        .run(&["--json", "compare", "out", "b", "--out", "sheet"])
        .expect(0)
        .json();
    for (side, run) in [("a", "out"), ("b", "b")] {
        let found = report[side]["loss"].as_f64().expect("a loss");
        let expected = crate::compare::validated(&world, run);
        assert!(
            (found - expected).abs() < 1e-9,
            "{run}: {found}, {expected}"
        );
    }
    assert!(pixels_of(&world, "sheet/compare.png", [10, 10, 90]) > 80 * 48 / 4);
}

#[test]
fn what_is_given_beside_is_the_mean_and_the_same_part_of_the_reference() {
    let world = world();
    world.edit("batch_size = 2", "batch_size = 1");
    // The same pictures: what stands beside is then the posterior's mean of what is trained on.
    for n in 0..3 {
        std::fs::remove_file(world.path(&format!("references/p{n}.jpg"))).expect("removed");
        let from = world.path(&format!("pictures/p{n}.png"));
        std::fs::copy(from, world.path(&format!("references/p{n}.png"))).expect("copied");
    }
    let said = "3 references the same as the picture beside it";
    world.run(&["encode", "exp.toml"]).expect(0).says(said);
    let dump = ["train", "exp.toml", "--dump-step", "1", "step.safetensors"];
    world.run(&dump).expect(0);
    let step = tensors(&world, "step.safetensors");
    let (latents, reference) = (&step["latents"], &step["reference"]);
    assert_eq!(latents.dims(), reference.dims());
    let apart = (latents - reference).and_then(|d| d.abs()?.max_all()?.to_scalar::<f32>());
    let spread = reference
        .abs()
        .and_then(|r| r.max_all()?.to_scalar::<f32>());
    let (apart, spread) = (apart.expect("a number"), spread.expect("a number"));
    // One of them is drawn.
    assert!(apart > 0.0 && apart < spread, "{apart} of {spread}");
    assert_eq!(step["prediction"].dims(), latents.dims());
    musubi_finds_pairs(&world);
}

/// The cache of the tuner that trains this model, as our reader reads it. That the tuner reads it: tools/foreign/load.py.
fn musubi_finds_pairs(world: &World) {
    let export = ["--json", "export", "cache", "exp.toml", "--for", "musubi"];
    let export = [&export[..], &["--out", "cache"]].concat();
    let report = world.run(&export).expect(0).json();
    assert_eq!(
        (&report["texts"], &report["latents"]),
        (&3.into(), &3.into())
    );
    for sample in crate::shards::round_trip(world).unwrap_or_default() {
        assert_eq!(sample["reference"]["file"], sample["picture"]["file"]);
    }
    let inspect = ["inspect", "latents", "exp.toml", "--picture"];
    let inspect = [&inspect[..], &["pictures/p0.png", "--out", "l.st"]].concat();
    world.run(&inspect).expect(0);
    let config = std::fs::read(tiny_flux().join("vae/config.json")).expect("a config");
    let config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
    let factor = |name: &str| config[name].as_f64().expect("a number");
    let mean = (&tensors(world, "l.st")["mean"] - factor("shift_factor")).expect("numbers");
    let mean = (mean * factor("scaling_factor")).expect("numbers");
    let cached = tensors(world, "cache/p0_0064x0064_fk.safetensors");
    for name in ["latents_1x8x8_float32", "latents_control_1x8x8_float32"] {
        let apart = (&cached[name].unsqueeze(0).expect("one") - &mean).expect("of one shape");
        let apart = apart.abs().and_then(|d| d.max_all()?.to_scalar::<f32>());
        assert!(apart.expect("a number") < 1e-5, "{name}");
    }
    let audit = ["audit", "cache", "exp.toml", "--device", "cpu"];
    let ran = world.run(&audit).expect(0);
    ran.says("3 compared: 3 scaled as the denoiser takes them, 3 the mean")
        .says("the base model (flux1 kontext) expects this");
    world.edit("bucket_step = 16", "bucket_step = 16\nflip = true");
    world.run(&["encode", "exp.toml"]).expect(0);
    let mirrored = "it is there mirrored as well, which is not written for musubi-tuner";
    world.run(&export).expect(2).says(mirrored);
}

#[test]
fn a_dumped_step_beside_a_reference_replays_in_diffusers_and_peft() {
    let world = world();
    world.edit(
        "rank = 2",
        "rank = 2\nalpha = 3.0\ntargets = [\"all-linear\"]",
    );
    // torch rounds the frequencies of its sinusoids to f32: at a guidance of 2.5 the angles, up to 2500, differ by 1e-4 from ours.
    world.edit(
        "seed = 5",
        "seed = 5\nguidance = 1.5\nshift = \"resolution\"",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world.replay_step(2, &tiny_flux());
}

#[test]
fn exchanged_references_end_a_run_though_the_store_has_all_of_them() {
    let world = world();
    for n in 0..3 {
        world.picture(&format!("pictures/p{n}.png"), 64, 64, [30, 40 * n as u8, 9]);
        world.picture(
            &format!("references/p{n}.jpg"),
            64,
            64,
            [90, 9, 40 * n as u8],
        );
    }
    world.run(&["encode", "exp.toml"]).expect(0);
    world
        .run(&["train", "exp.toml", "--stop-after", "2"])
        .expect(0);
    let exchange = |a: &str, b: &str| {
        let (a, b) = (format!("references/{a}"), format!("references/{b}"));
        let (of_a, of_b) = (world.read(&a), world.read(&b));
        world.write_bytes(&a, &of_b);
        world.write_bytes(&b, &of_a);
    };
    exchange("p0.jpg", "p1.jpg");
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("the reference pictures");
    exchange("p0.jpg", "p1.jpg");
    world.run(&["train", "exp.toml"]).expect(0);
}

#[test]
fn one_reference_of_many_pictures_is_encoded_once() {
    let world = world();
    for n in 0..3 {
        world.picture(&format!("pictures/p{n}.png"), 64, 64, [30, 40 * n as u8, 9]);
        world.picture(&format!("references/p{n}.jpg"), 64, 64, [90, 9, 9]);
    }
    let report = world
        .run(&["encode", "exp.toml", "--json"])
        .expect(0)
        .json();
    assert_eq!(report["pictures"]["encoded"], 4, "{report}");
    assert_eq!(report["references"]["different"], 1, "{report}");
}

#[test]
fn references_that_are_not_encoded_are_refused_and_the_manifest_has_those_that_are() {
    let world = world();
    world.edit("references = \"references\"", "without_references = true");
    world.run(&["encode", "exp.toml"]).expect(0);
    world
        .run(&["train", "exp.toml", "--stop-after", "1"])
        .expect(0)
        .says("a reference stands beside 0 of 3 pictures; the others are trained on as text to picture");
    world.edit("without_references = true", "references = \"references\"");
    world
        .run(&["train", "exp.toml"])
        .expect(4)
        .says("latents: 3 of 6 entries are missing")
        .says("references/p0.jpg");
    world
        .run(&["encode", "exp.toml"])
        .expect(0)
        .says("6 pictures: 3 encoded, 3 there already")
        .says("3 pairs of a picture and its reference; 3 different references");
    let manifest = world.run(&["inspect", "manifest", "exp.toml", "--json"]);
    let manifest = manifest.expect(0).json();
    let first = &manifest["pictures"][0];
    let entry = first["reference"]["views"][0]["entry"].as_str();
    let told = world.run(&[
        "inspect",
        "entry",
        "exp.toml",
        entry.expect("a fingerprint"),
    ]);
    told.expect(0)
        .says("of ./references/p0.jpg, the reference of ./pictures/p0.png");
    let views = |of: &serde_json::Value| of["views"].as_array().map(Vec::len);
    assert_eq!(views(&first["reference"]), views(first));
    assert_ne!(
        first["reference"]["views"][0]["entry"],
        first["views"][0]["entry"]
    );
}

#[test]
fn who_says_too_little_or_too_much_of_references_is_told_which_line() {
    let world = world();
    let refused = |from: &str, to: &str, said: &str| {
        world.edit(from, to);
        world.run(&["encode", "exp.toml"]).expect(2).says(said);
        world.edit(to, from);
    };
    let line = "references = \"references\"";
    refused(
        line,
        "repeats = 1",
        "`dataset[0].references`: this flavor is given a reference picture beside each one",
    );
    refused(
        line,
        "references = \"references\"\nwithout_references = true",
        "`dataset[0].without_references`: there are references as well",
    );
    refused(
        line,
        "references = \"references\"\nreference_column = \"source\"",
        "`dataset[0].reference_column`: expected `references`, a folder, or `reference_column`, found both",
    );
    refused(
        line,
        "references = \"references\"\nreference_size = \"preferred\"\ncrops = 2",
        "`dataset[0].crops`: with `reference_size = \"preferred\"` a crop would stand beside the whole reference",
    );
    refused(
        "flavor = \"kontext\"",
        "flavor = \"dev\"",
        "`dataset[0].references`: flavor `dev` is given no reference pictures; leave it out",
    );
    refused(
        "steps = 2",
        "steps = 2\nreferences = [\"a.png\", \"b.png\", \"c.png\"]",
        "`sample.references`: expected one for all prompts, or one for each of 1, found 3",
    );
    let twice = ["--reference", "a.png", "--reference", "b.png"];
    let sample = [&["sample", "exp.toml"][..], &twice].concat();
    world
        .run(&sample)
        .expect(2)
        .says("`sample.references`: expected one for all prompts");
    world.edit("flavor = \"kontext\"", "flavor = \"dev\"");
    world.edit(line, "repeats = 1");
    world
        .run(&["sample", "exp.toml", "--reference", "references/p0.jpg"])
        .expect(2)
        .says("`sample.references`: flavor `dev` is given no reference pictures");
}

#[test]
fn a_model_that_is_called_kontext_and_used_as_dev_is_told() {
    let world = world();
    world.copy_folder(&tiny_flux(), "FLUX.1-Kontext-dev");
    world.edit(
        &format!("path = {:?}", tiny_flux().display().to_string()),
        "path = \"FLUX.1-Kontext-dev\"",
    );
    world.edit("flavor = \"kontext\"", "flavor = \"dev\"");
    world.edit("references = \"references\"", "repeats = 1");
    world
        .run(&["encode", "exp.toml"])
        .expect(0)
        .says("FLUX.1-Kontext-dev is called after flavor `kontext`");
    world
        .run(&["model", "check", "FLUX.1-Kontext-dev"])
        .expect(0)
        .says("dev or kontext: only the values of the weights differ, so you say which")
        .says("flavor = \"dev\"  # or \"kontext\"");
}

/// The size that diffusers' pipeline brings a picture to, by its own code up to where it does so.
const SIZES_OF_PIPELINE: &str = r#"
import json
import sys
from types import SimpleNamespace

import torch
from diffusers import FluxKontextPipeline


class Told(Exception):
    pass


class Processor:
    def get_default_height_width(self, image):
        return image.height, image.width

    def resize(self, image, height, width):
        raise Told(width, height)


class Pipeline(FluxKontextPipeline):
    """As far as the size of its picture goes."""

    _execution_device = "cpu"

    def __init__(self):
        self.vae_scale_factor, self.default_sample_size, self.latent_channels = 8, 128, 16
        self.image_processor = Processor()

    def check_inputs(self, *args, **kwargs):
        pass

    def encode_prompt(self, **kwargs):
        return None, None, None


for width, height in json.load(sys.stdin):
    picture = SimpleNamespace(width=width, height=height)
    try:
        Pipeline()(image=picture, prompt_embeds=torch.zeros(1, 1, 1), pooled_prompt_embeds=torch.zeros(1, 1))
    except Told as told:
        print(json.dumps(told.args))
"#;

/// Odd sizes, shapes at which two of the authors' are about as near, and every size itself.
fn odd_sizes() -> Vec<[u32; 2]> {
    let mut sizes = vec![[1, 1], [1, 4096], [4096, 1], [2, 3], [1023, 1025]];
    let mut number = 1u32;
    let mut side = || {
        number = number.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        1 + (number >> 8) % 4000
    };
    sizes.extend((0..1500).map(|_| [side(), side()]));
    for long in (672..1600).step_by(7) {
        sizes.extend([[long, 1024], [1024, long], [long, 2240 - long.min(2239)]]);
    }
    sizes
}

#[test]
fn a_reference_is_brought_to_the_size_that_the_pipeline_brings_it_to() {
    let text = "[model]\nfamily = \"flux1\"\nflavor = \"kontext\"\npath = \"m\"\n";
    let experiment = Experiment::parse(Path::new("exp.toml"), text.to_owned()).expect("valid");
    let own = OwnSize::of(&experiment, 16).expect("the authors' sizes");
    let sizes = odd_sizes();
    let given = serde_json::json!(sizes).to_string();
    let Some(told) = Script::code(SIZES_OF_PIPELINE).input(&given).run() else {
        return;
    };
    let mut told = told.lines();
    for [width, height] in sizes {
        let view = own.view(Size { width, height }).expect("a view");
        let theirs = told.next().expect("one for each");
        let theirs: [u32; 2] = serde_json::from_str(theirs).expect("two numbers");
        assert_eq!(
            [view.bucket.width, view.bucket.height],
            theirs,
            "{width} x {height}"
        );
        assert_eq!((view.resized, view.left, view.top), (view.bucket, 0, 0));
    }
    assert_eq!(told.next(), None);
}

/// What diffusers' pipeline makes of a picture of its own choice of size, from the noise in a file.
const PIPELINE: &str = r#"
import sys

import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

model, given, picture, made = sys.argv[1:]
torch.set_num_threads(2)
pipeline = FluxKontextPipeline.from_pretrained(model, torch_dtype=torch.float32)
noise = load_file(given)["noise"]
latents = pipeline(
    image=Image.open(picture), prompt="a blue square", height=64, width=64, max_area=64 * 64, num_inference_steps=2, guidance_scale=2.5,
    latents=pipeline._pack_latents(noise, *noise.shape), output_type="latent",
).images
save_file({"latents": pipeline._unpack_latents(latents, 64, 64, 8).contiguous()}, made)
"#;

/// The whole reference at the authors' size, beside a small picture.
#[test]
fn a_sample_beside_a_reference_of_the_authors_size_is_what_the_pipeline_makes() {
    let world = world();
    let text = String::from_utf8(world.read("exp.toml")).expect("UTF-8");
    let (before, rest) = text.split_once("[[dataset]]").expect("a data set");
    let (_, sample) = rest.split_once("[sample]").expect("previews");
    let more = "references = [\"edit.png\"]\nwidth = 64\nheight = 64\nguidance = 2.5";
    world.write("exp.toml", &format!("{before}[sample]{sample}{more}\n"));
    world.picture("edit.png", 150, 103, [200, 60, 20]);
    let noise = (0..16 * 8 * 8).map(|n: u32| (f64::from(n) * 12.9898).sin() as f32 * 1.7);
    let noise = Tensor::from_iter(noise, &Device::Cpu).and_then(|t| t.reshape((1, 16, 8, 8)));
    let noise = noise.expect("noise");
    let given = HashMap::from([("noise", noise.clone())]);
    candle_core::safetensors::save(&given, world.path("noise.safetensors")).expect("saved");
    let pipeline = Script::code(PIPELINE)
        .arg(tiny_flux())
        .arg(world.path("noise.safetensors"))
        .arg(world.path("edit.png"))
        .arg(world.path("made.safetensors"));
    if pipeline.run().is_none() {
        return;
    }
    world.run(&["encode", "exp.toml"]).expect(0);
    let base = world.base();
    let store = Store::open_or_create(&world.path("store")).expect("a store");
    let source = cache(&base, &store, &["a blue square"]);
    let given = reference(&base, &source);
    // 1248 x 832 px.
    assert_eq!(given.dims(), [1, 16, 104, 156]);
    let beside = SampleOptions {
        reference: Some(given),
        ..previews::options(&base)
    };
    let denoiser = base.denoiser.load(&Placement::default()).expect("loads");
    let said = conditioning(&source, "a blue square");
    let latents = sample_from(
        denoiser.as_ref(),
        &Bound::none(),
        noise,
        &said,
        None,
        &beside,
        &|| (),
    );
    let theirs = &tensors(&world, "made.safetensors")["latents"];
    close("latents", &latents.expect("sampled"), theirs, 1e-3);
}

#[test]
fn the_probe_shows_each_picture_beside_its_own_reference() {
    let world = world();
    for n in 3..9u8 {
        let color = [20 * n, 250 - 20 * n, 90];
        world.picture(&format!("pictures/p{n}.png"), 64, 64, color);
        world.write(&format!("pictures/p{n}.txt"), "a small blue square");
        let other = [250 - 20 * n, 30, 20 * n];
        world.picture(&format!("references/p{n}.jpg"), 64, 64, other);
    }
    let probe = || {
        let vary = ["--vary", "t5.tokens.max_tokens=77"];
        let args = [
            &["probe", "exp.toml", "--json", "--draws", "2"][..],
            &["--bands", "1"],
            &vary,
        ];
        let report = world.run(&args.concat()).expect(0).json();
        assert_eq!(report["pictures"].as_array().map(Vec::len), Some(9));
        report["candidates"][0]["loss"].as_f64().expect("a loss")
    };
    let own = probe();
    assert_eq!(probe(), own);
    let exchanged = world.read("references/p8.jpg");
    world.write_bytes("references/p8.jpg", &world.read("references/p0.jpg"));
    world.write_bytes("references/p0.jpg", &exchanged);
    assert_ne!(probe(), own, "the references are not seen");
}

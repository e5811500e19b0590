//! An Experiment's embeddings and latents as the caches of other trainers, read back by our readers and by numpy and torch. That the
//! trainers themselves read them is shown by tools/foreign/load.py, which needs their sources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use plumb::foreign::cache::{Cache, CacheFile, Content, Entry, Role};

use crate::peers::Script;
use crate::world::World;

/// Three square pictures, encoded, one of a caption with commas and signs beyond ASCII.
fn squares() -> World {
    let world = World::new();
    for n in 0..3 {
        world.picture(&format!("pictures/p{n}.png"), 64, 64, [200, 30, 30 + n]);
    }
    world.write("pictures/p1.txt", "a red circle, \u{72ac} blue\n");
    world.edit("bucket_step = 16", "bucket = false");
    world.run(&["encode", "exp.toml"]).expect(0);
    world
}

fn export(world: &World, target: &str, out: &str) -> serde_json::Value {
    let args = ["export", "cache", "exp.toml", "--for", target, "--out", out];
    world
        .run(&[&args[..], &["--json"]].concat())
        .expect(0)
        .json()
}

/// What the denoiser receives for a caption, and the latents of a picture.
fn wanted(world: &World, caption: &str, picture: &str) -> BTreeMap<String, Tensor> {
    let mut all = BTreeMap::new();
    for args in [
        [
            "inspect",
            "conditioning",
            "exp.toml",
            "--caption",
            caption,
            "--out",
            "w.st",
        ],
        [
            "inspect",
            "latents",
            "exp.toml",
            "--picture",
            picture,
            "--out",
            "w.st",
        ],
    ] {
        world.run(&args).expect(0);
        let read = candle_core::safetensors::load(world.path("w.st"), &Device::Cpu);
        all.extend(read.expect("tensors"));
    }
    all
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.flatten_all().expect("flat");
    flat.to_vec1::<f32>().expect("numbers")
}

fn array<'a>(entry: &'a Entry, name: &str) -> &'a [f32] {
    let found = entry.tensors.iter().find(|t| t.name == name);
    let names: Vec<&str> = entry.tensors.iter().map(|t| t.name.as_str()).collect();
    &found
        .unwrap_or_else(|| panic!("{name} of {names:?}"))
        .array
        .values
}

fn entry(folder: &Path, content: Content, name: &str) -> Entry {
    let cache = Cache::open(folder).expect("a cache");
    let named = |path: &PathBuf| path.to_string_lossy().contains(name);
    let mut found = cache
        .files
        .iter()
        .filter(|f| f.content == content && named(&f.path));
    let file = found
        .next()
        .unwrap_or_else(|| panic!("no {name} in {:?}", cache.files));
    file.read().expect("readable")
}

#[test]
fn kohya_finds_sequences_masks_and_raw_latents() {
    let world = squares();
    let report = export(&world, "kohya", "cache");
    assert_eq!(
        (&report["texts"], &report["latents"]),
        (&3.into(), &3.into())
    );
    let wanted = wanted(&world, "a red circle number 0", "pictures/p0.png");
    let text = entry(&world.path("cache"), Content::Text, "p0_sd3_te.npz");
    let context = wanted["context"].squeeze(0).expect("one");
    let clips = context
        .narrow(0, 0, 77)
        .expect("rows")
        .narrow(1, 0, 112)
        .expect("channels");
    assert_eq!(array(&text, "lg_out"), values(&clips));
    let t5 = context.narrow(0, 77, 77).expect("rows");
    assert_eq!(array(&text, "t5_out"), values(&t5));
    assert_eq!(array(&text, "lg_pooled"), values(&wanted["pooled"]));
    let seen: f32 = array(&text, "t5_attn_mask").iter().sum();
    assert!(seen > 3.0 && seen < 77.0, "{seen}");
    // What the scripts make of them, (x - 0.0609) * 1.5305, is what this VAE's own factors make of its mean.
    let latents = entry(
        &world.path("cache"),
        Content::Latents,
        "p0_0064x0064_sd3.npz",
    );
    let own: serde_json::Value = serde_json::from_slice(
        &std::fs::read(crate::world::tiny_sd3().join("vae/config.json")).expect("a config"),
    )
    .expect("JSON");
    let (scale, shift) = (own["scaling_factor"].as_f64(), own["shift_factor"].as_f64());
    let (scale, shift) = (scale.expect("a number"), shift.unwrap_or(0.0));
    let made = array(&latents, "latents_8x8");
    for (made, mean) in made.iter().zip(values(&wanted["mean"])) {
        let (theirs, ours) = (
            (f64::from(*made) - 0.0609) * 1.5305,
            (f64::from(mean) - shift) * scale,
        );
        assert!((theirs - ours).abs() < 1e-5, "{theirs} {ours}");
    }
    let Role::Latents(facts) = &latents.tensors[0].role else {
        panic!("{:?}", latents.tensors[0].role);
    };
    assert_eq!(facts.original.as_deref(), Some(&[64.0, 64.0][..]));
    assert_eq!(facts.crop, None, "nothing is cut off");
    let crop = ("crop_ltrb_8x8".to_owned(), "0,0,64,64".to_owned());
    assert!(latents.facts.contains(&crop), "{:?}", latents.facts);

    let again = [
        "export", "cache", "exp.toml", "--for", "kohya", "--out", "cache",
    ];
    world
        .run(&again)
        .expect(2)
        .says("--overwrite replaces them");
    world
        .run(&[&again[..], &["--overwrite"]].concat())
        .expect(0);
    // Which is no sign of another filter: the numbers are those of the pictures, once they are scaled back.
    let audit = world.run(&["--json", "audit", "cache", "exp.toml"]).json();
    let found = &audit["pictures"];
    assert_eq!(
        found["scaling"],
        serde_json::json!([["of_trainer", 3]]),
        "{found}"
    );
    assert_eq!(
        found["placed"][0]["resampling"],
        serde_json::json!(["spec"]),
        "{found}"
    );
    assert_eq!(found["placed"][0]["reproduced"], true, "{found}");
}

#[test]
fn ai_toolkit_and_simpletuner_find_what_the_denoiser_receives() {
    let world = squares();
    export(&world, "ai-toolkit", "ait");
    let wanted = wanted(&world, "a red circle, \u{72ac} blue", "pictures/p1.png");
    // The caption's, and the blank one's for where it is dropped.
    let texts = Cache::open(&world.path("ait/_t_e_cache"))
        .expect("a cache")
        .files;
    let context = values(&wanted["context"]);
    let reads = |f: &CacheFile| f.read().expect("readable");
    let of_p1 = texts
        .iter()
        .filter(|f| f.path.to_string_lossy().contains("p1_"));
    let mut found = of_p1
        .map(reads)
        .filter(|e| array(e, "text_embed") == context);
    let text = found.next().expect("one of them is of this caption");
    assert_eq!(array(&text, "pooled_embed"), values(&wanted["pooled"]));

    let report = export(&world, "simpletuner", "st");
    // Three captions, and the empty one of the dropout.
    assert_eq!(
        (&report["texts"], &report["latents"]),
        (&4.into(), &3.into())
    );
    let texts = Cache::open(&world.path("st/text")).expect("a cache").files;
    let mut found = texts
        .iter()
        .map(reads)
        .filter(|e| array(e, "prompt_embeds") == context);
    let entry = found.next().expect("one of them is of this caption");
    assert_eq!(
        array(&entry, "pooled_prompt_embeds"),
        values(&wanted["pooled"])
    );
    python(&world);
}

/// torch and numpy read the files as well as we do, torch without running pickles.
fn python(world: &World) {
    export(world, "kohya", "kohya");
    let script = r#"
import glob, hashlib, numpy, sys, torch
from safetensors.torch import load_file
folder = sys.argv[1]
key = hashlib.md5("a red circle, \u72ac blue".encode()).hexdigest()
made = torch.load(f"{folder}/st/text/{key}-sd3.pt", weights_only=True)
both = [load_file(path) for path in glob.glob(f"{folder}/ait/_t_e_cache/p1_*")]
assert len(both) == 2, "the caption's and the blank one's"
want = next(w for w in both if torch.equal(made["prompt_embeds"], w["text_embed"]))
assert torch.equal(made["pooled_prompt_embeds"], want["pooled_embed"][0]), "pooled"
stem = hashlib.sha256(b"p1").hexdigest()
latents = torch.load(f"{folder}/st/vae/{stem}.pt", weights_only=True)
assert torch.equal(latents, load_file(glob.glob(f"{folder}/ait/_latent_cache/p1_*")[0])["latent"]), "latents"
npz = numpy.load(f"{folder}/kohya/p1_sd3_te.npz")
assert numpy.array_equal(npz["t5_out"], want["text_embed"][0, 77:].numpy()), "t5_out"
assert npz["apply_t5_attn_mask"] == False and npz["clip_l_attn_mask"].dtype == numpy.int64
"#;
    Script::code(script).arg(world.path("")).run();
}

#[test]
fn what_a_cache_cannot_hold_is_refused_by_name() {
    let world = World::new();
    let run = |target: &str| {
        world.run(&[
            "export", "cache", "exp.toml", "--for", target, "--out", "cache",
        ])
    };
    run("kohya").expect(4).says("plumb encode");
    world.run(&["encode", "exp.toml"]).expect(0);
    run("musubi")
        .expect(2)
        .says("of this trainer's those of flux1, flux2, zimage, wan are");
    run("ai-toolkit")
        .expect(2)
        .says("ai-toolkit would crop it to");
    run("simpletuner").expect(2).says("`bucket = false`");
    let bf16 = [
        "export", "cache", "exp.toml", "--for", "kohya", "--out", "c", "--dtype", "bf16",
    ];
    world
        .run(&bf16)
        .expect(2)
        .says("numpy's, which has no bf16");
    world.edit("bucket_step = 16", "bucket_step = 16\ncrops = 2");
    world.run(&["encode", "exp.toml"]).expect(0);
    run("kohya").expect(2).says("keeps one: `crops = 1`");
    world.edit("crops = 2", "trigger = \"sks\"\nbucket = false");
    world.run(&["encode", "exp.toml"]).expect(0);
    run("simpletuner")
        .expect(2)
        .says("names its embeddings by the caption in the file");
    world.picture("pictures/p0.jpg", 64, 64, [1, 2, 3]);
    world.edit("trigger = \"sks\"\n", "");
    world.run(&["encode", "exp.toml"]).expect(0);
    run("kohya").expect(2).says("under the name of that of");
    assert!(!world.path("cache").exists());
}

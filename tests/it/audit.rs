//! `plumb audit` on caches that other trainers' own code wrote (`tests/fixtures/foreign`), and on what is done to them.

use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use serde_json::Value;

use crate::layouts;
use crate::util::Ran;
use crate::world::World;

const SDXL: [&str; 3] = ["sdxl", "base-1.0", "tiny-sdxl"];
const SD3: [&str; 3] = ["sd3", "3.5-large", "tiny-sd3"];
const FLUX: [&str; 3] = ["flux1", "dev", "tiny-flux"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/foreign")
        .join(name)
}

/// A folder with the fixture's pictures, the cache `name` beside them, and an Experiment.
fn world(name: &str, [family, flavor, model]: [&str; 3]) -> World {
    let world = World::new();
    world.copy_folder(&fixture("pictures"), "data");
    world.copy_folder(&fixture(name), "cache");
    let model = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("assets")
        .join(model);
    world.write(
        "exp.toml",
        &format!(
            "[model]\nfamily = {family:?}\nflavor = {flavor:?}\npath = {model:?}\n[store]\npath = \"store\"\n\
             [[dataset]]\npath = \"data\"\nresolution = 128\nbucket_step = 16\n"
        ),
    );
    world
}

fn audit(world: &World) -> Ran {
    world.run(&["--json", "audit", "cache", "exp.toml", "--device", "cpu"])
}

/// One encoder's finding.
#[track_caller]
fn encoder<'a>(report: &'a Value, slot: &str) -> &'a Value {
    let all = report["encoders"].as_array().expect("a list");
    let found = all.iter().find(|e| e["slot"] == slot);
    found.unwrap_or_else(|| panic!("no {slot} in {report}"))
}

/// Fails unless a slot's part is reproduced as `like` makes it, with these fields otherwise.
#[track_caller]
fn made_by(report: &Value, slot: &str, like: &str, changed: &[(&str, Value)]) {
    let found = encoder(report, slot);
    assert_eq!(found["verdict"], "reproduced", "{found}");
    assert_eq!(found["like"], like, "{found}");
    let fields = found["changed"].as_array().expect("a list").iter();
    let fields: Vec<(&str, &Value)> = fields
        .map(|f| (f["field"].as_str().expect("a name"), &f["cached"]))
        .collect();
    let wanted: Vec<(&str, &Value)> = changed.iter().map(|(f, v)| (*f, v)).collect();
    assert_eq!(fields, wanted, "{found}");
}

#[test]
fn what_each_trainer_wrote_is_named_as_its_own() {
    let chunks = [("tokens.chunks", 2.into())];
    let length = [
        ("tokens.max_tokens", 77.into()),
        ("tokens.min_tokens", 77.into()),
    ];
    type Case = (
        &'static str,
        [&'static str; 3],
        &'static str,
        Vec<(&'static str, Vec<(&'static str, Value)>)>,
    );
    let cases: [Case; 8] = [
        (
            "kohya-sdxl",
            SDXL,
            "kohya",
            vec![("clip_l", vec![]), ("clip_g", vec![])],
        ),
        (
            "kohya-sdxl-150",
            SDXL,
            "kohya",
            vec![("clip_l", chunks.to_vec()), ("clip_g", chunks.to_vec())],
        ),
        (
            "kohya-sd3-t5-77",
            SD3,
            "kohya",
            vec![
                ("clip_l", vec![]),
                ("clip_g", vec![]),
                ("t5", length.to_vec()),
            ],
        ),
        (
            "ai-toolkit-sdxl-bf16",
            SDXL,
            "ai-toolkit",
            vec![("clip_l", vec![]), ("clip_g", vec![])],
        ),
        (
            "simpletuner-sd3-zeroed",
            SD3,
            "simpletuner",
            vec![("clip_l", vec![]), ("clip_g", vec![]), ("t5", vec![])],
        ),
        (
            "musubi-flux1-bf16",
            FLUX,
            "musubi",
            vec![("clip_l", vec![]), ("t5", vec![])],
        ),
        (
            "diffusion-pipe-sd3-bf16",
            SD3,
            "diffusion-pipe",
            vec![("clip_l", vec![]), ("clip_g", vec![]), ("t5", vec![])],
        ),
        (
            "onetrainer-flux1-bf16",
            FLUX,
            "onetrainer",
            vec![("clip_l", vec![]), ("t5", vec![])],
        ),
    ];
    for (name, model, like, slots) in cases {
        let report = audit(&world(name, model)).json();
        for (slot, changed) in &slots {
            made_by(&report, slot, like, changed);
        }
        assert_eq!(
            report["encoders"].as_array().map(Vec::len),
            Some(slots.len()),
            "{name}"
        );
        assert_eq!(report["stale"], Value::Array(Vec::new()), "{name}");
        let t5 = report["encoders"]
            .as_array()
            .expect("a list")
            .iter()
            .find(|e| e["slot"] == "t5");
        let after = t5.map_or("nothing", |t5| t5["after"].as_str().expect("a word"));
        let wanted = if name.ends_with("zeroed") {
            "pads_zeroed"
        } else {
            "nothing"
        };
        assert_eq!(after, wanted, "{name}");
        if name.ends_with("bf16") {
            assert_eq!(
                encoder(&report, "clip_l")["tolerance"]["precision"],
                "bf16",
                "{name}"
            );
        }
        if like == "musubi" {
            // A sample, and the control picture's beside it, which are not the picture's.
            let pictures = &report["pictures"];
            assert_eq!(pictures["compared"], 1, "{pictures}");
            assert_eq!(pictures["scaling"][0][0], "of_denoiser", "{pictures}");
            assert_eq!(pictures["placed"][0]["placement"], "whole", "{pictures}");
        }
    }
}

/// By the number of rows, or by the first caption.
#[test]
fn what_cannot_have_made_the_entries_is_not_encoded() {
    let encodings = |name| {
        let report = audit(&world(name, SDXL)).json();
        report["encodings"].as_u64().expect("a number")
    };
    // 72 if every recipe of both encoders is given both captions.
    let of_windows = encodings("kohya-sdxl-150");
    assert!(of_windows <= 16, "{of_windows}");
    // 185: of embeddings in bf16, none is exact.
    let of_rounded = encodings("ai-toolkit-sdxl-bf16");
    assert!(of_rounded <= 130, "{of_rounded}");
}

#[test]
fn weights_of_eight_bits_are_told() {
    let world = world("kohya-sd3-t5-fp8", SD3);
    let report = audit(&world).expect(3).json();
    let length = [
        ("tokens.max_tokens", 77.into()),
        ("tokens.min_tokens", 77.into()),
    ];
    made_by(&report, "t5", "kohya", &length);
    assert_eq!(encoder(&report, "t5")["weights"], "fp8", "{report}");
    for slot in ["clip_l", "clip_g"] {
        made_by(&report, slot, "kohya", &[]);
        assert_eq!(encoder(&report, slot)["weights"], Value::Null, "{report}");
    }
    let ran = world.run(&["audit", "cache", "exp.toml", "--device", "cpu"]);
    ran.expect(3)
        .says("as kohya makes it, with tokens.max_tokens 77 instead of 256, fp8 weights (e4m3)\n")
        .says("the weights as they are (here: fp8 weights (e4m3))");
}

#[test]
fn a_cache_of_whole_weights_may_be_what_an_experiment_of_fp8_does_not_give() {
    let world = world("kohya-sd3-t5-77", SD3);
    world.copy_folder(&crate::world::tiny_sd3(), "base");
    let t5 = layouts::fp8(&layouts::part("text_encoder_3"), false);
    layouts::save(&t5, &world.path("base/text_encoder_3/model.safetensors"));
    let base = crate::world::tiny_sd3().display().to_string();
    world.edit(&format!("{base:?}"), "\"base\"");
    let ran = world.run(&["audit", "cache", "exp.toml", "--device", "cpu"]);
    let ran = ran.expect(3).says(
        "the Experiment's own weights are stored as F8_E4M3: the cache may be of the whole ones",
    );
    assert_eq!(ran.stdout.matches("own weights").count(), 1, "T5 alone");
}

#[test]
fn the_exit_status_tells_whether_the_base_model_expects_it() {
    // SDXL's own code and kohya's make the same of these captions.
    let same = world("kohya-sdxl", SDXL);
    let ran = same
        .run(&["audit", "cache", "exp.toml", "--device", "cpu"])
        .expect(0);
    ran.says("clip_l   as kohya makes it")
        .says("the base model (sdxl base-1.0) expects this");
    let other = world("kohya-sd3-t5-77", SD3);
    let ran = other
        .run(&["audit", "cache", "exp.toml", "--device", "cpu"])
        .expect(3);
    ran.says("as kohya makes it, with tokens.max_tokens 77 instead of 256")
        .says("problem: the cache is not what the base model's own recipe makes of these captions");
    // Nothing is written.
    assert!(!other.path("store").exists());
}

#[test]
fn an_entry_of_another_caption_is_stale_and_the_caption_is_named() {
    let world = world("kohya-sdxl", SDXL);
    let (one, other) = (world.read("data/01.txt"), world.read("data/05.txt"));
    // Two captions that were exchanged since.
    world.write_bytes("data/01.txt", &other);
    let report = audit(&world).expect(3).json();
    let stale = report["stale"].as_array().expect("a list");
    assert_eq!(stale.len(), 1, "{report}");
    assert!(
        stale[0]["path"]
            .as_str()
            .is_some_and(|p| p.ends_with("01_te_outputs.npz"))
    );
    assert_eq!(
        stale[0]["made_of"],
        Value::Null,
        "the old caption is nowhere"
    );
    made_by(&report, "clip_l", "kohya", &[]);
    world.write_bytes("data/03.txt", &one);
    world.write_bytes("data/01.txt", &world.read("data/05.txt"));
    let text = String::from_utf8(one).expect("text");
    let report = audit(&world).json();
    let of = |name: &str| {
        let stale = report["stale"].as_array().expect("a list");
        let found = stale
            .iter()
            .find(|s| s["path"].as_str().is_some_and(|p| p.contains(name)));
        found.cloned().unwrap_or_default()
    };
    // With two of three stale no recipe is the cache's, so nothing is said of single entries.
    if encoder(&report, "clip_l")["verdict"] == "reproduced" {
        assert_eq!(of("01_te")["made_of"], text.trim());
    } else {
        assert_eq!(report["stale"], Value::Array(Vec::new()));
    }
}

#[test]
fn a_trigger_word_that_the_trainer_never_applied_is_told() {
    let world = world("kohya-sdxl", SDXL);
    world.edit("path = \"data\"", "path = \"data\"\ntrigger = \"zwx\"");
    let ran = world
        .run(&["audit", "cache", "exp.toml", "--device", "cpu"])
        .expect(3);
    ran.says("without the Experiment's trigger word")
        .says("as kohya makes it");
    // Caption files as a data set may have them: with a byte-order mark, lines of Windows, and another ending.
    for name in ["01", "03", "05"] {
        let text = world.read(&format!("data/{name}.txt"));
        let marked = [b"\xef\xbb\xbf", &text[..], b"\r\n"].concat();
        world.write_bytes(&format!("data/{name}.tags"), &marked);
        std::fs::remove_file(world.path(&format!("data/{name}.txt"))).expect("removed");
    }
    world.edit("trigger =", "caption_extension = \"tags\"\ntrigger =");
    let ran = world
        .run(&["audit", "cache", "exp.toml", "--device", "cpu"])
        .expect(3);
    ran.says("without the Experiment's trigger word")
        .says("as kohya makes it");
}

#[test]
fn a_cache_that_no_recipe_gives_is_not_called_the_base_models() {
    let world = world("kohya-sdxl", SDXL);
    for name in ["01", "03", "05"] {
        world.write_bytes(&format!("data/{name}.txt"), b"words of nobody");
    }
    let ran = world
        .run(&["audit", "cache", "exp.toml", "--device", "cpu"])
        .expect(3);
    let ran = ran.says("recipes gives it; the nearest");
    assert!(!ran.stdout.contains("expects this"), "{}", ran.stdout);
}

#[test]
fn latents_are_told_from_those_of_other_pictures() {
    let world = world("kohya-sdxl", SDXL);
    let report = audit(&world).json();
    let pictures = &report["pictures"];
    assert_eq!(pictures["compared"], 3, "{report}");
    assert_eq!(pictures["scaling"][0][0], "of_vae", "{pictures}");
    assert_eq!(pictures["others"], Value::Array(Vec::new()), "{pictures}");
    let placed = pictures["placed"].as_array().expect("a list").iter();
    let placed: Vec<(&Value, &Value)> = placed.map(|p| (&p["placement"], &p["tensors"])).collect();
    let wanted: [(Value, Value); 2] = [("whole".into(), 2.into()), ("middle".into(), 1.into())];
    assert_eq!(placed, wanted.each_ref().map(|(a, b)| (a, b)));
    let report = audit(&crate::audit::world("ai-toolkit-sdxl-bf16", SDXL)).json();
    assert_eq!(
        report["pictures"]["scaling"][0][0], "of_denoiser",
        "{report}"
    );
    // Another picture under the same name.
    world.picture("data/01.png", 128, 128, [10, 200, 90]);
    let report = audit(&world).expect(3).json();
    let others = report["pictures"]["others"].as_array().expect("a list");
    assert_eq!(others.len(), 1, "{report}");
}

/// 96 x 64 px of coloured squares, each another.
fn squares(x: u32, y: u32) -> Rgb<u8> {
    let n = (x / 8 + 16 * (y / 8)).wrapping_mul(2_654_435_761);
    Rgb([(n >> 24) as u8, (n >> 16) as u8, (n >> 8) as u8])
}

/// Columns 2 to 1 of three, as their mean by the area that each covers.
fn squashed(x: u32, y: u32) -> Rgb<u8> {
    let (first, middle) = (x / 2 * 3, x / 2 * 3 + 1);
    let (whole, half) = match x % 2 {
        0 => (squares(first, y), squares(middle, y)),
        _ => (squares(middle + 1, y), squares(middle, y)),
    };
    let mean = |c: usize| (4 * u32::from(whole.0[c]) + 2 * u32::from(half.0[c]) + 3) / 6;
    Rgb([0, 1, 2].map(|c| mean(c) as u8))
}

#[test]
fn the_part_of_the_picture_that_latents_are_of_is_told() {
    type Pixels = fn(u32, u32) -> Rgb<u8>;
    let parts: [(&str, Pixels); 9] = [
        ("middle", |x, y| squares(x + 16, y)),
        ("left", squares),
        ("right", |x, y| squares(x + 32, y)),
        ("squashed", squashed),
        ("mirrored", |x, y| squares(79 - x, y)),
        ("mirrored_left", |x, y| squares(63 - x, y)),
        ("elsewhere", |x, y| squares(x + 7, y)),
        ("mirrored_elsewhere", |x, y| squares(63 + 21 - x, y)),
        ("other", |x, y| squares(y + 300, x + 500)),
    ];
    let world = world("kohya-sdxl", SDXL);
    world.edit("128\nbucket_step = 16", "64\nbucket = false");
    for folder in ["data", "cache"] {
        std::fs::remove_dir_all(world.path(folder)).expect("removed");
    }
    std::fs::create_dir(world.path("data")).expect("a folder");
    for (name, pixels) in parts {
        let picture = RgbImage::from_fn(64, 64, pixels);
        let path = world.path(&format!("data/{name}.png"));
        picture.save(path).expect("a picture");
        world.write(&format!("data/{name}.txt"), "a red circle");
    }
    world.run(&["encode", "exp.toml"]).expect(0);
    // SimpleTuner's files say nothing of a crop.
    let export = ["export", "cache", "exp.toml", "--for", "simpletuner"];
    let export = [&export[..], &["--out", "cache"]].concat();
    world.run(&export).expect(0);
    // The parts become the picture that they are of.
    for (name, _) in parts {
        let picture = RgbImage::from_fn(96, 64, squares);
        let path = world.path(&format!("data/{name}.png"));
        picture.save(path).expect("a picture");
    }
    // It writes a list of the middles beside the pictures, whichever part it encodes.
    let crop = serde_json::json!({"crop_coordinates": [0, 16], "target_size": [64, 64]});
    let paths = parts.map(|(name, _)| (format!("/elsewhere/{name}.png"), crop.clone()));
    let list = serde_json::Value::Object(paths.into_iter().collect()).to_string();
    world.write("data/aspect_ratio_bucket_metadata_shapes.json", &list);
    let report = audit(&world).expect(3).json();
    let pictures = &report["pictures"];
    let stated = &pictures["stated"];
    // Of five that are not mirrored, and are of their picture, one lies in the middle.
    let counts = (&stated["compared"], &stated["elsewhere"]);
    assert_eq!(counts, (&5.into(), &4.into()), "{stated}");
    let placed = pictures["placed"].as_array().expect("a list");
    let found: Vec<String> = placed
        .iter()
        .map(|p| {
            let exact = p["reproduced"] == true && p["tensors"] == 1;
            assert!(exact && p["resampling"][0] == "spec", "{pictures}");
            format!("{} {} {}", p["placement"], p["mirrored"], p["expected"]).replace('"', "")
        })
        .collect();
    let wanted = [
        "middle false true",
        "middle true false",
        "left false false",
        "left true false",
        "right false false",
        "elsewhere false false",
        "elsewhere true false",
        "squashed false false",
    ];
    assert_eq!(found, wanted, "{pictures}");
    let others = pictures["others"].as_array().expect("a list");
    assert_eq!(others.len(), 1, "{pictures}");
    assert!(others[0]["nearest"]["correlation"].as_f64() < Some(0.9));
    let ran = world.run(&["audit", "cache", "exp.toml", "--device", "cpu"]);
    ran.expect(3)
        .says("1 of 9 reproduced: cropped in the middle\n")
        .says("1 of 9 reproduced only cropped in the middle, mirrored, first cache/")
        .says("1 of 9 reproduced only cropped at the left, first cache/")
        .says("1 of 9 reproduced only squashed to the size, without a crop, first cache/")
        .says("data/aspect_ratio_bucket_metadata_shapes.json is wrong on 4 of 5 crops")
        .says("left 16, top 0 instead of ")
        .says("1 of 9 of another picture, or of another crop of it")
        .says("problem: the cache has latents of other parts of the Experiment's pictures");
}

#[test]
fn a_crop_that_a_cache_writes_down_is_tried_there() {
    let world = world("ai-toolkit-sdxl-bf16", SDXL);
    let first = |report: &Value, placement: &str| {
        let placed = report["pictures"]["placed"].as_array().expect("a list");
        let found = placed.iter().find(|p| p["placement"] == placement);
        found.cloned().unwrap_or_default()
    };
    let report = audit(&world).json();
    assert_eq!(first(&report, "middle")["expected"], true, "{report}");
    // The file says that its latents begin at the left; they do not.
    let name = "cache/_latent_cache/03_MPRc0Luj_J_Vwx3Az5XAeA.safetensors";
    let bytes = world.read(name);
    let (from, to) = (&br#""crop_x":"5""#[..], &br#""crop_x":"0""#[..]);
    let at = bytes.windows(from.len()).position(|part| part == from);
    let at = at.expect("a crop");
    let edited = [&bytes[..at], to, &bytes[at + from.len()..]].concat();
    world.write_bytes(name, &edited);
    let report = audit(&world).expect(3).json();
    assert_eq!(first(&report, "middle")["expected"], false, "{report}");
}

#[test]
fn what_cannot_be_read_is_told_in_one_line() {
    let world = world("kohya-sdxl", SDXL);
    let te = "cache/01_te_outputs.npz";
    let whole = world.read(te);
    world.write_bytes(te, &whole[..whole.len() / 2]);
    let ran = world
        .run(&["audit", "cache", "exp.toml", "--device", "cpu"])
        .expect(3);
    ran.says("01_te_outputs.npz: it is no whole zip file")
        .says("as kohya makes it");
    world.write_bytes("cut/a.safetensors", &u64::MAX.to_le_bytes());
    world.write_bytes("broken/a.safetensors", b"\x04\0\0\0\0\0\0\0nope");
    world.run(&["encode", "exp.toml"]).expect(0);
    for (cache, says) in [
        ("nowhere", "cannot read nowhere"),
        (
            "cut",
            "a.safetensors: it is cut off, or no safetensors file",
        ),
        ("broken", "its header is no JSON object"),
        (
            "store",
            "it is a store of plumb's own: `plumb inspect store`",
        ),
        ("data/01.txt", "there is no entry of a cache"),
        ("exp.toml", "there is no entry of a cache"),
    ] {
        world
            .run(&["audit", cache, "exp.toml"])
            .expect(1)
            .says(says);
    }
    world.run(&["audit", "cache"]).expect(2);
    // Another base model's.
    let other = crate::audit::world("kohya-sdxl", SD3);
    other
        .run(&["audit", "cache", "exp.toml", "--device", "cpu"])
        .expect(3);
    let t5 = crate::audit::world("kohya-sd3-t5-77", SDXL);
    t5.run(&["audit", "cache", "exp.toml"])
        .expect(1)
        .says("`t5_out`: the base model has no t5: it was made for another base model");
}

#[test]
fn a_cache_whose_files_were_mostly_mixed_up_is_not_called_unknown() {
    let world = world("kohya-sdxl", SDXL);
    let [one, other] = ["cache/01_te_outputs.npz", "cache/03_te_outputs.npz"];
    let (first, second) = (world.read(one), world.read(other));
    world.write_bytes(one, &second);
    world.write_bytes(other, &first);
    world
        .run(&["audit", "cache", "exp.toml", "--device", "cpu"])
        .expect(3)
        .says("gives most of it; the nearest: as kohya makes it, which gives 1 of 3")
        .says("of captions that were changed since, or mixed up");
}

#[test]
fn a_lora_tells_how_its_captions_were_encoded_or_whose_it_may_be() {
    let world = World::new();
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
    world
        .run(&["audit", "--lora", "out/lora.safetensors"])
        .expect(0)
        .says("by plumb, for sd3 3.5-large")
        .says("Its captions were encoded as the base model expects.");
    let file = world.path("out/lora.safetensors");
    let tensors = candle_core::safetensors::load(file, &candle_core::Device::Cpu).expect("a LoRA");
    candle_core::safetensors::save(&tensors, world.path("bare.safetensors")).expect("saved");
    world
        .run(&["audit", "--lora", "bare.safetensors"])
        .expect(1)
        .says("name one with --family, or for `plumb audit --lora` an Experiment");
    world
        .run(&["audit", "--lora", "bare.safetensors", "exp.toml"])
        .expect(0)
        .says("The file records nothing of how its captions were encoded.");
}

#[test]
fn a_cache_is_compared_with_an_experiment_by_parameters_and_numbers() {
    let world = world("kohya-sd3-t5-77", SD3);
    // The trainer's own recipe, from which the cache differs in the length of T5.
    world.edit("[store]", "[recipe]\nvariant = \"kohya\"\n[store]");
    world.run(&["encode", "exp.toml"]).expect(0);
    let report = world
        .run(&["--json", "inspect", "diff", "exp.toml", "cache"])
        .json();
    let t5 = encoder_of_diff(&report, "t5");
    assert_eq!(t5["made"][1]["verdict"], "reproduced", "{t5}");
    assert_eq!(t5["made"][1]["like"], "kohya", "{t5}");
    let first = &t5["parameters"]["fields"][0];
    assert_eq!(first["field"], "tokens.max_tokens", "{t5}");
    assert_eq!(
        (&first["wanted"], &first["found"]),
        (&256.into(), &77.into())
    );
    // The same true tokens at another length: pads are on the first side alone.
    assert_eq!(t5["compared"], 2, "{t5}");
    assert!(t5["pads"]["one_sided"][0].as_u64() > Some(0), "{t5}");
    let clip = encoder_of_diff(&report, "clip_g");
    assert!(clip["made"][1]["as_experiment"] == true, "{clip}");
    assert_eq!(clip["parameters"]["fields"], Value::Array(Vec::new()));
    assert!(
        clip["tokens"]["min_cosine"].as_f64() > Some(0.9999),
        "{clip}"
    );
    assert!(clip["pooled"]["rows"] == 2, "{clip}");
    // One caption, with the cache as the first side.
    let text = String::from_utf8(world.read("data/03.txt")).expect("text");
    let caption = text.trim();
    let ran = world
        .run(&["inspect", "diff", "cache", "exp.toml", "--caption", caption])
        .expect(0);
    ran.says("cache: made as the Experiment does")
        .says("cache: made as kohya does, or nearly so")
        .says("no parameter differs that these captions tell")
        .says("first differs tokens.max_tokens: 77 | 256");
    // What is encoded for this alone is no run's.
    let mut two = vec!["inspect", "diff", "exp.toml", "--caption", caption];
    two.extend(["--caption", "words that are new"]);
    let says = "3 embeddings were encoded into the store for this alone: `plumb store gc` removes";
    world.run(&two).expect(0).says(says);
    caches_without_an_experiment_beside_them(&world);
}

/// A store's runs say which Experiment a cache's entries are of, as long as it is there; otherwise it is to be named.
fn caches_without_an_experiment_beside_them(world: &World) {
    let diff = ["--json", "inspect", "diff"];
    let ran = world.run(&[&diff[..], &["store", "cache"]].concat());
    let ran = ran.says("those of exp.toml, which the store's runs are of");
    let report = ran.json();
    let all = report["encoders"].as_array().expect("a list");
    let of_kind = |kind: &str| {
        let slot = |e: &&Value| e["slots"][0].as_str().is_some_and(|s| s.starts_with(kind));
        all.iter().find(slot).cloned().unwrap_or_default()
    };
    // A store's encoder is told from the cache's by the Experiment's own specs, not by what resembles it.
    assert_eq!(
        of_kind("t5")["parameters"]["fields"][0]["field"],
        "tokens.max_tokens"
    );
    let clip = of_kind("clip");
    assert_eq!(
        clip["parameters"]["fields"],
        Value::Array(Vec::new()),
        "{clip}"
    );
    assert_eq!(clip["compared"], 2, "{clip}");
    std::fs::rename(world.path("exp.toml"), world.path("else.toml")).expect("moved");
    let says = "runs are of exp.toml, which is not there: plumb inspect diff store cache --experiment EXPERIMENT.toml";
    let ran = world.run(&["inspect", "diff", "store", "cache"]);
    ran.expect(2).says(says);
    let named = ["cache", "cache", "--experiment", "else.toml"];
    let report = world.run(&[&diff[..], &named].concat()).json();
    let t5 = encoder_of_diff(&report, "t5");
    assert!(t5["equal"] == 2 && t5["compared"] == 2, "{t5}");
    let ran = world.run(&["inspect", "diff", "cache", "cache"]);
    ran.expect(2)
        .says("neither side says which one: plumb inspect diff cache cache --experiment");
    let idle = [
        "inspect",
        "diff",
        "else.toml",
        "cache",
        "--experiment",
        "else.toml",
    ];
    world
        .run(&idle)
        .expect(2)
        .says("one of the sides is an Experiment");
    let idle = [
        "inspect",
        "diff",
        "store",
        "store",
        "--experiment",
        "else.toml",
    ];
    world.run(&idle).expect(2).says("neither side is one");
}

#[track_caller]
fn encoder_of_diff<'a>(report: &'a Value, slot: &str) -> &'a Value {
    let all = report["encoders"].as_array().expect("a list");
    let found = all.iter().find(|e| e["slots"][0] == slot);
    found.unwrap_or_else(|| panic!("no {slot} in {report}"))
}

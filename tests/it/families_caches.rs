//! Caches of Wan 2.1, FLUX.2 klein, Z-Image and Chroma: those that other trainers' own code wrote (`tests/fixtures/foreign`) are named, and
//! what plumb writes in their forms is read as what it is.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::world::World;
use crate::{chroma, klein, wan, zimage};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/foreign")
        .join(name)
}

/// An Experiment on the fixtures' pictures, and their clip.
fn experiment(world: &World, [family, flavor, model]: [&str; 3]) {
    world.copy_folder(&fixture("pictures"), "data");
    let frames = match family {
        "wan" => {
            world.copy_folder(&fixture("clip"), "moving");
            "[[dataset]]\npath = \"moving\"\nresolution = 32\nbucket = false\nbucket_step = 16\nframes = 5\nwindows = \"slide:4\"\n"
        }
        _ => "",
    };
    world.write(
        "exp.toml",
        &format!(
            "[model]\nfamily = {family:?}\nflavor = {flavor:?}\npath = {model:?}\n[store]\npath = \"store\"\n\
             [[dataset]]\npath = \"data\"\nresolution = 128\nbucket = false\n{frames}"
        ),
    );
}

fn audited(world: &World, name: &str) -> Value {
    world.copy_folder(&fixture(name), name);
    let args = ["--json", "audit", name, "exp.toml", "--device", "cpu"];
    world.run(&args).json()
}

/// What is said of the only encoder, and of the latents: whose, in which fields otherwise, what became of the rows, scaling and moment.
fn said(report: &Value) -> [String; 5] {
    let encoders = report["encoders"].as_array().expect("a list");
    assert_eq!(encoders.len(), 1, "{report}");
    let found = &encoders[0];
    assert_eq!(found["verdict"], "reproduced", "{found}");
    let pictures = &report["pictures"];
    assert_eq!(pictures["others"], Value::Array(Vec::new()), "{pictures}");
    for placed in pictures["placed"].as_array().expect("a list") {
        assert_eq!(placed["expected"], true, "{placed}");
    }
    assert_eq!(report["strangers"], Value::Array(Vec::new()), "{report}");
    assert_eq!(report["unreadable"], Value::Array(Vec::new()), "{report}");
    let fields = found["changed"].as_array().expect("a list").iter();
    let fields: Vec<String> = fields
        .map(|f| format!("{} {}", f["field"], f["cached"]).replace('"', ""))
        .collect();
    let first = |list: &Value| list[0][0].as_str().unwrap_or_default().to_owned();
    let text = |value: &Value| value.as_str().expect("a word").to_owned();
    [
        text(&found["like"]),
        fields.join(", "),
        text(&found["after"]),
        first(&pictures["scaling"]),
        first(&pictures["moment"]),
    ]
}

#[test]
fn what_each_trainer_wrote_of_wan_is_named_as_its_own() {
    let world = wan::world();
    experiment(&world, ["wan", "t2v-1.3b", "wan"]);
    let denoisers = "of_denoiser";
    let report = audited(&world, "musubi-wan");
    assert_eq!(said(&report), ["musubi", "", "nothing", denoisers, "mean"]);
    // Two stills, and two windows of the clip.
    assert_eq!(report["pictures"]["compared"], 4, "{report}");
    assert_eq!(report["as_base"], true, "{report}");
    for (name, whose, after, moment) in [
        ("ai-toolkit-wan-bf16", "ai-toolkit", "filled_up", "sample"),
        ("simpletuner-wan-bf16", "simpletuner", "filled_up", "mean"),
        (
            "diffusion-pipe-wan-bf16",
            "diffusion-pipe",
            "unseen_pads",
            "mean",
        ),
    ] {
        let report = audited(&world, name);
        let wanted = [whose, "", after, denoisers, moment];
        assert_eq!(said(&report), wanted, "{name}");
    }
}

#[test]
fn a_clip_of_other_frames_than_the_experiments_is_told() {
    let world = wan::world();
    experiment(&world, ["wan", "t2v-1.3b", "wan"]);
    world.edit("windows = \"slide:4\"", "windows = \"head\"");
    let report = {
        world.copy_folder(&fixture("musubi-wan"), "cache");
        let args = ["--json", "audit", "cache", "exp.toml", "--device", "cpu"];
        world.run(&args).expect(3).json()
    };
    let placed = report["pictures"]["placed"].as_array().expect("a list");
    let other = placed.iter().find(|p| p["expected"] == false);
    let window = &other.unwrap_or_else(|| panic!("{report}"))["window"];
    assert_eq!(
        (&window["start"], &window["frames"]),
        (&4.into(), &5.into())
    );
}

#[test]
fn what_trainers_wrote_of_klein_is_named_as_theirs() {
    let world = klein::world();
    experiment(&world, ["flux2", "klein-base-4b", "klein"]);
    for (name, whose, moment) in [
        ("musubi-flux2-bf16", "musubi", "mean"),
        ("simpletuner-flux2-bf16", "simpletuner", "mean"),
        ("ai-toolkit-flux2-bf16", "ai-toolkit", "near"),
    ] {
        let report = audited(&world, name);
        let wanted = [whose, "", "nothing", "of_denoiser", moment];
        assert_eq!(said(&report), wanted, "{name}");
    }
    // `text_encoder_sequence_length` of 256: as no token sees a later one, a short caption's rows are the first of 512.
    let report = audited(&world, "onetrainer-flux2-256");
    let wanted = ["onetrainer", "", "shortened", "of_vae", "near"];
    assert_eq!(said(&report), wanted, "{report}");
    assert_eq!(report["as_base"], false, "{report}");
}

#[test]
fn what_trainers_wrote_of_z_image_is_named_as_theirs() {
    let world = zimage::world();
    experiment(&world, ["zimage", "base", "zimage"]);
    for (name, whose, after, scaling, moment) in [
        ("musubi-zimage-bf16", "musubi", "nothing", "of_vae", "mean"),
        (
            "onetrainer-zimage-bf16",
            "onetrainer",
            "nothing",
            "of_vae",
            "near",
        ),
        // It keeps the line's end of a caption's file, which the template's encoder reads.
        (
            "ai-toolkit-zimage-bf16",
            "ai-toolkit",
            "nothing",
            "of_denoiser",
            "sample",
        ),
        (
            "simpletuner-zimage-bf16",
            "simpletuner",
            "unseen_pads",
            "of_denoiser",
            "sample",
        ),
    ] {
        let report = audited(&world, name);
        let wanted = [whose, "", after, scaling, moment];
        assert_eq!(said(&report), wanted, "{name}");
        let reading = match whose {
            "ai-toolkit" => "line_ends",
            _ => "experiment",
        };
        assert_eq!(report["reading"], reading, "{name}");
    }
}

/// Each of them masks T5 otherwise than Chroma's author.
#[test]
fn what_trainers_wrote_of_chroma_is_named_as_theirs() {
    let world = chroma::world();
    experiment(&world, ["chroma", "hd", "chroma"]);
    for (name, whose, after, scaling, moment) in [
        (
            "onetrainer-chroma-bf16",
            "onetrainer",
            "nothing",
            "of_vae",
            "near",
        ),
        (
            "ai-toolkit-chroma-bf16",
            "ai-toolkit",
            "unseen_pads",
            "of_denoiser",
            "sample",
        ),
        // Zeros are behind the one pad that the denoiser sees.
        (
            "simpletuner-chroma-zeroed",
            "simpletuner",
            "unseen_pads",
            "of_denoiser",
            "sample",
        ),
    ] {
        let report = audited(&world, name);
        let wanted = [whose, "", after, scaling, moment];
        assert_eq!(said(&report), wanted, "{name}");
        assert_eq!(report["as_base"], false, "{name}");
    }
    // Of 32 tokens instead of 512, which no row that the denoiser sees depends on.
    let report = audited(&world, "kohya-chroma-t5-32");
    let wanted = ["kohya", "", "unseen_pads", "of_denoiser", "sample"];
    assert_eq!(said(&report), wanted);
    assert_eq!(report["as_base"], false, "{report}");
}

fn export(world: &World, target: &str) -> crate::util::Ran {
    let args = [
        "export", "cache", "exp.toml", "--for", target, "--out", target,
    ];
    world.run(&args)
}

fn audit(world: &World, folder: &str) -> Value {
    world.run(&["--json", "audit", folder, "exp.toml"]).json()
}

#[test]
fn what_is_written_for_wan_is_found_by_its_names_and_the_rest_refused() {
    let world = wan::world();
    experiment(&world, ["wan", "t2v-1.3b", "wan"]);
    world.run(&["encode", "exp.toml"]).expect(0);
    export(&world, "musubi")
        .expect(0)
        .says("4 files of embeddings")
        .says("the data set of clips: cache_directory = \"musubi/clips\"");
    for file in [
        "01_0128x0128_wan.safetensors",
        "01_wan_te.safetensors",
        "clips/clip_00004-005_0032x0032_wan.safetensors",
        "clips/clip_wan_te.safetensors",
    ] {
        assert!(world.path("musubi").join(file).is_file(), "{file}");
    }
    let report = audit(&world, "musubi");
    assert_eq!(report["as_base"], true, "{report}");
    assert_eq!(said(&report)[3..], ["of_denoiser", "mean"]);
    // It is no square: ai-toolkit would crop it otherwise.
    for file in ["data/03.png", "data/03.txt"] {
        std::fs::remove_file(world.path(file)).expect("removed");
    }
    export(&world, "ai-toolkit")
        .expect(2)
        .says("it is a clip, and ai-toolkit names no frames in its cache");
    export(&world, "kohya")
        .expect(2)
        .says("that cache is not written; of this trainer's those of sd3, flux1, sdxl are");
}

/// Layers of another model fit by shape: only the numbers tell.
#[test]
fn embeddings_of_the_wrong_layers_are_named_in_the_cache_that_they_were_written_to() {
    let world = klein::world();
    experiment(&world, ["flux2", "klein-base-4b", "klein"]);
    world.edit(
        "[store]",
        "[recipe]\nvariant = \"diffusers-script\"\n[store]",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    export(&world, "musubi").expect(0);
    world.edit("variant = \"diffusers-script\"", "variant = \"reference\"");
    let report = audit(&world, "musubi");
    assert_eq!(report["as_base"], false, "{report}");
    let [like, changed, after, scaling, moment] = said(&report);
    assert_eq!((like.as_str(), after.as_str()), ("musubi", "nothing"));
    assert_eq!(changed, "forward.hidden_layers [10,20,30]");
    assert_eq!([scaling.as_str(), &moment], ["of_denoiser", "mean"]);
    let also = report["encoders"][0]["also"].to_string();
    assert!(also.contains("diffusers-script"), "{report}");
}

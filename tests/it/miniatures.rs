//! The bundled miniatures of FLUX.1 and SDXL, from pictures to a LoRA, a sample, and a step that diffusers and peft make
//! again. That of SD3 is in `pipeline.rs`.

use std::path::Path;

use crate::util::plumb;
use crate::world::{World, tiny_sd3};

/// `modules` is what the names of a LoRA's tensors begin with.
fn from_pictures_to_a_lora(model: &str, family: &str, flavor: &str, modules: &str) {
    let base = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("assets")
        .join(model);
    let world = World::new();
    world.edit(
        &format!("path = {:?}", tiny_sd3().display().to_string()),
        &format!("path = {:?}", base.display().to_string()),
    );
    world.edit("family = \"sd3\"", &format!("family = {family:?}"));
    world.edit("flavor = \"3.5-large\"", &format!("flavor = {flavor:?}"));
    world
        .run(&["model", "check", &base.display().to_string()])
        .expect(0)
        .says(&format!("{family}/{flavor}"));
    world
        .run(&["train", "exp.toml"])
        .expect(4)
        .says("plumb encode exp.toml");
    world.run(&["encode", "exp.toml"]).expect(0);
    world
        .run(&["train", "exp.toml"])
        .expect(0)
        .says("4 steps done");
    let lora = candle_core::safetensors::load(
        world.path("out/lora.safetensors"),
        &candle_core::Device::Cpu,
    )
    .expect("a LoRA");
    assert!(
        lora.keys().all(|name| name.starts_with(modules)),
        "{lora:?}"
    );
    world
        .run(&["sample", "exp.toml", "--lora", "out/lora.safetensors"])
        .expect(0);
    let picture = image::open(world.path("out/samples/seed0-000.png")).expect("a picture");
    assert_eq!((picture.width(), picture.height()), (64, 64));
    world
        .run(&["train", "exp.toml", "--dump-step", "3", "step.safetensors"])
        .expect(2)
        .says("--restart");
    std::fs::remove_dir_all(world.path("out")).expect("removed");
    world.replay_step(3, &base);
}

#[test]
fn flux_from_pictures_to_a_lora() {
    from_pictures_to_a_lora("tiny-flux", "flux1", "dev", "transformer.");
}

#[test]
fn sdxl_from_pictures_to_a_lora() {
    from_pictures_to_a_lora("tiny-sdxl", "sdxl", "base-1.0", "unet.");
}

#[test]
fn the_demo_of_a_family_that_is_not_in_the_program_takes_a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let ran = plumb(folder.path(), &["demo", "--family", "flux1"]);
    let said = "give its folder with --model (assets/tiny-flux in a clone of https://";
    ran.expect(2).says(said);
    let nowhere = ["demo", "--family", "sdxl", "--model", "nowhere"];
    plumb(folder.path(), &nowhere)
        .expect(1)
        .says("nowhere: No such file");

    let other = tiny_sd3().display().to_string();
    let ran = plumb(
        folder.path(),
        &[
            "demo", "--family", "flux1", "--model", &other, "--device", "cpu",
        ],
    );
    assert_ne!(ran.status, 0, "{}", ran.stderr);
    assert!(
        folder
            .path()
            .join("plumb-demo/tiny-flux/vae/config.json")
            .is_file()
    );
    assert!(
        folder
            .path()
            .join("plumb-demo/tiny-style/train/00.png")
            .is_file()
    );
}

//! Each command asks of an Experiment only what it uses, and says clearly what it lacks.

use crate::world::{World, tiny_sd3};

/// A world whose Experiment has these sections behind `[model]`.
fn world(sections: &str) -> World {
    let world = World::new();
    let path = tiny_sd3().display().to_string();
    world.write(
        "exp.toml",
        &format!("[model]\nfamily = \"sd3\"\nflavor = \"3.5-large\"\npath = {path:?}\n{sections}"),
    );
    world
}

const STORE: &str = "[store]\npath = \"store\"\n";
const PICTURES: &str = "[[dataset]]\npath = \"pictures\"\nresolution = 64\nbucket_step = 16\n";

#[test]
fn tokens_need_the_model_alone() {
    let tokens = ["inspect", "tokens", "exp.toml", "--caption", "a cat"];
    world("").run(&tokens).expect(0).says("clip_l");
}

#[test]
fn captions_of_a_file_need_neither_pictures_nor_a_training() {
    let world = world(STORE);
    world.write("captions.txt", "a cat\na dog\n");
    world
        .run(&["encode", "exp.toml", "--captions", "captions.txt"])
        .expect(0)
        .says("2 captions");
    let conditioning = ["inspect", "conditioning", "exp.toml", "--caption", "a cat"];
    world
        .run(&[&conditioning[..], &["--out", "c.safetensors"]].concat())
        .expect(0);
}

#[test]
fn pictures_are_encoded_without_a_training_and_a_training_says_what_it_lacks() {
    let world = world(&format!("{STORE}{PICTURES}"));
    world
        .run(&["encode", "exp.toml"])
        .expect(0)
        .says("3 pictures");
    let picture = [
        "inspect",
        "latents",
        "exp.toml",
        "--picture",
        "pictures/p0.png",
    ];
    world
        .run(&[&picture[..], &["--out", "l.safetensors"]].concat())
        .expect(0);
    let ran = world.run(&["train", "exp.toml"]).expect(2);
    assert_eq!(
        ran.stderr,
        "error: exp.toml: training needs `steps` (or `epochs`) and `output` under [train]; \
         write at least three lines: `[train]`, `steps = 2000` and `output = \"out\"`\n"
    );
    let text = String::from_utf8(world.read("exp.toml")).expect("UTF-8");
    world.write("exp.toml", &format!("{text}[train]\noutput = \"out\"\n"));
    world
        .run(&["train", "exp.toml"])
        .expect(2)
        .says("training needs `steps` (or `epochs`) under [train]");
}

#[test]
fn sampling_needs_a_folder_for_its_pictures() {
    let world = world(&format!("{STORE}[sample]\nwidth = 64\nheight = 64\n"));
    let sample = ["sample", "exp.toml", "--prompt", "a cat", "--steps", "1"];
    world.run(&sample).expect(2).says("--out FOLDER");
    world
        .run(&[&sample[..], &["--out", "samples"]].concat())
        .expect(0)
        .says("a cat");
}

#[test]
fn what_is_encoded_needs_a_store() {
    let world = world(PICTURES);
    world
        .run(&["encode", "exp.toml"])
        .expect(2)
        .says("exp.toml: what is encoded needs a place, `path` under [store]");
}

#[test]
fn without_pictures_and_prompts_there_is_nothing_to_encode() {
    let world = world(STORE);
    world
        .run(&["encode", "exp.toml"])
        .expect(2)
        .says("[[dataset]]")
        .says("--captions");
}

//! Numbers that are not finite: every command that computes with a model says so in a line, and makes nothing of them.

use candle_core::{Device, Tensor};

use crate::bad_input::{change, with_own_model};
use crate::util::Ran;
use crate::world::World;

/// An encoded world, of whose model a tensor then has the largest numbers that there are: finite, but no sum of them is.
fn overflowing(file: &str, tensor: &str) -> World {
    let world = with_own_model();
    world.run(&["encode", "exp.toml"]).expect(0);
    change(&world, &format!("model/{file}"), |tensors| {
        let shape = tensors[tensor].shape().clone();
        let largest = Tensor::full(f32::MAX, shape, &Device::Cpu).expect("a tensor");
        tensors.insert(tensor.to_owned(), largest);
    });
    world
}

fn denoiser() -> World {
    overflowing(
        "transformer/diffusion_pytorch_model.safetensors",
        "proj_out.weight",
    )
}

/// The line that it ends with, of which nothing but its beginning and one word may vary.
#[track_caller]
fn ends_with(ran: Ran, begins: &str, has: &str) {
    let ran = ran.expect(1);
    let last = ran.stderr.lines().last().unwrap_or_default();
    assert!(
        last.starts_with(&format!("error: {begins}")) && last.contains(has),
        "{}",
        ran.stderr
    );
    let told = ran.stderr.matches("error: ").count();
    assert_eq!(told, 1, "{}", ran.stderr);
}

#[test]
fn no_picture_is_made_of_what_is_no_number() {
    let world = denoiser();
    let sample = ["sample", "exp.toml"];
    let why = "model are damaged (fetch them again)";
    let begins =
        "prompt 1, sampler step 1 of 2: the prediction is NaN or infinite: the weights of ";
    ends_with(world.run(&sample), begins, why);
    assert!(!world.path("out/samples").exists());
    // Products in fp8 may be why, and are named where they are asked for.
    let plain = world.run(&sample);
    assert!(!plain.stderr.contains("[model]"), "{}", plain.stderr);
    world.edit("path = \"model\"", "path = \"model\"\ncompute = \"fp8\"");
    ends_with(world.run(&sample), begins, "`[model] compute = \"fp8\"`");
}

#[test]
fn no_picture_is_made_of_pixels_that_are_no_numbers() {
    let world = overflowing(
        "vae/diffusion_pytorch_model.safetensors",
        "decoder.conv_out.weight",
    );
    let begins = "prompt 1, a pixel that the VAE made is NaN or infinite: ";
    ends_with(world.run(&["sample", "exp.toml"]), begins, "decoder");
    assert!(!world.path("out/samples").exists());
}

#[test]
fn a_training_ends_at_the_first_number_that_is_none() {
    let world = denoiser();
    let train = ["train", "exp.toml", "--restart"];
    let nothing = "nothing was learned before it: the weights of ";
    ends_with(world.run(&train), "step 1: the loss is ", nothing);
    world.edit("seed = 5", "seed = 5\nsample_every = 1");
    let previews =
        "step 0: previews: prompt 1, sampler step 1 of 2: the prediction is NaN or infinite: ";
    ends_with(world.run(&train), previews, nothing);
    assert!(!world.path("out/previews").exists());
    world.edit(
        "sample_every = 1",
        "validate_every = 1\nvalidation_share = 0.3",
    );
    ends_with(
        world.run(&train),
        "step 0: the validation loss is ",
        nothing,
    );
    // What cannot be read again is not written.
    let metrics = String::from_utf8(world.read("out/metrics.jsonl")).expect("text");
    assert!(!metrics.contains("null"), "{metrics}");
}

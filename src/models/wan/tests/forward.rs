//! The forward pass against diffusers.

use super::*;

/// Aimed at; the promise is 1e-4.
const LIMIT: f64 = 1e-5;

/// A picture, two latent frames, five, and a picture of one row of patches.
const INPUTS: usize = 4;

#[test]
fn the_prediction_equals_diffusers() {
    for name in MODELS {
        let golden = golden(name);
        let frames = [0, 1, 2, 3].map(|i| golden.inputs(i).latents.dim(2).unwrap());
        assert_eq!(frames, [1, 2, 5, 1]);
        golden.check_forward(&*golden.model(), INPUTS, LIMIT);
    }
}

#[test]
fn the_naming_of_the_authors_gives_the_same_numbers_bit_for_bit() {
    for name in MODELS {
        let golden = golden(name);
        let path = golden_path(&format!("wan_{name}_single.safetensors"));
        let single = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let own = |name: &str| name.trim_start_matches("model.diffusion_model.").to_owned();
        let single = single
            .into_iter()
            .map(|(name, t)| (own(&name), t))
            .collect();
        // With the config, as heads of so few channels are in no released model.
        let folder = golden.folder_with(&single, &golden.metadata["config"]);
        golden.check_same(&load(folder.path()).unwrap(), INPUTS);
    }
}

#[test]
fn a_row_of_a_batch_equals_the_row_alone() {
    golden("two").check_rows_alone(&[1]);
}

#[test]
fn inputs_that_do_not_fit_get_one_clear_line() {
    let check = |change: &dyn Fn(&mut Inputs), expected: &str| {
        let golden = golden("two");
        let mut inputs = golden.inputs(0);
        change(&mut inputs);
        assert_eq!(inputs.refused_by(&*golden.model()), expected);
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    check(
        &|inputs| inputs.latents = zeros(&[2, 4, 8, 8]),
        "denoiser input `latents`: expected videos of shape [batch, channels, frames, height, width], found [2, 4, 8, 8]",
    );
    check(
        &|inputs| inputs.latents = zeros(&[2, 4, 1, 7, 8]),
        "latents of 1 frame of 7 x 8: expected a height and a width that are multiples of 2",
    );
    check(
        &|inputs| inputs.latents = zeros(&[2, 4, 33, 2, 2]),
        "latents of 33 frames of 2 x 2: this model has positions for 32 frames, rows and columns of patches",
    );
    check(
        &|inputs| inputs.conditioning.context = zeros(&[2, 5, 21]),
        "denoiser input `context`: expected shape [2, 5, 20], found [2, 5, 21]",
    );
    check(
        &|inputs| inputs.conditioning.token_counts = Some(vec![5, 4]),
        "denoiser input `token_counts`: this model sees all rows of its context, found a mask",
    );
    check(
        &|inputs| inputs.conditioning.reference = Some(zeros(&[2, 4, 8, 8])),
        "denoiser input `reference`: this network takes no reference picture, found [2, 4, 8, 8]",
    );
}

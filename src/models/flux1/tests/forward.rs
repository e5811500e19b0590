//! The forward pass against diffusers.

use super::*;

/// Aimed at; the promise is 1e-4.
const LIMIT: f64 = 1e-5;

/// Three shapes, and captions with pads that are not seen.
const INPUTS: usize = 4;

/// The place of the captions with pads.
const PADDED: usize = 3;

#[test]
fn the_prediction_equals_diffusers() {
    for name in MODELS {
        let golden = golden(name);
        assert!(golden.inputs(PADDED).conditioning.token_counts.is_some());
        golden.check_forward(&*golden.model(), INPUTS, LIMIT);
    }
}

#[test]
fn a_folder_in_shards_gives_the_same_network() {
    let golden = golden("dev");
    let folder = golden.folder();
    golden.split_into_shards(folder.path());
    golden.check_forward(&*load(folder.path()).unwrap(), INPUTS, LIMIT);
}

#[test]
fn the_single_file_naming_gives_the_same_numbers_bit_for_bit() {
    for name in MODELS {
        golden(name).check_single_file(&format!("flux1_{name}_single.safetensors"), INPUTS);
    }
}

#[test]
fn a_row_of_a_batch_equals_the_row_alone() {
    golden("dev").check_rows_alone(&[1, PADDED]);
}

#[test]
fn what_masked_pads_hold_does_not_matter() {
    let golden = golden("dev");
    let (model, mut inputs) = (golden.model(), golden.inputs(PADDED));
    let call = |inputs: &Inputs| inputs.call(&*model, &Tape::off(&Kernels::NONE), &Bound::none());
    let before = call(&inputs);
    // The pads of both rows: from the longer caption's end on.
    let (from, all) = (6, inputs.conditioning.context.dim(1).unwrap());
    let kept = inputs.conditioning.context.narrow(1, 0, from).unwrap();
    let pads = inputs.conditioning.context.narrow(1, from, all - from);
    let changed = Tensor::cat(&[kept, (pads.unwrap() * 3.0).unwrap()], 1).unwrap();
    inputs.conditioning.context = changed;
    assert!(difference(call(&inputs).tensor(), before.tensor()) < 1e-7);
    inputs.conditioning.token_counts = None;
    assert!(difference(call(&inputs).tensor(), before.tensor()) > 1e-3);
}

#[test]
fn inputs_that_do_not_fit_get_one_clear_line() {
    let check = |name: &str, change: &dyn Fn(&mut Inputs), expected: &str| {
        let golden = golden(name);
        let mut inputs = golden.inputs(0);
        change(&mut inputs);
        assert_eq!(inputs.refused_by(&*golden.model()), expected);
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    check(
        "dev",
        &|inputs| inputs.latents = zeros(&[2, 4, 7, 8]),
        "latents of 7 x 8: expected a height and a width that are multiples of 2",
    );
    check(
        "dev",
        &|inputs| inputs.latents = zeros(&[2, 3, 8, 8]),
        "denoiser input `latents`: expected shape [2, 4, 8, 8], found [2, 3, 8, 8]",
    );
    check(
        "dev",
        &|inputs| inputs.latents = zeros(&[2, 4, 3, 8, 8]),
        "denoiser input `latents`: expected pictures of shape [batch, channels, height, width], found [2, 4, 3, 8, 8]",
    );
    check(
        "dev",
        &|inputs| inputs.conditioning.context = zeros(&[2, 5, 21]),
        "denoiser input `context`: expected shape [2, 5, 20], found [2, 5, 21]",
    );
    check(
        "dev",
        &|inputs| inputs.conditioning.pooled = zeros(&[1, 12]),
        "denoiser input `pooled`: expected shape [2, 12], found [1, 12]",
    );
    check(
        "dev",
        &|inputs| inputs.conditioning.guidance = Some(zeros(&[3])),
        "denoiser input `guidance`: expected shape [2], found [3]",
    );
    check(
        "dev",
        &|inputs| inputs.conditioning.guidance = None,
        "denoiser input `guidance`: this model has a guidance embedding, found no input",
    );
    check(
        "schnell",
        &|inputs| inputs.conditioning.guidance = Some(zeros(&[2])),
        "denoiser input `guidance`: this model has no guidance embedding, found an input",
    );
    check(
        "schnell",
        &|inputs| inputs.conditioning.token_counts = Some(vec![5, 6]),
        "denoiser input `token_counts`: expected 2 numbers of at most 5, found [5, 6]",
    );
}

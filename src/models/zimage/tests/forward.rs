//! The forward pass against diffusers.

use super::*;

/// Aimed at; the promise is 1e-4.
const LIMIT: f64 = 1e-5;

/// With pictures and captions that fill a multiple of 32 and that do not, batches of captions of different lengths, and a caption of one token.
const INPUTS: usize = 5;

/// The places of those with rows that are none of a caption's.
const PADDED: [usize; 3] = [2, 3, 4];

#[test]
fn the_prediction_equals_diffusers() {
    for name in MODELS {
        let golden = golden(name);
        for i in PADDED {
            assert!(golden.inputs(i).conditioning.token_counts.is_some());
        }
        golden.check_forward(&*golden.model(), INPUTS, LIMIT);
    }
}

#[test]
fn the_single_file_naming_gives_the_same_numbers_bit_for_bit() {
    for name in MODELS {
        golden(name).check_single_file(&format!("zimage_{name}_single.safetensors"), INPUTS);
    }
}

#[test]
fn a_row_of_a_batch_equals_the_row_alone() {
    golden("two").check_rows_alone(&[1, 2, 3]);
}

#[test]
fn rows_that_are_not_seen_need_not_be_there() {
    for name in MODELS {
        golden(name).check_unseen_rows(2);
    }
}

#[test]
fn the_timestep_matters_and_nothing_else_is_told() {
    let golden = golden("two");
    let (model, mut inputs) = (golden.model(), golden.inputs(0));
    let before = inputs.output(&*model);
    inputs.timesteps = (inputs.timesteps * 0.9).unwrap();
    assert!(difference(&inputs.output(&*model), &before) > 1e-3);
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
        &|inputs| inputs.latents = zeros(&[2, 4, 7, 10]),
        "latents of 7 x 10: expected a height and a width that are multiples of 2",
    );
    check(
        &|inputs| inputs.conditioning.context = zeros(&[2, 5, 21]),
        "denoiser input `context`: expected shape [2, 5, 20], found [2, 5, 21]",
    );
    check(
        &|inputs| inputs.conditioning.pooled = zeros(&[2, 12]),
        "denoiser input `pooled`: expected shape [2, 0], found [2, 12]",
    );
    check(
        &|inputs| inputs.conditioning.guidance = Some(zeros(&[2])),
        "denoiser input `guidance`: this model has no guidance embedding, found an input",
    );
    check(
        &|inputs| inputs.conditioning.token_counts = Some(vec![5, 6]),
        "denoiser input `token_counts`: expected 2 numbers of 1 to 5, found [5, 6]",
    );
}

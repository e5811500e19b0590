//! A reference picture's tokens behind those of the noisy one, against diffusers and peft.

use super::*;
use crate::models::testing::{check_activations, check_finite_differences, check_recompute_of};

/// References of the picture's size, smaller, and larger.
const INPUTS: usize = 3;

#[test]
fn the_prediction_beside_a_reference_equals_diffusers() {
    let golden = golden("edit");
    golden.check_forward(&*golden.model(), INPUTS, 1e-5);
    golden.check_rows_alone(&[1, 2]);
}

#[test]
fn every_adapters_gradient_beside_a_reference_equals_pefts() {
    golden("edit").check_gradients(&["all"]);
}

#[test]
fn running_blocks_again_gives_the_same_gradients_beside_a_reference() {
    check_recompute_of(&golden("edit"), &["all"], 1);
}

#[test]
fn each_a_and_b_receives_the_gradient_that_finite_differences_give_beside_a_reference() {
    let golden = golden("edit");
    let (set, _) = golden.adapters(&golden.model(), "all");
    let inputs = golden.inputs(1).in_f64();
    let model = golden.model_in_f64();
    check_finite_differences("edit", &*model, &inputs, &set, "nothing is unused");
}

#[test]
fn a_reference_counts() {
    let golden = golden("edit");
    let (model, mut inputs) = (golden.model(), golden.inputs(0));
    let with = inputs.output(&*model);
    inputs.conditioning.reference = None;
    assert!(difference(&inputs.output(&*model), &with) > 1e-3);
}

#[test]
fn a_pass_keeps_as_much_as_the_plan_of_memory_counts_beside_a_reference() {
    check_activations(&golden("edit"), (24, 32), 40);
}

#[test]
fn a_reference_that_does_not_fit_gets_one_clear_line() {
    let golden = golden("edit");
    let mut inputs = golden.inputs(0);
    let zeros = Tensor::zeros((2, 3, 8, 8), DType::F32, &Device::Cpu).unwrap();
    inputs.conditioning.reference = Some(zeros);
    assert_eq!(
        inputs.refused_by(&*golden.model()),
        "denoiser input `reference`: expected shape [2, 4, 8, 8], found [2, 3, 8, 8]"
    );
}

//! A reference picture's tokens behind those of the noisy one, against diffusers and peft (`tools/goldens/flux1_kontext.py`).

use super::*;
use crate::models::testing::{
    check_activations, check_finite_differences, check_loss_curve, check_recompute_of,
};

/// References of the picture's size, smaller, and larger.
const INPUTS: usize = 3;

fn call(model: &dyn Denoiser, inputs: &Inputs) -> Tensor {
    let tape = Tape::off(&Kernels::NONE);
    inputs.call(model, &tape, &Bound::none()).into_tensor()
}

#[test]
fn the_prediction_beside_a_reference_equals_diffusers() {
    let golden = golden("kontext");
    golden.check_forward(&*golden.model(), INPUTS, 1e-5);
}

#[test]
fn every_adapters_gradient_beside_a_reference_equals_pefts() {
    golden("kontext").check_gradients(&["all"]);
}

#[test]
fn twenty_steps_of_training_on_pairs_have_the_losses_of_peft_and_torch() {
    check_loss_curve(&golden("kontext"));
}

#[test]
fn running_blocks_again_gives_the_same_gradients_beside_a_reference() {
    check_recompute_of(&golden("kontext"), &["all"], 1);
}

#[test]
fn each_a_and_b_receives_the_gradient_that_finite_differences_give_beside_a_reference() {
    let golden = golden("kontext");
    let (set, _) = golden.adapters(&golden.model(), "all");
    let inputs = golden.inputs(1).in_f64();
    let model = golden.model_in_f64();
    check_finite_differences("kontext", &*model, &inputs, &set, "nothing is unused");
}

#[test]
fn a_row_of_a_batch_equals_the_row_alone_beside_a_reference() {
    let golden = golden("kontext");
    let (model, inputs) = (golden.model(), golden.inputs(2));
    let whole = call(&*model, &inputs);
    for row in 0..2 {
        let expected = whole.narrow(0, row, 1).unwrap();
        assert!(difference(&call(&*model, &inputs.row(row)), &expected) < 1e-6);
    }
}

#[test]
fn masked_pads_are_not_seen_beside_a_reference() {
    let golden = golden("kontext");
    let (model, mut inputs) = (golden.model(), golden.inputs(1));
    let context = inputs.conditioning.context.clone();
    inputs.conditioning.context = context.narrow(1, 0, 4).unwrap();
    let expected = call(&*model, &inputs);
    inputs.conditioning.context = context;
    inputs.conditioning.token_counts = Some(vec![4, 4]);
    assert!(difference(&call(&*model, &inputs), &expected) < 1e-5);
}

#[test]
fn a_reference_counts_and_where_it_lies_counts() {
    let golden = golden("kontext");
    let (model, mut inputs) = (golden.model(), golden.inputs(1));
    let with = call(&*model, &inputs);
    // 10 x 4 latents, as 5 x 2 patches: the same patches as 10 x 1 lie elsewhere.
    let reference = inputs.conditioning.reference.clone().unwrap();
    let (b, c, ..) = reference.dims4().unwrap();
    let rows = reference.reshape((b, c, 5, 2, 2, 2)).unwrap();
    let column = rows.permute((0, 1, 2, 4, 3, 5)).unwrap();
    inputs.conditioning.reference = Some(column.reshape((b, c, 20, 2)).unwrap());
    assert!(difference(&call(&*model, &inputs), &with) > 1e-3);
    inputs.conditioning.reference = None;
    assert!(difference(&call(&*model, &inputs), &with) > 1e-3);
}

#[test]
fn a_pass_keeps_as_much_as_the_plan_of_memory_counts_beside_a_reference() {
    check_activations(&golden("kontext"), (24, 32), 40);
}

#[test]
fn diffusers_loads_a_saved_lora_and_predicts_the_same_beside_a_reference() {
    golden("kontext").check_lora_file_in_diffusers();
}

#[test]
fn a_reference_that_does_not_fit_gets_one_clear_line() {
    let check = |shape: &[usize], expected: &str| {
        let golden = golden("kontext");
        let mut inputs = golden.inputs(0);
        let zeros = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        inputs.conditioning.reference = Some(zeros);
        assert_eq!(inputs.refused_by(&*golden.model()), expected);
    };
    check(
        &[2, 4, 7, 8],
        "latents of 7 x 8: expected a height and a width that are multiples of 2",
    );
    check(
        &[1, 4, 8, 8],
        "denoiser input `reference`: expected shape [2, 4, 8, 8], found [1, 4, 8, 8]",
    );
    check(
        &[2, 3, 8, 8],
        "denoiser input `reference`: expected shape [2, 4, 8, 8], found [2, 3, 8, 8]",
    );
}

#[test]
fn it_is_dev_by_its_shapes_and_named_by_who_uses_it() {
    let folder = golden("kontext").folder();
    let opened = testing::open(&FLUX1, folder.path()).unwrap();
    for name in ["dev", "kontext"] {
        opened.check_flavor(FLUX1.flavor(name).unwrap()).unwrap();
    }
    assert_eq!(FLUX1.flavor("dev").unwrap().references, None);
}

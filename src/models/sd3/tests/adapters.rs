//! Adapters through the network: gradients against peft, against finite differences, and dropout.

use super::*;
use crate::lora::{Dropout, bind::Recompute};
use crate::models::testing::{
    check_activations, check_finite_differences, check_loss_curve, check_presets, check_recompute,
    gradients_of,
};

#[test]
fn every_adapters_gradient_equals_pefts() {
    for name in MODELS {
        golden(name).check_gradients(&["all", "attention"]);
    }
}

#[test]
fn twenty_steps_lose_what_they_lose_in_diffusers_and_peft() {
    check_loss_curve(&golden("dual"));
}

#[test]
fn running_blocks_again_gives_the_same_gradients() {
    check_recompute(&golden("dual"), 1);
}

#[test]
fn dropout_changes_with_its_pass_only() {
    let golden = golden("plain");
    let (model, inputs) = (golden.model(), golden.inputs(1));
    let (set, _) = golden.adapters(&model, "attention");
    let run = |probability, pass| {
        let dropout = Some(Dropout {
            probability,
            seed: 1,
            pass,
        });
        gradients_of(&*model, &inputs, &set, Recompute::Never, dropout).1
    };
    let none = gradients_of(&*model, &inputs, &set, Recompute::Never, None).1;
    assert!(run(0.5, 1) == run(0.5, 1) && run(0.0, 1) == none);
    assert!(run(0.5, 1) != run(0.5, 2) && run(0.5, 1) != none);
    let tape = Tape::recording(&Kernels::NONE);
    assert!(
        set.bind(
            &tape,
            DType::F32,
            &Device::Cpu,
            Some(Dropout {
                probability: 1.0,
                seed: 1,
                pass: 1
            })
        )
        .is_err()
    );
}

#[test]
fn every_adapter_on_every_preset_gets_a_gradient() {
    MODELS.map(golden).iter().for_each(check_presets);
}

#[test]
fn each_a_and_b_receives_the_gradient_that_finite_differences_give() {
    for name in MODELS {
        let golden = golden(name);
        let inputs = golden.inputs(1).in_f64();
        let (set, _) = golden.adapters(&golden.model(), "all");
        // The last block drops what its context's queries find.
        let last = if name == "dual" { 2 } else { 1 };
        let unused = format!("transformer_blocks.{last}.attn.add_q_proj.");
        check_finite_differences(name, &*golden.model_in_f64(), &inputs, &set, &unused);
    }
}

#[test]
fn a_pass_keeps_as_much_as_the_plan_of_memory_counts() {
    check_activations(&golden("dual"), (18, 16), 100);
}

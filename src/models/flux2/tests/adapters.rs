//! Adapters through the network: gradients against peft and finite differences, and LoRA files in diffusers.

use super::*;
use crate::models::testing::{
    check_activations, check_finite_differences, check_loss_curve, check_presets, check_recompute,
};

#[test]
fn every_adapters_gradient_equals_pefts() {
    for name in MODELS {
        golden(name).check_gradients(&["all", "attention"]);
    }
}

#[test]
fn twenty_steps_of_training_have_the_losses_of_peft_and_torch() {
    check_loss_curve(&golden("two"));
}

#[test]
fn running_blocks_again_gives_the_same_gradients() {
    // The second of two single blocks after two double ones.
    check_recompute(&golden("two"), 3);
}

#[test]
fn every_adapter_on_every_preset_gets_a_gradient() {
    MODELS.map(golden).iter().for_each(check_presets);
}

/// The network in f64, with pads that are not seen; the modulations, which all blocks share, among the adapted.
#[test]
fn each_a_and_b_receives_the_gradient_that_finite_differences_give() {
    let golden = golden("two");
    let (set, _) = golden.adapters(&golden.model(), "all");
    let inputs = golden.inputs(3).in_f64();
    check_finite_differences(
        "two",
        &*golden.model_in_f64(),
        &inputs,
        &set,
        "nothing is unused",
    );
}

#[test]
fn diffusers_loads_a_saved_lora_and_predicts_the_same() {
    for name in MODELS {
        golden(name).check_lora_file_in_diffusers();
    }
}

#[test]
fn a_pass_keeps_as_much_as_the_plan_of_memory_counts() {
    check_activations(&golden("two"), (24, 32), 40);
}

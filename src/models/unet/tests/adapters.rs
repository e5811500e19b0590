//! Adapters through the network: gradients against peft, and LoRA files in diffusers.

use super::*;
use crate::models::testing::{check_activations, check_presets, check_recompute};

/// `all` has every linear and every convolution.
#[test]
fn every_adapters_gradient_equals_pefts() {
    for name in MODELS {
        golden(name).check_gradients(&["all", "attention"]);
    }
}

#[test]
fn running_layers_again_gives_the_same_gradients() {
    // The second layer on the way down.
    check_recompute(&golden("sdxl"), 1);
}

#[test]
fn every_adapter_on_every_preset_gets_a_gradient() {
    MODELS.map(golden).iter().for_each(check_presets);
}

#[test]
fn diffusers_loads_a_saved_lora_and_predicts_the_same() {
    for name in MODELS {
        golden(name).check_lora_file_in_diffusers();
    }
}

#[test]
fn a_pass_keeps_as_much_as_the_plan_of_memory_counts() {
    check_activations(&golden("sdxl"), (40, 32), 24);
    check_activations(&golden("sd1"), (40, 32), 24);
}

//! Adapters through the network: gradients against peft and finite differences, and LoRA files in diffusers.

use super::*;
use crate::lora::targets::select;
use crate::models::testing::adapter_tests;

// The block: the second of two single blocks after two double ones.
// The inputs: with pads that are not seen.
adapter_tests!(golden: "two", block: 3, inputs: 3);

#[test]
fn no_target_reaches_the_approximator() {
    let golden = golden("two");
    let model = golden.model();
    let select = |target: &str| select(model.linears(), &[target.to_owned()], CHROMA.presets);
    for preset in CHROMA.presets {
        let chosen = select(preset.name).unwrap();
        assert!(chosen.iter().all(|l| !l.name.contains("distilled")));
    }
    for target in [
        "distilled_guidance_layer.*",
        "distilled_guidance_layer.in_proj",
        "*linear_1",
    ] {
        assert!(select(target).is_err(), "{target}");
    }
}

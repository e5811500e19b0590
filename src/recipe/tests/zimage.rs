//! Z-Image: a template, the row before the last layer, and no rows of pads.

use expect_test::expect;

use super::{deviated, shipped, spec_of};
use crate::recipe::candidates::differences;

const NAME: &str = "zimage/base";

#[test]
fn the_two_flavors_are_conditioned_alike_by_qwen3_alone() {
    let (base, turbo) = (shipped(NAME), shipped("zimage/turbo"));
    assert_eq!(base.fingerprint(), turbo.fingerprint());
    let slots: Vec<_> = base.encoders().iter().map(|e| e.slot.as_str()).collect();
    assert_eq!(slots, ["qwen3"]);
    assert!(base.assembly().pooled.is_empty());
}

/// No row depends on pads and none is kept, so that nothing of them is in the key.
#[test]
fn pads_have_no_part_in_the_key() {
    let spec = |deviate: &str| {
        let recipe = deviated(NAME, deviate).expect(deviate);
        spec_of(&recipe, "qwen3").fingerprint()
    };
    let plain = spec("");
    assert_eq!(plain, spec("qwen3.tokens.min_tokens = 0"));
    assert_eq!(plain, spec("qwen3.forward.mask = 'none'"));
    assert_ne!(
        plain,
        spec("qwen3.tokens.min_tokens = 256\nqwen3.tokens.max_tokens = 256")
    );
    assert_ne!(plain, spec("qwen3.forward.hidden_layers = [-1]"));
    let thinks =
        "<|im_start|>user\n{caption}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";
    let thinks = format!("qwen3.tokens.template = {thinks:?}");
    assert_ne!(plain, spec(&thinks));
}

#[test]
fn every_trainer_differs_where_it_is_documented_to() {
    let reference = shipped(NAME);
    let of = |variant: &str| {
        let other = shipped(&format!("{NAME}:{variant}"));
        let differ = differences(&reference, &other);
        let lines = differ.iter().map(|d| format!("\n  {d}"));
        format!("{variant}{}", lines.collect::<String>())
    };
    let all = [
        "diffusers",
        "musubi",
        "ai-toolkit",
        "simpletuner",
        "diffusion-pipe",
        "onetrainer",
    ];
    expect![[r#"
        diffusers
        musubi
        ai-toolkit
          qwen3.tokens.cleanup = [respace_commas] instead of []
        simpletuner
        diffusion-pipe
          qwen3.tokens.max_tokens = none instead of 512
          qwen3.tokens.min_tokens = 1 instead of 512
        onetrainer"#]]
    .assert_eq(&all.map(of).join("\n"));
}

#[test]
fn rows_of_pads_that_are_not_there_are_not_asked_for() {
    let refused = |deviate: &str| deviated(NAME, deviate).expect_err(deviate).to_string();
    expect!["qwen3.forward.pad_rows = drop and assembly.pads.qwen3 = keep in the recipe zimage/base: the context wants rows that are not kept: set assembly.pads to zero"].assert_eq(&refused("assembly.pads.qwen3 = 'keep'"));
    deviated(
        NAME,
        "qwen3.forward.pad_rows = 'keep'\nassembly.pads.qwen3 = 'keep'\nassembly.mask = 'none'",
    )
    .expect("resolves");
}

//! Chroma: the one visible pad, and what programs do about it.

use expect_test::expect;

use super::{deviated, shipped, spec_of};
use crate::recipe::candidates::differences;
use crate::recipe::rules::DenoiserMask;

const NAME: &str = "chroma/hd";

#[test]
fn the_two_flavors_are_conditioned_alike_by_t5_alone() {
    let (hd, base) = (shipped("chroma/hd"), shipped("chroma/base"));
    assert_eq!(hd.fingerprint(), base.fingerprint());
    let slots: Vec<_> = hd.encoders().iter().map(|e| e.slot.as_str()).collect();
    assert_eq!(slots, ["t5"]);
    assert!(hd.assembly().pooled.is_empty());
    let mask = hd.assembly().mask;
    let seen = |count| mask.seen(count, 512);
    // The empty caption's end token and one pad, and a caption that leaves no room for one.
    assert_eq!(
        [1, 511, 512].map(seen),
        [Some(2), Some(512), Some(512)],
        "{mask:?}"
    );
    assert_eq!(DenoiserMask::Pads.seen(1, 512), Some(1));
    assert_eq!(DenoiserMask::None.seen(1, 512), None);
}

#[test]
fn every_trainer_differs_where_it_is_documented_to() {
    let reference = shipped(NAME);
    let of = |variant: &str| {
        let other = shipped(&format!("{NAME}:{variant}"));
        let differ = differences(&reference, &other);
        let lines = differ.iter().map(|d| format!("  {d}"));
        format!("{variant}\n{}", lines.collect::<Vec<_>>().join("\n"))
    };
    let all = [
        "diffusers",
        "kohya",
        "ai-toolkit",
        "simpletuner",
        "diffusion-pipe",
        "onetrainer",
    ];
    expect![[r#"
        diffusers
          t5.forward.mask = pads instead of pads_uniform
          t5.tokens.implementation = transformers_5 instead of transformers_4
        kohya
          t5.forward.mask = pads instead of pads_uniform
          t5.tokens.cleanup = [first_line] instead of []
          t5.tokens.implementation = transformers_4_fast instead of transformers_4
        ai-toolkit
          t5.forward.mask = none instead of pads_uniform
          t5.tokens.cleanup = [respace_commas] instead of []
          t5.tokens.implementation = transformers_5 instead of transformers_4
        simpletuner
          t5.forward.mask = pads instead of pads_uniform
          t5.tokens.implementation = transformers_5 instead of transformers_4
        diffusion-pipe
          t5.forward.mask = pads instead of pads_uniform
          t5.tokens.implementation = transformers_5 instead of transformers_4
        onetrainer
          assembly.unconditional = zeros instead of encoded_empty
          t5.forward.mask = pads_but_one instead of pads_uniform
          t5.tokens.implementation = transformers_5 instead of transformers_4"#]]
    .assert_eq(&all.map(of).join("\n"));
}

/// Four different encoders by their masks; that of the author differs in rows of pads alone.
#[test]
fn masks_are_different_encoders() {
    let spec = |variant: &str| {
        let spec = spec_of(&shipped(&format!("{NAME}:{variant}")), "t5");
        serde_json::json!(spec)["forward"].clone()
    };
    let masks = ["reference", "diffusers", "onetrainer", "ai-toolkit"].map(spec);
    let found = masks.map(|forward| forward["mask"].clone());
    assert_eq!(found, ["pads_uniform", "pads", "pads_but_one", "none"]);
    // Without rows of pads there is no difference left.
    let dropped = "t5.forward.pad_rows = 'drop'\nassembly.pads.t5 = 'zero'\n";
    let without = |mask: &str| {
        let deviate = format!("{dropped}t5.forward.mask = '{mask}'");
        let recipe = deviated(&format!("{NAME}:ai-toolkit"), &deviate).expect("resolves");
        serde_json::json!(spec_of(&recipe, "t5"))["forward"].clone()
    };
    assert_eq!(without("pads"), without("pads_uniform"));
}

#[test]
fn rows_that_the_denoiser_would_see_are_kept() {
    let refused = |deviate: &str| deviated(NAME, deviate).expect_err(deviate).to_string();
    expect!["t5.forward.pad_rows = one and assembly.mask = none in the recipe chroma/hd: rows of pads may be left out only where the denoiser sees none but the first (pads_but_one): keep them"].assert_eq(&refused("assembly.mask = 'none'"));
    expect!["t5.forward.pad_rows = one and assembly.mask = pads in the recipe chroma/hd: rows of pads may be left out only where the denoiser sees none but the first (pads_but_one): keep them"].assert_eq(&refused("assembly.mask = 'pads'"));
    expect!["t5.forward.pad_rows = drop and t5.forward.mask = pads_but_one in the recipe chroma/hd: rows of pads may be dropped only where pads are masked, for else they change the others"].assert_eq(&refused(
        "t5.forward.mask = 'pads_but_one'\nt5.forward.pad_rows = 'drop'",
    ));
    expect![[r#"[recipe.deviate] `t5.forward.mask`: unknown variant `pads_but_two`, expected one of `none`, `pads`, `pads_but_one`, `pads_uniform` (found "pads_but_two"; the recipe has "pads_uniform")"#]].assert_eq(&refused("t5.forward.mask = 'pads_but_two'"));
    deviated(NAME, "assembly.mask = 'none'\nt5.forward.pad_rows = 'keep'").expect("resolves");
}

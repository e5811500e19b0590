//! Wan: rows of true tokens alone, zeros behind them that are seen, and what programs make of a caption.

use expect_test::expect;

use super::{shipped, spec_of};
use crate::recipe::candidates::differences;
use crate::recipe::rules::{AssembledPads, DenoiserMask};

const NAME: &str = "wan/t2v-1.3b";

#[test]
fn the_rows_of_pads_are_zeros_that_are_seen_and_not_stored() {
    let (small, large) = (shipped(NAME), shipped("wan/t2v-14b"));
    assert_eq!(small.fingerprint(), large.fingerprint());
    let assembly = small.assembly();
    assert_eq!(assembly.mask, DenoiserMask::None);
    assert_eq!(assembly.pads["umt5"], AssembledPads::Zero);
    let spec = spec_of(&small, "umt5");
    assert_eq!(spec.network.kind().name(), "umt5_encoder");
    // No pad is made, as none is kept.
    assert_eq!(
        (spec.tokens.min_tokens, spec.tokens.max_tokens),
        (0, Some(512))
    );
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
        "musubi",
        "diffusion-pipe",
        "ai-toolkit",
        "simpletuner",
    ];
    expect![[r#"
        diffusers
          umt5.tokens.implementation = transformers_5 instead of transformers_4_fast
        musubi

        diffusion-pipe
          umt5.tokens.implementation = transformers_5 instead of transformers_4_fast
        ai-toolkit
          umt5.tokens.cleanup = [respace_commas, ftfy_6.3, unescape_html_twice, collapse_whitespace] instead of [ftfy_6.3, unescape_html_twice, collapse_whitespace]
          umt5.tokens.implementation = transformers_5 instead of transformers_4_fast
        simpletuner
          umt5.tokens.implementation = transformers_5 instead of transformers_4_fast"#]]
    .assert_eq(&all.map(of).join("\n"));
}

//! FLUX.2 klein: a template, three layers side by side, and all rows of pads.

use expect_test::expect;

use super::{deviated, shipped, spec_of};
use crate::recipe::candidates::differences;

const NAME: &str = "flux2/klein-base-4b";

#[test]
fn the_four_flavors_are_conditioned_alike_by_qwen3_alone() {
    let base = shipped(NAME);
    for other in ["klein-base-9b", "klein-4b", "klein-9b"] {
        let other = shipped(&format!("flux2/{other}"));
        assert_eq!(base.fingerprint(), other.fingerprint());
    }
    let slots: Vec<_> = base.encoders().iter().map(|e| e.slot.as_str()).collect();
    assert_eq!(slots, ["qwen3"]);
    assert!(base.assembly().pooled.is_empty());
}

/// All 512 rows are seen, so that all of it changes the numbers; what a batch would be filled up to does too.
#[test]
fn pads_layers_and_template_are_in_the_key() {
    let spec = |deviate: &str| {
        let recipe = deviated(NAME, deviate).expect(deviate);
        spec_of(&recipe, "qwen3").fingerprint()
    };
    let plain = spec("");
    let plainly = "qwen3.tokens.template = '{caption}'";
    for other in [
        "qwen3.forward.hidden_layers = [10, 20, 30]",
        "qwen3.forward.mask = 'none'",
        "qwen3.tokens.min_tokens = 256",
        "qwen3.tokens.min_tokens = 256\nqwen3.tokens.max_tokens = 256",
        plainly,
    ] {
        assert_ne!(plain, spec(other), "{other}");
    }
    let (script, by_hand) = (
        shipped(&format!("{NAME}:diffusers-script")),
        deviated(NAME, "qwen3.forward.hidden_layers = [10, 20, 30]").expect("resolves"),
    );
    assert_eq!(
        spec_of(&script, "qwen3").fingerprint(),
        spec_of(&by_hand, "qwen3").fingerprint()
    );
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
        "diffusers-script",
        "musubi",
        "ai-toolkit",
        "simpletuner",
        "diffusion-pipe",
        "onetrainer",
    ];
    expect![[r#"
        diffusers
        diffusers-script
          qwen3.forward.hidden_layers = [10, 20, 30] instead of [9, 18, 27]
        musubi
        ai-toolkit
          qwen3.tokens.cleanup = [respace_commas] instead of []
        simpletuner
        diffusion-pipe
        onetrainer"#]]
    .assert_eq(&all.map(of).join("\n"));
}

/// `neighbours` are what an audit tries of a cache that no variant made.
#[test]
fn faults_that_were_made_are_among_what_an_audit_tries() {
    let tried: Vec<String> = crate::recipe::candidates::neighbours(&shipped(NAME))
        .expect("neighbours")
        .iter()
        .map(crate::recipe::candidates::Candidate::label)
        .collect();
    for fault in [
        "qwen3.forward.hidden_layers = [10, 20, 30]",
        "qwen3.tokens.template = {caption}",
        "qwen3.forward.mask = none",
    ] {
        assert!(
            tried.iter().any(|label| label.contains(fault)),
            "{fault}: {tried:#?}"
        );
    }
}

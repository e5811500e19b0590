//! `[recipe.deviate]`.

use expect_test::{Expect, expect};
use serde_json::json;

use super::super::Diff;
use super::super::data::Status;
use super::{deviated, shipped, spec_of};

const NAME: &str = "sd3/3.5-large";

#[test]
fn a_deviation_is_used_recorded_and_named_as_the_source() {
    let recipe = deviated(
        NAME,
        "t5.tokens.min_tokens = 154\nt5.tokens.max_tokens = 154",
    )
    .expect("both");
    assert_eq!(spec_of(&recipe, "t5").tokens.max_tokens, Some(154));
    let recorded: Vec<_> = recipe
        .deviations()
        .iter()
        .map(|d| (d.field.as_str(), d.value.clone(), d.instead_of.clone()))
        .collect();
    assert_eq!(
        recorded,
        [
            ("t5.tokens.max_tokens", json!(154), json!("none")),
            ("t5.tokens.min_tokens", json!(154), json!(77)),
        ]
    );
    assert_eq!(
        recipe.fields()["t5.tokens.min_tokens"].status,
        Status::Deviation
    );
    assert_eq!(recipe.describe()["deviations"][1]["value"], json!(154));
    let reference = shipped(NAME);
    assert_ne!(recipe.fingerprint(), reference.fingerprint());
    let diff = Diff::between(&recipe.rules(), &reference.rules())
        .wanted_from(|path| recipe.origin(path))
        .found_from(|path| reference.origin(path));
    expect![[r#"
        field                 wanted  found
        t5.tokens.max_tokens  154     none
            wanted: [recipe.deviate] instead of "none" from configs/recipes/sd3/reference.toml
            found: configs/recipes/sd3/reference.toml (sd35:other_impls.py:578-590)
        t5.tokens.min_tokens  154     77
            wanted: [recipe.deviate] instead of 77 from configs/recipes/sd3/reference.toml
            found: configs/recipes/sd3/reference.toml (sd35:other_impls.py:578-590)"#]]
    .assert_eq(&diff.to_string());
}

#[test]
fn captions_of_several_windows_are_a_deviation_by_name() {
    const KOHYA: &str = "sdxl/base-1.0:kohya";
    let both = |value: &str| {
        let slots = ["clip_l", "clip_g"].map(|slot| format!("{slot}.tokens.chunks = {value}"));
        slots.join("\n")
    };
    let recipe = deviated(KOHYA, &both("3")).expect("three windows");
    let spec = json!(spec_of(&recipe, "clip_g"));
    assert_eq!(spec["tokens"]["chunks"], 3);
    assert_eq!(
        spec["forward"]["chunks"],
        json!({ "join": "inner", "window": 77, "pad": 0, "end": 49407 })
    );
    let one = deviated(KOHYA, &both("1")).expect("the recipe's own");
    assert_eq!(one.fingerprint(), shipped(KOHYA).fingerprint());
    let one = json!(spec_of(&one, "clip_g"));
    assert!(one["forward"].get("chunks").is_none() && one["tokens"].get("chunks").is_none());
    for value in ["0", "9", "-1", "2.5", "'many'", "true"] {
        let error = deviated(KOHYA, &both(value)).expect_err(value).to_string();
        assert!(error.contains("`chunks`: expected 1 to 8"), "{error}");
        assert_eq!(error.matches("found").count(), 1, "{error}");
    }
    let zeroed = format!("{}\nassembly.pads.clip_l = 'zero'", both("2"));
    let error = deviated(KOHYA, &zeroed)
        .expect_err("zeroed pads")
        .to_string();
    assert!(error.contains("clip_l.tokens.chunks"), "{error}");
    let error = deviated(KOHYA, "clip_l.tokens.chunks = 3").expect_err("one of two");
    assert!(error.to_string().contains("side by side"), "{error}");
    // What needs the checkpoint's table of positions is refused with it.
    let architecture = crate::text::published("clip_l").expect("CLIP-L");
    for rule in [
        "clip_l.tokens.truncation = 'whole_words'",
        "clip_l.tokens.min_tokens = 0\nclip_g.tokens.min_tokens = 0",
        "clip_l.forward.mask = 'pads'",
    ] {
        let recipe = deviated(KOHYA, &format!("{}\n{rule}", both("2"))).expect(rule);
        let encoder = recipe.encoder("clip_l").expect("a slot");
        let digest = crate::digest::Digest::of(b"weights");
        let spec = encoder.spec(&*architecture, digest, super::tokenizer("clip_l"));
        let error = spec.expect_err(rule).to_string();
        assert!(error.contains("clip_l.tokens.chunks"), "{error}");
    }
}

#[test]
fn dotted_and_quoted_keys_mean_the_same() {
    let dotted = deviated(NAME, "clip_g.tokens.pad_text = 'special'").expect("dotted");
    let quoted = deviated(NAME, "'clip_g.tokens.pad_text' = 'special'").expect("quoted");
    let table = deviated(NAME, "[clip_g.tokens]\npad_text = 'special'").expect("table");
    assert_eq!(dotted.fingerprint(), quoted.fingerprint());
    assert_eq!(dotted.fingerprint(), table.fingerprint());
}

#[test]
fn naming_the_recipes_own_value_is_no_deviation() {
    let recipe = deviated(
        NAME,
        "t5.tokens.min_tokens = 77\nt5.tokens.max_tokens = 'none'",
    )
    .expect("same");
    assert!(recipe.deviations().is_empty());
    assert_eq!(recipe.fingerprint(), shipped(NAME).fingerprint());
}

#[test]
fn every_field_can_be_deviated_from_and_refuses_another_type() {
    for path in shipped(NAME).fields().keys() {
        let error = deviated(NAME, &format!("{path} = 1979-05-27")).expect_err("a date");
        assert!(error.to_string().contains(path.as_str()), "{path}: {error}");
    }
}

#[test]
fn every_field_refuses_a_number_that_is_not_finite() {
    for path in shipped(NAME).fields().keys() {
        for value in ["nan", "inf", "-inf", "[1.0, nan]", "[{ x = inf }]"] {
            let error = deviated(NAME, &format!("{path} = {value}")).expect_err(value);
            let said =
                format!("[recipe.deviate] `{path}`: expected a finite number (found {value};");
            assert!(error.to_string().starts_with(&said), "{error}");
        }
    }
}

#[track_caller]
fn refused(deviate: &str, said: Expect) {
    let error = deviated(NAME, deviate).expect_err(deviate);
    said.assert_eq(&error.to_string());
}

#[test]
fn an_unknown_field_is_answered_with_the_nearest() {
    refused(
        "t5.max_tokens = 154",
        expect![
            "[recipe.deviate]: the recipe sd3/3.5-large has no field `t5.max_tokens`, did you mean `t5.tokens.max_tokens`?; `plumb recipe show sd3/3.5-large` lists its fields"
        ],
    );
}

#[test]
fn a_field_of_another_slot_is_answered_with_the_nearest() {
    refused(
        "t5.forward.final_norm = true",
        expect![
            "[recipe.deviate]: the recipe sd3/3.5-large has no field `t5.forward.final_norm`, did you mean `clip_l.forward.final_norm`?; `plumb recipe show sd3/3.5-large` lists its fields"
        ],
    );
}

#[test]
fn a_wrong_number_is_refused() {
    refused(
        "t5.tokens.min_tokens = -1",
        expect![
            "[recipe.deviate] `t5.tokens.min_tokens`: invalid value: integer `-1`, expected a whole number (found -1; the recipe has 77)"
        ],
    );
}

#[test]
fn a_wrong_word_is_refused() {
    refused(
        "clip_g.tokens.truncation = 'word'",
        expect![[
            r#"[recipe.deviate] `clip_g.tokens.truncation`: unknown variant `word`, expected `tokens` or `whole_words` (found "word"; the recipe has "whole_words")"#
        ]],
    );
}

#[test]
fn a_wrong_limit_is_refused() {
    refused(
        "t5.tokens.max_tokens = 'many'",
        expect![[
            r#"[recipe.deviate] `t5.tokens.max_tokens`: expected a whole number of tokens, or "none" for no limit (found "many"; the recipe has "none")"#
        ]],
    );
}

#[test]
fn a_wrong_pad_is_refused() {
    refused(
        "clip_l.tokens.pad = 'eos'",
        expect![[
            r#"[recipe.deviate] `clip_l.tokens.pad`: expected a token id, or "end" for the tokenizer's end-of-text id (found "eos"; the recipe has "end")"#
        ]],
    );
}

#[test]
fn a_wrong_precision_is_refused() {
    refused(
        "t5.precision.compute = 'fp16'",
        expect![[
            r#"[recipe.deviate] `t5.precision.compute`: unknown variant `fp16`, expected one of `f32`, `f16`, `bf16` (found "fp16"; the recipe has "f32")"#
        ]],
    );
}

#[test]
fn a_least_above_the_most_is_refused() {
    refused(
        "t5.tokens.max_tokens = 64",
        expect![
            "t5.tokens.min_tokens = 77 and t5.tokens.max_tokens = 64 in the recipe sd3/3.5-large: the least is above the most: set both"
        ],
    );
}

#[test]
fn no_room_for_the_special_tokens_is_refused() {
    refused(
        "clip_l.tokens.min_tokens = 1\nclip_l.tokens.max_tokens = 1",
        expect![
            "clip_l.tokens.max_tokens in the recipe sd3/3.5-large: expected at least 2, for the special tokens"
        ],
    );
}

#[test]
fn a_slip_of_the_pen_is_refused() {
    refused(
        "t5.tokens.min_tokens = 1000000",
        expect!["t5.tokens in the recipe sd3/3.5-large: expected at most 8192 tokens"],
    );
}

#[test]
fn rows_cannot_be_dropped_where_they_are_attended() {
    refused(
        "t5.forward.pad_rows = 'drop'",
        expect![
            "t5.forward.pad_rows = drop and t5.forward.mask = none in the recipe sd3/3.5-large: rows of pads may be dropped only where pads are masked, for else they change the others"
        ],
    );
}

#[test]
fn rows_cannot_be_dropped_where_they_are_used() {
    refused(
        "t5.forward.pad_rows = 'drop'\nt5.forward.mask = 'pads'",
        expect![
            "t5.forward.pad_rows = drop and assembly.pads.t5 = keep in the recipe sd3/3.5-large: the context wants rows that are not kept: set assembly.pads to zero"
        ],
    );
}

#[test]
fn pads_are_masked_in_the_context_of_one_encoder_only() {
    refused(
        "assembly.mask = 'pads'",
        expect![
            "assembly.mask = pads and assembly.context in the recipe sd3/3.5-large: expected the context of one encoder, whose pads are its last rows"
        ],
    );
    let recipe = deviated("flux1/dev", "assembly.mask = 'pads'").expect("one encoder");
    assert_eq!(recipe.deviations()[0].field, "assembly.mask");
    assert_ne!(
        recipe.fingerprint(),
        super::shipped("flux1/dev").fingerprint()
    );
}

#[test]
fn a_layer_is_counted_from_the_end() {
    refused(
        "clip_l.forward.hidden_layer = 11",
        expect![
            "clip_l.forward.hidden_layer = 11 in the recipe sd3/3.5-large: expected a negative number: layers are counted from the end"
        ],
    );
}

#[test]
fn a_used_sequence_must_be_kept() {
    refused(
        "clip_l.forward.hidden_layer = 'none'",
        expect![
            "assembly.context and clip_l.forward.hidden_layer = none in the recipe sd3/3.5-large: its sequence is used but not kept"
        ],
    );
}

#[test]
fn a_used_pooled_row_must_be_made() {
    refused(
        "clip_l.forward.pooled = 'none'",
        expect!["assembly.pooled in the recipe sd3/3.5-large: clip_l has no pooled row"],
    );
}

#[test]
fn an_encoder_must_be_used() {
    refused(
        "assembly.context = [['clip_l', 'clip_g']]",
        expect![
            "assembly in the recipe sd3/3.5-large: the encoder t5 is neither in assembly.context nor in assembly.pooled"
        ],
    );
}

#[test]
fn a_slot_must_be_there() {
    refused(
        "assembly.context = [['clip_l', 'clip_h'], ['t5']]",
        expect![
            "assembly.context in the recipe sd3/3.5-large: there is no encoder `clip_h`; there is: clip_g, clip_l, t5"
        ],
    );
}

#[test]
fn a_slot_is_used_once() {
    refused(
        "assembly.pooled = ['clip_l', 'clip_l']",
        expect!["assembly.pooled in the recipe sd3/3.5-large: `clip_l` appears twice"],
    );
}

#[test]
fn t5_has_no_pooled_row() {
    refused(
        "assembly.pooled = ['t5']",
        expect!["assembly.pooled in the recipe sd3/3.5-large: t5 has no pooled row"],
    );
}

#[test]
fn an_encoder_with_a_pooled_row_cannot_be_absent() {
    refused(
        "clip_g.absent = 77",
        expect![
            "clip_g.absent and assembly.pooled in the recipe sd3/3.5-large: an encoder whose pooled row is used cannot be absent"
        ],
    );
}

#[test]
fn masked_and_dropped_pads_can_be_asked_for_together() {
    let recipe = deviated(
        NAME,
        "t5.forward.pad_rows = 'drop'\nt5.forward.mask = 'pads'\nassembly.pads.t5 = 'zero'",
    )
    .expect("consistent");
    // How many pads there would have been no longer matters to an entry.
    let longer = deviated(
        NAME,
        "t5.forward.pad_rows = 'drop'\nt5.forward.mask = 'pads'\nassembly.pads.t5 = 'zero'\n\
         t5.tokens.min_tokens = 256",
    )
    .expect("consistent");
    assert_eq!(spec_of(&recipe, "t5"), spec_of(&longer, "t5"));
    assert_ne!(recipe.fingerprint(), longer.fingerprint());
}

#[test]
fn nothing_that_a_person_may_write_panics() {
    use proptest::prelude::*;
    let fields: Vec<String> = shipped(NAME).fields().keys().cloned().collect();
    let value = prop_oneof![
        any::<i64>().prop_map(toml::Value::Integer),
        any::<f64>().prop_map(toml::Value::Float),
        any::<bool>().prop_map(toml::Value::Boolean),
        "[a-z_]{0,12}".prop_map(toml::Value::String),
        proptest::collection::vec("[a-z_]{0,6}".prop_map(toml::Value::String), 0..3)
            .prop_map(toml::Value::Array),
        Just(toml::Value::Array(vec![toml::Value::Array(Vec::new())])),
    ];
    let wild = proptest::collection::vec((proptest::sample::select(fields), value), 1..4);
    proptest!(|(wild in wild)| {
        let table: toml::Table = wild.into_iter().collect();
        // Either a recipe or a message; both say which fields.
        match super::super::Recipe::resolve("sd3", "3.5-large", "reference", &table) {
            Ok(recipe) => prop_assert!(recipe.deviations().len() <= table.len()),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    });
}

use expect_test::{Expect, expect};

use super::PeftConfig;

fn check(text: &str, module: &str, rank: usize, expected: Expect) {
    let read = PeftConfig::of_file(text, "adapter_config.json");
    let got = match read.and_then(|config| config.alpha_of(module, rank)) {
        Ok(alpha) => format!("alpha {alpha}"),
        Err(error) => error,
    };
    expected.assert_eq(&got);
}

#[test]
fn alpha_is_as_peft_has_it() {
    let plain = |text: &str, expected| check(text, "blocks.0.to_q", 4, expected);
    plain(r#"{"r": 4, "lora_alpha": 8}"#, expect!["alpha 8"]);
    plain(r#"{"r": 4, "lora_alpha": 0.5}"#, expect!["alpha 0.5"]);
    // PEFT's default.
    plain(r#"{"r": 4}"#, expect!["alpha 8"]);
    check("{}", "x", 8, expect!["alpha 8"]);
    plain(
        r#"{"r": 8, "lora_alpha": 8}"#,
        expect!["expected rank 8, as adapter_config.json says, found 4"],
    );
    plain(
        r#"{"r": 4, "lora_alpha": 8, "use_rslora": true}"#,
        expect!["alpha 16"],
    );
    plain(
        r#"{"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_q": 2}}"#,
        expect!["alpha 2"],
    );
    plain(
        r#"{"r": 16, "rank_pattern": {"0.to_q": 4}, "lora_alpha": 8}"#,
        expect!["alpha 8"],
    );
}

#[test]
fn patterns_fit_as_in_peft() {
    for (pattern, module, fits) in [
        ("to_q", "blocks.0.to_q", true),
        ("to_q", "to_q", true),
        ("o_q", "blocks.0.to_q", false),
        ("to_q", "blocks.0.to_q.x", false),
        ("^to_q", "blocks.0.to_q", false),
        ("^to_q", "to_q", true),
        ("^blocks.0.to_q", "blocks.0.to_q", true),
        // A dot is any character, in a plain name too.
        ("attn.to_q", "blocks.attn_to_q", true),
        (r"blocks\.\d+\.to_q", "blocks.12.to_q", true),
        (r".*\.to_[qk]", "blocks.0.to_k", true),
        (r"to_(?!q).*", "blocks.0.to_q", false),
        (r"to_(?!q).*", "blocks.0.to_v", true),
        ("to_q|to_v", "blocks.0.to_v", true),
        ("blocks.0", "blocks.0.to_q", false),
    ] {
        let pattern = serde_json::json!({"r": 4, "alpha_pattern": {pattern: 1}});
        let config = PeftConfig::of_file(&pattern.to_string(), "c").unwrap();
        let alpha = config.alpha_of(module, 4).unwrap();
        assert_eq!(alpha == 1.0, fits, "{pattern} {module}");
    }
    // The first that fits, in the order of the file.
    for (patterns, expected) in [
        (r#"{"to_q": 1, "0.to_q": 2}"#, 1.0),
        (r#"{"0.to_q": 2, "to_q": 1}"#, 2.0),
        (r#"{"z": 3, "to_q": 1, "a.*": 2}"#, 1.0),
    ] {
        let text = format!(r#"{{"r": 4, "alpha_pattern": {patterns}}}"#);
        let config = PeftConfig::of_file(&text, "c").unwrap();
        assert_eq!(config.alpha_of("a.0.to_q", 4).unwrap(), expected);
    }
}

#[test]
fn what_is_no_plain_lora_is_refused_by_field() {
    let refused = |text: &str, expected| check(text, "x", 8, expected);
    refused(
        r#"{"peft_type": "LOKR"}"#,
        expect![[r#"adapter_config.json, `peft_type`: expected "LORA", found "LOKR""#]],
    );
    refused(
        r#"{"use_dora": true}"#,
        expect![
            "adapter_config.json, `use_dora`: found true: that is DoRA; plumb reads plain LoRA"
        ],
    );
    refused(
        r#"{"bias": "all"}"#,
        expect![[
            r#"adapter_config.json, `bias`: found "all": the base model's biases were trained too; plumb reads LoRAs with "none""#
        ]],
    );
    refused(
        r#"{"modules_to_save": ["conv_out"]}"#,
        expect![
            "adapter_config.json, `modules_to_save`: found a list of 1: that is whole modules beside the LoRA; plumb reads plain LoRA"
        ],
    );
    refused(
        r#"{"layer_replication": [[0, 4]]}"#,
        expect![
            "adapter_config.json, `layer_replication`: found a list of 1: that is a network with repeated layers; plumb reads plain LoRA"
        ],
    );
    for start in [
        "pissa",
        "pissa_niter_4",
        "olora",
        "corda",
        "loftq",
        "lora_ga",
        "new",
    ] {
        let text = format!(r#"{{"init_lora_weights": "{start}"}}"#);
        let error = PeftConfig::of_file(&text, "c").unwrap_err();
        assert!(
            error.contains("`init_lora_weights`") && error.contains(start),
            "{error}"
        );
    }
    for start in [
        "true",
        "false",
        "\"gaussian\"",
        "\"eva\"",
        "\"orthogonal\"",
        "null",
    ] {
        let text = format!(r#"{{"init_lora_weights": {start}, "eva_config": {{"rho": 2}}}}"#);
        PeftConfig::of_file(&text, "c").unwrap();
    }
    refused(
        r#"{"a_new_field": {"x": 1}}"#,
        expect![
            "adapter_config.json, `a_new_field`: found an object: plumb does not know this field, and what it does to the numbers"
        ],
    );
    refused(
        r#"{"a_new_field": null, "another": false}"#,
        expect!["alpha 8"],
    );
    refused(
        r#"{"fan_in_fan_out": true, "target_modules": ["x"], "lora_dropout": 0.1}"#,
        expect!["alpha 8"],
    );
}

#[test]
fn wrong_values_are_told_with_their_field() {
    let refused = |text: &str, expected| check(text, "x", 8, expected);
    refused(
        "[]",
        expect!["adapter_config.json: expected a JSON object, found a list of 0"],
    );
    refused(
        "{",
        expect![
            "adapter_config.json: expected a JSON object: EOF while parsing an object at line 1 column 1"
        ],
    );
    refused(
        r#"{"r": 0}"#,
        expect!["adapter_config.json, `r`: expected a whole number above 0, found 0"],
    );
    refused(
        r#"{"r": "8"}"#,
        expect![[r#"adapter_config.json, `r`: expected a whole number above 0, found "8""#]],
    );
    refused(
        r#"{"lora_alpha": null}"#,
        expect!["adapter_config.json, `lora_alpha`: expected a number, found null"],
    );
    refused(
        r#"{"use_rslora": "no"}"#,
        expect![[r#"adapter_config.json, `use_rslora`: expected true or false, found "no""#]],
    );
    refused(
        r#"{"alpha_pattern": {"a(b": 1}}"#,
        expect![
            "adapter_config.json, `alpha_pattern`: the expression `a(b` cannot be read: Parsing error at position 19: Opening parenthesis without closing parenthesis"
        ],
    );
    refused(
        r#"{"rank_pattern": {"a": 1.5}}"#,
        expect![
            "adapter_config.json, `rank_pattern`: `a`: expected a whole number above 0, found 1.5"
        ],
    );
    let slow = r#"{"alpha_pattern": {"(a|a)*b": 1}}"#;
    let config = PeftConfig::of_file(slow, "c").unwrap();
    let _ = config.alpha_of(&"a".repeat(64), 8);
}

#[test]
fn of_a_file_s_metadata_the_component_s_fields_count() {
    let read = |text: &str| PeftConfig::of_metadata(text, "m", "transformer");
    let both = r#"{"transformer.r": 4, "transformer.lora_alpha": 2, "text_encoder.r": 8, "text_encoder.lora_alpha": 1}"#;
    assert_eq!(read(both).unwrap().unwrap().alpha_of("x", 4), Ok(2.0));
    let bare = r#"{"r": 4, "lora_alpha": 3, "use_rslora": true}"#;
    assert_eq!(read(bare).unwrap().unwrap().alpha_of("x", 4), Ok(6.0));
    assert!(
        read(r#"{"text_encoder.use_dora": true}"#)
            .unwrap()
            .is_none()
    );
    let error = read(r#"{"transformer.use_dora": true}"#).unwrap_err();
    assert!(
        error.starts_with("m, `transformer.use_dora`: found true"),
        "{error}"
    );
}

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::digest::canonical_json;
use crate::recipe::spec::Dtype;

fn spec() -> LatentSpec {
    LatentSpec {
        version: LATENT_SPEC_VERSION,
        architecture: VaeEncoderArchitecture {
            in_channels: 3,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            latent_channels: 16,
            norm_num_groups: 32,
            use_quant_conv: false,
            mid_block_add_attention: true,
            patch_norm: None,
        },
        weights: Digest::of(b"weights"),
        picture: PictureRules::CURRENT,
        precision: Precision {
            compute: Dtype::F32,
            output: Dtype::F32,
        },
    }
}

fn view() -> View {
    View {
        resized: Size {
            width: 1100,
            height: 1024,
        },
        left: 38,
        top: 0,
        bucket: Size {
            width: 1024,
            height: 1024,
        },
        flip: false,
        resampling: crate::recipe::latents::Resampling::Spec,
    }
}

/// Every leaf of `value`, changed to something else of its kind, one at a time.
fn changes(value: &Value) -> Vec<Value> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, inner)| {
                changes(inner).into_iter().map(|changed| {
                    let mut map = map.clone();
                    map.insert(key.clone(), changed);
                    Value::Object(map)
                })
            })
            .collect(),
        Value::Array(list) => (0..list.len())
            .flat_map(|n| {
                changes(&list[n]).into_iter().map(move |changed| {
                    let mut list = list.clone();
                    list[n] = changed;
                    Value::Array(list)
                })
            })
            .chain([Value::Array(list[..list.len() - 1].to_vec())])
            .collect(),
        Value::Bool(flag) => vec![Value::Bool(!flag)],
        Value::Number(number) => vec![Value::from(number.as_u64().map_or(0, |n| n + 1))],
        Value::String(text) => vec![Value::from(format!("{text}x"))],
        Value::Null => vec![Value::from(0)],
    }
}

#[test]
fn each_field_of_a_spec_and_of_a_key_changes_its_fingerprint() {
    let spec_value = serde_json::to_value(spec()).expect("value");
    let key = LatentKey::new(spec().fingerprint(), Digest::of(b"file"), view());
    let key_value = serde_json::to_value(&key).expect("value");
    for (value, own, leaves) in [
        (&spec_value, spec().fingerprint(), 20),
        (&key_value, key.fingerprint(), 10),
    ] {
        let mut seen = std::collections::BTreeSet::from([own]);
        let changed = changes(value);
        assert!(changed.len() >= leaves, "{} leaves", changed.len());
        for changed in changed {
            assert!(seen.insert(Fingerprint::of(&changed)), "{changed}");
        }
    }
}

#[test]
fn a_spec_survives_its_canonical_form_and_unknown_fields_are_refused() {
    let json = canonical_json(&spec());
    assert_eq!(
        serde_json::from_slice::<LatentSpec>(&json).expect("parses"),
        spec()
    );
    let mut value = serde_json::to_value(spec()).expect("value");
    value["sampling"] = Value::from("mean");
    assert!(serde_json::from_value::<LatentSpec>(value).is_err());
}

#[test]
fn the_fingerprint_of_a_spec_does_not_drift() {
    assert_eq!(
        String::from_utf8(canonical_json(&spec().picture)).expect("utf8"),
        "{\"alpha\":\"over_white\",\"color\":\"rgb8_ignore_icc\",\"enlarge\":\"lanczos3\",\
         \"orientation\":\"exif\",\"range\":\"minus_one_to_one\",\"shrink\":\"area\"}"
    );
}

proptest! {
    #[test]
    fn two_keys_agree_exactly_when_all_of_them_agrees(
        a in (any::<[u8; 2]>(), 1u32..4, 1u32..4, 0u32..3, 0u32..3, any::<bool>()),
        b in (any::<[u8; 2]>(), 1u32..4, 1u32..4, 0u32..3, 0u32..3, any::<bool>()),
    ) {
        let key = |(file, w, h, left, top, flip): ([u8; 2], u32, u32, u32, u32, bool)| {
            LatentKey::new(spec().fingerprint(), Digest::of(&file), View {
                resized: Size { width: 9, height: 9 },
                left,
                top,
                bucket: Size { width: w, height: h },
                flip,
                resampling: crate::recipe::latents::Resampling::Spec,
            })
        };
        let same = key(a).fingerprint() == key(b).fingerprint();
        prop_assert_eq!(same, a == b);
    }
}

#[test]
fn a_config_is_read_with_the_defaults_of_diffusers() {
    let config = VaeConfig::parse("{}", "config.json").expect("defaults");
    assert_eq!(config.architecture.encoder.latent_channels, 4);
    assert!(config.architecture.use_post_quant_conv);
    let (scale, shift) = (0.18215, 0.0);
    let shared = LatentStatistics::Shared { scale, shift };
    assert_eq!(config.statistics, Some(shared));
    let sd3 = r#"{"_class_name": "AutoencoderKL", "_diffusers_version": "0.29.0", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512], "force_upcast": true, "latent_channels": 16,
        "layers_per_block": 2, "latents_mean": null, "norm_num_groups": 32, "sample_size": 1024,
        "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_post_quant_conv": false,
        "use_quant_conv": false, "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D",
        "DownEncoderBlock2D", "DownEncoderBlock2D"]}"#;
    let config = VaeConfig::parse(sd3, "config.json").expect("sd3");
    assert_eq!(config.architecture.encoder, spec().architecture);
    let (scale, shift) = (1.5305, 0.0609);
    let shared = LatentStatistics::Shared { scale, shift };
    assert_eq!(config.statistics, Some(shared));
    assert_eq!(config.architecture.encoder.factor(), 8);
}

#[test]
fn a_config_may_have_a_mean_and_a_deviation_a_channel() {
    let json = r#"{"scaling_factor": 0.5, "shift_factor": null, "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
        "latents_std": [8.4927, 5.9022, 6.5498, 5.2299]}"#;
    let config = VaeConfig::parse(json, "config.json").expect("config");
    let expected = LatentStatistics::PerChannel {
        scale: 0.5,
        mean: vec![-1.6574, 1.886, -1.383, 2.5155],
        std: vec![8.4927, 5.9022, 6.5498, 5.2299],
    };
    assert_eq!(config.statistics, Some(expected));
}

#[test]
fn the_config_of_flux2_has_a_batch_norm_and_leaves_the_statistics_to_the_weights() {
    let json = r#"{"_class_name": "AutoencoderKLFlux2", "batch_norm_eps": 0.0001, "batch_norm_momentum": 0.1,
        "block_out_channels": [128, 256, 512, 512], "latent_channels": 32, "patch_size": [2, 2],
        "decoder_block_out_channels": [96, 192, 384, 384]}"#;
    let config = VaeConfig::parse(json, "config.json").expect("config");
    assert_eq!(config.statistics, None);
    let own = &config.architecture;
    assert_eq!(own.encoder.norm_channels(), Some(128));
    assert_eq!(own.decoder_block_out_channels, [96, 192, 384, 384]);
    let norm = own.encoder.patch_norm.expect("a norm");
    let spec = LatentSpec {
        architecture: own.encoder.clone(),
        ..spec()
    };
    let canonical = String::from_utf8(canonical_json(&spec)).expect("utf8");
    assert!(
        canonical.contains(r#""patch_norm":{"eps":0.0001,"side":2}"#),
        "{canonical}"
    );
    // The smallest variance is the epsilon's.
    let found = LatentStatistics::of_batch_norm(norm, &[1.0, -2.0], &[0.0, 4.0]).expect("numbers");
    let LatentStatistics::Patches { side, mean, std } = found else {
        panic!("{found:?}");
    };
    assert_eq!((side, mean), (2, vec![1.0, -2.0]));
    assert!((std[0] - 0.01).abs() < 1e-7 && (std[1] - 2.000025).abs() < 1e-6);
    let wrong = LatentStatistics::of_batch_norm(norm, &[0.0], &[-1.0]).expect_err("negative");
    assert_eq!(
        wrong,
        "`bn.running_var`: expected variances of at least 0, found -1"
    );
}

#[test]
fn a_config_of_something_else_gets_one_line_that_names_the_field() {
    for (json, part) in [
        ("[]", "config.json: "),
        (
            r#"{"_class_name": "AutoencoderKLWan"}"#,
            "`_class_name` is `AutoencoderKLWan`",
        ),
        (r#"{"act_fn": "gelu"}"#, "`act_fn` is `gelu`"),
        (r#"{"latents_mean": [0.0]}"#, "`latents_mean`"),
        (
            r#"{"latents_std": [1, 1, 1, 1]}"#,
            "`latents_std`: expected `latents_mean` beside it",
        ),
        (
            r#"{"latents_mean": [0, 0, 0, 0], "latents_std": [1, 1, 1]}"#,
            "`latents_std`: expected 4 numbers, one a channel, found 3",
        ),
        (
            r#"{"latent_channels": 1, "latents_mean": [0, 0, 0, 0], "latents_std": [1]}"#,
            "`latents_mean`: expected 1 numbers, one a channel, found 4",
        ),
        (
            r#"{"latents_mean": [0, 0, 0, 0], "latents_std": [1, 1, 0, 1]}"#,
            "`latents_std`: expected numbers above 0, found 0",
        ),
        (
            r#"{"latents_mean": [0, 0, 0, 0], "latents_std": [1, 1, 1, 1], "shift_factor": 0.5}"#,
            "`shift_factor`: expected none beside `latents_mean`, found 0.5",
        ),
        (r#"{"latents_mean": 0.5}"#, "invalid type"),
        (r#"{"block_out_channels": []}"#, "has 0 levels"),
        (r#"{"block_out_channels": [33]}"#, "does not divide"),
        (r#"{"norm_num_groups": 0}"#, "`norm_num_groups` is 0"),
        (
            r#"{"block_out_channels": [4000000000000]}"#,
            "expected 1 to 65536",
        ),
        (
            r#"{"down_block_types": ["AttnDownEncoderBlock2D"]}"#,
            "`down_block_types`",
        ),
        (r#"{"scaling_factor": 0}"#, "`scaling_factor`"),
        (
            r#"{"_class_name": "AutoencoderKLFlux2", "patch_size": [2, 1]}"#,
            "`patch_size` is [2, 1], expected the same number twice",
        ),
        (
            r#"{"_class_name": "AutoencoderKLFlux2", "batch_norm_eps": 0}"#,
            "`batch_norm_eps` is 0, expected more than 0",
        ),
        (
            r#"{"decoder_block_out_channels": [64, 64]}"#,
            "`decoder_block_out_channels` has 2 levels, expected 1",
        ),
        (r#"{"latent_channels": "four"}"#, "invalid type"),
    ] {
        let error = VaeConfig::parse(json, "config.json")
            .expect_err(json)
            .to_string();
        assert!(
            error.contains(part) && !error.contains('\n'),
            "{json}: {error}"
        );
    }
}

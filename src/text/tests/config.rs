//! Architectures from `config.json`. The expected values were read off `CLIPTextConfig` and `T5Config` of
//! transformers 5.23.0 for the same files.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::super::activation::Activation;
use super::super::clip::{ClipText, ClipTextArchitecture};
use super::super::config::{from_config, read};
use super::super::t5::{T5, T5EncoderArchitecture};
use super::super::{Architecture, Kind, published};

const CLIP_TEXT: &dyn Kind = &ClipText;
const T5_ENCODER: &dyn Kind = &T5;

fn of_kind<A: Architecture + Clone>(architecture: &dyn Architecture, kind: &dyn Kind) -> A {
    architecture.of_kind::<A>(kind).expect("its kind").clone()
}

fn clip(config: &Value) -> ClipTextArchitecture {
    let read = from_config(config, CLIP_TEXT, "config.json").expect("a CLIP");
    of_kind(&*read, CLIP_TEXT)
}

fn published_clip_l() -> ClipTextArchitecture {
    of_kind(&*published("clip_l").expect("CLIP-L"), CLIP_TEXT)
}

fn t5(config: &Value) -> T5EncoderArchitecture {
    let read = from_config(config, T5_ENCODER, "config.json").expect("a T5");
    of_kind(&*read, T5_ENCODER)
}

/// CLIP-L as in the text_encoder folder of SD3, inert fields and all.
fn clip_l() -> Value {
    json!({
        "_name_or_path": "openai/clip-vit-large-patch14",
        "architectures": ["CLIPTextModelWithProjection"],
        "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
        "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0,
        "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77, "model_type": "clip_text_model",
        "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1,
        "projection_dim": 768, "torch_dtype": "float16", "transformers_version": "4.41.2",
        "vocab_size": 49408
    })
}

/// T5 v1.1 XXL as google published it: without `relative_attention_max_distance` and `dense_act_fn`.
fn t5_xxl() -> Value {
    json!({
        "architectures": ["T5ForConditionalGeneration"], "d_ff": 10240, "d_kv": 64, "d_model": 4096,
        "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": true,
        "layer_norm_epsilon": 1e-06, "model_type": "t5", "num_decoder_layers": 24, "num_heads": 64,
        "num_layers": 24, "output_past": true, "pad_token_id": 0,
        "relative_attention_num_buckets": 32, "tie_word_embeddings": false, "use_cache": true,
        "vocab_size": 32128
    })
}

fn with(mut config: Value, field: &str, value: Value) -> Value {
    config[field] = value;
    config
}

#[test]
fn published_configurations_are_read_as_published() {
    let expected = ClipTextArchitecture {
        projection_dim: Some(768),
        ..published_clip_l()
    };
    assert_eq!(clip(&clip_l()), expected);
    let t5_expected: T5EncoderArchitecture = of_kind(&*published("t5").expect("T5"), T5_ENCODER);
    assert_eq!(t5(&t5_xxl()), t5_expected);
    assert!(published("clip_h").is_none());
}

#[test]
fn a_plain_text_model_has_no_projection() {
    let plain = with(clip_l(), "architectures", json!(["CLIPTextModel"]));
    assert_eq!(clip(&plain), published_clip_l());
}

/// The tables of `explain` and the parser agree on every field: what is called inert changes nothing, and
/// what is called effective changes the architecture or is refused.
#[test]
fn fields_do_what_their_explanation_says() {
    use crate::recipe::explain::{EffectClass, Subject, table};
    let values = [
        json!(3),
        json!(0.5),
        json!("text"),
        json!([1, 2]),
        json!({"a": 1}),
        Value::Null,
    ];
    for (kind, config) in [(CLIP_TEXT, clip_l()), (T5_ENCODER, t5_xxl())] {
        let plain = from_config(&config, kind, "config.json").expect("a configuration");
        let mut inert = 0;
        for entry in table(Subject::Encoder(kind)).expect("the table") {
            for name in &entry.names {
                for value in &values {
                    let changed = with(config.clone(), name, value.clone());
                    let same =
                        from_config(&changed, kind, "config.json").is_ok_and(|a| *a == *plain);
                    match entry.class {
                        EffectClass::Inert => assert!(same, "{name} = {value}"),
                        EffectClass::Effective if value.is_number() || value.is_string() => {
                            assert!(!same, "{name} = {value}");
                        }
                        EffectClass::Effective | EffectClass::Conditional => {}
                    }
                    inert += usize::from(entry.class == EffectClass::Inert);
                }
            }
        }
        assert!(inert > 100, "{inert}");
    }
    let future = with(clip_l(), "some_future_field", json!({"a": 1}));
    assert_eq!(clip(&future), clip(&clip_l()));
}

#[test]
fn a_whole_clips_file_is_read_from_its_text_tower() {
    let text = json!({"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
                      "projection_dim": 768, "eos_token_id": 2, "model_type": "clip_text_model"});
    let whole = json!({"model_type": "clip", "projection_dim": 1024, "hidden_size": 99,
                       "text_config": text.clone(), "vision_config": {"hidden_size": 1024}});
    assert_eq!(clip(&whole), clip(&clip_l()));
    // The second copy of old files may repeat the first, or add to it.
    let doubled = with(
        whole.clone(),
        "text_config_dict",
        json!({"hidden_size": 768}),
    );
    assert_eq!(clip(&doubled), clip(&whole));
    let absent = with(whole, "text_config_dict", Value::Null);
    assert_eq!(clip(&absent), clip(&clip_l()));
}

#[test]
fn the_feed_forward_of_a_t5_is_what_transformers_makes_of_it() {
    for (fields, activation, gated) in [
        (json!({}), Activation::Relu, false),
        (
            json!({"feed_forward_proj": "gated-gelu"}),
            Activation::GeluNew,
            true,
        ),
        (
            json!({"feed_forward_proj": "gated-silu"}),
            Activation::Silu,
            true,
        ),
        (
            json!({"feed_forward_proj": "gelu"}),
            Activation::Gelu,
            false,
        ),
        (
            json!({"feed_forward_proj": "gated-gelu", "dense_act_fn": "relu"}),
            Activation::Relu,
            true,
        ),
        (
            json!({"feed_forward_proj": "relu", "is_gated_act": true}),
            Activation::Relu,
            true,
        ),
    ] {
        let config = with(fields.clone(), "model_type", json!("t5"));
        let read = t5(&config);
        assert_eq!(
            (read.activation, read.is_gated_act),
            (activation, gated),
            "{fields}"
        );
    }
}

#[test]
fn the_other_names_of_t5_fields_are_taken() {
    let config = json!({"model_type": "t5", "hidden_size": 96, "num_attention_heads": 3,
                        "num_hidden_layers": 2, "head_dim": 32});
    let read = t5(&config);
    assert_eq!(
        (read.d_model, read.num_heads, read.num_layers, read.d_kv),
        (96, 3, 2, 32)
    );
}

#[track_caller]
fn refused(network: &dyn Kind, config: &Value, said: Expect) {
    let error = from_config(config, network, "te/config.json").expect_err("refused");
    said.assert_eq(&error.to_string());
}

#[test]
fn text_is_no_number() {
    refused(
        CLIP_TEXT,
        &with(clip_l(), "hidden_size", json!("768")),
        expect![[
            r#"te/config.json: `hidden_size`: expected a whole number from 1 to 16777216, found "768""#
        ]],
    );
}

#[test]
fn a_fraction_is_no_count() {
    refused(
        CLIP_TEXT,
        &with(clip_l(), "num_hidden_layers", json!(12.5)),
        expect![
            "te/config.json: `num_hidden_layers`: expected a whole number from 1 to 16777216, found 12.5"
        ],
    );
}

#[test]
fn a_huge_number_is_damage() {
    refused(
        CLIP_TEXT,
        &with(
            clip_l(),
            "vocab_size",
            json!(18_446_744_073_709_551_615_u64),
        ),
        expect![
            "te/config.json: `vocab_size`: expected a whole number from 1 to 16777216, found 18446744073709551615"
        ],
    );
}

#[test]
fn zero_is_no_size() {
    refused(
        T5_ENCODER,
        &with(t5_xxl(), "num_layers", json!(0)),
        expect![
            "te/config.json: `num_layers`: expected a whole number from 1 to 16777216, found 0"
        ],
    );
}

#[test]
fn heads_must_divide_the_width() {
    refused(
        CLIP_TEXT,
        &with(clip_l(), "num_attention_heads", json!(7)),
        expect![
            "te/config.json: `num_attention_heads`: expected a divisor of hidden_size 768, found 7"
        ],
    );
}

#[test]
fn an_activation_must_be_known() {
    refused(
        CLIP_TEXT,
        &with(clip_l(), "hidden_act", json!("mish")),
        expect![
            "te/config.json: `hidden_act`: expected one of quick_gelu, gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish, found mish"
        ],
    );
}

#[test]
fn an_epsilon_must_be_small() {
    refused(
        T5_ENCODER,
        &with(t5_xxl(), "layer_norm_epsilon", json!(1e300)),
        expect![
            "te/config.json: `layer_norm_epsilon`: expected a number between 0 and 1, found 1e+300"
        ],
    );
}

#[test]
fn an_epsilon_must_be_positive() {
    refused(
        CLIP_TEXT,
        &with(clip_l(), "layer_norm_eps", json!(-1e-5)),
        expect![
            "te/config.json: `layer_norm_eps`: expected a number between 0 and 1, found -0.00001"
        ],
    );
}

#[test]
fn several_end_tokens_are_not_one() {
    refused(
        CLIP_TEXT,
        &with(clip_l(), "eos_token_id", json!([2, 3])),
        expect!["te/config.json: `eos_token_id`: expected one token id, found [2,3]"],
    );
}

#[test]
fn a_decoder_is_no_encoder() {
    refused(
        T5_ENCODER,
        &with(t5_xxl(), "is_decoder", json!(true)),
        expect!["te/config.json: `is_decoder`: expected false (plumb reads encoders), found true"],
    );
}

#[test]
fn a_umt5_is_refused_by_name() {
    refused(
        T5_ENCODER,
        &with(t5_xxl(), "model_type", json!("umt5")),
        expect![
            "te/config.json: `model_type`: expected t5, found umt5 (its position bias differs in every block)"
        ],
    );
}

#[test]
fn a_t5_is_no_clip() {
    refused(
        CLIP_TEXT,
        &t5_xxl(),
        expect!["te/config.json: `model_type`: expected clip_text_model or clip, found t5"],
    );
}

#[test]
fn a_file_must_say_what_it_is() {
    refused(
        T5_ENCODER,
        &json!({}),
        expect!["te/config.json: `model_type`: expected t5, found no such field"],
    );
}

#[test]
fn a_list_is_no_configuration() {
    refused(
        CLIP_TEXT,
        &json!([1, 2]),
        expect!["te/config.json: not a model configuration: expected an object, found [1,2]"],
    );
}

#[test]
fn quantized_weights_are_refused() {
    refused(
        T5_ENCODER,
        &with(
            t5_xxl(),
            "quantization_config",
            json!({"quant_method": "fp8"}),
        ),
        expect![[
            r#"te/config.json: `quantization_config`: expected none (plumb reads weights that are not quantized), found {"quant_method":"fp8"}"#
        ]],
    );
}

#[test]
fn a_gate_is_written_with_one_dash() {
    refused(
        T5_ENCODER,
        &with(t5_xxl(), "feed_forward_proj", json!("gated-gelu-new")),
        expect![
            "te/config.json: `feed_forward_proj`: expected ACT or gated-ACT, found gated-gelu-new"
        ],
    );
}

#[test]
fn buckets_are_even() {
    refused(
        T5_ENCODER,
        &with(t5_xxl(), "relative_attention_num_buckets", json!(31)),
        expect![
            "te/config.json: `relative_attention_num_buckets`: expected an even number of at least 4, found 31"
        ],
    );
}

#[test]
fn the_distance_lies_beyond_the_exact_buckets() {
    refused(
        T5_ENCODER,
        &with(t5_xxl(), "relative_attention_max_distance", json!(8)),
        expect![
            "te/config.json: `relative_attention_max_distance`: expected more than 8, a quarter of the buckets, found 8"
        ],
    );
}

#[test]
fn two_names_must_agree() {
    refused(
        T5_ENCODER,
        &with(t5_xxl(), "hidden_size", json!(1)),
        expect!["te/config.json: `hidden_size`: expected 4096 as in d_model, found 1"],
    );
}

#[test]
fn two_text_towers_must_agree() {
    refused(
        CLIP_TEXT,
        &json!({"model_type": "clip", "text_config": {"hidden_size": 768}, "text_config_dict": {"hidden_size": 512}}),
        expect![
            "te/config.json: `text_config_dict.hidden_size`: expected 768 as in text_config, found 512"
        ],
    );
}

#[test]
fn a_text_tower_is_an_object() {
    refused(
        CLIP_TEXT,
        &json!({"model_type": "clip", "text_config": 3}),
        expect!["te/config.json: `text_config`: expected an object, found 3"],
    );
}

#[test]
fn a_long_value_is_cut_in_the_message() {
    refused(
        CLIP_TEXT,
        &with(clip_l(), "hidden_act", json!(vec![0; 1000])),
        expect![
            "te/config.json: `hidden_act`: expected text, found [0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0..."
        ],
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.json");
    let error = read(&file, CLIP_TEXT).expect_err("no file").to_string();
    assert!(error.contains("config.json"), "{error}");
    std::fs::write(&file, b"{\"a\": \xff").expect("written");
    let error = read(&file, CLIP_TEXT).expect_err("no JSON").to_string();
    assert!(error.contains("config.json"), "{error}");
    // Deeper than any parser should go.
    std::fs::write(&file, "[".repeat(100_000)).expect("written");
    assert!(read(&file, CLIP_TEXT).is_err());
    std::fs::write(&file, clip_l().to_string()).expect("written");
    let back = read(&file, CLIP_TEXT).expect("a CLIP");
    assert_eq!(
        of_kind::<ClipTextArchitecture>(&*back, CLIP_TEXT),
        clip(&clip_l())
    );
}

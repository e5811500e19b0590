//! The canonical form and the fingerprint of specs. Any language can compute them; in Python, with the packages
//! `rfc8785` and `blake3`:
//!
//! ```python
//! import blake3, json, rfc8785
//! spec = json.load(open("spec.json"))                     # any layout, any order of keys
//! print(blake3.blake3(rfc8785.dumps(spec)).hexdigest())   # the fingerprint
//! ```
//!
//! Plain `json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)` gives the same bytes only
//! while every float prints alike: Python writes `1e-05` where RFC 8785 has `0.00001`.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::digest::{Digest, Fingerprint, canonical_json};
use crate::text::Network;
use crate::text::activation::Activation;
use crate::text::clip::{ClipForward, ClipTextArchitecture, ClipTextNetwork, PooledRule};
use crate::text::spec::{
    Cleanup, Dtype, EncoderMask, EncoderSpec, PadText, Precision, TokenRules, Truncation,
    caption_entry,
};
use crate::text::t5::{T5EncoderArchitecture, T5Forward, T5Mask, T5Network, T5PadRows};

use super::{deviated, json as to_json, shipped, spec_of};

/// Every way to change one leaf of a JSON value into another of the same kind, and every `null` filled.
fn mutations(value: &Value) -> Vec<Value> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, inner)| {
                mutations(inner).into_iter().map(move |changed| {
                    let mut map = map.clone();
                    map.insert(key.clone(), changed);
                    Value::Object(map)
                })
            })
            .collect(),
        Value::Array(items) => {
            let mut longer = items.clone();
            longer.push(json!("first_line"));
            let mut all = vec![Value::Array(longer)];
            if !items.is_empty() {
                all.push(Value::Array(items[1..].to_vec()));
            }
            all
        }
        Value::Null => vec![json!(1)],
        Value::Bool(flag) => vec![json!(!flag)],
        Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(n), _) => vec![json!(n + 1)],
            (None, Some(x)) => vec![json!(x * 2.0)],
            _ => panic!("{n}"),
        },
        Value::String(text) => words(text).into_iter().map(Value::String).collect(),
    }
}

/// The other words of the enumeration that a word belongs to; for an id, another id.
fn words(text: &str) -> Vec<String> {
    const GROUPS: &[&[&str]] = &[
        &["quick_gelu", "gelu", "gelu_new", "relu", "silu"],
        &["tokens", "whole_words"],
        &["ordinary", "special"],
        &["first_eos", "argmax_id", "config_eos"],
        &["none", "pads"],
        &["keep", "drop"],
        &["f32", "f16", "bf16"],
        &["clip_text", "t5_encoder"],
        &[
            "transformers_4",
            "transformers_4_fast",
            "transformers_4_ftfy_6.1",
            "open_clip_ftfy_6.1",
        ],
    ];
    if text.len() == 64 {
        return vec![Digest::of(text.as_bytes()).to_string()];
    }
    let group = GROUPS.iter().find(|g| g.contains(&text));
    let group = group.unwrap_or_else(|| panic!("`{text}` is in no enumeration: add it here"));
    let others = group.iter().filter(|word| **word != text);
    others.map(|word| (*word).to_owned()).collect()
}

fn specs() -> Vec<EncoderSpec> {
    let mut specs = Vec::new();
    for name in ["sd3/3.5-large", "sd3/3.5-large:diffusers"] {
        for slot in ["clip_l", "clip_g", "t5"] {
            specs.push(spec_of(&shipped(name), slot));
        }
    }
    specs
}

#[test]
fn changing_any_field_changes_the_fingerprint() {
    for spec in specs() {
        let value = to_json(&spec);
        let all = mutations(&value);
        // Fewer would mean that the walk misses fields.
        assert!(all.len() > 25, "{}", all.len());
        let mut fingerprints = BTreeSet::from([spec.fingerprint()]);
        let mut parsed = 0;
        for changed in &all {
            let fingerprint = Fingerprint::of(changed);
            assert!(fingerprints.insert(fingerprint), "{changed}");
            // Where the change is itself a spec, the spec has that fingerprint: nothing is skipped by serde.
            if let Ok(spec) = serde_json::from_value::<EncoderSpec>(changed.clone()) {
                assert_eq!(spec.fingerprint(), fingerprint);
                parsed += 1;
            }
        }
        assert!(parsed > 15, "{parsed} of {}", all.len());
    }
}

#[test]
fn a_spec_survives_its_json_and_refuses_unknown_fields() {
    for spec in specs() {
        let text = canonical_json(&spec);
        let back: EncoderSpec = serde_json::from_slice(&text).expect("own JSON");
        assert_eq!(back, spec);
        assert_eq!(canonical_json(&back), text);
        for group in ["", "/architecture", "/tokens", "/forward", "/precision"] {
            let mut value = to_json(&spec);
            let at = value.pointer_mut(group);
            at.expect("a group")["batch_size"] = json!(8);
            assert!(
                serde_json::from_value::<EncoderSpec>(value).is_err(),
                "{group}"
            );
        }
    }
}

fn activations() -> impl Strategy<Value = Activation> {
    use Activation::{Gelu, GeluNew, QuickGelu, Relu, Silu};
    proptest::sample::select(vec![QuickGelu, Gelu, GeluNew, Relu, Silu])
}

fn dtypes() -> impl Strategy<Value = Dtype> {
    proptest::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::Bf16])
}

fn digests() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest::from_bytes)
}

prop_compose! {
    fn clips()(
        sizes in proptest::array::uniform6(1_usize..1 << 24),
        hidden_act in activations(),
        layer_norm_eps in 1e-12_f64..1e-1,
        projection_dim in proptest::option::of(1_usize..4096),
        eos_token_id in proptest::option::of(any::<u32>()),
    ) -> ClipTextArchitecture {
        let [vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads,
             max_position_embeddings] = sizes;
        ClipTextArchitecture {
            vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads,
            max_position_embeddings, hidden_act, layer_norm_eps, projection_dim, eos_token_id,
        }
    }
}

prop_compose! {
    fn t5s()(
        sizes in proptest::array::uniform8(1_usize..1 << 24),
        activation in activations(),
        is_gated_act in any::<bool>(),
        layer_norm_epsilon in 1e-12_f64..1e-1,
    ) -> T5EncoderArchitecture {
        let [vocab_size, d_model, d_kv, d_ff, num_layers, num_heads, relative_attention_num_buckets,
             relative_attention_max_distance] = sizes;
        T5EncoderArchitecture {
            vocab_size, d_model, d_kv, d_ff, num_layers, num_heads, activation, is_gated_act,
            layer_norm_epsilon, relative_attention_num_buckets, relative_attention_max_distance,
        }
    }
}

fn masks() -> impl Strategy<Value = EncoderMask> {
    proptest::sample::select(vec![EncoderMask::None, EncoderMask::Pads])
}

fn networks() -> impl Strategy<Value = Arc<dyn Network>> {
    use PooledRule::{ArgmaxId, ConfigEos, FirstEos, None};
    let pooled = proptest::sample::select(vec![None, FirstEos, ArgmaxId, ConfigEos]);
    let clip = (
        clips(),
        proptest::option::of(-33..0_i32),
        any::<bool>(),
        pooled,
        any::<bool>(),
        masks(),
    )
        .prop_map(
            |(architecture, hidden_layer, final_norm, pooled, projection, mask)| {
                let forward = ClipForward {
                    hidden_layer,
                    final_norm,
                    pooled,
                    projection,
                    mask,
                    chunks: Option::None,
                };
                Arc::new(ClipTextNetwork {
                    architecture,
                    forward,
                }) as Arc<dyn Network>
            },
        );
    let rows = proptest::sample::select(vec![T5PadRows::Keep, T5PadRows::One, T5PadRows::Drop]);
    let masks = proptest::sample::select(vec![
        T5Mask::None,
        T5Mask::Pads,
        T5Mask::PadsButOne,
        T5Mask::PadsUniform,
    ]);
    let t5 = (t5s(), masks, rows).prop_map(|(architecture, mask, pad_rows)| {
        let forward = T5Forward { mask, pad_rows };
        Arc::new(T5Network {
            architecture,
            forward,
        }) as Arc<dyn Network>
    });
    prop_oneof![clip, t5]
}

prop_compose! {
    fn any_spec()(
        network in networks(),
        weights in digests(),
        tokenizer in digests(),
        cleanup in proptest::sample::subsequence(vec![
            Cleanup::FirstCharacters226, Cleanup::FirstLine, Cleanup::RespaceCommas,
            Cleanup::DropPromptWeights, Cleanup::Ftfy63, Cleanup::UnescapeHtmlTwice,
            Cleanup::CollapseWhitespace,
        ], 0..=7),
        min_tokens in 0_usize..600,
        max_tokens in proptest::option::of(1_usize..600),
        truncation in proptest::sample::select(vec![Truncation::Tokens, Truncation::WholeWords]),
        pad_id in any::<u32>(),
        pad_text in proptest::sample::select(vec![PadText::Ordinary, PadText::Special]),
        implementation in proptest::sample::select(vec!["transformers_5", "transformers_4"]),
        compute in dtypes(),
        output in dtypes(),
    ) -> EncoderSpec {
        let mut of_kind = serde_json::Map::new();
        // The default is not written.
        if implementation != "transformers_5" {
            of_kind.insert("implementation".to_owned(), implementation.into());
        }
        EncoderSpec {
            version: 1, network, weights, tokenizer,
            tokens: TokenRules {
                cleanup, min_tokens, max_tokens, truncation, pad_id, pad_text, of_kind,
            },
            precision: Precision { compute, output },
        }
    }
}

proptest! {
    #[test]
    fn the_canonical_form_is_stable_and_tells_specs_apart(a in any_spec(), b in any_spec()) {
        let of = |spec: &EncoderSpec| canonical_json(spec);
        prop_assert_eq!(&of(&a), &of(&a.clone()));
        prop_assert_eq!(a == b, of(&a) == of(&b));
        let back: EncoderSpec = serde_json::from_slice(&of(&a)).expect("own JSON");
        prop_assert_eq!(of(&back), of(&a));
        prop_assert_eq!(back, a);
    }

    #[test]
    fn an_entry_is_told_by_spec_and_caption(
        a in any::<[u8; 32]>(), b in any::<[u8; 32]>(), one in ".{0,20}", other in ".{0,20}",
    ) {
        let entry = |spec, caption: &str| caption_entry(&Fingerprint::from_bytes(spec), caption);
        prop_assert_eq!(entry(a, &one) == entry(b, &other), (a, &one) == (b, &other));
    }
}

/// The ids below were computed by the Python above. If this test fails, the canonical form has changed, and
/// every store in the world misses: bump `ENCODER_SPEC_VERSION` knowingly.
#[test]
fn fingerprints_never_change() {
    // What was written before there were implementations is what today's gives, which no canonical form names.
    let recipe = deviated(
        "sd3/3.5-large",
        "clip_l.tokens.implementation = 'transformers_5'\nclip_g.tokens.implementation = 'transformers_5'\nt5.tokens.implementation = 'transformers_5'",
    )
    .expect("deviations");
    let text = canonical_json(&spec_of(&recipe, "clip_g"));
    expect_test::expect![[r#"{"architecture":{"eos_token_id":null,"hidden_act":"gelu","hidden_size":1280,"intermediate_size":5120,"kind":"clip_text","layer_norm_eps":0.00001,"max_position_embeddings":77,"num_attention_heads":20,"num_hidden_layers":32,"projection_dim":1280,"vocab_size":49408},"forward":{"final_norm":false,"hidden_layer":-2,"kind":"clip_text","mask":"none","pooled":"argmax_id","projection":true},"precision":{"compute":"f32","output":"f32"},"tokenizer":"dcd7fa975da818f1df39519759ef71e4e911241d2ad561e1118fcb9bcf7bcc21","tokens":{"cleanup":["drop_prompt_weights"],"max_tokens":77,"min_tokens":77,"pad_id":0,"pad_text":"ordinary","truncation":"whole_words"},"version":1,"weights":"3edc5c4a5df8c79ef4f8dbdc373cd21ca041ccf39fe5693250d004092094dc4a"}"#]].assert_eq(&String::from_utf8(text).expect("UTF-8"));
    let of = |slot| spec_of(&recipe, slot).fingerprint().to_string();
    expect_test::expect![[r#"
        a05c2990b130647da29dfef213a45d5ae6aea5d42614ecf92a213cf6a7038181
        7dc5d013a8b151e33dd13e41dd34142cf0625da51cf82754d4c4d4658489ac96
        36e9b3af942a7cc0d1139b546b6e459c564501979fb27c6ea26668674615fde7"#]]
    .assert_eq(&[of("clip_l"), of("clip_g"), of("t5")].join("\n"));
    let entry = caption_entry(
        &spec_of(&recipe, "t5").fingerprint(),
        "a caf\u{e9} \"\u{1F600}\"\n",
    );
    expect_test::expect!["ca8c6c88951015ce607b1c0221872d24bef10f6e2e8740dcf319663a64042c44"]
        .assert_eq(&entry.to_string());
    expect_test::expect!["c4d80831cf59d14cdcff0faae4b4829b6f1b70bdfa567ea9460535523a9cd366"]
        .assert_eq(&recipe.fingerprint().to_string());
    let reference = shipped("sd3/3.5-large");
    let text = canonical_json(&spec_of(&reference, "clip_g").tokens);
    expect_test::expect![[r#"{"cleanup":["drop_prompt_weights"],"implementation":"transformers_4","max_tokens":77,"min_tokens":77,"pad_id":0,"pad_text":"ordinary","truncation":"whole_words"}"#]].assert_eq(&String::from_utf8(text).expect("UTF-8"));
    assert_ne!(reference.fingerprint(), recipe.fingerprint());
}

/// The fingerprints of all recipes, as the version before implementations had them: only those of references are others now.
#[test]
fn a_rule_that_came_later_changes_no_fingerprint_of_a_recipe_that_has_its_default() {
    let of = |name: &str| shipped(name).fingerprint().short();
    expect_test::expect![[r#"
        8da8ec9f05e1 sd1/1.5:kohya
        4de4ac9dfa22 sd1/1.5:diffusers
        5298dcad64e7 sdxl/base-1.0:diffusers
        5b8744d5fce3 sdxl/base-1.0:kohya
        1f2fb90151ab sd3/3.5-large:diffusers
        29e86ccac838 sd3/3.5-large:kohya
        395dbc4023c1 flux1/dev:diffusers
        272f047261be flux1/schnell:ai-toolkit"#]]
    .assert_eq(
        &[
            "sd1/1.5:kohya",
            "sd1/1.5:diffusers",
            "sdxl/base-1.0:diffusers",
            "sdxl/base-1.0:kohya",
            "sd3/3.5-large:diffusers",
            "sd3/3.5-large:kohya",
            "flux1/dev:diffusers",
            "flux1/schnell:ai-toolkit",
        ]
        .map(|name| format!("{} {name}", of(name)))
        .join("\n"),
    );
}

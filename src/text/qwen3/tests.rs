//! Against transformers and diffusers: `tools/goldens/qwen3.py` makes the files.

#![expect(clippy::disallowed_methods, reason = "the files are the test's own")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use super::Qwen3;
use crate::digest::Digest;
use crate::nn::weights::Weights;
use crate::recipe::EncoderRecipe;
use crate::recipe::rules::EncoderRules;
use crate::text::config::from_config;
use crate::text::spec::{EncoderSpec, TokenRules};
use crate::text::{Encoded, Kind as _, Residency, TextEncoder, Tokenizer};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn tokenizer(folder: &Path) -> Tokenizer {
    Tokenizer::load(Qwen3.tokenizer(), folder).expect("a tokenizer")
}

fn tiny() -> Tokenizer {
    tokenizer(&golden("tokenizers/qwen3"))
}

const PLAIN: &str = "{caption}";
const Z_IMAGE: &str = "<|im_start|>user\n{caption}<|im_end|>\n<|im_start|>assistant\n";
const KLEIN: &str =
    "<|im_start|>user\n{caption}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

/// A recipe's encoder with this text around captions, so many tokens and these forward rules.
fn recipe(template: &str, length: usize, forward: Value) -> Result<EncoderRecipe, String> {
    let rules = json!({
        "tokens": {
            "cleanup": [], "min_tokens": length, "max_tokens": length, "truncation": "tokens", "pad": "end",
            "pad_text": "ordinary", "template": template,
        },
        "forward": forward, "absent": "refuse", "precision": {"compute": "f32", "output": "f32"},
    });
    Ok(EncoderRecipe {
        slot: "qwen3".to_owned(),
        component: "text_encoder".to_owned(),
        tokenizer_component: "tokenizer".to_owned(),
        rules: EncoderRules::from_json(&Qwen3, rules)?,
    })
}

fn forward(layers: &[i32], pads: &str) -> Value {
    json!({"hidden_layers": layers, "final_norm": false, "mask": "pads", "pad_rows": pads})
}

fn token_rules(template: &str, length: usize, tokenizer: &Tokenizer) -> TokenRules {
    let recipe = recipe(template, length, forward(&[-2], "keep")).expect("rules");
    recipe.tokens(tokenizer.eos_id())
}

// ---------------------------------------------------------------- tokens

fn tokens_golden() -> Value {
    let text = std::fs::read(golden("tokens_qwen3.json")).expect("golden");
    serde_json::from_slice(&text).expect("JSON")
}

fn compare(vocabulary: &str, folder: &Path) {
    let golden = tokens_golden();
    let more = golden["more"].as_array().expect("captions").iter();
    let mut texts = crate::text::tests::token_captions();
    texts.extend(more.map(|text| text.as_str().expect("text").to_owned()));
    let tokenizer = tokenizer(folder);
    let expected: BTreeMap<String, String> =
        serde_json::from_value(golden[vocabulary].clone()).expect("digests");
    let mut found = BTreeMap::new();
    for (name, template) in golden["templates"].as_object().expect("texts") {
        let rules = token_rules(template.as_str().expect("text"), 512, &tokenizer);
        let mut whole = blake3::Hasher::new();
        for tokens in tokenizer.encode_all(&rules, &texts).expect("encodes") {
            let length = tokens.ids.len() as u32;
            for id in std::iter::once(&length).chain(&tokens.ids) {
                whole.update(&id.to_le_bytes());
            }
            assert_eq!(tokens.truncated, tokens.total > 512);
        }
        found.insert(name.clone(), whole.finalize().to_hex().to_string());
    }
    assert_eq!(found, expected);
}

#[test]
fn qwen3_ids_of_the_tiny_vocabulary_are_those_of_transformers() {
    compare("tiny", &golden("tokenizers/qwen3"));
}

#[test]
fn qwen3_ids_of_the_real_vocabulary_are_those_of_transformers() {
    let folder = std::env::var_os("PLUMB_TOKENIZERS").map(|f| PathBuf::from(f).join("qwen3"));
    match folder.filter(|folder| folder.is_dir()) {
        Some(folder) => compare("real", &folder),
        None => println!("skipped: PLUMB_TOKENIZERS names no folder with the real qwen3/"),
    }
}

/// The texts that fields.toml offers a search are those of `apply_chat_template` on the released template.
#[test]
fn the_templates_are_those_of_the_released_chat_template() {
    let golden = tokens_golden();
    let of = |name: &str| golden["templates"][name].as_str().expect("text").to_owned();
    assert_eq!(of("z_image"), Z_IMAGE);
    assert_eq!(of("klein"), KLEIN);
    let fields: toml::Table = Qwen3.fields().parse().expect("TOML");
    let offered = fields["values"]["tokens.template"]
        .as_array()
        .expect("a list");
    let offered: Vec<&str> = offered.iter().filter_map(toml::Value::as_str).collect();
    let named = [
        PLAIN.to_owned(),
        of("no_generation_prompt"),
        of("z_image"),
        of("klein"),
    ];
    assert_eq!(offered, named);
}

#[test]
fn every_form_of_the_files_is_the_same_tokenizer() {
    let whole = golden("tokenizers/qwen3");
    let folder = tempfile::tempdir().expect("folder");
    let json: Value =
        serde_json::from_slice(&std::fs::read(whole.join("tokenizer.json")).expect("read"))
            .expect("JSON");
    let model = &json["model"];
    let merges = model["merges"].as_array().expect("merges").iter();
    let merges: String = merges
        .map(|pair| match pair.as_array() {
            Some(pair) => format!(
                "{} {}\n",
                pair[0].as_str().expect("t"),
                pair[1].as_str().expect("t")
            ),
            None => format!("{}\n", pair.as_str().expect("text")),
        })
        .collect();
    let write =
        |name: &str, text: String| std::fs::write(folder.path().join(name), text).expect("written");
    write("vocab.json", model["vocab"].to_string());
    write("merges.txt", format!("#version: 0.2\n{merges}"));
    let error = Tokenizer::load(Qwen3.tokenizer(), folder.path()).expect_err("no special tokens");
    assert!(error.to_string().contains("no `<|endoftext|>`"), "{error}");
    std::fs::copy(
        whole.join("tokenizer_config.json"),
        folder.path().join("tokenizer_config.json"),
    )
    .expect("copied");
    assert_eq!(tokenizer(folder.path()).digest(), tiny().digest());

    // A byte without a token would vanish from captions.
    let mut broken = model["vocab"].clone();
    broken.as_object_mut().expect("a map").remove("\u{108}");
    write("vocab.json", broken.to_string());
    write("merges.txt", String::new());
    let error = Tokenizer::load(Qwen3.tokenizer(), folder.path()).expect_err("a byte is missing");
    assert!(
        error
            .to_string()
            .contains("of the 256 that stand for bytes"),
        "{error}"
    );
}

#[test]
fn a_long_caption_is_cut_with_the_text_behind_it_and_that_is_told() {
    let tokenizer = tiny();
    let rules = token_rules(KLEIN, 24, &tokenizer);
    let short = tokenizer.encode(&rules, "a cat").expect("encodes");
    assert!(!short.truncated && short.count < 24 && short.ids.len() == 24);
    assert_eq!(short.ids[short.count], tokenizer.eos_id());
    let long = "a red cat ".repeat(20);
    let tokens = tokenizer.encode(&rules, &long).expect("encodes");
    assert!(tokens.truncated && tokens.count == 24 && tokens.total > 60);
    let end = tokenizer.id_of("<|im_end|>").expect("special");
    assert!(short.ids.contains(&end) && !tokens.ids.contains(&end));
    let lost = tokenizer
        .lost(&rules, &long)
        .expect("told")
        .cut
        .expect("cut");
    assert!(lost.text.ends_with("</think>"), "{lost:?}");
    // The caption fits, what stands behind it does not.
    let rules = token_rules(KLEIN, short.count - 1, &tokenizer);
    let tokens = tokenizer.encode(&rules, "a cat").expect("encodes");
    assert!(tokens.truncated && tokens.total == tokens.count + 1);
}

#[test]
fn a_template_that_the_tokenizer_cannot_read_is_refused() {
    let tokenizer = tiny();
    let rules = token_rules("<|im_begin|>{caption}", 24, &tokenizer);
    let error = tokenizer
        .encode(&rules, "a cat")
        .expect_err("no such token");
    assert!(error.to_string().contains("`<|im_begin|>`"), "{error}");
    for (template, why) in [
        (json!("a cat"), "{caption} once"),
        (json!("{caption}{caption}"), "{caption} once"),
        (json!(7), "{caption} once"),
        (json!("x".repeat(20_000) + "{caption}"), "16384 bytes"),
    ] {
        let tokens = json!({"template": template});
        let error = Qwen3
            .check_tokens(
                tokens.as_object().expect("an object"),
                crate::text::spec::PadText::Ordinary,
            )
            .expect_err("refused");
        assert!(error.contains(why), "{error}");
    }
    let missing = Qwen3.check_tokens(
        &serde_json::Map::new(),
        crate::text::spec::PadText::Ordinary,
    );
    assert_eq!(missing, Err("missing field `template`".to_owned()));
}

/// What the tokenizer in `folder` has of its own against rules.
fn notes(rules: &TokenRules, folder: &Path) -> Vec<String> {
    Qwen3.tokenizer_notes(rules, &tokenizer(folder), folder)
}

#[test]
fn a_chat_template_that_gives_another_text_than_the_recipe_is_told() {
    let whole = golden("tokenizers/qwen3");
    for template in [
        KLEIN,
        Z_IMAGE,
        PLAIN,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{caption}<|im_end|>\n",
    ] {
        assert_eq!(
            notes(&token_rules(template, 24, &tiny()), &whole),
            Vec::<String>::new()
        );
    }
    let other = token_rules("<|im_start|>user\n {caption}<|im_end|>\n", 24, &tiny());
    let told = notes(&other, &whole);
    assert!(
        told.len() == 1 && told[0].contains("of the caption `a cat`, the recipe `"),
        "{told:?}"
    );

    // A checkpoint that trims captions, fills with another token, or has a template that cannot be looked into.
    let folder = tempfile::tempdir().expect("folder");
    let write =
        |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    std::fs::copy(
        whole.join("tokenizer.json"),
        folder.path().join("tokenizer.json"),
    )
    .expect("copied");
    let rules = token_rules(KLEIN, 24, &tiny());
    assert_eq!(notes(&rules, folder.path()), Vec::<String>::new());
    let released = std::fs::read_to_string(whole.join("chat_template.jinja")).expect("read");
    write(
        "chat_template.jinja",
        &released.replace(
            "'\\n' + message.content +",
            "'\\n' + message.content|trim +",
        ),
    );
    let told = notes(&rules, folder.path());
    assert!(
        told.len() == 1 && told[0].contains("programs that ask the template"),
        "{told:?}"
    );
    write("chat_template.jinja", "{% set a = a + a %}");
    let told = notes(&rules, folder.path());
    assert!(
        told.len() == 1 && told[0].contains("could not be compared"),
        "{told:?}"
    );
    write("chat_template.jinja", &released);
    write(
        "tokenizer_config.json",
        r#"{"pad_token": "<|vision_pad|>"}"#,
    );
    let told = notes(&rules, folder.path());
    assert!(
        told.len() == 1 && told[0].contains("names `<|vision_pad|>` as what fills"),
        "{told:?}"
    );
}

// ---------------------------------------------------------------- the whole way

struct Pipelines {
    tensors: std::collections::HashMap<String, Tensor>,
    case: Value,
}

impl Pipelines {
    fn open() -> Self {
        let path = golden("qwen3_pipelines.safetensors");
        let bytes = std::fs::read(&path).expect("golden");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("header");
        let metadata = header.metadata().clone().expect("metadata");
        let cases: Vec<Value> = serde_json::from_str(&metadata["cases"]).expect("cases");
        Self {
            tensors: candle_core::safetensors::load(&path, &Device::Cpu).expect("tensors"),
            case: cases[0].clone(),
        }
    }

    fn weights(&self) -> Weights {
        let own = self
            .tensors
            .iter()
            .filter_map(|(name, t)| Some((name.strip_prefix("model/")?.to_owned(), t.clone())));
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("model.safetensors");
        candle_core::safetensors::save(&own.collect(), &path).expect("written");
        Weights::open(&[path]).expect("opens")
    }

    fn spec(&self, template: &str, forward: Value) -> EncoderSpec {
        let architecture =
            from_config(&self.case["config"], &Qwen3, "config.json").expect("a Qwen3");
        let mut named = architecture.to_json();
        named["kind"] = json!("qwen3");
        assert_eq!(named, self.case["architecture"]);
        let length = self.case["length"].as_u64().expect("a number") as usize;
        let recipe = recipe(template, length, forward).expect("rules");
        recipe
            .spec(&*architecture, Digest::of(b""), tiny().identity())
            .expect("fits")
    }

    fn encode(&self, template: &str, forward: Value) -> Vec<Encoded> {
        let spec = self.spec(template, forward);
        let captions: Vec<String> =
            serde_json::from_value(self.case["captions"].clone()).expect("captions");
        let tokens = tiny().encode_all(&spec.tokens, &captions).expect("encodes");
        let encoder = TextEncoder::load(&*spec.network, &self.weights(), Residency::Streamed);
        let encoded = encoder.expect("loads").encode(&tokens).expect("encodes");
        for (tokens, encoded) in tokens.iter().zip(&encoded) {
            let hidden = encoded.hidden.as_ref().expect("a sequence");
            assert_eq!(spec.network.numbers(tokens), hidden.elem_count());
        }
        encoded
    }
}

fn close(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let off = (found - expected).and_then(|t| t.abs()?.max_all()?.to_scalar::<f32>());
    let rms = expected
        .sqr()
        .and_then(|t| t.mean_all()?.sqrt()?.to_scalar::<f32>());
    let (off, rms) = (off.expect("f32"), rms.expect("f32"));
    assert!(
        rms > 0.1 && off < 1e-5 * rms,
        "{what}: off by {off} of {rms}"
    );
}

#[test]
fn from_text_to_rows_as_the_pipeline_of_klein() {
    let golden = Pipelines::open();
    let encoded = golden.encode(KLEIN, forward(&[2, 4, 7], "keep"));
    for (row, encoded) in encoded.iter().enumerate() {
        let expected = golden.tensors["klein"].get(row).expect("a row");
        close(
            encoded.hidden.as_ref().expect("rows"),
            &expected,
            &format!("caption {row}"),
        );
    }
    // The taps of another model have the same shape and other numbers.
    let others = golden.encode(KLEIN, forward(&[3, 5, 8], "keep"));
    let (a, b) = (&encoded[1].hidden, &others[1].hidden);
    let (a, b) = (a.as_ref().expect("rows"), b.as_ref().expect("rows"));
    assert_eq!(a.dims(), b.dims());
    let off = (a - b).and_then(|t| t.abs()?.max_all()?.to_scalar::<f32>());
    assert!(off.expect("f32") > 0.1);
}

#[test]
fn from_text_to_rows_as_the_pipeline_of_z_image() {
    let golden = Pipelines::open();
    let encoded = golden.encode(Z_IMAGE, forward(&[-2], "drop"));
    for (row, encoded) in encoded.iter().enumerate() {
        let expected = &golden.tensors[&format!("z_image.{row}")];
        close(
            encoded.hidden.as_ref().expect("rows"),
            expected,
            &format!("caption {row}"),
        );
    }
}

// ---------------------------------------------------------------- specs and files

#[test]
fn recipes_that_differ_in_words_only_share_a_spec() {
    let golden = Pipelines::open();
    let rules = |layers: Value, mask: &str, pads: &str| {
        let forward =
            json!({"hidden_layers": layers, "final_norm": false, "mask": mask, "pad_rows": pads});
        golden.spec(Z_IMAGE, forward)
    };
    let one = rules(json!([-2]), "pads", "drop");
    assert_eq!(one, rules(json!([8]), "none", "drop"));
    assert_eq!(one.tokens.min_tokens, 0);
    assert_ne!(one, rules(json!([-3]), "pads", "drop"));
    assert_ne!(
        rules(json!([8]), "none", "keep"),
        rules(json!([8]), "pads", "keep")
    );
    assert_ne!(one, golden.spec(KLEIN, forward(&[-2], "drop")));
    let told = serde_json::to_value(&one).expect("JSON");
    assert_eq!(told["forward"]["hidden_layers"], json!([8]));
    assert_eq!(told["tokens"]["template"], Z_IMAGE);
    let back: EncoderSpec = serde_json::from_value(told).expect("own JSON");
    assert_eq!(back.fingerprint(), one.fingerprint());
}

#[test]
fn layers_that_are_not_there_are_refused() {
    let golden = Pipelines::open();
    let architecture = from_config(&golden.case["config"], &Qwen3, "config.json").expect("a Qwen3");
    for layer in [10, -11, i32::MIN, i32::MAX] {
        let recipe = recipe(PLAIN, 24, forward(&[1, layer], "keep")).expect("rules");
        let error = recipe
            .spec(&*architecture, Digest::of(b""), tiny().identity())
            .expect_err("no such layer");
        assert!(
            error.to_string().contains("expected 0 to 9, or -1 to -10"),
            "{error}"
        );
    }
}

#[test]
fn only_what_is_taken_is_digested() {
    let golden = Pipelines::open();
    let spec = golden.spec(KLEIN, forward(&[2, 4], "keep"));
    let located = spec.network.locate(&golden.weights()).expect("found");
    let names: Vec<&str> = located
        .tensors
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert!(names.contains(&"layers.3.mlp.up_proj.weight"));
    assert!(
        !names
            .iter()
            .any(|n| n.starts_with("layers.4.") || *n == "norm.weight")
    );
    // Half precision goes the other way through the kernels.
    let weights = golden.weights().with_dtype(DType::BF16);
    let encoder = TextEncoder::load(&*spec.network, &weights, Residency::Resident).expect("loads");
    let tokens = tiny().encode(&spec.tokens, "a red cat").expect("encodes");
    let half = encoder.encode(&[tokens]).expect("encodes");
    assert_eq!(half[0].hidden.as_ref().expect("rows").dtype(), DType::BF16);
}

#[test]
fn the_text_half_of_a_vision_model_is_refused() {
    let golden = Pipelines::open();
    let spec = golden.spec(KLEIN, forward(&[2, 4], "keep"));
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("model.safetensors");
    for (prefix, more) in [
        ("model.language_model.", None),
        ("model.", Some("visual.blocks.0.norm1.weight")),
    ] {
        let own = golden.tensors.iter().filter_map(|(name, t)| {
            let name = name.strip_prefix("model/model.")?;
            Some((format!("{prefix}{name}"), t.clone()))
        });
        let more = more.map(|name| (name.to_owned(), golden.tensors["klein"].clone()));
        candle_core::safetensors::save(&own.chain(more).collect(), &path).expect("written");
        let weights = Weights::open(std::slice::from_ref(&path)).expect("opens");
        let Err(error) = spec.network.locate(&weights) else {
            panic!("{prefix} is refused")
        };
        assert!(error.to_string().contains("is a Qwen3-VL"), "{error}");
    }
}

#[test]
fn a_configuration_that_is_not_meant_is_refused() {
    let read = |changed: Value| {
        let mut config = json!({"model_type": "qwen3", "num_hidden_layers": 4, "rope_theta": 1e6});
        for (key, value) in changed.as_object().expect("an object") {
            config[key] = value.clone();
        }
        let read = from_config(&config, &Qwen3, "config.json");
        read.map(|a| a.to_json()).map_err(|e| e.to_string())
    };
    assert_eq!(read(json!({})).expect("read")["rope_theta"], json!(1e6));
    let theta = |changed| read(changed).expect("read")["rope_theta"].clone();
    let five = json!({"rope_theta": 1e6, "rope_type": "default"});
    assert_eq!(theta(json!({"rope_parameters": five})), json!(1e6));
    assert_eq!(theta(json!({"rope_scaling": null})), json!(1e6));
    assert_eq!(
        read(json!({"num_key_value_heads": null})).expect("read")["num_key_value_heads"],
        32
    );
    // A window that no layer has is none.
    for idle in [
        json!({"use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 0}),
        json!({"use_sliding_window": true, "sliding_window": 4096, "max_window_layers": 4}),
        json!({"use_sliding_window": true, "sliding_window": null, "max_window_layers": 0}),
        json!({"layer_types": vec!["full_attention"; 4]}),
    ] {
        read(idle).expect("read");
    }
    for (changed, why) in [
        (json!({"model_type": "qwen2"}), "model_type"),
        (json!({"model_type": "qwen3_vl_text"}), "model_type"),
        (
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
            "rope_scaling.rope_type",
        ),
        (
            json!({"rope_scaling": {"type": "linear"}}),
            "rope_scaling.type",
        ),
        (
            json!({"rope_parameters": {"rope_theta": 1e4}}),
            "as in rope_parameters",
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}),
            "full_attention",
        ),
        (json!({"rope_theta": "many"}), "rope_theta"),
        (json!({"rope_theta": 0}), "rope_theta"),
        (
            json!({"use_sliding_window": true, "max_window_layers": 2}),
            "from layer 2 on",
        ),
        (
            json!({"use_sliding_window": true, "max_window_layers": 0}),
            "from layer 0 on",
        ),
        (
            json!({"layer_types": ["full_attention", "sliding_attention", "", ""]}),
            "layer_types",
        ),
        (
            json!({"layer_types": ["full_attention"]}),
            "one for each of 4",
        ),
        (json!({"attention_bias": true}), "attention_bias"),
        (
            json!({"num_attention_heads": 32, "num_key_value_heads": 5}),
            "a divisor",
        ),
        (json!({"head_dim": 127}), "even"),
    ] {
        let error = read(changed.clone()).expect_err("refused");
        assert!(error.contains(why), "{changed}: {error}");
    }
}

#[test]
fn a_bare_file_is_of_the_size_it_has() {
    let file = |width: usize, gguf: bool| {
        let (table, anchor) = match gguf {
            false => (
                "m.embed_tokens.weight",
                "m.layers.0.self_attn.q_norm.weight",
            ),
            true => ("token_embd.weight", "blk.0.attn_q_norm.weight"),
        };
        let made =
            |shape: (usize, usize)| Tensor::zeros(shape, DType::F16, &Device::Cpu).expect("made");
        let tensors = [
            (table.to_owned(), made((2, width))),
            (anchor.to_owned(), made((1, 128))),
        ];
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("model.safetensors");
        candle_core::safetensors::save(&tensors.into_iter().collect(), &path).expect("written");
        Weights::open(&[path]).expect("opens")
    };
    for (width, layers) in [(1024, 28), (2560, 36), (4096, 36), (7, 36)] {
        for gguf in [false, true] {
            let found = crate::text::published_for("qwen3", &file(width, gguf)).expect("a Qwen3");
            assert_eq!(found.to_json()["num_hidden_layers"], layers);
        }
    }
    assert_eq!(
        crate::text::published("qwen3").expect("a Qwen3").width(),
        2560
    );
    assert!(crate::text::published_for("qwen2", &file(1024, false)).is_none());
}

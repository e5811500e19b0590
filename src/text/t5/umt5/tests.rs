use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Umt5;
use crate::text::Kind as _;
use crate::text::config::from_config;
use crate::text::spec::{Cleanup, PadText, TokenRules, Truncation};
use crate::text::tokenizer::{IMPLEMENTATION, Tokenizer};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn rules(implementation: &str, cleanup: &[Cleanup]) -> TokenRules {
    let mut of_kind = serde_json::Map::new();
    if implementation != "transformers_5" {
        of_kind.insert(IMPLEMENTATION.to_owned(), implementation.into());
    }
    TokenRules {
        cleanup: cleanup.to_vec(),
        min_tokens: 0,
        max_tokens: Some(512),
        truncation: Truncation::Tokens,
        pad_id: 0,
        pad_text: PadText::Ordinary,
        of_kind,
    }
}

const WAN: [Cleanup; 3] = [
    Cleanup::Ftfy63,
    Cleanup::UnescapeHtmlTwice,
    Cleanup::CollapseWhitespace,
];

/// Against `tools/goldens/umt5.py`.
fn compare(vocabulary: &str, folder: &Path) {
    let text = std::fs::read(golden("tokens_umt5.json")).expect("golden");
    let expected: BTreeMap<String, String> = serde_json::from_slice(&text).expect("JSON");
    let captions = crate::text::tests::token_captions();
    let tokenizer = Tokenizer::load(Umt5.tokenizer(), folder).expect("a tokenizer");
    let mut cleaned = blake3::Hasher::new();
    for text in &captions {
        let text = tokenizer.read_text(&rules("transformers_5", &WAN), text);
        cleaned.update(text.expect("cleaned").as_bytes());
        cleaned.update(b"\0");
    }
    assert_eq!(cleaned.finalize().to_hex().as_str(), expected["cleaned"]);
    for program in ["transformers_5", "transformers_4_fast"] {
        for (kind, steps) in [("plain", &[][..]), ("cleaned", &WAN[..])] {
            let rules = rules(program, steps);
            let mut whole = blake3::Hasher::new();
            for tokens in tokenizer.encode_all(&rules, &captions).expect("encodes") {
                for id in std::iter::once(tokens.ids.len() as u32).chain(tokens.ids) {
                    whole.update(&id.to_le_bytes());
                }
            }
            let name = format!("{vocabulary}/{program}/{kind}");
            assert_eq!(
                whole.finalize().to_hex().as_str(),
                expected[&name],
                "{name}"
            );
        }
    }
}

#[test]
fn umt5_ids_of_the_tiny_vocabulary_are_those_of_each_program() {
    compare("tiny", &golden("tokenizers/umt5"));
}

#[test]
fn umt5_ids_of_the_real_vocabulary_are_those_of_each_program() {
    let folder = std::env::var_os("PLUMB_TOKENIZERS").map(|f| PathBuf::from(f).join("umt5"));
    match folder.filter(|folder| folder.is_dir()) {
        Some(folder) => compare("real", &folder),
        None => println!("skipped: PLUMB_TOKENIZERS names no folder with the real umt5/"),
    }
}

/// transformers 5's `T5Tokenizer` makes `<s>` of what the vocabulary lacks: it is told as lost all the same.
#[test]
fn unknown_text_is_told_whatever_it_becomes() {
    let tokenizer =
        Tokenizer::load(Umt5.tokenizer(), &golden("tokenizers/umt5")).expect("a tokenizer");
    for (program, id) in [("transformers_5", 2), ("transformers_4_fast", 3)] {
        let rules = rules(program, &[]);
        let tokens = tokenizer.encode(&rules, "a \u{e0041}").expect("encodes");
        assert!(tokens.ids.contains(&id), "{:?}", tokens.ids);
        let lost = tokenizer.lost(&rules, "a \u{e0041}").expect("told");
        assert_eq!(lost.unknown_words, ["\u{e0041}"]);
        assert_eq!(
            tokenizer
                .lost(&rules, "<s><unk>")
                .expect("told")
                .unknown_tokens,
            0
        );
    }
}

#[test]
fn the_tokenizer_of_another_kind_is_refused() {
    let t5 = Tokenizer::load(Umt5.tokenizer(), &golden("tokenizers/t5")).expect_err("T5's");
    assert!(
        t5.to_string().contains("unknown piece must have the id 3"),
        "{t5}"
    );
    let format = crate::text::t5::T5.tokenizer();
    let umt5 = Tokenizer::load(format, &golden("tokenizers/umt5")).expect_err("UMT5's");
    assert!(
        umt5.to_string()
            .contains("unknown piece must have the id 2"),
        "{umt5}"
    );
}

#[test]
fn the_released_configuration_gives_the_published_architecture() {
    // text_encoder/config.json of Wan-AI/Wan2.1-T2V-1.3B-Diffusers, the fields that count.
    let config = json!({
        "model_type": "umt5", "vocab_size": 256384, "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24,
        "num_heads": 64, "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": true,
        "layer_norm_epsilon": 1e-6, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
        "scalable_attention": true, "tie_word_embeddings": false,
    });
    let read = from_config(&config, &Umt5, "config.json").expect("read");
    let published = Umt5.published("umt5").expect("published");
    assert_eq!(*read, *published);
    assert!(Umt5.published("t5").is_none());
    let t5 = json!({ "model_type": "t5" });
    let error = from_config(&t5, &Umt5, "config.json").expect_err("another kind");
    assert!(
        error.to_string().contains("expected umt5, found t5"),
        "{error}"
    );
}

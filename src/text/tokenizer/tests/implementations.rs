//! Hard strings by the implementations that a recipe can name, against the programs themselves:
//! `tools/goldens/implementations.py`. PLUMB_IMPLEMENTATIONS names another file that it wrote, of more strings.

use super::*;
use crate::text::tokenizer::ftfy::{self, Version};

fn file() -> Vec<u8> {
    let named = std::env::var_os("PLUMB_IMPLEMENTATIONS").map(PathBuf::from);
    fs::read(named.unwrap_or_else(|| golden("implementations.safetensors"))).expect("golden")
}

fn digest(bytes: &[u8]) -> [u8; 8] {
    let whole = blake3::hash(bytes);
    whole.as_bytes()[..8].try_into().expect("eight bytes")
}

/// The strings whose digests are not those of tensor `name`.
fn differing(
    file: &SafeTensors<'_>,
    name: &str,
    strings: &[String],
    found: impl Fn(&str) -> Vec<u8>,
) -> Vec<(usize, String)> {
    let wanted = file.tensor(name).expect(name);
    let pairs = strings
        .iter()
        .zip(wanted.data().chunks_exact(8))
        .enumerate();
    pairs
        .filter(|(_, (text, wanted))| digest(&found(text)) != **wanted)
        .map(|(at, (text, _))| (at, text.clone()))
        .collect()
}

fn none_differs(name: &str, wrong: &[(usize, String)], all: usize) {
    println!("{name}: {} of {all} strings differ", wrong.len());
    assert!(
        wrong.is_empty(),
        "{name}: {} of {all} strings differ; see `tools/goldens/implementations.py ... --show N`: {:?}",
        wrong.len(),
        &wrong[..wrong.len().min(12)]
    );
}

/// The bytes of the ids between the specials.
fn content(tokenizer: &Tokenizer, rules: &TokenRules, text: &str) -> Vec<u8> {
    let tokens = tokenizer.encode(rules, text).expect("encodes");
    let (before, after) = (tokenizer.before.len(), tokenizer.after.len());
    let content = &tokens.ids[before..tokens.count - after];
    content.iter().flat_map(|id| id.to_le_bytes()).collect()
}

fn compare(vocabulary: &str, folder: &Path) {
    let bytes = file();
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let strings = captions(&file);
    assert!(strings.len() >= 600);
    let clip = Tokenizer::load(ClipText.tokenizer(), &folder.join("clip")).expect("CLIP");
    let t5 = Tokenizer::load(T5.tokenizer(), &folder.join("t5")).expect("T5");
    let mut compared = 0;
    for (kind, tokenizer) in [("clip", &clip), ("t5", &t5)] {
        for name in tokenizer.implementations.keys() {
            let mut rules = rules(0, tokenizer.eos_id());
            rules.max_tokens = None;
            rules
                .of_kind
                .insert(IMPLEMENTATION.to_owned(), (*name).into());
            let name = format!("{vocabulary}/{kind}/{name}");
            let wrong = differing(&file, &name, &strings, |text| {
                content(tokenizer, &rules, text)
            });
            none_differs(&name, &wrong, strings.len());
            compared += 1;
        }
    }
    assert_eq!(compared, 8);
}

#[test]
fn the_tiny_vocabularies_are_read_as_each_program_reads_them() {
    compare("tiny", &golden("tokenizers"));
}

#[test]
fn the_real_vocabularies_are_read_as_each_program_reads_them() {
    if let Some(folder) = real_tokenizers() {
        compare("real", &folder);
    }
}

#[test]
fn text_is_mended_as_ftfy_mends_it() {
    let bytes = file();
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let strings = captions(&file);
    for (name, version) in [("ftfy_6.1", Version::V6_1), ("ftfy_6.3", Version::V6_3)] {
        let wrong = differing(&file, name, &strings, |text| {
            ftfy::fix_text(version, text).expect("tables").into_bytes()
        });
        none_differs(name, &wrong, strings.len());
    }
}
